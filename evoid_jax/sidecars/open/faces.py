"""Faces found by YuNet, through OpenCV: their boxes and five points.

YuNet (Wu et al. 2023) is the detector of the OpenCV Zoo; its file is one of catalogue.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from evoid_jax.sidecars.open import catalogue

SIDE = 640  # px of the longer side at which faces are looked for: YuNet is made for 10 to 300 px
LARGE_SIDE = 1600  # where none is found in a larger picture, its small faces are looked for
MOST_ENLARGED = 4.0
SCORE = 0.6
BORDER = 0.25  # of height and width, on each side, for faces that fill a picture


class Face(NamedTuple):
    """A face of a picture, in its pixels."""

    box: np.ndarray  # (4,) float32 x0 y0 x1 y1; may reach over the picture's edge
    # (5, 2) float32 x, y: right eye, left eye, nose, right and left corner of the mouth, which is
    # from left to right in the picture
    points: np.ndarray
    score: float  # the detector's trust, up to 1


class Finder:
    """Finds faces. Not for several threads at once: the net holds the size of its last picture.

    folder: of the weights; None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the weights are not there, or are not the right ones.
      RuntimeError: this OpenCV cannot read them.
    """

    def __init__(self, folder: Path | None = None):
        file = catalogue.find(catalogue.YUNET, folder)
        quiet, level = cv2.utils.logging, cv2.utils.logging.getLogLevel()
        quiet.setLogLevel(quiet.LOG_LEVEL_ERROR)  # it warns of a choice that it makes itself
        try:
            self._net = cv2.FaceDetectorYN.create(str(file), "", (SIDE, SIDE), SCORE)
        except (AttributeError, cv2.error) as error:
            raise RuntimeError(
                f"OpenCV {cv2.__version__} cannot read the face detector {file}; install a newer "
                "one: pip install --upgrade opencv-python-headless. It says: "
                f"{' '.join(str(error).split())}"
            ) from error
        finally:
            quiet.setLogLevel(level)

    def find(self, image_HWC: np.ndarray) -> list[Face]:
        """Find the faces of a picture.

        A picture in which there is none is looked at again with a grey border, as the benchmark
        does for faces that fill it, and where it is large, again in more detail.

        Args:
          image_HWC: uint8 RGB.

        Returns:
          The faces, the largest first.
        """
        image_HWC = np.ascontiguousarray(image_HWC)
        faces = self._at(image_HWC, SIDE) or self._bordered(image_HWC)
        longest = max(image_HWC.shape[:2])
        if not faces and longest > 1.5 * SIDE:
            faces = self._at(image_HWC, min(longest, LARGE_SIDE))
        return sorted(faces, key=lambda face: -_area(face))

    def _bordered(self, image_HWC: np.ndarray) -> list[Face]:
        height, width = image_HWC.shape[:2]
        y, x = round(BORDER * height), round(BORDER * width)
        grey = (128, 128, 128)
        framed = cv2.copyMakeBorder(image_HWC, y, y, x, x, cv2.BORDER_CONSTANT, value=grey)
        return [
            face._replace(
                box=face.box - np.float32([x, y, x, y]), points=face.points - np.float32([x, y])
            )
            for face in self._at(framed, SIDE)
        ]

    def _at(self, image_HWC: np.ndarray, side: int) -> list[Face]:
        """Find faces with the longer side scaled to `side`, or less where it is very small."""
        height, width = image_HWC.shape[:2]
        factor = min(side / max(height, width), MOST_ENLARGED)
        size = (max(1, round(factor * width)), max(1, round(factor * height)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(image_HWC, size, interpolation=how)
        self._net.setInputSize(size)
        # Rows of x, y, width, height, ten coordinates of points and the score; None for no face.
        _, rows = self._net.detect(cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR))
        back = np.float32([width / size[0], height / size[1]])
        return [_face(row, back) for row in (() if rows is None else rows)]


def _face(row: np.ndarray, back: np.ndarray) -> Face:
    corner, extent = row[:2] * back, row[2:4] * back
    return Face(
        box=np.concatenate([corner, corner + extent]).astype(np.float32),
        points=(row[4:14].reshape(5, 2) * back).astype(np.float32),
        score=float(row[14]),
    )


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return float((x1 - x0) * (y1 - y0))
