"""Rows that others have published, to stand beside ours. Nothing here was measured by this project.

In hundredths for the benchmark's total and FaceSim, in [0, 1] for EvoScore, as they were printed.
"""

from __future__ import annotations

from typing import NamedTuple

LEADERBOARD = "OpenS2V-Eval v1.1 leaderboard, Human-Domain"
PAPER = "EvoID (CVPR 2026), main results, person domain"


class Published(NamedTuple):
    """A row of somebody's table; None is what it does not state, or what we have no source for."""

    name: str
    total: float
    facesim: float | None
    evoscore: float | None
    source: str


ROWS = (
    Published("VACE-14B", 65.78, 64.65, None, LEADERBOARD),
    Published("Hailuo", 65.26, None, None, LEADERBOARD),
    Published("Phantom-14B", 64.22, None, None, LEADERBOARD),
    Published("VACE-14B", 65.8, 64.7, 0.544, PAPER),
    Published("Phantom-14B", 64.2, 55.0, 0.567, PAPER),
    Published("Hailuo", 65.3, 57.7, 0.588, PAPER),
    Published("ViduQ2", 65.0, 51.4, 0.648, PAPER),
    Published("EvoID", 70.4, 74.5, 0.682, PAPER),
    Published("EvoID, EvoScore rewarded", 68.7, 67.5, 0.718, PAPER),
)
