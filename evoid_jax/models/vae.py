"""Wan2.1 video VAE: pixels to latents and back, at 8x8 in space and 4 in time.

Numbers follow `AutoencoderKLWan` of diffusers 0.42, which feeds one latent frame at a time through
caches. What those caches amount to over a whole video are causal convolutions, except that the
first frame passes by every resampling of time. Here a video runs whole; or, `in_turn`, one latent
frame at a time with the last frames of each convolution's input carried on: the same numbers in
bounded memory.

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

from evoid_jax.models import keys, vae_layers
from evoid_jax.models.weights import CONV, Layout, Rule

# Statistics of the released Wan2.1 latents (diffusers autoencoder_kl_wan.py, config defaults).
WAN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
WAN_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
WAN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
WAN_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
FILE = "vae/config.json"
# Checked by VAEConfig itself; of training alone; what diffusers does at any value.
IGNORED = ("decoder_base_dim", "scale_factor_temporal", "scale_factor_spatial")
IGNORED += ("dropout", "clip_output")
KEYS = keys.Keys(
    whole=("base_dim", "z_dim", "num_res_blocks"),
    real=(),
    lists={
        "dim_mult": int,
        "temperal_downsample": bool,
        "latents_mean": float,
        "latents_std": float,
    },
    # Other autoencoders of diffusers' class, Wan2.2's among them, have other values.
    fixed={
        "is_residual": (False,),
        "patch_size": (None, 1),
        "attn_scales": ([], ()),
        "in_channels": (3,),
        "out_channels": (3,),
    },
    ignored=IGNORED,
)


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
        widths = (self.base_dim, *self.dim_mult)
        if self.decoder_base_dim is not None:
            widths += (self.decoder_base_dim,)
        if not all(type(width) is int and width > 0 for width in widths):
            raise ValueError(
                f"base_dim {self.base_dim}, decoder_base_dim {self.decoder_base_dim}, dim_mult "
                f"{self.dim_mult}: expected whole numbers from 1"
            )
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
        if not min(self.latents_std) > 0:
            raise ValueError(f"latents_std holds {min(self.latents_std)}; expected all above 0")

    @property
    def stride_t(self) -> int:
        """Pixel frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def stride_s(self) -> int:
        """Pixels per latent pixel, along height and width."""
        return 2 ** len(self.temperal_downsample)

    @classmethod
    def from_json(cls, config: dict, file: str = FILE) -> VAEConfig:
        """Read a diffusers vae/config.json.

        Args:
          file: its name, for messages.

        Raises:
          ValueError: a field asks for what only other autoencoders have (Wan2.2 uses is_residual
            and patch_size), is not known, or is of no use; the message names file and key.
        """
        name = config.get("_class_name", "AutoencoderKLWan")
        if name != "AutoencoderKLWan":
            raise ValueError(f"{file} is of class {name}; expected AutoencoderKLWan")
        keys.check(config, KEYS, file)
        names = {field.name for field in dataclasses.fields(cls)} & config.keys()
        values = {n: tuple(v) if isinstance(v := config[n], list) else v for n in names}
        try:
            made = cls(**values)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        strides = {"scale_factor_temporal": made.stride_t, "scale_factor_spatial": made.stride_s}
        for key, stride in strides.items():
            if config.get(key, stride) not in (stride, None):
                raise ValueError(
                    f"{file}: {key} is {config[key]!r}, but temperal_downsample makes it {stride}"
                )
        return made

    def to_json(self) -> dict:
        """Return the complete diffusers config.json."""
        fixed = {"_class_name": "AutoencoderKLWan", "_diffusers_version": "0.42.1"}
        fixed |= {"attn_scales": [], "dropout": 0.0, "in_channels": 3, "out_channels": 3}
        fixed |= {"is_residual": False, "patch_size": None}
        fixed |= {"scale_factor_temporal": self.stride_t, "scale_factor_spatial": self.stride_s}
        own = dataclasses.asdict(self)
        return fixed | {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}


# One table of layers, in the order of diffusers' modules: the names of a file's tensors (`rules`)
# and the initial values (`init`) both follow from it. Kernels end in (in, out), norms are (C,).


def _res(name: str, c_in: int, c_out: int) -> dict:
    """Table of a residual block: of its layers' names, their shapes."""
    layers = {f"{name}.norm1": (c_in,), f"{name}.conv1": (3, 3, 3, c_in, c_out)}
    layers |= {f"{name}.norm2": (c_out,), f"{name}.conv2": (3, 3, 3, c_out, c_out)}
    return layers | ({f"{name}.conv_shortcut": (1, 1, 1, c_in, c_out)} if c_in != c_out else {})


