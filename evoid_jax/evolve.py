"""The evolutionary update: four roles of one base, one target, one optimizer step, one EMA.

Roles are arguments, see roles.py: evolving, stable and initial are adapters of one frozen base, and
the teacher is that base without hints. `initial` is the adapter that the run started from, None
where that is the base alone.

`objective` is EvoID's. Another `config.algorithm` has `other_objective`, and what else it changes
here stands in algorithms/choice.py.

Letters: B videos, P pairs, K trained times, R reference frames, T H W C latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from evoid_jax import clipping, flow, losses, roles, sharding
from evoid_jax.algorithms import choice, grpo
from evoid_jax.config import Config
from evoid_jax.models import lora as adapters
from evoid_jax.models import wan as wan_model

NOISE, TIMES, NULLS, STEPS = 0, 1, 2, 3  # uses of a step's key


class State(NamedTuple):
    """What evolves. Everything here is in a checkpoint, and nothing else of the device is."""

    step: jax.Array
    evolving: dict
    stable: dict
    initial: dict | None  # frozen, theta_0 of the paper; None: the base alone
    opt: optax.OptState


class Scored(NamedTuple):
    """One step's videos as the update needs them."""

    clean_BTHWC: jax.Array  # latents as generated, reference frames first
    pair_B: jax.Array  # which row of text and control
    reward_B: jax.Array  # in [0, 1]
    valid_B: jax.Array  # 1.0 or 0.0: such a video trains nothing
    text_PSE: jax.Array
    null_1SE: jax.Array  # the negative prompt, with as many rows as the others
    control_PTHWC: jax.Array
    walk_BNTHWC: jax.Array | None = None  # all states from noise to `clean`; grpo's alone


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """Return AdamW on gradients of no unusual length, at a rate that may fall linearly."""
    t = cfg.train
    rate = optax.linear_schedule(t.lr, t.lr * t.lr_end, t.lr_steps)
    adamw = optax.adamw(rate, b1=t.b1, b2=t.b2, eps=t.eps, weight_decay=t.weight_decay)
    return optax.chain(clipping.clip_by_usual_norm(t.clip_factor), adamw)


def init(cfg: Config, base, wan_config, start: dict | None = None) -> State:
    """Return the state before step 0: all transformers start as one (paper, section 3.1).

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
    copy = lambda: jax.tree.map(jnp.copy, evolving)  # donated buffers must not be shared
    return State(
        step=jnp.zeros((), jnp.int32),
        evolving=evolving,
        stable=copy(),
        initial=copy() if cfg.lora.init else None,
        opt=optimizer(cfg).init(evolving),
    )


def placement(state: State, mesh: Mesh) -> State:
    """Return where the arrays of a state lie, as a State of NamedSharding.

    The optimizer's moments are in pieces over fsdp; adapters, which every device reads, are whole.
    """
    whole = NamedSharding(mesh, sharding.REPLICATED)
    piece = lambda x: NamedSharding(mesh, sharding.moment_spec(x.shape, mesh))
    placed = jax.tree.map(lambda _: whole, state)
    return placed._replace(opt=jax.tree.map(piece, state.opt))


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
      name, `grad_norm` before clipping, and `refused`: 1 where the update was not sound (see
      clipping.py), so that nothing but the step's number is new.
    """
    grads, terms = accumulate(state, base, lessons(scored, setup.cfg), teacher, setup)
    terms["grad_norm"] = optax.tree.norm(grads)
    cfg = setup.cfg
    updates, opt = optimizer(cfg).update(grads, state.opt, state.evolving)
    evolving = optax.apply_updates(state.evolving, updates)
    # The stable transformer follows: stable <- decay stable + (1 - decay) evolving.
    stable = optax.incremental_update(evolving, state.stable, 1 - choice.decay(cfg, state.step))
    new = state._replace(evolving=evolving, stable=stable, opt=opt)
    any_valid = scored.valid_B.sum() > 0  # otherwise momentum alone would move the adapters
    learned = clipping.sound(terms, updates, state.evolving, cfg.train.drift)
    terms["refused"] = 1.0 - learned
    new = jax.tree.map(lambda a, b: jnp.where(any_valid & learned, a, b), new, state)
    # Where it came in. Left alone the compiler may choose other pieces: they fit no donated buffer,
    # and the next step is compiled again.
    new = jax.lax.with_sharding_constraint(new, placement(new, setup.mesh))
    return new._replace(step=state.step + 1), terms


