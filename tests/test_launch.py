"""The scripts of launch/ that start sidecars, with a python that only notes what it was told."""

import os
import signal
import subprocess
import time

import pytest
from programs import ROOT

TOKEN = "0123456789abcdef"

NOTED = """#!/usr/bin/env bash
echo "$CUDA_VISIBLE_DEVICES $*" >> "$NOTES"
case "$*" in *8300) exit 1 ;; esac
exec sleep 60
"""


def bare() -> dict[str, str]:
    """Return the environment without what says who may reach a sidecar."""
    ours = ("EVOID_JAX_SIDECAR_TOKEN", "TRUSTED_NETWORK", "SIDECAR_HOST")
    return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.mark.parametrize(
    ("variables", "flag"),
    [
        ({}, None),
        ({"EVOID_JAX_SIDECAR_TOKEN": TOKEN}, "--token-env EVOID_JAX_SIDECAR_TOKEN"),
        ({"TRUSTED_NETWORK": "1"}, "--trusted-network"),
    ],
)
def test_for_other_machines_a_token_is_wanted(tmp_path, variables, flag):
    notes, stub = tmp_path / "notes", tmp_path / "python"
    notes.touch()
    stub.write_text('#!/usr/bin/env bash\necho "$*" >> "$NOTES"\n')
    stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    variables = variables | {"PATH": path, "NOTES": str(notes), "SIDECAR_HOST": "0.0.0.0"}
    done = subprocess.run(
        [ROOT / "launch" / "sidecar.sh", "tiny", "8300"],
        env=bare() | variables,
        capture_output=True,
        text=True,
    )
    if flag is None:
        assert done.returncode == 2 and "EVOID_JAX_SIDECAR_TOKEN" in done.stderr
        assert not notes.read_text()
    else:
        assert flag in notes.read_text() and "--host 0.0.0.0" in notes.read_text()
    assert TOKEN not in done.stdout + done.stderr + notes.read_text()


def test_replicas_are_started_on_loopback_and_started_again(tmp_path):
    notes, stub = tmp_path / "notes", tmp_path / "python"
    notes.touch()
    stub.write_text(NOTED)
    stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [ROOT / "launch" / "sidecar.sh", "tiny", "8300", "2"],
        env=bare() | {"PATH": path, "NOTES": str(notes)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.stdout.readline().strip()
        first = "0 -m evoid_jax.sidecars.serve --preset tiny --host 127.0.0.1 --port 8300"
        second = "1 -m evoid_jax.sidecars.serve --preset tiny --host 127.0.0.1 --port 8301"
        end = time.monotonic() + 60
        while notes.read_text().splitlines().count(first) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        lines = notes.read_text().splitlines()
        assert lines.count(first) >= 2 and lines.count(second) == 1
        assert said == "--config.reward.sidecars=http://127.0.0.1:8300,http://127.0.0.1:8301"
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert process.stdout.read() == ""  # what it started has ended, and let go of the pipe
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
