"""Statistics of the proof: did the evolved adapter do better on the same (identity, prompt, seed)?

`summary` compares the two arms, `verdict` says in words what the comparison shows, for the page and
the terminal alike. Shape key: B videos of an arm, M rewards. All numpy, float64. A missing score is
NaN, and null in JSON.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from evoid_jax.groups import ENOUGH as ENOUGH
from evoid_jax.metrics import plain, write_text

UNSEEN = "unseen identities"
TRAINED = "training pairs, new seeds"
UNKNOWN = "pairs of which it is not recorded whether training saw them"

# A reward with weight that is missing in a larger share of the pairs makes another total.
MISSING = 0.1


def total(scores_BM, prior_M) -> np.ndarray:
    """Average each video's absolute scores by prior, over the scores it has.

    Args:
      scores_BM: (B, M) in [0, 1], NaN where missing.
      prior_M: (M,) non-negative, any scale.

    Returns:
      total_B: (B,) in [0, 1], NaN where a video has no score with a positive prior.

    Raises:
      ValueError: shapes do not fit, or no prior is positive.
    """
    scores_BM, prior_M = np.asarray(scores_BM, float), np.asarray(prior_M, float)
    if scores_BM.ndim != 2 or prior_M.shape != scores_BM.shape[1:]:
        raise ValueError(
            f"expected scores (B, M), prior (M,); got {scores_BM.shape}, {prior_M.shape}"
        )
    if not (np.all(prior_M >= 0) and prior_M.sum() > 0):
        raise ValueError(f"expected non-negative priors, not all zero; got {prior_M.tolist()}")
    # total = sum over present m of prior_m score_m / sum over present m of prior_m
    weight_BM = np.where(np.isfinite(scores_BM), prior_M[None, :], 0.0)
    mass_B = weight_BM.sum(1)
    sum_B = (weight_BM * np.nan_to_num(scores_BM, posinf=0.0, neginf=0.0)).sum(1)
    return np.divide(sum_B, mass_B, out=np.full(len(mass_B), np.nan), where=mass_B > 0)


def paired_bootstrap(
    base_B, evolved_B, resamples: int = 10_000, seed: int = 0, cluster_B=None
) -> tuple[float, float, float]:
    """Estimate mean(evolved - base) with a 95 % percentile interval.

    Whole clusters are drawn with replacement, because two seeds of one face are not two independent
    observations. Neither the order of the pairs nor the names of the clusters matter. Source: Efron
    and Tibshirani 1993, chapters 8 and 13.

    Args:
      base_B, evolved_B: (B,) of the same pairs; a pair with a NaN in either is dropped.
      resamples: how often all clusters are drawn anew.
      seed: of the draws.
      cluster_B: (B,) identity of each pair; None takes each pair as a cluster of its own.

    Returns:
      (delta, lo, hi): all NaN if no pair is left; lo and hi NaN if all pairs are of one cluster,
      which says nothing about others.

    Raises:
      ValueError: shapes do not fit.
    """
    base_B, evolved_B = np.asarray(base_B, float), np.asarray(evolved_B, float)
    cluster_B = np.arange(len(base_B)) if cluster_B is None else np.asarray(cluster_B)
    if not base_B.shape == evolved_B.shape == cluster_B.shape or base_B.ndim != 1:
        shapes = base_B.shape, evolved_B.shape, cluster_B.shape
        raise ValueError(f"expected base, evolved, cluster of one shape (B,); got {shapes}")
    keep_B = np.isfinite(base_B) & np.isfinite(evolved_B)  # only pairs can be compared
    if not keep_B.any():
        return (float("nan"),) * 3
    sum_C, size_C = _clusters((evolved_B - base_B)[keep_B], cluster_B[keep_B])
    delta = float(sum_C.sum() / size_C.sum())
    if len(sum_C) == 1:  # every draw would be the same cluster: an interval of no width
        return delta, float("nan"), float("nan")
    rng, draws = np.random.default_rng(seed), []
    for first in range(0, resamples, 1000):  # blocks bound the memory for many identities
        pick = rng.integers(len(sum_C), size=(min(1000, resamples - first), len(sum_C)))
        # A ratio of sums, as `delta` is: drawn clusters differ in size, and so does a draw's.
        draws.append(sum_C[pick].sum(1) / size_C[pick].sum(1))
    lo, hi = np.percentile(np.concatenate(draws), [2.5, 97.5])
    return delta, float(lo), float(hi)


def summary(
    names: Sequence[str],
    prior_M,
    base_BM,
    evolved_BM,
    cluster_B,
    monitor_base: Mapping[str, Sequence],
    monitor_evolved: Mapping[str, Sequence],
    steps: int,
    seconds: Mapping[str, float],
    resamples: int = 10_000,
    seed: int = 0,
    heldout: str | None = None,
    rewarded: Sequence[str] | None = None,
) -> dict:
    """Assemble summary.json from the absolute scores of the same B (identity, prompt, seed).

    A score counts only where both arms have it, so that evolved - base = delta for every reward
    and for the total.

    Args:
      names: of the M rewards, any.
      prior_M: non-negative, any scale; 0 for a reward that this run did not use.
      base_BM, evolved_BM: (B, M) in [0, 1] or NaN.
      cluster_B: (B,) whose face it is, a str or an int for each video.
      monitor_base, monitor_evolved: name -> B values, None or NaN where missing; never rewarded.
        One that a side lacks altogether is missing there.
      steps: of evolution.
      seconds: by phase.
      heldout: what the videos are: UNSEEN, TRAINED or words of your own that fit after "on".
      rewarded: names of the rewards that the run learned from; None: those with a prior above 0.

    Returns:
      What summary.json holds: plain numbers, null where a score or an interval is missing. Means
      in "base" and "evolved" and differences in "delta" are in the unit of the scores, [0, 1].

    Raises:
      ValueError: shapes do not fit, a video has no identity, or a reward is called total.
    """
    base_BM, evolved_BM = np.asarray(base_BM, float), np.asarray(evolved_BM, float)
    _check_arms(names, base_BM, evolved_BM, cluster_B)
    comparing = partial(_compare, cluster_B=cluster_B, resamples=resamples, seed=seed)
    rewards = {name: comparing(base_BM[:, m], evolved_BM[:, m]) for m, name in enumerate(names)}
    total_base_B, total_evolved_B = _totals(base_BM, evolved_BM, prior_M)
    rewards["total"] = comparing(total_base_B, total_evolved_B)
    monitors = _monitors(comparing, monitor_base, monitor_evolved, videos=len(base_BM))
    made = {} if heldout is None else {"heldout": heldout}
    made |= _headline(rewards, monitors)
    made |= {
        "steps": int(steps),
        "seconds": dict(seconds),
        "delta": _deltas(rewards),
        "monitor_delta": _deltas(monitors),
        "prior": dict(zip(names, np.asarray(prior_M, float).tolist(), strict=True)),
        "rewarded": _with_prior(names, prior_M) if rewarded is None else list(rewarded),
        "failures": {"base": _failures(names, base_BM), "evolved": _failures(names, evolved_BM)},
        "pairs": rewards["total"]["pairs"],
        "pairs_dropped": len(base_BM) - rewards["total"]["pairs"],
        "identities": rewards["total"]["identities"],
    }
    return plain(made)


def _monitors(comparing, base: Mapping, evolved: Mapping, videos: int) -> dict[str, dict]:
    """Compare all monitors; one that a side lacks altogether is missing there."""
    nothing_B = np.full(videos, np.nan)
    return {
        name: comparing(base.get(name, nothing_B), evolved.get(name, nothing_B))
        for name in dict.fromkeys([*base, *evolved])
    }


def verdict(summary: Mapping) -> tuple[str, str]:
    """Say what a summary shows, or why it shows nothing.

    Returns:
      (kind, text): kind is "up", "down" or "flat"; text is one or two plain sentences. "flat" is
      also whatever cannot be told: too few identities, too many missing scores, no interval.
    """
    why = _too_few(summary) or _too_much_missing(summary)
    if why:
        return "flat", f"No verdict: {why}."
    low, high = summary.get("delta_total_ci95") or (None, None)
    kind = direction(low, high, summary.get("identities"))
    there = f"on {measured_on(summary)}"
    if low is None or high is None:
        return "flat", "No verdict: there is no interval."
    if kind == "up":
        text = f"The evolved adapter is better {there}: the interval lies above zero."
    elif kind == "down":
        text = f"The evolved adapter is worse {there}: the interval lies below zero."
    else:
        text = f"No clear difference {there}: the interval holds zero."
    if summary.get("heldout") == TRAINED:
        text += " Other people were not measured."
    return kind, text


def direction(low: float | None, high: float | None, identities: int | None) -> str:
    """Return "up" or "down" where the interval excludes zero on enough identities, else "flat"."""
    if low is None or high is None or (identities or 0) < ENOUGH:
        return "flat"
    return "up" if low > 0 else "down" if high < 0 else "flat"


def measured_on(summary: Mapping) -> str:
    """Return what the two arms were compared on, in words that fit after "on"."""
    return summary.get("heldout") or UNKNOWN


def rewarded(summary: Mapping) -> list[str]:
    """Return the rewards that the run learned from."""
    prior = summary.get("prior") or {}
    return summary.get("rewarded") or _with_prior(list(prior), list(prior.values()))


def fallen(summary: Mapping) -> list[str]:
    """Return what clearly fell of what is measured and not rewarded: monitors, and other rewards.

    A reward that rises while they fall was hacked.
    """
    monitors = summary.get("monitor_delta") or {}
    unrewarded = [name for name in summary.get("prior") or {} if name not in rewarded(summary)]
    down = lambda part, name: direction_of(summary, part, name) == "down"
    fallen = [name for name in monitors if down("monitor_delta", name)]
    return fallen + [name for name in unrewarded if down("delta", name)]


def direction_of(summary: Mapping, part: str, name: str) -> str:
    """Return the direction of one reward (part "delta") or monitor (part "monitor_delta")."""
    row = _entry(summary, part, name)
    low, high = row.get("ci95") or (None, None)
    return direction(low, high, row.get("identities", summary.get("identities")))


def _entry(summary, part, name) -> Mapping:
    return (summary.get(part) or {}).get(name) or {}


def _too_few(summary) -> str | None:
    count = summary.get("identities")
    if count is None:
        return f"it is not recorded how many identities there were, and {ENOUGH} are needed"
    if count >= ENOUGH:
        return None
    many = "there was 1 identity" if count == 1 else f"there were {count} identities"
    return f"{many} ({measured_on(summary)}), and {ENOUGH} are needed"


def _too_much_missing(summary) -> str | None:
    """Name the rewards with weight that more than MISSING of the pairs lack in either arm."""
    videos = (summary.get("pairs") or 0) + (summary.get("pairs_dropped") or 0)
    lacking = {}
    for name, prior in (summary.get("prior") or {}).items():
        had = _entry(summary, "delta", name).get("pairs")
        if prior and videos and had is not None and 1 - had / videos > MISSING:
            lacking[name] = 1 - had / videos
    if not lacking:
        return None
    each = ", ".join(f"{name} in {share:.0%}" for name, share in lacking.items())
    return f"scores are missing ({each} of the pairs), more than {MISSING:.0%}"


def write_json(file: str | Path, value) -> Path:
    """Write value as JSON in one piece; NaN and infinity become null. Returns the file."""
    return write_text(file, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def _check_arms(names, base_BM, evolved_BM, cluster_B) -> None:
    """Raise a ValueError where the arguments of `summary` do not fit each other."""
    if base_BM.shape != evolved_BM.shape or base_BM.shape != (len(cluster_B), len(names)):
        expected = f"({len(cluster_B)}, {len(names)})"
        raise ValueError(f"expected scores {expected}; got {base_BM.shape}, {evolved_BM.shape}")
    if "total" in names or len(set(names)) < len(names):
        raise ValueError(f"rewards need names of their own, other than total; got {list(names)}")
    if not all(isinstance(who, str | int | np.integer | np.str_) for who in cluster_B):
        raise ValueError(f"expected an identity, str or int, for each video; got {cluster_B!r:.80}")


def _totals(base_BM, evolved_BM, prior_M) -> tuple[np.ndarray, np.ndarray]:
    """Return both arms' totals (B,); a score that one arm lacks counts in neither.

    Otherwise the two totals would be means over other rewards, and their difference no change.
    """
    both_BM = np.isfinite(base_BM) & np.isfinite(evolved_BM)
    base_B = total(np.where(both_BM, base_BM, np.nan), prior_M)
    return base_B, total(np.where(both_BM, evolved_BM, np.nan), prior_M)


def _clusters(delta_B, cluster_B):
    """Return each cluster's (sum, size), in an order that depends on the values alone.

    Floating-point sums depend on their order, and the draws pick clusters by position: sorted by
    values, the interval is the same for the same pairs in any order and by any names.
    """
    order = np.lexsort((delta_B, cluster_B))
    _, first, size_C = np.unique(cluster_B[order], return_index=True, return_counts=True)
    sum_C = np.add.reduceat(delta_B[order], first)
    order = np.lexsort((size_C, sum_C))
    return sum_C[order], size_C[order]


def _compare(base_B, evolved_B, cluster_B, resamples, seed) -> dict:
    """Return one row of the comparison: means of both arms over the pairs that both have."""
    base_B, evolved_B = np.asarray(base_B, float), np.asarray(evolved_B, float)  # None -> NaN
    keep_B = np.isfinite(base_B) & np.isfinite(evolved_B)
    mean = lambda x_B: float(x_B[keep_B].mean()) if keep_B.any() else float("nan")
    delta, lo, hi = paired_bootstrap(
        base_B, evolved_B, resamples=resamples, seed=seed, cluster_B=cluster_B
    )
    return {
        "base": mean(base_B),
        "evolved": mean(evolved_B),
        "delta": delta,
        "ci95": [lo, hi],
        "pairs": int(keep_B.sum()),
        "identities": len(np.unique(np.asarray(cluster_B)[keep_B])),
    }


def _headline(rewards, monitors) -> dict:
    """Return the means of both arms, and the change of the total with its interval."""
    return {
        "base": _pick(rewards, "base"),
        "evolved": _pick(rewards, "evolved"),
        "delta_total": rewards["total"]["delta"],
        "delta_total_ci95": rewards["total"]["ci95"],
        "monitor": {"base": _pick(monitors, "base"), "evolved": _pick(monitors, "evolved")},
    }


def _with_prior(names, prior_M) -> list[str]:
    return [name for name, prior in zip(names, prior_M, strict=True) if prior > 0]


def _failures(names, scores_BM) -> dict:
    """Return how many videos lack each reward."""
    return dict(zip(names, (~np.isfinite(scores_BM)).sum(0), strict=True))


def _pick(rows, key):
    return {name: row[key] for name, row in rows.items()}


def _deltas(rows):
    return {
        name: {"mean": row["delta"]} | {key: row[key] for key in ("ci95", "pairs", "identities")}
        for name, row in rows.items()
    }
