"""Layers of the Wan transformer: linear with LoRA, patch embedding, norms, RoPE, timestep.

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


class Dense(nn.Module):
    """Linear layer; adds x @ a @ b * lora_scale where the "lora" collection holds this layer.

    The kernel is (out, in) as on disk: a file's bytes are the parameter's, in one piece per device.
    All pieces are gathered here, since tokens are many more than weights, and stay where they are.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    lora_scale: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.features, x.shape[-1]))
        kernel = sharding.constrain(kernel, self.mesh, sharding.REPLICATED)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        y = jnp.einsum("...i,oi->...o", x, kernel.astype(self.dtype))
        y += row(bias.astype(self.dtype), x.ndim)
        if self.has_variable("lora", "a"):
            a = self.get_variable("lora", "a").astype(self.dtype)
            b = (self.get_variable("lora", "b") * self.lora_scale).astype(self.dtype)
            a, b = (jnp.broadcast_to(w, (x.shape[0], *w.shape)) for w in (a, b))
            y += (x @ a) @ b
        return y


class Attention(nn.Module):
    """Attention among the first `length` tokens, with RoPE, or without both to text.

    q and k are normalised over all D.
    """

    head_size: int
    eps: float
    dtype: jnp.dtype
    lora_scale: float
    mesh: Mesh | None
    backend: Backend

    @nn.compact
    def __call__(self, x_BLD, text_BSD=None, rope=None, length=None, bias_S=None):
        D = x_BLD.shape[-1]
        dense = partial(Dense, D, self.dtype, self.lora_scale, mesh=self.mesh)
        ones = nn.initializers.ones
        source = x_BLD if text_BSD is None else text_BSD
        q = rms_norm(dense(name="to_q")(x_BLD), self.param("norm_q", ones, (D,)), self.eps)
        k = rms_norm(dense(name="to_k")(source), self.param("norm_k", ones, (D,)), self.eps)
        v = dense(name="to_v")(source)
        q, k, v = (y.reshape(*y.shape[:2], -1, self.head_size) for y in (q, k, v))
        where = self.mesh, self.backend
        if text_BSD is None:
            q, k = rotate(q, *rope), rotate(k, *rope)
            out = context.self_attention(q, k, v, length, *where)
        else:
            out = context.cross_attention(q, k, v, bias_S, *where)
        return dense(name="to_out")(out.reshape(x_BLD.shape))


class PatchEmbedding(nn.Module):
    """Cut BTHWC into patches, row-major over the grid, and embed each: BLD, in pieces over context.

    `rows` is L, patches of zeros at the end included; None: as many as there are.
    """

    features: int
    patch_size: tuple[int, int, int]
    dtype: jnp.dtype
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x_BTHWC, rows: int | None = None):
        B, T, H, W, C = x_BTHWC.shape
        t, h, w = self.patch_size
        shape = (t, h, w, C, self.features)
        kernel = self.param("kernel", _flat_xavier, shape).reshape(-1, self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x_BTHWC.astype(self.dtype).reshape(B, T // t, t, H // h, h, W // w, w, C)
        x_BLP = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, kernel.shape[0])
        x_BLP = sharding.tokens(pad_rows(x_BLP, rows or x_BLP.shape[1]), self.mesh)
        return x_BLP @ kernel.astype(self.dtype) + row(bias.astype(self.dtype), 3)


def token_grid(shape_BTHWC, patch_size: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    """Return the token grid of latents, or say which axis of them does not fit."""
    shape = shape_BTHWC[1:4]
    grid = tuple(n // p for n, p in zip(shape, patch_size, strict=True))
    if any(n % p for n, p in zip(shape, patch_size, strict=True)):
        raise ValueError(f"latents THW {shape} do not divide by patches {patch_size}")
    if max(grid) > most:
        raise ValueError(f"token grid {grid}: an axis is past {most}")
    return grid


def pad_rows(x, rows: int):
    """Append zeros along the second axis until it has `rows`; none if it has."""
    missing = rows - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) if missing else x


def unpatchify(x_BLP, grid: tuple[int, int, int], patch_size: tuple[int, int, int]):
    """Put the first tokens of a grid together to BTHWC.

    Here the channel is last in a patch; in the embedding's kernel on disk it is first.
    """
    t, h, w = patch_size
    x = x_BLP[:, : math.prod(grid)].reshape(x_BLP.shape[0], *grid, t, h, w, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], *np.multiply(grid, patch_size), x.shape[-1])


def pad_text(text_BSE, text_len: int):
    """Stand for the text_len - S rows of zeros by one row, whose key weighs as many.

    Returns the text and what is added to each key's logits: None where all rows are given.
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
    flat = (math.prod(shape[:-1]), shape[-1])
    return nn.initializers.xavier_uniform()(key, flat).reshape(shape)


def row(x_D, ndim: int):
    """Give a vector leading axes of one, so that it broadcasts over `ndim` axes."""
    return x_D.reshape((1,) * (ndim - 1) + (-1,))


def layer_norm(x, eps: float):
    """Normalise the last axis in float32, without weights; float32 out."""
    x = x.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def rms_norm(x, scale_D, eps: float):
    """Divide by the root mean square of the last axis, in float32, rounded once at the end."""
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps)
    return (x32 * row(scale_D, x.ndim)).astype(x.dtype)


def sinusoid(timestep_B, width: int):
    """Return [cos, sin] of the timestep (0 to 1000), at width / 2 frequencies.

    The exponent is rounded to float32 as in diffusers, its exponential is exact: one unit in the
    last place of a frequency is 6e-5 radians at timestep 1000.
    """
    half = width // 2
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = timestep_B.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rope_tables(grid: tuple[int, int, int], head_size: int, rows: int | None = None):
    """Return cos and sin of a token grid, LP float32, made in float64.

    A head's pairs turn with time first, then height, then width; padding, up to `rows`, stays.
    """
    side = 2 * (head_size // 6)
    angles = []
    for axis, width in enumerate((head_size - 2 * side, side, side)):
        frequency_P = 10000.0 ** (-np.arange(0, width, 2) / width)
        position_L = np.indices(grid)[axis].reshape(-1)
        angles.append(position_L[:, None] * frequency_P[None])
    angle_LP = np.concatenate(angles, axis=1)
    if rows is not None:
        angle_LP = np.pad(angle_LP, ((0, rows - len(angle_LP)), (0, 0)))
    return np.cos(angle_LP).astype(np.float32), np.sin(angle_LP).astype(np.float32)


def rotate(x_BLNK, cos_LP, sin_LP):
    """Turn each pair (x[2i], x[2i+1]) by its angle."""
    x = x_BLNK.astype(jnp.float32).reshape(*x_BLNK.shape[:-1], -1, 2)
    cos, sin = cos_LP[None, :, None], sin_LP[None, :, None]
    first = x[..., 0] * cos - x[..., 1] * sin
    second = x[..., 0] * sin + x[..., 1] * cos
    return jnp.stack([first, second], -1).reshape(x_BLNK.shape).astype(x_BLNK.dtype)
