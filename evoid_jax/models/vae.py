"""Wan2.1 video VAE: pixels to latents and back, at 8x8 in space and 4 in time.

Numbers follow `AutoencoderKLWan` of diffusers 0.42, which feeds one latent frame at a time through
caches. Its caches have a closed form over the whole sequence, which is what we compute: causal
convolutions, except that the first frame bypasses every temporal resampling. Chunks carry the last
two frames of each convolution's input and give the same numbers in bounded memory.

Letters: B videos, F pixel frames, T H W C latent or feature frames, height, width, channels.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from evoid_jax.models.weights import CONV, Layout, Rule

# Statistics of the released Wan2.1 latents (diffusers autoencoder_kl_wan.py, config defaults).
WAN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
WAN_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
WAN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
WAN_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

ATTENTION_LOGITS = 2**26  # above this many, the mid-block attention runs frame by frame


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes and latent statistics, named as in diffusers' config.json (its spelling included)."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = WAN_MEAN
    latents_std: tuple[float, ...] = WAN_STD

    def __post_init__(self):
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries; "
                f"dim_mult {self.dim_mult} needs {len(self.dim_mult) - 1}"
            )
        if sum(self.temperal_downsample) > 2:
            raise ValueError("temperal_downsample may halve time at most twice, as Wan2.1 does")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(
                f"latents_mean and latents_std have {len(self.latents_mean)} and "
                f"{len(self.latents_std)} entries; z_dim is {self.z_dim}"
            )

    @property
    def stride_t(self) -> int:
        """Pixel frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def stride_s(self) -> int:
        """Pixels per latent pixel, along height and width."""
        return 2 ** len(self.temperal_downsample)

    @classmethod
    def from_json(cls, config: dict) -> VAEConfig:
        """Read a diffusers vae/config.json.

        Raises:
          ValueError: a field asks for what only other autoencoders have (Wan2.2 uses is_residual
            and patch_size); the message names it.
        """
        only = {"is_residual": (False,), "patch_size": (None, 1), "attn_scales": ([], ())}
        only |= {"in_channels": (3,), "out_channels": (3,)}
        for name, values in only.items():
            if config.get(name, values[0]) not in values:
                raise ValueError(
                    f"vae config has {name}={config[name]!r}; this is the Wan2.1 autoencoder, "
                    f"which has {name}={values[0]!r}"
                )
        names = {field.name for field in dataclasses.fields(cls)} & config.keys()
        return cls(**{n: tuple(v) if isinstance(v := config[n], list) else v for n in names})

    def to_json(self) -> dict:
        """Return the complete diffusers config.json."""
        fixed = {"_class_name": "AutoencoderKLWan", "_diffusers_version": "0.42.1"}
        fixed |= {"attn_scales": [], "dropout": 0.0, "in_channels": 3, "out_channels": 3}
        fixed |= {"is_residual": False, "patch_size": None}
        fixed |= {"scale_factor_temporal": self.stride_t, "scale_factor_spatial": self.stride_s}
        own = dataclasses.asdict(self)
        return fixed | {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}


# --- Weights: one table of layers, from which the rules and the initial values both follow.


def _res(name: str, c_in: int, c_out: int) -> dict:
    layers = {f"{name}.norm1": (c_in,), f"{name}.conv1": (3, 3, 3, c_in, c_out)}
    layers |= {f"{name}.norm2": (c_out,), f"{name}.conv2": (3, 3, 3, c_out, c_out)}
    return layers | ({f"{name}.conv_shortcut": (1, 1, 1, c_in, c_out)} if c_in != c_out else {})


def _mid(name: str, c: int) -> dict:
    spot = f"{name}.attentions.0"
    attention = {f"{spot}.norm": (c,), f"{spot}.to_qkv": (1, 1, c, 3 * c)}
    attention |= {f"{spot}.proj": (1, 1, c, c)}
    return _res(f"{name}.resnets.0", c, c) | attention | _res(f"{name}.resnets.1", c, c)


def _encoder_layers(config: VAEConfig) -> dict:
    widths = [config.base_dim * m for m in config.dim_mult]
    layers, c, i = {"encoder.conv_in": (3, 3, 3, 3, config.base_dim)}, config.base_dim, 0
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            layers |= _res(f"encoder.down_blocks.{i}", c, width)
            c, i = width, i + 1
        if level < len(widths) - 1:
            layers[f"encoder.down_blocks.{i}.resample.1"] = (3, 3, c, c)
            if config.temperal_downsample[level]:
                layers[f"encoder.down_blocks.{i}.time_conv"] = (3, 1, 1, c, c)
            i += 1
    layers |= _mid("encoder.mid_block", c) | {"encoder.norm_out": (c,)}
    return layers | {"encoder.conv_out": (3, 3, 3, c, 2 * config.z_dim)}


