"""Preset `open` from files of made-up weights to replies: its laws, whatever the nets know."""

import made_up_open
import numpy as np
import pytest
from fastapi.testclient import TestClient

from evoid_jax import files
from evoid_jax.sidecars import preset, serve, wire
from evoid_jax.sidecars.open import align, catalogue, clip, minilm, rewards
from evoid_jax.sidecars.open.faces import Face
from evoid_jax.sidecars.tiny import optical_flow

REWARDS = ["arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow"]
PROMPT = "a person waves"


class Finder:
    """Sees a face that fills the picture where its first pixel is bright."""

    def __init__(self, folder=None):
        pass

    def find(self, image_HWC):
        if image_HWC[0, 0, 0] < 128:
            return []
        scale = np.array(image_HWC.shape[1::-1]) / 112
        box = np.float32([0, 0, *image_HWC.shape[1::-1]])
        return [Face(box, (align.ARCFACE * scale).astype(np.float32), 0.9)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minilm, "WORDS", len(made_up_open.WORDS))
        patch.setattr(minilm, "LAYERS", 1)
        folder = made_up_open.fill(tmp_path_factory.mktemp("open"))
        known = {f.path: f.sha256 for package in catalogue.PACKAGES for f in package.files}
        own = files.sha256

        def digest(path):
            return (
                known[path.relative_to(folder).as_posix()] if folder in path.parents else own(path)
            )

        patch.setattr(files, "sha256", digest)
        patch.setattr(rewards, "Finder", Finder)
        yield serve.load("open", folder)


def pictures(seed: int, faces: list[bool], size: int = 48) -> np.ndarray:
    """Return frames of smooth noise that move, with or without a face, uint8 FHWC."""
    rng = np.random.default_rng(seed)
    large = np.repeat(np.repeat(rng.integers(0, 256, (12, 20, 3)), 8, 0), 8, 1).astype(np.uint8)
    video = np.stack([large[:size, 2 * i : 2 * i + size] for i in range(len(faces))])
    video[:, 0, 0] = np.where(np.array(faces)[:, None], 255, 0)
    return video


def ask(loaded, videos, photos, prompts=None, **options) -> dict:
    prompts = prompts or [PROMPT] * len(videos)
    return preset.answer(
        loaded, wire.decode(wire.encode(np.stack(videos), photos, prompts, **options))
    )


def test_every_reward_and_monitor_answers_in_the_unit_interval(loaded):
    http = TestClient(serve.app(loaded))
    video, photo = pictures(0, [True] * 5), pictures(1, [True])[0]
    body = wire.encode(video[None], [[photo]], [PROMPT], monitors=True)
    reply = http.post("/score", content=body).json()
    assert list(reply["scores"]) == REWARDS
    for name, column in reply["scores"].items():
        assert column["reason"] == [None], name
        assert 0 <= column["score"][0] <= 1 and np.isfinite(column["raw"][0])
    assert reply["monitor"].pop("uncopied") == [None]  # which takes two photos of a person
    assert set(reply["monitor"]) == {"motion", "sharpness"}
    beside = {"others": [[pictures(3, [True])[0]]], "monitors": True}
    again = http.post("/score", content=wire.encode(video[None], [[photo]], [PROMPT], **beside))
    assert 0 <= again.json()["monitor"]["uncopied"][0] <= 1
    assert again.json()["scores"] == reply["scores"]
    assert all(0 < values[0] < 1 for values in reply["monitor"].values())


def test_info_says_what_stands_in_for_what(loaded):
    info = preset.info(loaded)
    assert [r["name"] for r in info["rewards"]] == REWARDS
    assert all(r["about"].startswith("stand-in for") for r in info["rewards"][:-1])
    assert "conse" in info["rewards"][2]["about"] and "dlib" in info["rewards"][0]["about"]
    assert info["rewards"][2]["version"] == "open-1 conse"
    assert len({r["sha256"] for r in info["rewards"]}) == 7
    assert all(r["version"].startswith("open-1") for r in info["rewards"])


def test_a_video_without_a_face_is_nobody_and_a_frame_without_one_counts_as_such(loaded):
    own = pictures(0, [True])[0]
    videos = [pictures(0, faces) for faces in ([True] * 4, [True, False] * 2, [False] * 4)]
    faces = ["arcface", "curricularface"]
    scores = ask(loaded, videos, [[own]] * 3, rewards=faces)["scores"]
    for name in faces:
        whole, half, none = scores[name]["score"]
        assert none == 0 and scores[name]["reason"][2] is None
        assert 0 < half < whole
    natural = ask(loaded, videos[2:], [[own]], rewards=["naturalness"])["scores"]["naturalness"]
    assert natural["score"] == [0]


