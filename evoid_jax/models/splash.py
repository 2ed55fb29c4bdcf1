"""Attention by the Pallas splash kernel of JAX, on TPUs.

The kernel works on whole blocks: tokens are padded once, where they enter the model, to a multiple
of `unit`, and a mask that only the last block of keys reads hides the padding.

Shapes: B videos, L queries, S keys, N heads, K head size.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128  # every block is a multiple

# Most queries and keys of a block, by generation (`device_kind` starts so). What fits depends on
# VMEM: 16 MiB of it are a kernel's by default up to v5, 32 MiB from v6 on.
BLOCKS = {"TPU v6": (1024, 1024), "TPU7": (1024, 1024)}
OTHERS = (512, 512)


def unit(chip: str, pieces: int) -> int:
    """Return what the number of tokens must be a multiple of, for large blocks on every piece.

    The kernel sees all tokens in self-attention, so these must divide by the largest block, and one
    piece of them in cross-attention, which must be whole lanes.
    """
    return math.lcm(max(_most(chip)), LANES * pieces)


def attention(
    q_BLNK, k_BSNK, v_BSNK, length: int | None, chip: str, name=None, interpret: bool = False
):
    """Attend from every query to the first `length` keys.

    Args:
      q_BLNK, k_BSNK, v_BSNK: L and S multiples of 128, as K.
      length: None is all keys.
      chip: the `device_kind`, for the size of the blocks.
      name: of the kernel's results that its backward pass needs, for checkpoint policies.
      interpret: run on a CPU, slowly, as tests do.

    Returns:
      BLNK of q's dtype.

    Raises:
      ValueError: L or S is no multiple of 128.
    """
    L, N, K = q_BLNK.shape[1:]
    S = k_BSNK.shape[1]
    mask = masks.FullMask((L, S)) if length in (None, S) else FirstKeys((L, S), length)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * N),
        block_sizes=_sizes(L, S, chip),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
    # The kernel does not scale its logits: the queries are scaled instead, by 1 / sqrt(K).
    q_BLNK = (q_BLNK.astype(jnp.float32) * K**-0.5).astype(q_BLNK.dtype)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BLNK, k_BSNK, v_BSNK))
    return jax.vmap(attend)(q, k, v).transpose(0, 2, 1, 3)


@dataclasses.dataclass(frozen=True)
class FirstKeys(masks.Mask):
    """Let every query see the first `length` keys.

    Lazy, as the kernel's own masks are: it asks for the part that a block covers, and the whole
    mask, queries x keys, is never made.
    """

    size: tuple[int, int]  # queries, keys
    length: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    def __getitem__(self, at) -> np.ndarray:
        rows, keys = (range(n)[s] for n, s in zip(self.size, at, strict=True))
        return np.broadcast_to(np.asarray(keys) < self.length, (len(rows), len(keys)))


def _most(chip: str) -> tuple[int, int]:
    return next((most for start, most in BLOCKS.items() if chip.startswith(start)), OTHERS)


def _sizes(queries: int, keys: int, chip: str) -> kernel.BlockSizes:
    """Choose blocks that divide the numbers of queries and keys, for the kernels of both passes."""
    most_q, most_kv = _most(chip)
    q, kv = _block(queries, most_q), _block(keys, most_kv)
    forward = {"block_q": q, "block_kv": kv, "block_kv_compute": kv}
    dkv = {"block_q_dkv": q, "block_kv_dkv": kv, "block_kv_dkv_compute": kv}
    # A kernel of its own for dq: the fused one needs far more memory.
    return kernel.BlockSizes(**forward, **dkv, block_q_dq=q, block_kv_dq=kv)


def _block(length: int, most: int) -> int:
    """Return the largest block, whole lanes and at most `most`, that divides the length."""
    for size in range(most, 0, -LANES):
        if length % size == 0:
            return size
    raise ValueError(f"{length} tokens are no multiple of {LANES}: pad them to `unit`")
