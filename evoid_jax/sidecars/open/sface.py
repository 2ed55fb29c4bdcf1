"""SFace (Zhong et al. 2021) in plain torch, read from the OpenCV Zoo's file: another face encoder.

A MobileNet with PReLU and a dense end, trained with a loss that forgives wrong labels. Its weights
are in 8 bits, with a scale for each block of up to 64. Letters: B faces, C H W, D = 128 features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax.sidecars.open import align, catalogue, onnx_file
from evoid_jax.sidecars.open.faces import Face

SIDE = 112
# Channels out of each pair of convolutions, and whether the first of the pair halves the size.
PAIRS = (
    (64, False),
    (128, True),
    (128, False),
    (256, True),
    (256, False),
    (512, True),
    *[(512, False)] * 5,
    (1024, True),
    (1024, False),
)


class Layer(nn.Sequential):
    """A convolution, batch norm and a slope for what is negative."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        core = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(core, nn.BatchNorm2d(c_out, eps=1e-3), nn.PReLU(c_out))


class Net(nn.Module):
    """The net. (B, 3, 112, 112) RGB 0..255 -> (B, 128) of unit length."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"conv_1": Layer(3, 32, 3)})
        c_in = 32
        for number, (c_out, halve) in enumerate(PAIRS, 2):
            own = Layer(c_in, c_in, 3, stride=2 if halve else 1, groups=c_in)
            self.layers.update({f"conv_{number}_dw": own, f"conv_{number}": Layer(c_in, c_out, 1)})
            c_in = c_out
        self.bn1 = nn.BatchNorm2d(c_in, eps=2e-5)
        self.pre_fc1 = nn.Linear(c_in * 7 * 7, 128)
        self.fc1 = nn.BatchNorm1d(128, eps=2e-5)

    def forward(self, x_BCHW):
        x_BCHW = (x_BCHW - 127.5) / 128
        for layer in self.layers.values():
            x_BCHW = layer(x_BCHW)
        return F.normalize(self.fc1(self.pre_fc1(self.bn1(x_BCHW).flatten(1))))


class SFace:
    """Embeds faces.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        file = catalogue.find(catalogue.SFACE, folder)
        self.net = build(onnx_file.weights(file.read_bytes())).to(device)

    def embed(self, image_HWC: np.ndarray, face: Face) -> np.ndarray:
        """Embed a face of a picture, uint8 RGB: (128,) float32 of unit length."""
        return self.embed_crops(self.crop(image_HWC, face)[None])[0]

    def crop(self, image_HWC: np.ndarray, face: Face) -> np.ndarray:
        """Cut a face out as the net takes it, (112, 112, 3) uint8."""
        return align.crop(image_HWC, face.points, align.ARCFACE, SIDE)

    @torch.inference_mode()
    def embed_crops(self, crops_BHWC: np.ndarray) -> np.ndarray:
        """Embed crops of `crop`: (B, 128) float32."""
        device = self.net.pre_fc1.weight.device
        x_BCHW = torch.from_numpy(crops_BHWC).to(device).permute(0, 3, 1, 2).float()
        return self.net(x_BCHW).cpu().numpy()


def build(arrays: dict[str, np.ndarray]) -> Net:
    """Put weights by the names of the Zoo's file into the net.

    Raises:
      ValueError: one is missing, or of another shape.
    """
    net = Net().eval()
    try:
        for name, (conv, norm, slope) in net.layers.items():
            conv.load_state_dict({"weight": dequantised(arrays, f"{name}_conv2d_weight")})
            norm.load_state_dict(_norm(arrays, f"{name}_batchnorm"), strict=False)
            slope_C = torch.from_numpy(arrays[f"{name}_relu_gamma"].copy()).flatten()
            slope.load_state_dict({"weight": slope_C})
        net.bn1.load_state_dict(_norm(arrays, "bn1"), strict=False)
        net.fc1.load_state_dict(_norm(arrays, "fc1"), strict=False)
        kinds = ("weight", "bias")
        net.pre_fc1.load_state_dict({k: dequantised(arrays, f"pre_fc1_{k}") for k in kinds})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"these are not the weights of SFace: {error}") from None
    return net.to(memory_format=torch.channels_last)


def dequantised(arrays: dict[str, np.ndarray], name: str) -> torch.Tensor:
    """Return a weight as float32: (value - zero point) x scale, block by block of its last axis."""
    values, scales, zeros, shape = (
        arrays[f"{name}_{part}"] for part in ("quantized", "scales", "zero_point", "shape")
    )
    # The last block of a row may be shorter than the others.
    block = -(-values.shape[-1] // scales.shape[-1])
    wide = lambda x: np.repeat(x, block, axis=-1)[..., : values.shape[-1]]
    whole = (values.astype(np.float32) - wide(zeros).astype(np.float32)) * wide(scales)
    return torch.from_numpy(whole.reshape(shape))


def _norm(arrays: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    names |= {"running_var": "moving_var"}
    return {own: torch.from_numpy(arrays[f"{name}_{n}"].copy()) for own, n in names.items()}
