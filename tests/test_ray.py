"""launch/ray_serve.py: two replicas on Ray Serve pass what plain sidecars pass.

Ray has an environment of its own, made here from PyPI (400 MB), or named by the variable
EVOID_JAX_RAY_PYTHON: a Python with ray[serve] and requirements-sidecars.txt.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import programs
import pytest
import replica_checks as checks

pytestmark = pytest.mark.slow
RAY = "ray[serve]==2.60.0"


@pytest.fixture(scope="module")
def ray_python(tmp_path_factory) -> str:
    named = os.environ.get("EVOID_JAX_RAY_PYTHON")
    if named:
        return named
    folder = tmp_path_factory.mktemp("ray")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", RAY], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"{RAY} cannot be installed here: {done.stderr[-300:]}")
    # The sidecar's own packages are these tests' ones; Ray's stand before them.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "sidecars.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


@contextlib.contextmanager
def serving(python: str, folder: Path):
    """Start two replicas of preset tiny; yields the process and their address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, str(programs.ROOT / "launch" / "ray_serve.py"), "tiny:2"]
    command += [f"--port={port}", "--cpus=0.5", "--health=1"]
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=programs.environment(
                HOME=str(folder),  # where Ray leaves a token
                OMP_NUM_THREADS="1",
                RAY_USAGE_STATS_ENABLED="0",
            ),
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}/tiny"
            lines = iter(process.stdout.readline, "")
            said = next((line.strip() for line in lines if line.startswith("http")), "")
            assert said == url, (folder / "ray.log").read_text()[-3000:]
            yield process, url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def replicas(parent: int) -> list[int]:
    """Return the process ids of the Serve replicas that descend from a process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(fields[1])
                names[int(entry.name)] = (entry / "cmdline").read_text()

    def descends(pid: int) -> bool:
        while pid in parents and pid != parent:
            pid = parents[pid]
        return pid == parent

    return [pid for pid, name in names.items() if "ServeReplica" in name and descends(pid)]


def test_two_replicas_pass_what_plain_sidecars_pass(ray_python, tmp_path):
    made = checks.clips()
    with serving(ray_python, tmp_path) as (process, url):
        checks.check_scores([url], made)
        checks.check_refusal(url)
        before = replicas(process.pid)
        assert len(before) == 2
        checks.check_loss([url], made, hurt=lambda: os.kill(before[0], signal.SIGKILL))
        end = time.monotonic() + 120
        while len(replicas(process.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.5)
        now = replicas(process.pid)
        assert len(now) == 2 and before[0] not in now and before[1] in now
        checks.check_scores([url], made)