def lessons(scored: Scored, cfg: Config) -> Scored:
    """Return the videos with what the algorithm makes of their rewards: EvoID leaves all alone."""
    if cfg.algorithm == "evoid":
        return scored
    made = choice.lessons(cfg, scored.reward_B, scored.pair_B, scored.valid_B)
    if made.row_B is not None:
        scored = scored._replace(clean_BTHWC=scored.clean_BTHWC[made.row_B])
    return scored._replace(reward_B=made.lesson_B, valid_B=made.valid_B)


class Sample(NamedTuple):
    """Videos at one time each, on the way from noise to what was generated."""

    clean_BTHWC: jax.Array
    noise_BTHWC: jax.Array
    t_B: jax.Array  # in (0, 1]
    text_BSE: jax.Array
    null_1SE: jax.Array
    control_BTHWC: jax.Array
    reward_B: jax.Array  # in [0, 1], or what `lessons` made of it
    share_B: jax.Array  # weight of each video in the mean; zero for those without a reward
    walked: grpo.Step | None = None  # a step that the rollout took; grpo's alone


def accumulate(state: State, base: dict, scored: Scored, teacher: dict | None, setup: Setup):
    """Sum gradients and terms over parts of the batch and over times; returns (grads, terms)."""
    learn = objective if setup.cfg.algorithm == "evoid" else other_objective
    fn = lambda sample: learn(state, base, sample, teacher, setup)
    zero = jax.tree.map(jnp.zeros_like, state.evolving)
    return over_samples(fn, zero, state.step, scored, setup, count=setup.cfg.train.timesteps)


def over_samples(fn, zero, step: jax.Array, scored: Scored, setup: Setup, count: int):
    """Sum what `fn` returns of every video at its first `count` times, part of the batch by part.

    Args:
      fn: Sample -> (a tree shaped as `zero`, a tree of scalars), already weighed by share_B.
      step: whose noise and times are drawn.
      count: 1 to K.

    Returns:
      Both trees, summed.
    """
    cfg, mesh = setup.cfg, setup.mesh
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    videos, pairs = scored.clean_BTHWC.shape[0], scored.text_PSE.shape[0]
    t_PK = times(jax.random.fold_in(key, TIMES), pairs, cfg)
    noise_key, null_key = jax.random.fold_in(key, NOISE), jax.random.fold_in(key, NULLS)
    share = null_share(cfg)
    parts = sharding.parts_of(videos, cfg.train.videos_per_device, mesh)
    share_B = scored.valid_B / jnp.maximum(scored.valid_B.sum(), 1) / count
    columns = jnp.arange(videos), scored.clean_BTHWC, scored.pair_B, scored.reward_B, share_B
    columns += (scored.walk_BNTHWC,)
    split = jax.tree.map(lambda x: sharding.split(x, parts=parts, mesh=mesh), columns)
    walked = walked_steps(jax.random.fold_in(key, STEPS), pairs, cfg)

    def own(key, index, k):
        """Return a key of seed, step, video and time alone, whatever the parts and devices."""
        return jax.random.fold_in(jax.random.fold_in(key, index), k)

    def add(total, turn):
        part, k = turn // count, turn % count
        columns = jax.tree.map(lambda column: column[part], split)
        index_B, clean_BTHWC, pair_B, reward_B, share_B, walk_BNTHWC = columns
        draw_noise = lambda i: jax.random.normal(own(noise_key, i, k), clean_BTHWC.shape[1:])
        sample = Sample(
            clean_BTHWC=clean_BTHWC,
            noise_BTHWC=jax.vmap(draw_noise)(index_B),
            t_B=t_PK[pair_B, k],
            text_BSE=scored.text_PSE[pair_B],
            null_1SE=scored.null_1SE,
            control_BTHWC=scored.control_PTHWC[pair_B],
            reward_B=reward_B,
            share_B=share_B,
            walked=walked(walk_BNTHWC, pair_B, k),
        )
        if share > 0:
            draw_null = lambda i: jax.random.bernoulli(own(null_key, i, k), share)
            neutral = choice.NEUTRAL[cfg.algorithm]
            sample = some_null(sample, jax.vmap(draw_null)(index_B), neutral)
        more, terms = fn(sample)
        return jax.tree.map(jnp.add, total, more), terms

    total, terms = jax.lax.scan(add, zero, jnp.arange(parts * count))
    return total, jax.tree.map(lambda x: x.sum(), terms)


