"""Reference photos on a canvas of the video's size, as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def on_canvas(image_HWC: np.ndarray, height: int, width: int, stride: int = 8) -> np.ndarray:
    """Fit a photo on a white canvas, centred.

    As `preprocess_conditions` of diffusers' WanVACEPipeline: Lanczos to multiples of `stride`, then
    bilinear without antialiasing to the largest size that fits.

    Args:
      image_HWC: uint8 RGB of any size that `fitted` takes.
      height, width: of the canvas in pixels.
      stride: of the VAE in space.

    Returns:
      float32 (height, width, 3) in [-1, 1].

    Raises:
      ValueError: not such an array, or too small or narrow to be seen on the canvas.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"expected uint8 (h, w, 3), got {image_HWC.dtype} {image_HWC.shape}")
    new_h, new_w = fitted(image_HWC.shape[:2], (height, width), stride)
    h, w = (side - side % stride for side in image_HWC.shape[:2])
    resized = Image.fromarray(image_HWC).resize((w, h), Image.Resampling.LANCZOS)
    x = 2 * (np.asarray(resized).astype(np.float32) / np.float32(255)) - 1
    top, left = (height - new_h) // 2, (width - new_w) // 2
    canvas = np.ones((height, width, 3), np.float32)
    canvas[top : top + new_h, left : left + new_w] = _bilinear(_bilinear(x, new_h, 0), new_w, 1)
    return canvas


def seen(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a photo as the model sees it: that of `on_canvas` in uint8 (height, width, 3)."""
    return np.round((on_canvas(image_HWC, height, width) + 1) * 127.5).astype(np.uint8)


def all_seen(
    of_pairs: Sequence[Sequence[np.ndarray]], height: int, width: int
) -> list[list[np.ndarray]]:
    """Return `seen` of every photo of every pair."""
    return [[seen(image_HWC, height, width) for image_HWC in own] for own in of_pairs]


def fitted(size: tuple[int, int], canvas: tuple[int, int], stride: int = 8) -> tuple[int, int]:
    """Return the (height, width) in pixels that an image of a size takes on a canvas.

    Raises:
      ValueError: the image is too small or too narrow to be seen there.
    """
    if min(size) < stride:
        raise ValueError(
            f"a reference image is {size[0]}x{size[1]}; expected at least {stride}x{stride}"
        )
    h, w = (side - side % stride for side in size)
    scale = min(canvas[0] / h, canvas[1] / w)
    new_h, new_w = int(h * scale), int(w * scale)
    if not (new_h and new_w):
        raise ValueError(
            f"a reference image of {h}x{w} vanishes when fitted in {canvas[0]}x{canvas[1]}"
        )
    return new_h, new_w


def _bilinear(x_HWC: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Resize one axis as torch's bilinear interpolate: align_corners=False, no antialiasing."""
    old = x_HWC.shape[axis]
    # Pixels are areas: their centres lie half a pixel in, and the first one reaches to the edge.
    centre = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
    low = centre.astype(int)
    high = np.minimum(low + 1, old - 1)
    along_axis = [-1 if i == axis else 1 for i in range(3)]
    share_of_high = (centre - low).astype(np.float32).reshape(along_axis)
    return x_HWC.take(low, axis) * (1 - share_of_high) + x_HWC.take(high, axis) * share_of_high
