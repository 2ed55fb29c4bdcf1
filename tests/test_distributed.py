"""Two processes are one run: they agree with one process, and neither survives the other."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import SMALL, lines, settings

from evoid_jax import distributed, train
from evoid_jax.distributed import Settings

ROOT = Path(__file__).parents[1]
SLURM = dict.fromkeys(distributed.SLURM, "0") | {"SLURM_NTASKS": "4"}
COORDINATOR, PROCESSES, PROCESS = distributed.ENVIRONMENT


@pytest.mark.parametrize(
    ("environ", "given", "want"),
    [
        ({}, (), None),
        ({}, ("h:1", 2, 0), Settings("h:1", 2, 0)),
        ({COORDINATOR: "h:1", PROCESSES: "2", PROCESS: "1"}, (), Settings("h:1", 2, 1)),
        ({COORDINATOR: "h:1", PROCESSES: "2", PROCESS: "1"}, ("g:2", None, 0), ("g:2", 2, 0)),
        ({COORDINATOR: "auto"}, (), Settings()),
        (SLURM, (), Settings()),
        (SLURM | {"SLURM_NTASKS": "1"}, (), None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, (), None),  # salloc's shell: no step
        (SLURM, ("h:1", 2, 0), Settings("h:1", 2, 0)),
    ],
)
def test_who_belongs_together(environ, given, want):
    assert distributed.settings(environ, *given) == want


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("h:1", None, None), r"need --processes \(or \$JAX_NUM_PROCESSES\)"),
        ((None, 2, 0), "need --coordinator"),
        (("h", 2, 0), "must be HOST:PORT"),
        (("h:1", 2, 2), "must be from 0 to 1"),
        (("h:1", "two", 0), "must be a whole number, got 'two'"),
    ],
)
def test_half_of_the_settings_is_an_error(given, match):
    with pytest.raises(ValueError, match=match):
        distributed.settings({}, *given)


def test_one_process_is_left_alone():
    with distributed.together(None):
        assert distributed.leads() and distributed.exchange({"a": 1}) == [{"a": 1}]
        assert distributed.own_folder(ROOT) == ROOT
        assert distributed.whole((np.ones(2),))[0].shape == (2,)
        with distributed.leader_first():
            pass
    with pytest.raises(ValueError, match="as ever"), distributed.together(None):
        raise ValueError("as ever")


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys, leads):
    monkeypatch.setattr(distributed, "leads", lambda: leads)
    run = SimpleNamespace(cfg=settings("unused", 4), workdir=tmp_path)
    with train.open_log(run, 0) as writer:
        assert (writer is not None) == leads
    distributed.say("hello")
    names = ["config.json", "metrics.jsonl"] if leads else []
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert capsys.readouterr().out == ("hello\n" if leads else "")


# --- two processes


def start(command, process: int, port: int) -> subprocess.Popen:
    known = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "TF_CPP_MIN_LOG_LEVEL": "1"}
    values = f"127.0.0.1:{port}", "2", str(process)
    known |= dict(zip(distributed.ENVIRONMENT, values, strict=True))
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | known | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def both(command, timeout=600) -> list[tuple[int, str]]:
    """Run a command as two processes; (status, output) of each."""
    port = free_port()
    pair = [start(command, i, port) for i in range(2)]
    try:
        end = time.monotonic() + timeout
        outputs = [p.communicate(timeout=end - time.monotonic())[0] for p in pair]
        return [(p.returncode, text) for p, text in zip(pair, outputs, strict=True)]
    finally:
        for p in pair:
            p.kill()


def test_two_processes_share_scores_arrays_and_checkpoints(tmp_path):
    found = both(["tests/two_processes.py", "agree", tmp_path / "checkpoints"])
    assert [status for status, _ in found] == [0, 0], found
    assert "two processes agree" in found[0][1] and "two processes agree" not in found[1][1]


@pytest.mark.parametrize(
    ("how", "who", "where"),
    [("raise", 1, "collective"), ("vanish", 1, "asleep"), ("raise", 0, "asleep")],
)
def test_no_process_survives_another(how, who, where):
    """The wait below is shorter than the sleep, and than an exit that waits for the others."""
    found = both(["tests/two_processes.py", how, str(who), where], timeout=400)
    assert all(status != 0 for status, _ in found), found
    assert not any("went on alone" in text for _, text in found)
    survivor = found[1 - who][1]
    assert "another process ended first" in survivor or "another task died" in survivor, survivor
    if how == "raise":
        assert f"error: process {who} of 2: the sidecar burns" in found[who][1]
        assert "Traceback" not in found[who][1]


def test_a_process_whose_partner_never_comes_ends():
    alone = start(["tests/two_processes.py", "alone"], 1, free_port())
    text, _ = alone.communicate(timeout=400)
    assert alone.returncode != 0, text


def flat(record: dict, prefix=""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def command(workdir, cache, steps: int) -> list:
    changes = SMALL | {"steps": steps, "data": SMALL["data"] | {"cache": cache}}
    options = [f"--config.{key.replace('/', '.')}={value}" for key, value in flat(changes)]
    preset = "--config=configs/evoid.py:tiny"
    return ["-m", "evoid_jax.train", preset, f"--workdir={workdir}", *options]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Two processes, stopped and resumed, against one with as many devices that goes straight on.

    Their sums over devices differ in the last bit, which Adam's division by a gradient's own size
    makes larger, and a pixel that then rounds the other way moves a reward by 5e-6.
    """
    two, one, cache = (tmp_path / name for name in ("two", "one", "cache"))
    for steps in (2, 3):
        found = both(command(two, cache, steps), timeout=900)
        assert [status for status, _ in found] == [0, 0], found
    assert "resuming after step 2" in found[0][1] and "resuming" not in found[1][1]
    alone = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    straight = [sys.executable, *command(one, cache, 3)]
    subprocess.run(straight, cwd=ROOT, env=os.environ | alone, check=True, timeout=900)
    assert [row["step"] for row in lines(two)] == [0, 1, 2]
    for step, (a, b) in enumerate(zip(lines(two), lines(one), strict=True)):
        near = {"rtol": [1e-6, 1e-5, 5e-5][step], "atol": 1e-9}
        for (name, x), (_, y) in zip(flat(a), flat(b), strict=True):
            np.testing.assert_allclose(x, y, **near, err_msg=f"{name} of step {step}")
    file = "export/pytorch_lora_weights.safetensors"
    a, b = (load_file(folder / file) for folder in (two, one))
    apart = lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y)
    whole = [np.concatenate([x[key].ravel() for key in sorted(b)]) for x in (a, b)]
    assert apart(*whole) < 1e-5 and max(apart(a[key], b[key]) for key in b) < 1e-4
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (two, one)]
    np.testing.assert_allclose(*(s["evolved"]["total"] for s in summaries), rtol=1e-4)
    monitors = [list(s["monitor"]["evolved"].values()) for s in summaries]
    np.testing.assert_allclose(*monitors, rtol=1e-3)
    for name in ("samples/heldout_01_evolved.mp4", "report.html"):
        assert (two / name).stat().st_size > 500
