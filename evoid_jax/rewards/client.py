"""Scores from reward sidecars over HTTP (the protocol is in sidecars/wire.py).

B videos, M rewards in the order that is asked for. Sidecars may be replicas (the batch is spread
over them, see delivery.py) or hold different rewards (each is asked for its own). What cannot be
had in time is invalid, with a reason: never a zero, which would read as "bad video". A null that a
sidecar sends is another thing, a blank: it looked and could not measure; see `fuse.fill_blanks`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np

from evoid_jax import media
from evoid_jax.reward_groups import EVOSCORE, JUDGE
from evoid_jax.rewards import background, judge_record, replica, sharing, threads
from evoid_jax.rewards.delivery import Parcel, deliver
from evoid_jax.rewards.sharing import Job
from evoid_jax.rewards.table import ScoreTable
from evoid_jax.rewards.transport import DEFAULTS, Doubtful, Options, SidecarError
from evoid_jax.sidecars import wire

log = logging.getLogger(__name__)
LAST_WORDS = 2.0  # seconds: a judge gives up what is late by itself, and then says what it has
ROUNDING = 1e-3  # a score may leave [0, 1] by this much before it is taken for a mistake


class Scores(NamedTuple):
    """What a batch scored, and what could not be had."""

    names: tuple[str, ...]  # of the M rewards
    table: ScoreTable
    reasons: tuple[dict[str, str], ...]  # per video: the name of a missing reward -> why
    monitor: dict[str, np.ndarray]  # float32 (B,), NaN where unknown; never rewarded
    failed: int  # requests given up on


class Grader(Protocol):
    """Whoever fills the columns `JUDGE` and `EVOSCORE`; see rewards/judge.py."""

    def vqscore(
        self, video_BFHWC: np.ndarray, references: wire.Photos, prompts: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...

    def evoscore(
        self, video_BFHWC: np.ndarray, references: wire.Photos, prompts: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class _Batch(NamedTuple):
    """What is to be scored; each as `score` takes it."""

    video_BFHWC: np.ndarray
    references: wire.Photos
    prompts: list[str]
    attributes: list | None
    others: wire.Photos | None


def score(
    urls: list[str] | tuple[str, ...],
    names: tuple[str, ...],
    video_BFHWC: np.ndarray,
    references: wire.Photos,
    prompts: list[str],
    attributes: list | None = None,
    monitors: bool | tuple[str, ...] = False,
    options: Options = DEFAULTS,
    judge: Grader | None = None,
    judged: tuple[str, ...] = (JUDGE,),
    first: int = 0,
    others: wire.Photos | None = None,
) -> Scores:
    """Score a batch with every sidecar, and the judge if there is one, all at once.

    Args:
      urls: sidecars, such as "http://127.0.0.1:8100".
      names: the M rewards that are wanted, such as `table.names(config.reward.table)`.
      video_BFHWC: uint8.
      references: of each video one or more photos of its person, uint8 (h, w, 3) of any sizes. What
        several videos share should be one array, which a request then carries once.
      prompts: B strings.
      attributes: per video the truth of the tiny world (list of floats) or None; for monitors.
      monitors: ask for the measures that are never rewarded too, of these sidecars or of any.
      judge: who fills the columns `judged`, of which there are JUDGE and EVOSCORE; None: nobody.
      first: which row of its batch the first video is; replicas take turns by it, so that batches
        sent one video at a time do not all begin with the same replica.
      others: of each video other photos of its person, or none; for monitors, sent with them.

    Returns:
      Scores of the B videos: tables (B, M) with raw values in each reward's own unit and scores in
      [0, 1], and a reason wherever one is not valid.

    Raises:
      ValueError: the arguments do not fit each other. Servers' failures never raise.
    """
    urls, batch = _addresses(urls), _Batch(video_BFHWC, references, prompts, attributes, others)
    _check(batch)
    deadline = time.monotonic() + options.timeout
    graded = {
        name: threads.start(_grade, judge, name, video_BFHWC, references, prompts)
        for name in (judged if judge else ())
    }
    rows = range(first, first + len(prompts))
    watchers = (urls if monitors else ()) if isinstance(monitors, bool) else monitors
    jobs, missing, dead = sharing.plan(urls, names, rows, watchers, options, deadline)
    out = _empty(names, len(prompts), missing)
    for url, why in dead.items():
        log.info("sidecar %s: %s", url, why)  # whoever asks tells the reasons

    pack = functools.partial(_pack, batch, fps=options.fps)
    replies = background.run(_deliver_all(jobs, pack, first, options, deadline))
    for job, reply in zip(jobs, replies, strict=True):
        _fill(out, job, reply)
    for name, answer in graded.items():
        _fill_judged(out, name, _answer(answer, deadline, options.timeout))
    return out._replace(failed=len(dead) + sum(isinstance(r, SidecarError) for r in replies))


def info(url: str, options: Options = DEFAULTS) -> dict:
    """Return a sidecar's /info: its preset and rewards with versions and digests.

    What was known of the sidecar before, such as that it is down, is forgotten.

    Raises:
      SidecarError: it does not answer, or not with such an object; call it before training starts.
    """
    return background.run(replica.named(url.rstrip("/")).learn(options))


async def _deliver_all(
    jobs: list[Job], pack: Callable, first: int, options: Options, deadline: float
) -> list[dict | SidecarError]:
    """Deliver all requests at once; return what came of each."""

    def deliver_one(job: Job):
        team = [replica.named(url) for url in job.urls]
        ids = [str(first + b) for b in range(job.start, job.stop)]
        parcel = Parcel(
            ids, pack=functools.partial(pack, job, ids), doubt=functools.partial(_doubt, job)
        )
        return deliver(team, parcel, options, deadline)

    return await asyncio.gather(*map(deliver_one, jobs))


def _pack(batch: _Batch, job: Job, ids: list[str], fps: float) -> wire.Pieces:
    """Write the body of a request, which is about some of a batch's videos."""
    cut = slice(job.start, job.stop)
    write, videos = wire.pieces, batch.video_BFHWC[cut]
    if job.encoding != "raw":
        lossless = job.encoding == "lossless"
        write = wire.pieces_mp4
        videos = [media.encode(video_FHWC, fps, lossless) for video_FHWC in videos]
    others = batch.others[cut] if batch.others and job.monitors else []
    return write(
        videos,
        batch.references[cut],
        list(batch.prompts[cut]),
        attributes=None if batch.attributes is None else list(batch.attributes[cut]),
        rewards=list(job.names),
        monitors=job.monitors,
        fps=fps,
        ids=ids,
        others=others if any(map(len, others)) else None,
    )


