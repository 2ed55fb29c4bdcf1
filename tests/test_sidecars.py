"""The sidecar's protocol, the laws its scores keep, and its losses by hand arithmetic."""

import math
import subprocess
import sys
from itertools import pairwise

import cv2
import httpx2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from evoid_jax import media
from evoid_jax.sidecars import preset, serve, wire
from evoid_jax.sidecars.tiny import margins, optical_flow
from evoid_jax.sidecars.tiny import rewards as tiny
from evoid_jax.world import portraits

REWARDS = ["arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow"]
PEOPLE = list(portraits.SPLITS["validation"])[200:224]  # in no training or calibration set


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return tiny.load()


@pytest.fixture(scope="module")
def http(loaded):
    return TestClient(serve.app(loaded))


@pytest.fixture(scope="module")
def world():
    scenes = [portraits.scene(i, 0) for i in PEOPLE]
    videos = np.stack([portraits.render(s) for s in scenes])
    references = [[portraits.reference(s.identity)] for s in scenes]
    prompts = [portraits.prompt(s, 0) for s in scenes]
    return videos, references, prompts, [s.identity.tolist() for s in scenes], scenes


def ask(loaded, videos, references, prompts, **options) -> dict:
    body = wire.encode(np.stack(videos), references, prompts, **options)
    return preset.answer(loaded, wire.decode(body))


def scores(reply: dict, name: str) -> np.ndarray:
    return np.array(reply["scores"][name]["score"], float)


def blurred(videos, sigma):
    return np.stack([[cv2.GaussianBlur(f, (0, 0), sigma) for f in v] for v in videos])


# Protocol


def test_wire_round_trip_is_the_identity(world):
    videos, references, prompts, truth, _ = world
    wanted = {"attributes": truth, "rewards": ["flow"], "monitors": True, "fps": 12}
    batch = wire.decode(wire.encode(videos, references, prompts, **wanted))
    np.testing.assert_array_equal(np.stack(batch.videos), videos)
    np.testing.assert_array_equal(np.stack(batch.references), np.stack(references))
    np.testing.assert_array_equal(np.stack(batch.attributes), np.float32(truth))
    assert (batch.prompts, batch.rewards) == (prompts, ["flow"])
    assert (batch.fps, batch.monitors, batch.reasons) == (12.0, True, [None] * len(prompts))


def test_health_and_info_name_rewards_versions_and_digests(http):
    assert http.get("/health").json() == {"status": "ok"}
    info = http.get("/info").json()
    assert [r["name"] for r in info["rewards"]] == REWARDS
    assert all(len(r["sha256"]) == 64 and r["version"] and r["about"] for r in info["rewards"])
    assert (info["preset"], info["monitors"]) == ("tiny", ["identity", "motion"])


def test_raw_body_gets_every_reward_in_the_unit_interval(http, world):
    videos, references, prompts, truth, _ = (part[:4] for part in world)
    attributes = [truth[0], None, None, None]
    body = wire.encode(videos, references, prompts, attributes=attributes, monitors=True)
    reply = http.post("/score", content=body).json()
    assert list(reply["scores"]) == REWARDS
    for column in reply["scores"].values():
        assert column["reason"] == [None] * 4
        assert all(0 <= s <= 1 for s in column["score"])
        assert all(math.isfinite(r) for r in column["raw"])
    assert all(0 <= s <= 1 for s in reply["monitor"]["identity"])
    assert all(m >= 0 for m in reply["monitor"]["motion"])


def test_photos_are_looked_at_by_presets_that_can(http, loaded):
    body = wire.encode_photos([np.full((8, 9, 3), level, np.uint8) for level in (0, 200)])
    assert http.get("/info").json()["photos"] is False
    refused = http.post("/photos", content=body)
    assert refused.status_code == 400 and "tiny does not look at photos" in refused.json()["detail"]
    seeing = loaded._replace(check_photo=lambda photo: "no face" if photo.max() < 9 else "")
    client = TestClient(serve.app(seeing))
    assert client.get("/info").json()["photos"] is True
    assert client.post("/photos", content=body).json() == {"problems": ["no face", None]}
    assert client.post("/photos", content=body[:9]).status_code == 400


