"""Preset `paper` around its nets: flags, weights by name, and scores with tiny ones."""

import argparse
import math
import sys

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from paper_folder import Analysis, align, clip_with, letters, moving, put, weights, with_faces
from paper_models import picture

from evoid_jax.sidecars import preset, serve, wire
from evoid_jax.sidecars.paper import (
    catalogue,
    clips,
    faces,
    monitors,
    options,
    rewards,
    smoothness,
    trial,
)
from evoid_jax.sidecars.paper.options import Options

FLOW = Options(rewards=("flow",))


# Flags


def told(*words, preset="paper"):
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default=preset)
    parser.add_argument("--weights")
    options.add_arguments(parser)
    return options.from_arguments(parser.parse_args(words))


def test_without_flags_everything_has_its_default(monkeypatch, tmp_path):
    assert told() == Options() == told(preset="tiny")
    assert options.dtype(told("--device=cpu")) == torch.float32
    assert options.dtype(told("--device=cpu", "--dtype=bfloat16")) == torch.bfloat16
    monkeypatch.setenv("EVOID_JAX_PAPER", str(tmp_path))
    assert catalogue.root(told()) == tmp_path
    assert catalogue.root(told("--weights=elsewhere")).name == "elsewhere"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rewards=arcface,gem"], "got 'gem'"),
        (["--rewards="], "got none"),
        (["--stride=0"], "--stride must be 1 or more"),
        (["--memory=0"], "--memory must be more than 0"),
        (["--preset=tiny", "--rewards=flow"], "--rewards: of --preset paper, not of tiny"),
    ],
)
def test_flags_that_cannot_be_are_named(words, said):
    with pytest.raises(ValueError, match=said):
        told(*words)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--device must be auto, cpu, cuda"):
        options.device(Options(device="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            options.device(Options(device="cuda"))


# Weights by name


def weight(name):
    return next(w for w in catalogue.WEIGHTS if w.name == name)


def test_all_that_is_missing_is_told_at_once_with_its_source_and_licence(tmp_path):
    wanted = Options(rewards=("arcface", "qalign", "flow"), weights=tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        rewards.load(options=wanted)
    words = str(error.value)
    assert "insightface pack is missing" in words and "one-align is missing" in words
    assert f"--local-dir {tmp_path}/one-align" in words and "S-Lab 1.0" in words
    assert "non-commercial" in words and "--rewards=flow" in words and "GME" not in words


def test_naturalness_without_a_judge_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--judge=http"):
        rewards.load(options=Options(rewards=("naturalness",), weights=tmp_path))


@pytest.mark.parametrize("above", ["face_extractor/models", "face_extractor", "models"])
def test_a_pack_is_found_where_people_unpack_it(tmp_path, above):
    put(
        tmp_path, f"{above}/antelopev2/det.onnx", f"{above}/antelopev2/rec.onnx", "models/notes.txt"
    )
    place = catalogue.find(weight("insightface pack"), Options(weights=tmp_path))
    assert place.path == tmp_path / above / "antelopev2"
    assert [file.name for file in place.files] == ["det.onnx", "rec.onnx"]


def test_two_of_a_kind_need_a_name(tmp_path):
    for size in ("2B", "7B"):
        folder = f"gme-Qwen2-VL-{size}-Instruct"
        put(
            tmp_path, *(f"{folder}/{n}" for n in ("config.json", "tokenizer.json", "a.safetensors"))
        )
    gme = weight("GME-Qwen2-VL")
    with pytest.raises(ValueError, match="2B-Instruct, gme-Qwen2-VL-7B-Instruct .* --gme=NAME"):
        catalogue.find(gme, Options(weights=tmp_path))
    named = Options(weights=tmp_path, gme="gme-Qwen2-VL-2B-Instruct")
    assert catalogue.find(gme, named).path.name == "gme-Qwen2-VL-2B-Instruct"
    with pytest.raises(FileNotFoundError, match="named other is missing"):
        catalogue.find(gme, named._replace(gme="other"))


def test_a_folder_that_lacks_a_file_is_no_weight(tmp_path):
    put(tmp_path, "one-align/config.json", "one-align/model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="with config.json, tokenizer.model"):
        catalogue.find(weight("one-align"), Options(weights=tmp_path))
    put(tmp_path, "one-align/tokenizer.model")
    assert len(catalogue.find(weight("one-align"), Options(weights=tmp_path)).files) == 3


def test_every_reward_with_weights_is_in_the_catalogue():
    needed = {name for w in catalogue.WEIGHTS for name in w.rewards}
    assert needed == set(options.REWARDS) - {"naturalness", "flow"}
    assert set(trial.TRIALS) == set(rewards.DESCRIPTIONS) == set(options.REWARDS)


# The whole


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """All rewards but naturalness, which test_paper_judge.py has."""

    class Encoder:
        def embed(self, shown):
            return np.stack([face.embedding_D * (1, -1, 1) for face in shown])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "load_finder", lambda pack, device: faces.Finder(Analysis(), align))
        patch.setattr(faces, "load_encoder", lambda file, device, memory: Encoder())
        patch.setattr(smoothness, "tokenizer", lambda folder: (letters, 1))
        names = tuple(name for name in options.REWARDS if name != "naturalness")
        folder = weights(tmp_path_factory.mktemp("weights"))
        yield rewards.load(folder, Options(rewards=names, device="cpu"))


def ask(loaded, videos, photos, prompts, **other):
    body = wire.encode(np.stack(videos), photos, prompts, **other)
    return preset.answer(loaded, wire.decode(body))["scores"]


def test_every_reward_scores_and_says_what_it_is(loaded):
    video = np.stack([picture(40, 60, 3 * t) for t in range(5)])
    video[:, 8, 5] = (255, 0, 0)
    columns = ask(loaded, [video], [[with_faces((5, 8))]], ["A person waves."])
    assert list(columns) == [n for n in options.REWARDS if n != "naturalness"]
    for name, column in columns.items():
        assert column["reason"] == [None], name
        assert 0 <= column["score"][0] <= 1 and math.isfinite(column["raw"][0]), name
    assert columns["arcface"]["raw"] == columns["arcface"]["score"] == [1.0]
    about = {r["name"]: r for r in preset.info(loaded)["rewards"]}
    assert all(len(r["sha256"]) == 64 and r["version"] for r in about.values())
    assert "antelopev2" in about["arcface"]["about"] and "2B" in about["gme"]["about"]
    assert "float32" in about["qalign"]["about"]
    assert not any("{" in r["about"] or "None" in r["about"] for r in about.values())


def test_hiding_the_face_does_not_pay(loaded):
    """Raw is the benchmark's, which skips frames without a face; the score counts them as 0."""
    always, half, never = clip_with((5, 8)), clip_with((5, 8), None), clip_with(None)
    same = lambda one: [one] * 3
    photos, names = same([with_faces((5, 8))]), ["arcface", "curricularface"]
    columns = ask(loaded, [always, half, never], photos, same("A person."), rewards=names)
    for name in names:
        column = columns[name]
        assert column["raw"] == [1.0, 1.0, 0.0] and column["excused"] == [False] * 3
        first = (clips.sample(5) == 0).sum() / 32
        assert column["score"] == pytest.approx([1.0, first, 0.0], abs=1e-6)


def test_what_is_never_rewarded_is_measured_beside(loaded):
    """A copied face, a frozen video and a blurred one each lower their own monitor."""
    one, other = with_faces((5, 8)), with_faces((0, 30))
    moving_video = np.stack([picture(40, 60, 3 * t) for t in range(5)])
    frozen = np.stack([moving_video[0]] * 5)
    soft = np.stack([cv2.blur(frame, (5, 5)) for frame in moving_video])
    photos = [[one, other], [one, other], [one]]
    body = wire.encode(
        np.stack([clip_with((5, 8)), frozen, soft]), photos, ["A."] * 3, monitors=True
    )
    reply = preset.answer(loaded, wire.decode(body))["monitor"]
    assert list(reply) == ["motion", "sharpness", "uncopied"] == preset.info(loaded)["monitors"]
    assert reply["motion"][1] == pytest.approx(0, abs=1e-3) and reply["motion"][2] > 0.1
    assert reply["sharpness"][2] < reply["sharpness"][1]
    assert reply["uncopied"][0] == pytest.approx(0, abs=1e-3) and reply["uncopied"][2] is None
    # A photo that only monitors are shown is as good, and no reward takes notice of it.
    alone, beside = (
        preset.answer(
            loaded, wire.decode(wire.encode(clip_with((5, 8))[None], [[one]], ["A."], **w))
        )
        for w in ({}, {"others": [[other]], "monitors": True})
    )
    assert beside["monitor"]["uncopied"][0] == pytest.approx(reply["uncopied"][0], abs=1e-6)
    assert beside["scores"] == alone["scores"]
    assert loaded.check_photo(one) == "" and loaded.check_photo(with_faces()) == "no face"
    assert [m.name for m in monitors.of(None)] == ["motion", "sharpness"]


def test_several_photos_are_averaged_and_one_without_a_face_is_left_out(loaded):
    one, other, none = with_faces((5, 8)), with_faces((0, 30)), with_faces()
    video = clip_with((5, 8))
    photos = [[one], [other], [one, other], [one, none], [none]]
    columns = ask(loaded, [video] * 5, photos, ["A person."] * 5, rewards=["arcface"])
    column = columns["arcface"]
    a, b, both, alone, nobody = column["raw"]
    assert a > b + 0.01 and both == pytest.approx((a + b) / 2, abs=1e-6) and alone == a
    assert nobody is None and column["excused"][-1] and "photos" in column["reason"][-1]


def test_what_goes_wrong_with_one_video_is_its_own(loaded):
    ten = [picture(40, 60, 3 * t) for t in range(10)]
    columns = ask(loaded, [np.stack(ten[:2])] * 2, [[with_faces((5, 8))]] * 2, ["  ", "A person."])
    assert columns["gme"]["score"][0] is None and columns["gme"]["score"][1] is not None
    assert "no words" in columns["gme"]["reason"][0] and columns["gme"]["excused"] == [True, False]
    assert columns["qalign"]["score"] == [None, None]
    assert "3 frames" in columns["qalign"]["reason"][0]

    def breaks(clip):
        if clip.prompt == "b":
            raise RuntimeError("no memory")
        return clips.One(1.0, 1.0)

    three = [clips.Clip(None, [], prompt, 8) for prompt in "abc"]
    for workers in (1, 3):
        column = clips.each("x", breaks, three, workers)
        assert np.isfinite(column.raw_B).tolist() == [True, False, True]
        assert column.reasons == [None, "x: RuntimeError: no memory", None]
        assert column.excused == [False, True, False]


def test_scores_do_not_depend_on_the_batch(loaded):
    videos = [np.stack([picture(40, 60, s * t) for t in range(3)]) for s in (1, 3)]
    photos, prompts = [[with_faces((5, 8))]] * 2, ["A person.", "A dog."]
    many = ask(loaded, videos, photos, prompts)
    one = ask(loaded, videos[1:2], photos[:1], prompts[1:2])
    for name in many:
        assert many[name]["raw"][1] == pytest.approx(one[name]["raw"][0], abs=1e-5), name


def test_a_speed_has_one_flow_score_whatever_size_and_frame_rate():
    scores = [
        rewards.motion(clips.Clip(moving(side, fps), [], "", fps)).score
        for side, fps in ((64, 8), (128, 8), (128, 16))
    ]
    assert 0.2 < scores[0] < 0.9
    np.testing.assert_allclose(scores, scores[0], rtol=0.15)


def test_it_is_served(capsys, monkeypatch, tmp_path):
    http = TestClient(serve.app(serve.load("paper", options=FLOW)))
    assert [r["name"] for r in http.get("/info").json()["rewards"]] == ["flow"]
    video = np.stack([picture(40, 60, t) for t in range(3)])
    body = wire.encode(video[None], [[video[0]]], ["a person"])
    assert http.post("/score", content=body).json()["scores"]["flow"]["reason"] == [None]
    words = ["serve", "--preset=paper", "--rewards=gme", f"--weights={tmp_path}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="preset paper: GME-Qwen2-VL is missing"):
        serve.main()
