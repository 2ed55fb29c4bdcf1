"""Layers of the Wan2.1 VAE: causal convolutions in time, resampling, attention within a frame.

`p` holds one layer's weights. A video comes whole, or one latent frame at a time with a `Memory`
that every layer keeps its part of. Numbers follow diffusers' autoencoder_kl_wan.py. On CPU, two
layers have a faster form with the same numbers.

Letters: B videos, T H W C feature frames, height, width, channels, L positions of a frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from evoid_jax.models import backend

ATTENTION_LOGITS = 2**26  # above this many, the mid-block attention runs frame by frame


class Memory(NamedTuple):
    """What a latent frame's layers know of the frames before it.

    The first latent frame stands for one pixel frame, every other for four. It goes through the
    same program: its own frame is the last of as many, and those before it are hidden.
    """

    seen: dict[str, jax.Array]  # by layer, the last frames of its input; zeros before the video
    first: jax.Array | None = None  # is this the first latent frame? None: it is the whole video


def _hide(x_BTHWC: jax.Array, first: jax.Array | None) -> jax.Array:
    """Set frames before the video to zero, as a causal convolution pads them."""
    t = x_BTHWC.shape[1]
    if first is None or t == 1:
        return x_BTHWC
    real_T = ~first | (jnp.arange(t) == t - 1)
    return jnp.where(real_T[None, :, None, None, None], x_BTHWC, 0)


def _bias(p: dict, y: jax.Array) -> jax.Array:
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def point(p: dict, x: jax.Array) -> jax.Array:
    """Apply a 1x1 or 1x1x1 convolution."""
    kernel = p["kernel"].reshape(p["kernel"].shape[-2:])
    return _bias(p, jnp.einsum("...c,cd->...d", x, kernel))


def _slide(x_BTHWC: jax.Array, kernel: jax.Array, stride: int, pad: tuple[int, int]) -> jax.Array:
    """Slide a 3x3 kernel over each frame; `pad` zeros before and after, in height and width."""
    b, t, *frame = x_BTHWC.shape
    y = lax.conv_general_dilated(
        x_BTHWC.reshape(b * t, *frame),
        kernel,
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, t, *y.shape[1:])


def _taps(x_BTHWC: jax.Array, stride: int = 1) -> jax.Array:
    """Lay the three frames of each causal window side by side on the channel axis."""
    t = x_BTHWC.shape[1]
    return jnp.concatenate([x_BTHWC[:, j : t - 2 + j : stride] for j in range(3)], axis=-1)


def _on_cpu() -> bool:
    return backend.platform() == "cpu"


def conv3d_flat(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Convolve 3x3x3 (time valid, space same) as one 2-D convolution, 3 to 5 times faster on CPU.

    Output channels are padded to a multiple of 4: the gradient for 3 of them takes twice as long.
    """
    kernel = p["kernel"]
    c_out = kernel.shape[-1]
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*kernel.shape[1:3], -1, c_out)
    flat = jnp.pad(flat, ((0, 0), (0, 0), (0, 0), (0, -c_out % 4)))
    return _bias(p, _slide(_taps(x_BTHWC), flat, 1, (1, 1))[..., :c_out])


def conv3d_cube(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Convolve 3x3x3 (time valid, space same) directly."""
    y = lax.conv_general_dilated(
        x_BTHWC,
        p["kernel"],
        (1, 1, 1),
        ((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    return _bias(p, y)


def _remember(x_BTHWC: jax.Array, memory: Memory, name: str, frames: int) -> jax.Array:
    """Prepend the frames seen before (zeros before the video) and store the last ones."""
    zeros = jnp.zeros_like(x_BTHWC, shape=(x_BTHWC.shape[0], frames, *x_BTHWC.shape[2:]))
    x_BTHWC = jnp.concatenate([memory.seen.get(name, zeros), x_BTHWC], axis=1)
    memory.seen[name] = x_BTHWC[:, -frames:]
    return x_BTHWC


def causal(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    """Apply a causal 3x3x3 convolution."""
    if x_BTHWC.shape[1] == 1 and memory.first is None:
        # an image meets only the kernel's last tap; the others multiply zeros
        return _bias(p, _slide(x_BTHWC, p["kernel"][2], 1, (1, 1)))
    padded = _remember(_hide(x_BTHWC, memory.first), memory, name, 2)
    return (conv3d_flat if _on_cpu() else conv3d_cube)(p, padded)


def norm(p: dict, x: jax.Array) -> jax.Array:
    """Scale each position's channels to length sqrt(C) times gamma, in float32."""
    x32 = x.astype(jnp.float32)
    # The floor is inside the root: sqrt has no gradient at 0.
    length = jnp.sqrt(jnp.maximum(jnp.sum(x32 * x32, axis=-1, keepdims=True), 1e-24))
    gamma = p["gamma"].reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 / length).astype(x.dtype) * math.sqrt(x.shape[-1]) * gamma


