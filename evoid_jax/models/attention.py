"""Softmax attention behind one function, so that a backend can change without touching a model.

Backends, by the platform of the mesh's devices: `exact` is plain XLA in blocks of queries and runs
everywhere, `cudnn` is cuDNN's flash attention on NVIDIA GPUs, `splash` a Pallas kernel on TPUs.
What is here sees one device's arrays; context.py lays them out over a mesh.

Shapes: B videos, L queries, S keys, N heads, K head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from evoid_jax.models import splash

BACKENDS = ("auto", "exact", "cudnn", "splash")
# Logits of one block of queries stay under this many elements (512 MB in float32).
MAX_LOGITS = 2**27


class Backend(NamedTuple):
    """What computes attention, and on which chip: its `device_kind`."""

    name: str
    chip: str = ""


EXACT = Backend("exact")


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


def attention(q_BLNK, k_BSNK, v_BSNK, bias_S=None, length=None, backend: Backend = EXACT):
    """Attend from every query to every key that is no padding.

    Args:
      q_BLNK: queries; their dtype is the result's. Logits are scaled by 1 / sqrt(K).
      k_BSNK: keys.
      v_BSNK: values.
      bias_S: float32 added to the logits of each key. log(n) makes one key weigh as n equal keys.
        Only `exact` adds it and serves for every backend then: biased keys are few.
      length: keys from this one on are padding; None: there is none.
      backend: of `choose`.

    Returns:
      BLNK. The softmax is in float32.
    """
    if backend.name == "splash" and bias_S is None:
        return splash.attention(q_BLNK, k_BSNK, v_BSNK, length, backend.chip)
    if backend.name == "cudnn" and bias_S is None:
        return cudnn(q_BLNK, k_BSNK, v_BSNK, length)
    return exact(q_BLNK, k_BSNK[:, :length], v_BSNK[:, :length], bias_S)


def cudnn(q_BLNK, k_BSNK, v_BSNK, length: int | None = None):
    """Attend as `attention`, by cuDNN's flash attention; L and S are even."""
    lengths_B = None
    if length is not None and length % 2:  # cutting would leave an odd S
        lengths_B = jnp.full(q_BLNK.shape[:1], length, jnp.int32)
        length = None
    kv = k_BSNK[:, :length], v_BSNK[:, :length]
    options = {"key_value_seq_lengths": lengths_B, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(q_BLNK, *kv, **options)


def exact(q_BLNK, k_BSNK, v_BSNK, bias_S=None):
    """Attend as `attention`, without padding.

    Long inputs go through in blocks of queries, recomputed in the backward pass; the numbers do
    not depend on the blocks.
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
