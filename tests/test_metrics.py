"""Facts about the record of a run: what is written is what is read, once per step."""

import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from evoid_jax import metrics, mirrors

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
    record = {"step": 6, **RECORD}
    heads = metrics.header(record, steps=20).split()
    assert heads == ["step", "score", "arcf", "gme", "flow", "loss", "drift", "valid", "sec"]
    cells = metrics.line(record, steps=20).split()
    assert cells == ["7/20", ".500", ".400", ".800", "--", "0.25", "0.002", "88%", "12.0"]
    assert metrics.line({"step": 0}).split() == ["1"]


def test_columns_follow_the_keys_of_the_record():
    record = {"step": 0, "loss": {"kl": 0.5}, "drift": {"ratio": 2.0}, "grad_norm": 3.0}
    assert metrics.line(record).split() == ["1", "0.5", "2", "3"]
    legend = metrics.legend(record)
    assert "loss: loss/kl" in legend and "drift: drift/ratio" in legend


@pytest.mark.parametrize("value", [0.1234, 1.0, 0.0, -0.1234, 12.345, None])
@pytest.mark.parametrize("steps", [None, 70, 100_000])
@pytest.mark.parametrize("rewards", [1, 8, 30])
def test_lines_fit_the_terminal_and_stand_under_their_heads(rewards, steps, value):
    """With eight rewards all of them are shown; of thirty, as many as fit, and the rest counted."""
    names = [f"reward_{m}" for m in range(rewards)]
    record = {
        "step": 99_999 if steps == 100_000 else 6,
        "loss": {"total": -1.234e-05},
        "reward": {"score": dict.fromkeys(names, value)},
        "weights": dict.fromkeys(names, 1 / rewards),
        "drift": {"evo_stb": 1.234e-05},
        "grad_norm": 1.234e-05,
        "valid_fraction": 1.0,
        "seconds": {"total": 12345.6},
    }
    shown = metrics.legend(record, steps).split("\n")
    shown += [metrics.header(record, steps), metrics.line(record, steps)]
    assert max(map(len, shown)) <= 100
    assert len(shown[-1]) == len(shown[-2])
    heads = shown[-2].split()
    assert len(heads) == len(set(heads)) == len(shown[-1].split())
    left = rewards - (len(heads) - 7)
    assert (left == 0) == (rewards <= 8)
    assert (f"{left} more rewards" in " ".join(shown)) == (left > 0)


def test_legend_says_what_each_short_head_is():
    legend = metrics.legend({"step": 0, **RECORD}).replace("\n  ", " ")
    for words in ("arcf: arcface", "loss: loss/total", "drift: drift/evo_stb", "sec: seconds"):
        assert words in legend


def test_where_stable_is_what_evolving_was_the_line_shows_how_far_both_have_come():
    record = {"step": 0, **RECORD, "drift": {"evo_stb": 0.0, "evo_init": 0.25}}
    assert "drift: drift/evo_stb" in metrics.legend(record)
    assert "drift: drift/evo_init" in metrics.legend(record | {"ratio": {"off": 0.0}})


