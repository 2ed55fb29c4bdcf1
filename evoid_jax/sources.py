"""Where a step's videos come from: the stable transformer, or what another algorithm learns from.

GRPO needs every state on the way from noise to video, and noise in every step. Imitation may look
at true clips instead of generated ones: these are scored all the same, and the record then shows
what they score.

Letters: B videos, N steps, R reference frames, F H W C pixels, T H W C latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from evoid_jax import evolve, flow, rollout, session, sharding
from evoid_jax.algorithms import grpo
from evoid_jax.data import pairs
from evoid_jax.models import vae
from evoid_jax.rewards.blend import Fused
from evoid_jax.session import Clock, Generated, Prepared, Run


def videos(
    run: Run, adapter: dict, batch: Prepared, step: int, clock: Clock
) -> Iterator[Generated]:
    """Make the videos that a step learns from, part by part.

    Args:
      adapter: of the stable transformer.
      batch: of the pairs of step `step`.
    """
    cfg = run.cfg
    if cfg.algorithm == "grpo":
        return _walked(run, adapter, batch, clock)
    if cfg.algorithm == "imitation" and cfg.imitation.target == "clips":
        return _clips(run, batch, step, clock)
    return session.generate(run, adapter, batch, clock, cfg.guidance.rollout)


def scored(run: Run, batch: Prepared, made: list[Generated], fused: Fused) -> evolve.Scored:
    """Lay a step's videos out on the mesh for the update, with their rewards and walks."""
    clean_BTHWC = jnp.concatenate([part.clean_BTHWC for part in made])
    laid = session.to_device(batch, clean_BTHWC, fused, run.mesh)
    walks = [part.walk_BNTHWC for part in made if part.walk_BNTHWC is not None]
    if not walks:
        return laid
    return laid._replace(walk_BNTHWC=sharding.place_batch(jnp.concatenate(walks), run.mesh))


def _walked(run: Run, adapter: dict, batch: Prepared, clock: Clock) -> Iterator[Generated]:
    """Do as `session.generate` by a sampler that draws noise, and keep its states."""
    guidance, made = run.cfg.guidance.rollout, grpo.of_config(run.cfg)
    for rows in session.parts(run, len(batch.pair_B)):
        seed_B = sharding.place_batch(batch.seed_B[rows], run.mesh)
        draw = partial(walk, seed_B, made)
        walk_BNTHWC = session.sample(run, adapter, batch, rows, guidance, draw)
        clean_BTHWC = walk_BNTHWC[:, -1]
        clock.lap("rollout", clean_BTHWC)
        video_BFHWC = rollout.decode(run.frozen, clean_BTHWC[:, batch.references :])
        clock.lap("decode", video_BFHWC)
        yield Generated(rows, clean_BTHWC, video_BFHWC, walk_BNTHWC)


@partial(jax.jit, static_argnames=("model", "guidance", "split"))
def walk(
    seed_B,
    made: grpo.Schedule,
    model,
    base,
    lora,
    text_BSE,
    null_BSE,
    control_BTHWC,
    noise_BTHWC,
    table: flow.Table,
    guidance: float,
    split: bool = False,
    null_weights: tuple | None = None,
):
    """Generate as `rollout.sample` does, with noise; returns all states, BNTHWC with N + 1.

    A video's noise depends on its own seed alone, and is not what its first state is drawn from.

    Args:
      seed_B: of the videos.
      made: the steps; it has the table's times.
    """
    del table
    velocity_fn = rollout.guided(
        model, base, lora, text_BSE, null_BSE, control_BTHWC, guidance, split, null_weights
    )
    shape = noise_BTHWC.shape[1:]

    def draw(index):
        own = lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape)
        return jax.vmap(own)(seed_B)

    return grpo.walk(made, velocity_fn, noise_BTHWC, draw)


def _clips(run: Run, batch: Prepared, step: int, clock: Clock) -> Iterator[Generated]:
    """Take the true clips of a step's pairs, each as often as it would be generated."""
    from evoid_jax.data import portrait_pairs  # its library takes a second to import

    v, frozen = run.cfg.video, run.frozen
    order = pairs.order(run.data, step, run.cfg.data.pairs)
    origins = [run.data.origins[i] for i in order]
    clips = [portrait_pairs.clip(origin, v.frames, v.height) for origin in origins]
    for rows in session.parts(run, len(batch.pair_B)):
        chosen_BFHWC = np.stack([clips[pair] for pair in batch.pair_B[rows]])
        true_BFHWC = sharding.place_batch(chosen_BFHWC, run.mesh)
        share = sharding.share(true_BFHWC.shape, run.mesh)
        control_BTHWC = batch.control_PTHWC[sharding.place_batch(batch.pair_B[rows], run.mesh)]
        clean_BTHWC = encode(
            frozen.vae_params,
            true_BFHWC,
            control_BTHWC,
            config=frozen.vae_config,
            references=batch.references,
            mesh=run.mesh,
            in_turn=true_BFHWC[..., 0].size * share > rollout.WHOLE,
        )
        clock.lap("rollout", clean_BTHWC)
        video_BFHWC = rollout.decode(frozen, clean_BTHWC[:, batch.references :])
        clock.lap("decode", video_BFHWC)
        yield Generated(rows, clean_BTHWC, video_BFHWC)


@partial(jax.jit, static_argnames=("config", "references", "mesh", "in_turn"))
def encode(params, video_BFHWC, control_BTHWC, *, config, references: int, mesh, in_turn: bool):
    """Return latents of uint8 videos, reference frames first: BTHWC float32.

    These are the encoded photos, as the control has them. in_turn: one latent frame after the
    other, which is slower and takes less memory.
    """
    of_videos = lambda params, x_BFHWC: vae.encode(params, config, x_BFHWC, in_turn)
    unit_BFHWC = video_BFHWC.astype(jnp.float32) / 127.5 - 1
    z_BTHWC = sharding.per_video(of_videos, params, unit_BFHWC, mesh)
    photos_BTHWC = control_BTHWC[:, :references, ..., : config.z_dim]
    return jnp.concatenate([photos_BTHWC, z_BTHWC], axis=1)