def _mid(name: str, c: int) -> dict:
    """Table of a middle block."""
    spot = f"{name}.attentions.0"
    attention = {f"{spot}.norm": (c,), f"{spot}.to_qkv": (1, 1, c, 3 * c)}
    attention |= {f"{spot}.proj": (1, 1, c, c)}
    return _res(f"{name}.resnets.0", c, c) | attention | _res(f"{name}.resnets.1", c, c)


def _encoder_layers(config: VAEConfig) -> dict:
    widths = [config.base_dim * m for m in config.dim_mult]
    layers, c = {"encoder.conv_in": (3, 3, 3, 3, config.base_dim)}, config.base_dim
    i = 0  # diffusers numbers residual blocks and resamplers of all levels in one list
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
            # Wan halves the channels in the resampler, so the next level starts at half its width.
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
    # A norm's gamma is (C, 1, 1, 1) on disk, for channels first; (C, 1, 1) where it sees images.
    video = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1, 1))
    frame = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1))
    table = []
    for name, shape in _layers(config).items():
        path = tuple(name.split("."))
        if len(shape) == 1:
            layout = frame if "attentions" in path else video
            table.append(Rule(f"{name}.gamma", (*path, "gamma"), layout))
        else:
            table.append(Rule(f"{name}.weight", (*path, "kernel"), CONV))
            table.append(Rule(f"{name}.bias", (*path, "bias")))
    return table


@functools.partial(jax.jit, static_argnames="config")
def init(key: jax.Array, config: VAEConfig) -> dict:
    """Draw fresh parameters, U(+-1/sqrt(fan_in)) as PyTorch's convolutions; norms are ones.

    Args:
      key: of `jax.random.key`.
      config: sizes.

    Returns:
      The tree that `encode` and `decode` take, float32.
    """
    leaves = {}  # path: shape and bound
    for name, shape in _layers(config).items():
        if len(shape) > 1:
            bound = 1 / math.sqrt(math.prod(shape[:-1]))
            leaves[(*name.split("."), "kernel")] = (shape, bound)
            leaves[(*name.split("."), "bias")] = (shape[-1:], bound)
    sizes = [math.prod(shape) for shape, _ in leaves.values()]
    # One draw for all: a generator for each leaf takes XLA minutes to compile.
    draw = jax.random.uniform(key, (sum(sizes),), minval=-1.0)
    flat, start = {}, 0
    for (path, (shape, bound)), size in zip(leaves.items(), sizes, strict=True):
        flat[path] = draw[start : start + size].reshape(shape) * bound
        start += size
    norms = {(*n.split("."), "gamma"): s for n, s in _layers(config).items() if len(s) == 1}
    return traverse_util.unflatten_dict(flat | {p: jnp.ones(s) for p, s in norms.items()})


def _encoder(params: dict, x_BFHWC: jax.Array, memory: vae_layers.Past) -> jax.Array:
    p = params["encoder"]
    x = vae_layers.causal(p["conv_in"], x_BFHWC, memory, "in")
    for i in range(len(p["down_blocks"])):
        block = p["down_blocks"][str(i)]
        # One list holds both kinds; only a residual block has a conv1.
        layer = vae_layers.residual if "conv1" in block else vae_layers.down
        x = layer(block, x, memory, f"down.{i}")
    x = vae_layers.middle(p["mid_block"], x, memory, "mid")
    return vae_layers.point(params["quant_conv"], vae_layers.head(p, x, memory))


def _decoder(params: dict, z_BTHWC: jax.Array, memory: vae_layers.Past) -> jax.Array:
    p = params["decoder"]
    x = vae_layers.point(params["post_quant_conv"], z_BTHWC)
    x = vae_layers.causal(p["conv_in"], x, memory, "in")
    x = vae_layers.middle(p["mid_block"], x, memory, "mid")
    for i in range(len(p["up_blocks"])):
        block = p["up_blocks"][str(i)]
        for j in range(len(block["resnets"])):
            x = vae_layers.residual(block["resnets"][str(j)], x, memory, f"up.{i}.{j}")
        if "upsamplers" in block:
            x = vae_layers.up(block["upsamplers"]["0"], x, memory, f"up.{i}.time")
    return vae_layers.head(p, x, memory)


