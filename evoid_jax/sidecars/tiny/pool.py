"""Rendered portraits with their truth: what the nets of preset `tiny` learn.

Letters: B F H W C, N videos of the pool, I people, A attributes, K labels, L landmarks x 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from evoid_jax.sidecars.tiny import rewards
from evoid_jax.world import portraits
from evoid_jax.world.people import FACE, HEAD_Y


class Pool(NamedTuple):
    """Rendered people and videos, uint8, with their truth."""

    video_NFHWC: torch.Tensor
    person_N: torch.Tensor
    reference_IHWC: torch.Tensor
    attribute_IA: torch.Tensor
    landmark_NFL: torch.Tensor
    motion_N: torch.Tensor
    seen_NF: torch.Tensor  # the whole head is in the picture
    label_NK: torch.Tensor  # action, background, camera, third of amplitude, side
    prompts: list[list[str]]


def make_pool(people, videos: int) -> Pool:
    """Render `videos` scenes of each person, with four wordings of each prompt."""
    people = list(people)
    scenes = [portraits.scene(i, seed) for i in people for seed in range(videos)]
    truths = [portraits.truth(s, rewards.FRAMES) for s in scenes]
    references = [portraits.reference(portraits.identity(i)) for i in people]
    # The head's centre, far enough from the edges of the picture.
    x_NF, y_NF = (np.stack([t[key] for t in truths]) for key in ("head_x", "head_y"))
    seen_NF = (np.abs(x_NF - 0.5) < 0.33) & (np.abs(y_NF - 0.5) < 0.4)
    clips = [portraits.render(scene, rewards.FRAMES) for scene in scenes]
    attributes = [portraits.identity(i) for i in people]
    return Pool(
        video_NFHWC=torch.from_numpy(np.stack(clips)),
        person_N=torch.arange(len(people)).repeat_interleave(videos),
        reference_IHWC=torch.from_numpy(np.stack(references)),
        attribute_IA=rewards.visible(torch.from_numpy(np.stack(attributes))),
        landmark_NFL=torch.from_numpy(np.stack([landmarks(t) for t in truths])),
        motion_N=torch.tensor([t["motion_amplitude"] for t in truths]),
        seen_NF=torch.from_numpy(seen_NF),
        label_NK=torch.tensor([labels(scene) for scene in scenes]),
        prompts=[[portraits.prompt(scene, seed) for seed in range(4)] for scene in scenes],
    )


def labels(scene: portraits.Scene) -> list[int]:
    """Return what a prompt tells of a scene, as the classes of `Pool.label_NK`."""
    return [
        portraits.ACTIONS.index(scene.action),
        portraits.BACKGROUNDS.index(scene.background),
        portraits.CAMERAS.index(scene.camera),
        (scene.amplitude > 0.5) + (scene.amplitude > 0.75),
        int(scene.side > 0),
    ]


def landmarks(t: dict) -> np.ndarray:
    """Return the landmarks whose fastest one is truth's motion_amplitude.

    Args:
      t: of `portraits.truth`.

    Returns:
      (F, 16) float32: x, y of head, crown, nose, hand, mouth corner, lip, lid and brow, in half
      heads.
    """
    # From the picture (0..1) back into the world: the camera's own motion is not the person's.
    x, y = (t["head_x"] - 0.5) / t["zoom"] + t["pan"], (t["head_y"] - 0.5) / t["zoom"]
    hand_x, hand_y = (t["hand_x"] - 0.5) / t["zoom"] + t["pan"], (t["hand_y"] - 0.5) / t["zoom"]
    x, y, hand_x, hand_y = (v / FACE for v in (x, y - HEAD_Y, hand_x, hand_y - HEAD_Y))
    still = np.zeros_like(x)
    points = (
        (x, y),
        (x + np.sin(t["head_angle"]), y - np.cos(t["head_angle"])),
        (x + 0.25 * t["turn"], y + 0.2 * t["pitch"]),
        (hand_x, hand_y),
        (0.16 * t["smile"], 0.2 * t["smile"]),
        (still, 0.3 * t["mouth"]),
        (still, 0.26 * t["eyes"]),
        (still, 0.3 * t["brows"]),
    )
    return np.stack([v for xy in points for v in xy], 1).astype(np.float32)


def floats(x_BFHWC: torch.Tensor) -> torch.Tensor:
    """Turn uint8 BFHWC into float BFCHW in [0, 1]."""
    return x_BFHWC.permute(0, 1, 4, 2, 3).float().div(255).contiguous()


def signed(x_BFCHW: torch.Tensor) -> torch.Tensor:
    """Turn BFCHW in [0, 1] into BFCHW in [-1, 1], as the nets take it."""
    # Channels last in memory: the faster layout for convolutions on CPUs.
    flat = (x_BFCHW * 2 - 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, x_BFCHW.shape[:2])
