"""Layers of the Wan transformer: attention, patch embedding, norms, RoPE, timestep.

Shapes: B videos, T H W C latent frames/height/width/channels, L tokens, D width, N heads,
K head size, P = K/2 rotated pairs.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from evoid_jax import sharding
from evoid_jax.models import context
from evoid_jax.models.attention import Backend
from evoid_jax.models.linear import Dense, row


class Attention(nn.Module):
    """Self-attention of the video's tokens, or cross-attention from them to the text."""

    head_size: int
    eps: float
    dtype: jnp.dtype
    lora_scale: float
    mesh: Mesh | None
    backend: Backend

    @nn.compact
    def __call__(self, x_BLD, text_BSD=None, rope=None, length=None, bias_S=None):
        """Attend from every token.

        Args:
          x_BLD: tokens; padding may follow the first `length`.
          text_BSD: for cross-attention; None is self-attention.
          rope: for self-attention, cos_LP and sin_LP of `rope_tables`.
          length: for self-attention, how many tokens are no padding.
          bias_S: for cross-attention, added to each key's logits, or None; of `pad_text`.

        Returns:
          BLD, to be added to x.
        """
        D = x_BLD.shape[-1]
        dense = partial(Dense, D, self.dtype, self.lora_scale, mesh=self.mesh)
        ones = nn.initializers.ones
        source = x_BLD if text_BSD is None else text_BSD
        # Normalised over all D and only then cut into heads, unlike most models' head by head.
        q = rms_norm(dense(name="to_q")(x_BLD), self.param("norm_q", ones, (D,)), self.eps)
        k = rms_norm(dense(name="to_k")(source), self.param("norm_k", ones, (D,)), self.eps)
        v = dense(name="to_v")(source)
        q, k, v = (y.reshape((*y.shape[:2], -1, self.head_size)) for y in (q, k, v))
        if text_BSD is None:
            cos_LP, sin_LP = rope
            q, k = rotate(q, cos_LP, sin_LP), rotate(k, cos_LP, sin_LP)
            out = context.self_attention(q, k, v, length, mesh=self.mesh, backend=self.backend)
        else:
            out = context.cross_attention(q, k, v, bias_S, mesh=self.mesh, backend=self.backend)
        return dense(name="to_out")(out.reshape(x_BLD.shape))


class PatchEmbedding(nn.Module):
    """Cut latents into patches, row-major over their grid, and embed each.

    A convolution whose stride is its kernel, written as the matmul that it is.
    """

    features: int
    patch_size: tuple[int, int, int]
    dtype: jnp.dtype
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x_BTHWC, rows: int | None = None):
        """Return tokens BLD, laid out in pieces over context.

        Args:
          x_BTHWC: latents; T, H and W multiples of the patch.
          rows: L, patches of zeros at the end included; None: as many as there are.
        """
        B, T, H, W, C = x_BTHWC.shape
        t, h, w = self.patch_size
        shape = (t, h, w, C, self.features)
        kernel = self.param("kernel", _flat_xavier, shape).reshape(-1, self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x_BTHWC.astype(self.dtype).reshape(B, T // t, t, H // h, h, W // w, w, C)
        x_BLP = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, kernel.shape[0])
        # Before the embedding, where a token is smallest: each device embeds its own piece only.
        x_BLP = sharding.tokens(pad_rows(x_BLP, rows or x_BLP.shape[1]), self.mesh)
        return x_BLP @ kernel.astype(self.dtype) + row(bias.astype(self.dtype), 3)


def token_grid(shape_BTHWC, patch_size: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    """Return how many tokens latents have along time, height and width.

    Args:
      shape_BTHWC: shape of the latents.
      patch_size: of THW.
      most: tokens that RoPE reaches along any axis.

    Raises:
      ValueError: the latents do not divide by the patches, or an axis is past `most`.
    """
    shape = shape_BTHWC[1:4]
    grid = tuple(n // p for n, p in zip(shape, patch_size, strict=True))
    if any(n % p for n, p in zip(shape, patch_size, strict=True)):
        raise ValueError(f"latents THW {shape} do not divide by patches {patch_size}")
    if max(grid) > most:
        raise ValueError(f"token grid {grid}: an axis is past {most}")
    return grid


def pad_rows(x, rows: int):
    """Append zeros along the second axis until it has `rows`: (B, L, ...) to (B, rows, ...)."""
    missing = rows - x.shape[1]
    if not missing:  # not even a pad of nothing stands in the program then
        return x
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))


def unpatchify(x_BLP, grid: tuple[int, int, int], patch_size: tuple[int, int, int]):
    """Put tokens together to latents, without the padding.

    Args:
      x_BLP: patches flat in P = t h w C: the channel is last, as the output layer was trained. (The
        embedding's kernel on disk has it first.)
      grid: tokens along time, height and width, of `token_grid`; the first prod(grid) are read.
      patch_size: (t, h, w).

    Returns:
      x_BTHWC.
    """
    t, h, w = patch_size
    B, T, H, W = (x_BLP.shape[0], *np.multiply(grid, patch_size))
    x = x_BLP[:, : math.prod(grid)].reshape((B, *grid, t, h, w, -1))
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(B, T, H, W, x.shape[-1])


def pad_text(text_BSE, text_len: int):
    """Let one row of zeros stand for the text_len - S rows of zeros that were left out.

    Wan was trained with text_len keys, those of the padding too. They are all equal, so one of them
    with log(text_len - S) added to its logit takes exactly their share of the softmax.

    Args:
      text_BSE: text states.
      text_len: rows that the model was trained with.

    Returns:
      text_BSE of S + 1 rows and bias_S, float32, to be added to each key's logits. Where S is
      text_len already: the text as it is and None.

    Raises:
      ValueError: S is more than text_len.
    """
    missing = text_len - text_BSE.shape[1]
    if not missing:
        return text_BSE, None
    if missing < 0:
        raise ValueError(f"text has {text_BSE.shape[1]} rows, more than text_len {text_len}")
    bias_S = np.zeros(text_BSE.shape[1] + 1, np.float32)
    bias_S[-1] = math.log(missing)
    return pad_rows(text_BSE, text_BSE.shape[1] + 1), bias_S


def _flat_xavier(key, shape):
    # As of a matmul (Wan flattens it too): flax would count each output t h w times in five axes.
    flat = (math.prod(shape[:-1]), shape[-1])
    return nn.initializers.xavier_uniform()(key, flat).reshape(shape)


def layer_norm(x, eps: float):
    """Normalise the last axis to mean 0 and variance 1, without weights.

    Args:
      x: (..., D), any float dtype.
      eps: added to the variance.

    Returns:
      (..., D) float32.
    """
    x = x.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def rms_norm(x, scale_D, eps: float):
    """Divide by the root mean square of the last axis, in float32, rounded once at the end.

    Args:
      x: (..., D), any float dtype.
      scale_D: weights.
      eps: added to the mean square.

    Returns:
      (..., D) of x's dtype.
    """
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps)
    return (x32 * row(scale_D, x.ndim)).astype(x.dtype)


