"""A run that is stopped by a signal, and killed, goes on and ends as one that ran straight."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import programs
from small_run import lines, settings, state_of

from evoid_jax import checkpoint, export, interruption


def program(workdir, cache):
    """Start the same run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, programs.TESTS / "stopped_run.py", str(workdir), str(cache)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=programs.environment(),
    )


def wait_for(process, there) -> None:
    """Wait until the run has come so far."""
    while not there():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.02)


def test_a_run_that_is_stopped_and_killed_ends_as_one_that_was_not(tmp_path_factory):
    """SIGTERM after the first step, SIGKILL in the middle of the proof."""
    cache, straight, tmp_path = (
        tmp_path_factory.mktemp(name) for name in ("cache", "straight", "stopped")
    )
    process = program(straight, cache)
    assert process.wait(600) == 0, process.stderr.read()[-3000:]

    file, part = tmp_path / "metrics.jsonl", tmp_path / "proof" / "base_0000.npz"
    process = program(tmp_path, cache)
    wait_for(process, lambda: file.is_file() and file.read_text().count("\n"))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == interruption.CODE, errors[-3000:]
    done = len(lines(tmp_path))
    assert f"stopped; {done} of 4 steps are saved" in errors and done < 4
    assert checkpoint.steps_in(tmp_path / checkpoint.FOLDER) == [done]

    process = program(tmp_path, cache)
    wait_for(process, part.is_file)
    process.kill()
    process.communicate()
    first = part.stat().st_mtime_ns
    process = program(tmp_path, cache)
    assert process.wait(300) == 0, process.stderr.read()[-3000:]
    assert part.stat().st_mtime_ns == first  # neither generated nor scored again
    same_end(straight, tmp_path, settings(str(cache), 4))


def same_end(a, b, cfg):
    """Check that two runs have left the same: state, record, proof, adapter, videos."""
    (state_a, host_a), (state_b, host_b) = state_of(a, cfg), state_of(b, cfg)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    assert (host_a, lines(a)) == (host_b, lines(b))
    for name in ("scores.json", "samples/heldout_00_evolved.mp4", export.FILE):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]
