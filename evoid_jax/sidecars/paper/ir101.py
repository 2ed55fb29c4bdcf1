"""IR-101, the face encoder behind CurricularFace's weights, with the names of its checkpoint.

The net of Tencent's TFace, `IR_101([112, 112])`: 49 residual units without a ReLU after the sum, on
aligned faces of 112 x 112. Letters: N faces, C H W.
"""

from __future__ import annotations

import torch
from torch import nn

SIDE = 112
UNITS = (3, 13, 30, 3)  # of each width; each width's first unit halves the picture
WIDTHS = (64, 128, 256, 512)
FEATURES = 512
FACE_BYTES = 8 * WIDTHS[0] * SIDE * SIDE * 4  # the first, largest layers


class Unit(nn.Module):
    """Norm, two convolutions and a shortcut; the second convolution has the stride."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        # A 1x1 pooling of the stride just picks pixels; it has no weights.
        self.shortcut_layer = nn.MaxPool2d(1, stride)
        if c_in != c_out:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x_NCHW) + self.shortcut_layer(x_NCHW)


class IR101(nn.Module):
    """Aligned faces (N, 3, 112, 112) in [-1, 1] -> (N, 512), not of unit length.

    Args:
      units: residual units of each width; others than IR-101's for tests.
    """

    def __init__(self, units: tuple[int, ...] = UNITS):
        super().__init__()
        first = WIDTHS[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        self.body, c_in = nn.Sequential(), first
        for count, width in zip(units, WIDTHS, strict=True):
            for unit in range(count):
                self.body.append(Unit(c_in, width, stride=2 if unit == 0 else 1))
                c_in = width
        # Four halvings leave 7 x 7.
        places = (SIDE // 2 ** len(WIDTHS)) ** 2
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(c_in * places, FEATURES),
            nn.BatchNorm1d(FEATURES, affine=False),
        )

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x_NCHW)))
