"""Many scores into one reward: settle what is missing, normalise per pair, weigh, unify.

B videos, M metrics, G groups (identity, text, quality). Pure functions: numpy or jax arrays in, jax
arrays out, all of them safe under `jit`. Values are checked only where they are concrete.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-5  # ten units in the last place of what our sidecars send
EDGE = 1e-3  # a score this close to 0 or 1 has no room left on that side
FAINT = 0.02  # share of a metric's spread over all videos that is noise within a pair (ours)


def fill_blanks(
    scores_BM: jax.Array, valid_BM: jax.Array, blank_BM: jax.Array, group_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Count a blank as 0 where another video of its pair has that score.

    A blank says that the scorer looked and could not measure: no face in any frame. What other
    videos of the same photo and prompt show, this one hides, and hiding must not pay. Where the
    whole pair is blank, the photo or the prompt is why, and nothing is filled in.

    Args:
      scores_BM, valid_BM: scores in [0, 1], and which were had.
      blank_BM: which of the others are blanks.
      group_B: (B,) ints, equal for videos of one pair.

    Returns:
      The scores with zeros, and which of them there are now. The rest may hold anything.
    """
    scores_BM = jnp.asarray(scores_BM, jnp.float32)
    valid_BM = jnp.asarray(valid_BM, bool) & jnp.isfinite(scores_BM)
    zero_BM = jnp.asarray(blank_BM, bool) & ~valid_BM & _any_mate(valid_BM, group_B)
    return jnp.where(zero_BM, 0, scores_BM), valid_BM | zero_BM