def test_a_photo_without_a_face_is_excused_and_beside_one_with_it_does_not_count(loaded):
    video, blind = pictures(0, [True] * 3), pictures(1, [False])[0]
    first, second = pictures(2, [True])[0], pictures(3, [True])[0]
    photos = [[blind], [first, blind], [first], [first, second], [second]]
    asked = ["arcface", "curricularface", "aesthetic"]
    scores = ask(loaded, [video] * 5, photos, rewards=asked)["scores"]
    for name in ("arcface", "curricularface"):
        column = scores[name]
        assert column["score"][0] is None and column["excused"][0]
        assert "no photo of the person shows a face" in column["reason"][0]
        _, both, one, two, other = column["raw"]
        assert both == one
        assert two == pytest.approx((one + other) / 2, abs=2e-6)
    assert scores["aesthetic"]["score"][0] is not None


def test_a_frame_that_is_the_photo_is_the_person(loaded):
    """A crop against itself: distance 0 and cosine 1, so both scores are 1."""
    video = pictures(0, [True] * 2)
    still = np.stack([video[0]] * 2)
    asked = ["arcface", "curricularface"]
    scores = ask(loaded, [still], [[video[0]]], rewards=asked)["scores"]
    assert scores["arcface"]["raw"] == scores["arcface"]["score"] == [1]
    assert scores["curricularface"]["raw"][0] == pytest.approx(1, abs=1e-5)
    assert scores["curricularface"]["score"] == [1]


def test_what_cannot_be_measured_says_why(loaded):
    video, photo = pictures(0, [True]), pictures(1, [True])[0]
    scores = ask(loaded, [video], [[photo]], ["..."])["scores"]
    assert scores["gme"]["excused"] == [True] and "no words" in scores["gme"]["reason"][0]
    for name in ("qalign", "naturalness", "flow"):
        assert scores[name]["score"] == [None] and "2 frames" in scores[name]["reason"][0]
    assert scores["arcface"]["score"][0] is not None


def test_speed_and_not_pixels_per_frame_is_what_counts(loaded):
    """The same frames shown at half the rate move at half the speed."""
    video, photo = pictures(0, [True] * 4), pictures(1, [True])[0]
    fast, slow = (
        ask(loaded, [video], [[photo]], rewards=["flow"], monitors=True, fps=fps) for fps in (16, 8)
    )
    for name in ("score", "raw"):
        assert len(fast["scores"]["flow"][name]) == 1
    odds = lambda p: p / (1 - p)
    ratio = odds(fast["scores"]["flow"]["score"][0]) / odds(slow["scores"]["flow"]["score"][0])
    assert ratio == pytest.approx(2, rel=1e-3)
    ratio = odds(fast["monitor"]["motion"][0]) / odds(slow["monitor"]["motion"][0])
    assert ratio == pytest.approx(2, rel=1e-3)
    raw = optical_flow.amplitude(optical_flow.farneback(video))
    assert fast["scores"]["flow"]["raw"][0] == slow["scores"]["flow"]["raw"][0]
    assert fast["scores"]["flow"]["raw"][0] == pytest.approx(raw, abs=1e-6)


def test_frames_are_sampled_as_the_benchmark_does():
    frames = np.arange(81)[:, None, None, None] * np.ones((1, 2, 2, 3), int)
    taken = [f[0, 0, 0] for f in clip.Clip(None, frames, [], "", 8).frames]
    assert len(taken) == 32 and taken[:3] == [0, 2, 5] and taken[-1] == 80
    assert len(clip.Clip(None, frames[:9], [], "", 8).frames) == 9


def test_a_photo_is_looked_at_once_for_all_its_videos(loaded, monkeypatch):
    seen = []
    find = Finder.find
    monkeypatch.setattr(
        Finder, "find", lambda self, image: seen.append(image.shape) or find(self, image)
    )
    photo = pictures(1, [True], size=40)[0]
    ask(loaded, [pictures(0, [True] * 2)] * 3, [[photo]] * 3, rewards=["arcface", "curricularface"])
    assert seen.count((40, 40, 3)) == 1 and len(seen) == 1 + 3 * 2
