"""Facts about the record of a run: what is written is what is read, once per step."""

import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from evoid_jax import metrics

RECORD = {
    "loss": {"total": 0.25},
    "reward": {"unified": 0.5, "score": {"arcface": 0.4, "gme": 0.8, "flow": None}},
    "weights": {"arcface": 0.75, "gme": 0.25, "flow": 0.5},
    "drift": {"evo_stb": 0.002},
    "valid_fraction": 0.875,
    "seconds": {"total": 12.0},
}


def write(folder, steps, start=0, **options):
    with metrics.Writer(folder, start=start, verbose=False, **options) as writer:
        for step in steps:
            writer.write(step, {"loss": {"total": step / 10}})


def steps_of(folder):
    return [record["step"] for record in metrics.read(folder)]


def test_what_is_written_is_read(tmp_path):
    with metrics.Writer(tmp_path, verbose=False) as writer:
        writer.write(0, RECORD)
    assert metrics.read(tmp_path) == [{"step": 0, **RECORD}]


def test_no_file_is_no_steps(tmp_path):
    assert metrics.read(tmp_path) == []


def test_resumed_run_has_each_step_once(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, range(3, 7), start=3)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert len((tmp_path / metrics.FILE).read_text().splitlines()) == 7


def test_fresh_start_drops_the_old_run(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, [0])
    assert steps_of(tmp_path) == [0]


def test_torn_last_line_is_skipped_and_repaired(tmp_path):
    write(tmp_path, range(3))
    file = tmp_path / metrics.FILE
    file.write_bytes(file.read_bytes()[:-9])
    assert steps_of(tmp_path) == [0, 1]
    write(tmp_path, [2], start=2)
    assert steps_of(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("bad", ["{broken", "[1]", '{"loss": 1}'])
def test_broken_line_inside_is_named(tmp_path, bad):
    (tmp_path / metrics.FILE).write_text(f'{{"step": 0}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .*remove this line"):
        metrics.read(tmp_path)


def test_nan_and_infinity_become_null(tmp_path):
    values = {"a": float("nan"), "b": np.float32("inf"), "c": jnp.float32("nan"), "d": [np.nan, 1]}
    with metrics.Writer(tmp_path, verbose=False) as writer:
        writer.write(0, values)
    text = (tmp_path / metrics.FILE).read_text()
    assert json.loads(text) == {"step": 0, "a": None, "b": None, "c": None, "d": [None, 1]}


def test_plain_turns_arrays_into_python_numbers():
    value = {"x": jnp.bfloat16(0.5), "y": np.arange(3), "z": (np.int64(2), True, None, "s")}
    assert metrics.plain(value) == {"x": 0.5, "y": [0, 1, 2], "z": [2, True, None, "s"]}


def test_line_has_the_numbers_that_exist():
    # weighted score: (0.75 * 0.4 + 0.25 * 0.8) / 1 = 0.5; flow has no score
    line = metrics.line({"step": 6, **RECORD}, steps=20)
    assert line == (
        "step  7/20  score 0.500 (arcf .40 gme .80 flow --)  loss 0.25  drift 0.002  "
        "valid 88%  12.0 s"
    )
    assert metrics.line({"step": 0}) == "step 1"


def test_terminal_line_does_not_tear_the_progress_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with metrics.Writer(tmp_path, steps=2) as writer:
        for step in tqdm(range(2), file=screen, mininterval=0):
            writer.write(step, {})
    lines = [part for part in screen.getvalue().replace("\r", "\n").split("\n") if part.strip()]
    assert [line for line in lines if line.startswith("step")] == ["step 1/2", "step 2/2"]


def test_flatten_names_every_number():
    record = {"step": 3, "loss": {"total": 0.5, "self": None}, "grad_norm": 2}
    assert dict(metrics.flatten(record)) == {"loss/total": 0.5, "grad_norm": 2}


def test_tensorboard_mirror_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    write(tmp_path, range(2), tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/total" in events.read_bytes()


def test_wandb_mirror_gets_scalars_offline(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(
        log=lambda scalars, step: calls.append((step, scalars)), finish=lambda: calls.append("end")
    )
    fake.init = lambda **options: calls.append((options["mode"], options["config"])) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path, [4], wandb=True, config={"lr": 1e-4})
    assert calls == [("offline", {"lr": 1e-4}), (4, {"loss/total": 0.4}), "end"]


@pytest.mark.parametrize(
    ("writer", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_missing_mirror_says_how_to_install_it(tmp_path, monkeypatch, writer, module):
    write(tmp_path, range(3))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {module}"):
        metrics.Writer(tmp_path, **{writer: True})
    assert steps_of(tmp_path) == [0, 1, 2]  # nothing was dropped by the failed start


def test_write_text_replaces_in_one_piece(tmp_path):
    file = tmp_path / "a.txt"
    metrics.write_text(file, "old")
    assert metrics.write_text(file, "new") == file
    assert file.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        metrics.write_text(file, "half\ud800")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