def residual(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    skip = point(p["conv_shortcut"], x_BTHWC) if "conv_shortcut" in p else x_BTHWC
    h = causal(p["conv1"], jax.nn.silu(norm(p["norm1"], x_BTHWC)), memory, f"{name}.conv1")
    h = causal(p["conv2"], jax.nn.silu(norm(p["norm2"], h)), memory, f"{name}.conv2")
    return h + skip


def _attend(q_BLC: jax.Array, k_BLC: jax.Array, v_BLC: jax.Array) -> jax.Array:
    logits = jnp.einsum("blc,bmc->blm", q_BLC, k_BLC, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(q_BLC.shape[-1]), axis=-1)
    return jnp.einsum("blm,bmc->blc", weights.astype(v_BLC.dtype), v_BLC)


def attention(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Attend within each frame with one head as wide as the features."""
    b, t, h, w, c = x_BTHWC.shape
    qkv = point(p["to_qkv"], norm(p["norm"], x_BTHWC)).reshape(b * t, h * w, 3 * c)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    if b * t * (h * w) ** 2 <= ATTENTION_LOGITS:
        y = _attend(q, k, v)
    else:
        y = lax.map(lambda one: _attend(*(x[None] for x in one))[0], (q, k, v))
    return x_BTHWC + point(p["proj"], y.reshape(b, t, h, w, c))


def middle(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    x_BTHWC = residual(p["resnets"]["0"], x_BTHWC, memory, f"{name}.0")
    x_BTHWC = attention(p["attentions"]["0"], x_BTHWC)
    return residual(p["resnets"]["1"], x_BTHWC, memory, f"{name}.1")


def _windows(p: dict, x_BTHWC: jax.Array, stride: int) -> jax.Array:
    """Apply a (3,1,1) convolution without padding: a matmul over windows of three frames."""
    kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])
    return _bias(p, jnp.einsum("...c,cd->...d", _taps(x_BTHWC, stride), kernel))


def down(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    """Halve space, and time where there is a time_conv; the video's first frame passes by it."""
    resample = p["resample"]["1"]
    x_BTHWC = _bias(resample, _slide(x_BTHWC, resample["kernel"], 2, (0, 1)))
    if "time_conv" not in p:
        return x_BTHWC
    if memory.first is not None:
        halved = _windows(p["time_conv"], _remember(x_BTHWC, memory, name, 1), 2)
        return jnp.where(memory.first, x_BTHWC[:, 1::2], halved)
    if x_BTHWC.shape[1] == 1:
        return x_BTHWC
    return jnp.concatenate([x_BTHWC[:, :1], _windows(p["time_conv"], x_BTHWC, 2)], axis=1)


def upsample_repeat(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2, then convolve 3x3."""
    x_BTHWC = jnp.repeat(jnp.repeat(x_BTHWC, 2, axis=2), 2, axis=3)
    return _bias(p, _slide(x_BTHWC, p["kernel"], 1, (1, 1)))


def upsample_phases(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Do the same before repeating, 2 to 5 times faster on CPU.

    An output pixel of even row sees the source rows -1, 0, 0 and one of odd row 0, 0, 1, so each of
    the four phases is a 3x3 convolution of the source with sums of the kernel's taps.
    """
    b, t, h, w, c = x_BTHWC.shape
    seen = jnp.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    seen = seen.astype(x_BTHWC.dtype)  # phase, source row, tap
    phases = jnp.einsum("pai,qbj,ijcd->abcpqd", seen, seen, p["kernel"]).reshape(3, 3, c, -1)
    y = _slide(x_BTHWC, phases, 1, (1, 1)).reshape(b, t, h, w, 2, 2, -1)
    return _bias(p, y.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, 2 * h, 2 * w, -1))


def _double_time(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    """Turn each frame into two; the two halves of the channels are the even and odd frame."""
    b, t, h, w, c = x_BTHWC.shape
    y = _windows(p, _remember(x_BTHWC, memory, name, 2), 1).reshape(b, t, h, w, 2, c)
    return jnp.moveaxis(y, 4, 2).reshape(b, 2 * t, h, w, c)


def up(p: dict, x_BTHWC: jax.Array, memory: Memory, name: str) -> jax.Array:
    """Double time where there is a time_conv, then space.

    The video's first frame passes by the time_conv, which never sees it: its window over the next
    frames starts with zeros.
    """
    first = memory.first
    if "time_conv" in p and first is not None:
        doubled = _double_time(p["time_conv"], x_BTHWC, memory, name)
        x_BTHWC = jnp.where(first, jnp.repeat(x_BTHWC, 2, axis=1), doubled)
        memory.seen[name] = jnp.where(first, 0, memory.seen[name])
    elif "time_conv" in p and x_BTHWC.shape[1] > 1:
        doubled = _double_time(p["time_conv"], x_BTHWC[:, 1:], memory, name)
        x_BTHWC = jnp.concatenate([x_BTHWC[:, :1], doubled], axis=1)
    return (upsample_phases if _on_cpu() else upsample_repeat)(p["resample"]["1"], x_BTHWC)


def head(p: dict, x_BTHWC: jax.Array, memory: Memory) -> jax.Array:
    return causal(p["conv_out"], jax.nn.silu(norm(p["norm_out"], x_BTHWC)), memory, "out")
