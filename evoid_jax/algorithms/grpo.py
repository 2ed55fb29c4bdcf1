"""GRPO on flow models: a sampler that draws noise, so that steps have probabilities.

Flow-GRPO (arXiv 2505.05470), as its code does it for Wan2.1 and as Identity-GRPO (arXiv 2510.14256)
does it for VACE. A step from time sigma to the next one, fall = sigma - next, with noise s:

    mean = x - fall (v + s^2 / (2 sigma) (x + (1 - sigma) v)),    x' ~ N(mean, s^2 fall)

which has the marginals of the ODE whatever s is. Evolving, stable and initial are three policies
with one variance: log-probabilities differ by what their means differ. All sums over a video's
elements are means, as in both codes.

Two things are ours. The last step draws no noise, which nothing would take off again, and is never
trained. And the old policy is the stable transformer as the update sees it, not a number kept from
the rollout: at equal adapters the ratio is 1 in every dtype.

Letters: B videos, N steps. Velocities and samples are (B, ...), any shape in `walk`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evoid_jax import flow, losses
from evoid_jax.config import Config


class Schedule(NamedTuple):
    """A walk's steps, float32."""

    timestep_N: np.ndarray  # as the model takes them
    sigma_N: np.ndarray
    fall_N: np.ndarray  # sigma less the next one; the last goes to 0
    noise_N: np.ndarray  # s; 0 in the last step


class Step(NamedTuple):
    """One step of some videos, each its own."""

    x: jax.Array  # (B, ...) before
    next: jax.Array  # (B, ...) after
    timestep_B: jax.Array
    sigma_B: jax.Array
    fall_B: jax.Array
    noise_B: jax.Array


def schedule(table: flow.Table, noise: str, level: float) -> Schedule:
    """Return the steps of a walk through a solver's times.

    Args:
      table: of `flow.schedule`, of two steps at least.
      noise: "linear", s = level sigma_1 sigma, both codes' for Wan with level 1; or "root",
        s = level sqrt(sigma / (1 - sigma)), Flow-GRPO's for images with level 0.7. sigma_1 is the
        second time; it stands for 1 where root would divide by nothing.
      level: > 0.
    """
    sigma_N = np.asarray(table.sigmas_N, np.float64)
    first = sigma_N[1]
    if noise == "linear":
        noise_N = level * first * sigma_N
    else:
        noise_N = level * np.sqrt(sigma_N / (1 - np.minimum(sigma_N, first)))
    noise_N[-1] = 0
    return Schedule(
        timestep_N=np.asarray(table.timesteps_N, np.float32),
        sigma_N=sigma_N.astype(np.float32),
        fall_N=(sigma_N - np.append(sigma_N[1:], 0)).astype(np.float32),
        noise_N=noise_N.astype(np.float32),
    )


def of_config(cfg: Config) -> Schedule:
    """Return the steps of a run's walks: the rollout's times, with config.grpo's noise."""
    r = cfg.rollout
    table = flow.schedule(r.scheduler, r.steps, r.shift)
    return schedule(table, cfg.grpo.noise, cfg.grpo.level)


def mean(x: jax.Array, v: jax.Array, sigma, fall, noise) -> jax.Array:
    """Return the mean of a step, shaped as x. sigma, fall, noise: scalars, or axes of one."""
    score = noise**2 / (2 * sigma) * (x + (1 - sigma) * v)
    return x - fall * (v + score)


def walk(made: Schedule, velocity_fn: Callable, noise: jax.Array, draw: Callable) -> jax.Array:
    """Go from noise to a clean sample, and keep every state.

    Args:
      velocity_fn: (x, timestep scalar) -> velocity, float32, shaped as x.
      noise: (B, ...) standard normal, float32.
      draw: index of a step -> standard normal, shaped as x.

    Returns:
      (B, N + 1, ...): the noise first, the sample last.
    """

    def step(x, row):
        index, timestep, sigma, fall, s = row
        new = mean(x, velocity_fn(x, timestep), sigma, fall, s)
        new = new + s * jnp.sqrt(fall) * draw(index)
        return new, new

    rows = (jnp.arange(len(made.sigma_N)), *map(jnp.asarray, made))
    _, states_NB = jax.lax.scan(step, noise, rows)
    return jnp.concatenate([noise[:, None], jnp.moveaxis(states_NB, 0, 1)], axis=1)


