"""What every benchmark here measures with: two sides in turn, each in a process of its own.

Nobody trains with JAX and PyTorch in one process, and there they are in each other's way: JAX's
side takes up to half as long again beside a PyTorch that rests.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

SIDE = "side"
HELD = {}  # in a side's own process: the object that stays there between calls


def _hold(make: Callable[[], object]) -> None:
    HELD[SIDE] = make()


def _call(name: str):
    return getattr(HELD[SIDE], name)()


def _seconds(name: str) -> float:
    start = time.perf_counter()
    _call(name)
    return time.perf_counter() - start


class Side:
    """An object made in a new process by `make()`, with methods to call by name there.

    make: a `functools.partial`, which unlike a lambda can be sent to a process.
    """

    def __init__(self, make: Callable[[], object]):
        new = multiprocessing.get_context("spawn")  # a fork would inherit JAX's threads, and hang
        self.process = ProcessPoolExecutor(1, new, _hold, (make,))

    def get(self, name: str):
        """Return what the method returns, NumPy arrays or plain numbers."""
        return self.process.submit(_call, name).result()

    def seconds(self, name: str) -> float:
        """Return how long the method takes; what it returns must be computed by then."""
        return self.process.submit(_seconds, name).result()


def in_turn(ours: Side, theirs: Side, name: str, runs: int) -> tuple[float, float, float]:
    """Return medians of both, in seconds, and the median of theirs / ours over neighbours."""
    rows = np.array([(ours.seconds(name), theirs.seconds(name)) for _ in range(runs)])
    our, their = np.median(rows, axis=0)
    # The ratio is taken within each pair: a machine that slows down slows both.
    return our, their, float(np.median(rows[:, 1] / rows[:, 0]))
