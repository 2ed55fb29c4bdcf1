"""The thread in which this process talks to its sidecars: one event loop, one HTTP client.

Whoever scores calls `run` from any thread, a notebook's included, and waits there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import httpx2

_lock = threading.Lock()
_waiting: dict[asyncio.Event, None] = {}  # in the order in which they came


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in the thread and return what it returns, or raise what it raises."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C while waiting included
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        return _started()


@functools.cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    # A daemon: a sidecar that hangs must not keep the process from ending.
    threading.Thread(target=loop.run_forever, name="sidecars", daemon=True).start()
    return loop


@functools.cache
def http() -> httpx2.AsyncClient:
    """Return the client of the thread; to be called there alone."""
    # Sidecars are our own machines: a proxy from the environment would only lose them. No limit of
    # connections: a look at one sidecar must not wait for videos on their way to another.
    return httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=None))


def wake() -> None:
    """Tell all who wait that something about a replica has changed; the first who came goes first.

    To be called in the thread alone, as `changed`.
    """
    for event in _waiting:
        event.set()


@contextlib.contextmanager
def changed() -> Iterator[asyncio.Event]:
    """Yield an event that `wake` sets."""
    event = asyncio.Event()
    _waiting[event] = None
    try:
        yield event
    finally:
        del _waiting[event]
