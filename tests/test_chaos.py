"""The short version of bench/chaos.py: trainer, sidecar and judge are each killed once."""

import subprocess
import sys

import pytest
from programs import ROOT, environment


@pytest.mark.timeout(1800)
def test_a_run_whose_processes_are_killed_ends_with_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "bench/chaos.py", "--kills=3", "--steps=2", f"--out={tmp_path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *_, last = done.stdout.splitlines()
    assert last.startswith("3 kills ({'trainer': 1, 'sidecar': 1, 'judge': 1})"), done.stdout
    assert last.endswith("every run ended with the same bits")
