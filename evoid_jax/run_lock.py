"""One run, one folder: a lock that a second run meets, and that a dead one leaves to the next.

The operating system holds the lock for as long as the process lives, on network file systems that
know locks too. `.owner.json` beside it only says who: process, host, since when.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from evoid_jax import distributed, metrics

FILE = ".lock"  # in a run's workdir
OWNER = ".owner.json"


@contextlib.contextmanager
def held(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Hold a run's folder for this process, which leads the run's others if there are any.

    Args:
      flag: that names another folder, for the message.

    Raises:
      BlockingIOError: another process holds it; says which.
    """
    if not distributed.leads():
        yield
        return
    lock = filelock.FileLock(workdir / FILE, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"{workdir} is in use by another run ({_owner(workdir)}). Wait for its end, or stop "
            f"it, or use another {flag}"
        ) from None
    try:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        metrics.write_text(workdir / OWNER, json.dumps(owner) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (workdir / OWNER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside of this, for this folder."""
    with filelock.FileLock(folder / FILE):
        yield


def check(workdir: Path) -> None:
    """Raise FileNotFoundError where the folder that is held was deleted, or moved away."""
    if distributed.leads() and not (workdir / OWNER).is_file():
        raise FileNotFoundError(
            f"{workdir} was deleted or moved while the run was under way; nothing more can be kept"
        )


def _owner(workdir: Path) -> str:
    """Say who holds a folder, as far as it is known."""
    try:
        owner = json.loads((workdir / OWNER).read_text())
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"
