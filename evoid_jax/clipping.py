"""Cut gradients that are far longer than usual.

How long a gradient is depends on model, loss and rewards, so a fixed limit either never acts or
always does: NFT's and identity-grpo's is 1.0, and the embedded model's gradients are 0.005 to 0.026
long. The usual length is the median of the last ones, which a single accident does not move.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

WINDOW = 16  # norms whose median is the usual one
FIRST = 4  # norms that must be known before anything is cut


class Norms(NamedTuple):
    """The last gradients' global norms, as they came."""

    norm_W: jax.Array  # float32, in a ring
    count: jax.Array  # int32, of all that were entered


def clip_by_usual_norm(factor: float) -> optax.GradientTransformation:
    """Cut gradients to `factor` times the median norm of the last WINDOW ones; the method is ours.

    A norm enters as it came, before it was cut: where gradients stay larger, the median follows
    within half a window. Gradients of zero, and ones that are not finite, enter nothing.

    Args:
      factor: > 0.
    """

    def init(params) -> Norms:
        del params
        return Norms(jnp.zeros(WINDOW, jnp.float32), jnp.zeros((), jnp.int32))

    def update(grads, norms: Norms, params=None):
        del params
        norm = optax.tree.norm(grads)
        limit = factor * usual(norms)
        # Not a plain limit / norm: both may be zero.
        scale = jnp.where(norm > limit, limit / jnp.where(norm > 0, norm, 1), 1)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), _entered(norms, norm)

    return optax.GradientTransformation(init, update)


def sound(terms: dict, updates: dict, evolving: dict, most_drift: float) -> jax.Array:
    """Tell whether an update may be applied: bool scalar.

    Its terms, gradient and numbers must be finite, and it may be no longer than the adapter that it
    changes: what one step replaces as a whole is no longer an evolution of it. Nor may the adapter
    have left its start so far that nothing of the model can be left.

    Args:
      terms: of the step, scalars; `drift/evo_init` among them, in squared velocities, of which a
        model's own has a mean near 2.
      updates, evolving: trees of one shape.
      most_drift: of `drift/evo_init`; 0 is any.
    """
    finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(jnp.isfinite, terms))
    length = optax.tree.norm(updates)  # not finite where any of it is not
    limit = jnp.where(most_drift > 0, most_drift, jnp.inf)
    near = terms["drift"]["evo_init"] <= limit
    return finite & (length <= optax.tree.norm(evolving)) & near


def usual(norms: Norms) -> jax.Array:
    """Return the median of the norms, infinity before there are FIRST of them."""
    known = jnp.minimum(norms.count, WINDOW)
    # What is not known yet goes to the end, behind the two in the middle of what is.
    rising_W = jnp.sort(jnp.where(jnp.arange(WINDOW) < known, norms.norm_W, jnp.inf))
    median = (rising_W[(known - 1) // 2] + rising_W[known // 2]) / 2
    return jnp.where(known < FIRST, jnp.inf, median)


def _entered(norms: Norms, norm: jax.Array) -> Norms:
    more = Norms(norms.norm_W.at[norms.count % WINDOW].set(norm), norms.count + 1)
    counts = jnp.isfinite(norm) & (norm > 0)
    return jax.tree.map(lambda new, old: jnp.where(counts, new, old), more, norms)
