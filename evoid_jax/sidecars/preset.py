"""What a preset is: named rewards and monitors over one kind of prepared clips; and the reply.

Letters: B videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from evoid_jax.sidecars.wire import FORMATS, ScoreRequest


class Column(NamedTuple):
    """One reward of B videos; NaN where it could not be had, with a reason."""

    raw_B: np.ndarray  # in the reward's own unit
    score_B: np.ndarray  # in [0, 1]
    reasons: list[str | None]
    # Which NaN are no fault of the video's. Any other is a blank: the scorer looked at the video,
    # and it does not show what is measured; beside videos that do, it counts as 0.
    excused: list[bool] | None = None  # None: none of them


class Scorer(NamedTuple):
    """A reward or a monitor, and what /info says of it."""

    name: str
    version: str
    sha256: str  # of its weights, or of its code where that is all there is
    description: str
    score: Callable[[Any], Column]  # prepared clips -> Column; may raise


class Preset(NamedTuple):
    """`prepare` yields (indices into the batch, clips) groups whose videos have equal shapes."""

    name: str
    rewards: tuple[Scorer, ...]
    monitors: tuple[Scorer, ...]
    prepare: Callable[[ScoreRequest], Iterable[tuple[list[int], Any]]]
    # How many videos the nets take at once: larger requests are cut, small ones that wait are put
    # together. None: every request is taken as it came.
    together: int | None = None
    # A photo, uint8 (h, w, 3), -> what keeps it from being a reference, such as "no face", or "".
    # Asked of one photo at a time, maybe while another thread scores: it needs nets of its own.
    check_photo: Callable[[np.ndarray], str] | None = None  # None: this preset cannot tell


# Told after every scorer's work: its name, how many seconds it took, for how many videos.
Told = Callable[[str, float, int], None]


def info(preset: Preset) -> dict:
    """Return the reply of GET /info."""
    rewards = [
        {"name": r.name, "version": r.version, "sha256": r.sha256, "about": r.description}
        for r in preset.rewards
    ]
    return {
        "preset": preset.name,
        "rewards": rewards,
        "monitors": [m.name for m in preset.monitors],
        "formats": list(FORMATS),
        "together": preset.together,
        "photos": preset.check_photo is not None,
    }


def look(preset: Preset, photos: list[np.ndarray]) -> dict:
    """Return the reply of POST /photos.

    Raises:
      ValueError: this preset cannot tell.
    """
    if preset.check_photo is None:
        raise ValueError(f"preset {preset.name} does not look at photos; see /info")
    return {"problems": [preset.check_photo(photo) or None for photo in photos]}


def answer(preset: Preset, request: ScoreRequest, told: Told = lambda *_: None) -> dict:
    """Return the reply of POST /score. A score that cannot be had is null with a reason.

    Raises:
      ValueError: the request names a reward that this preset lacks.
    """
    start = time.perf_counter()
    rewards = chosen(preset, request.rewards)
    monitors = preset.monitors if request.monitors else ()
    count = len(request.videos)
    # Every column starts without a score: a video that no group holds keeps its reason.
    columns = {s.name: _empty(count, request.reasons) for s in (*rewards, *monitors)}
    for indices, clips in preset.prepare(request):
        for scorer in (*rewards, *monitors):
            began = time.perf_counter()
            part = _attempt(scorer, clips, len(indices))
            told(scorer.name, time.perf_counter() - began, len(indices))
            whole = columns[scorer.name]
            for k, i in enumerate(indices):
                whole.raw_B[i] = part.raw_B[k]
                whole.score_B[i] = part.score_B[k]
                whole.reasons[i] = part.reasons[k]
                whole.excused[i] = part.excused[k]
    return {
        "scores": {r.name: _json(columns[r.name]) for r in rewards},
        "monitor": {m.name: _json(columns[m.name])["score"] for m in monitors},
        "seconds": round(time.perf_counter() - start, 4),
    }


def chosen(preset: Preset, names: list[str] | None) -> tuple[Scorer, ...]:
    """Return the rewards of these names, each once; None is all.

    Raises:
      ValueError: the preset has no reward of one of these names.
    """
    have = {r.name: r for r in preset.rewards}
    unknown = sorted(set(names or ()) - set(have))
    if unknown:
        raise ValueError(f"preset {preset.name} has no reward {unknown[0]!r}; it has {list(have)}")
    return preset.rewards if names is None else tuple(have[n] for n in dict.fromkeys(names))


def _empty(count: int, reasons: list[str | None]) -> Column:
    return Column(
        raw_B=np.full(count, np.nan),
        score_B=np.full(count, np.nan),
        reasons=[reason or "the preset skipped this video" for reason in reasons],
        excused=[True] * count,
    )


def _attempt(scorer: Scorer, clips: Any, count: int) -> Column:
    """Score, and turn an exception or a value that is not a number into a reason."""
    try:
        raw_B, score_B, reasons, excused = scorer.score(clips)
        if np.shape(raw_B) != (count,) or np.shape(score_B) != (count,):
            raise ValueError(f"{np.shape(raw_B)} values for {count} videos")
    except Exception as error:  # a reward may fail in any way; the others must still answer
        return _empty(count, [f"{scorer.name}: {type(error).__name__}: {error}"] * count)
    finite_B = np.isfinite(raw_B) & np.isfinite(score_B)
    raw_B, score_B = (np.where(finite_B, x, np.nan).astype(np.float64) for x in (raw_B, score_B))
    # A score has no reason, no score always has one: clients may rely on either.
    worded = [reason or f"{scorer.name}: not a finite number" for reason in reasons]
    reasons = [None if ok else reason for ok, reason in zip(finite_B, worded, strict=True)]
    excused = excused or [False] * count
    return Column(raw_B=raw_B, score_B=score_B, reasons=reasons, excused=excused)


def _json(column: Column) -> dict:
    # JSON has no NaN, though Python writes one: null is what other languages read.
    raw, score = (
        [round(float(x), 6) if np.isfinite(x) else None for x in values]
        for values in (column.raw_B, column.score_B)
    )
    return {"raw": raw, "score": score, "reason": column.reasons, "excused": column.excused}
