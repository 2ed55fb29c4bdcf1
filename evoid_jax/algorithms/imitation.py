"""Imitation: flow matching on videos that are taken for right.

What ConsisID (arXiv 2411.17440) and VACE (arXiv 2503.07598) train with, on footage. Without footage
the best of the N videos that were generated for a pair stands for it (RAFT, arXiv 2304.06767).

Letters: B videos. Velocities are (B, ...), without reference frames.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evoid_jax import losses


def best_of_pair(
    reward_B: jax.Array, pair_B: jax.Array, valid_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return for each video the row of the best one of its pair, and whether there is one.

    The best takes the places of all videos of its pair, each with noise of its own, so that an
    update sees as many samples as any other.

    Args:
      reward_B: any scale; of equal ones the first wins.
      pair_B: ints, equal for videos of one pair.
      valid_B: 1.0 or 0.0: such a video is never the best.

    Returns:
      row_B int32, and valid_B, 1.0 where the pair has any valid video.
    """
    mates_BB = (pair_B[:, None] == pair_B[None, :]) & (valid_B > 0)[None, :]
    row_B = jnp.where(mates_BB, reward_B[None, :], -jnp.inf).argmax(axis=1)
    return row_B.astype(jnp.int32), mates_BB.any(axis=1).astype(valid_B.dtype)


def loss(v_evo: jax.Array, v: jax.Array) -> jax.Array:
    """Return the flow matching loss of each video, (B,) float32: the mean of (v_evo - v)^2.

    v: the true velocity, noise - video.
    """
    return losses.anchor(v_evo, v)
