"""The check of preset `paper`: what is there, and what scores as trained weights would."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from paper_folder import moving, put, weights
from paper_models import picture

from evoid_jax import media
from evoid_jax.sidecars import check, preset
from evoid_jax.sidecars.paper import clips, options, rewards, trial
from evoid_jax.sidecars.paper.options import Options


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("weights"))


def test_the_check_tells_weight_by_weight(folder, tmp_path, capsys):
    wanted = ["--preset=paper", "--rewards=gme,aesthetic", "--no-score"]
    assert check.main([*wanted, f"--weights={folder}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("found" in line for line in lines) == 3 and not any("missing" in x for x in lines)
    assert sum("sha256" in line for line in lines) == 6  # of GME 3, of CLIP 2 files, the head
    assert any("Apache-2.0" in line for line in lines)
    put(tmp_path, "aesthetic-model.pth")
    assert check.main([*wanted, f"--weights={tmp_path}", "--no-digest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("missing" in line for line in lines) == 2 and not any("sha256" in x for x in lines)
    assert any("hf download" in line and str(tmp_path) in line for line in lines)


def test_the_check_tells_whether_scores_are_as_expected(monkeypatch, tmp_path):
    def loads(value, spoilt):
        column = preset.Column(np.array([value, spoilt]), np.zeros(2), [None] * 2)
        one = SimpleNamespace(score=lambda pair: column)
        monkeypatch.setattr(rewards, "load", lambda options: SimpleNamespace(rewards=[one]))

    clip = clips.Clip(np.stack([picture(48, 48)] * 3), [picture(8, 8)], "A person.", 8)
    for value, spoilt, good in ((5.0, 4.0, True), (5.0, 4.9, False), (1.0, 0.0, False)):
        loads(value, spoilt)
        fine, words = check.verdict("aesthetic", Options(), clip)
        assert (
            fine == good and ("NOT AS EXPECTED" in words) == (not good) and f"{value:.3f}" in words
        )
    monkeypatch.undo()
    wanted = Options(weights=tmp_path)
    fine, words = check.verdict("gme", wanted, clip)
    assert not fine and "GME-Qwen2-VL is missing" in words
    assert check.verdict("flow", wanted, trial.changed(clip, moving(48, 8)))[0]


def test_random_weights_are_told_from_trained_ones(folder, capsys, tmp_path):
    """They load strictly and give numbers, which is all that a loader can tell."""
    (tmp_path / "clip.mp4").write_bytes(media.encode(moving(64, 8, 9), 8))
    (tmp_path / "photo.png").write_bytes(cv2.imencode(".png", picture(40, 60))[1].tobytes())
    own = [f"--video={tmp_path}/clip.mp4", f"--photo={tmp_path}/photo.png", "--prompt=A person."]
    assert check.main(["--rewards=aesthetic,flow", f"--weights={folder}", *own]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("aesthetic" in line and "NOT AS EXPECTED" in line for line in lines)
    assert any(line.split()[0] == "flow" and "as expected" in line for line in lines)


@pytest.mark.parametrize("name", [n for n in options.REWARDS if "face" not in n])
def test_a_spoilt_clip_is_spoilt_in_what_its_reward_measures(name):
    clip = clips.Clip(moving(64, 8, 6), [picture(8, 8)], "A person.", 8)
    spoilt = trial.TRIALS[name].spoil(clip)
    assert spoilt.video_THWC.shape == clip.video_THWC.shape
    assert (spoilt.prompt != clip.prompt) == (name == "gme")
    assert (spoilt.video_THWC != clip.video_THWC).any() == (name != "gme")
    if name == "flow":
        assert not np.diff(spoilt.video_THWC.astype(int), axis=0).any()
    if name == "qalign":
        same = [(a == b).all() for a, b in zip(spoilt.video_THWC, clip.video_THWC, strict=True)]
        assert same == [True, False, True, True, False, True]


def test_the_sample_clip_is_a_slow_zoom():
    pytest.importorskip("skimage", reason="scikit-image comes with insightface")
    clip = trial.made_up()
    assert clip.video_THWC.shape == (17, 480, 480, 3) and clip.photos[0].shape == (512, 512, 3)
    steps = np.abs(np.diff(clip.video_THWC.astype(int), axis=0)).mean((1, 2, 3))
    assert (steps > 0.5).all() and (steps < 12).all()
