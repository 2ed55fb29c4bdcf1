"""A VACE model with random weights and inputs for it, on both sides: JAX and diffusers."""

import argparse
from typing import NamedTuple

import jax
import numpy as np
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

from evoid_jax.models import wan, weights

DEFAULTS = {"layers": 8, "heads": 4, "frames": 6, "size": 32, "words": 24, "videos": 1, "runs": 5}


class Latents(NamedTuple):
    """What a transformer sees of some videos, beside the time."""

    video_BTHWC: np.ndarray
    control_BTHWC: np.ndarray
    text_BSE: np.ndarray  # without padding


def arguments(description: str, **defaults: int) -> argparse.ArgumentParser:
    """Return a parser of the sizes: frames and size of the latents, words of the text."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in (DEFAULTS | defaults).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser


def sizes(args) -> wan.WanConfig:
    """Return a model whose every other block has a hint, as in VACE-1.3B."""
    hinted = tuple(range(0, args.layers, 2))
    width = 128 * args.heads
    return wan.WanConfig(
        num_attention_heads=args.heads,
        attention_head_dim=128,
        num_layers=args.layers,
        ffn_dim=4 * width,
        text_dim=512,
        vace_layers=hinted,
    )


def named(args, c: wan.WanConfig) -> str:
    """Name the sizes in a line."""
    tokens = args.frames * (args.size // 2) ** 2
    blocks = f"{args.layers} + {len(c.vace_layers)} blocks"
    return f"{args.videos} x {tokens} tokens, width {c.dim}, {blocks}, {args.runs} runs"


def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal float32 numbers, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def shaken(tree, seed: int):
    """Move every weight, so that nothing is zero or one."""
    leaves, kind = jax.tree.flatten(tree)
    moved = [x + 0.02 * draw(seed + i, x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(kind, moved)


def base(c: wan.WanConfig):
    """Return random weights in our layout."""
    return shaken(wan.init(jax.random.key(0), wan.Wan(c)), 0)


def latents(args, c: wan.WanConfig) -> Latents:
    """Return random latents, control and text of `args.videos` videos."""
    shape = args.videos, args.frames, args.size, args.size
    return Latents(
        video_BTHWC=draw(1, (*shape, c.in_channels)),
        control_BTHWC=draw(2, (*shape, c.vace_in_channels)),
        text_BSE=draw(3, (args.videos, args.words, c.text_dim)),
    )


def torch_model(c: wan.WanConfig, base, vace: bool = True) -> torch.nn.Module:
    """Return diffusers' model with these weights; without VACE its T2V part."""
    tensors = weights.to_tensors(jax.device_get(base), wan.rules(c))
    kept = lambda names: {k: v for k, v in names.items() if vace or "vace" not in k}
    kind = WanVACETransformer3DModel if vace else WanTransformer3DModel
    model = kind.from_config(kept(c.to_json()))
    model.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in kept(tensors).items()})
    return model.eval()


def channels_first(x_BTHWC) -> torch.Tensor:
    """Return BCTHW, as PyTorch's convolutions want it."""
    return torch.from_numpy(np.moveaxis(np.asarray(x_BTHWC), -1, 1).copy())


def all_rows(text_BSE, c: wan.WanConfig) -> torch.Tensor:
    """Pad a text with zeros, as diffusers' pipeline does."""
    missing = ((0, 0), (0, c.text_len - text_BSE.shape[1]), (0, 0))
    return torch.from_numpy(np.pad(np.asarray(text_BSE), missing))


def apart(a, b) -> float:
    """Return the relative L2 distance."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
