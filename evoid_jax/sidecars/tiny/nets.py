"""The small nets of preset `tiny`: no two rewards, and no reward and monitor, share one.

All take float pixels in [-1, 1] at 64x64, as frames x_BCHW or clips x_BFCHW; after "->" stands what
they return. Letters: B videos (or frames), F frames, C H W channels and space, D features, V hash
buckets, S tokens.
"""

from __future__ import annotations

import re
import zlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 64
BUCKETS = 2048


def conv(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Make a 3x3 convolution, batch norm and ReLU."""
    core = nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(core, nn.BatchNorm2d(c_out), nn.ReLU())


class Residual(nn.Module):
    """Two 3x3 convolutions beside a strided 1x1: halves the resolution."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.main = nn.Sequential(
            conv(c_in, c_out, 2),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.side = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW):
        return F.relu(self.main(x_BCHW) + self.side(F.avg_pool2d(x_BCHW, 2)))


class ArcEncoder(nn.Module):
    """Face encoder of `arcface`: residual blocks, mean and spread over space. -> (B,64), unit."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.body = nn.Sequential(conv(3, 20, 2), Residual(20, 40), Residual(40, 72))
        self.head = nn.Linear(144, width)

    def forward(self, x_BCHW):
        h_BCHW = self.body(x_BCHW)
        # Mean and spread over space: what a face has, wherever in the picture it is.
        spread_BC = h_BCHW.flatten(2).std(2)
        return F.normalize(self.head(torch.cat([h_BCHW.mean((2, 3)), spread_BC], 1)))


class CurricularEncoder(nn.Module):
    """Face encoder of `curricularface`: plain convolutions, max pooling, dense head. -> (B,64)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.body = nn.Sequential()
        # The names 0, 1, 2, .. of a plain sequence, which the trained files hold.
        for c_in, c_out in pairwise((3, 16, 32, 56, 72)):
            self.body.append(nn.Conv2d(c_in, c_out, 3, 2, 1))
            self.body.append(nn.BatchNorm2d(c_out))
            self.body.append(nn.PReLU(c_out))
        # Four halvings of 64x64 leave 4x4 places, each with weights of its own.
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(72 * 16, width))

    def forward(self, x_BCHW):
        return F.normalize(self.head(self.body(x_BCHW)))


def hash_tokens(text: str, length: int = 48) -> list[int]:
    """Hash words and neighbouring word pairs into buckets 1..V-1; 0 pads to `length`."""
    # Pairs too: "pans left" and "to the left" share a word, not a meaning.
    words = re.findall(r"[a-z0-9]+", text.lower())
    grams = words + [f"{a} {b}" for a, b in pairwise(words)]
    # crc32 and not hash(): Python salts its own anew in every process.
    ids = [1 + zlib.crc32(g.encode()) % (BUCKETS - 1) for g in grams]
    return (ids + [0] * length)[:length]


