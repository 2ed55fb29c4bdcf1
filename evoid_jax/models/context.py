"""Attention over a mesh: videos stay with their devices, tokens are in pieces along `context`.

Self-attention is Ulysses (arXiv 2309.14509) where the pieces divide the heads: two all-to-alls turn
pieces of the tokens into groups of heads and back, and any backend attends in between. Elsewhere it
is ring attention (arXiv 2310.01889): keys and values are passed from device to device, and each
folds what passes into an exact online softmax. Text is whole on every device, so cross-attention
needs no exchange.

Shapes: B videos, L queries, S keys, N heads, K head size, X blocks of queries. Within `ring` and
`ulysses` every array is what one device holds: a part of the videos, a piece of their tokens.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from evoid_jax import sharding
from evoid_jax.models import attention as local

HIDDEN = -1e30  # logit of a padded key; finite, so that a piece of nothing but padding adds nothing


def self_attention(q_BLNK, k_BLNK, v_BLNK, length: int, mesh: Mesh | None, backend: local.Backend):
    """Attend among the first `length` tokens of each video.

    Args:
      q_BLNK, k_BLNK, v_BLNK: all tokens with padding; L divides by the mesh's context.
      length: tokens without padding.
      mesh: None is one device.
      backend: of `attention.choose`; ring attention is always exact XLA.

    Returns:
      BLNK, laid out as the queries; rows from `length` on are arbitrary.
    """
    attend = partial(local.attention, length=length, backend=backend, name=local.KEPT)
    if sharding.alone(mesh):
        return attend(q_BLNK, k_BLNK, v_BLNK)
    pieces = sharding.pieces(mesh)
    heads = q_BLNK.shape[2]
    if pieces > 1 and heads % pieces == 0:
        attend = partial(ulysses, attend=attend)
    elif pieces > 1:
        attend = partial(ring, pieces=pieces, length=length)
    spec = sharding.token_spec(q_BLNK.shape[0], mesh)
    on_each = _on_each_device(attend, mesh, in_specs=(spec,) * 3, out_specs=spec)
    return on_each(q_BLNK, k_BLNK, v_BLNK)


def cross_attention(q_BLNK, k_BSNK, v_BSNK, bias_S, mesh: Mesh | None, backend: local.Backend):
    """Attend from tokens in pieces to text that every device has whole.

    Args:
      q_BLNK: of the tokens; L divides by the mesh's context.
      k_BSNK, v_BSNK: of the text.
      bias_S: added to the logits of each key, or None; as of `attention`.
      mesh: None is one device.
      backend: of `attention.choose`.

    Returns:
      BLNK, laid out as the queries.
    """
    attend = partial(local.attention, backend=backend)
    if sharding.alone(mesh):
        return attend(q_BLNK, k_BSNK, v_BSNK, bias_S)
    spec = sharding.token_spec(q_BLNK.shape[0], mesh)
    text = P(spec[0])  # videos as the tokens', rows whole
    if bias_S is None:
        on_each = _on_each_device(attend, mesh, in_specs=(spec, text, text), out_specs=spec)
        return on_each(q_BLNK, k_BSNK, v_BSNK)
    in_specs = spec, text, text, sharding.REPLICATED
    on_each = _on_each_device(attend, mesh, in_specs=in_specs, out_specs=spec)
    return on_each(q_BLNK, k_BSNK, v_BSNK, bias_S)


def _on_each_device(fn, mesh: Mesh, in_specs, out_specs):
    # check_vma is off: Pallas kernels do not say how their results vary over the mesh.
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def ulysses(q_BLNK, k_BLNK, v_BLNK, attend):
    """Attend among tokens in pieces, by turning them into all tokens of some heads and back.

    Args:
      q_BLNK, k_BLNK, v_BLNK: this device's piece of the tokens, all heads.
      attend: (q, k, v) -> BLNK, for all tokens of some heads.

    Returns:
      BLNK, this device's piece, all heads.
    """
    swap = partial(jax.lax.all_to_all, axis_name=sharding.CONTEXT, tiled=True)
    # Give away other devices' heads, get their tokens of ours: (B, L/P, N, K) -> (B, L, N/P, K).
    q, k, v = (swap(x, split_axis=2, concat_axis=1) for x in (q_BLNK, k_BLNK, v_BLNK))
    return swap(attend(q, k, v), split_axis=1, concat_axis=2)


def ring(q_BLNK, k_BSNK, v_BSNK, pieces: int, length: int):
    """Attend from a device's own queries to the keys of all devices.

    Args:
      q_BLNK, k_BSNK, v_BSNK: this device's piece of the tokens; S is L.
      pieces: devices along context.
      length: of all tokens, those that are no padding.

    Returns:
      BLNK, this device's piece.
    """
    B, L, N, _ = q_BLNK.shape
    # As many blocks of queries as keep the logits against one piece of keys under MAX_LOGITS.
    q_XBNLK = local.into_blocks(q_BLNK, -(-B * N * L * L // local.MAX_LOGITS))
    real_S = _real(jax.lax.axis_index(sharding.CONTEXT), L, length)
    # Padding may hold anything: HIDDEN gives it weight 0, but 0 times infinity would be NaN.
    clean = lambda x: jnp.where(real_S[None, :, None, None], x, 0)
    k_BNSK, v_BNSK = (clean(x).transpose(0, 2, 1, 3) for x in (k_BSNK, v_BSNK))
    return local.out_of_blocks(_ring(q_XBNLK, k_BNSK, v_BNSK, pieces, length), L)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ring(q_XBNLK, k_BNSK, v_BNSK, pieces, length):
    """Pass the keys round once, with a gradient of its own: autodiff would keep every softmax."""
    return _forward(q_XBNLK, k_BNSK, v_BNSK, pieces, length)[0]


def _forward(q_XBNLK, k_BNSK, v_BNSK, pieces, length):
    """Attend; the state of each query is its output so far and lse, the log of its weights' sum."""

    def fold(state, kv, bias_S):
        out_XBNLK, lse_XBNL = state
        k_BNSK, v_BNSK = kv
        k_BNKS = k_BNSK.mT

        def fold_block(block):
            q_BNLK, out_BNLK, lse_BNL = block
            logits_BNLS = local.logits(q_BNLK, k_BNKS, bias_S)
            # Online softmax: with a new sum of weights, what was gathered before shrinks by
            # exp(old - new), and what is gathered now is already divided by the new one.
            new_BNL = jnp.logaddexp(lse_BNL, jax.nn.logsumexp(logits_BNLS, -1))
            weights_BNLS = jnp.exp(logits_BNLS - new_BNL[..., None])
            gathered_BNLK = local.matmul(weights_BNLS.astype(v_BNSK.dtype), v_BNSK)
            return out_BNLK * jnp.exp(lse_BNL - new_BNL)[..., None] + gathered_BNLK, new_BNL

        return jax.lax.map(fold_block, (q_XBNLK, out_XBNLK, lse_XBNL)), kv

    # HIDDEN and not -inf: the difference of two infinities would be NaN.
    nothing = jnp.zeros(q_XBNLK.shape, jnp.float32), jnp.full(q_XBNLK.shape[:-1], HIDDEN)
    (out, lse_XBNL), _ = _around(fold, nothing, (k_BNSK, v_BNSK), pieces, length)
    # Named both: the backward pass starts from them, and "attention" remat then keeps them.
    out, lse_XBNL = local.named((out.astype(q_XBNLK.dtype), lse_XBNL), local.KEPT)
    return out, (q_XBNLK, k_BNSK, v_BNSK, out, lse_XBNL)


