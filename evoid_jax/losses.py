"""The evolution losses: policy, anchor, and the one target that all terms reduce to.

B videos; every velocity is (B, ...) with the reference-image slots already sliced away. The rule of
the method (EvoID, CVPR 2026; DiffusionNFT's contrast in velocity space):

    delta  = v_evo - v_stb,   v+ = v_stb + beta delta,   v- = v_stb - beta delta
    policy = R |v+ - v|^2 + (1 - R) |v- - v|^2
    loss   = policy + lambda_t2v |v_evo - v_t2v|^2 + lambda_self |v_evo - v_init|^2

`beta` is not a free scale here: the policy's force grows as beta, its trust region as beta squared,
and both stand against the fixed lambdas. Whoever changes beta changes the lambdas' share too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def policy(
    v_evo: jax.Array, v_stb: jax.Array, v: jax.Array, reward_B: jax.Array, beta: float
) -> jax.Array:
    """Return the policy loss of each video.

    Args:
      v_evo, v_stb: (B, ...) velocities of the evolving and the stable transformer.
      v: (B, ...) the true velocity, noise - video.
      reward_B: (B,) unified reward in [0, 1].
      beta: reach of the evolution direction, > 0.

    Returns:
      (B,) float32, the mean over all other axes.
    """
    v_evo, v_stb, v = wide(v_evo, v_stb, v)
    reward = per_video(reward_B, v)
    step = beta * (v_evo - v_stb)  # beta delta
    toward = jnp.square(v_stb + step - v)  # |v+ - v|^2: small when delta leads to this video
    away = jnp.square(v_stb - step - v)  # |v- - v|^2: small when delta leads away from it
    # At R = 1/2 the terms linear in delta cancel: beta^2 |delta|^2 is left, the trust region.
    return mean(reward * toward + (1 - reward) * away)


def anchor(v_evo: jax.Array, v_ref: jax.Array) -> jax.Array:
    """Return each video's mean squared distance between two velocities.

    Args:
      v_evo: (B, ...) the evolving transformer's.
      v_ref: (B, ...) a frozen one's, or the target of `target`.

    Returns:
      (B,) float32, the mean over all other axes.
    """
    v_evo, v_ref = wide(v_evo, v_ref)
    return mean(jnp.square(v_evo - v_ref))


def target(
    v_stb: jax.Array,
    v_t2v: jax.Array,
    v_init: jax.Array,
    v: jax.Array,
    reward_B: jax.Array,
    beta: float,
    lambda_t2v: float,
    lambda_self: float,
) -> tuple[jax.Array, float]:
    """Reduce the frozen predictions to one target: loss = a |v_evo - v_star|^2 + constant.

    Every term is a quadratic in v_evo, so completing the square gives, element by element,
    a = beta^2 + lambda_t2v + lambda_self and
    a v_star = beta^2 v_stb + beta (2R - 1)(v - v_stb) + lambda_t2v v_t2v + lambda_self v_init.

    Args:
      v_stb: (B, ...) velocity of the stable transformer.
      v_t2v: (B, ...) velocity of the text-to-video teacher.
      v_init: (B, ...) velocity of the transformer before evolution.
      v: (B, ...) the true velocity, noise - video.
      reward_B: (B,) unified reward in [0, 1].
      beta: reach of the evolution direction.
      lambda_t2v: weight of the anchor to the teacher.
      lambda_self: weight of the anchor to the initial model; the three are not all zero.

    Returns:
      v_star (B, ...) float32 and the scalar a. No gradient flows through v_star.
    """
    v_stb, v_t2v, v_init, v = wide(v_stb, v_t2v, v_init, v)
    reward = per_video(reward_B, v)
    a = beta**2 + lambda_t2v + lambda_self
    # Written as steps from v_stb: all four velocities are close, so their sum would lose digits.
    # The force points to the video for R > 1/2, away from it for R < 1/2, and is nothing at 1/2.
    force = beta * (2 * reward - 1) * (v - v_stb)
    pull = lambda_t2v * (v_t2v - v_stb) + lambda_self * (v_init - v_stb)
    # The frozen networks are targets, not parameters: autodiff must not run through them.
    return jax.lax.stop_gradient(v_stb + (force + pull) / a), a


def drift(v_a: jax.Array, v_b: jax.Array) -> jax.Array:
    """Return each video's mean absolute distance between two velocities, for the log.

    For models that are far apart: in bfloat16 it is never below the velocities' own rounding.

    Args:
      v_a, v_b: (B, ...) velocities.

    Returns:
      (B,) float32, the mean over all other axes.
    """
    v_a, v_b = wide(v_a, v_b)
    return mean(jnp.abs(v_a - v_b))


def wide(*arrays: jax.Array) -> list[jax.Array]:
    """Return the arrays in float32 at least; raise ValueError unless their shapes agree."""
    arrays = [jnp.asarray(x) for x in arrays]
    shapes = {x.shape for x in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"velocities must have one shape (B, ...), got {[x.shape for x in arrays]}"
        )
    # bfloat16 has 8 bits: the square of a small difference of large velocities would be noise.
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]


def per_video(x_B: jax.Array, like: jax.Array) -> jax.Array:
    """Give (B,) numbers axes of one, so that they broadcast against `like`, (B, ...).

    Raises:
      ValueError: another shape.
    """
    x_B = jnp.asarray(x_B, like.dtype)
    if x_B.shape != like.shape[:1]:
        raise ValueError(f"expected a number per video {like.shape[:1]}, got {x_B.shape}")
    # (B,) against (B, T, H, W, C) would line up with C, or broadcast (B, 1) to (B, B): be explicit.
    return x_B.reshape(x_B.shape + (1,) * (like.ndim - 1))


def mean(x: jax.Array) -> jax.Array:
    """Return each video's mean over all other axes: (B, ...) to (B,)."""
    return x.mean(axis=tuple(range(1, x.ndim)))
