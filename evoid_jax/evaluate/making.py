"""A model's videos of all cases, over all processes; those that are there are not made again.

A video's noise depends on the seed and on its key alone: not on the others, their order, or how
many are made at once. Two systems of one seed begin with the same noise. Letters: B videos,
T H W C latents, S E of texts.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from evoid_jax import (
    canvas,
    distributed,
    fields,
    files,
    flow,
    hub,
    media,
    rollout,
    session,
    sharding,
)
from evoid_jax.evaluate import cases, rows
from evoid_jax.evaluate.cases import Case
from evoid_jax.models import lora, pipeline, umt5
from evoid_jax.models.folder import VACE
from evoid_jax.models.scheduler import solver_of

ONE = 1  # photo of a case
DTYPES = ("float32", "bfloat16")  # as --dtype has them


class How(NamedTuple):
    """How a system's videos are made; the same for all of them."""

    model: Path
    lora: Path | None
    chosen: dict  # a value for each key of `deployment.DEFAULTS`
    sampler: dict  # a value for each key of `deployment.SAMPLER`; one photo has no order
    seed: int
    dtype: str | None  # None: `rollout.usual_dtype`
    together: int  # videos of a device at once
    mesh: tuple[int, int, int]  # data, fsdp, context


def facts(listed: list[Case], how: How) -> dict[str, Any]:
    """Return what the videos depend on, as JSON: another command must have the same.

    What each is made of (`rows.OF`) is by its key: a longer list adds to it.
    """
    adapter = None
    if how.lora is not None:
        adapter = {"file": how.lora.name, "sha256": files.sha256(how.lora)}
    made = {
        "model": fields.portable(str(how.model)),
        "weights": hub.sketch(how.model),
        "lora": adapter,
        "seed": how.seed,
        "dtype": how.dtype or rollout.usual_dtype(),
        rows.OF: {case.key: cases.made_of(case) for case in listed},
    }
    made |= {name: how.sampler[name] for name in ("scheduler", "shift", "residual")}
    return made | how.chosen


def seed_of(seed: int, key: str) -> int:
    """Return the seed of a case's noise, 31 bits: JAX's keys take int32."""
    return zlib.crc32(f"{seed} {key}".encode()) >> 1


class Maker(NamedTuple):
    """A model in memory, with what all of its videos share."""

    how: How
    mesh: Mesh
    frozen: rollout.Frozen
    adapter: dict | None
    table: flow.Table
    null_1SE: jax.Array | None
    text_rows: int


def make(listed: list[Case], folder: Path, how: How) -> int:
    """Make the videos that are not in the folder yet. Collective.

    Returns:
      How many were made.

    Raises:
      OSError, ValueError: the model, its adapter, a photo or a size cannot be used.
    """
    there = [case.key for case in listed if cases.video(folder, case).is_file()]
    there = set(distributed.exchange(there)[0])  # of process 0, which writes: all must agree
    absent = [case for case in listed if case.key not in there]
    if not absent:
        distributed.say(f"videos: all {len(listed)} are in {folder}")
        return 0
    distributed.say(f"videos: {len(absent)} of {len(listed)} are to be made, into {folder}")
    maker = _open(listed, absent, how)
    count = how.together * sharding.batch_shards(maker.mesh)
    hidden = not distributed.leads()
    with tqdm(total=len(absent), desc="generating", unit="video", disable=hidden) as bar:
        # A video has the same neighbours whatever is there already: they decide its last bits.
        for first in range(0, len(listed), count):
            some = listed[first : first + count]
            wanted = [case for case in some if case.key not in there]
            if wanted:
                _make_some(maker, some, wanted, count, folder)
                bar.update(len(wanted))
    return len(absent)


def _open(listed: list[Case], absent: list[Case], how: How) -> Maker:
    """Load the model; what costs nothing to check comes first."""
    with distributed.leader_first():
        opened = pipeline.open_diffusers(how.model, (VACE,))
    transformer, vae = (opened.pipeline.parts[name].config for name in ("transformer", "vae"))
    frames, height, width = (how.chosen[key] for key in ("frames", "height", "width"))
    rollout.check_size_of(transformer, vae, frames, height, width)
    for case in absent:
        canvas.fitted(media.check_image(case.photo), (height, width))
    kind, shift = solver_of(opened.scheduler)
    shift = shift if how.sampler["shift"] is None else how.sampler["shift"]
    table = flow.schedule(how.sampler["scheduler"] or kind, how.chosen["steps"], shift)
    adapter = lora.load(how.lora, transformer) if how.lora else None
    mesh = sharding.make_mesh(*how.mesh)
    distributed.say(f"model: loading {how.model} on {sharding.described(mesh)}")
    dtype = jnp.dtype(how.dtype or rollout.usual_dtype())
    frozen = rollout.put(opened, dtype, remat="none", mesh=mesh)
    frozen = frozen._replace(wan=frozen.wan.clone(residual=how.sampler["residual"]))
    negative = how.chosen["negative_prompt"]
    rows = _text_rows([*(case.prompt for case in listed), negative], frozen, mesh)
    null_1SE = None
    if how.chosen["guidance"] > 1:
        null_1SE = sharding.replicate(rollout.encode_text(frozen, [negative], rows), mesh)
    return Maker(
        how=how,
        mesh=mesh,
        frozen=frozen,
        adapter=None if adapter is None else sharding.replicate(adapter, mesh),
        table=sharding.replicate(table, mesh),
        null_1SE=null_1SE,
        text_rows=rows,
    )


def _text_rows(prompts: list[str], frozen: rollout.Frozen, mesh: Mesh) -> int:
    """Return how many rows every prompt gets, so that one program makes all videos."""
    limit = frozen.wan.config.text_len
    cleaned = [umt5.clean(prompt) for prompt in prompts]
    counts = [len(ids) for ids in frozen.tokenizer(cleaned, verbose=False)["input_ids"]]
    if cut := sum(count > limit for count in counts):
        distributed.say(f"note: {cut} prompts have more tokens than the {limit} that are read")
    return session.text_rows(max(counts), limit, mesh)


def _make_some(
    maker: Maker, some: list[Case], wanted: list[Case], count: int, folder: Path
) -> None:
    """Make some videos at once, and write the wanted ones. count: of a batch, filled up."""
    chosen, frozen, mesh = maker.how.chosen, maker.frozen, maker.mesh
    size = chosen["frames"], chosen["height"], chosen["width"]
    batch = [some[i % len(some)] for i in range(count)]
    photos = [[media.read_image(case.photo)] for case in batch]
    seeds = [seed_of(maker.how.seed, case.key) for case in batch]
    text_BSE, control_BTHWC, seed_B = sharding.place_batch(
        (
            rollout.encode_text(frozen, [case.prompt for case in batch], maker.text_rows),
            rollout.control(frozen, photos, *size),
            np.array(seeds, np.int32),
        ),
        mesh,
    )
    clean_BTHWC = rollout.sample(
        frozen.wan,
        frozen.wan_params,
        maker.adapter,
        text_BSE,
        maker.null_1SE,
        control_BTHWC,
        rollout.noise(seed_B, rollout.latent_shape(frozen, *size, references=ONE)),
        maker.table,
        guidance=float(chosen["guidance"]),
    )
    video_BFHWC = rollout.decode(frozen, clean_BTHWC[:, ONE:])
    for case in wanted:
        video_FHWC = distributed.whole(video_BFHWC[some.index(case)])
        if distributed.leads():
            with files.replacing(cases.video(folder, case)) as part:
                part.write_bytes(media.encode(video_FHWC, chosen["fps"]))
