"""Softmax attention behind one function, so that a backend can change without touching a model.

Backends, by the platform of the mesh's devices: `exact` is plain XLA in blocks of queries and runs
everywhere, `cudnn` is cuDNN's flash attention on NVIDIA GPUs, `splash` a Pallas kernel on TPUs.
What is here sees one device's arrays; context.py lays them out over a mesh.

Shapes: B videos, L queries, S keys, N heads, K head size.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from evoid_jax.models import splash

BACKENDS = ("auto", "exact", "cudnn", "splash")
# Logits of one block of queries stay under this many elements: 512 MB in float32, and on a CPU
# 8 MB, for its caches: at 1,536 tokens that halves the time of a forward pass.
MAX_LOGITS = 2**27
CPU_LOGITS = 2**21


class Backend(NamedTuple):
    """What computes attention, and on which chip: its `device_kind`."""

    name: str
    chip: str = ""


EXACT = Backend("exact")
KEPT = "self-attention"  # the name of what `keep` keeps


def choose(name: str, mesh, dtype, head_size: int) -> Backend:
    """Settle which backend serves a model of this dtype and head size on a mesh (or one device).

    "auto" takes the platform's kernel where it can hold the model, else "exact".

    Raises:
      ValueError: the kernel asked for cannot hold the model; the message says why.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    lacks = {
        "cudnn": "" if half else f"needs 16 bit, got {jnp.dtype(dtype).name}",
        "splash": f"needs heads of 128 k, got {head_size}" if head_size % splash.LANES else "",
    }
    if name == "auto":
        name = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(device.platform, "exact")
        name = "exact" if lacks.get(name) else name
    elif name not in BACKENDS:
        raise ValueError(f"attention {name!r}; expected one of {', '.join(BACKENDS)}")
    elif lacks.get(name):
        raise ValueError(f"attention {name} {lacks[name]}; use auto or exact")
    return Backend(name, device.device_kind)