def _backward(pieces, length, saved, g_XBNLK):
    """Pass them round again: keys and values take their gradients along, and bring them home."""
    q_XBNLK, k_BNSK, v_BNSK, out, lse_XBNL = saved

    def fold(dq_XBNLK, moving, bias_S):
        k_BNSK, v_BNSK, dk_BNKS, dv_BNKS = moving
        k_BNKS, v_BNKS = k_BNSK.mT, v_BNSK.mT

        def add_block(sums, block):
            dk_BNKS, dv_BNKS = sums
            q_BNLK, g_BNLK, delta_BNL1, lse_BNL, dq_BNLK = block
            # With the final lse these are the finished weights, whatever piece the keys are of.
            weights_BNLS = jnp.exp(local.logits(q_BNLK, k_BNKS, bias_S) - lse_BNL[..., None])
            more_dq, more_dk, more_dv = local.gradients(
                q_BNLK, g_BNLK, delta_BNL1, weights_BNLS, k_BNSK, v_BNKS
            )
            return (dk_BNKS + more_dk, dv_BNKS + more_dv), dq_BNLK + more_dq

        blocks = q_XBNLK, g_XBNLK, local.delta(g_XBNLK, out), lse_XBNL, dq_XBNLK
        (dk_BNKS, dv_BNKS), dq_XBNLK = jax.lax.scan(add_block, (dk_BNKS, dv_BNKS), blocks)
        return dq_XBNLK, (k_BNSK, v_BNSK, dk_BNKS, dv_BNKS)

    zero = lambda x: jnp.zeros(x.shape, jnp.float32)
    moving = k_BNSK, v_BNSK, zero(k_BNSK.mT), zero(v_BNSK.mT)
    dq_XBNLK, (_, _, dk_BNKS, dv_BNKS) = _around(fold, zero(q_XBNLK), moving, pieces, length)
    dq_XBNLK = dq_XBNLK.astype(q_XBNLK.dtype)
    return dq_XBNLK, dk_BNKS.mT.astype(k_BNSK.dtype), dv_BNKS.mT.astype(v_BNSK.dtype)


_ring.defvjp(_forward, _backward)


def _around(fold, state, moving, pieces: int, length: int):
    """Show each device every piece of what moves, in as many turns as there are pieces.

    Args:
      fold: (state, moving, bias_S) -> (state, moving); bias_S hides the padded keys of the piece.
      state: what stays on its device, of `fold`.
      moving: what is passed on after each turn; its first array is BNSK, a piece of the keys.
      pieces: devices along context.
      length: of all tokens, those that are no padding.

    Returns:
      state and moving after the last turn, when everything that moves is home again.
    """
    here = jax.lax.axis_index(sharding.CONTEXT)
    onward = [(i, (i + 1) % pieces) for i in range(pieces)]

    size = moving[0].shape[2]

    def turn(carry, step):
        state, moving = carry
        # What has come over `step` devices set out from the one `step` before this.
        real_S = _real((here - step) % pieces, size, length)
        state, moving = fold(state, moving, jnp.where(real_S, 0.0, HIDDEN))
        return (state, jax.lax.ppermute(moving, sharding.CONTEXT, onward)), None

    return jax.lax.scan(turn, (state, moving), jnp.arange(pieces))[0]


def _real(piece, size: int, length: int):
    """Say which of a piece's `size` tokens are no padding: they are the first `length` of all."""
    return piece * size + jnp.arange(size) < length