def test_a_broken_mp4_is_null_with_a_reason_and_the_others_score(http, world):
    videos, references, prompts, _, _ = world
    good = media.encode(videos[0], 8)
    files = [good, b"no video", good[: len(good) // 3], media.encode(videos[3], 8)]
    body = wire.encode_mp4(files, references[:4], prompts[:4])
    reply = http.post("/score", content=body).json()
    for column in reply["scores"].values():
        for i, broken in enumerate((False, True, True, False)):
            assert (column["score"][i] is None) == broken
            assert (column["raw"][i] is None) == broken
            assert ("not a video" in (column["reason"][i] or "")) == broken


def test_mp4_and_raw_of_the_same_videos_score_nearly_alike(http, world):
    videos, references, prompts = (part[:4] for part in world[:3])
    files = [media.encode(v, 8) for v in videos]
    replies = [
        http.post("/score", content=body).json()
        for body in (
            wire.encode(videos, references, prompts),
            wire.encode_mp4(files, references, prompts),
        )
    ]
    for name in ("arcface", "curricularface", "gme", "flow"):
        raw, mp4 = (scores(reply, name) for reply in replies)
        np.testing.assert_allclose(raw, mp4, atol=0.15)


def test_videos_of_other_sizes_and_lengths_score(http, world):
    video = np.stack([cv2.resize(f, (160, 120)) for f in portraits.render(world[4][0], 20, 96)])
    files = [media.encode(video, 8), media.encode(world[0][1], 8)]
    references = [[cv2.resize(photo, (96, 96))] for [photo] in world[1][:2]]
    reply = http.post("/score", content=wire.encode_mp4(files, references, world[2][:2])).json()
    assert all(s is not None for c in reply["scores"].values() for s in c["score"])


def test_what_cannot_be_scored_is_null_with_a_reason_never_zero(loaded, world):
    videos, references, prompts = (part[:3] for part in world[:3])
    reply = ask(loaded, videos, references, ["", prompts[1], prompts[2]])
    gme = reply["scores"]["gme"]
    assert gme["score"][0] is None and gme["raw"][0] is None and "prompt" in gme["reason"][0]
    assert gme["excused"] == [True, False, False]  # no video can help its prompt
    assert gme["score"][1] is not None and scores(reply, "arcface")[0] >= 0
    still = ask(loaded, videos[:, :1], references, prompts)["scores"]
    for name in ("qalign", "flow"):
        assert still[name]["score"] == [None] * 3 and "frames" in still[name]["reason"][0]
    assert None not in still["arcface"]["score"]


def test_a_reward_that_raises_or_gives_nan_leaves_the_others_alone(loaded, world):
    def broken(clips):
        raise RuntimeError("out of memory")

    def nan(clips):
        return preset.Column(np.array([0.3, np.nan]), np.array([0.3, 0.4]), [None, None])

    rewards = [loaded.rewards[0]._replace(name="a", score=broken)]
    rewards += [loaded.rewards[0]._replace(name="b", score=nan), loaded.rewards[6]]
    videos, references, prompts = (part[:2] for part in world[:3])
    hurt = loaded._replace(rewards=tuple(rewards))
    columns = ask(hurt, videos, references, prompts)["scores"]
    assert columns["a"]["score"] == [None, None] and "out of memory" in columns["a"]["reason"][1]
    assert columns["a"]["excused"] == [True, True] and columns["b"]["excused"] == [False, False]
    assert columns["b"]["score"] == [0.3, None] and columns["b"]["raw"] == [0.3, None]
    assert columns["b"]["reason"][0] is None and "finite" in columns["b"]["reason"][1]
    assert None not in columns["flow"]["score"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b[:2], "4-byte"),
        (lambda b: b[:50], "header"),
        (lambda b: b"\x04\x00\x00\x00nope", "not JSON"),
        (lambda b: b[:-1], "of photos"),
        (lambda b: b.replace(b'"raw"', b'"avi"'), "avi"),
        (lambda b: b.replace(b'"shape": [1, 9', b'"shape": [1, 8'), "bytes of video"),
        (lambda b: b.replace(b'"flow"', b'"fluw"'), "fluw"),
        (lambda b: b.replace(b'"fps": 8', b'"fps":-8'), "fps"),
        (lambda b: b.replace(b'"prompts"', b'"prompt_"'), "prompts"),
    ],
)
def test_a_bad_request_gets_400_and_what_was_wrong(http, world, change, said):
    body = wire.encode(world[0][:1], world[1][:1], ["a person"], rewards=["flow"])
    reply = http.post("/score", content=change(body))
    assert reply.status_code == 400
    assert said in reply.json()["detail"]


def test_scores_do_not_depend_on_the_batch(loaded, world):
    videos, references, prompts = world[:3]
    many = ask(loaded, videos[:5], references[:5], prompts[:5])
    one = ask(loaded, videos[2:3], references[2:3], prompts[2:3])
    for name in REWARDS:
        np.testing.assert_allclose(scores(many, name)[2], scores(one, name)[0], atol=1e-4)