def null_share(cfg: Config) -> float:
    """Return the share of samples that see the negative prompt: none where it never guides."""
    guidance = cfg.guidance
    return guidance.null_share if guidance.used and guidance.null == "adapter" else 0.0


def some_null(sample: Sample, null_B: jax.Array, neutral: float) -> Sample:
    """Let some videos see the negative prompt, with a neutral reward: the anchors hold it.

    null_B: bool. A video's score says nothing of the negative prompt, so it learns nothing from it.
    neutral: that reward, in the units of `Sample.reward_B`.
    """
    text_BSE = jnp.where(null_B[:, None, None], sample.null_1SE, sample.text_BSE)
    reward_B = jnp.where(null_B, neutral, sample.reward_B)
    return sample._replace(text_BSE=text_BSE, reward_B=reward_B)


def times(key: jax.Array, pairs: int, cfg: Config) -> jax.Array:
    """Draw K times in (0, 1] for each pair, one from each part of the list: (P, K).

    All videos of a pair share them, so that times do not blur what the rewards compare.
    """
    if cfg.algorithm == "grpo":  # it trains what the rollout walked through, see `walked_steps`
        grid = grpo.of_config(cfg).sigma_N[:-1]
    else:
        grid = flow.train_timesteps(cfg.train.grid, cfg.train.shift)
    draw = lambda k: flow.choose_timesteps(k, grid, cfg.train.timesteps)
    return jax.vmap(draw)(jax.random.split(key, pairs))


def walked_steps(key: jax.Array, pairs: int, cfg: Config) -> Callable:
    """Draw K steps of the rollout for each pair, which all videos of a pair share as `times`.

    Returns the function that takes them out of walks: (walk_BNTHWC, pair_B, k) -> `grpo.Step`, and
    None where there are no walks.
    """
    if cfg.algorithm != "grpo":
        return lambda walk_BNTHWC, pair_B, k: None
    made = grpo.of_config(cfg)
    numbers = np.arange(len(made.sigma_N) - 1)  # not the last, which has no noise
    draw = lambda own: flow.choose_timesteps(own, numbers, cfg.train.timesteps)
    step_PK = jax.vmap(draw)(jax.random.split(key, pairs))

    def take(walk_BNTHWC, pair_B, k) -> grpo.Step | None:
        return None if walk_BNTHWC is None else grpo.taken(made, walk_BNTHWC, step_PK[pair_B, k])

    return take


def noise_up(sample: Sample, references: int) -> roles.Noised:
    """Return a sample's videos at their times, x_t = (1 - t) x_0 + t noise."""
    t = sample.t_B[:, None, None, None, None]
    return roles.Noised(
        x_BTHWC=flow.add_noise(sample.clean_BTHWC, sample.noise_BTHWC, t),
        t_B=flow.TIMESTEPS * sample.t_B,
        text_BSE=sample.text_BSE,
        null_BSE=roles.repeat(sample.null_1SE, len(sample.t_B)),
        control_BTHWC=sample.control_BTHWC,
        references=references,
    )


