"""The example sidecar as its readers start it: a process of its own on a free port."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

FILE = Path(__file__).parents[1] / "examples" / "sidecar.py"


@contextlib.contextmanager
def running(file=FILE, patience=60.0):
    """Start the file with a free port as its argument; yields its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(file), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process, time.monotonic() + patience)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _await(url, process, end):
    with httpx2.Client(trust_env=False) as http:
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.TransportError):
                if http.get(f"{url}/info").status_code == 200:
                    return
            assert process.poll() is None, "the sidecar ended"
            time.sleep(0.05)
    raise AssertionError("the sidecar does not answer")
