"""The VAE's training: first on stills, then on clips, then the decoder alone.

The order is that of Wan's own VAE (https://arxiv.org/abs/2503.20314, section 4.1): a still costs
less than a tenth of a clip, and what it teaches about space holds in every frame. The decoder goes
on alone, since the latents, which the transformer is made of, stay as they are then.

Letters: B videos, F pixel frames, H W C, T latent frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from evoid_jax import files
from evoid_jax.models import parts, vae, weights
from evoid_jax.pretrain import kept
from evoid_jax.pretrain.coder_torch import gradient_of
from evoid_jax.pretrain.fit import fit
from evoid_jax.world import portraits

DECODES = ("post_quant_conv", "decoder")  # the parts of the parameters behind the latents
LEAST_STD = 0.1  # what a latent channel is divided by, at least


class Coder(NamedTuple):
    """A frozen VAE."""

    params: dict
    config: vae.VAEConfig


def stored(folder: str | Path) -> list[Path]:
    """Return the files of a finished model's VAE: config and weights.

    Raises:
      OSError, ValueError: one of them is not there, or there is no such home folder.
    """
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    return [files.require_file(files.user_path(folder) / "vae" / name) for name in names]


def read(folder: str | Path, z_dim: int) -> Coder:
    """Read the VAE of a finished model, as float32.

    Raises:
      OSError, ValueError: there is none, it is damaged, or its latents have other channels than
        z_dim.
    """
    config_file, _ = stored(folder)
    at = config_file.parent
    part = parts.part("vae", weights.read_config(at), str(config_file))
    if part.config.z_dim != z_dim:
        raise ValueError(
            f"{config_file}: z_dim is {part.config.z_dim}; config.vae.z_dim is {z_dim}"
        )
    tensors = weights.open_folder(at)
    weights.check(tensors, parts.wanted(part), str(at))
    read_of = {key: tensor.read() for key, tensor in tensors.items()}
    for key, x in read_of.items():
        weights.check_finite(x, tensors[key].label)
    return Coder(weights.to_params(read_of, part.rules, np.float32), part.config)


class Footage(NamedTuple):
    """What the VAE learns from: the rendered world's pictures."""

    video_BFHWC: np.ndarray  # uint8
    reference_BHWC: np.ndarray  # uint8


def unit(pixels: np.ndarray) -> np.ndarray:
    """Map uint8 pixels of any shape to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def vae_config(cfg, mean=None, std=None) -> vae.VAEConfig:
    """Return the VAE's config; latent statistics are zero and one until they are measured."""
    z = cfg.vae.z_dim
    return vae.VAEConfig(
        **dict(cfg.vae),
        latents_mean=tuple(mean if mean is not None else [0.0] * z),
        latents_std=tuple(std if std is not None else [1.0] * z),
    )


