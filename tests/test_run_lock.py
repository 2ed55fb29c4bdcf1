"""One run, one folder: the second is told who the first is, and a dead one is in nobody's way."""

import json
import os
import signal
import subprocess
import sys

import programs
import pytest

from evoid_jax import run_lock

HOLD = """
import sys, time
from pathlib import Path
from evoid_jax import run_lock
with run_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=programs.environment(),
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_the_first_is(other, tmp_path):
    with (
        pytest.raises(BlockingIOError, match=rf"in use by another run \(process {other.pid} on "),
        run_lock.held(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / run_lock.OWNER).read_text())["process"] == other.pid


def test_a_killed_run_is_in_nobodys_way(other, tmp_path):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / run_lock.OWNER).is_file()  # it had no time to take it away
    with run_lock.held(tmp_path):
        assert json.loads((tmp_path / run_lock.OWNER).read_text())["process"] == os.getpid()
    assert not (tmp_path / run_lock.OWNER).exists()


def test_two_folders_are_two_runs(other, tmp_path):
    (tmp_path / "b").mkdir()
    with run_lock.held(tmp_path / "b"):
        run_lock.check(tmp_path / "b")


def test_a_folder_that_is_gone_is_noticed(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with run_lock.held(workdir):
        run_lock.check(workdir)
        workdir.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match="run was deleted or moved"):
            run_lock.check(workdir)
