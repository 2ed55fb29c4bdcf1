"""Servers of our own on this machine: started as processes, waited for, and stopped again.

One that is kept (`Local.keep`) is started again where it ends or hangs, at the address that it had,
so that whoever asks it only has to wait.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2

log = logging.getLogger(__name__)

HOUR = 3600.0
LAUNCHER = "evoid_jax.rewards.launch_server"  # runs a module and ends it with its parent


class Local:
    """A running server: `url`, `log_file`, `pid`; stops at exit, at `stop()`, or after `with`.

    command: that starts it, without the options of its port.
    """

    def __init__(self, command: list[str], name: str, log_dir: Path):
        self.name, self.url = name, ""
        self.log_file, self.port_file = log_dir / f"{name}.log", log_dir / f"{name}.port"
        self._command, self._lock, self._stopped = command, threading.Lock(), False
        self._start("0", "w")
        atexit.register(self.stop)

    def _start(self, port: str, mode: str) -> None:
        """Start the process. mode: in which its log is opened."""
        self.port_file.unlink(missing_ok=True)  # of an earlier one: its port may be anyone's by now
        options = ["--port", port, "--port-file", str(self.port_file)]
        with open(self.log_file, mode) as sink:
            self.process = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # A process group of its own: Ctrl-C reaches the training process alone, which stops
                # it.
                start_new_session=True,
            )
        self.pid = self.process.pid

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.process.poll() is None

    def stop(self, patience: float = 5.0) -> None:
        """End the process and all that it started; does nothing the second time."""
        atexit.unregister(self.stop)
        with self._lock:
            self._stopped = True
            self._end(patience)

    def restart(self, timeout: float) -> None:
        """End the process and start it again, with the port that it had; nothing after `stop`.

        Raises:
          ConnectionError: it ended, or was not ready in `timeout` seconds.
        """
        with self._lock:
            if self._stopped:
                return
            self._end(patience=1.0)
            self._start(self.url.rsplit(":", 1)[1], "a")
        _await(self, timeout)

    def keep(self, most: int = 5, silence: float = 120.0, timeout: float = 180.0) -> None:
        """Start the server again whenever it has ended or hangs, until `stop`; in a thread.

        Args:
          most: times in an hour; after that it is left as it is.
          silence: seconds without an answer to /health, after which it counts as hung.
          timeout: seconds until it must be ready again.
        """
        work = threading.Thread(target=_keep, args=(self, most, silence, timeout), daemon=True)
        work.start()

    def trouble(self, heard: float, silence: float) -> str:
        """Say why it must be started again, or return "". heard: when it last answered."""
        if not self.alive():
            return f"ended with status {self.process.returncode}"
        if time.monotonic() - heard > silence:
            return f"has said nothing for {silence:g} s"
        return ""

    def stopped(self) -> bool:
        """Tell whether `stop` was called."""
        return self._stopped

    def _end(self, patience: float) -> None:
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
    command = [sys.executable, "-m", LAUNCHER, str(os.getpid()), module, *map(str, args)]
    server = Local(command, name or module.rsplit(".", 1)[-1], log_dir)
    try:
        _await(server, timeout)
    except BaseException:  # Ctrl-C while waiting included: leave no server behind
        server.stop()
        raise
    about = server.name, server.url, server.pid, server.log_file
    log.info("%s runs at %s (process %d, log %s)", *about)
    return server


def start_sidecar(preset: str, log_dir: str | Path, timeout: float = 180.0) -> Local:
    """Start a reward sidecar of a preset, such as "tiny"."""
    args = ["--preset", preset]
    return start_local("evoid_jax.sidecars.serve", args, log_dir, timeout, f"sidecar_{preset}")


def start_judge(log_dir: str | Path, timeout: float = 180.0) -> Local:
    """Start the heuristic judge; its API is at `url + "/v1"`."""
    return start_local("evoid_jax.sidecars.tiny.judge", [], log_dir, timeout, "judge")


def _keep(server: Local, most: int, silence: float, timeout: float) -> None:
    """See after a server until it is stopped."""
    heard, times = time.monotonic(), []
    while not server.stopped():
        if _healthy(server.url):
            heard = time.monotonic()
        why = server.trouble(heard, silence)
        if not why or server.stopped():
            time.sleep(min(1.0, silence / 4))
            continue
        now = time.monotonic()
        times = [one for one in times if now - one < HOUR] + [now]
        told = f"{server.name} {why} (log {server.log_file})"
        if len(times) > most:
            log.error("%s; it was started again %d times in an hour, and is left now", told, most)
            return
        log.warning("%s; it is started again, %d of %d", told, len(times), most)
        try:
            server.restart(timeout)
            log.warning("%s runs again (process %d)", server.name, server.pid)
        except ConnectionError as error:
            log.warning("%s", error)
        heard = time.monotonic()


def _await(server: Local, timeout: float) -> None:
    """Return once the server answers; raise ConnectionError if it ends or takes too long."""
    end = time.monotonic() + timeout
    while not _ready(server):
        if server.stopped():
            return
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


def _ready(server: Local) -> bool:
    if not server.port_file.exists():
        return False
    server.url = f"http://127.0.0.1:{server.port_file.read_text().strip()}"
    return _healthy(server.url)


def _healthy(url: str) -> bool:
    try:
        # trust_env: a proxy of the environment must not catch this machine's own addresses.
        with httpx2.Client(trust_env=False, timeout=5.0) as http:
            return http.get(url + "/health").status_code == 200
    except httpx2.TransportError:
        return False
