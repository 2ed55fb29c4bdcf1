"""TransNetV2 (Soucek and Lokoc 2020) in plain torch: where a video is cut.

The net looks at 100 frames of 27 x 48 pixels at a time and says of each how likely it is the last
before a cut. It sees splices and not that frames are in disorder.
Letters: B windows, T frames, C H W, D features, K = 101 frames that a frame is compared with.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evoid_jax.sidecars.open import catalogue

HEIGHT, WIDTH = 27, 48
WINDOW, MARGIN = 100, 25  # the answer counts for the 50 frames in the middle
COMPARED = 101


class Separable(nn.Module):
    """A 3x3 convolution within frames, then one over three frames, `dilation` apart."""

    def __init__(self, c_in: int, c_out: int, dilation: int):
        super().__init__()
        within = nn.Conv3d(c_in, 2 * c_out, (1, 3, 3), padding=(0, 1, 1), bias=False)
        over = nn.Conv3d(
            2 * c_out, c_out, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0),
            bias=False,
        )  # fmt: skip
        self.layers = nn.ModuleList([within, over])

    def forward(self, x_BCTHW):
        return self.layers[1](self.layers[0](x_BCTHW))


class Dilated(nn.Module):
    """Four of them side by side, which see 3, 5, 9 and 17 frames; normalised."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        # The names of the trained file.
        self.Conv3D_1 = Separable(c_in, c_out, 1)
        self.Conv3D_2 = Separable(c_in, c_out, 2)
        self.Conv3D_4 = Separable(c_in, c_out, 4)
        self.Conv3D_8 = Separable(c_in, c_out, 8)
        self.bn = nn.BatchNorm3d(4 * c_out, eps=1e-3)

    def forward(self, x_BCTHW):
        parts = (self.Conv3D_1, self.Conv3D_2, self.Conv3D_4, self.Conv3D_8)
        return self.bn(torch.cat([part(x_BCTHW) for part in parts], 1))


class Stack(nn.Module):
    """Two of those with a shortcut; halves the frames' size."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.DDCNN = nn.ModuleList([Dilated(c_in, c_out), Dilated(4 * c_out, c_out)])

    def forward(self, x_BCTHW):
        first = F.relu(self.DDCNN[0](x_BCTHW))
        return F.avg_pool3d(first + F.relu(self.DDCNN[1](first)), (1, 2, 2))


class Likeness(nn.Module):
    """How alike each frame is to the 50 before and after it, as 128 features."""

    def __init__(self, c_in: int | None = None):
        super().__init__()
        if c_in:
            self.projection = nn.Linear(c_in, 128)
        self.fc = nn.Linear(COMPARED, 128)

    def forward(self, x_BTD):
        x_BTD = self.projection(x_BTD) if hasattr(self, "projection") else x_BTD
        x_BTD = F.normalize(x_BTD, dim=2)
        like_BTT = F.pad(x_BTD @ x_BTD.transpose(1, 2), (COMPARED // 2, COMPARED // 2))
        # Row t of the padded matrix is read from column t on: its neighbours, itself in the middle.
        T = x_BTD.shape[1]
        column_TK = torch.arange(T)[:, None] + torch.arange(COMPARED)
        index_BTK = column_TK.to(x_BTD.device).expand(len(x_BTD), T, COMPARED)
        return F.relu(self.fc(like_BTT.gather(2, index_BTK)))


class TransNet(nn.Module):
    """The net. (B, T, 27, 48, 3) uint8 -> (B, T) logits of "the last frame before a cut"."""

    def __init__(self):
        super().__init__()
        self.SDDCNN = nn.ModuleList([Stack(3, 16), Stack(64, 32), Stack(128, 64)])
        self.frame_sim_layer = Likeness(4 * (16 + 32 + 64))
        self.color_hist_layer = Likeness()
        self.fc1 = nn.Linear(256 * 3 * 6 + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        # Of training alone: all frames of a slow transition.
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames_BTHWC):
        x_BCTHW = frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 255
        means = []
        for stack in self.SDDCNN:
            x_BCTHW = stack(x_BCTHW)
            means.append(x_BCTHW.mean((3, 4)).transpose(1, 2))
        flat_BTD = x_BCTHW.permute(0, 2, 3, 4, 1).flatten(2)
        alike_BTD = self.frame_sim_layer(torch.cat(means, 2))
        colours_BTD = self.color_hist_layer(histograms(frames_BTHWC))
        features_BTD = torch.cat([colours_BTD, alike_BTD, flat_BTD], 2)
        return self.cls_layer1(F.relu(self.fc1(features_BTD)))[..., 0]


def histograms(frames_BTHWC: torch.Tensor) -> torch.Tensor:
    """Return how many pixels each of 8x8x8 colours has, (B, T, 512) float32."""
    high_BTHWC = frames_BTHWC.long() >> 5  # the three highest bits
    bin_BTHW = high_BTHWC[..., 0] * 64 + high_BTHWC[..., 1] * 8 + high_BTHWC[..., 2]
    bin_BTD = bin_BTHW.flatten(2)
    counts = torch.zeros(*bin_BTD.shape[:2], 512, device=bin_BTD.device)
    return counts.scatter_add(2, bin_BTD, torch.ones_like(bin_BTD, dtype=torch.float32))


class Cuts:
    """Finds cuts.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu"):
        file = catalogue.find(catalogue.TRANSNET, folder)
        # weights_only: a pickle of anything but tensors is refused.
        self.net = build(torch.load(file, map_location="cpu", weights_only=True)).to(device)

    @torch.inference_mode()
    def probabilities(self, video_FHWC: np.ndarray) -> np.ndarray:
        """Return how likely each frame is the last before a cut.

        Args:
          video_FHWC: uint8 RGB.

        Returns:
          (F,) float32 in [0, 1].
        """
        small = np.stack([_small(frame) for frame in video_FHWC])
        count, step = len(small), WINDOW - 2 * MARGIN
        # The first and the last frame stand still beyond the ends, as in the net's own evaluation.
        index = np.arange(-MARGIN, -(-count // step) * step + MARGIN).clip(0, count - 1)
        starts = range(0, len(index) - WINDOW + 1, step)
        device = self.net.fc1.weight.device
        parts = []
        for start in starts:
            window = torch.from_numpy(small[index[start : start + WINDOW]])
            logits_T = self.net(window[None].to(device))[0]
            parts.append(logits_T[MARGIN : WINDOW - MARGIN].sigmoid().cpu().numpy())
        return np.concatenate(parts)[:count]


def build(tensors: dict[str, torch.Tensor]) -> TransNet:
    """Put tensors by the names of the authors' release into the net.

    Raises:
      ValueError: they do not fit it.
    """
    net = TransNet().eval()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of TransNetV2: {error}") from None
    return net


def _small(frame_HWC: np.ndarray) -> np.ndarray:
    size = (WIDTH, HEIGHT)
    return cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA)
