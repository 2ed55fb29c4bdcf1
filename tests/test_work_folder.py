"""A run's folder: what would stop the run at its end is told before its start."""

import dataclasses
import os
import shutil

import pytest
from small_run import settings as small

from evoid_jax import config, fields, files, provenance, settings, work_folder


@pytest.fixture
def cfg(tmp_path):
    return small(str(tmp_path / "cache"), 1)


@pytest.mark.parametrize("name", ["export", "samples", "logs", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_named(cfg, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(NotADirectoryError, match=f"{name} is a file, not a folder"):
        work_folder.check_start(cfg, tmp_path)


@pytest.mark.parametrize("name", ["report.html", "summary.json", "metrics.jsonl", "config.json"])
def test_a_folder_in_the_place_of_a_file_is_named(cfg, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"{name} is a folder"):
        work_folder.check_start(cfg, tmp_path)


def test_a_workdir_that_is_a_file_or_in_one_is_called_so(cfg, tmp_path):
    (tmp_path / "photo.png").touch()
    for workdir in (tmp_path / "photo.png", tmp_path / "photo.png" / "run"):
        with pytest.raises(NotADirectoryError, match="photo.png is a file, not a folder"):
            work_folder.check_start(cfg, workdir)


def test_nothing_but_the_folder_is_left_by_the_trial(cfg, tmp_path):
    work_folder.check_start(cfg, tmp_path / "new" / "run")
    assert os.listdir(tmp_path / "new" / "run") == []


def test_broken_records_are_told_before_the_model_is_loaded(cfg, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('x\n{"step": 0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1"):
        work_folder.check_start(cfg, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        work_folder.check_start(cfg, tmp_path)


def test_checkpoints_of_unknown_settings_are_not_gone_on_from(cfg, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds checkpoints and no config\.json"):
        work_folder.check_start(cfg, tmp_path)
    files.check_writable(tmp_path / settings.FILE).write_text(config.dumps(cfg))
    work_folder.check_start(cfg, tmp_path)


def test_a_run_does_not_go_on_from_another_model_at_its_own_models_place(cfg, tmp_path):
    model, workdir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(fields.locate(config.TINY), model)
    cfg = dataclasses.replace(cfg, model=str(model))
    workdir.mkdir()
    (workdir / settings.FILE).write_text(config.dumps(cfg))
    provenance.write(workdir, provenance.collect(["x"], [], weights=work_folder.weights(cfg)))
    work_folder.check_workdir(cfg, workdir)
    (model / "lora.safetensors").write_bytes(b"mine")  # beside the model, and none of it
    (model / "runs").mkdir()
    (model / "runs" / "config.json").write_text("{}")
    work_folder.check_workdir(cfg, workdir)
    (weights,) = (model / "transformer").glob("*.safetensors")
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    with pytest.raises(ValueError, match=r"^config.model: the files in .*; bring them back"):
        work_folder.check_workdir(cfg, workdir)
    held[-1] ^= 1
    weights.write_bytes(held)
    work_folder.check_workdir(cfg, workdir)


def test_a_stop_says_what_is_saved(tmp_path):
    assert "before anything was saved" in work_folder.interrupted(tmp_path, 10)
    for step in (5, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir(exist_ok=True)
        said = work_folder.interrupted(tmp_path, 10)
        assert f"{step}" in said and ("in the proof" in said) == (step == 10)