def test_legend_is_printed_once_and_heads_now_and_then(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with metrics.Writer(tmp_path, steps=60) as writer:
        for step in range(60):
            writer.write(step, RECORD)
    lines = screen.getvalue().splitlines()
    assert sum("Columns." in line for line in lines) == 1
    assert sum(line.split()[:2] == ["step", "score"] for line in lines) == 3
    assert sum("/60" in line for line in lines) == 60


def test_a_name_may_hold_a_slash():
    assert metrics.get({"score": {"clip/vit": 0.5}}, "score", "clip/vit") == 0.5


def test_terminal_line_does_not_tear_the_progress_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with metrics.Writer(tmp_path, steps=2) as writer:
        for step in tqdm(range(2), file=screen, mininterval=0):
            writer.write(step, {})
    lines = [part for part in screen.getvalue().replace("\r", "\n").split("\n") if part.strip()]
    assert [line.strip() for line in lines if line.endswith("/2")] == ["1/2", "2/2"]


def test_flatten_names_every_number():
    record = {"step": 3, "loss": {"total": 0.5, "self": None}, "grad_norm": 2}
    assert dict(metrics.flatten(record)) == {"loss/total": 0.5, "grad_norm": 2}


def test_tensorboard_mirror_writes_events(tmp_path):
    write(tmp_path, range(2), tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/total" in events.read_bytes()


def test_wandb_mirror_gets_scalars_offline(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(
        log=lambda scalars, step: calls.append((step, scalars)), finish=lambda: calls.append("end")
    )
    fake.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path, [4], wandb="faces", config={"lr": 1e-4, "judge": "http://me:pw@host"})
    options, *rest = calls
    assert (options["project"], options["mode"]) == ("faces", "offline")
    assert options["config"] == {"lr": 1e-4, "judge": "http://host"}
    assert rest == [(4, {"loss/total": 0.4}), "end"]


def test_wandb_that_does_not_start_says_why(tmp_path, monkeypatch):
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: (_ for _ in ()).throw(RuntimeError("no API key"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ValueError, match=r"no API key.*WANDB_MODE=offline"):
        metrics.Writer(tmp_path, wandb="faces")


@pytest.mark.parametrize(
    ("options", "module"),
    [({"tensorboard": True, "wandb": ""}, "tensorboardX"), ({"wandb": "faces"}, "wandb")],
)
def test_missing_mirror_says_how_to_install_it(tmp_path, monkeypatch, options, module):
    write(tmp_path, range(3))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {module}"):
        metrics.Writer(tmp_path, **options)
    assert steps_of(tmp_path) == [0, 1, 2]  # nothing was dropped by the failed start
    with pytest.raises(ValueError, match=f"pip install {module}"):
        mirrors.check(**{"tensorboard": False} | options)
    mirrors.check(tensorboard=False, wandb="")  # what is off needs nothing


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*/a\.txt: "):
        metrics.write_text(tmp_path / "a.txt", "x")
    with pytest.raises(OSError, match=r"cannot write .*/nowhere/b: No such file"):
        metrics.write_text(tmp_path / "nowhere/b", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_write_text_replaces_in_one_piece(tmp_path):
    file = tmp_path / "a.txt"
    metrics.write_text(file, "old")
    assert metrics.write_text(file, "new") == file
    assert file.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        metrics.write_text(file, "half\ud800")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("line", ['{"step": "1"}', '{"step": 1.5}', '{"step": -1}', "[" * 100_000])
def test_a_line_without_a_sound_step_is_named(tmp_path, line):
    (tmp_path / metrics.FILE).write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: expected a JSON object with a step"):
        metrics.read(tmp_path)


def test_a_comparison_of_the_watch_is_printed_and_mirrored(tmp_path, capsys):
    summary = {
        "base": {"total": 0.4, "arcface": 0.5},
        "evolved": {"total": 0.45, "arcface": 0.6},
        "delta_total": 0.05,
        "delta_total_ci95": [0.03, 0.07],
        "delta": {"arcface": {"mean": 0.1}},
        "monitor_delta": {"motion": {"mean": -0.01}, "unknown": {"mean": None}},
    }
    videos = [np.zeros((3, 8, 8, 3), np.uint8)]
    with metrics.Writer(tmp_path, tensorboard=True) as writer:
        writer.compare(20, summary, videos, warning="a reward is gamed")
    said = capsys.readouterr().out
    assert "watch after 20: total .400 -> .450 [+0.030, +0.070] motion -0.010 unknown --" in said
    assert "WATCH: a reward is gamed" in said
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    for name in (b"watch/delta_total", b"watch/delta/arcface", b"watch/monitor_delta/motion"):
        assert name in written
    assert b"watch/monitor_delta/unknown" not in written
    assert b"GIF89a" in written and b"watch/0" in written


def test_a_comparison_of_the_watch_goes_to_wandb_with_its_videos(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.Video = lambda data, format: (data.getvalue()[:3], format)
    fake.init = lambda **options: types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with metrics.Writer(tmp_path, wandb="faces", verbose=False) as writer:
        writer.write(19, {"loss": {"total": 0.4}})
        videos = [np.zeros((3, 8, 8, 3), np.uint8)]
        writer.compare(20, {"delta_total": 0.05, "evolved": {"total": 0.5}}, videos)
    (_, _), (step, values) = calls
    assert step == 19  # of the step just written: W&B drops what comes for one it has passed
    expected = {"watch/delta_total": 0.05, "watch/evolved/total": 0.5, "watch/0": (b"GIF", "gif")}
    assert values == expected
