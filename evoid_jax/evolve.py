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

from evoid_jax import flow, losses, sharding
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
    """Return AdamW with a clipped global norm and a learning rate that may fall linearly."""
    t = cfg.train
    rate = optax.linear_schedule(t.lr, t.lr * t.lr_end, t.lr_steps)
    adamw = optax.adamw(rate, b1=t.b1, b2=t.b2, eps=t.eps, weight_decay=t.weight_decay)
    return optax.chain(optax.clip_by_global_norm(t.clip_norm), adamw)


def init(cfg: Config, base, wan_config, start: dict | None = None) -> State:
    """Return the state before step 0: both transformers start as one (paper, section 3.1).

    start: an adapter to go on from; None draws a fresh one, which changes nothing.
    """
    evolving = start
    if evolving is None:
        key = jax.random.key(cfg.seed)
        names = cfg.lora.rank, cfg.lora.targets, cfg.lora.modules
        evolving = adapters.init(key, base, wan_config, *names)
    stable = jax.tree.map(jnp.copy, evolving)
    return State(jnp.zeros((), jnp.int32), evolving, stable, optimizer(cfg).init(evolving))


@partial(jax.jit, static_argnames=("cfg", "wan", "mesh", "references"), donate_argnames="state")
def train_step(
    state: State,
    base,
    scored: Scored,
    teacher=None,
    *,
    cfg: Config,
    wan,
    mesh: Mesh,
    references: int,
):
    """Make one optimizer step on all videos of a step at K times each, then the EMA.

    Args:
      state: donated.
      base: frozen parameters of `wan`.
      teacher: parameters of a T2V model of its size, or None: the base's main blocks.
      references: R, how many of the latent frames are reference images.

    Returns:
      (state, terms): terms are scalars, means over valid videos and times: loss terms by name,
      their sum, the drifts, and the gradient's norm before clipping.
    """
    grads, terms = accumulate(
        state, base, scored, teacher, cfg=cfg, wan=wan, mesh=mesh, references=references
    )
    terms["grad_norm"] = optax.tree.norm(grads)
    updates, opt = optimizer(cfg).update(grads, state.opt, state.evolving)
    evolving = optax.apply_updates(state.evolving, updates)
    stable = optax.incremental_update(evolving, state.stable, 1 - cfg.train.ema_decay)
    new = State(state.step, evolving, stable, opt)
    any_valid = scored.valid_B.sum() > 0  # otherwise momentum alone would move the adapters
    new = jax.tree.map(lambda a, b: jnp.where(any_valid, a, b), new, state)
    # Whole on every device, as it came in. Left alone the compiler may choose pieces: they fit no
    # donated buffer, the next step is compiled again, and no process can read and save it all.
    new = jax.lax.with_sharding_constraint(new, NamedSharding(mesh, sharding.REPLICATED))
    return new._replace(step=state.step + 1), terms


