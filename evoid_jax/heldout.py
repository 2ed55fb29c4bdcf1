"""Generate and score videos on the mesh, and the proof: base against evolved on unseen faces.

Letters: B videos, P pairs, N seeds of a pair, M metrics, R reference frames, T H W C latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from evoid_jax import distributed, media, proof, rollout, sharding
from evoid_jax.data import pairs
from evoid_jax.models import lora
from evoid_jax.rewards import panel, table

SHOWN = 12  # held-out videos that are kept as mp4
SEED = 2**20  # held-out seeds start here, the same for every run


_merge = jax.jit(lora.merge)


class Prepared(NamedTuple):
    """A batch of pairs, ready to be generated from."""

    text_PSE: jax.Array
    null_1SE: jax.Array
    control_PTHWC: jax.Array
    pair_B: np.ndarray
    seed_B: np.ndarray
    references: int  # R
    request: panel.Request


def prepare(run, batch: pairs.Batch, seed_PN: np.ndarray) -> Prepared:
    """Encode prompts and faces once per pair, and tell the panel what is coming.

    Raises:
      ValueError: the pairs have different numbers of reference images.
    """
    cfg, v = run.cfg, run.cfg.video
    counts = {len(images) for images in batch.images}
    if len(counts) > 1:
        raise ValueError(
            f"pairs of one step need as many images each, got {sorted(counts)}; give every line "
            "of prompts.jsonl as many images"
        )
    each = seed_PN.shape[1]
    pair_B = np.repeat(np.arange(len(batch.prompts), dtype=np.int32), each)
    text = rollout.encode_text(run.frozen, batch.prompts, run.text_rows)
    null = rollout.encode_text(run.frozen, [cfg.rollout.negative_prompt], run.text_rows)
    size = v.frames, v.height, v.width
    control = rollout.control(run.frozen, batch.images, *size, cfg.rollout.reference_order)
    faces = [rollout.on_canvas(images[0], v.height, v.width) for images in batch.images]
    faces = np.round((np.stack(faces) + 1) * 127.5).astype(np.uint8)
    truth = None if batch.attributes is None else [batch.attributes[p].tolist() for p in pair_B]
    request = panel.Request(faces[pair_B], [batch.prompts[p] for p in pair_B], truth)
    run.panel.begin(request)
    placed = sharding.replicate((text, null, control), run.mesh)
    return Prepared(*placed, pair_B, seed_PN.reshape(-1), counts.pop(), request)


def parts(run, batch: Prepared) -> Iterator[np.ndarray]:
    """Yield the videos' indices, as many at a time as the mesh holds."""
    videos = len(batch.pair_B)
    count = sharding.parts_of(videos, run.cfg.rollout.videos_per_device, run.mesh)
    yield from np.split(np.arange(videos, dtype=np.int32), count)


def sample(run, adapter, batch: Prepared, rows: np.ndarray) -> jax.Array:
    """Generate one part's latents, reference frames first, with `adapter` on the base."""
    v = run.cfg.video
    shape = rollout.latent_shape(run.frozen, v.frames, v.height, v.width, batch.references)
    seed_B, pair_B = sharding.place_batch((batch.seed_B[rows], batch.pair_B[rows]), run.mesh)
    base = run.frozen.wan_params
    if run.cfg.dtype == "float32":  # saves the adapter's matmuls; in bfloat16 it would round it off
        base, adapter = _merge(base, adapter, run.frozen.wan.lora_scale), None
    return rollout.sample(
        run.frozen.wan,
        base,
        adapter,
        batch.text_PSE[pair_B],
        batch.null_1SE,
        batch.control_PTHWC[pair_B],
        rollout.noise(seed_B, shape),
        run.solver,
        run.cfg.rollout.guidance,
        run.cfg.rollout.split,
    )