def objective(state: State, base: dict, sample: Sample, teacher: dict | None, setup: Setup):
    """Return (gradient, terms) of the loss on some videos at one time each.

    The names of the terms stand here and nowhere else: log, record and report take them over.
    """
    wan, cfg, noised = setup.wan, setup.cfg, noise_up(sample, setup.references)
    see = roles.predict(wan, base, noised, cfg)
    # Three frozen networks and the truth reduce to one target before the evolving pass begins.
    v = flow.velocity(sample.clean_BTHWC, sample.noise_BTHWC)[:, setup.references :]
    v_stb, v_init = see(state.stable), see(state.initial)
    v_t2v = roles.teach(wan, base if teacher is None else teacher, noised, cfg)
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
    # Of the adapters, in float32: delta is smaller than what bfloat16 rounds off a velocity. At
    # zero v+ and v- are one, and the policy no longer tells good videos from bad ones.
    lead = adapters.distance(base, state.evolving, state.stable, scale=wan.lora_scale)
    drift_B = {
        "evo_stb": jnp.full_like(sample.share_B, lead),
        "evo_init": losses.drift(v_evo, v_init),
        "evo_t2v": losses.drift(v_evo, v_t2v),
    }
    terms_B = {"loss": loss_B, "drift": drift_B}
    return grads, jax.tree.map(lambda x_B: (x_B * sample.share_B).sum(), terms_B)


def other_objective(state: State, base: dict, sample: Sample, teacher: dict | None, setup: Setup):
    """Do as `objective` by the loss of another algorithm; none of them has a teacher."""
    del teacher
    wan, cfg, noised = setup.wan, setup.cfg, noise_up(sample, setup.references)
    walked = sample.walked
    if walked is not None:
        noised = noised._replace(x_BTHWC=walked.x, t_B=walked.timestep_B)
        frames = lambda x_BTHWC: x_BTHWC[:, setup.references :]
        walked = walked._replace(x=frames(walked.x), next=frames(walked.next))
    see = roles.predict(wan, base, noised, cfg)
    seen = choice.Seen(
        v=flow.velocity(sample.clean_BTHWC, sample.noise_BTHWC)[:, setup.references :],
        v_stb=see(state.stable),
        v_init=see(state.initial),
        t_B=sample.t_B,
        lesson_B=sample.reward_B,
        step=walked,
    )

    def loss_fn(evolving):
        v_evo = see(evolving)
        terms_B = choice.loss(cfg, v_evo, seen)
        return (terms_B["loss"]["total"] * sample.share_B).sum(), (v_evo, terms_B)

    (_, (v_evo, terms_B)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.evolving)
    lead = adapters.distance(base, state.evolving, state.stable, scale=wan.lora_scale)
    terms_B["drift"] = {
        "evo_stb": jnp.full_like(sample.share_B, lead),
        "evo_init": losses.drift(v_evo, seen.v_init),
    }
    return grads, jax.tree.map(lambda x_B: (x_B * sample.share_B).sum(), terms_B)


@partial(jax.jit, static_argnames="setup")
def guided_drift(state: State, base: dict, scored: Scored, *, setup: Setup) -> dict:
    """Measure how far the negative prompt's and the guided velocity are from the start's.

    Args: as of `train_step`.

    Returns:
      `null` and `guided`: scalars, as `losses.drift`, means over the valid videos at one time each.
    """
    wan, guidance = setup.wan, setup.cfg.guidance
    scale = max(guidance.rollout, guidance.train, guidance.proof, guidance.deploy)
    unguided = dataclasses.replace(setup.cfg, guidance=dataclasses.replace(guidance, train=1.0))

    def measure(sample: Sample):
        noised = noise_up(sample, setup.references)
        see = roles.predict(wan, base, noised, unguided)
        see_null = roles.predict_null(wan, base, noised, unguided)
        bare = guidance.null == "base"
        null_evo = see_null(None if bare else state.evolving)
        null_init = see_null(None if bare else state.initial)
        guided_evo = roles.guide(see(state.evolving), null_evo, scale)
        guided_init = roles.guide(see(state.initial), null_init, scale)
        drift_B = {
            "null": losses.drift(null_evo, null_init),
            "guided": losses.drift(guided_evo, guided_init),
        }
        return (), jax.tree.map(lambda x_B: (x_B * sample.share_B).sum(), drift_B)

    return over_samples(measure, (), state.step, scored, setup, count=1)[1]
