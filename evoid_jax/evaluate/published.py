"""Rows that others have published, to stand beside ours. Nothing here was measured by this project.

In hundredths for the benchmark's total and metrics, in [0, 1] for EvoScore, as they were printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from evoid_jax.evaluate import upstream

LEADERBOARD = "OpenS2V-Eval v1.1 leaderboard, Human-Domain"
PAPER = "EvoID (CVPR 2026), main results, person domain"


class Published(NamedTuple):
    """A row of somebody's table; what it does not state is None, or no metric of the row."""

    name: str
    total: float
    metrics: Mapping[str, float]  # by the benchmark's names
    evoscore: float | None
    source: str


def of_leaderboard(name: str, total: float, *metrics: float) -> Published:
    """Return a row of the leaderboard. metrics: in the order of its columns, `upstream.METRICS`."""
    names = [metric.name for metric in upstream.METRICS]
    return Published(name, total, dict(zip(names, metrics, strict=True)), None, LEADERBOARD)


def of_paper(name: str, total: float, facesim: float, evoscore: float) -> Published:
    """Return a row of the paper, as far as its columns are the benchmark's."""
    return Published(name, total, {"facesim_cur": facesim}, evoscore, PAPER)


# The leaderboard's file_v1.1/results_Human-Domain.csv, the highest total first.
ROWS = (
    of_leaderboard("VACE-14B", 65.78, 52.78, 94.96, 11.76, 64.65, 69.53, 69.31),
    of_leaderboard("Hailuo", 65.26, 52.75, 99.1, 31.8, 57.69, 71.42, 69.2),
    of_leaderboard("Phantom-14B", 64.22, 49.14, 94.81, 41.24, 55.04, 72.55, 69.86),
    of_leaderboard("Stand-In", 62.08, 51.25, 97.9, 5.03, 47.99, 69.91, 71.39),
    of_leaderboard("HunyuanCustom", 61.22, 49.67, 84.73, 15.13, 62.25, 69.78, 60.56),
    of_leaderboard("Kling1.6", 60.19, 50.94, 84.75, 50.02, 41.02, 67.79, 71.55),
    of_leaderboard("Phantom-1.3B", 60.0, 50.8, 92.02, 14.09, 46.29, 72.17, 65.83),
    of_leaderboard("Concat-ID-Wan-AdaLN", 59.85, 43.13, 85.86, 17.19, 50.05, 71.9, 68.47),
    of_leaderboard("MAGREF-480P", 57.72, 51.2, 90.26, 14.76, 32.87, 70.88, 70.28),
    of_leaderboard("Vidu2.0", 57.7, 47.33, 91.31, 14.54, 38.5, 70.43, 67.78),
    of_leaderboard("Pika2.1", 56.84, 52.39, 85.29, 28.77, 29.42, 75.03, 67.53),
    of_leaderboard("SkyReels-A2-P14B", 56.43, 39.89, 80.19, 31.49, 55.01, 63.63, 59.31),
    of_leaderboard("EchoVideo", 56.36, 39.93, 77.96, 35.58, 48.65, 68.4, 62.22),
    of_leaderboard("Concat-ID-CogVideoX", 55.89, 44.13, 81.9, 31.07, 43.87, 73.67, 58.75),
    of_leaderboard("VACE-1.3B", 54.9, 53.18, 95.84, 16.87, 22.29, 73.61, 65.28),
    of_leaderboard("FantasyID", 54.33, 45.6, 85.44, 23.41, 32.48, 72.68, 62.36),
    of_leaderboard("VideoMaker", 54.23, 31.76, 77.5, 50.09, 76.45, 45.28, 47.08),
    of_leaderboard("ConsisID", 54.19, 41.77, 79.83, 37.99, 43.19, 72.03, 55.83),
    of_leaderboard("VACE-P1.3B", 53.97, 51.91, 95.8, 8.78, 19.98, 73.27, 65.83),
    of_leaderboard("ID-Animator", 49.75, 42.03, 94.69, 33.54, 31.56, 52.91, 56.11),
    of_paper("VACE-14B", 65.8, 64.7, 0.544),
    of_paper("Phantom-14B", 64.2, 55.0, 0.567),
    of_paper("Hailuo", 65.3, 57.7, 0.588),
    of_paper("ViduQ2", 65.0, 51.4, 0.648),
    of_paper("EvoID", 70.4, 74.5, 0.682),
    of_paper("EvoID, EvoScore rewarded", 68.7, 67.5, 0.718),
)