def _in_turn(step, x_BTHWC: jax.Array, size: int) -> jax.Array:
    """Run `step(x, memory)` on `size` frames after the other, as one `lax.scan`.

    Args:
      step: (frames BTHWC, Past) -> BTHWC; leaves in the Past what the next frames need.
      x_BTHWC: all frames; T is a multiple of size.
      size: frames of a turn.

    Returns:
      What all turns returned, joined along time.
    """
    b, t, h, w, c = x_BTHWC.shape
    turns = jnp.moveaxis(x_BTHWC.reshape(b, t // size, size, h, w, c), 1, 0)
    first = jnp.arange(t // size) == 0

    def body(seen, turn):
        x, first = turn
        memory = vae_layers.Past(dict(seen), first)  # a dict of this turn's own, for layers to fill
        y = step(x, memory)
        return memory.seen, y

    # A scan's carry has one structure from the start. Which layers remember what, and in which
    # shapes, is known once they have run: run them on shapes alone, and start from zeros.
    seen = jax.eval_shape(lambda x, first: body({}, (x, first))[0], turns[0], first[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), seen)
    ys = jnp.moveaxis(lax.scan(body, zeros, (turns, first))[1], 0, 1)
    return ys.reshape((b, -1, *ys.shape[3:]))


def _statistics(config: VAEConfig) -> tuple[jax.Array, jax.Array]:
    shape = (1, 1, 1, 1, config.z_dim)
    mean, std = jnp.array(config.latents_mean), jnp.array(config.latents_std)
    return mean.reshape(shape), std.reshape(shape)


def moments(
    params: dict, config: VAEConfig, video_BFHWC: jax.Array, in_turn: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return the posterior's mean and log variance, not normalised, as the training loss needs.

    Args:
      params: tree of `init` or of the `rules`; its dtype is the compute dtype.
      video_BFHWC: float pixels in [-1, 1], F = 1 + 4k, H and W multiples of 8.
      in_turn: compute one latent frame at a time, in a small part of the memory.

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
    if in_turn:
        # Every turn takes stride_t frames: those missing before the first frame are hidden later.
        x = jnp.pad(x, ((0, 0), (config.stride_t - 1, 0), (0, 0), (0, 0), (0, 0)))
        y = _in_turn(functools.partial(_encoder, params), x, config.stride_t)
    else:
        y = _encoder(params, x, vae_layers.Past({}))
    mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def encode(
    params: dict, config: VAEConfig, video_BFHWC: jax.Array, in_turn: bool = False
) -> jax.Array:
    """Encode pixels to normalised latents, the posterior's mode as Wan's pipelines use.

    Args, errors: those of `moments`.

    Returns:
      latents_BTHWC, float32, (mean - latents_mean) / latents_std, near standard normal.
    """
    mean, std = _statistics(config)
    return (moments(params, config, video_BFHWC, in_turn)[0] - mean) / std


def decode(
    params: dict, config: VAEConfig, latents_BTHWC: jax.Array, in_turn: bool = False
) -> jax.Array:
    """Decode normalised latents to pixels.

    Args:
      params: tree of `init` or of the `rules`; its dtype is the compute dtype.
      latents_BTHWC: as `encode` returns.
      in_turn: compute one latent frame at a time, in a small part of the memory.

    Returns:
      video_BFHWC, float32 clipped to [-1, 1], F = 1 + 4 (T - 1), H and W 8 times those of latents.
    """
    return jnp.clip(raw_decode(params, config, latents_BTHWC, in_turn), -1.0, 1.0)


def raw_decode(
    params: dict, config: VAEConfig, latents_BTHWC: jax.Array, in_turn: bool = False
) -> jax.Array:
    """Decode as `decode` without the clip, for a training loss whose gradient must not vanish.

    Args: those of `decode`.

    Returns:
      video_BFHWC, float32, unbounded.
    """
    mean, std = _statistics(config)
    z = latents_BTHWC.astype(jnp.float32) * std + mean
    z = z.astype(params["decoder"]["conv_in"]["kernel"].dtype)
    if in_turn:
        y = _in_turn(functools.partial(_decoder, params), z, 1)
        y = y[
            :, config.stride_t - 1 :
        ]  # of the first latent frame only the last pixel frame counts
    else:
        y = _decoder(params, z, vae_layers.Past({}))
    return y.astype(jnp.float32)
