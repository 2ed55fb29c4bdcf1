"""Signals that ask a run to end: what is done is saved, and the process ends in time, by itself.

SIGTERM and SIGHUP come from schedulers and from machines that are taken away, with some seconds
until the process is killed; SIGINT is Ctrl-C. After the first of them

- a process on its own raises `Interrupted` where it stands, or, inside of `shielded`, at its end;
- of several processes each notes it, and all raise together at the next `point`;
- when `grace` seconds have passed the process ends as it is. Whoever saves what takes longer than
  that as soon as it is done (`train.evolution`) loses nothing but what was under way.

A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from evoid_jax import distributed

CODE = 75  # of the process after SIGTERM or SIGHUP; sysexits.h: a temporary failure, try again
CTRL_C = 130  # by convention of shells
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SLICE = 1.0  # seconds of a pause between two looks


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    code: of its end. until: when it must have ended, by `time.monotonic`.
    """

    def __init__(self, words: str = "", code: int = CTRL_C, until: float = math.inf):
        super().__init__(words)
        self.code, self.until = code, until


class _Listener:
    """What has come, while `listening` is open."""

    def __init__(self, grace: float):
        self.grace, self.asked, self.shields, self.raised = grace, 0, 0, False
        self.until = math.inf
        self.closed = threading.Event()

    def hear(self, number: int, _frame) -> None:
        """Handle a signal; runs in the main thread, between two steps of the interpreter."""
        name = signal.Signals(number).name
        if self.asked:
            _end(_code(self.asked), f"{name}, the second: ended as it is")
        self.asked, self.until = number, time.monotonic() + self.grace
        threading.Thread(target=self._insist, name="grace", daemon=True).start()
        _tell(f"{name}: saving what is done, for up to {self.grace:g} s; a second one ends at once")
        self.look()

    def look(self) -> None:
        """Raise once where a process on its own was asked to end, and may."""
        if self.asked and not (self.shields or self.raised) and jax.process_count() == 1:
            self.raise_for(self.asked)

    def raise_for(self, number: int) -> NoReturn:
        """Raise what ends the run for a signal, which another process may have had."""
        self.raised = True
        until = min(self.until, time.monotonic() + self.grace)
        raise Interrupted(code=_code(number), until=until)

    def _insist(self) -> None:
        if not self.closed.wait(self.grace):
            _end(_code(self.asked), f"still not done after {self.grace:g} s: ended as it is")


_listener: _Listener | None = None


@contextlib.contextmanager
def listening(grace: float) -> Iterator[None]:
    """Let signals end the block as the module says; elsewhere than in the main thread do nothing.

    grace: seconds from a signal to the end of the process.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread() or _listener is not None:
        yield
        return
    _listener = _Listener(grace)
    # What the process was told to ignore stays ignored: nohup's SIGHUP, a background job's Ctrl-C.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _listener.hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listener.closed.set()
        _listener = None


def told(stop: KeyboardInterrupt) -> tuple[int, float]:
    """Return the code and the time of whatever stopped a run."""
    return getattr(stop, "code", CTRL_C), getattr(stop, "until", math.inf)


def insist(stop: KeyboardInterrupt) -> None:
    """End the process when the time of an `Interrupted` is over, whatever still holds it up."""
    if isinstance(stop, Interrupted) and stop.until < math.inf:
        timer = threading.Timer(max(1.0, stop.until - time.monotonic()), os._exit, [stop.code])
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Let a block that must not be torn apart run to its end; a signal that came raises then."""
    listener = _listener
    if listener is None:
        yield
        return
    listener.shields += 1
    try:
        yield
    finally:
        listener.shields -= 1
    listener.look()


def point() -> None:
    """Raise `Interrupted` on all processes where one of them was asked to end. Collective.

    A process on its own has raised where it stood, and comes here only where that was lost: Python
    drops what is raised in a finalizer, in which a signal may find it.
    """
    if _listener is None:
        return
    if jax.process_count() == 1:
        if _listener.asked:
            _listener.raise_for(_listener.asked)
        return
    asked = max(distributed.exchange(_listener.asked))
    if asked and not _listener.raised:
        _listener.raise_for(asked)


def pause(seconds: float) -> None:
    """Sleep, and end the pause as `point` does where a process was asked to end. Collective."""
    left = seconds
    while left > 0:
        point()
        time.sleep(min(left, SLICE))
        left -= SLICE
    point()


def _code(number: int) -> int:
    return CTRL_C if number == signal.SIGINT else CODE


def _tell(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def _end(code: int, text: str) -> None:
    """End the process without a goodbye, which could wait for what hangs."""
    _tell(text)
    sys.stdout.flush()
    os._exit(code)
