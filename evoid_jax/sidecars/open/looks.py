"""How a frame looks, by hand-made measures: the aesthetic role, and the monitor `sharpness`.

No aesthetic net of a free licence comes in a package, so this is no taste, only craft: a frame
without blur, noise and blocks (BRISQUE), with colour, contrast and light. All measures are in
[0, 1], more is better. Letters: H W C.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from evoid_jax.sidecars.open import brisque

# Distortion counts most: the other measures are all to be had from a garish picture.
WEIGHTS = {
    "clean": 0.5,
    "sharp": 0.15,
    "smooth": 0.1,
    "contrast": 0.1,
    "light": 0.1,
    "colour": 0.05,
}
SHARP = 200.0  # the variance of the Laplacian whose score is 1/2
SHARPNESS = "variance of the frames' Laplacian, v/(v + 200)"
SMALL = 64  # px of the longer side at which colours are taken: grain has colours of its own


def measures(regression: brisque.Regression, frame_HWC: np.ndarray) -> dict[str, float]:
    """Return the parts of a frame's look.

    Args:
      regression: of `brisque.load`.
      frame_HWC: uint8 RGB.
    """
    grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    # A median over 3 x 3 pixels leaves edges and takes grain: what it leaves is sharpness, and how
    # much it takes is how grainy the frame is.
    whole, edges = laplacian(grey_HW), laplacian(cv2.medianBlur(grey_HW, 3))
    return {
        "clean": 1 - brisque.score(regression, frame_HWC) / 100,
        "sharp": edges / (edges + 200),
        "smooth": min((edges + 1) / (whole + 1), 1.0),
        "contrast": min(float(grey_HW.std()) / 64, 1.0),
        "light": 1 - min(abs(float(grey_HW.mean()) / 255 - 0.45) / 0.45, 1.0),
        "colour": min(colourfulness(shrunk(frame_HWC)) / 60, 1.0),
    }


def look(parts: dict[str, float]) -> float:
    """Return the weighted mean of `measures`."""
    return sum(WEIGHTS[name] * value for name, value in parts.items())


def sharpness(frames: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean variance of the Laplacian of frames, uint8 RGB, and its score in [0, 1)."""
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    value = float(np.mean([laplacian(grey_HW) for grey_HW in greys]))
    return value, value / (value + SHARP)


def laplacian(grey_HW: np.ndarray) -> float:
    """Return the variance of the Laplacian of a uint8 picture."""
    return float(cv2.Laplacian(grey_HW, cv2.CV_32F).var())


def shrunk(frame_HWC: np.ndarray) -> np.ndarray:
    """Shrink a frame to 64 pixels along its longer side; a smaller one stays as it is."""
    height, width = frame_HWC.shape[:2]
    factor = min(SMALL / max(height, width), 1)
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)


def colourfulness(frame_HWC: np.ndarray) -> float:
    """Return the measure of Hasler and Suesstrunk (2003): 0 is grey, 60 is colourful."""
    red, green, blue = (frame_HWC[..., i].astype(np.float32) for i in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std())
    return float(spread + 0.3 * np.hypot(first.mean(), second.mean()))