def accumulate(
    state: State,
    base,
    scored: Scored,
    teacher=None,
    *,
    cfg: Config,
    wan,
    mesh: Mesh,
    references: int,
):
    """Sum gradients and terms over parts of the batch and over times; returns (grads, terms)."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
    videos, pairs = scored.clean_BTHWC.shape[0], scored.text_PSE.shape[0]
    t_PK = times(jax.random.fold_in(key, TIMES), pairs, cfg)
    parts = sharding.parts_of(videos, cfg.train.videos_per_device, mesh)
    split = partial(sharding.split, parts=parts, mesh=mesh)
    share_B = scored.valid_B / jnp.maximum(scored.valid_B.sum(), 1) / cfg.train.timesteps
    stacked = jax.tree.map(
        split, (jnp.arange(videos), scored.clean_BTHWC, scored.pair_B, scored.reward_B, share_B)
    )

    def add(total, at):
        part, k = at // cfg.train.timesteps, at % cfg.train.timesteps
        index_B, x0, pair_B, reward_B, share_B = jax.tree.map(lambda x: x[part], stacked)
        draw = lambda i: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, NOISE), i), k),
            x0.shape[1:],
        )
        cond = scored.text_PSE[pair_B], scored.control_PTHWC[pair_B]
        sample = x0, jax.vmap(draw)(index_B), t_PK[pair_B, k]
        given = state, base, sample, cond, reward_B, share_B, teacher
        found = objective(*given, cfg=cfg, wan=wan, references=references)
        return jax.tree.map(jnp.add, total, found), None

    names = ("total", "policy", "t2v", "self", "evo_stb", "evo_init", "evo_t2v")
    zero = jax.tree.map(jnp.zeros_like, state.evolving), dict.fromkeys(names, jnp.zeros(()))
    total, _ = jax.lax.scan(add, zero, jnp.arange(parts * cfg.train.timesteps))
    return total


def times(key: jax.Array, pairs: int, cfg: Config) -> jax.Array:
    """Draw K times in (0, 1] for each pair, one from each part of the list: (P, K).

    All videos of a pair share them, so that times do not blur what the rewards compare.
    """
    grid = flow.train_timesteps(cfg.train.grid, cfg.train.shift)
    draw = lambda k: flow.choose_timesteps(k, grid, cfg.train.timesteps)
    return jax.vmap(draw)(jax.random.split(key, pairs))


def objective(
    state: State, base, sample, cond, reward_B, share_B, teacher=None, *, cfg, wan, references
):
    """Return (gradient, terms) of the loss on one part of the batch at one time per video.

    Args:
      sample: x0_BTHWC, noise_BTHWC, t_B in (0, 1].
      cond: text_BSE, control_BTHWC.
      share_B: weight of each video in the mean; zero for those without a reward.
      references: R; the first R frames are conditioning, not video, and enter no loss.
    """
    x0, noise, t_B = sample
    text_BSE, control_BTHWC = cond
    x_t = flow.add_noise(x0, noise, t_B[:, None, None, None, None])
    step_B = flow.TIMESTEPS * t_B
    kept = lambda v: v[:, references:]
    shared = None
    if cfg.lora.targets == "main":  # hints read no main block: one set serves every role
        shared = wan_model.hints(wan, base, None, x_t, step_B, text_BSE, control_BTHWC)

    def see(lora):
        hints = shared
        if hints is None:
            hints = wan_model.hints(wan, base, lora, x_t, step_B, text_BSE, control_BTHWC)
        return kept(wan_model.velocity(wan, base, lora, x_t, step_B, text_BSE, hints))

    v = kept(flow.velocity(x0, noise))
    v_stb, v_init = see(state.stable), see(None)
    t2v = base if teacher is None else teacher
    v_t2v = wan_model.velocity(wan, t2v, None, kept(x_t), step_B, text_BSE)
    weights = cfg.loss.beta, cfg.loss.lambda_t2v, cfg.loss.lambda_self
    v_star, a = losses.target(v_stb, v_t2v, v_init, v, reward_B, *weights)

    def loss_fn(evolving):
        v_evo = see(evolving)
        return (a * losses.anchor(v_evo, v_star) * share_B).sum(), v_evo

    (_, v_evo), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.evolving)
    terms_B = {
        "policy": losses.policy(v_evo, v_stb, v, reward_B, cfg.loss.beta),
        "t2v": losses.anchor(v_evo, v_t2v),
        "self": losses.anchor(v_evo, v_init),
        "evo_stb": losses.drift(v_evo, v_stb),
        "evo_init": losses.drift(v_evo, v_init),
        "evo_t2v": losses.drift(v_evo, v_t2v),
    }
    terms = {name: (x_B * share_B).sum() for name, x_B in terms_B.items()}
    terms["total"] = (
        terms["policy"] + cfg.loss.lambda_t2v * terms["t2v"] + cfg.loss.lambda_self * terms["self"]
    )
    return grads, terms
