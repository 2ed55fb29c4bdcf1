"""A table of rewards: who is in it, and the scores of a batch as one table.

The rewards of a run are `config.reward.table`; their order there is the order of every M axis.
B videos, M rewards, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evoid_jax.reward_groups import GROUPS, Metric


class ScoreTable(NamedTuple):
    """What videos scored, on the host. raw and score are NaN exactly where not valid."""

    raw_BM: np.ndarray  # float32, each reward in its own unit
    score_BM: np.ndarray  # float32 in [0, 1]
    valid_BM: np.ndarray  # bool
    # bool, of those that are not valid: the scorer looked, and there was nothing to measure. Any
    # other was lost on the way, which says nothing of the video.
    blank_BM: np.ndarray


def names(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    """Return the rewards' names, in the order of the M axis."""
    return tuple(metric.name for metric in metrics)


def arrays(metrics: tuple[Metric, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return prior_M float32, group_M int32 (position in GROUPS) and floor_M float32."""
    prior_M = np.array([metric.prior for metric in metrics], np.float32)
    group_M = np.array([GROUPS.index(metric.group) for metric in metrics], np.int32)
    floor_M = np.array([metric.floor for metric in metrics], np.float32)
    return prior_M, group_M, floor_M
