"""A run: what stays the same from its first step to its proof, and the steps that both are made of.

Both the loop (train.py) and the proof (heldout.py) do the same with a batch of pairs: `prepare`
encodes it, `generate` makes its videos part by part, the panel scores them, `collect` waits for the
scores.

Letters: B videos, P pairs, N seeds of a pair, M rewards, R reference frames, T H W C latents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from evoid_jax import (
    canvas,
    checkpoint,
    config,
    distributed,
    evolve,
    files,
    flow,
    hub,
    provenance,
    rollout,
    settings,
    sharding,
    teacher,
)
from evoid_jax.data import pairs
from evoid_jax.models import lora, pipeline, umt5, wan
from evoid_jax.models.folder import VACE
from evoid_jax.rewards import faceless, servers, tryout
from evoid_jax.rewards.blend import Fused
from evoid_jax.rewards.panel import Panel
from evoid_jax.rewards.request import Request

_merge = jax.jit(lora.merge)


class Run(NamedTuple):
    """Everything that does not change while the run goes on."""

    cfg: config.Config
    workdir: Path
    mesh: Mesh
    frozen: rollout.Frozen
    teacher: dict | None  # None: the base's main blocks
    data: pairs.Pairs
    validation: pairs.Pairs
    heldout: pairs.Pairs
    panel: Panel
    solver: flow.Table
    text_rows: int  # S of every prompt


class Clock:
    """Seconds per phase of one step."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str, wait_for=None) -> None:
        """Add the time since the last lap to `phase`, once `wait_for` has been computed."""
        jax.block_until_ready(wait_for)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now

    def stop(self) -> dict[str, float]:
        """Return the seconds of each phase and of all."""
        return self.seconds | {"total": time.perf_counter() - self.start}


# --- opening


@contextmanager
def open_run(cfg: config.Config, workdir: Path) -> Iterator[Run]:
    """Read the data, start the scorers and load the model; stop the scorers at the end.

    What costs nothing to check comes first, the model's weights, which may take minutes, last.

    Raises:
      ValueError, OSError: a setting, a pair, a scorer or a file of the model is wrong; the message
        says what to do.
    """
    check_times(cfg)
    if idle := settings.unused(cfg):
        distributed.say(f"note: config.algorithm={cfg.algorithm} makes no use of {', '.join(idle)}")
    mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.context)
    sharding.check_videos(cfg.data.pairs * cfg.data.seeds, mesh)
    distributed.say(f"devices: {sharding.described(mesh)}")
    splits = open_data(cfg.data, cfg.seed)
    provenance.check_data(workdir, splits.digest())
    check_photos(splits, cfg.video)
    settings.check_watched(cfg, people=len(set(splits.validation.identities)))
    count, kind = len(splits.evolution), splits.heldout.kind
    distributed.say(f"data: {count} pairs to evolve on; the proof will be on {kind}")
    if cfg.data.dir and cfg.reward.preset == "tiny" and "local" in cfg.reward.sidecars:
        distributed.say(
            "note: the reward set tiny knows drawn faces alone; for photographs take "
            "--config.reward.preset=open (docs/rewards_open.md)"
        )
    logs = distributed.own_folder(workdir / "logs")
    servers.reach(cfg.reward, cfg.video.fps, logs)  # before the model, which may have to be fetched
    opened = open_model(cfg)
    check_model(cfg, opened, fresh=not checkpoint.any_in(workdir / checkpoint.FOLDER))
    text_len = opened.pipeline.parts["transformer"].config.text_len
    longest = longest_prompt(splits, cfg.guidance.negative_prompt, opened.tokenizer, text_len)
    distributed.say(f"rewards: starting, logs in {logs}")
    with Panel(cfg.reward, mesh, cfg.video.fps, logs) as panel:
        faceless.refuse(cfg, splits, panel.urls, panel.infos)
        tryout.check(cfg, workdir, splits.evolution, panel)
        distributed.say(f"model: loading {cfg.model}")
        frozen = load_frozen(cfg, opened, mesh)
        solver = flow.schedule(cfg.rollout.scheduler, cfg.rollout.steps, cfg.rollout.shift)
        run = Run(
            cfg=cfg,
            workdir=workdir,
            mesh=mesh,
            frozen=frozen,
            teacher=teacher.load(teacher.asked(cfg), cfg.model, frozen, mesh),
            data=splits.evolution,
            validation=splits.validation,
            heldout=splits.heldout,
            panel=panel,
            solver=sharding.replicate(solver, mesh),
            text_rows=text_rows(longest, text_len, mesh),
        )
        distributed.say("ready; the first step compiles its programs, which takes a while")
        yield run


def open_data(cfg: config.Data, seed: int) -> pairs.Splits:
    """Open the pairs of the evolution, of the watch and of the proof."""
    cache = str(files.user_path(cfg.cache))
    with distributed.leader_first():
        return pairs.open_splits(
            cfg.source, cfg.dir, cfg.validation, cfg.heldout, seed=seed, cache_dir=cache
        )


