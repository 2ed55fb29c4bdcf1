"""`aesthetic`: OpenS2V-Eval's AestheticScore, LAION's head on CLIP ViT-L/14.

Letters: N frames, H W C pixels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from evoid_jax.sidecars.paper import batching, checkpoints

# What CLIP's checkpoint holds besides its eye.
OTHERS = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")


class Head(nn.Module):
    """LAION's head, (N, 768) of unit length -> (N,), 1 to 10; the file's own names.

    There is nothing between its layers, so it is an affine map; the dropouts only shift names.
    """

    def __init__(self, width: int = 768):
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        dense = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        first, second, third, fourth, last = dense
        quiet = nn.Dropout
        self.layers = nn.Sequential(
            first, quiet(0.2), second, quiet(0.2), third, quiet(0.1), fourth, last
        )

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.layers(x_ND)[:, 0]


class Scorer:
    """CLIP's eye and LAION's head."""

    def __init__(self, clip: CLIPVisionModelWithProjection, head: Head, memory: float):
        self.clip, self.head, c = clip, head, clip.config
        self.pixels = CLIPImageProcessorPil(
            size={"shortest_edge": c.image_size},
            crop_size={"height": c.image_size, "width": c.image_size},
        )
        places = (c.image_size // c.patch_size) ** 2 + 1
        item = batching.transformer_bytes(places, c.hidden_size, c.intermediate_size, 4)
        self.size = batching.most(item, memory)

    def grades(self, frames_NHWC: Sequence[np.ndarray]) -> np.ndarray:
        """Return each frame's grade, (N,) float64, about 1 to 10. frames_NHWC: uint8 RGB."""
        return batching.run(self._grade, frames_NHWC, self.size).double().cpu().numpy()

    @torch.inference_mode()
    def _grade(self, frames_NHWC: Sequence[np.ndarray]) -> torch.Tensor:
        inputs = self.pixels(images=list(frames_NHWC), return_tensors="pt")
        seen_ND = self.clip(inputs["pixel_values"].to(self.clip.device)).image_embeds
        return self.head(nn.functional.normalize(seen_ND, dim=-1))


def load(clip: Path, head: Path, device: torch.device, memory: float) -> Scorer:
    """Load CLIP ViT-L/14 and the head, float32 as in the benchmark.

    Raises:
      ValueError: a tensor is missing, too many, or of another shape.
    """
    eye, info = CLIPVisionModelWithProjection.from_pretrained(
        clip, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    checkpoints.strictly(info, clip, ignored=OTHERS)
    with torch.device("meta"):
        net = Head(eye.config.projection_dim)
    net = checkpoints.fill(net, [head], device, torch.float32)
    return Scorer(eye.eval().requires_grad_(False).to(device), net, memory)