def _decoder_layers(config: VAEConfig) -> dict:
    base = config.decoder_base_dim or config.base_dim
    widths = [base * m for m in reversed(config.dim_mult)]
    c = widths[0]
    layers = {"decoder.conv_in": (3, 3, 3, config.z_dim, c)} | _mid("decoder.mid_block", c)
    for level, width in enumerate(widths):
        name = f"decoder.up_blocks.{level}"
        for j in range(config.num_res_blocks + 1):
            layers |= _res(f"{name}.resnets.{j}", c, width)
            c = width
        if level < len(widths) - 1:
            layers[f"{name}.upsamplers.0.resample.1"] = (3, 3, c, c // 2)
            if config.temperal_downsample[::-1][level]:
                layers[f"{name}.upsamplers.0.time_conv"] = (3, 1, 1, c, 2 * c)
            c //= 2
    return layers | {"decoder.norm_out": (c,), "decoder.conv_out": (3, 3, 3, c, 3)}


def _layers(config: VAEConfig) -> dict[str, tuple[int, ...]]:
    """Map each layer's diffusers name to our shape: (C,) for a norm, else (*kernel, in, out)."""
    z = config.z_dim
    convs = {"quant_conv": (1, 1, 1, 2 * z, 2 * z), "post_quant_conv": (1, 1, 1, z, z)}
    return _encoder_layers(config) | _decoder_layers(config) | convs


def rules(config: VAEConfig) -> list[Rule]:
    """List the diffusers tensors of this autoencoder and their places in our tree."""
    video = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1, 1))
    frame = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1))
    found = []
    for name, shape in _layers(config).items():
        path = tuple(name.split("."))
        if len(shape) == 1:
            layout = frame if "attentions" in path else video
            found.append(Rule(f"{name}.gamma", (*path, "gamma"), layout))
        else:
            found.append(Rule(f"{name}.weight", (*path, "kernel"), CONV))
            found.append(Rule(f"{name}.bias", (*path, "bias")))
    return found


@functools.partial(jax.jit, static_argnames="config")  # one program, not one a shape
def init(key: jax.Array, config: VAEConfig) -> dict:
    """Draw fresh parameters: kernels of variance 1/fan_in, biases zero, norms one."""
    flat = {}
    for i, (name, shape) in enumerate(_layers(config).items()):
        path = tuple(name.split("."))
        if len(shape) == 1:
            flat[(*path, "gamma")] = jnp.ones(shape)
            continue
        bound = math.sqrt(3 / math.prod(shape[:-1]))
        draw = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-bound, maxval=bound)
        flat[(*path, "kernel")] = draw
        flat[(*path, "bias")] = jnp.zeros(shape[-1:])
    return traverse_util.unflatten_dict(flat)


# --- Layers. `memory` maps a convolution's name to the last two frames it saw; it is empty before
# the first chunk, and each convolution replaces its own entry.


def _bias(p: dict, y: jax.Array) -> jax.Array:
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def _point(p: dict, x: jax.Array) -> jax.Array:
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
    return jax.default_backend() == "cpu"


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


