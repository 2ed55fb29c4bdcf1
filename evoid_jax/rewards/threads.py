"""Threads that never keep the process from ending, whatever server they wait for.

Those of `concurrent.futures` are joined when Python ends: one that waits for a server which hangs
would hold the process until its deadline, and Ctrl-C with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def start(function: Callable, *args) -> Future:
    """Call a function in a thread of its own; the future gets what it returns or raises."""
    future: Future = Future()
    _start(_settle, future, function, *args)
    return future


def each(function: Callable[[int], Any], count: int, most: int) -> list:
    """Return function(0) to function(count - 1), in order; raises what one of them raises.

    most: how many are called at once.
    """
    numbers = iter(range(count))  # shared: each number goes to one thread
    futures: list[Future] = [Future() for _ in range(count)]

    def work() -> None:
        for i in numbers:
            _settle(futures[i], function, i)

    for _ in range(min(most, count)):
        _start(work)
    return [future.result() for future in futures]


def _start(function: Callable, *args) -> None:
    threading.Thread(target=function, args=args, name="scores", daemon=True).start()


def _settle(future: Future, function: Callable, *args) -> None:
    try:
        future.set_result(function(*args))
    except BaseException as error:  # for whoever waits for it
        future.set_exception(error)
