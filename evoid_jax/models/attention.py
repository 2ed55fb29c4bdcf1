"""Softmax attention behind one function, so that a backend can change without touching a model.

Backends, by the platform of the mesh's devices: `exact` is plain XLA in blocks of queries and runs
everywhere, `cudnn` is cuDNN's flash attention on NVIDIA GPUs, `splash` a Pallas kernel on TPUs.
What is here sees one device's arrays; context.py lays them out over a mesh.

Shapes: B videos, L queries, S keys, N heads, K head size, X blocks of queries. BLNK is how a model
holds tokens, BNLK how matmuls want them: heads before tokens.
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
    """What computes attention, and where."""

    name: str  # one of BACKENDS, but never "auto"
    chip: str = ""  # JAX's `device_kind`, by which sizes of blocks are chosen


EXACT = Backend("exact")
KEPT = "self-attention"  # the name of what `keep` keeps
_save_kept = jax.checkpoint_policies.save_only_these_names(KEPT)


def choose(name: str, mesh, dtype, head_size: int) -> Backend:
    """Settle which backend serves a model of this dtype and head size on a mesh (or one device).

    Args:
      name: one of BACKENDS. "auto" takes the platform's kernel where that can compute this model,
        else "exact".
      mesh: the devices that attention will run on; None is the first device here.
      dtype: of queries, keys and values.
      head_size: K.

    Raises:
      ValueError: no such backend, or it cannot compute this model; the message says why.
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
    """Return how many tokens a video has with padding, so that nothing is cut unevenly.

    Args:
      tokens: without padding.
      pieces: over which context divides them.
      backend: of `choose`; its kernels want whole blocks.
    """
    unit = pieces
    if backend.name == "cudnn":
        unit = 2 * pieces  # its backward pass takes even lengths only
    elif backend.name == "splash":
        unit = splash.unit(backend.chip, pieces)
    return -(-tokens // unit) * unit  # rounded up


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
      name: for what the backward pass needs of this, so that a checkpoint policy such as `keep` can
        save it; "" names nothing.

    Returns:
      BLNK. The softmax is in float32.
    """
    if backend.name == "splash" and bias_S is None:
        return splash.attention(q_BLNK, k_BSNK, v_BSNK, length, backend.chip, name or None)
    if backend.name == "cudnn" and bias_S is None:
        return cudnn(q_BLNK, k_BSNK, v_BSNK, length)
    # Without their padding no key needs a mask.
    k_BSNK, v_BSNK = k_BSNK[:, :length], v_BSNK[:, :length]
    most = CPU_LOGITS if backend.chip == "cpu" else MAX_LOGITS
    return exact(q_BLNK, k_BSNK, v_BSNK, bias_S, most, name)


def keep(primitive, *inputs, **params) -> bool:
    """Checkpoint policy, as jax.checkpoint asks it: is this primitive's result saved?

    Results of self-attention are, so that the backward pass does not compute them again.
    """
    # cuDNN's results cannot be named from outside. Self-attention is the one with as many queries
    # as keys; text is shorter, and cheap to attend to again.
    if primitive.name.startswith("dot_product_attention_fwd"):
        q, k = inputs[:2]
        return q.shape[1] == k.shape[1]
    return _save_kept(primitive, **params)


def named(tree, name: str):
    """Give a tree of arrays a name that checkpoint policies see; "" leaves them as they are."""
    return checkpoint_name(tree, name) if name else tree


def cudnn(q_BLNK, k_BSNK, v_BSNK, length: int | None = None):
    """Attend by cuDNN's flash attention.

    Args:
      q_BLNK, k_BSNK, v_BSNK: as of `attention`, 16 bit; L and S are even.
      length: keys from this one on are padding; None: there is none.

    Returns:
      BLNK.
    """
    lengths_B = None
    if length is not None and length % 2:
        # Cut there, S would be odd: cuDNN is told the length instead, and skips what follows.
        lengths_B = jnp.full(q_BLNK.shape[:1], length, jnp.int32)
        length = None
    return jax.nn.dot_product_attention(
        q_BLNK,
        k_BSNK[:, :length],
        v_BSNK[:, :length],
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )


def exact(q_BLNK, k_BSNK, v_BSNK, bias_S=None, most: int | None = None, name: str = ""):
    """Attend by plain XLA, long inputs in blocks of queries.

    The softmax of a query needs all keys but no other query, so the numbers do not depend on the
    blocks. No gradient flows to bias_S.

    Args:
      q_BLNK, k_BSNK, v_BSNK, bias_S, name: as of `attention`, without padding.
      most: elements of the logits that exist at once; None is MAX_LOGITS.

    Returns:
      BLNK.
    """
    B, L, N, _ = q_BLNK.shape
    most = most or MAX_LOGITS
    logits_of_video = N * L * k_BSNK.shape[1]
    if B > 1 and logits_of_video > most:
        # Already one video is too much: take them one after the other, each in blocks of its own.
        def one_video(qkv):
            q_1LNK, k_1SNK, v_1SNK = (x[None] for x in qkv)
            return exact(q_1LNK, k_1SNK, v_1SNK, bias_S, most, name)[0]

        return jax.lax.map(one_video, (q_BLNK, k_BSNK, v_BSNK))
    q_XBNLK = into_blocks(q_BLNK, -(-B * logits_of_video // most))
    k_BNSK, v_BNSK = (x.transpose(0, 2, 1, 3) for x in (k_BSNK, v_BSNK))
    return out_of_blocks(_exact(q_XBNLK, k_BNSK, v_BNSK, bias_S, name), L)


def into_blocks(q_BLNK, blocks: int):
    """Cut queries into blocks of equal length, the last one padded.

    Args:
      q_BLNK: queries.
      blocks: X.

    Returns:
      q_XBNLK, L the length of a block.
    """
    B, L, N, K = q_BLNK.shape
    size = -(-L // blocks)
    if missing := size * blocks - L:
        q_BLNK = jnp.pad(q_BLNK, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return q_BLNK.reshape(B, blocks, size, N, K).transpose(1, 0, 3, 2, 4)


def out_of_blocks(x_XBNLK, length: int):
    """Undo `into_blocks`.

    Args:
      x_XBNLK: blocks, L the length of one.
      length: of all queries, without padding.

    Returns:
      x_BLNK, L the length of all.
    """
    _, B, N, _, K = x_XBNLK.shape
    return x_XBNLK.transpose(1, 0, 3, 2, 4).reshape(B, -1, N, K)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _exact(q_XBNLK, k_BNSK, v_BNSK, bias_S, name):
    """Attend block by block, with a gradient of its own.

    Autodiff of the map would keep every block's weights, which is what blocks are to avoid; under
    remat it would compute each block a second time only to start from its output.
    """
    return _forward(q_XBNLK, k_BNSK, v_BNSK, bias_S, name)[0]


def _forward(q_XBNLK, k_BNSK, v_BNSK, bias_S, name):
    k_BNKS = k_BNSK.mT  # once, not in every block

    def attend_block(q_BNLK):
        weights_BNLS, total_BNL1 = _softmax(q_BNLK, k_BNKS, bias_S)
        # Divided last: L x K numbers instead of L x S.
        out = matmul(weights_BNLS.astype(v_BNSK.dtype), v_BNSK) / total_BNL1
        return out.astype(q_BNLK.dtype)

    out = named(jax.lax.map(attend_block, q_XBNLK), name)
    return out, (q_XBNLK, k_BNSK, v_BNSK, bias_S, out)


def _backward(name, saved, g_XBNLK):
    q_XBNLK, k_BNSK, v_BNSK, bias_S, out = saved
    k_BNKS, v_BNKS = k_BNSK.mT, v_BNSK.mT

    def add_block(sums, block):
        dk_BNKS, dv_BNKS = sums
        q_BNLK, g_BNLK, delta_BNL1 = block
        weights_BNLS, total_BNL1 = _softmax(q_BNLK, k_BNKS, bias_S)
        # The weights stay undivided; what they are multiplied with is divided, fewer numbers.
        g_BNLK = (g_BNLK / total_BNL1).astype(q_BNLK.dtype)
        dq_BNLK, more_dk, more_dv = gradients(
            q_BNLK, g_BNLK, delta_BNL1 / total_BNL1, weights_BNLS, k_BNSK, v_BNKS
        )
        return (dk_BNKS + more_dk, dv_BNKS + more_dv), dq_BNLK.astype(q_BNLK.dtype)

    # Every query adds to the gradient of every key: the sum over blocks is carried in float32.
    zeros = jnp.zeros(k_BNKS.shape, jnp.float32), jnp.zeros(v_BNKS.shape, jnp.float32)
    blocks = q_XBNLK, g_XBNLK, delta(g_XBNLK, out)
    (dk, dv), dq = jax.lax.scan(add_block, zeros, blocks)
    return dq, dk.mT.astype(k_BNSK.dtype), dv.mT.astype(v_BNSK.dtype), None


_exact.defvjp(_forward, _backward)


def _softmax(q_BNLK, k_BNKS, bias_S):
    """Return weights that are not normalised, BNLS, and their sums BNL1, by which to divide."""
    logits_BNLS = logits(q_BNLK, k_BNKS, bias_S)
    weights_BNLS = jnp.exp(logits_BNLS - logits_BNLS.max(-1, keepdims=True))
    return weights_BNLS, weights_BNLS.sum(-1, keepdims=True)


def delta(g_BNLK, out_BNLK):
    """Return sum(g out) of each query, the term that all its logits' gradients share.

    The softmax's gradient is w (dw - sum(w dw)), and sum(w dw) = sum(w g v^T) = g . out.

    Args:
      g_BNLK: gradient of the output; leading axes X may stand before both.
      out_BNLK: the output.

    Returns:
      BNL1 float32.
    """
    return (g_BNLK.astype(jnp.float32) * out_BNLK.astype(jnp.float32)).sum(-1, keepdims=True)


def gradients(q_BNLK, g_BNLK, delta_BNL1, weights_BNLS, k_BNSK, v_BNKS):
    """Return the gradients of some queries, and what these add to those of keys and values.

    Args:
      q_BNLK: the queries.
      g_BNLK: gradient of their output.
      delta_BNL1: of `delta`.
      weights_BNLS: of the softmax. They may lack the division by their sums where g and delta have
        been divided instead: every product here holds exactly one of each.
      k_BNSK: all keys.
      v_BNKS: all values, transposed.

    Returns:
      dq_BNLK, dk_BNKS and dv_BNKS, float32; the last two transposed, as one matmul makes them.
    """
    slope_BNLS = weights_BNLS * (matmul(g_BNLK, v_BNKS) - delta_BNL1)
    slope_BNLS = (slope_BNLS * q_BNLK.shape[-1] ** -0.5).astype(q_BNLK.dtype)
    dk_BNKS = matmul(q_BNLK.mT, slope_BNLS)
    dv_BNKS = matmul(g_BNLK.mT, weights_BNLS.astype(g_BNLK.dtype))
    return matmul(slope_BNLS, k_BNSK), dk_BNKS, dv_BNKS


def logits(q_BNLK, k_BNKS, bias_S):
    """Return q k / sqrt(K), and the bias added to those of each key.

    Args:
      q_BNLK: queries.
      k_BNKS: keys, transposed.
      bias_S: float32, or None.

    Returns:
      BNLS float32.
    """
    logits_BNLS = matmul(q_BNLK, k_BNKS) * q_BNLK.shape[-1] ** -0.5
    return logits_BNLS if bias_S is None else logits_BNLS + bias_S[None, None, None, :]


def matmul(x, y):
    """Multiply (..., m, k) by (..., k, n), summing in float32 whatever the inputs; float32 out."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