def sinusoid(timestep_B, width: int):
    """Return [cos, sin] of the timestep at width / 2 frequencies, from 1 down to 1/10000.

    Args:
      timestep_B: 0 to 1000.
      width: even.

    Returns:
      (B, width) float32, cosines first (flip_sin_to_cos of diffusers' Timesteps).
    """
    half = width // 2
    # The exponent is rounded to float32 as in diffusers, its exponential is exact: one unit in the
    # last place of a frequency is 6e-5 radians at timestep 1000.
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = timestep_B.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rope_tables(grid: tuple[int, int, int], head_size: int, rows: int | None = None):
    """Return the angles by which RoPE turns each token's pairs, as cos and sin.

    Args:
      grid: tokens along time, height and width.
      head_size: K; of its K/2 pairs the first turn with time, the next with height, then width.
      rows: L, padding included, which is turned by nothing; None: prod(grid).

    Returns:
      cos_LP and sin_LP, float32, computed in float64; constants of the program.
    """
    # Wan's split of K: 2 (K // 6) each to height and width, the rest to time (44, 42, 42 of 128).
    side = 2 * (head_size // 6)
    angles = []
    for axis, width in enumerate((head_size - 2 * side, side, side)):
        frequency_P = 10000.0 ** (-np.arange(0, width, 2) / width)
        position_L = np.indices(grid)[axis].reshape(-1)  # row-major, as the patches are cut
        angles.append(position_L[:, None] * frequency_P[None])
    angle_LP = np.concatenate(angles, axis=1)
    if rows is not None:
        angle_LP = np.pad(angle_LP, ((0, rows - len(angle_LP)), (0, 0)))
    return np.cos(angle_LP).astype(np.float32), np.sin(angle_LP).astype(np.float32)


def rotate(x_BLNK, cos_LP, sin_LP):
    """Turn each pair (x[2i], x[2i+1]) by its angle: neighbours, not the two halves of a head.

    Args:
      x_BLNK: queries or keys.
      cos_LP, sin_LP: of `rope_tables`, P = K/2.

    Returns:
      BLNK of x's dtype; turned in float32.
    """
    x = x_BLNK.astype(jnp.float32).reshape((*x_BLNK.shape[:-1], -1, 2))
    cos, sin = cos_LP[None, :, None], sin_LP[None, :, None]
    first = x[..., 0] * cos - x[..., 1] * sin
    second = x[..., 0] * sin + x[..., 1] * cos
    return jnp.stack([first, second], -1).reshape(x_BLNK.shape).astype(x_BLNK.dtype)
