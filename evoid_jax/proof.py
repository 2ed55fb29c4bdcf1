"""Held-out statistics: did the evolved adapter do better on the same (identity, prompt, seed)?

Shape key: B held-out videos, M rewards. All numpy, float64. A missing score is NaN.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evoid_jax.metrics import plain, write_text


def total(scores_BM, prior_M) -> np.ndarray:
    """Average each video's absolute scores by prior, over the scores it has.

    scores_BM: [0, 1] or NaN. prior_M: non-negative, any scale. Returns total_B in [0, 1], NaN
    where a video has no score with a positive prior. Raises ValueError on shapes and priors.
    """
    scores_BM, prior_M = np.asarray(scores_BM, float), np.asarray(prior_M, float)
    if scores_BM.ndim != 2 or prior_M.shape != scores_BM.shape[1:]:
        raise ValueError(
            f"expected scores (B, M), prior (M,); got {scores_BM.shape}, {prior_M.shape}"
        )
    if not (np.all(prior_M >= 0) and prior_M.sum() > 0):
        raise ValueError(f"expected non-negative priors, not all zero; got {prior_M.tolist()}")
    weight_BM = np.where(np.isfinite(scores_BM), prior_M[None, :], 0.0)
    mass_B = weight_BM.sum(1)
    sum_B = (weight_BM * np.nan_to_num(scores_BM, posinf=0.0, neginf=0.0)).sum(1)
    return np.divide(sum_B, mass_B, out=np.full(len(mass_B), np.nan), where=mass_B > 0)


def paired_bootstrap(
    base_B, evolved_B, resamples: int = 10_000, seed: int = 0, cluster_B=None
) -> tuple[float, float, float]:
    """Estimate mean(evolved - base) with a 95 % percentile interval.

    Whole clusters are drawn with replacement (cluster_B: identity of each pair; None: each pair
    alone), because two seeds of one face are not two independent observations. Pairs with a NaN
    are dropped. Returns (delta, lo, hi): all NaN if no pair is left, lo and hi NaN if all pairs
    are of one cluster, which says nothing about others. Neither the order of the pairs nor the
    names of the clusters matter. Source: Efron and Tibshirani 1993, chapters 8 and 13.
    """
    base_B, evolved_B = np.asarray(base_B, float), np.asarray(evolved_B, float)
    cluster_B = np.arange(len(base_B)) if cluster_B is None else np.asarray(cluster_B)
    if not base_B.shape == evolved_B.shape == cluster_B.shape or base_B.ndim != 1:
        shapes = base_B.shape, evolved_B.shape, cluster_B.shape
        raise ValueError(f"expected base, evolved, cluster of one shape (B,); got {shapes}")
    keep_B = np.isfinite(base_B) & np.isfinite(evolved_B)
    if not keep_B.any():
        return (float("nan"),) * 3
    sum_C, size_C = _clusters((evolved_B - base_B)[keep_B], cluster_B[keep_B])
    delta = float(sum_C.sum() / size_C.sum())
    if len(sum_C) == 1:
        return delta, float("nan"), float("nan")
    rng, draws = np.random.default_rng(seed), []
    for first in range(0, resamples, 1000):  # blocks bound the memory for many identities
        pick = rng.integers(len(sum_C), size=(min(1000, resamples - first), len(sum_C)))
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
) -> dict:
    """Assemble summary.json from the absolute scores of the same B held-out triples.

    names: M rewards. base_BM, evolved_BM: [0, 1] or NaN. cluster_B: identity of each video.
    monitor_*: name -> B values, None or NaN where missing; never rewarded. A score counts only
    where both arms have it, so that evolved - base = delta for every reward and for the total.
    """
    base_BM, evolved_BM = np.asarray(base_BM, float), np.asarray(evolved_BM, float)
    if base_BM.shape != evolved_BM.shape or base_BM.shape != (len(cluster_B), len(names)):
        expected = f"({len(cluster_B)}, {len(names)})"
        raise ValueError(f"expected scores {expected}; got {base_BM.shape}, {evolved_BM.shape}")
    both_BM = np.isfinite(base_BM) & np.isfinite(evolved_BM)
    compare = lambda base_B, evolved_B: _compare(base_B, evolved_B, cluster_B, resamples, seed)
    rewards = {name: compare(base_BM[:, m], evolved_BM[:, m]) for m, name in enumerate(names)} | {
        "total": compare(
            total(np.where(both_BM, base_BM, np.nan), prior_M),
            total(np.where(both_BM, evolved_BM, np.nan), prior_M),
        )
    }
    monitors = {name: compare(monitor_base[name], monitor_evolved[name]) for name in monitor_base}
    of_total = rewards["total"]
    return plain(
        {
            "base": _pick(rewards, "base"),
            "evolved": _pick(rewards, "evolved"),
            "delta_total": of_total["delta"],
            "delta_total_ci95": of_total["ci95"],
            "monitor": {"base": _pick(monitors, "base"), "evolved": _pick(monitors, "evolved")},
            "steps": int(steps),
            "seconds": dict(seconds),
            "delta": _deltas(rewards),
            "monitor_delta": _deltas(monitors),
            "prior": dict(zip(names, np.asarray(prior_M, float).tolist(), strict=True)),
            "failures": {
                "base": dict(zip(names, (~np.isfinite(base_BM)).sum(0), strict=True)),
                "evolved": dict(zip(names, (~np.isfinite(evolved_BM)).sum(0), strict=True)),
            },
            "pairs": of_total["pairs"],
            "pairs_dropped": len(base_BM) - of_total["pairs"],
            "identities": len(set(np.asarray(cluster_B).tolist())),
        }
    )


def write_json(file: str | Path, value) -> Path:
    """Write value as JSON in one piece; NaN and infinity become null."""
    return write_text(file, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def _clusters(delta_B, cluster_B):
    """Return each cluster's (sum, size), in an order that depends on the values alone."""
    order = np.lexsort((delta_B, cluster_B))
    _, first, size_C = np.unique(cluster_B[order], return_index=True, return_counts=True)
    sum_C = np.add.reduceat(delta_B[order], first)
    order = np.lexsort((size_C, sum_C))
    return sum_C[order], size_C[order]


def _compare(base_B, evolved_B, cluster_B, resamples, seed):
    base_B, evolved_B = np.asarray(base_B, float), np.asarray(evolved_B, float)  # None -> NaN
    keep_B = np.isfinite(base_B) & np.isfinite(evolved_B)
    mean = lambda x_B: float(x_B[keep_B].mean()) if keep_B.any() else float("nan")
    delta, lo, hi = paired_bootstrap(base_B, evolved_B, resamples, seed, cluster_B)
    return {
        "base": mean(base_B),
        "evolved": mean(evolved_B),
        "delta": delta,
        "ci95": [lo, hi],
        "pairs": int(keep_B.sum()),
    }


def _pick(rows, key):
    return {name: row[key] for name, row in rows.items()}


def _deltas(rows):
    return {
        name: {"mean": row["delta"], "ci95": row["ci95"], "pairs": row["pairs"]}
        for name, row in rows.items()
    }