def open_model(cfg: config.Config) -> pipeline.Opened:
    """Open the model, fetching what a hub name stands for; processes may share the hub's cache."""
    with distributed.leader_first():
        if teacher.asked(cfg):
            hub.folder(cfg.teacher, parts=("transformer",))
        return pipeline.open_diffusers(cfg.model, (VACE,))


def check_times(cfg: config.Config) -> None:
    """Raise a ValueError where a time shift leaves nothing to denoise, or nothing to train on."""
    makers = {
        "config.rollout.shift": partial(
            flow.schedule, cfg.rollout.scheduler, cfg.rollout.steps, cfg.rollout.shift
        ),
        "config.train.shift": partial(flow.train_timesteps, cfg.train.grid, cfg.train.shift),
    }
    for name, make in makers.items():
        try:
            make()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def check_photos(splits: pairs.Splits, video: config.Video) -> None:
    """Raise a ValueError, with its line, where a photo cannot be put on the videos' canvas."""

    def fits(height: int, width: int) -> None:
        canvas.fitted((height, width), (video.height, video.width))

    for data in splits:
        pairs.check_images(data, fits)


def check_model(cfg: config.Config, opened: pipeline.Opened, fresh: bool) -> None:
    """Raise a ValueError where a model cannot make the videos, or cannot take adapter or teacher.

    fresh: the run has no checkpoint yet, so that config.lora.init will be read.
    """
    parts, video = opened.pipeline.parts, cfg.video
    transformer = parts["transformer"].config
    rollout.check_size_of(transformer, parts["vae"].config, video.frames, video.height, video.width)
    teacher.check(teacher.asked(cfg), cfg.model, transformer)
    if fresh and cfg.lora.init:
        shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(transformer)))
        drawn = evolve.init(cfg, shapes, transformer).evolving
        lora.start(cfg.lora.init, drawn, transformer, scale=cfg.lora.scale)


