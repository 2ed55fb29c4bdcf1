"""Softmax attention behind one function, so that a backend can change without touching a model.

Shapes: B videos, L queries, S keys, N heads, K head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Logits of one block of queries stay under this many elements (512 MB in float32).
MAX_LOGITS = 2**27


def attention(q_BLNK, k_BSNK, v_BSNK, bias_S=None):
    """Attend from every query to every key, without a mask.

    Args:
      q_BLNK: queries; their dtype is the result's. Logits are scaled by 1 / sqrt(K).
      k_BSNK: keys.
      v_BSNK: values.
      bias_S: float32 added to the logits of each key. log(n) makes one key weigh as n equal keys.

    Returns:
      BLNK. The softmax is in float32. Long inputs go through in blocks of queries, recomputed in
      the backward pass; the numbers do not depend on the blocks.
    """
    B, L, N, K = q_BLNK.shape
    blocks = -(-B * N * L * k_BSNK.shape[1] // MAX_LOGITS)
    if blocks == 1:
        return _attend(q_BLNK, k_BSNK, v_BSNK, bias_S)
    size = -(-L // blocks)
    q_BLNK = jnp.pad(q_BLNK, ((0, 0), (0, size * blocks - L), (0, 0), (0, 0)))
    q_blocks = jnp.moveaxis(q_BLNK.reshape(B, blocks, size, N, K), 1, 0)
    one = jax.checkpoint(lambda q: _attend(q, k_BSNK, v_BSNK, bias_S), prevent_cse=False)
    out_blocks = jax.lax.map(one, q_blocks)
    return jnp.moveaxis(out_blocks, 0, 1).reshape(B, size * blocks, N, K)[:, :L]


def _attend(q_BLNK, k_BSNK, v_BSNK, bias_S):
    # Heads first and the division after the second matmul: on XLA CPU 3x faster than einsums in
    # the given order around jax.nn.softmax.
    q_BNLK, v_BNSK = q_BLNK.transpose(0, 2, 1, 3), v_BSNK.transpose(0, 2, 1, 3)
    k_BNKS = k_BSNK.transpose(0, 2, 3, 1)
    logits_BNLS = jnp.matmul(q_BNLK, k_BNKS, preferred_element_type=jnp.float32)
    logits_BNLS *= q_BLNK.shape[-1] ** -0.5
    if bias_S is not None:
        logits_BNLS += bias_S[None, None, None, :]
    top = jax.lax.stop_gradient(logits_BNLS.max(-1, keepdims=True))
    weights_BNLS = jnp.exp(logits_BNLS - top)
    total = weights_BNLS.sum(-1, keepdims=True)
    out_BNLK = jnp.matmul(
        weights_BNLS.astype(v_BNSK.dtype), v_BNSK, preferred_element_type=jnp.float32
    )
    return (out_BNLK / total).astype(q_BLNK.dtype).transpose(0, 2, 1, 3)