def collect(run, tickets: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wait for all videos' scores: raw_BM, score_BM (NaN where missing) and valid_BM."""
    found = [distributed.whole(run.panel.collect(ticket)) for ticket in tickets]
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


# --- the proof


class Scored(NamedTuple):
    """One model's held-out videos and what they scored."""

    shown: list[np.ndarray]  # FHWC, the first seed of the pairs that are kept as mp4
    score_BM: np.ndarray
    monitor: dict[str, np.ndarray]


def triples(videos: int, each: int, shards: int) -> int:
    """Return how many pairs of `each` videos make about `videos`, a multiple of `shards`."""
    whole = shards // math.gcd(shards, each)
    return max(videos // (each * whole), 1) * whole


def prove(run, state, began: float) -> dict:
    """Generate the same held-out triples with the base and the evolved model, and compare.

    Writes summary.json and samples/. A user's own folder has no held-out faces: its own are taken,
    with seeds that training never used.
    """
    cfg, start = run.cfg, time.perf_counter()
    cache = str(Path(cfg.data.cache).expanduser())
    with distributed.leader_first():
        data = pairs.open_pairs(cfg.data.source, cfg.data.dir, "heldout", 0, cache)
    chosen = [data[i] for i in range(min(cfg.data.heldout_identities, len(data)))]
    zero = jax.tree.map(jnp.zeros_like, state.evolving)
    base, evolved = [], []
    each = cfg.data.heldout_seeds
    count = triples(cfg.data.pairs * cfg.data.seeds, each, sharding.batch_shards(run.mesh))
    starts = range(0, len(chosen), count)
    quiet = not distributed.leads()
    for at in tqdm(starts, desc="held-out", dynamic_ncols=True, disable=quiet):
        rows = [chosen[(at + i) % len(chosen)] for i in range(count)]
        given = _batch(rows, at), _seeds(at, count, each), min(count, len(chosen) - at), SHOWN - at
        base.append(_generate(run, zero, *given))
        evolved.append(_generate(run, state.evolving, *given))
    base, evolved = _join(base), _join(evolved)
    cluster_B = np.repeat([row.name.split("-")[0] for row in chosen], each)
    now = time.perf_counter()
    found = proof.summary(
        table.NAMES,
        table.arrays()[0],
        base.score_BM,
        evolved.score_BM,
        cluster_B,
        base.monitor,
        evolved.monitor,
        int(state.step),
        {"heldout": now - start, "total": now - began},
    )
    found["heldout"] = "training pairs, new seeds" if cfg.data.dir else "unseen identities"
    if distributed.leads():
        proof.write_json(run.workdir / "summary.json", found)
        _write_samples(run, chosen, base.shown, evolved.shown)
    return found


def _batch(rows: list[pairs.Pair], first: int) -> pairs.Batch:
    known = all(row.attributes is not None for row in rows)
    return pairs.Batch(
        [row.images for row in rows],
        [row.prompt for row in rows],
        np.stack([row.attributes for row in rows]) if known else None,
        np.arange(first, first + len(rows)),
    )


def _seeds(first: int, count: int, each: int) -> np.ndarray:
    seed_PN = SEED + np.arange(first * each, (first + count) * each, dtype=np.int32)
    return seed_PN.reshape(count, each)


def _generate(run, adapter, batch: pairs.Batch, seed_PN, count: int, show: int) -> Scored:
    """Generate and score; keep the first `count` pairs, and videos of the first `show` of them."""
    ready, each = prepare(run, batch, seed_PN), seed_PN.shape[1]
    run.panel.begin(ready.request, monitors=True)
    tickets, shown = [], []
    wanted = each * np.arange(max(min(count, show), 0))
    for rows in parts(run, ready):
        clean = sample(run, adapter, ready, rows)
        video = rollout.decode(run.frozen, clean[:, ready.references :])
        tickets.append(run.panel.submit(video, rows))
        # one by one: all of them would not fit on every device
        shown += [distributed.whole(video[i]) for i in np.flatnonzero(np.isin(rows, wanted))]
    _, score_BM, _ = collect(run, tickets)
    keep = count * each
    monitor = {name: x_B[:keep] for name, x_B in run.panel.monitors().items()}
    return Scored(shown, score_BM[:keep], monitor)


def _join(scored: list[Scored]) -> Scored:
    monitor = {k: np.concatenate([part.monitor[k] for part in scored]) for k in scored[0].monitor}
    scores = np.concatenate([part.score_BM for part in scored])
    return Scored([video for part in scored for video in part.shown], scores, monitor)


def _write_samples(run, chosen, base: list[np.ndarray], evolved: list[np.ndarray]) -> None:
    """Keep the first seed of some held-out pairs as mp4, with their faces and a list of them."""
    folder, each = run.workdir / "samples", run.cfg.data.heldout_seeds
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k, row in enumerate(chosen[:SHOWN]):
        name = f"heldout_{k:02d}"
        for role, video_FHWC in (("base", base[k]), ("evolved", evolved[k])):
            media.write(folder / f"{name}_{role}.mp4", video_FHWC, run.cfg.video.fps)
        media.write_image(folder / f"{name}_reference.png", row.images[0])
        seed = int(_seeds(k, 1, each)[0, 0])
        listed.append({"k": k, "prompt": row.prompt, "identity": row.name, "seed": seed})
    proof.write_json(folder / "heldout.json", listed)
