"""Layers of the Wan2.1 VAE: causal convolutions in time, resampling, attention within a frame.

Numbers follow diffusers' autoencoder_kl_wan.py. On CPU, two layers have a faster form with the same
numbers. Every layer is a function of

  p: the layer's weights, named as in diffusers.
  x_BTHWC: features, in the dtype of the weights.
  memory: what came before x. A video comes whole, with an empty `Past`, or in turns, with the
    `Past` that each layer reads and writes its part of.
  name: of the layer's part of the memory; no two layers share one.

and returns features BTHWC of x's dtype.

Letters: B videos, T H W C feature frames, height, width, channels, L positions of a frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from evoid_jax.models import platform

ATTENTION_LOGITS = 2**26  # above this many, the mid-block attention runs frame by frame


class Past(NamedTuple):
    """What the layers of a latent frame know of the frames before it.

    The first latent frame stands for one pixel frame, every other for four. All go through one
    program: the first one's pixel frame is the last of four, and those before it are hidden.
    """

    seen: dict[str, jax.Array]  # by layer, the last frames of its input; zeros before the video
    first: jax.Array | None = None  # is this the first latent frame? None: it is the whole video


def _hide(x_BTHWC: jax.Array, first: jax.Array | None) -> jax.Array:
    """Set frames before the video to zero, as a causal convolution pads them."""
    t = x_BTHWC.shape[1]
    if first is None or t == 1:  # nothing stands before the video's first frame
        return x_BTHWC
    real_T = ~first | (jnp.arange(t) == t - 1)
    return jnp.where(real_T[None, :, None, None, None], x_BTHWC, 0)


def _bias(p: dict, y: jax.Array) -> jax.Array:
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def point(p: dict, x: jax.Array) -> jax.Array:
    """Apply a 1x1 or 1x1x1 convolution.

    Args:
      p: kernel (1, .., 1, C, D) and bias (D,).
      x: (..., C).

    Returns:
      (..., D).
    """
    kernel = p["kernel"].reshape(p["kernel"].shape[-2:])
    return _bias(p, jnp.einsum("...c,cd->...d", x, kernel))


def _slide(x_BTHWC: jax.Array, kernel: jax.Array, stride: int, pad: tuple[int, int]) -> jax.Array:
    """Slide a 3x3 kernel over each frame; `pad` zeros before and after, in height and width."""
    b, t, h, w, c = x_BTHWC.shape
    y = lax.conv_general_dilated(
        x_BTHWC.reshape(b * t, h, w, c),
        kernel,
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape((b, t, *y.shape[1:]))


def _taps(x_BTHWC: jax.Array, stride: int = 1) -> jax.Array:
    """Lay the three frames of each window side by side on the channel axis.

    (B, T, H, W, C) to (B, windows, H, W, 3 C): a convolution over time is then a matmul.
    """
    t = x_BTHWC.shape[1]
    return jnp.concatenate([x_BTHWC[:, j : t - 2 + j : stride] for j in range(3)], axis=-1)


def _on_cpu() -> bool:
    return platform.current() == "cpu"


def conv3d_flat(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Convolve 3x3x3 (time valid, space same) as one 2-D convolution, 3 to 5 times faster on CPU.

    Args:
      p: kernel (3, 3, 3, C, D) and bias (D,).
      x_BTHWC: two frames more than come out.

    Returns:
      (B, T - 2, H, W, D).
    """
    kernel = p["kernel"]
    height, width, c_out = kernel.shape[1], kernel.shape[2], kernel.shape[4]
    # (t, h, w, C, D) to (h, w, t C, D): the three frames' channels are one, as `_taps` lays them.
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, -1, c_out)
    # To a multiple of 4 output channels: the gradient for 3 of them (RGB) takes twice as long.
    flat = jnp.pad(flat, ((0, 0), (0, 0), (0, 0), (0, -c_out % 4)))
    return _bias(p, _slide(_taps(x_BTHWC), flat, 1, (1, 1))[..., :c_out])