class TextVideo(nn.Module):
    """Two towers of `gme`: hashed words, and frames with their changes. Both -> (B,64), unit."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.words = nn.Embedding(BUCKETS, 40, padding_idx=0)
        self.text_head = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, width))
        self.body = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 48, 2), conv(48, 32, 2))
        self.frame_head = nn.Linear(32 * 16, 64)
        self.time = nn.Sequential(
            nn.Conv1d(128, 96, 3, 1, 1), nn.ReLU(), nn.Conv1d(96, 96, 3, 1, 1), nn.ReLU()
        )
        self.video_head = nn.Linear(192, width)
        self.log_scale = nn.Parameter(torch.tensor(2.5))  # of the contrastive loss, as in CLIP

    def text(self, ids_BS):
        """Embed prompts.

        Args:
          ids_BS: of `hash_tokens`, int64; 0 is no word.

        Returns:
          (B, 64), of length 1.
        """
        mask_BS = (ids_BS > 0).float()
        mean_BD = self.words(ids_BS).sum(1) / mask_BS.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.text_head(mean_BD))

    def video(self, x_BFCHW):
        """Embed clips.

        Args:
          x_BFCHW: float in [-1, 1], two frames or more.

        Returns:
          (B, 64), of length 1.
        """
        h_BFD = self.frame_head(over_frames(self.body, x_BFCHW).flatten(2))
        # Each frame beside its change to the next: a nod and a shake differ in nothing else.
        step_BFD = torch.cat([h_BFD[:, 1:] - h_BFD[:, :-1], torch.zeros_like(h_BFD[:, :1])], 1)
        h_BDF = self.time(torch.cat([h_BFD, step_BFD], 2).transpose(1, 2))
        return F.normalize(self.video_head(torch.cat([h_BDF.mean(2), h_BDF.amax(2)], 1)))


class FrameQuality(nn.Module):
    """Picture quality of `aesthetic`, frame by frame, at full resolution. -> (B,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(12, 24), conv(24, 32, 2), conv(32, 56, 2))
        self.head = nn.Sequential(nn.Linear(112, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, x_BCHW):
        # 2x2 pixels become 12 channels: half the width without losing the pixels that blur takes.
        h_BCHW = self.body(F.pixel_unshuffle(x_BCHW, 2))
        spread_BC = h_BCHW.flatten(2).std(2)
        return self.head(torch.cat([h_BCHW.mean((2, 3)), spread_BC], 1))[:, 0]


class TemporalQuality(nn.Module):
    """Smoothness of `qalign`: windows of three frames, their first differences. -> (B,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 2), conv(16, 24, 2))
        self.window = nn.Sequential(conv(72, 48, 2), conv(48, 56, 2))
        self.head = nn.Sequential(nn.Linear(56 * 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x_BFCHW):
        h_BFCHW = over_frames(self.body, x_BFCHW)
        # A window: the middle frame, and its changes from the last and to the next one.
        a, b, c = h_BFCHW[:, :-2], h_BFCHW[:, 1:-1], h_BFCHW[:, 2:]
        z_BFCHW = over_frames(self.window, torch.cat([b, b - a, c - b], 2))
        z_BFD = torch.cat([z_BFCHW.mean((3, 4)), z_BFCHW.amax((3, 4))], 2)
        spread_BD = z_BFD.var(1, unbiased=False).add(1e-6).sqrt()  # sqrt has no gradient at 0
        return self.head(torch.cat([z_BFD.mean(1), spread_BD], 1))[:, 0]


class Naturalness(nn.Module):
    """Sound structure of `naturalness`: residual frames, averaged over time. -> (B,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 2), Residual(16, 32), Residual(32, 64), conv(64, 64))
        self.head = nn.Sequential(nn.Linear(64 * 3, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x_BFCHW):
        h_BFCHW = over_frames(self.body, x_BFCHW)
        z_BFD = torch.cat([h_BFCHW.mean((3, 4)), h_BFCHW.amax((3, 4))], 2)
        drift_BD = h_BFCHW.mean((3, 4)).var(1, unbiased=False).add(1e-6).sqrt()
        return self.head(torch.cat([z_BFD.mean(1), drift_BD], 1))[:, 0]


class Attributes(nn.Module):
    """Monitor `identity`: wide kernels, dilation, a dense map of 8x8. -> (B, attributes)."""

    def __init__(self, attributes: int):
        super().__init__()
        self.body = nn.Sequential(
            wide(5, 16, 5, 2), wide(16, 32, 5, 2), wide(32, 48, 3, 1, 2), nn.Conv2d(48, 24, 1)
        )
        self.head = nn.Sequential(
            nn.Linear(24 * 64, 80), nn.BatchNorm1d(80), nn.GELU(), nn.Linear(80, attributes)
        )

    def forward(self, x_BCHW):
        # With coordinates and a dense map: an attribute is where on the head something is.
        h_BCHW = F.avg_pool2d(self.body(with_coordinates(x_BCHW)), 2)
        return self.head(h_BCHW.flatten(1))


class PoseNet(nn.Module):
    """Monitor `motion`: landmarks of each frame, seen with its change. -> (B,F,poses)."""

    def __init__(self, poses: int):
        super().__init__()
        self.body = nn.Sequential(conv(5, 16, 2), conv(16, 32, 2), conv(32, 48, 2), conv(48, 32, 2))
        self.frame_head = nn.Linear(32 * 16, 64)
        self.time = nn.Sequential(
            nn.Conv1d(128, 96, 3, 1, 1), nn.ReLU(), nn.Conv1d(96, 96, 3, 1, 1), nn.ReLU()
        )
        self.clip = nn.Linear(192, 96)
        self.head = nn.Conv1d(96, poses, 1)

    def forward(self, x_BFCHW):
        planes_NCHW = with_coordinates(x_BFCHW.flatten(0, 1))
        h_BFD = self.frame_head(self.body(planes_NCHW).flatten(1)).unflatten(0, x_BFCHW.shape[:2])
        step_BFD = torch.cat([h_BFD[:, 1:] - h_BFD[:, :-1], torch.zeros_like(h_BFD[:, :1])], 1)
        z_BDF = self.time(torch.cat([h_BFD, step_BFD], 2).transpose(1, 2))
        # What the whole clip shows helps to read each frame, say which hand it is that waves.
        clip_BD = self.clip(torch.cat([z_BDF.mean(2), z_BDF.amax(2)], 1))
        return self.head(F.relu(z_BDF + clip_BD[:, :, None])).transpose(1, 2)


def wide(c_in: int, c_out: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Make a convolution of any kernel and dilation, batch norm and GELU."""
    pad = dilation * (kernel // 2)
    core = nn.Conv2d(c_in, c_out, kernel, stride, pad, dilation, bias=False)
    return nn.Sequential(core, nn.BatchNorm2d(c_out), nn.GELU())


def over_frames(module: nn.Module, x_BFCHW: torch.Tensor) -> torch.Tensor:
    """Apply a module of images to every frame of clips.

    Args:
      module: (N, C, H, W) -> (N, ...).
      x_BFCHW: clips.

    Returns:
      (B, F, ...).
    """
    return module(x_BFCHW.flatten(0, 1)).unflatten(0, x_BFCHW.shape[:2])


def with_coordinates(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Append two planes that hold each pixel's place, y and x.

    Returns:
      (B, C + 2, H, W), the places in [-1, 1].
    """
    B, _, H, W = x_BCHW.shape
    y = torch.linspace(-1, 1, H)[None, None, :, None].expand(B, 1, H, W)
    x = torch.linspace(-1, 1, W)[None, None, None, :].expand(B, 1, H, W)
    return torch.cat([x_BCHW, y, x], 1)
