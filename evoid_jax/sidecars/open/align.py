"""Faces cut out upright: five points of a face laid over those of a template, and the crop.

The points are in the picture's order from left to right: the person's right eye, left eye, nose,
right and left corner of the mouth; x and y in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

# The usual 112 x 112 template of ArcFace and its kin (insightface's arcface_dst).
ARCFACE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# dlib cuts its 150 x 150 chips by other points of the face. Where these five lie on such a chip.
DLIB = np.array([[43.4, 36.4], [102.2, 33.6], [69.9, 72.4], [47.4, 105.0], [99.3, 103.4]])


def similarity(points_52: np.ndarray, template_52: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift that lay points over a template best.

    Least squares over the five points (Umeyama 1991, without mirroring).

    Returns:
      (2, 3) float64, as cv2.warpAffine takes it.

    Raises:
      ValueError: all points are one.
    """
    # In complex numbers such a map is w = a z + b, and its least squares are two sums.
    z, w = (np.asarray(p, np.float64) @ np.array([1, 1j]) for p in (points_52, template_52))
    centred = z - z.mean()
    length = (np.abs(centred) ** 2).sum()
    if length == 0:
        raise ValueError(f"the five points of a face must differ; got {points_52!r}")
    a = (centred.conj() * (w - w.mean())).sum() / length
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def crop(image_HWC: np.ndarray, points_52: np.ndarray, template_52: np.ndarray, size: int):
    """Cut a face out so that its points lie on a template's.

    Args:
      image_HWC: uint8 RGB.
      points_52: of the face, in pixels of the image.
      template_52: where they shall lie.
      size: of the crop, in pixels.

    Returns:
      (size, size, 3) uint8; black where the image ends.
    """
    image_HWC, points_52 = np.ascontiguousarray(image_HWC), np.asarray(points_52, np.float64)
    matrix = similarity(points_52, template_52)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        # warpAffine reads four pixels for each of the crop's: a large photo is shrunk first.
        height, width = image_HWC.shape[:2]
        small = (max(1, round(2 * scale * width)), max(1, round(2 * scale * height)))
        image_HWC = cv2.resize(image_HWC, small, interpolation=cv2.INTER_AREA)
        # A pixel's centre lies half a pixel from its corner, before and after.
        factor = np.array([small[0] / width, small[1] / height])
        matrix = similarity((points_52 + 0.5) * factor - 0.5, template_52)
    return cv2.warpAffine(image_HWC, matrix, (size, size), flags=cv2.INTER_LINEAR)
