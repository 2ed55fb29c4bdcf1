"""Two processes are one run: they agree with one process, and neither survives the other."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from compare import relative
from programs import ROOT, environment
from safetensors.numpy import load_file
from small_run import SMALL, lines, settings

from evoid_jax import distributed, interruption, sharding, train
from evoid_jax.distributed import Settings

SLURM = dict.fromkeys(distributed.SLURM, "0") | {"SLURM_NTASKS": "4"}
COORDINATOR, PROCESSES, PROCESS = distributed.ENVIRONMENT


@pytest.mark.parametrize(
    ("environ", "arguments", "want"),
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
def test_who_belongs_together(environ, arguments, want):
    assert distributed.settings(environ, *arguments) == want


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("h:1", None, None), r"need --processes \(or \$JAX_NUM_PROCESSES\)"),
        ((None, 2, 0), "need --coordinator"),
        (("h", 2, 0), "must be HOST:PORT"),
        (("h:1", 2, 2), "must be from 0 to 1"),
        (("h:1", "two", 0), "must be a whole number, got 'two'"),
    ],
)
def test_half_of_the_settings_is_an_error(arguments, match):
    with pytest.raises(ValueError, match=match):
        distributed.settings({}, *arguments)


def test_one_process_is_left_alone():
    with distributed.together(None):
        assert distributed.leads() and distributed.exchange({"a": 1}) == [{"a": 1}]
        assert distributed.own_folder(ROOT) == ROOT
        assert distributed.whole((np.ones(2),))[0].shape == (2,)
        with distributed.leader_first():
            pass
    with pytest.raises(ValueError, match="as ever"), distributed.together(None):
        raise ValueError("as ever")


def test_whoever_is_done_waits_for_process_0_as_long_as_it_lives(monkeypatch):
    """It may write videos and a report for longer than the five minutes that JAX would wait."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.update(options))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    distributed.start(Settings("h:1", 2, 0), silent=7)
    assert asked["shutdown_timeout_seconds"] >= 24 * 3600
    assert asked["heartbeat_timeout_seconds"] == 7  # what ends the wait when process 0 dies


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys, leads):
    monkeypatch.setattr(distributed, "leads", lambda: leads)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    panel = SimpleNamespace(infos=[{"rewards": [], "monitors": []}])
    some = dict.fromkeys(("data", "validation", "heldout"), SimpleNamespace(rows=[]))
    cfg = settings("unused", 4)
    run = SimpleNamespace(cfg=cfg, workdir=tmp_path, mesh=mesh, panel=panel, **some)
    with train.open_log(run, 0) as writer:
        assert (writer is not None) == leads
    distributed.say("hello")
    names = ["config.json", "metrics.jsonl", "run.json"] if leads else []
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert capsys.readouterr().out == ("hello\n" if leads else "")


# --- two processes


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    text: str
    at: float  # seconds