def settle(
    known_BM: jax.Array, counts_M: jax.Array, group_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Decide which videos of a pair are compared, so that all of them are by the same rewards.

    A reward that no video of a pair has leaves the pair. A video that lacks one of those which
    remain is left out: ranked by its other rewards alone it would profit from the loss of a harsh
    one, and without that reward the whole pair would be ranked by something else. A video that is
    left alone is left out too, since it is compared with nothing.

    Args:
      known_BM: which scores there are, as from `fill_blanks`.
      counts_M: which rewards count; for the others nobody is left out.
      group_B: (B,) ints, equal for videos of one pair.

    Returns:
      used_BM, equal over `counts_M` for all videos of a pair that are left, and valid_B, which
      videos these are.
    """
    known_BM, counts_M = jnp.asarray(known_BM, bool), jnp.asarray(counts_M, bool)
    lost_BM = _any_mate(known_BM, group_B) & ~known_BM & counts_M[None, :]
    whole_B = ~lost_BM.any(axis=1) & (known_BM & counts_M[None, :]).any(axis=1)
    mates_BB = _mates(group_B) & whole_B[None, :]
    valid_B = whole_B & (mates_BB.sum(axis=1) > 1)
    return known_BM & (valid_B[:, None] | ~counts_M[None, :]), valid_B


def normalize(
    scores_BM: jax.Array, valid_BM: jax.Array, group_B: jax.Array, clip: float, floor_M: jax.Array
) -> jax.Array:
    """Map scores to [0, 1] within each pair's videos: how good is it for this face and this prompt?

    For each metric and pair on its own, with mean and population std over its valid members:

        z = (R - mean) / max(std, floor),    u = clip(z / clip, -1, 1)
        u <- u - mean(u),    u <- u / max(1, largest |u|),    1/2 + u / 2

    Where nothing is clipped the second line changes nothing. Where something is, clipping has cut
    more off one side than off the other, and a reward whose mean is not 1/2 would pull the whole
    batch towards or away from its own samples. So u is centred once more and, as that may push an
    end over the edge, shrunk until it fits: order and ties stay, and the mean is 1/2.

    Args:
      scores_BM: scores in any unit; invalid entries may hold anything, NaN included.
      valid_BM: which scores were had.
      group_B: (B,) ints, equal for videos of the same (image, text) pair; any values.
      clip: how many stds reach 0 or 1, > 0.
      floor_M: (M,) least std of each metric, in the unit of its scores, >= 0.

    Returns:
      (B, M) in [0, 1], of mean 1/2 over a pair's valid members; 1/2 where invalid and where std
      and floor are both zero.
    """
    scores_BM = jnp.asarray(scores_BM, jnp.float32)
    floor_M = jnp.asarray(floor_M, jnp.float32)
    _require(clip, lambda x: x > 0, "clip must be positive")
    _require(floor_M, lambda x: np.isfinite(x) & (x >= 0), "floor_M must be finite and >= 0")
    valid_BM = jnp.asarray(valid_BM, bool) & jnp.isfinite(scores_BM)
    known_BM = jnp.where(valid_BM, scores_BM, 0)  # NaN times 0 is NaN: take it out, do not mask it
    counts_BBM = _mates(group_B)[:, :, None] & valid_BM[None]
    deviation_BM, std_BM = _moments(known_BM, valid_BM, counts_BBM)
    # The floor keeps noise from spreading nearly equal videos over all of [0, 1].
    unit_BM = clip * jnp.maximum(std_BM, floor_M[None, :])
    u_BM = jnp.clip(deviation_BM / jnp.where(unit_BM > 0, unit_BM, 1), -1, 1)
    centred_BM = u_BM - _mean(u_BM, counts_BBM)
    largest_BM = jnp.where(counts_BBM, jnp.abs(centred_BM)[None], 0).max(axis=1)
    return jnp.where(valid_BM, 0.5 + 0.5 * centred_BM / jnp.maximum(largest_BM, 1), 0.5)


def final_weights(
    prior_M: jax.Array, group_M: jax.Array, attention_G: jax.Array, tau: float, gamma: float
) -> jax.Array:
    """Blend the groups' prior shares with the judge's attention; within a group priors decide.

    p_mllm = (s + tau) / sum(s + tau), p = (1 - gamma) p_prior + gamma p_mllm, and metric k of group
    g weighs p^g w_k / (sum of w in g). A group without prior weight has nothing to carry a share,
    so attention to it is ignored. No attention at all (zeros, tau zero) gives the prior.

    Args:
      prior_M: (M,) weights >= 0, not all zero, any scale.
      group_M: (M,) ints in 0..G-1.
      attention_G: (G,) how much each group needs improvement, >= 0 (the judge's scale is 0..10).
      tau: smoothing in units of attention, >= 0; large makes groups equal.
      gamma: share of attention in the blend, 0..1.

    Returns:
      (M,) weights that sum to 1.

    Raises:
      ValueError: a concrete argument is out of range or not finite.
    """
    prior_M, attention_G = jnp.asarray(prior_M, jnp.float32), jnp.asarray(attention_G, jnp.float32)
    groups = attention_G.shape[0]
    _require(prior_M, lambda x: np.isfinite(x) & (x >= 0), "priors must be finite and >= 0")
    _require(prior_M, lambda x: x.sum() > 0, "priors must not all be zero")
    _require(group_M, lambda x: (x >= 0) & (x < groups), f"group_M must lie in 0..{groups - 1}")
    _require(attention_G, lambda x: np.isfinite(x) & (x >= 0), "attention must be finite and >= 0")
    _require(tau, lambda x: np.isfinite(x) & (x >= 0), "tau must be finite and >= 0")
    _require(gamma, lambda x: (x >= 0) & (x <= 1), "gamma must lie in 0..1")
    # p_prior: each group's share of the prior weights.
    member_MG = jnp.asarray(group_M)[:, None] == jnp.arange(groups)[None, :]
    sum_G = jnp.where(member_MG, prior_M[:, None], 0).sum(axis=0)
    p_prior_G = sum_G / sum_G.sum()
    # p_mllm: the judge's needs, smoothed by tau. The inner where keeps 0 / 0 from being computed:
    # under jax_debug_nans it is an error even in the branch that is not taken.
    asked_G = jnp.where(sum_G > 0, attention_G + tau, 0)
    asked = asked_G.sum()
    p_mllm_G = jnp.where(asked > 0, asked_G / jnp.where(asked > 0, asked, 1), p_prior_G)
    # Blend the groups' shares, then scale each group's metrics alike so that they sum to its share.
    p_blend_G = (1 - gamma) * p_prior_G + gamma * p_mllm_G
    scale_G = p_blend_G / jnp.where(sum_G > 0, sum_G, 1)
    return prior_M * jnp.where(member_MG, scale_G[None, :], 0).sum(axis=1)


def shares(valid_BM: jax.Array, weights_M: jax.Array, group_M: jax.Array) -> jax.Array:
    """Return the weights that each video's valid rewards have in its mean.

    A missing reward's weight goes to the valid ones of its group, a wholly missing group's to the
    other groups, both in proportion.

    Args:
      valid_BM: which rewards there are.
      weights_M: (M,) >= 0, as from `final_weights`.
      group_M: (M,) ints.

    Returns:
      (B, M), rows that sum to 1, or to 0 where nothing valid has weight.
    """
    valid_BM = jnp.asarray(valid_BM, bool)
    weights_M, group_M = jnp.asarray(weights_M, jnp.float32), jnp.asarray(group_M)
    _require(weights_M, lambda x: np.isfinite(x) & (x >= 0), "weights must be finite and >= 0")
    # Within a group: the valid metrics' weights are raised until they sum to what the group had.
    same_MM = group_M[:, None] == group_M[None, :]
    left_BM = jnp.where(valid_BM, weights_M[None, :], 0)
    left_in_group_BM = jnp.where(same_MM[None], left_BM[:, None, :], 0).sum(axis=2)
    group_total_M = jnp.where(same_MM, weights_M[None, :], 0).sum(axis=1)
    raised = group_total_M[None, :] / jnp.where(left_in_group_BM > 0, left_in_group_BM, 1)
    share_BM = left_BM * raised
    # Between groups: dividing by the total raises all groups that are left in proportion.
    total_B = share_BM.sum(axis=1, keepdims=True)
    return share_BM / jnp.where(total_B > 0, total_B, 1)


def unify(normalized_BM: jax.Array, share_BM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weighted mean of each video's rewards.

    Args:
      normalized_BM: rewards in [0, 1]; those without a share may hold anything.
      share_BM: as from `shares`.

    Returns:
      reward_B in [0, 1] and valid_B. A video without any share has 1/2 and False: leave it out of
      the loss, for 1/2 still pulls towards the stable model.
    """
    share_BM = jnp.asarray(share_BM, jnp.float32)
    normalized_BM = jnp.where(share_BM > 0, jnp.asarray(normalized_BM, jnp.float32), 0)
    reward_B = jnp.clip((share_BM * normalized_BM).sum(axis=1), 0, 1)
    valid_B = (share_BM > 0).any(axis=1)
    return jnp.where(valid_B, reward_B, 0.5), valid_B


def _any_mate(valid_BM: jax.Array, group_B: jax.Array) -> jax.Array:
    """Return (B, M) bool: is it true of any video of the pair?"""
    return (_mates(group_B)[:, :, None] & valid_BM[None]).any(axis=1)


def _mates(group_B: jax.Array) -> jax.Array:
    """Return (B, B) bool: do two videos belong to one pair?"""
    if not isinstance(group_B, jax.Array):  # 64-bit keys would collide when cut to 32 bits
        group_B = np.unique(np.asarray(group_B), return_inverse=True)[1]
    group_B = jnp.asarray(group_B)
    return group_B[:, None] == group_B[None, :]


def _mean(x_BM: jax.Array, counts_BBM: jax.Array) -> jax.Array:
    """Return, for each video and metric, the mean over the videos that count in its pair.

    counts_BBM: [i, j, m]: does metric m of video j count for video i?
    """
    count_BM = jnp.maximum(counts_BBM.sum(axis=1), 1)
    return jnp.where(counts_BBM, x_BM[None], 0).sum(axis=1) / count_BM


def _moments(
    scores_BM: jax.Array, valid_BM: jax.Array, counts_BBM: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return each score's deviation from its pair's mean, and the pair's std; zero where invalid.

    Both are computed in units of the pair's own range, counted from its least score. Equal scores
    then deviate by exactly zero; a plain mean of three times 0.1 is not 0.1, and dividing that
    rounding error by the std it makes would turn it into rewards.
    """
    low_BM = jnp.where(counts_BBM, scores_BM[None], jnp.inf).min(axis=1)
    high_BM = jnp.where(counts_BBM, scores_BM[None], -jnp.inf).max(axis=1)
    range_BM = jnp.where(valid_BM & (high_BM > low_BM), high_BM - low_BM, 0)
    unit_BM = jnp.where(range_BM > 0, scores_BM - low_BM, 0) / jnp.where(range_BM > 0, range_BM, 1)
    deviation_BM = jnp.where(valid_BM, unit_BM - _mean(unit_BM, counts_BBM), 0)
    std_BM = jnp.sqrt(_mean(jnp.square(deviation_BM), counts_BBM))
    return deviation_BM * range_BM, std_BM * range_BM


def _require(value, holds, message: str) -> None:
    """Raise ValueError unless `holds` of every element; a traced value cannot be looked at."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all(holds(np.asarray(jax.device_get(value)))):
        raise ValueError(f"{message}, got {np.asarray(value)}")


def deviation(score_BM: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """Return how far each metric's scores spread within a pair.

    Args:
      score_BM: scores in any unit, NaN where missing.
      group_B: (B,) equal for videos of the same pair.

    Returns:
      (M,) float64, the median over pairs of the population std, in the unit of the scores; NaN for
      a metric with no pair of two scores.
    """
    out = np.full(score_BM.shape[1], np.nan)
    for m, score_B in enumerate(np.asarray(score_BM, np.float64).T):
        of_pair = [score_B[(group_B == g) & np.isfinite(score_B)] for g in np.unique(group_B)]
        stds = [x.std() for x in of_pair if len(x) > 1]
        out[m] = np.median(stds) if stds else np.nan
    return out


def saturation(score_BM: np.ndarray) -> np.ndarray:
    """Return which share of each metric's scores stands at an end of [0, 1], within EDGE.

    There a better video is no better by that metric, and a worse one no worse.

    Args:
      score_BM: scores in [0, 1], NaN where missing.

    Returns:
      (M,) float64 in [0, 1]; NaN for a metric that no video has.
    """
    score_BM = np.asarray(score_BM, np.float64)
    known_BM = np.isfinite(score_BM)
    at_end_BM = known_BM & ((score_BM <= EDGE) | (score_BM >= 1 - EDGE))
    count_M = known_BM.sum(axis=0)
    nothing_M = np.full(len(count_M), np.nan)
    return np.divide(at_end_BM.sum(axis=0), count_M, out=nothing_M, where=count_M > 0)


def floors(
    within_SM: np.ndarray, overall_SM: np.ndarray, share: float, least_M: np.ndarray
) -> np.ndarray:
    """Return the std below which a pair's scores count as noise, by each metric's own spreads.

    The largest of: `share` of the metric's usual spread within a pair, for a pair whose videos are
    nearly equal; FAINT of its usual spread over all videos, for a metric that hardly tells videos
    of a pair apart; ROUNDING, for one that is the same for all; and what the table says.

    Args:
      within_SM: per step so far, this one included, `deviation`; NaN where there was none.
      overall_SM: per step, the std over all videos, NaN likewise.
      share: of the median of `within_SM`, >= 0.
      least_M: (M,) from the table, in the unit of the scores.

    Returns:
      (M,) float32.
    """
    within_M, overall_M = (_usual(spread_SM) for spread_SM in (within_SM, overall_SM))
    own_M = np.maximum(share * within_M, FAINT * overall_M)
    return np.maximum(own_M, np.maximum(least_M, ROUNDING)).astype(np.float32)


def _usual(spread_SM: np.ndarray) -> np.ndarray:
    """Return each metric's median over the steps that have it, 0 where none has."""
    columns = [spread_S[np.isfinite(spread_S)] for spread_S in np.asarray(spread_SM, float).T]
    return np.array([np.median(spread_S) if len(spread_S) else 0.0 for spread_S in columns])
