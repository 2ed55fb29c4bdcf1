"""One arm of a comparison: a model's videos of chosen pairs, with noise of fixed seeds, scored.

The proof (heldout.py) and the watch (watch.py) both compare arms that differ in the adapter alone.

Letters: B videos, P pairs, N seeds of a pair, M rewards, F H W C pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from evoid_jax import distributed, interruption, sharding
from evoid_jax.data import pairs
from evoid_jax.rewards import fuse
from evoid_jax.session import Clock, Run, generate, prepare


class Trial(NamedTuple):
    """What all arms of a comparison share."""

    chosen: list[pairs.Pair]
    each: int  # videos of each pair, N
    seed: int  # of the first video's noise; the next have the next numbers
    shown: int  # pairs of which the first video is kept
    name: str  # of the progress bar


class Arm(NamedTuple):
    """One model's videos and what they scored."""

    shown: list[np.ndarray]  # uint8 FHWC, the first video of the pairs that are kept
    score_BM: np.ndarray
    valid_BM: np.ndarray
    blank_BM: np.ndarray  # see rewards/table.py
    monitor: dict[str, np.ndarray]  # name -> (B,)
    whole: bool = True  # False: no reply had some monitor, so that it is better made again


def start(initial: dict | None, evolving: dict) -> dict:
    """Return the adapter that a run started from.

    Zeros stand for the base alone, which is then run by the evolved model's own program.
    """
    return jax.tree.map(jnp.zeros_like, evolving) if initial is None else initial


class Keeper(Protocol):
    """Whoever keeps the parts of an arm, so that no whole one is made twice; see proof_parts.py."""

    def read(self, number: int, first: int, shown: int) -> Arm | None: ...

    def write(self, number: int, first: int, arm: Arm, seconds: float) -> None: ...


def play(run: Run, trial: Trial, adapter: dict, keeper: Keeper | None = None) -> Arm:
    """Generate and score all of a trial's videos with one adapter.

    keeper: parts that it has are not made again, and their videos not shown.
    """
    parts = list(_parts(run, trial))
    quiet = not distributed.leads()
    bar = tqdm(parts, desc=trial.name, dynamic_ncols=True, leave=False, disable=quiet)
    made = []
    for number, part in enumerate(bar):
        interruption.point()
        arm = keeper.read(number, part.first, part.shown) if keeper else None
        if arm is None:
            began = time.perf_counter()
            arm = _play_part(run, adapter, part)
            if keeper:
                keeper.write(number, part.first, arm, time.perf_counter() - began)
        made.append(arm)
    return _join(made)


def level(base: Arm, evolved: Arm) -> tuple[Arm, Arm]:
    """Count a blank of one arm as 0 where the other has the score: hiding must not pay."""
    arms, videos = (base, evolved), len(base.score_BM)
    score_BM, valid_BM = fuse.fill_blanks(
        np.concatenate([arm.score_BM for arm in arms]),
        np.concatenate([arm.valid_BM for arm in arms]),
        np.concatenate([arm.blank_BM for arm in arms]),
        np.tile(np.arange(videos), 2),
    )
    score_BM = np.where(valid_BM, score_BM, np.nan)
    return base._replace(score_BM=score_BM[:videos]), evolved._replace(score_BM=score_BM[videos:])


def seeds(trial: Trial, first: int, count: int) -> np.ndarray:
    """Return the (count, N) seeds of the trial's pairs from number `first` on."""
    numbers = np.arange(first * trial.each, (first + count) * trial.each, dtype=np.int32)
    return trial.seed + numbers.reshape(count, trial.each)


def triples(videos: int, each: int, shards: int) -> int:
    """Return how many pairs of `each` videos make about `videos`, a multiple of `shards`."""
    whole = shards // math.gcd(shards, each)
    return max(videos // (each * whole), 1) * whole


class _Part(NamedTuple):
    """Some of a trial's pairs, as many as a step of the loop has videos."""

    batch: pairs.PairBatch
    seed_PN: np.ndarray
    first: int  # which of the trial's pairs is its first
    kept: int  # of P; the rest only fills the batch up
    shown: int  # of these, how many first ones are kept


def _parts(run: Run, trial: Trial) -> Iterator[_Part]:
    """Cut a trial into parts of one size, so that one program generates them all."""
    chosen, data = trial.chosen, run.cfg.data
    count = triples(data.pairs * data.seeds, trial.each, sharding.batch_shards(run.mesh))
    for first in range(0, len(chosen), count):
        # The last part is filled up from the front.
        rows = [chosen[(first + i) % len(chosen)] for i in range(count)]
        kept = min(count, len(chosen) - first)
        yield _Part(
            batch=pairs.gather(rows),
            seed_PN=seeds(trial, first, count),
            first=first,
            kept=kept,
            shown=max(min(kept, trial.shown - first), 0),
        )


def _play_part(run: Run, adapter: dict, part: _Part) -> Arm:
    """Generate and score a part with one adapter."""
    batch = prepare(run, part.batch, part.seed_PN, monitors=True, proof=True)
    each = part.seed_PN.shape[1]
    tickets, shown = [], []
    for made in generate(run, adapter, batch, Clock(), run.cfg.guidance.proof):
        tickets.append(run.panel.submit(made.video_BFHWC, batch.request, made.rows))
        first_seeds = each * np.arange(part.shown)
        # one by one: all of them would not fit on every device
        for i in np.flatnonzero(np.isin(made.rows, first_seeds)):
            shown.append(distributed.whole(made.video_BFHWC[i]))
    scores = run.panel.collect(tickets, batch.request)
    videos = part.kept * each
    monitors = run.panel.monitors(batch.request)
    return Arm(
        shown=shown,
        score_BM=scores.score_BM[:videos],
        valid_BM=scores.valid_BM[:videos],
        blank_BM=scores.blank_BM[:videos],
        monitor={name: value_B[:videos] for name, value_B in monitors.items()},
        whole=not batch.request.unseen,
    )


def _join(arms: list[Arm]) -> Arm:
    """Stack the parts of one arm; what a part has no monitor of is NaN."""
    names = dict.fromkeys(name for arm in arms for name in arm.monitor)
    nothing = lambda arm: np.full(len(arm.score_BM), np.nan)
    return Arm(
        shown=[video for arm in arms for video in arm.shown],
        score_BM=np.concatenate([arm.score_BM for arm in arms]),
        valid_BM=np.concatenate([arm.valid_BM for arm in arms]),
        blank_BM=np.concatenate([arm.blank_BM for arm in arms]),
        monitor={
            name: np.concatenate([arm.monitor.get(name, nothing(arm)) for arm in arms])
            for name in names
        },
        whole=all(arm.whole for arm in arms),
    )
