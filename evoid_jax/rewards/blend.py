"""One step's rewards: priors and the judge's attention blended into one number per video.

`fuse.py` has the formulas; this is what a run remembers between steps and the order in which the
formulas are applied. B videos, M rewards, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from evoid_jax.reward_groups import EVOSCORE, GROUPS, JUDGE, Reward
from evoid_jax.rewards import fuse, table
from evoid_jax.rewards.table import ScoreTable

# (reward_B, valid_B) by prior alone -> attention_G in 0..10, and whether the judge answered at all
Ask = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


class RewardMemory(NamedTuple):
    """What the rewards remember from step to step; saved with every checkpoint."""

    attention: list[float] | None  # averaged over steps; None before the first answer
    # Per step and reward, None where too few had it: the std of scores within a pair, its median
    # over the pairs, and the std over all videos.
    deviations: list[list[float | None]]
    spreads: list[list[float | None]]


FORGOTTEN = RewardMemory(attention=None, deviations=[], spreads=[])  # before the first step


class Fused(NamedTuple):
    """One step's rewards, numpy."""

    reward_B: np.ndarray  # in [0, 1]
    valid_B: np.ndarray  # False: a reward is missing, see `fuse.settle`; it trains nothing
    normalised_BM: np.ndarray  # in [0, 1], 1/2 is the mean of the pair
    weights_M: np.ndarray  # as used, mean over valid videos: sum to 1, NaN where none is valid


def priors(cfg: Reward) -> np.ndarray:
    """Return prior_M of the update: the table's, or uniform; none for a preference that is off."""
    prior_M = _without(cfg) if cfg.preference else _without(cfg, JUDGE)
    return (prior_M > 0).astype(np.float32) if cfg.uniform else prior_M


def rewarded(cfg: Reward) -> list[str]:
    """Return the names of the rewards that the update learns from."""
    prior_M = priors(cfg)
    return [name for name, prior in zip(table.names(cfg.table), prior_M, strict=True) if prior > 0]


def proof_priors(cfg: Reward) -> np.ndarray:
    """Return prior_M of the proof: the table's, whatever the update does without.

    So every ablation is measured on one scale (paper, table 3). Only where there is no judge at all
    nobody can grade the preference, and it has no weight. EvoScore has none in any case: the paper
    states it beside the total, also for the run that is rewarded by it.
    """
    return _without(cfg, EVOSCORE) if cfg.judge else _without(cfg, EVOSCORE, JUDGE)


def _without(cfg: Reward, *names: str) -> np.ndarray:
    """Return prior_M of the table, 0 for some rewards."""
    prior_M, _, _ = table.arrays(cfg.table)
    left_out_M = np.array([name in names for name in table.names(cfg.table)])
    return np.where(left_out_M, 0, prior_M)


def blend(
    cfg: Reward, memory: RewardMemory, scores: ScoreTable, pair_B: np.ndarray, ask: Ask
) -> tuple[RewardMemory, Fused]:
    """Normalise within pairs, let the judge move the weights, and unify (paper, section 3.3).

    What is missing is settled first, so that the videos of a pair are compared by the same rewards
    with the same weights. The paper says nothing of missing scores; the rules are ours.

    Args:
      memory: after the step before.
      scores: of all videos of the step.
      pair_B: (B,) ints, equal for videos of one pair.
      ask: the judge. It is shown the best and the worst video by prior alone, so that its last
        answer does not choose what it sees next.

    Returns:
      The memory after this step, and the rewards.
    """
    prior_M = priors(cfg)
    _, group_M, _ = table.arrays(cfg.table)
    memory = _spread(memory, scores, pair_B)
    floor_M = _floors(cfg, memory)
    score_BM, known_BM = fuse.fill_blanks(scores.score_BM, scores.valid_BM, scores.blank_BM, pair_B)
    used_BM, whole_B = fuse.settle(known_BM, prior_M > 0, pair_B)
    normalised_BM = fuse.normalize(score_BM, used_BM, pair_B, cfg.clip, floor_M)

    def unified(weights_M) -> tuple[jax.Array, jax.Array, jax.Array]:
        share_BM = fuse.shares(used_BM & whole_B[:, None], weights_M, group_M)
        return share_BM, *fuse.unify(normalised_BM, share_BM)

    if cfg.dynamic:
        _, plain_B, any_B = unified(prior_M)
        answer_G, answered = ask(np.asarray(plain_B), np.asarray(any_B))
        if answered:
            memory = memory._replace(attention=_averaged(cfg, memory.attention, answer_G))
    weights_M = _weights(cfg, prior_M, group_M, memory.attention)
    share_BM, reward_B, valid_B = jax.device_get(unified(weights_M))
    fused = Fused(
        reward_B=reward_B,
        valid_B=valid_B,
        normalised_BM=np.asarray(normalised_BM),
        weights_M=_used(share_BM[valid_B]),
    )
    return memory, fused


def _used(share_bM: np.ndarray) -> np.ndarray:
    """Return the mean weights of some videos."""
    if len(share_bM) == 0:
        return np.full(share_bM.shape[1], np.nan, np.float32)
    return share_bM.mean(axis=0)


def _spread(memory: RewardMemory, scores: ScoreTable, pair_B: np.ndarray) -> RewardMemory:
    """Return the memory with this step's spreads; what is missing, or blank, is in none."""
    score_BM = np.where(scores.valid_BM, scores.score_BM, np.nan)
    deviation_M = fuse.deviation(score_BM, pair_B)
    spread_M = fuse.deviation(score_BM, np.zeros_like(pair_B))  # as if all were one pair
    return memory._replace(
        deviations=[*memory.deviations, _or_none(deviation_M)],
        spreads=[*memory.spreads, _or_none(spread_M)],
    )


def _or_none(value_M: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in value_M]


def _floors(cfg: Reward, memory: RewardMemory) -> np.ndarray:
    """Return floor_M: a spread far below what a reward usually shows is taken for noise."""
    _, _, least_M = table.arrays(cfg.table)
    within_SM = np.array(memory.deviations, float)  # None becomes NaN
    overall_SM = np.array(memory.spreads, float)
    return fuse.floors(within_SM, overall_SM, cfg.floor, least_M)


def _averaged(cfg: Reward, attention: list[float] | None, answer_G: np.ndarray) -> list[float]:
    """Return the attention's running mean; the first answer stands alone."""
    if attention is None:
        return answer_G.tolist()
    keep = cfg.attention_memory
    return (keep * np.array(attention) + (1 - keep) * answer_G).tolist()


def _weights(cfg: Reward, prior_M, group_M, attention: list[float] | None):
    """Return weights_M; before the judge's first answer they are the priors' own."""
    if attention is None:
        silent_G = np.zeros(len(GROUPS), np.float32)
        return fuse.final_weights(prior_M, group_M, silent_G, cfg.tau, gamma=0.0)
    attention_G = np.array(attention, np.float32)
    return fuse.final_weights(prior_M, group_M, attention_G, cfg.tau, cfg.gamma)
