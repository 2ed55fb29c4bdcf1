"""EfficientNet-Lite0 in plain torch: what a picture shows, as ImageNet's classes and features.

EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with ReLU6.
Letters: B pictures, C H W, D = 1280 features, K = 1000 classes.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax.sidecars.open import catalogue

SIDE = 224
# Of each stage: how many blocks, kernel, stride of the first, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does: an odd pixel stands right and below."""

    def forward(self, x_BCHW):
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for size in (x_BCHW.shape[3], x_BCHW.shape[2]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x_BCHW, pads))


def norm(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm with TensorFlow's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class Inverted(nn.Module):
    """Widen, look around in each channel, narrow; beside the identity where sizes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = c_in * expansion
        if expansion > 1:  # the names of the trained file
            self._expand_conv = Same(c_in, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv = Same(wide, c_out, 1, bias=False)
        self._bn2 = norm(c_out)
        self.beside = stride == 1 and c_in == c_out

    def forward(self, x_BCHW):
        y_BCHW = x_BCHW
        if hasattr(self, "_expand_conv"):
            y_BCHW = F.relu6(self._bn0(self._expand_conv(y_BCHW)))
        y_BCHW = F.relu6(self._bn1(self._depthwise_conv(y_BCHW)))
        y_BCHW = self._bn2(self._project_conv(y_BCHW))
        return x_BCHW + y_BCHW if self.beside else y_BCHW


class EfficientNet(nn.Module):
    """The net. (B, 3, H, W) RGB 0..255 -> (B, 1280) features and (B, 1000) logits."""

    def __init__(self):
        super().__init__()
        self._conv_stem = Same(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList()
        c_in = 32
        for count, kernel, stride, expansion, c_out in STAGES:
            for i in range(count):
                self._blocks.append(Inverted(c_in, c_out, kernel, 1 if i else stride, expansion))
                c_in = c_out
        self._conv_head = Same(c_in, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x_BCHW):
        x_BCHW = F.relu6(self._bn0(self._conv_stem((x_BCHW - 127) / 128)))
        for block in self._blocks:
            x_BCHW = block(x_BCHW)
        features_BD = F.relu6(self._bn1(self._conv_head(x_BCHW))).mean((2, 3))
        return features_BD, self._fc(features_BD)


class Backbone:
    """Looks at pictures.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        file = catalogue.find(catalogue.EFFICIENTNET, folder)
        # weights_only: a pickle of anything but tensors is refused.
        self.net = build(torch.load(file, map_location="cpu", weights_only=True)).to(device)

    @torch.inference_mode()
    def look(self, frames_FHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features (F, 1280) and class probabilities (F, 1000) of uint8 RGB pictures."""
        small = torch.from_numpy(np.stack([_small(frame) for frame in frames_FHWC]))
        x_BCHW = small.to(self.net._fc.weight.device).permute(0, 3, 1, 2).float()
        features_BD, logits_BK = self.net(x_BCHW)
        return features_BD.cpu().numpy(), logits_BK.softmax(1).cpu().numpy()


def build(tensors: dict[str, torch.Tensor]) -> EfficientNet:
    """Put tensors by the names of the trained file into the net.

    Raises:
      ValueError: they do not fit it.
    """
    net = EfficientNet().eval()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of EfficientNet-Lite0: {error}") from None
    return net.to(memory_format=torch.channels_last)


def _small(frame_HWC: np.ndarray) -> np.ndarray:
    """Squeeze a whole picture into a square: people at its sides count too."""
    height, width = frame_HWC.shape[:2]
    how = cv2.INTER_AREA if min(height, width) > SIDE else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(frame_HWC), (SIDE, SIDE), interpolation=how)