def start(key: jax.Array, config: vae.VAEConfig) -> dict:
    """Draw parameters of a VAE that takes every clip for a still.

    No convolution sees the frames before its own, four frames are coded by their last, and a latent
    frame is shown four times. Stills train all else and leave this as it is, since their gradient
    on it is zero.
    """
    flat = traverse_util.flatten_dict(vae.init(key, config))
    for path, x in flat.items():
        if path[-2:] == ("time_conv", "kernel"):
            # The last of three frames as it is; in the decoder for both frames that come of it.
            width = x.shape[-2]
            flat[path] = (
                jnp.zeros_like(x).at[-1].set(jnp.tile(jnp.eye(width), x.shape[-1] // width))
            )
        elif path[-2:] == ("time_conv", "bias"):
            flat[path] = jnp.zeros_like(x)
        elif path[-1] == "kernel" and x.shape[:-2] == (3, 3, 3):
            flat[path] = x.at[:2].set(0.0)
    # The second half of the bias is the log variance. Latents start nearly without noise: behind
    # much of it the decoder would learn to do without them.
    bias = ("quant_conv", "bias")
    flat[bias] = flat[bias].at[config.z_dim :].set(-6.0)
    return traverse_util.unflatten_dict(flat)


def train_stills(cfg, footage: Footage, place: kept.Place) -> dict:
    """Train the VAE on single frames of the clips, a quarter of them reference photos.

    Returns:
      The parameters of `vae.encode` and `vae.decode`.
    """
    train, config = cfg.stills_train, vae_config(cfg)
    photos = train.batch // 4

    def batch_fn(step):
        rng = np.random.default_rng((cfg.seed, step))
        i = rng.integers(0, len(footage.video_BFHWC), train.batch)
        frame = rng.integers(0, cfg.frames, train.batch - photos)
        frames_BHWC = footage.video_BFHWC[i[photos:], frame]
        stills_BHWC = np.concatenate([footage.reference_BHWC[i[:photos]], frames_BHWC])
        return unit(stills_BHWC[:, None])

    params = start(jax.random.key(cfg.seed + 2), config)
    gradient = gradient_of(config, cfg.kl, cfg.seed)
    return fit("stills", gradient, params, batch_fn, train, place)


def _clips_and_photos(cfg, footage: Footage, batch: int):
    """Return step -> float32 pixels; every eighth batch is of photos, as videos of one frame."""

    def batch_fn(step):
        rng = np.random.default_rng((cfg.seed, step))
        if step % 8 == 0:
            i = rng.integers(0, len(footage.reference_BHWC), batch * cfg.frames)
            return unit(footage.reference_BHWC[i][:, None])
        i = rng.integers(0, len(footage.video_BFHWC), batch)
        return unit(footage.video_BFHWC[i])

    return batch_fn


def train_vae(cfg, footage: Footage, params: dict, place: kept.Place) -> dict:
    """Train the VAE on clips.

    Args:
      params: of `train_stills`.

    Returns:
      The parameters of `vae.encode` and `vae.decode`.
    """
    train = cfg.vae_train
    batch_fn = _clips_and_photos(cfg, footage, train.batch)
    gradient = gradient_of(vae_config(cfg), cfg.kl, cfg.seed)
    return fit("vae", gradient, params, batch_fn, train, place)


def train_decoder(cfg, footage: Footage, params: dict, place: kept.Place) -> dict:
    """Train the decoder on, behind an encoder that stays as it is.

    Args:
      params: of `train_vae`.

    Returns:
      The parameters of `vae.encode` and `vae.decode`.
    """
    train = cfg.decoder_train
    frozen = {name: part for name, part in params.items() if name not in DECODES}
    learning = {name: params[name] for name in DECODES}
    batch_fn = _clips_and_photos(cfg, footage, train.batch)
    gradient = gradient_of(vae_config(cfg), cfg.kl, cfg.seed, frozen=frozen)
    return frozen | fit("decoder", gradient, learning, batch_fn, train, place)


def measure_latents(params, config, footage: Footage) -> dict[str, np.ndarray]:
    """Return the mean and standard deviation of each latent channel over part of the world."""
    encode = jax.jit(lambda x: vae.encode(params, config, x))
    some = unit(footage.video_BFHWC[:512])
    z = np.concatenate([np.asarray(encode(some[i : i + 32])) for i in range(0, len(some), 32)])
    # A channel that the decoder does without is nearly constant, and is not blown up to noise.
    return {"mean": z.mean((0, 1, 2, 3)), "std": np.maximum(z.std((0, 1, 2, 3)), LEAST_STD)}


def psnr(params, config, count: int = 64) -> np.ndarray:
    """Return the VAE's mean PSNR in dB, a scalar, on portraits of the validation people."""
    scenes = [portraits.scene(i, 1) for i in portraits.SPLITS["validation"][:count]]
    video = unit(np.stack([portraits.render(scene) for scene in scenes]))
    code = jax.jit(lambda x: vae.decode(params, config, vae.encode(params, config, x)))
    back = np.concatenate([code(video[i : i + 16]) for i in range(0, count, 16)])
    mse_B = ((back - video) ** 2).mean((1, 2, 3, 4))
    # PSNR = 10 log10(peak^2 / mse); the peak is 2 on [-1, 1]
    return np.mean(10 * np.log10(4 / mse_B))