def padded(tokens: int, pieces: int, backend: Backend) -> int:
    """Return how many tokens these are with padding, all pieces and blocks of them whole."""
    unit = pieces
    if backend.name == "cudnn":
        unit = 2 * pieces  # its backward pass takes even lengths only
    elif backend.name == "splash":
        unit = splash.unit(backend.chip, pieces)
    return -(-tokens // unit) * unit


def attention(
    q_BLNK, k_BSNK, v_BSNK, bias_S=None, length=None, backend: Backend = EXACT, name: str = ""
):
    """Attend from every query to every key that is no padding.

    Args:
      q_BLNK: queries; their dtype is the result's. Logits are scaled by 1 / sqrt(K).
      k_BSNK: keys.
      v_BSNK: values.
      bias_S: float32 added to the logits of each key. log(n) makes one key weigh as n equal keys.
        Only `exact` adds it and serves for every backend then: biased keys are few.
      length: keys from this one on are padding; None: there is none.
      backend: of `choose`.
      name: of what the backward pass needs of this, for a checkpoint policy; see `keep`.

    Returns:
      BLNK. The softmax is in float32.
    """
    if backend.name == "splash" and bias_S is None:
        return splash.attention(q_BLNK, k_BSNK, v_BSNK, length, backend.chip, name or None)
    if backend.name == "cudnn" and bias_S is None:
        return cudnn(q_BLNK, k_BSNK, v_BSNK, length)
    most = CPU_LOGITS if backend.chip == "cpu" else MAX_LOGITS
    return exact(q_BLNK, k_BSNK[:, :length], v_BSNK[:, :length], bias_S, most, name)


def keep(primitive, *inputs, **params) -> bool:
    """Checkpoint policy: keep the results of self-attention, so that none is computed again.

    What the backward passes start from carries the name KEPT; cuDNN gives its results none, and is
    known by its queries being as many as its keys.
    """
    if primitive.name.startswith("dot_product_attention_fwd"):
        q, k = inputs[:2]
        return q.shape[1] == k.shape[1]
    return jax.checkpoint_policies.save_only_these_names(KEPT)(primitive, *inputs, **params)


def named(tree, name: str):
    """Give arrays a name that checkpoint policies see; "" gives none."""
    return checkpoint_name(tree, name) if name else tree


def cudnn(q_BLNK, k_BSNK, v_BSNK, length: int | None = None):
    """Attend as `attention`, by cuDNN's flash attention; L and S are even."""
    lengths_B = None
    if length is not None and length % 2:  # cutting would leave an odd S
        lengths_B = jnp.full(q_BLNK.shape[:1], length, jnp.int32)
        length = None
    kv = k_BSNK[:, :length], v_BSNK[:, :length]
    options = {"key_value_seq_lengths": lengths_B, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(q_BLNK, *kv, **options)


def exact(q_BLNK, k_BSNK, v_BSNK, bias_S=None, most: int | None = None, name: str = ""):
    """Attend as `attention`, without padding; no gradient flows to bias_S.

    Long inputs go through in blocks of queries; the numbers do not depend on the blocks.

    most: elements of a block's logits; None is MAX_LOGITS.
    """
    B, L, N, _ = q_BLNK.shape
    most, video = most or MAX_LOGITS, N * L * k_BSNK.shape[1]
    if B > 1 and video > most:
        alone = lambda qkv: exact(*(x[None] for x in qkv), bias_S, most, name)[0]
        return jax.lax.map(alone, (q_BLNK, k_BSNK, v_BSNK))
    q_XBNLK = into_blocks(q_BLNK, -(-B * video // most))
    k_BNSK, v_BNSK = (x.transpose(0, 2, 1, 3) for x in (k_BSNK, v_BSNK))
    return out_of_blocks(_exact(q_XBNLK, k_BNSK, v_BNSK, bias_S, name), L)


def into_blocks(q_BLNK, blocks: int):
    """Cut queries into blocks of equal length, the last one padded: XBNLK."""
    B, L, N, K = q_BLNK.shape
    size = -(-L // blocks)
    if missing := size * blocks - L:
        q_BLNK = jnp.pad(q_BLNK, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return q_BLNK.reshape(B, blocks, size, N, K).transpose(1, 0, 3, 2, 4)


def out_of_blocks(x_XBNLK, length: int):
    """Undo `into_blocks`: BLNK, without the padding."""
    _, B, N, _, K = x_XBNLK.shape
    return x_XBNLK.transpose(1, 0, 3, 2, 4).reshape(B, -1, N, K)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _exact(q_XBNLK, k_BNSK, v_BNSK, bias_S, name):
    """Attend; a gradient of its own, as autodiff would keep every weight, or make a block twice."""
    return _forward(q_XBNLK, k_BNSK, v_BNSK, bias_S, name)[0]


def _forward(q_XBNLK, k_BNSK, v_BNSK, bias_S, name):
    k_BNKS = k_BNSK.mT  # once, not in every block

    def one(q_BNLK):
        weights_BNLS, total_BNL1 = _softmax(q_BNLK, k_BNKS, bias_S)
        out = matmul(weights_BNLS.astype(v_BNSK.dtype), v_BNSK) / total_BNL1
        return out.astype(q_BNLK.dtype)

    out = named(jax.lax.map(one, q_XBNLK), name)
    return out, (q_XBNLK, k_BNSK, v_BNSK, bias_S, out)


def _backward(name, saved, g_XBNLK):
    q_XBNLK, k_BNSK, v_BNSK, bias_S, out = saved
    k_BNKS, v_BNKS = k_BNSK.mT, v_BNSK.mT

    def one(grads, block):
        q_BNLK, g_BNLK, delta_BNL1 = block
        weights_BNLS, total_BNL1 = _softmax(q_BNLK, k_BNKS, bias_S)
        g_BNLK = (g_BNLK / total_BNL1).astype(q_BNLK.dtype)  # fewer numbers than weights
        given = q_BNLK, g_BNLK, delta_BNL1 / total_BNL1, weights_BNLS, k_BNSK, v_BNKS
        dq, *more = gradients(*given)
        return jax.tree.map(jnp.add, grads, tuple(more)), dq.astype(q_BNLK.dtype)

    zero = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_BNKS, v_BNKS))
    (dk, dv), dq = jax.lax.scan(one, zero, (q_XBNLK, g_XBNLK, delta(g_XBNLK, out)))
    return dq, dk.mT.astype(k_BNSK.dtype), dv.mT.astype(v_BNSK.dtype), None


_exact.defvjp(_forward, _backward)


def _softmax(q_BNLK, k_BNKS, bias_S):
    """Return weights that are not normalised, and their sums, by which to divide."""
    logits_BNLS = logits(q_BNLK, k_BNKS, bias_S)
    weights_BNLS = jnp.exp(logits_BNLS - logits_BNLS.max(-1, keepdims=True))
    return weights_BNLS, weights_BNLS.sum(-1, keepdims=True)


def delta(g_BNLK, out_BNLK):
    """Return the sum of gradient times output: what all logits of a query have in common."""
    return (g_BNLK.astype(jnp.float32) * out_BNLK.astype(jnp.float32)).sum(-1, keepdims=True)


def gradients(q_BNLK, g_BNLK, delta_BNL1, weights_BNLS, k_BNSK, v_BNKS):
    """Return the gradients of queries, and their part of those of keys and values, as BNKS.

    Args:
      g_BNLK: gradient of the output.
      delta_BNL1: of `delta`.
      weights_BNLS: of the softmax; where they are not normalised, g and delta are, in their stead.
    """
    slope_BNLS = weights_BNLS * (matmul(g_BNLK, v_BNKS) - delta_BNL1)
    slope_BNLS = (slope_BNLS * q_BNLK.shape[-1] ** -0.5).astype(q_BNLK.dtype)
    dk_BNKS = matmul(q_BNLK.mT, slope_BNLS)
    dv_BNKS = matmul(g_BNLK.mT, weights_BNLS.astype(g_BNLK.dtype))
    return matmul(slope_BNLS, k_BNSK), dk_BNKS, dv_BNKS


def logits(q_BNLK, k_BNKS, bias_S):
    """Return float32 logits, bias added to those of each key."""
    logits_BNLS = matmul(q_BNLK, k_BNKS) * q_BNLK.shape[-1] ** -0.5
    return logits_BNLS if bias_S is None else logits_BNLS + bias_S[None, None, None, :]


def matmul(x, y):
    """Multiply, summing in float32."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
