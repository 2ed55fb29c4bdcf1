"""A face with head and shoulders, cut out of a photo so that a video's canvas takes it as it is.

The canvas (evoid_jax/canvas.py) pads with white what a picture does not fill. It also scales, with
a filter that turns a camera's picture to noise: so what is larger is scaled down here.

Letters: H W C pixels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from PIL import Image

from evoid_jax.prepare.photos import Box

STRIDE = 8  # pixels: the canvas takes multiples
ABOVE = 0.45  # of the cut's height that is above the middle of the face: shoulders need the rest


class Cut(NamedTuple):
    """What is taken of a photo, and the size that it gets."""

    box: tuple[float, float, float, float]  # x0 y0 x1 y1, pixels of the photo
    height: int  # pixels
    width: int


def plan(face: Box, size: tuple[int, int], canvas: tuple[int, int], times: float) -> Cut:
    """Plan a cut around a face, of the photo's own pixels or scaled down, never up.

    A square of `times` the face's longer side, shifted and then clipped where the photo ends; with
    0 the whole photo. Both sides are multiples of STRIDE, with the photo's proportions.

    Args:
      face: its box.
      size: (height, width) of the photo, at least STRIDE each.
      canvas: (height, width) of the videos.
      times: what is cut out, over the face.
    """
    x0, y0, x1, y1 = _region(face, size, times)
    h, w = y1 - y0, x1 - x0
    # Exact: in floats the side that touches the canvas may come out a hair too short.
    scale = min(Fraction(canvas[0], h), Fraction(canvas[1], w), Fraction(1))
    height, width = (int(side * scale) // STRIDE * STRIDE for side in (h, w))
    height, width = max(height, STRIDE), max(width, STRIDE)
    taken_h, taken_w = min(height / scale, h), min(width / scale, w)
    left, top = x0 + int(w - taken_w) // 2, y0 + int(h - taken_h) // 2
    box = tuple(float(x) for x in (left, top, left + taken_w, top + taken_h))
    return Cut(box, height, width)


def _region(face: Box, size: tuple[int, int], times: float) -> tuple[int, int, int, int]:
    height, width = size
    if not times:
        return 0, 0, width, height
    x0, y0, x1, y1 = face
    side = times * max(x1 - x0, y1 - y0)
    left, right = _inside((x0 + x1) / 2 - side / 2, side, width)
    top, bottom = _inside((y0 + y1) / 2 - ABOVE * side, side, height)
    return left, top, right, bottom


def _inside(start: float, length: float, limit: int) -> tuple[int, int]:
    """Shift a stretch into [0, limit]; shorten it where it is longer."""
    length = min(max(round(length), STRIDE), limit)
    start = min(max(round(start), 0), limit - length)
    return start, start + length


def cut(image_HWC: np.ndarray, planned: Cut) -> np.ndarray:
    """Return what a plan takes of a photo: uint8 RGB of the planned size."""
    size = (planned.width, planned.height)
    x0, y0, x1, y1 = planned.box
    if (x1 - x0, y1 - y0) == size and x0 == int(x0) and y0 == int(y0):
        return image_HWC[int(y0) : int(y1), int(x0) : int(x1)]  # nothing is scaled
    image = Image.fromarray(image_HWC)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=planned.box))
