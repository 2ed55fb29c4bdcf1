"""Servers of our own on this machine: started as processes, waited for, and stopped again."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

log = logging.getLogger(__name__)

LAUNCHER = "evoid_jax.rewards.launch_server"  # runs a module and ends it with its parent


class Local:
    """A running server: `url`, `log_file`, `pid`; stops at exit, at `stop()`, or after `with`."""

    def __init__(self, process: subprocess.Popen, name: str, log_file: Path):
        self.process, self.name, self.log_file = process, name, log_file
        self.pid = process.pid
        self.url = ""
        atexit.register(self.stop)

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.process.poll() is None

    def stop(self, patience: float = 5.0) -> None:
        """End the process and all that it started; does nothing the second time."""
        atexit.unregister(self.stop)
        # Ask first, then insist. The group holds what the server started too, such as workers.
        for kind, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            if not self.alive():
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(wait)

    def tail(self, lines: int = 20) -> str:
        """Return the end of the server's log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def start_local(
    module: str, args: list[str], log_dir: str | Path, timeout: float = 180.0, name: str = ""
) -> Local:
    """Start `python -m module args --port 0 --port-file ..` and wait until /health answers.

    Args:
      module: a server that takes these two options and writes its port to the file.
      args: its other options.
      log_dir: for NAME.log, its output, and NAME.port.
      timeout: seconds until it must answer.
      name: for files and messages; "" is the module's own.

    Raises:
      ConnectionError: it ended, or was not ready in `timeout` seconds; shows the end of its log.
    """
    log_dir = Path(log_dir).resolve()
    log_dir.mkdir(parents=True, exist_ok=True)
    name = name or module.rsplit(".", 1)[-1]
    port_file = log_dir / f"{name}.port"
    port_file.unlink(missing_ok=True)  # of an earlier run: its port may be anyone's by now
    command = [sys.executable, "-m", LAUNCHER, str(os.getpid()), module, *map(str, args)]
    command += ["--port", "0", "--port-file", str(port_file)]
    log_file = log_dir / f"{name}.log"
    with open(log_file, "w") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # A process group of its own: Ctrl-C reaches the training process alone, which stops it.
            start_new_session=True,
        )
    server = Local(process, name, log_file)
    try:
        _await(server, port_file, timeout)
    except BaseException:  # Ctrl-C while waiting included: leave no server behind
        server.stop()
        raise
    log.info("%s runs at %s (process %d, log %s)", name, server.url, server.pid, log_file)
    return server


def start_sidecar(preset: str, log_dir: str | Path, timeout: float = 180.0) -> Local:
    """Start a reward sidecar of a preset, such as "tiny"."""
    args = ["--preset", preset]
    return start_local("evoid_jax.sidecars.serve", args, log_dir, timeout, f"sidecar_{preset}")


def start_judge(log_dir: str | Path, timeout: float = 180.0) -> Local:
    """Start the heuristic judge; its API is at `url + "/v1"`."""
    return start_local("evoid_jax.sidecars.tiny.judge", [], log_dir, timeout, "judge")


def _await(server: Local, port_file: Path, timeout: float) -> None:
    """Return once the server answers; raise ConnectionError if it ends or takes too long."""
    end = time.monotonic() + timeout
    while not _ready(server, port_file):
        if not server.alive():
            why = f"ended with status {server.process.returncode}"
        elif time.monotonic() > end:
            why = f"is not ready after {timeout:g} s"
        else:
            time.sleep(0.05)
            continue
        raise ConnectionError(
            f"{server.name} {why}; the end of {server.log_file}:\n{server.tail() or '(empty)'}"
        )


def _ready(server: Local, port_file: Path) -> bool:
    if not port_file.exists():
        return False
    server.url = f"http://127.0.0.1:{port_file.read_text().strip()}"
    try:
        # trust_env: a proxy of the environment must not catch this machine's own addresses.
        with httpx2.Client(trust_env=False, timeout=5.0) as http:
            return http.get(server.url + "/health").status_code == 200
    except httpx2.TransportError:
        return False
