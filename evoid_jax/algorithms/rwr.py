"""Reward-weighted regression: flow matching in which better videos weigh more.

Peters and Schaal 2007; with flow matching and exp(reward) as the weight it is Flow-RWR
(arXiv 2501.13918), with weights that are divided by their sum over the batch DDPO's RWR
(arXiv 2305.13301). Here they are divided by their mean, so that equal rewards are imitation.

Letters: B videos. Velocities are (B, ...), without reference frames.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evoid_jax import losses


def weights(reward_B: jax.Array, valid_B: jax.Array, temperature: float) -> jax.Array:
    """Return exp(reward / temperature) over its mean of the valid videos, (B,) float32.

    Args:
      reward_B: in [0, 1]; those of videos that are not valid may hold anything finite.
      valid_B: 1.0 or 0.0.
      temperature: > 0; large makes the weights equal, small leaves the best alone.
    """
    reward_B, valid_B = (jnp.asarray(x, jnp.float32) for x in (reward_B, valid_B))
    # Less the largest, which changes no quotient: exp overflows in float32 at 89.
    largest = jnp.where(valid_B > 0, reward_B, -jnp.inf).max()
    weight_B = jnp.where(valid_B > 0, jnp.exp((reward_B - largest) / temperature), 0)
    mean = weight_B.sum() / jnp.maximum(valid_B.sum(), 1)
    return weight_B / jnp.where(mean > 0, mean, 1)


def loss(v_evo: jax.Array, v: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Return weight * mean of (v_evo - v)^2 for each video, (B,) float32.

    Args:
      v: the true velocity, noise - video.
      weight_B: of `weights`.
    """
    return weight_B * losses.anchor(v_evo, v)
