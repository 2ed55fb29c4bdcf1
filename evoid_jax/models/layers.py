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

from evoid_jax.models.attention import attention


class Dense(nn.Module):
    """Linear layer; adds x @ a @ b * lora_scale where the "lora" collection holds this layer.

    The kernel is (out, in) as on disk: a file's bytes are the parameter's, in one piece per device.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    lora_scale: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        y = jnp.einsum("...i,oi->...o", x, kernel.astype(self.dtype))
        y += row(bias.astype(self.dtype), x.ndim)
        if self.has_variable("lora", "a"):
            a = self.get_variable("lora", "a").astype(self.dtype)
            b = (self.get_variable("lora", "b") * self.lora_scale).astype(self.dtype)
            y += (x @ a) @ b
        return y


class Attention(nn.Module):
    """Self-attention with RoPE, or cross-attention to text; q and k are normalised over all D."""

    head_size: int
    eps: float
    dtype: jnp.dtype
    lora_scale: float

    @nn.compact
    def __call__(self, x_BLD, text_BSD=None, rope=None, bias_S=None):
        D = x_BLD.shape[-1]
        dense = partial(Dense, D, self.dtype, self.lora_scale)
        ones = nn.initializers.ones
        source = x_BLD if text_BSD is None else text_BSD
        q = rms_norm(dense(name="to_q")(x_BLD), self.param("norm_q", ones, (D,)), self.eps)
        k = rms_norm(dense(name="to_k")(source), self.param("norm_k", ones, (D,)), self.eps)
        v = dense(name="to_v")(source)
        q, k, v = (y.reshape(*y.shape[:2], -1, self.head_size) for y in (q, k, v))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return dense(name="to_out")(attention(q, k, v, bias_S).reshape(x_BLD.shape))


class PatchEmbedding(nn.Module):
    """Cut BTHWC into patches, row-major over the grid, and embed each: BLD."""

    features: int
    patch_size: tuple[int, int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTHWC):
        B, T, H, W, C = x_BTHWC.shape
        t, h, w = self.patch_size
        shape = (t, h, w, C, self.features)
        kernel = self.param("kernel", _flat_xavier, shape).reshape(-1, self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x_BTHWC.astype(self.dtype).reshape(B, T // t, t, H // h, h, W // w, w, C)
        x_BLP = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, kernel.shape[0])
        return x_BLP @ kernel.astype(self.dtype) + row(bias.astype(self.dtype), 3)


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


def rope_tables(grid: tuple[int, int, int], head_size: int):
    """Return cos and sin of a token grid, LP float32, made in float64.

    A head's pairs turn with time first, then height, then width.
    """
    side = 2 * (head_size // 6)
    angles = []
    for axis, width in enumerate((head_size - 2 * side, side, side)):
        frequency_P = 10000.0 ** (-np.arange(0, width, 2) / width)
        position_L = np.indices(grid)[axis].reshape(-1)
        angles.append(position_L[:, None] * frequency_P[None])
    angle_LP = np.concatenate(angles, axis=1)
    return np.cos(angle_LP).astype(np.float32), np.sin(angle_LP).astype(np.float32)


def rotate(x_BLNK, cos_LP, sin_LP):
    """Turn each pair (x[2i], x[2i+1]) by its angle."""
    x = x_BLNK.astype(jnp.float32).reshape(*x_BLNK.shape[:-1], -1, 2)
    cos, sin = cos_LP[None, :, None], sin_LP[None, :, None]
    first = x[..., 0] * cos - x[..., 1] * sin
    second = x[..., 0] * sin + x[..., 1] * cos
    return jnp.stack([first, second], -1).reshape(x_BLNK.shape).astype(x_BLNK.dtype)
