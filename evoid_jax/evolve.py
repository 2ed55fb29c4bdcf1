"""The evolutionary update: four roles of one base, one target, one optimizer step, one EMA.

Roles are arguments (paper, figure 2): evolving = velocity(base, evolving), stable = velocity(base,
stable), initial = velocity(base, None), teacher = velocity(base, None) without hints and without
reference frames. VACE training changed no weight of the T2V model, so one base serves all four;
where it did, the teacher has parameters of its own (teacher.py).

Letters: B videos, P pairs, K trained times, R reference frames, T H W C latents.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from evoid_jax import clipping, flow, losses, sharding
from evoid_jax.config import Config
from evoid_jax.models import lora as adapters
from evoid_jax.models import wan as wan_model

NOISE, TIMES = 0, 1  # uses of a step's key


class State(NamedTuple):
    """What evolves. Everything here is in a checkpoint, and nothing else of the device is."""

    step: jax.Array
    evolving: dict
    stable: dict
    opt: optax.OptState


class Scored(NamedTuple):
    """One step's videos as the update needs them."""

    clean_BTHWC: jax.Array  # latents as generated, reference frames first
    pair_B: jax.Array  # which row of text and control
    reward_B: jax.Array  # in [0, 1]
    valid_B: jax.Array  # 1.0 or 0.0: such a video trains nothing
    text_PSE: jax.Array
    control_PTHWC: jax.Array


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """Return AdamW on gradients of no unusual length, at a rate that may fall linearly."""
    t = cfg.train
    rate = optax.linear_schedule(t.lr, t.lr * t.lr_end, t.lr_steps)
    adamw = optax.adamw(rate, b1=t.b1, b2=t.b2, eps=t.eps, weight_decay=t.weight_decay)
    return optax.chain(clipping.clip_by_usual_norm(t.clip_factor), adamw)


def init(cfg: Config, base, wan_config, start: dict | None = None) -> State:
    """Return the state before step 0: both transformers start as one (paper, section 3.1).

    start: an adapter to go on from; None draws a fresh one, which changes nothing.
    """
    evolving = start
    if evolving is None:
        key = jax.random.key(cfg.seed)
        evolving = adapters.init(
            key,
            base,
            wan_config,
            rank=cfg.lora.rank,
            targets=cfg.lora.targets,
            modules=cfg.lora.modules,
        )
    stable = jax.tree.map(jnp.copy, evolving)
    return State(jnp.zeros((), jnp.int32), evolving, stable, optimizer(cfg).init(evolving))


class Setup(NamedTuple):
    """What an update is compiled for."""

    cfg: Config
    wan: wan_model.Wan
    mesh: Mesh
    references: int  # R, how many of the latent frames are reference images


@partial(jax.jit, static_argnames="setup", donate_argnames="state")
def train_step(state: State, base: dict, scored: Scored, teacher: dict | None, *, setup: Setup):
    """Make one optimizer step on all videos of a step at K times each, then the EMA.

    Args:
      state: donated.
      base: frozen parameters of `setup.wan`.
      scored: the step's videos, clean latents BTHWC, and their rewards in [0, 1].
      teacher: parameters of a T2V model of its size, or None: the base's main blocks.

    Returns:
      (state, terms): terms are scalars, means over valid videos and times: `loss` and `drift` by
      name, and `grad_norm` before clipping.
    """
    grads, terms = accumulate(state, base, scored, teacher, setup)
    terms["grad_norm"] = optax.tree.norm(grads)
    cfg = setup.cfg
    updates, opt = optimizer(cfg).update(grads, state.opt, state.evolving)
    evolving = optax.apply_updates(state.evolving, updates)
    # The stable transformer follows: stable <- decay stable + (1 - decay) evolving.
    stable = optax.incremental_update(evolving, state.stable, 1 - cfg.train.ema_decay)
    new = State(state.step, evolving, stable, opt)
    any_valid = scored.valid_B.sum() > 0  # otherwise momentum alone would move the adapters
    new = jax.tree.map(lambda a, b: jnp.where(any_valid, a, b), new, state)
    # Whole on every device, as it came in. Left alone the compiler may choose pieces: they fit no
    # donated buffer, the next step is compiled again, and no process can read and save it all.
    whole = NamedSharding(setup.mesh, sharding.REPLICATED)
    new = jax.lax.with_sharding_constraint(new, whole)
    return new._replace(step=state.step + 1), terms


class Sample(NamedTuple):
    """Videos at one time each, on the way from noise to what was generated."""

    clean_BTHWC: jax.Array
    noise_BTHWC: jax.Array
    t_B: jax.Array  # in (0, 1]
    text_BSE: jax.Array
    control_BTHWC: jax.Array
    reward_B: jax.Array  # in [0, 1]
    share_B: jax.Array  # weight of each video in the mean; zero for those without a reward


