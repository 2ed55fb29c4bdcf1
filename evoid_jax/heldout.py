"""The proof: base against evolved on pairs that training never saw, with the same noise.

Letters: B videos, P pairs, N seeds of a pair, M rewards, R reference frames, T H W C latents.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from evoid_jax import distributed, evolve, media, proof, sharding
from evoid_jax.data import pairs
from evoid_jax.rewards import blend, fuse, table
from evoid_jax.session import Clock, Run, generate, prepare

SHOWN = 12  # held-out videos that are kept as mp4
SEED = 2**20  # held-out seeds start here, the same for every run


class Arm(NamedTuple):
    """One model's held-out videos and what they scored."""

    shown: list[np.ndarray]  # FHWC, the first seed of the pairs that are kept as mp4
    score_BM: np.ndarray
    valid_BM: np.ndarray
    blank_BM: np.ndarray  # see rewards/table.py
    monitor: dict[str, np.ndarray]


def triples(videos: int, each: int, shards: int) -> int:
    """Return how many pairs of `each` videos make about `videos`, a multiple of `shards`."""
    whole = shards // math.gcd(shards, each)
    return max(videos // (each * whole), 1) * whole


def prove(run: Run, state: evolve.State, began: float) -> dict:
    """Generate the same held-out triples with the base and the evolved model, and compare.

    Writes summary.json and samples/.

    Args:
      state: of the evolved model.
      began: the `time.perf_counter()` of the run's start.

    Returns:
      What summary.json holds; see `proof.summary`.
    """
    start = time.perf_counter()
    data = run.heldout
    rows = pairs.spread(data.identities, run.cfg.data.heldout_identities)
    chosen = [data[row] for row in rows]
    base, evolved = compare(run, chosen, state.evolving)
    now = time.perf_counter()
    summary = proof.summary(
        table.names(run.cfg.reward.table),
        blend.proof_priors(run.cfg.reward),
        base.score_BM,
        evolved.score_BM,
        cluster_B=np.repeat([pair.identity for pair in chosen], run.cfg.data.heldout_seeds),
        monitor_base=base.monitor,
        monitor_evolved=evolved.monitor,
        steps=int(state.step),
        seconds={"heldout": now - start, "total": now - began},
        heldout=data.kind,
    )
    if distributed.leads():
        proof.write_json(run.workdir / "summary.json", summary)
        write_samples(run, chosen, base.shown, evolved.shown)
    return summary


def compare(run: Run, chosen: list[pairs.Pair], evolving: dict) -> tuple[Arm, Arm]:
    """Generate and score all chosen pairs with the base and with the evolved adapter."""
    cfg, each = run.cfg, run.cfg.data.heldout_seeds
    zero = jax.tree.map(jnp.zeros_like, evolving)  # the base, by the evolved model's own program
    count = triples(cfg.data.pairs * cfg.data.seeds, each, sharding.batch_shards(run.mesh))
    base, evolved = [], []
    starts = range(0, len(chosen), count)
    quiet = not distributed.leads()
    for start in tqdm(starts, desc="held-out", dynamic_ncols=True, disable=quiet):
        # The last batch is filled up from the front: every batch has one shape, one program.
        rows = [chosen[(start + i) % len(chosen)] for i in range(count)]
        part = HeldoutPart(
            batch=pairs.gather(rows),
            seed_PN=seeds(start, count, each),
            kept=min(count, len(chosen) - start),
            shown=max(min(count, len(chosen) - start, SHOWN - start), 0),
        )
        base.append(play(run, zero, part))
        evolved.append(play(run, evolving, part))
    return level(join(base), join(evolved))


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


class HeldoutPart(NamedTuple):
    """Some held-out pairs."""

    batch: pairs.PairBatch
    seed_PN: np.ndarray
    kept: int  # of P; the rest only fills the batch up
    shown: int  # of these, how many first ones are kept as mp4


def play(run: Run, adapter: dict, part: HeldoutPart) -> Arm:
    """Generate and score a part with one adapter."""
    batch = prepare(run, part.batch, part.seed_PN, monitors=True, proof=True)
    each = part.seed_PN.shape[1]
    tickets, shown = [], []
    for made in generate(run, adapter, batch, Clock()):
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
    )


def seeds(first: int, count: int, each: int) -> np.ndarray:
    """Return (count, each) seeds of the held-out pairs from `first` on."""
    seed_PN = SEED + np.arange(first * each, (first + count) * each, dtype=np.int32)
    return seed_PN.reshape(count, each)


def join(arms: list[Arm]) -> Arm:
    """Stack the parts of one arm."""
    names = arms[0].monitor
    return Arm(
        shown=[video for arm in arms for video in arm.shown],
        score_BM=np.concatenate([arm.score_BM for arm in arms]),
        valid_BM=np.concatenate([arm.valid_BM for arm in arms]),
        blank_BM=np.concatenate([arm.blank_BM for arm in arms]),
        monitor={name: np.concatenate([arm.monitor[name] for arm in arms]) for name in names},
    )


def write_samples(
    run: Run, chosen: list[pairs.Pair], base: list[np.ndarray], evolved: list[np.ndarray]
) -> None:
    """Keep the first seed of the first pairs as mp4, with their faces and a list of them."""
    folder: Path = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for k, pair in enumerate(chosen[:SHOWN]):
        name = f"heldout_{k:02d}"
        for role, video_FHWC in (("base", base[k]), ("evolved", evolved[k])):
            media.write(folder / f"{name}_{role}.mp4", video_FHWC, run.cfg.video.fps)
        media.write_image(folder / f"{name}_reference.png", pair.images[0])
        seed = int(seeds(k, 1, run.cfg.data.heldout_seeds)[0, 0])
        entries.append({"k": k, "prompt": pair.prompt, "identity": pair.identity, "seed": seed})
    proof.write_json(folder / "heldout.json", entries)
