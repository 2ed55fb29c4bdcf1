"""What every benchmark here measures with: two sides in turn, in one process."""

import time
from collections.abc import Callable

import numpy as np


def seconds(function: Callable) -> float:
    """Return how long one call takes; what it returns must be computed when it returns."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(ours: Callable, theirs: Callable, runs: int) -> tuple[float, float, float]:
    """Return medians of both, in seconds, and the median of theirs / ours over neighbours."""
    rows = np.array([(seconds(ours), seconds(theirs)) for _ in range(runs)])
    return *np.median(rows, axis=0), float(np.median(rows[:, 1] / rows[:, 0]))