def test_the_process_serves_on_a_free_port_and_never_imports_jax(tmp_path, world):
    file, log = tmp_path / "port", tmp_path / "imports"
    command = [sys.executable, "-X", "importtime", "-m", "evoid_jax.sidecars.serve"]
    command += ["--preset", "tiny", "--port", "0", "--port-file", str(file), "--threads", "1"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            url = process.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{int(file.read_text())}"
            body = wire.encode(world[0][:1], world[1][:1], world[2][:1], rewards=["flow"])
            reply = httpx2.post(f"{url}/score", content=body, timeout=300).json()
            assert list(reply["scores"]) == ["flow"] and reply["monitor"] == {}
        finally:
            process.terminate()
    imported = {line.rsplit("|", 1)[-1].strip() for line in log.read_text().splitlines()}
    assert "torch" in imported
    assert not {"jax", "jaxlib", "flax", "optax"} & imported


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="huge"):
        serve.load("huge")


# Laws of the rewards


def test_own_videos_look_more_like_the_reference_than_another_persons(loaded, world):
    videos, references, prompts, truth, _ = world
    own = ask(loaded, videos, references, prompts, attributes=truth, monitors=True)
    roll = lambda rows: rows[1:] + rows[:1]
    strange = ask(loaded, videos, roll(references), prompts, attributes=roll(truth), monitors=True)
    for name in ("arcface", "curricularface"):
        assert (scores(own, name) > scores(strange, name)).mean() > 0.9
        assert scores(own, name).mean() > scores(strange, name).mean() + 0.3
    own, strange = (np.array(r["monitor"]["identity"]) for r in (own, strange))
    assert (own > strange).mean() > 0.9 and own.mean() > strange.mean() + 0.3


def test_likeness_to_several_photos_is_the_mean_over_them(loaded, world):
    """Photos of any size; videos of one request may have different numbers of them."""
    videos, references, prompts = (part[:3] for part in world[:3])
    (own,), (other,) = references[:2]
    larger = cv2.resize(other, (128, 128), interpolation=cv2.INTER_NEAREST)
    ask_of = lambda rows: ask(loaded, videos[[0] * len(rows)], rows, prompts[:1] * len(rows))
    reply = ask_of([[own], [larger], [own, larger], [own, larger, larger]])
    for name in ("arcface", "curricularface"):
        one, two, both, thrice = reply["scores"][name]["raw"]
        assert one > two + 0.1
        assert both == pytest.approx((one + two) / 2, abs=2e-6)
        assert thrice == pytest.approx((one + 2 * two) / 3, abs=2e-6)


@pytest.mark.parametrize("name", ["arcface", "curricularface"])
def test_identity_falls_gradually_as_a_face_turns_into_another(loaded, world, name):
    videos, references, prompts = world[:3]
    other = np.roll(videos, 1, 0)
    means = []
    for part in (0, 0.25, 0.5, 0.75, 1):
        mixed = (videos * (1 - part) + other * part).astype(np.uint8)
        reply = ask(loaded, mixed, references, prompts, rewards=[name])
        means.append(scores(reply, name).mean())
    assert all(a > b for a, b in pairwise(means))


def test_the_matching_prompt_scores_above_another(loaded, world):
    videos, references, prompts = world[:3]
    own = scores(ask(loaded, videos, references, prompts, rewards=["gme"]), "gme")
    other = scores(ask(loaded, videos, references, prompts[1:] + prompts[:1]), "gme")
    assert own.mean() > other.mean() + 0.2
    assert (own > other).mean() > 0.8


def test_blur_lowers_aesthetic_by_degrees(loaded, world):
    videos, references, prompts = world[:3]
    grades = [videos, *(blurred(videos, s) for s in (0.8, 1.6, 2.4))]
    means = [scores(ask(loaded, v, references, prompts), "aesthetic").mean() for v in grades]
    assert all(a > b + 0.05 for a, b in pairwise(means))
    assert 0.1 < means[1] < 0.95  # a slightly soft clip is not saturated


def test_shuffled_frames_lower_qalign(loaded, world):
    videos, references, prompts = world[:3]
    moving = [i for i, s in enumerate(world[4]) if s.camera != "static"]
    videos = videos[moving]
    references, prompts = ([part[i] for i in moving] for part in (references, prompts))
    shuffled = videos[:, [4, 0, 7, 2, 8, 1, 5, 3, 6]]
    clean, mixed = (
        scores(ask(loaded, v, references, prompts), "qalign") for v in (videos, shuffled)
    )
    assert (clean > mixed).mean() > 0.9 and clean.mean() > mixed.mean() + 0.2