def load_frozen(cfg: config.Config, opened: pipeline.Opened, mesh: Mesh) -> rollout.Frozen:
    """Load the model, set up for this run's adapters and kernels."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[cfg.dtype]
    frozen = rollout.put(opened, dtype, remat=cfg.train.remat, mesh=mesh)
    model = frozen.wan.clone(
        lora_scale=cfg.lora.scale, attention=cfg.attention, residual=cfg.residual
    )
    return frozen._replace(wan=model)


def longest_prompt(splits: pairs.Splits, negative: str, tokenizer, text_len: int) -> int:
    """Return the most tokens of any prompt; say which prompts the model reads only in part.

    text_len: tokens that the model reads; it never sees the rest, here as in diffusers.
    """
    origins = {negative: "config.guidance.negative_prompt"}
    for data in splits:
        origins |= dict(zip(data.prompts, data.origins, strict=True))
    prompts = list(origins)
    cleaned = [umt5.clean(prompt) for prompt in prompts]
    counts = [len(ids) for ids in tokenizer(cleaned, verbose=False)["input_ids"]]
    for prompt, count in zip(prompts, counts, strict=True):
        if count > text_len:
            distributed.say(
                f"note: {origins[prompt]}: the prompt has {count} tokens; the model reads the "
                f"first {text_len}"
            )
    return max(counts)


def text_rows(longest: int, text_len: int, mesh: Mesh) -> int:
    """Return how many rows every prompt gets, so that no step compiles anew.

    On accelerators all that the model was made for: nothing to weigh, and fused attention needs no
    bias. On the CPU as many as the longest prompt has, in eights, with room for some words more:
    runs on other prompts of about this length then find their programs compiled.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return text_len
    return min(text_len, -(-(longest + 8) // 8) * 8)


# --- the steps of the loop and of the proof


class Prepared(NamedTuple):
    """A batch of pairs, ready to be generated from."""

    text_PSE: jax.Array
    null_1SE: jax.Array
    control_PTHWC: jax.Array
    pair_B: np.ndarray
    seed_B: np.ndarray
    references: int  # R
    request: Request


def prepare(
    run: Run,
    batch: pairs.PairBatch,
    seed_PN: np.ndarray,
    monitors: bool = False,
    proof: bool = False,
) -> Prepared:
    """Encode prompts and faces once per pair, and write the request to the scorers.

    Args:
      batch: P pairs with R images each.
      seed_PN: of the videos' noise, N videos of each pair.
      monitors: whether to measure what is never rewarded, too.
      proof: whether the proof's rewards count and not the update's.
    """
    cfg, v = run.cfg, run.cfg.video
    pair_B = np.repeat(np.arange(len(batch.prompts), dtype=np.int32), seed_PN.shape[1])
    text_PSE = rollout.encode_text(run.frozen, batch.prompts, run.text_rows)
    null_1SE = rollout.encode_text(run.frozen, [cfg.guidance.negative_prompt], run.text_rows)
    control_PTHWC = rollout.control(
        run.frozen, batch.images, v.frames, v.height, v.width, cfg.rollout.reference_order
    )
    text_PSE, null_1SE, control_PTHWC = sharding.replicate(
        (text_PSE, null_1SE, control_PTHWC), run.mesh
    )
    return Prepared(
        text_PSE=text_PSE,
        null_1SE=null_1SE,
        control_PTHWC=control_PTHWC,
        pair_B=pair_B,
        seed_B=seed_PN.reshape(-1),
        references=len(batch.images[0]),  # as many for every pair, see data/folder.py
        request=request(batch, pair_B, cfg, monitors, proof),
    )


def request(
    batch: pairs.PairBatch, pair_B: np.ndarray, cfg: config.Config, monitors: bool, proof: bool
) -> Request:
    """Return what the scorers are told of each video: its person's photos, and its prompt."""
    photos, others, truth = batch.images, batch.others or [], batch.attributes
    if cfg.reward.photos == "canvas":
        size = cfg.video.height, cfg.video.width
        photos, others = (canvas.all_seen(of_pairs, *size) for of_pairs in (photos, others))
    return Request(
        [photos[p] for p in pair_B],  # a pair's videos share its arrays, which are sent once
        [batch.prompts[p] for p in pair_B],
        attributes=None if truth is None else [truth[p].tolist() for p in pair_B],
        monitors=monitors,
        proof=proof,
        others=[others[p] for p in pair_B] if others and monitors else None,
    )


class Generated(NamedTuple):
    """Some of a batch's videos, as many as the mesh generates at once."""

    rows: np.ndarray  # which of the batch's videos
    clean_BTHWC: jax.Array  # latents, reference frames first
    video_BFHWC: jax.Array  # uint8
    walk_BNTHWC: jax.Array | None = None  # all states from noise to `clean`, where they are kept


def generate(
    run: Run, adapter: dict, batch: Prepared, clock: Clock, guidance: float
) -> Iterator[Generated]:
    """Make a batch's videos with an adapter on the base, part by part.

    Yields a part as soon as it is decoded, so that it can be scored while the next is generated.
    """
    for rows in parts(run, len(batch.pair_B)):
        clean_BTHWC = sample(run, adapter, batch, rows, guidance)
        clock.lap("rollout", clean_BTHWC)
        video_BFHWC = rollout.decode(run.frozen, clean_BTHWC[:, batch.references :])
        clock.lap("decode", video_BFHWC)
        yield Generated(rows, clean_BTHWC, video_BFHWC)


def parts(run: Run, videos: int) -> list[np.ndarray]:
    """Return the videos' indices, as many at a time as the mesh holds."""
    count = sharding.parts_of(videos, run.cfg.rollout.videos_per_device, run.mesh)
    return np.split(np.arange(videos, dtype=np.int32), count)


def sample(
    run: Run,
    adapter: dict,
    batch: Prepared,
    rows: np.ndarray,
    guidance: float,
    draw: Callable = rollout.sample,
) -> jax.Array:
    """Generate the latents of some rows of a batch: BTHWC float32, reference frames first.

    draw: the sampler, called as `rollout.sample`; what it returns is returned.
    """
    v = run.cfg.video
    shape = rollout.latent_shape(run.frozen, v.frames, v.height, v.width, batch.references)
    seed_B, pair_B = sharding.place_batch((batch.seed_B[rows], batch.pair_B[rows]), run.mesh)
    base, lora_on_top = run.frozen.wan_params, adapter
    if run.cfg.dtype == "float32":
        # Merged once it saves the adapter's matmuls in every solver step. Not in bfloat16, which
        # would round a small adapter off.
        base, lora_on_top = _merge(base, adapter, run.frozen.wan.lora_scale), None
    bare = (run.frozen.wan_params, None) if run.cfg.guidance.null == "base" else None
    return draw(
        run.frozen.wan,
        base,
        lora_on_top,
        batch.text_PSE[pair_B],
        batch.null_1SE,
        batch.control_PTHWC[pair_B],
        rollout.noise(seed_B, shape),
        run.solver,
        guidance=guidance,
        split=run.cfg.rollout.split,
        null_weights=bare,
    )


def to_device(batch: Prepared, clean_BTHWC: jax.Array, fused: Fused, mesh: Mesh) -> evolve.Scored:
    """Lay a step's videos and rewards out on the mesh for the update."""
    clean_BTHWC, pair_B, reward_B, valid_B = sharding.place_batch(
        (clean_BTHWC, batch.pair_B, fused.reward_B, fused.valid_B.astype(np.float32)), mesh
    )
    return evolve.Scored(
        clean_BTHWC=clean_BTHWC,
        pair_B=pair_B,
        reward_B=reward_B,
        valid_B=valid_B,
        text_PSE=batch.text_PSE,
        null_1SE=batch.null_1SE,
        control_PTHWC=batch.control_PTHWC,
    )


def seeds(cfg: config.Config, step: int) -> np.ndarray:
    """Return (P, N) integer seeds of a step's videos, its own for every run, step and video."""
    numbers = np.random.SeedSequence([cfg.seed, step])
    pairs_and_seeds = cfg.data.pairs, cfg.data.seeds
    drawn = numbers.generate_state(cfg.data.pairs * cfg.data.seeds)
    return (drawn >> 1).astype(np.int32).reshape(pairs_and_seeds)  # 31 bits: JAX keys take int32