def _addresses(urls: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Return sidecars' addresses, each once."""
    if isinstance(urls, str):
        raise ValueError(f"expected a list of addresses, got the string {urls!r}")
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


def _check(batch: _Batch) -> None:
    """Raise a ValueError where the parts of a batch do not fit each other."""
    count, video_BFHWC = len(batch.prompts), batch.video_BFHWC
    if not (_is_rgb(video_BFHWC, 5) and len(video_BFHWC) == count):
        raise ValueError(
            f"video: expected uint8 of rank 5, {count} first (as many as prompts) and 3 last, got "
            f"{video_BFHWC.dtype} {video_BFHWC.shape}"
        )
    _check_photos("references", batch.references, count, least=1)
    if batch.others is not None:
        _check_photos("others", batch.others, count, least=0)
    if batch.attributes is not None and len(batch.attributes) != count:
        raise ValueError(f"expected {count} attributes or None, got {len(batch.attributes)}")


def _check_photos(name: str, photos: wire.Photos, count: int, least: int) -> None:
    if len(photos) != count:
        raise ValueError(f"{name}: expected photos for {count} videos, got {len(photos)}")
    for own in photos:
        wrong = [photo for photo in own if not _is_rgb(photo, 3)]
        if wrong or len(own) < least:
            got = f"{wrong[0].dtype} {wrong[0].shape}" if wrong else "none"
            raise ValueError(f"{name}: expected uint8 photos (h, w, 3) of each video, got {got}")


def _is_rgb(array: np.ndarray, rank: int) -> bool:
    shape = array.shape
    return array.dtype == np.uint8 and len(shape) == rank and shape[-1] == 3 and 0 not in shape


def _empty(names: tuple[str, ...], count: int, missing: dict[str, str]) -> Scores:
    shape = count, len(names)
    nothing = ScoreTable(
        raw_BM=np.full(shape, np.nan, np.float32),
        score_BM=np.full(shape, np.nan, np.float32),
        valid_BM=np.zeros(shape, bool),
        blank_BM=np.zeros(shape, bool),
    )
    reasons = tuple(dict(missing) for _ in range(count))
    return Scores(names, nothing, reasons, monitor={}, failed=0)


def _fill(out: Scores, job: Job, reply: dict | SidecarError) -> None:
    """Enter one reply's scores; a malformed column is invalid, the others stay."""
    if isinstance(reply, SidecarError):
        log.info("videos %d..%d not scored: %s", job.start, job.stop - 1, reply)
    for name in job.names:
        try:
            if isinstance(reply, SidecarError):
                raise reply
            column = _column(reply, name, job.stop - job.start)
            _enter(out, name, job.start, column)
        except SidecarError as error:
            for b in range(job.start, job.stop):
                out.reasons[b][name] = str(error)
    if job.monitors and isinstance(reply, dict):
        _fill_monitors(out, job, reply.get("monitor"))


def _fill_monitors(out: Scores, job: Job, monitor) -> None:
    """Enter one reply's monitors; a malformed one stays unknown, since nothing hangs on it."""
    if not isinstance(monitor, dict):
        return
    for name, values in monitor.items():
        column = out.monitor.setdefault(name, np.full(len(out.reasons), np.nan, np.float32))
        try:
            column[job.start : job.stop] = _numbers(values, f"monitor {name}", job.stop - job.start)
        except SidecarError as error:
            log.warning("%s", error)


def _doubt(job: Job, reply: dict) -> None:
    """Raise Doubtful where a column is malformed, or holds what cannot be."""
    for name in job.names:
        try:
            column = _column(reply, name, job.stop - job.start)
        except SidecarError as error:
            raise Doubtful(str(error)) from error
        entry = reply["scores"][name]
        sent = [value for value in (*entry["raw"], *entry["score"]) if value is not None]
        if not np.isfinite(np.array(sent, float)).all():
            raise Doubtful(f"{name}: the sidecar sent a number that is not finite")
        if _outside(column.score_b).any():
            raise Doubtful(f"{name}: the sidecar sent a score outside 0..1")


def _outside(score: np.ndarray) -> np.ndarray:
    """Tell which scores cannot be; NaN is not told of."""
    return (score < -ROUNDING) | (score > 1 + ROUNDING)


class _Column(NamedTuple):
    """One reward of some videos, as it was sent; NaN for null."""

    raw_b: np.ndarray
    score_b: np.ndarray
    reasons: list
    excused: list[bool]  # a null here is no fault of the video's


def _column(reply: dict, name: str, count: int) -> _Column:
    """Read one reward of a reply.

    Raises:
      SidecarError: the reply has no such reward, or not one number or null per video.
    """
    scores = reply.get("scores")
    entry = scores.get(name) if isinstance(scores, dict) else None
    if not isinstance(entry, dict):
        had = sorted(scores) if isinstance(scores, dict) else type(scores).__name__
        raise SidecarError(f"the reply has no scores for {name}, only {had}")
    reasons = entry.get("reason") or [None] * count
    if not isinstance(reasons, list) or len(reasons) != count:
        raise SidecarError(f"{name}: expected {count} reasons, got {reasons!r:.80}")
    excused = entry.get("excused") or [False] * count
    if not isinstance(excused, list) or [type(one) for one in excused] != [bool] * count:
        raise SidecarError(f"{name} excused: expected {count} booleans, got {excused!r:.80}")
    return _Column(
        raw_b=_numbers(entry.get("raw"), f"{name} raw", count),
        score_b=_numbers(entry.get("score"), f"{name} score", count),
        reasons=reasons,
        excused=excused,
    )


def _numbers(values, what: str, count: int) -> np.ndarray:
    """Return float32 (count,), NaN for null; `what` names them in the SidecarError."""
    good = isinstance(values, list) and all(
        v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values
    )
    if not good or len(values) != count:
        got = f"{len(values)}" if good else f"{values!r:.80}"
        raise SidecarError(f"{what}: expected {count} numbers or nulls, got {got}")
    try:
        return np.array([math.nan if v is None else float(v) for v in values]).astype(np.float32)
    except OverflowError as error:  # JSON knows no largest integer
        raise SidecarError(f"{what}: a number beyond all floats") from error


def _enter(out: Scores, name: str, start: int, column: _Column) -> None:
    """Enter one reward's scores of the videos from `start` on, each with its own check."""
    m = out.names.index(name)
    for i, (raw, value) in enumerate(zip(column.raw_b, column.score_b, strict=True)):
        b = start + i
        if not (np.isfinite(raw) and np.isfinite(value)):
            reason = column.reasons[i] or "the sidecar sent no number and no reason"
            out.reasons[b][name] = str(reason)
            out.table.blank_BM[b, m] = not column.excused[i]
        elif _outside(value):
            out.reasons[b][name] = f"the sidecar sent a score of {value:g}, outside 0..1"
        else:
            out.table.raw_BM[b, m] = raw
            out.table.score_BM[b, m] = np.clip(value, 0, 1)
            out.table.valid_BM[b, m] = True
            out.reasons[b].pop(name, None)


def _answer(graded: Future, deadline: float, timeout: float):
    """Return what the judge said, or that it said nothing in time."""
    try:
        return graded.result(max(0.0, deadline - time.monotonic()) + LAST_WORDS)
    except TimeoutError:
        return f"the judge gave no answer in {timeout:g} s"


def _grade(judge: Grader, name: str, video_BFHWC, references, prompts):
    """Return the judge's (raw_B, score_B, valid_B) of one of its columns, or why there are none."""
    try:
        ask = judge.evoscore if name == EVOSCORE else judge.vqscore
        return ask(video_BFHWC, references, list(prompts))
    except Exception as error:  # a judge must not take the objective rewards with it
        log.exception("the judge failed")
        return f"the judge failed: {error}"


def _fill_judged(out: Scores, name: str, graded) -> None:
    """Enter what `_grade` returned."""
    count = len(out.reasons)
    if isinstance(graded, str):
        for reasons in out.reasons:
            reasons[name] = graded
        return
    raw_B, score_B, valid_B = (np.asarray(x) for x in graded)
    column = _Column(
        raw_b=raw_B,
        score_b=np.where(valid_B, score_B, np.nan),  # NaN is what `_enter` takes for missing
        reasons=[f"the judge gave no usable answer; its replies are in logs/{judge_record.FILE}"]
        * count,
        excused=[True] * count,  # it can grade any video: none is to blame
    )
    _enter(out, name, 0, column)
