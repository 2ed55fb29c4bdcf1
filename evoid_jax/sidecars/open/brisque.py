"""BRISQUE (Mittal, Moorthy and Bovik 2012): how distorted a picture is, without its original.

The statistics of a natural picture's local contrast follow a certain curve, and blur, noise and
coding move it; a support vector regression, trained on the LIVE database, makes a number of that: 0
for a clean picture, 100 for a ruined one. The trained numbers come from OpenCV, in two YAML files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from evoid_jax.sidecars.open import catalogue

FEATURES = 36
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # to the neighbours right, below and on both diagonals
LEAST = 16  # px: a smaller picture has no statistics

# The shapes that are tried for the generalised Gaussian, and each one's ratio of moments.
SHAPES = np.arange(0.2, 10, 0.001)
RATIOS = np.array(
    [math.gamma(2 / s) ** 2 / (math.gamma(1 / s) * math.gamma(3 / s)) for s in SHAPES]
)


class Regression(NamedTuple):
    """A trained support vector regression with a Gaussian kernel."""

    vectors_SD: np.ndarray
    alpha_S: np.ndarray
    rho: float
    gamma: float
    least_D: np.ndarray  # what each feature ranged over in its training
    most_D: np.ndarray


def load(folder: Path | None = None) -> Regression:
    """Read the trained numbers.

    folder: None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the files are not there, or are not the right ones.
    """
    # Both stay open until all is read: a node is a place in its file.
    trained = _open(catalogue.find(catalogue.BRISQUE_MODEL, folder))
    ranges = _open(catalogue.find(catalogue.BRISQUE_RANGE, folder))
    model, range_2D = trained.getNode("opencv_ml_svm"), ranges.getNode("range").mat()
    vectors, decision = model.getNode("support_vectors"), model.getNode("decision_functions").at(0)
    return Regression(
        vectors_SD=np.array([numbers(vectors.at(i)) for i in range(vectors.size())]),
        alpha_S=np.array(numbers(decision.getNode("alpha"))),
        rho=decision.getNode("rho").real(),
        gamma=model.getNode("kernel").getNode("gamma").real(),
        least_D=range_2D[0].astype(np.float64),
        most_D=range_2D[1].astype(np.float64),
    )


def _open(file: Path) -> cv2.FileStorage:
    return cv2.FileStorage(str(file), cv2.FILE_STORAGE_READ)


def numbers(node: cv2.FileNode) -> list[float]:
    """Return a sequence of OpenCV's YAML as floats."""
    return [node.at(i).real() for i in range(node.size())]


def score(regression: Regression, image_HWC: np.ndarray) -> float:
    """Return how distorted a uint8 RGB picture is, from 0 to 100.

    Raises:
      ValueError: it is smaller than 16 pixels.
    """
    r = regression
    features_D = features(cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY))
    scaled_D = 2 * (features_D - r.least_D) / (r.most_D - r.least_D) - 1
    distance_S = ((r.vectors_SD - scaled_D[None]) ** 2).sum(1)
    value = float(r.alpha_S @ np.exp(-r.gamma * distance_S)) - r.rho
    return min(max(value, 0.0), 100.0)


def features(grey_HW: np.ndarray) -> np.ndarray:
    """Return BRISQUE's features: 18 of the picture, 18 of half its size.

    Args:
      grey_HW: uint8.

    Returns:
      (36,) float64.

    Raises:
      ValueError: it is smaller than 16 pixels.
    """
    height, width = grey_HW.shape
    if min(height, width) < LEAST:
        raise ValueError(f"BRISQUE needs {LEAST} pixels or more; got {height} x {width}")
    whole_HW = grey_HW.astype(np.float32) / 255
    half_HW = cv2.resize(whole_HW, (width // 2, height // 2), interpolation=cv2.INTER_CUBIC)
    return np.array([*_of_scale(whole_HW), *_of_scale(half_HW)])


def _of_scale(grey_HW: np.ndarray) -> list[float]:
    local_HW = normalised(grey_HW)
    shape, left, right = fit(local_HW)
    values = [shape, (left**2 + right**2) / 2]
    for down, across in SHIFTS:
        neighbour_HW = np.zeros_like(local_HW)
        rows = slice(0, local_HW.shape[0] - down)
        # From column `across` on; where that is negative, the last columns have no neighbour.
        to = slice(max(0, -across), local_HW.shape[1] - max(0, across))
        back = slice(max(0, across), local_HW.shape[1] - max(0, -across))
        neighbour_HW[rows, to] = local_HW[down:, back]
        shape, left, right = fit(local_HW * neighbour_HW)
        spread = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
        mean = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape) * spread
        values += [shape, mean, left**2, right**2]
    return values


def normalised(grey_HW: np.ndarray) -> np.ndarray:
    """Return each pixel less its neighbourhood's mean, over that one's standard deviation."""
    blur = lambda x: cv2.GaussianBlur(x, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    mean_HW = blur(grey_HW)
    # Rounding may leave a variance just below 0 where all is flat.
    variance_HW = np.maximum(blur(grey_HW * grey_HW) - mean_HW * mean_HW, 0)
    return (grey_HW - mean_HW) / (np.sqrt(variance_HW) + 1 / 255)


def fit(values: np.ndarray) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments (Lasmar et al. 2009).

    Returns:
      Its shape, and the spread of the values below and above 0.
    """
    values = values.astype(np.float64).ravel()
    below, above = values[values < 0], values[values > 0]
    # A flat picture has neither: the least spread stands for none.
    left, right = (
        math.sqrt((part @ part) / len(part)) if len(part) else 1e-6 for part in (below, above)
    )
    square = (below @ below + above @ above) / len(values)
    ratio = np.abs(values).mean() ** 2 / max(square, 1e-12)
    g = left / right
    ratio *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    # RATIOS rise with the shape, from near 0 to near 3/4.
    return float(SHAPES[np.abs(RATIOS - ratio).argmin()]), left, right