def _remember(x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    """Prepend the two frames before this chunk (zeros before the video) and store the last two."""
    zeros = jnp.zeros_like(x_BTHWC, shape=(x_BTHWC.shape[0], 2, *x_BTHWC.shape[2:]))
    x_BTHWC = jnp.concatenate([memory.get(name, zeros), x_BTHWC], axis=1)
    memory[name] = x_BTHWC[:, -2:]
    return x_BTHWC


def _causal(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    """Apply a causal 3x3x3 convolution."""
    alone = x_BTHWC.shape[1] == 1 and name not in memory
    padded = _remember(x_BTHWC, memory, name)
    if alone:  # the first frame meets only the kernel's last tap; the others multiply zeros
        return _bias(p, _slide(x_BTHWC, p["kernel"][2], 1, (1, 1)))
    return (conv3d_flat if _on_cpu() else conv3d_cube)(p, padded)


def _norm(p: dict, x: jax.Array) -> jax.Array:
    """Scale each position's channels to length sqrt(C) times gamma, in float32."""
    x32 = x.astype(jnp.float32)
    length = jnp.maximum(jnp.sqrt(jnp.sum(x32 * x32, axis=-1, keepdims=True)), 1e-12)
    gamma = p["gamma"].reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 / length).astype(x.dtype) * math.sqrt(x.shape[-1]) * gamma


def _residual(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    skip = _point(p["conv_shortcut"], x_BTHWC) if "conv_shortcut" in p else x_BTHWC
    h = _causal(p["conv1"], jax.nn.silu(_norm(p["norm1"], x_BTHWC)), memory, f"{name}.conv1")
    h = _causal(p["conv2"], jax.nn.silu(_norm(p["norm2"], h)), memory, f"{name}.conv2")
    return h + skip


def _attend(q_BLC: jax.Array, k_BLC: jax.Array, v_BLC: jax.Array) -> jax.Array:
    logits = jnp.einsum("blc,bmc->blm", q_BLC, k_BLC, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(q_BLC.shape[-1]), axis=-1)
    return jnp.einsum("blm,bmc->blc", weights.astype(v_BLC.dtype), v_BLC)


def _attention(p: dict, x_BTHWC: jax.Array) -> jax.Array:
    """Attend within each frame with one head as wide as the features."""
    b, t, h, w, c = x_BTHWC.shape
    qkv = _point(p["to_qkv"], _norm(p["norm"], x_BTHWC)).reshape(b * t, h * w, 3 * c)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    if b * t * (h * w) ** 2 <= ATTENTION_LOGITS:
        y = _attend(q, k, v)
    else:
        y = lax.map(lambda one: _attend(*(x[None] for x in one))[0], (q, k, v))
    return x_BTHWC + _point(p["proj"], y.reshape(b, t, h, w, c))


def _middle(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    x_BTHWC = _residual(p["resnets"]["0"], x_BTHWC, memory, f"{name}.0")
    x_BTHWC = _attention(p["attentions"]["0"], x_BTHWC)
    return _residual(p["resnets"]["1"], x_BTHWC, memory, f"{name}.1")


def _windows(p: dict, x_BTHWC: jax.Array, stride: int) -> jax.Array:
    """Apply a (3,1,1) convolution without padding: a matmul over windows of three frames."""
    kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])
    return _bias(p, jnp.einsum("...c,cd->...d", _taps(x_BTHWC, stride), kernel))


def _down(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    """Halve space, and time where there is a time_conv; the video's first frame passes by it."""
    resample = p["resample"]["1"]
    x_BTHWC = _bias(resample, _slide(x_BTHWC, resample["kernel"], 2, (0, 1)))
    if "time_conv" not in p:
        return x_BTHWC
    last = memory.get(name)
    memory[name] = x_BTHWC[:, -1:]
    if last is not None:
        return _windows(p["time_conv"], jnp.concatenate([last, x_BTHWC], axis=1), 2)
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


def _double_time(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    """Turn each frame into two; the two halves of the channels are the even and odd frame."""
    b, t, h, w, c = x_BTHWC.shape
    y = _windows(p, _remember(x_BTHWC, memory, name), 1).reshape(b, t, h, w, 2, c)
    return jnp.moveaxis(y, 4, 2).reshape(b, 2 * t, h, w, c)


def _up(p: dict, x_BTHWC: jax.Array, memory: dict, name: str) -> jax.Array:
    """Double time where there is a time_conv, then space.

    The video's first frame passes by the time_conv, which never sees it: its window over the next
    frames starts with zeros.
    """
    if "time_conv" in p:
        first = name not in memory
        if first:
            memory[name] = jnp.zeros_like(x_BTHWC, shape=(x_BTHWC.shape[0], 2, *x_BTHWC.shape[2:]))
            head, x_BTHWC = x_BTHWC[:, :1], x_BTHWC[:, 1:]
        if x_BTHWC.shape[1]:
            x_BTHWC = _double_time(p["time_conv"], x_BTHWC, memory, name)
        if first:
            x_BTHWC = jnp.concatenate([head, x_BTHWC], axis=1)
    return (upsample_phases if _on_cpu() else upsample_repeat)(p["resample"]["1"], x_BTHWC)


def _head(p: dict, x_BTHWC: jax.Array, memory: dict) -> jax.Array:
    return _causal(p["conv_out"], jax.nn.silu(_norm(p["norm_out"], x_BTHWC)), memory, "out")


def _encoder(params: dict, x_BFHWC: jax.Array, memory: dict) -> jax.Array:
    p = params["encoder"]
    x = _causal(p["conv_in"], x_BFHWC, memory, "in")
    for i in range(len(p["down_blocks"])):
        block = p["down_blocks"][str(i)]
        layer = _residual if "conv1" in block else _down
        x = layer(block, x, memory, f"down.{i}")
    return _point(params["quant_conv"], _head(p, _middle(p["mid_block"], x, memory, "mid"), memory))


def _decoder(params: dict, z_BTHWC: jax.Array, memory: dict) -> jax.Array:
    p = params["decoder"]
    x = _causal(p["conv_in"], _point(params["post_quant_conv"], z_BTHWC), memory, "in")
    x = _middle(p["mid_block"], x, memory, "mid")
    for i in range(len(p["up_blocks"])):
        block = p["up_blocks"][str(i)]
        for j in range(len(block["resnets"])):
            x = _residual(block["resnets"][str(j)], x, memory, f"up.{i}.{j}")
        if "upsamplers" in block:
            x = _up(block["upsamplers"]["0"], x, memory, f"up.{i}.time")
    return _head(p, x, memory)


# --- Whole sequences and chunks.


def _in_chunks(step, x: jax.Array, size: int) -> jax.Array:
    """Run `step(x, memory)` on the first frame, then on chunks of `size` frames, then the rest.

    `step` fills the memory it is given. The equal chunks are one `lax.scan`, so the program is as
    long for 5 chunks as for 50.
    """
    memory: dict = {}
    parts = [step(x[:, :1], memory)]
    count, rest = divmod(x.shape[1] - 1, size)

    def body(memory, chunk):
        memory = dict(memory)
        y = step(chunk, memory)
        return memory, y

    if count:
        chunks = x[:, 1 : 1 + count * size].reshape(x.shape[0], count, size, *x.shape[2:])
        memory, ys = lax.scan(body, memory, jnp.moveaxis(chunks, 1, 0))
        parts.append(jnp.moveaxis(ys, 0, 1).reshape(x.shape[0], -1, *ys.shape[3:]))
    if rest:
        parts.append(step(x[:, -rest:], dict(memory)))
    return jnp.concatenate(parts, axis=1)


def _statistics(config: VAEConfig) -> tuple[jax.Array, jax.Array]:
    shape = (1, 1, 1, 1, config.z_dim)
    mean, std = jnp.array(config.latents_mean), jnp.array(config.latents_std)
    return mean.reshape(shape), std.reshape(shape)


def moments(
    params: dict, config: VAEConfig, video_BFHWC: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the posterior's mean and log variance, not normalised, as the training loss needs.

    Args:
      params: tree of `init` or of the `rules`; its dtype is the compute dtype.
      video_BFHWC: float pixels in [-1, 1], F = 1 + 4k, H and W multiples of 8.
      chunk: latent frames to compute at a time after the first; None is the whole sequence.

    Returns:
      mean_BTHWC and logvar_BTHWC, float32, T = 1 + k, log variance clipped to [-30, 20].

    Raises:
      ValueError: F, H or W does not fit the strides.
    """
    frames, height, width = video_BFHWC.shape[1:4]
    if (frames - 1) % config.stride_t or height % config.stride_s or width % config.stride_s:
        raise ValueError(
            f"video is {frames} frames of {height}x{width}; expected 1 + a multiple of "
            f"{config.stride_t} frames, height and width multiples of {config.stride_s}"
        )
    x = video_BFHWC.astype(params["encoder"]["conv_in"]["kernel"].dtype)
    if chunk is None:
        y = _encoder(params, x, {})
    else:
        y = _in_chunks(lambda x, m: _encoder(params, x, m), x, chunk * config.stride_t)
    mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def encode(
    params: dict, config: VAEConfig, video_BFHWC: jax.Array, chunk: int | None = None
) -> jax.Array:
    """Encode pixels to normalised latents, the posterior's mode as Wan's pipelines use.

    Args, errors: as `moments`. Returns latents_BTHWC, float32, (mean - latents_mean) / latents_std.
    """
    mean, std = _statistics(config)
    return (moments(params, config, video_BFHWC, chunk)[0] - mean) / std


def decode(
    params: dict, config: VAEConfig, latents_BTHWC: jax.Array, chunk: int | None = None
) -> jax.Array:
    """Decode normalised latents to video_BFHWC, float32 clipped to [-1, 1], F = 1 + 4(T - 1).

    Args:
      params: tree of `init` or of the `rules`; its dtype is the compute dtype.
      latents_BTHWC: as `encode` returns.
      chunk: latent frames to compute at a time after the first; None is the whole sequence.
    """
    return jnp.clip(raw_decode(params, config, latents_BTHWC, chunk), -1.0, 1.0)


def raw_decode(
    params: dict, config: VAEConfig, latents_BTHWC: jax.Array, chunk: int | None = None
) -> jax.Array:
    """Decode as `decode` without the clip, for a training loss whose gradient must not vanish."""
    mean, std = _statistics(config)
    z = latents_BTHWC.astype(jnp.float32) * std + mean
    z = z.astype(params["decoder"]["conv_in"]["kernel"].dtype)
    if chunk is None:
        y = _decoder(params, z, {})
    else:
        y = _in_chunks(lambda z, m: _decoder(params, z, m), z, chunk)
    return y.astype(jnp.float32)