def accumulate(state: State, base: dict, scored: Scored, teacher: dict | None, setup: Setup):
    """Sum gradients and terms over parts of the batch and over times; returns (grads, terms)."""
    train, mesh = setup.cfg.train, setup.mesh
    key = jax.random.fold_in(jax.random.key(setup.cfg.seed), state.step)
    videos, pairs = scored.clean_BTHWC.shape[0], scored.text_PSE.shape[0]
    t_PK = times(jax.random.fold_in(key, TIMES), pairs, setup.cfg)
    noise_key = jax.random.fold_in(key, NOISE)
    parts = sharding.parts_of(videos, train.videos_per_device, mesh)
    share_B = scored.valid_B / jnp.maximum(scored.valid_B.sum(), 1) / train.timesteps
    columns = jnp.arange(videos), scored.clean_BTHWC, scored.pair_B, scored.reward_B, share_B
    split = jax.tree.map(lambda x: sharding.split(x, parts=parts, mesh=mesh), columns)

    def noise(index, k, shape):
        """Draw what depends on seed, step, video and time alone, not on parts or devices."""
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(noise_key, index), k), shape)

    def add(total, turn):
        part, k = turn // train.timesteps, turn % train.timesteps
        index_B, clean_BTHWC, pair_B, reward_B, share_B = (column[part] for column in split)
        sample = Sample(
            clean_BTHWC=clean_BTHWC,
            noise_BTHWC=jax.vmap(lambda i: noise(i, k, clean_BTHWC.shape[1:]))(index_B),
            t_B=t_PK[pair_B, k],
            text_BSE=scored.text_PSE[pair_B],
            control_BTHWC=scored.control_PTHWC[pair_B],
            reward_B=reward_B,
            share_B=share_B,
        )
        grads, terms = objective(state, base, sample, teacher, setup)
        return jax.tree.map(jnp.add, total, grads), terms

    zero = jax.tree.map(jnp.zeros_like, state.evolving)
    grads, terms = jax.lax.scan(add, zero, jnp.arange(parts * train.timesteps))
    return grads, jax.tree.map(lambda x: x.sum(), terms)


def times(key: jax.Array, pairs: int, cfg: Config) -> jax.Array:
    """Draw K times in (0, 1] for each pair, one from each part of the list: (P, K).

    All videos of a pair share them, so that times do not blur what the rewards compare.
    """
    grid = flow.train_timesteps(cfg.train.grid, cfg.train.shift)
    draw = lambda k: flow.choose_timesteps(k, grid, cfg.train.timesteps)
    return jax.vmap(draw)(jax.random.split(key, pairs))


def objective(state: State, base: dict, sample: Sample, teacher: dict | None, setup: Setup):
    """Return (gradient, terms) of the loss on some videos at one time each.

    The names of the terms stand here and nowhere else: log, record and report take them over.
    """
    wan, cfg = setup.wan, setup.cfg
    x_t = flow.add_noise(
        sample.clean_BTHWC, sample.noise_BTHWC, sample.t_B[:, None, None, None, None]
    )
    step_B = flow.TIMESTEPS * sample.t_B
    text_BSE, control_BTHWC = sample.text_BSE, sample.control_BTHWC
    # The reference frames in front are conditioning, not video, and enter no loss.
    kept = lambda v: v[:, setup.references :]
    shared = None
    if cfg.lora.targets == "main":  # hints read no main block: one set serves every role
        shared = wan_model.hints(wan, base, None, x_t, step_B, text_BSE, control_BTHWC)

    def see(lora):
        hints = shared
        if hints is None:
            hints = wan_model.hints(wan, base, lora, x_t, step_B, text_BSE, control_BTHWC)
        return kept(wan_model.velocity(wan, base, lora, x_t, step_B, text_BSE, hints))

    # Three frozen networks and the truth reduce to one target before the evolving pass begins.
    v = kept(flow.velocity(sample.clean_BTHWC, sample.noise_BTHWC))
    v_stb, v_init = see(state.stable), see(None)
    t2v = base if teacher is None else teacher
    v_t2v = wan_model.velocity(wan, t2v, None, kept(x_t), step_B, text_BSE)
    beta, lambda_t2v, lambda_self = cfg.loss.beta, cfg.loss.lambda_t2v, cfg.loss.lambda_self
    v_star, a = losses.target(
        v_stb, v_t2v, v_init, v, sample.reward_B, beta, lambda_t2v, lambda_self
    )

    def loss_fn(evolving):
        v_evo = see(evolving)
        return (a * losses.anchor(v_evo, v_star) * sample.share_B).sum(), v_evo

    (_, v_evo), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.evolving)
    loss_B = {
        "policy": losses.policy(v_evo, v_stb, v, sample.reward_B, beta),
        "t2v": losses.anchor(v_evo, v_t2v),
        "self": losses.anchor(v_evo, v_init),
    }
    loss_B["total"] = loss_B["policy"] + lambda_t2v * loss_B["t2v"] + lambda_self * loss_B["self"]
    drift_B = {
        "evo_stb": losses.drift(v_evo, v_stb),
        "evo_init": losses.drift(v_evo, v_init),
        "evo_t2v": losses.drift(v_evo, v_t2v),
    }
    terms_B = {"loss": loss_B, "drift": drift_B}
    return grads, jax.tree.map(lambda x_B: (x_B * sample.share_B).sum(), terms_B)