def start(command, process: int, port: int, log, devices: int) -> subprocess.Popen:
    known = {"JAX_NUM_CPU_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "1"}
    known |= {COORDINATOR: f"127.0.0.1:{port}", PROCESSES: "2", PROCESS: str(process)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(**known),
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command, folder: Path, which=(0, 1), devices=2, timeout=600) -> list[Ended]:
    """Run a command as these processes of two, each with so many devices; say how they ended."""
    port, logs = free_port(), [folder / f"process_{i}.log" for i in which]
    all_ = [
        start(command, i, port, open(log, "w"), devices)  # noqa: SIM115
        for i, log in zip(which, logs, strict=True)
    ]
    limit, at = time.monotonic() + timeout, {}
    try:
        while len(at) < len(all_) and time.monotonic() < limit:
            at |= {p: time.monotonic() for p in all_ if p not in at and p.poll() is not None}
            time.sleep(0.05)
    finally:
        for p in all_:
            p.kill()
    texts = [log.read_text() for log in logs]
    assert len(at) == len(all_), f"still running after {timeout} s: {texts}"
    return [Ended(p.returncode, text, at[p]) for p, text in zip(all_, texts, strict=True)]


def test_two_processes_share_scores_arrays_and_checkpoints(tmp_path):
    both = run(["tests/two_processes.py", tmp_path / "checkpoints"], tmp_path)
    assert [ended.status for ended in both] == [0, 0], both
    assert "two processes agree" in both[0].text and "two processes agree" not in both[1].text


@pytest.mark.parametrize(
    ("how", "who", "where"),
    [("raise", 1, "collective"), ("vanish", 1, "asleep"), ("raise", 0, "asleep")],
)
def test_no_process_survives_another(tmp_path, how, who, where):
    """Asleep it would stay for 900 s, and an exit that waits for the others takes 300 s."""
    both = run(["tests/failing_process.py", how, who, where], tmp_path)
    victim, survivor = both[who], both[1 - who]
    assert victim.status != 0 and survivor.status != 0, both
    assert survivor.at - victim.at < 120
    assert "went on alone" not in victim.text + survivor.text
    told = "another process ended first", "another task died"  # ours, JAX's
    assert any(text in survivor.text for text in told), survivor.text
    if how == "raise":
        assert f"error: process {who} of 2: the sidecar burns" in victim.text
        assert "Traceback" not in victim.text


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_process_ends_both_at_the_same_point(tmp_path, who):
    both = run(["tests/failing_process.py", "stop", who, "working"], tmp_path)
    assert [ended.status for ended in both] == [interruption.CODE] * 2, both
    assert "SIGTERM: saving" in both[who].text and "SIGTERM: saving" not in both[1 - who].text
    assert all(f"process {i} of 2: stopped" in both[i].text for i in (0, 1))


def test_a_process_whose_partner_never_comes_ends(tmp_path):
    (alone,) = run(["tests/failing_process.py", "alone"], tmp_path, which=(1,))
    assert alone.status != 0 and "waiting up to 5 s for all processes at 127" in alone.text


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
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("devices", "ends"), [(1, (2, 3)), (2, (1,))])
def test_two_processes_train_as_one_does(tmp_path, devices, ends):
    """Two processes, stopped at `ends` and resumed, against one with as many devices in one go.

    Sums over two devices are equal to the last bit, and so is all that follows for three steps. A
    sum over four is not, and some pixel rounds the other way: rewards then differ by 1e-4. More
    with each step, so there the first update is compared, and less closely.
    """
    tolerance = 1e-6 if devices == 1 else 1e-3
    two, one, cache = (tmp_path / name for name in ("two", "one", "cache"))
    for steps in ends:
        both = run(command(two, cache, steps), tmp_path, devices=devices, timeout=1800)
        assert [ended.status for ended in both] == [0, 0], both
    for ended, resumed in zip(both, (len(ends) > 1, False), strict=True):
        assert ("resuming after step" in ended.text) == resumed
    alone = environment(JAX_NUM_CPU_DEVICES=str(2 * devices))
    straight = [sys.executable, *command(one, cache, ends[-1])]
    subprocess.run(straight, cwd=ROOT, env=alone, check=True, timeout=1800)
    assert [row["step"] for row in lines(two)] == list(range(ends[-1]))
    for step, (a, b) in enumerate(zip(lines(two), lines(one), strict=True)):
        for (name, x), (_, y) in zip(flat(a), flat(b), strict=True):
            near = {"rtol": tolerance, "atol": 1e-9, "err_msg": f"{name} of step {step}"}
            np.testing.assert_allclose(x, y, **near)
    file = "export/pytorch_lora_weights.safetensors"
    a, b = (load_file(folder / file) for folder in (two, one))
    whole_a, whole_b = (np.concatenate([x[key].ravel() for key in sorted(b)]) for x in (a, b))
    assert relative(whole_a, whole_b) < tolerance
    assert max(relative(a[key], b[key]) for key in b) < 10 * tolerance
    of_two, of_one = (json.loads((folder / "summary.json").read_text()) for folder in (two, one))
    totals = [summary["evolved"]["total"] for summary in (of_two, of_one)]
    np.testing.assert_allclose(*totals, rtol=max(1e-4, tolerance))
    monitors = [list(summary["monitor"]["evolved"].values()) for summary in (of_two, of_one)]
    np.testing.assert_allclose(monitors[0], monitors[1], rtol=1e-3)
    for name in ("samples/heldout_01_evolved.mp4", "report.html"):
        assert (two / name).stat().st_size > 500