def test_damaged_structure_lowers_naturalness(loaded, world):
    videos, references, prompts = world[:3]
    twice = videos.copy()
    twice[:, :, 28:56] = videos[:, :, 14:42]  # the face again, below itself
    clean, doubled = (
        scores(ask(loaded, v, references, prompts), "naturalness") for v in (videos, twice)
    )
    assert (clean > doubled).mean() > 0.9 and clean.mean() > doubled.mean() + 0.2


def test_motion_monitor_follows_the_true_amplitude(loaded, world):
    videos, references, prompts, _, scenes = world
    guess = ask(loaded, videos, references, prompts, rewards=["flow"], monitors=True)
    true = np.array([portraits.truth(s)["motion_amplitude"] for s in scenes])
    rank = lambda values: np.argsort(np.argsort(values))
    assert np.corrcoef(rank(guess["monitor"]["motion"]), rank(true))[0, 1] > 0.7


# Optical flow


def test_a_still_clip_has_no_flow_and_one_frame_has_none_to_measure(world):
    still = np.repeat(world[0][0][:1], 9, 0)
    flows = optical_flow.farneback(still)
    assert flows.shape == (8, 64, 64, 2)
    assert (
        optical_flow.amplitude(flows) < 2e-3 and optical_flow.score(flows) < 5e-3
    )  # Farneback's own rounding
    with pytest.raises(ValueError, match="2 frames"):
        optical_flow.farneback(still[:1])


def test_flow_numbers_by_hand():
    flows = np.zeros((2, 32, 32, 2), np.float32)
    flows[0, ..., 0], flows[1, ..., 0] = 1.6, 0.8
    assert optical_flow.amplitude(flows) == pytest.approx(0.6)  # (1.6 + 0 + 0.8 + 0) / 4
    assert optical_flow.score(flows) == pytest.approx(1.2 / (1.2 + 0.8))
    flows[1, ..., 0] = -1.6
    assert optical_flow.amplitude(flows) == pytest.approx(
        0, abs=1e-7
    )  # opposite motions cancel in raw
    assert optical_flow.score(flows) == pytest.approx(1.6 / (1.6 + 0.8))  # and not in the score


# Margin losses


def test_arcface_by_hand():
    """cos(pi/3 + 0.5) = 0.5 cos 0.5 - sin(pi/3) sin 0.5 = 0.0235966; logits 4x."""
    cos = torch.tensor([[0.5, 0.2, -0.1]])
    target = 0.5 * 0.8775826 - 0.8660254 * 0.4794255
    loss = math.log(math.exp(4 * target) + math.exp(0.8) + math.exp(-0.4)) - 4 * target
    assert margins.arcface(cos, torch.tensor([0]), 4.0, 0.5).item() == pytest.approx(loss, abs=1e-5)
    assert loss == pytest.approx(1.29062, abs=1e-5)


def test_arcface_goes_on_falling_past_pi_minus_the_margin():
    cos = torch.tensor([[-0.99, 0.0]])
    target = -0.99 - 0.5 * 0.4794255
    loss = math.log(math.exp(target) + 1) - target
    assert margins.arcface(cos, torch.tensor([0]), 1.0, 0.5).item() == pytest.approx(loss, abs=1e-5)


def test_curricularface_by_hand():
    """t = 0.99*0.1 + 0.01*0.5 = 0.104; 0.2 > 0.0236 is hard: 0.2*(0.104+0.2); -0.1 is easy."""
    cos = torch.tensor([[0.5, 0.2, -0.1]])
    target = 0.5 * 0.8775826 - 0.8660254 * 0.4794255
    logits = [4 * target, 4 * 0.2 * 0.304, -0.4]
    loss = math.log(sum(map(math.exp, logits))) - logits[0]
    got, t = margins.curricularface(cos, torch.tensor([0]), torch.tensor(0.1), 4.0, 0.5)
    assert t.item() == pytest.approx(0.104)
    assert got.item() == pytest.approx(loss, abs=1e-5)


def test_without_margin_arcface_is_cross_entropy():
    cos = torch.tensor([[0.3, -0.4, 0.9], [0.1, 0.2, 0.0]])
    label = torch.tensor([1, 2])
    plain = torch.nn.functional.cross_entropy(10 * cos, label)
    assert margins.arcface(cos, label, 10.0, 0.0).item() == pytest.approx(plain.item(), abs=1e-5)
