"""dlib's face encoder in plain torch, read from the files of face-api: the arcface role.

The net is dlib's ResNet with 29 convolutions (King 2017), trained on about 3 million faces; two
pictures are usually called one person's where their embeddings are less than 0.6 apart. face-api
holds its weights in 8 bits, which moves embeddings by .03 to .04.
Letters: B faces, C H W channels and space, D = 128 features.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax.sidecars.open import align, catalogue
from evoid_jax.sidecars.open.faces import Face

SIDE = 150
MEAN = (122.782, 117.001, 104.298)  # of R, G, B, in its training
# name in the file, channels in and out, whether it halves the resolution
BLOCKS = (
    *((f"conv32_{i}", 32, 32, False) for i in (1, 2, 3)),
    ("conv64_down", 32, 64, True),
    *((f"conv64_{i}", 64, 64, False) for i in (1, 2, 3)),
    ("conv128_down", 64, 128, True),
    *((f"conv128_{i}", 128, 128, False) for i in (1, 2)),
    ("conv256_down", 128, 256, True),
    *((f"conv256_{i}", 256, 256, False) for i in (1, 2)),
    ("conv256_down_out", 256, 256, True),
)


class Block(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a pooling that halves."""

    def __init__(self, c_in: int, c_out: int, down: bool):
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(c_in, c_out, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.second = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, x_BCHW):
        y_BCHW = self.second(F.relu(self.first(x_BCHW)))
        if self.down:
            x_BCHW = F.avg_pool2d(x_BCHW, 2)
            # dlib adds tensors of unlike sizes as if zeros stood behind the smaller one.
            right, below = x_BCHW.shape[3] - y_BCHW.shape[3], x_BCHW.shape[2] - y_BCHW.shape[2]
            y_BCHW = F.pad(y_BCHW, (0, right, 0, below))
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, y_BCHW.shape[1] - x_BCHW.shape[1]))
        return F.relu(x_BCHW + y_BCHW)


class ResNet(nn.Module):
    """The net. (B, 3, 150, 150) RGB 0..255 -> (B, 128), not of unit length."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.ModuleDict({name: Block(*sizes) for name, *sizes in BLOCKS})
        self.head = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean_C11", torch.tensor(MEAN)[:, None, None], persistent=False)

    def forward(self, x_BCHW):
        x_BCHW = (x_BCHW - self.mean_C11) / 256
        x_BCHW = F.max_pool2d(F.relu(self.stem(x_BCHW)), 3, stride=2)
        for block in self.blocks.values():
            x_BCHW = block(x_BCHW)
        return self.head(x_BCHW.mean((2, 3)))


class DlibFace:
    """Embeds faces.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        manifest = catalogue.find(catalogue.DLIB_MANIFEST, folder)
        weights = catalogue.find(catalogue.DLIB, folder)
        self.net = build(dequantised(manifest.read_text(), weights.read_bytes()))
        self.net.to(device)

    def embed(self, image_HWC: np.ndarray, face: Face) -> np.ndarray:
        """Embed a face of a picture, uint8 RGB: (128,) float32."""
        return self.embed_crops(self.crop(image_HWC, face)[None])[0]

    def crop(self, image_HWC: np.ndarray, face: Face) -> np.ndarray:
        """Cut a face out as the net takes it, (150, 150, 3) uint8."""
        return align.crop(image_HWC, face.points, align.DLIB, SIDE)

    @torch.inference_mode()
    def embed_crops(self, crops_BHWC: np.ndarray) -> np.ndarray:
        """Embed crops of `crop`: (B, 128) float32."""
        device = self.net.head.weight.device
        x_BCHW = torch.from_numpy(crops_BHWC).to(device).permute(0, 3, 1, 2).float()
        return self.net(x_BCHW).cpu().numpy()


def dequantised(manifest: str, weights: bytes) -> dict[str, torch.Tensor]:
    """Read weights as TensorFlow.js holds them, most in 8 bits.

    Args:
      manifest: JSON, which tells name and shape of every tensor, and of most scale and least value.
      weights: the tensors end to end.

    Returns:
      By name, float32.

    Raises:
      ValueError: the sizes do not fit.
    """
    tensors, start = {}, 0
    for entry in (entry for group in json.loads(manifest) for entry in group["weights"]):
        size, grid = math.prod(entry["shape"]), entry.get("quantization")
        values = np.frombuffer(weights, np.uint8 if grid else "<f4", size, start)
        start += values.nbytes
        if grid:
            values = values.astype(np.float32) * np.float32(grid["scale"]) + np.float32(grid["min"])
        tensors[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    if start != len(weights):
        raise ValueError(
            f"the manifest tells of {start} bytes of weights, there are {len(weights)}"
        )
    return tensors


def build(tensors: dict[str, torch.Tensor]) -> ResNet:
    """Put tensors by face-api's names into the net.

    Raises:
      ValueError: one is missing, left over, or of another shape.
    """
    net, rest = ResNet().eval(), dict(tensors)
    places = {"conv32_down": net.stem}
    for name, block in net.blocks.items():
        places |= {f"{name}/conv1": block.first, f"{name}/conv2": block.second}
    try:
        for name, conv in places.items():
            _fill(conv, rest, name)
        net.head.load_state_dict({"weight": rest.pop("fc").T})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"these are not the weights of face-api's face encoder: {error}") from None
    if rest:
        raise ValueError(f"the face encoder has no place for {sorted(rest)[0]}")
    return net


def _fill(conv: nn.Conv2d, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Take a convolution's tensors out of a dict; its affine is multiplied into it."""
    scale_C = tensors.pop(f"{name}/scale/weights")
    weight = tensors.pop(f"{name}/conv/filters").permute(3, 2, 0, 1) * scale_C[:, None, None, None]
    bias_C = tensors.pop(f"{name}/conv/bias") * scale_C + tensors.pop(f"{name}/scale/biases")
    conv.load_state_dict({"weight": weight, "bias": bias_C})