def taken(made: Schedule, walk_BN: jax.Array, index_B: jax.Array) -> Step:
    """Return one step of each video's walk. index_B: ints in 0..N - 2, the last one is no step."""
    of_video = jax.vmap(lambda states, index: states[index])
    row = [jnp.asarray(column)[index_B] for column in made]
    return Step(of_video(walk_BN, index_B), of_video(walk_BN, index_B + 1), *row)


def advantages(
    reward_B: jax.Array, pair_B: jax.Array, valid_B: jax.Array, clip: float
) -> jax.Array:
    """Return (R - mean) / (std + 1e-4) within each pair, clipped to +-clip: (B,) float32.

    Args:
      reward_B: any scale. pair_B: ints. valid_B: 1.0 or 0.0; others have no part in it, and get 0.
      clip: in standard deviations.
    """
    reward_B = jnp.asarray(reward_B, jnp.float32)
    mates_BB = ((pair_B[:, None] == pair_B[None, :]) & (valid_B > 0)[None, :]).astype(jnp.float32)
    count_B = jnp.maximum(mates_BB.sum(axis=1), 1)
    mean_B = (mates_BB * reward_B[None, :]).sum(axis=1) / count_B
    apart_BB = reward_B[None, :] - mean_B[:, None]
    std_B = jnp.sqrt((mates_BB * jnp.square(apart_BB)).sum(axis=1) / count_B)
    score_B = jnp.clip((reward_B - mean_B) / (std_B + 1e-4), -clip, clip)
    return jnp.where(valid_B > 0, score_B, 0)


def log_ratio(v_evo: jax.Array, v_stb: jax.Array, step: Step) -> jax.Array:
    """Return log p_evo(x') - log p_stb(x') of each video, (B,) float32, a mean over its elements.

    Written as a product of differences: the two log-probabilities are close, and exactly 0 apart
    for equal velocities.
    """
    v_evo, v_stb, x, after = losses.wide(v_evo, v_stb, step.x, step.next)
    sigma, fall, noise = _wide_row(step, x)
    # Between the two means: (x' - m)^2 - (x' - m_evo)^2 with both squares multiplied out.
    middle = mean(x, (v_evo + v_stb) / 2, sigma, fall, noise)
    apart = -_reach(sigma, fall, noise) * (v_evo - v_stb)
    return losses.mean(apart * (after - middle) / (noise**2 * fall))


def kl(v_evo: jax.Array, v_init: jax.Array, step: Step) -> jax.Array:
    """Return KL(evolving || initial) of a step, (B,) float32, a mean over its elements.

    Of two normals of one variance: |m_evo - m_init|^2 / (2 s^2 fall).
    """
    v_evo, v_init, x = losses.wide(v_evo, v_init, step.x)
    sigma, fall, noise = _wide_row(step, x)
    apart = _reach(sigma, fall, noise) * (v_evo - v_init)
    return losses.mean(jnp.square(apart) / (2 * noise**2 * fall))


def policy(log_ratio_B: jax.Array, advantage_B: jax.Array, clip: float) -> jax.Array:
    """Return PPO's loss, max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), of each video."""
    ratio_B = jnp.exp(log_ratio_B)
    held_B = jnp.clip(ratio_B, 1 - clip, 1 + clip)
    return jnp.maximum(-advantage_B * ratio_B, -advantage_B * held_B)


def _reach(sigma, fall, noise):
    """Return by how much a step's mean moves against a change of the velocity."""
    return fall * (1 + noise**2 * (1 - sigma) / (2 * sigma))


def _wide_row(step: Step, like: jax.Array) -> list[jax.Array]:
    return [losses.per_video(x_B, like) for x_B in (step.sigma_B, step.fall_B, step.noise_B)]
