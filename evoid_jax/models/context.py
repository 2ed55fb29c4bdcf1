"""Attention over a mesh: videos stay with their devices, tokens are in pieces along `context`.

Self-attention is Ulysses (arXiv 2309.14509) where the pieces divide the heads: two all-to-alls turn
pieces of the tokens into groups of heads and back, and any backend attends in between. Elsewhere it
is ring attention (arXiv 2310.01889): the keys go round and every device folds what passes into an
exact online softmax. Text is whole on every device, so cross-attention needs no exchange.

Shapes: B videos, L queries, S keys, N heads, K head size, X blocks of queries. Within `ring` and
`ulysses` all are one device's own.
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
    """Attend among the first `length` tokens of each video; rows past them are arbitrary.

    Args:
      q_BLNK, k_BLNK, v_BLNK: L divides by the mesh's context.
      backend: of `attention.choose`; ring attention is always exact XLA.
    """
    attend = partial(local.attention, length=length, backend=backend, name=local.KEPT)
    if sharding.alone(mesh):
        return attend(q_BLNK, k_BLNK, v_BLNK)
    pieces = sharding.pieces(mesh)
    if pieces > 1 and q_BLNK.shape[2] % pieces == 0:
        attend = partial(ulysses, attend=attend)
    elif pieces > 1:
        attend = partial(ring, pieces=pieces, length=length)
    spec = sharding.token_spec(q_BLNK.shape[0], mesh)
    return _on_each(attend, mesh, (spec,) * 3, spec)(q_BLNK, k_BLNK, v_BLNK)


def cross_attention(q_BLNK, k_BSNK, v_BSNK, bias_S, mesh: Mesh | None, backend: local.Backend):
    """Attend from tokens in pieces to text that every piece has; bias_S as of `attention`."""
    attend = partial(local.attention, backend=backend)
    if sharding.alone(mesh):
        return attend(q_BLNK, k_BSNK, v_BSNK, bias_S)
    spec = sharding.token_spec(q_BLNK.shape[0], mesh)
    text = P(spec[0])
    if bias_S is None:
        return _on_each(attend, mesh, (spec, text, text), spec)(q_BLNK, k_BSNK, v_BSNK)
    specs = spec, text, text, sharding.REPLICATED
    return _on_each(attend, mesh, specs, spec)(q_BLNK, k_BSNK, v_BSNK, bias_S)


def _on_each(fn, mesh: Mesh, in_specs, out_specs):
    # check_vma: Pallas kernels do not say how their results vary over the mesh
    specs = {"in_specs": in_specs, "out_specs": out_specs}
    return jax.shard_map(fn, mesh=mesh, check_vma=False, **specs)


def ulysses(q_BLNK, k_BLNK, v_BLNK, attend):
    """Attend with all tokens of some heads, from and to some tokens of all heads."""
    swap = partial(jax.lax.all_to_all, axis_name=sharding.CONTEXT, tiled=True)
    whole = [swap(x, split_axis=2, concat_axis=1) for x in (q_BLNK, k_BLNK, v_BLNK)]
    return swap(attend(*whole), split_axis=1, concat_axis=2)


def ring(q_BLNK, k_BSNK, v_BSNK, pieces: int, length: int):
    """Attend from a device's own queries to the first `length` keys of all devices.

    Queries go in blocks, as many as keep the logits under `attention.MAX_LOGITS`.
    """
    B, L, N, _ = q_BLNK.shape
    q_XBNLK = local.into_blocks(q_BLNK, -(-B * N * L * L // local.MAX_LOGITS))
    real_S = _real(jax.lax.axis_index(sharding.CONTEXT), L, length)
    clean = lambda x: jnp.where(real_S[None, :, None, None], x, 0)  # whatever padding may hold
    k_BNSK, v_BNSK = (clean(x).transpose(0, 2, 1, 3) for x in (k_BSNK, v_BSNK))
    return local.out_of_blocks(_ring(q_XBNLK, k_BNSK, v_BNSK, pieces, length), L)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ring(q_XBNLK, k_BNSK, v_BNSK, pieces, length):
    """Go round once; a gradient of its own, as autodiff would keep every state of the softmax."""
    return _forward(q_XBNLK, k_BNSK, v_BNSK, pieces, length)[0]


def _forward(q_XBNLK, k_BNSK, v_BNSK, pieces, length):
    def fold(state, kv, bias_S):
        k_BNKS = kv[0].mT

        def one(block):
            q, out, lse_BNL = block
            logits_BNLS = local.logits(q, k_BNKS, bias_S)
            new_BNL = jnp.logaddexp(lse_BNL, jax.nn.logsumexp(logits_BNLS, -1))
            weights_BNLS = jnp.exp(logits_BNLS - new_BNL[..., None])
            seen = local.matmul(weights_BNLS.astype(kv[1].dtype), kv[1])
            return out * jnp.exp(lse_BNL - new_BNL)[..., None] + seen, new_BNL

        return jax.lax.map(one, (q_XBNLK, *state)), kv

    nothing = jnp.zeros(q_XBNLK.shape, jnp.float32), jnp.full(q_XBNLK.shape[:-1], HIDDEN)
    (out, lse_XBNL), _ = _around(fold, nothing, (k_BNSK, v_BNSK), pieces, length)
    out, lse_XBNL = local.named((out.astype(q_XBNLK.dtype), lse_XBNL), local.KEPT)
    return out, (q_XBNLK, k_BNSK, v_BNSK, out, lse_XBNL)


def _backward(pieces, length, saved, g_XBNLK):
    """Go round again: keys and values take their gradients along, and bring them home."""
    q_XBNLK, k_BNSK, v_BNSK, out, lse_XBNL = saved

    def fold(dq_XBNLK, moving, bias_S):
        k, v, *grads = moving
        k_BNKS, v_BNKS = k.mT, v.mT

        def one(grads, block):
            q, g, delta_BNL1, lse_BNL, dq = block
            weights_BNLS = jnp.exp(local.logits(q, k_BNKS, bias_S) - lse_BNL[..., None])
            more_dq, *more = local.gradients(q, g, delta_BNL1, weights_BNLS, k, v_BNKS)
            return jax.tree.map(jnp.add, grads, tuple(more)), dq + more_dq

        blocks = q_XBNLK, g_XBNLK, local.delta(g_XBNLK, out), lse_XBNL, dq_XBNLK
        grads, dq_XBNLK = jax.lax.scan(one, tuple(grads), blocks)
        return dq_XBNLK, (k, v, *grads)

    zero = lambda x: jnp.zeros(x.shape, jnp.float32)
    moving = k_BNSK, v_BNSK, zero(k_BNSK.mT), zero(v_BNSK.mT)
    dq_XBNLK, (_, _, dk, dv) = _around(fold, zero(q_XBNLK), moving, pieces, length)
    grads = dq_XBNLK, dk.mT, dv.mT
    return tuple(x.astype(y.dtype) for x, y in zip(grads, saved, strict=False))


_ring.defvjp(_forward, _backward)


def _around(fold, state, moving, pieces: int, length: int):
    """Show each device every piece: `fold(state, moving, bias_S) -> state, moving`, then pass on.

    bias_S hides padded keys. After as many turns as there are pieces, what moves is home again.
    """
    here = jax.lax.axis_index(sharding.CONTEXT)
    onward = [(i, (i + 1) % pieces) for i in range(pieces)]

    def turn(carry, step):
        real_S = _real((here - step) % pieces, moving[0].shape[2], length)
        state, passed = fold(*carry, jnp.where(real_S, 0.0, HIDDEN))
        return (state, jax.lax.ppermute(passed, sharding.CONTEXT, onward)), None

    return jax.lax.scan(turn, (state, moving), jnp.arange(pieces))[0]


def _real(piece, size: int, length: int):
    """Say which tokens of a piece are no padding."""
    return piece * size + jnp.arange(size) < length