def conv3d_cube(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Convolve as `conv3d_flat` does, directly: the faster form on GPU and TPU.

    Args and Returns: those of `conv3d_flat`.
    """
    y = lax.conv_general_dilated(
        x_BTHWC,
        p["kernel"],
        (1, 1, 1),
        ((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    return _bias(p, y)


def _remember(x_BTHWC: jax.Array, memory: Past, name: str, frames: int) -> jax.Array:
    """Prepend the last `frames` frames before x (zeros before the video), and keep x's own."""
    zeros = jnp.zeros_like(x_BTHWC, shape=(x_BTHWC.shape[0], frames, *x_BTHWC.shape[2:]))
    x_BTHWC = jnp.concatenate([memory.seen.get(name, zeros), x_BTHWC], axis=1)
    memory.seen[name] = x_BTHWC[:, -frames:]
    return x_BTHWC


def causal(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Apply a causal 3x3x3 convolution: a frame sees itself and the two before it.

    Returns:
      (B, T, H, W, D), as many frames as came.
    """
    if x_BTHWC.shape[1] == 1 and memory.first is None:
        # An image meets only the kernel's last tap; the others multiply zeros.
        return _bias(p, _slide(x_BTHWC, p["kernel"][2], 1, (1, 1)))
    padded = _remember(_hide(x_BTHWC, memory.first), memory, name, 2)
    return (conv3d_flat if _on_cpu() else conv3d_cube)(p, padded)


def norm(p: dict, x: jax.Array) -> jax.Array:
    """Scale each position's channels to length sqrt(C), then by gamma.

    As WanRMS_norm of diffusers, which is F.normalize; the length is computed in float32.

    Args:
      p: gamma (C,).
      x: (..., C).

    Returns:
      (..., C) of x's dtype.
    """
    x32 = x.astype(jnp.float32)
    # The floor (1e-12 of F.normalize, squared) is inside the root: sqrt has no gradient at 0.
    length = jnp.sqrt(jnp.maximum(jnp.sum(x32 * x32, axis=-1, keepdims=True), 1e-24))
    gamma = p["gamma"].reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 / length).astype(x.dtype) * math.sqrt(x.shape[-1]) * gamma


def residual(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Add two causal convolutions to their input, which a 1x1x1 widens where widths differ.

    Returns:
      (B, T, H, W, D).
    """
    skip = point(p["conv_shortcut"], x_BTHWC) if "conv_shortcut" in p else x_BTHWC
    h = causal(p["conv1"], jax.nn.silu(norm(p["norm1"], x_BTHWC)), memory, f"{name}.conv1")
    h = causal(p["conv2"], jax.nn.silu(norm(p["norm2"], h)), memory, f"{name}.conv2")
    return h + skip


def _attend(q_BLC: jax.Array, k_BLC: jax.Array, v_BLC: jax.Array) -> jax.Array:
    logits = jnp.einsum("blc,bmc->blm", q_BLC, k_BLC, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(q_BLC.shape[-1]), axis=-1)
    return jnp.einsum("blm,bmc->blc", weights.astype(v_BLC.dtype), v_BLC)


def _attend_frame(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    q_1LC, k_1LC, v_1LC = (x_LC[None] for x_LC in qkv)
    return _attend(q_1LC, k_1LC, v_1LC)[0]


def attention(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Attend within each frame, with one head as wide as the features; frames do not mix.

    Returns:
      BTHWC, added to x.
    """
    b, t, h, w, c = x_BTHWC.shape
    qkv = point(p["to_qkv"], norm(p["norm"], x_BTHWC)).reshape(b * t, h * w, 3 * c)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    if b * t * (h * w) ** 2 <= ATTENTION_LOGITS:
        y = _attend(q, k, v)
    else:
        y = lax.map(_attend_frame, (q, k, v))
    return x_BTHWC + point(p["proj"], y.reshape(b, t, h, w, c))


def middle(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Apply the block between encoder or decoder and latents: residual, attention, residual.

    Returns:
      BTHWC.
    """
    x_BTHWC = residual(p["resnets"]["0"], x_BTHWC, memory, f"{name}.0")
    x_BTHWC = attention(p["attentions"]["0"], x_BTHWC)
    return residual(p["resnets"]["1"], x_BTHWC, memory, f"{name}.1")


def _windows(p: dict, x_BTHWC: jax.Array, stride: int) -> jax.Array:
    """Apply a (3,1,1) convolution without padding: a matmul over windows of three frames."""
    kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])
    return _bias(p, jnp.einsum("...c,cd->...d", _taps(x_BTHWC, stride), kernel))


def down(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Halve space, and time where there is a time_conv; the video's first frame passes by it.

    1 + 2k frames become 1 + k: the first stays alone, each two after it become one.

    Returns:
      (B, 1 + k, H / 2, W / 2, C); in turns k frames for 2k.
    """
    resample = p["resample"]["1"]
    # Zeros below and to the right only: ZeroPad2d((0, 1, 0, 1)) of diffusers.
    x_BTHWC = _bias(resample, _slide(x_BTHWC, resample["kernel"], 2, (0, 1)))
    if "time_conv" not in p:
        return x_BTHWC
    if memory.first is not None:
        # A window is the frame before these two and both of them.
        halved = _windows(p["time_conv"], _remember(x_BTHWC, memory, name, 1), 2)
        # The first latent frame's one real frame is its last, which every second frame includes.
        return jnp.where(memory.first, x_BTHWC[:, 1::2], halved)
    if x_BTHWC.shape[1] == 1:
        return x_BTHWC
    return jnp.concatenate([x_BTHWC[:, :1], _windows(p["time_conv"], x_BTHWC, 2)], axis=1)


def upsample_repeat(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2, then convolve 3x3.

    Args:
      p: kernel (3, 3, C, D) and bias (D,).
      x_BTHWC: features.

    Returns:
      (B, T, 2 H, 2 W, D).
    """
    x_BTHWC = jnp.repeat(jnp.repeat(x_BTHWC, 2, axis=2), 2, axis=3)
    return _bias(p, _slide(x_BTHWC, p["kernel"], 1, (1, 1)))


def upsample_phases(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Compute what `upsample_repeat` does without repeating, 2 to 5 times faster on CPU.

    The three taps of the kernel meet the source rows -1, 0, 0 at an output pixel of even row, and
    0, 0, 1 at one of odd row; columns alike. So each of the four phases (even or odd row, even or
    odd column) is a 3x3 convolution of the source with sums of the kernel's taps.

    Args and Returns: those of `upsample_repeat`.
    """
    b, t, h, w, c = x_BTHWC.shape
    seen = jnp.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    seen = seen.astype(x_BTHWC.dtype)  # phase, source row, tap
    phases = jnp.einsum("pai,qbj,ijcd->abcpqd", seen, seen, p["kernel"]).reshape(3, 3, c, -1)
    y = _slide(x_BTHWC, phases, 1, (1, 1)).reshape(b, t, h, w, 2, 2, -1)
    # Interleave: row 2 h + phase, column 2 w + phase.
    return _bias(p, y.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, 2 * h, 2 * w, -1))


def _double_time(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Turn each frame into two; the two halves of the channels are the even and odd frame."""
    b, t, h, w, c = x_BTHWC.shape
    y = _windows(p, _remember(x_BTHWC, memory, name, 2), 1).reshape(b, t, h, w, 2, c)
    return jnp.moveaxis(y, 4, 2).reshape(b, 2 * t, h, w, c)


def up(p: dict, x_BTHWC: jax.Array, memory: Past, name: str) -> jax.Array:
    """Double time where there is a time_conv, then space.

    1 + k frames become 1 + 2k. The video's first frame passes by the time_conv, which never sees
    it: the windows of the next two frames hold zeros in its place.

    Returns:
      (B, 1 + 2k, 2 H, 2 W, C / 2); in turns 2k frames for k.
    """
    first = memory.first
    if "time_conv" in p and first is not None:
        doubled = _double_time(p["time_conv"], x_BTHWC, memory, name)
        # Twice, so that the program has one shape; of the first the last copy is shown in the end.
        x_BTHWC = jnp.where(first, jnp.repeat(x_BTHWC, 2, axis=1), doubled)
        memory.seen[name] = jnp.where(first, 0, memory.seen[name])
    elif "time_conv" in p and x_BTHWC.shape[1] > 1:
        doubled = _double_time(p["time_conv"], x_BTHWC[:, 1:], memory, name)
        x_BTHWC = jnp.concatenate([x_BTHWC[:, :1], doubled], axis=1)
    return (upsample_phases if _on_cpu() else upsample_repeat)(p["resample"]["1"], x_BTHWC)


def head(p: dict, x_BTHWC: jax.Array, memory: Past) -> jax.Array:
    """Apply the last norm and convolution of encoder or decoder.

    Returns:
      (B, T, H, W, D), twice the latents' channels or 3 colours.
    """
    return causal(p["conv_out"], jax.nn.silu(norm(p["norm_out"], x_BTHWC)), memory, "out")
