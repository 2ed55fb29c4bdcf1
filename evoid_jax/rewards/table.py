"""The K = 8 rewards: seven objective metrics and the judge's preference.

Priors are the weights of the total in OpenS2V-Eval v1.1, human domain (OpenS2V-Nexus,
eval/merge_result.py): aesthetic .18, smoothness .09, amplitude .03, face similarity .25, GME .15,
naturalness .30. The benchmark has one face similarity; its weight is halved over our two face
encoders. The paper prints no priors. They need not sum to one: `fuse.final_weights` normalises.

Floors are in units of the [0, 1] score: a smaller spread between the seeds of one pair counts as
noise and is not blown up to full rewards. The paper has no floor; the values are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GROUPS = ("identity", "text", "quality")


class Metric(NamedTuple):
    """One reward: its name, the group it stands in, its prior weight, its least spread."""

    name: str
    group: str
    prior: float
    floor: float


METRICS = (
    Metric("arcface", "identity", 0.125, 0.01),
    Metric("curricularface", "identity", 0.125, 0.01),
    Metric("gme", "text", 0.15, 0.01),
    Metric("aesthetic", "quality", 0.18, 0.01),
    Metric("qalign", "quality", 0.09, 0.01),  # temporal quality: the benchmark's motion smoothness
    Metric("naturalness", "quality", 0.30, 0.01),
    Metric("flow", "quality", 0.03, 0.01),  # the benchmark's motion amplitude
    # The judge's group and prior are our choice: it grades the whole video, like naturalness.
    Metric("vqscore", "quality", 0.30, 0.01),
)
NAMES = tuple(metric.name for metric in METRICS)


def arrays(metrics: tuple[Metric, ...] = METRICS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return prior_M float32, group_M int32 (position in GROUPS) and floor_M float32."""
    prior_M = np.array([metric.prior for metric in metrics], np.float32)
    group_M = np.array([GROUPS.index(metric.group) for metric in metrics], np.int32)
    floor_M = np.array([metric.floor for metric in metrics], np.float32)
    return prior_M, group_M, floor_M
