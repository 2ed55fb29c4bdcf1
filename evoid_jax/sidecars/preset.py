"""What a preset is: named rewards and monitors over one kind of prepared clips; and the reply.

Letters: B videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from evoid_jax.sidecars.wire import Batch


class Column(NamedTuple):
    """One reward of B videos; NaN where it could not be had, with a reason."""

    raw_B: np.ndarray
    score_B: np.ndarray  # in [0, 1]
    reasons: list[str | None]


class Reward(NamedTuple):
    """A reward or a monitor, and what /info says of it."""

    name: str
    version: str
    sha256: str
    about: str
    score: Callable[[Any], Column]  # prepared clips -> Column; may raise


class Preset(NamedTuple):
    """`prepare` yields (indices into the batch, clips) groups whose videos have equal shapes."""

    name: str
    rewards: tuple[Reward, ...]
    monitors: tuple[Reward, ...]
    prepare: Callable[[Batch], Iterable[tuple[list[int], Any]]]


def info(preset: Preset) -> dict:
    """Return the reply of GET /info."""
    fields = ("name", "version", "sha256", "about")
    rewards = [{key: getattr(r, key) for key in fields} for r in preset.rewards]
    monitors = [m.name for m in preset.monitors]
    return {"preset": preset.name, "rewards": rewards, "monitors": monitors}


def answer(preset: Preset, batch: Batch) -> dict:
    """Return the reply of POST /score. A score that cannot be had is null with a reason.

    Raises:
      ValueError: the request names a reward that this preset lacks.
    """
    start = time.perf_counter()
    rewards = _chosen(preset, batch.rewards)
    monitors = preset.monitors if batch.monitors else ()
    count = len(batch.videos)
    columns = {r.name: _empty(count, batch.reasons) for r in (*rewards, *monitors)}
    for indices, clips in preset.prepare(batch):
        for reward in (*rewards, *monitors):
            part = _attempt(reward, clips, len(indices))
            for k, i in enumerate(indices):
                columns[reward.name].raw_B[i] = part.raw_B[k]
                columns[reward.name].score_B[i] = part.score_B[k]
                columns[reward.name].reasons[i] = part.reasons[k]
    return {
        "scores": {r.name: _json(columns[r.name]) for r in rewards},
        "monitor": {m.name: _json(columns[m.name])["score"] for m in monitors},
        "seconds": round(time.perf_counter() - start, 4),
    }


def _chosen(preset: Preset, names: list[str] | None) -> tuple[Reward, ...]:
    have = {r.name: r for r in preset.rewards}
    unknown = sorted(set(names or ()) - set(have))
    if unknown:
        raise ValueError(f"preset {preset.name} has no reward {unknown[0]!r}; it has {list(have)}")
    return preset.rewards if names is None else tuple(have[n] for n in dict.fromkeys(names))


def _empty(count: int, reasons: list[str | None]) -> Column:
    nothing = [r or "the preset skipped this video" for r in reasons]
    return Column(np.full(count, np.nan), np.full(count, np.nan), nothing)


def _attempt(reward: Reward, clips: Any, count: int) -> Column:
    """Score, and turn an exception or a value that is not a number into a reason."""
    try:
        raw_B, score_B, reasons = reward.score(clips)
        if np.shape(raw_B) != (count,) or np.shape(score_B) != (count,):
            raise ValueError(f"{np.shape(raw_B)} values for {count} videos")
    except Exception as error:  # a reward may fail in any way; the others must still answer
        return _empty(count, [f"{reward.name}: {type(error).__name__}: {error}"] * count)
    finite_B = np.isfinite(raw_B) & np.isfinite(score_B)
    raw_B, score_B = (np.where(finite_B, x, np.nan).astype(np.float64) for x in (raw_B, score_B))
    worded = [r or f"{reward.name}: not a finite number" for r in reasons]
    reasons = [None if ok else r for ok, r in zip(finite_B, worded, strict=True)]
    return Column(raw_B, score_B, reasons)


def _json(column: Column) -> dict:
    raw, score = (
        [round(float(x), 6) if np.isfinite(x) else None for x in values]
        for values in (column.raw_B, column.score_B)
    )
    return {"raw": raw, "score": score, "reason": column.reasons}
