"""DiffusionNFT as published (arXiv 2509.16117, and its code): EvoID's loss descends from it.

The same contrast of v+ and v-, measured between the videos that they lead to, each distance divided
by its own size; no teacher, and a weak pull to the start. Its names for our things: default is the
evolving adapter, old the stable one, ref the initial one.

Letters: B videos. Velocities are (B, ...), without reference frames.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evoid_jax import losses

LEAST = 1e-5  # of a distance that something is divided by
DECAYS = ("0", "1", "2")  # the authors' decay_type


def policy(
    v_evo: jax.Array,
    v_stb: jax.Array,
    v: jax.Array,
    t_B: jax.Array,
    reward_B: jax.Array,
    beta: float,
    adv_clip: float,
) -> jax.Array:
    """Return the adaptive loss in the space of videos, for each video.

    With v+- = v_stb +- beta (v_evo - v_stb), x_0+- = x_t - t v+- and w+- = mean |x_0+- - x_0|,
    which no gradient passes through:

        adv_clip / beta * (r mean((x_0+ - x_0)^2 / w+) + (1 - r) mean((x_0- - x_0)^2 / w-))

    Args:
      v_evo, v_stb: of the evolving and the stable transformer.
      v: the true velocity, noise - video.
      t_B: times in (0, 1].
      reward_B: r, in [0, 1].
      beta: > 0. adv_clip: the scale of the advantages that r stands for, > 0.

    Returns:
      (B,) float32.
    """
    v_evo, v_stb, v = losses.wide(v_evo, v_stb, v)
    t, step = losses.per_video(t_B, v), beta * (v_evo - v_stb)
    reward_B = jnp.asarray(reward_B, v.dtype)

    def distance(v_side: jax.Array) -> jax.Array:
        # x_t - t v+- less x_t - t v: the noised video itself drops out.
        error = t * (v_side - v)
        size_B = jnp.maximum(losses.mean(jnp.abs(error)), LEAST)
        return losses.mean(jnp.square(error)) / jax.lax.stop_gradient(size_B)

    toward_B, away_B = distance(v_stb + step), distance(v_stb - step)
    return adv_clip / beta * (reward_B * toward_B + (1 - reward_B) * away_B)


def decay(step: jax.Array, kind: str) -> jax.Array:
    """Return the decay of the stable transformer after an update, in [0, 1).

    Args:
      step: updates made so far, this one counted: 1, 2, ...
      kind: "0" copies the evolving one; "1" is min(s / 1000, 1/2), the default; "2" copies for
        75 updates and then is min(0.0075 (s - 75), 0.999).
    """
    step = jnp.asarray(step, jnp.float32)
    if kind == "0":
        return jnp.zeros_like(step)
    if kind == "1":
        return jnp.minimum(0.001 * step, 0.5)
    return jnp.clip(0.0075 * (step - 75), 0, 0.999)
