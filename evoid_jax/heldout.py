"""Generate and score videos on the mesh, and the proof: base against evolved on unseen faces.

Letters: B videos, P pairs, N seeds of a pair, M metrics, R reference frames, T H W C latents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from evoid_jax import media, proof, rollout, sharding
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


def parts(run, batch: Prepared) -> Iterator[jax.Array]:
    """Yield the videos' indices, as many at a time as the mesh holds."""
    videos = len(batch.pair_B)
    count = sharding.parts_of(videos, run.cfg.rollout.videos_per_device, run.mesh)
    for rows in np.split(np.arange(videos, dtype=np.int32), count):
        yield sharding.place_batch(rows, run.mesh)


def sample(run, adapter, batch: Prepared, part: jax.Array) -> jax.Array:
    """Generate one part's latents, reference frames first, with `adapter` on the base."""
    v, rows = run.cfg.video, jax.device_get(part)
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
    )


def collect(run, tickets: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wait for the scores of all parts: raw_BM, score_BM (NaN where missing) and valid_BM."""
    found = [jax.device_get(run.panel.collect(ticket)) for ticket in tickets]
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


# --- the proof


class Scored(NamedTuple):
    """One model's held-out videos and what they scored."""

    video_BFHWC: np.ndarray
    score_BM: np.ndarray
    monitor: dict[str, np.ndarray]


def prove(run, state, began: float) -> dict:
    """Generate the same held-out triples with the base and the evolved model, and compare.

    Writes summary.json and samples/. A user's own folder has no held-out faces: its own are taken,
    with seeds that training never used.
    """
    cfg, start = run.cfg, time.perf_counter()
    data = pairs.open_pairs(
        cfg.data.source, cfg.data.dir, "heldout", 0, str(Path(cfg.data.cache).expanduser())
    )
    chosen = [data[i] for i in range(min(cfg.data.heldout_identities, len(data)))]
    zero = jax.tree.map(jnp.zeros_like, state.evolving)
    base, evolved = [], []
    each = cfg.data.heldout_seeds
    count = max(cfg.data.pairs * cfg.data.seeds // each, 1)  # as many videos as a training step
    for at in tqdm(range(0, len(chosen), count), desc="held-out", dynamic_ncols=True):
        rows = [chosen[(at + i) % len(chosen)] for i in range(count)]
        batch, seed_PN = _batch(rows, at), _seeds(at, count, each)
        keep = min(count, len(chosen) - at) * each
        base.append(_cut(_generate(run, zero, batch, seed_PN), keep))
        evolved.append(_cut(_generate(run, state.evolving, batch, seed_PN), keep))
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
    proof.write_json(run.workdir / "summary.json", found)
    _write_samples(run, chosen, base.video_BFHWC, evolved.video_BFHWC)
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


def _generate(run, adapter, batch: pairs.Batch, seed_PN) -> Scored:
    ready = prepare(run, batch, seed_PN)
    run.panel.begin(ready.request, monitors=True)
    tickets, videos = [], []
    for part in parts(run, ready):
        clean = sample(run, adapter, ready, part)
        video = rollout.decode(run.frozen, clean[:, ready.references :])
        tickets.append(run.panel.submit(video, part))
        videos.append(jax.device_get(video))
    _, score_BM, _ = collect(run, tickets)
    return Scored(np.concatenate(videos), score_BM, dict(run.panel.monitor))


def _cut(scored: Scored, keep: int) -> Scored:
    return jax.tree.map(lambda x: x[:keep], scored)


def _join(scored: list[Scored]) -> Scored:
    return jax.tree.map(lambda *x: np.concatenate(x), *scored)


def _write_samples(run, chosen, base_BFHWC, evolved_BFHWC) -> None:
    """Keep the first seed of some held-out pairs as mp4, with their faces and a list of them."""
    folder, each = run.workdir / "samples", run.cfg.data.heldout_seeds
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k, row in enumerate(chosen[:SHOWN]):
        at, name = k * each, f"heldout_{k:02d}"
        for role, video_BFHWC in (("base", base_BFHWC), ("evolved", evolved_BFHWC)):
            media.write(folder / f"{name}_{role}.mp4", video_BFHWC[at], run.cfg.video.fps)
        media.write_image(folder / f"{name}_reference.png", row.images[0])
        seed = int(_seeds(k, 1, each)[0, 0])
        listed.append({"k": k, "prompt": row.prompt, "identity": row.name, "seed": seed})
    proof.write_json(folder / "heldout.json", listed)
