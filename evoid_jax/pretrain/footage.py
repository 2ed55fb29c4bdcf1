"""The drawn footage that pretraining learns from, rendered in parts that are kept.

Letters: B videos, F pixel frames, H W C, K labels.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from evoid_jax.pretrain import kept
from evoid_jax.pretrain.coder import Footage
from evoid_jax.world import portraits

PART = 1000  # clips of a file


def scenes(cfg, count: int, split: str = "pretrain") -> list[portraits.Scene]:
    """Return one scene of each of the first `count` people of a split."""
    # A scene depends on its person and the seed alone: a small world is the start of a big one.
    return [portraits.scene(i, cfg.seed) for i in portraits.SPLITS[split][:count]]


def parts(count: int) -> list[range]:
    """Cut `count` clips into ranges of at most PART."""
    return [range(i, min(i + PART, count)) for i in range(0, count, PART)]


def name(stage: str, part: range) -> str:
    """Return what a part of a stage is kept as: other clips are another file."""
    return f"{stage}_{part.start}_{part.stop}"


def clips(cfg, drawn: list[portraits.Scene]) -> np.ndarray:
    """Render scenes: (B, F, H, W, 3) uint8."""
    bar = tqdm(drawn, "render", mininterval=5)
    return np.stack([portraits.render(scene, cfg.frames, cfg.size) for scene in bar])


def photos(cfg, drawn: list[portraits.Scene]) -> np.ndarray:
    """Render the reference photos of the scenes' people: (B, H, W, 3) uint8."""
    return np.stack([portraits.reference(scene.identity, cfg.size) for scene in drawn])


def of_vae(cfg, place_of) -> Footage:
    """Return what the VAE sees, each part rendered once.

    Args:
      place_of: name -> `kept.Place`.
    """
    drawn = scenes(cfg, cfg.vae_videos)

    def one(part: range) -> Footage:
        some = [drawn[i] for i in part]
        make = lambda: Footage(clips(cfg, some), photos(cfg, some))._asdict()
        return Footage(**kept.stage(place_of(name("footage", part)), make))

    made = [one(part) for part in parts(cfg.vae_videos)]
    return Footage(*(np.concatenate(column) for column in zip(*made, strict=True)))
