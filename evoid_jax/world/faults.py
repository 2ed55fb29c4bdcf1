"""Faults of found footage: what a part of the pretraining clips have, and a good video has not.

A base that imitates what people upload also imitates its haze, its colour casts and its missed
focus; telling good from bad is what the rewards add. NumPy only.

A fault takes float RGB in [0, 1], a severity in [0, 1] (0 changes nothing) and a generator, and
returns what may leave [0, 1]: `as_found` clips at the end. Letters: F H W frames, 3 colours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Fault = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def haze(x_FHW3: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fade towards one grey, at most by four fifths."""
    return x_FHW3 + 0.8 * severity * (rng.uniform(0.1, 0.9) - x_FHW3)


def tint(x_FHW3: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Shift all colours by one cast that leaves the mean brightness, at most 0.35 long."""
    cast_3 = rng.standard_normal(3)
    cast_3 -= cast_3.mean()  # brightness is the mean of the colours here
    return x_FHW3 + 0.35 * severity * cast_3 / np.linalg.norm(cast_3)


def defocus(x_FHW3: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Blur every frame by a Gaussian of at most 3 pixels at width 64, edges kept bright."""
    del rng  # blur has no kinds
    size = x_FHW3.shape[1:3]
    rows_HH, cols_WW = (_gaussian(3 * severity * size[1] / 64, n) for n in size)
    # A Gaussian is separable: one matrix along the height, one along the width.
    return np.einsum("hi,fijc,wj->fhwc", rows_HH, x_FHW3, cols_WW, optimize=True)


def _gaussian(sigma: float, size: int) -> np.ndarray:
    """Return the (size, size) matrix that blurs a line; its rows sum to one."""
    distance = np.arange(size)[:, None] - np.arange(size)[None]
    weight = np.exp(-(distance**2) / (2 * sigma**2 + 1e-3))  # sigma 0: the identity
    # Divided by its sum at the edges too, where a part of the kernel falls outside.
    return weight / weight.sum(1, keepdims=True)


FAULTS: tuple[Fault, ...] = (haze, tint, defocus)


def as_found(video_FHW3: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return a clip as one finds it: with probability `share` it has a fault of severity 0.3 to 1.

    Args:
      video_FHW3: uint8; not changed.
      share: of clips with a fault, in [0, 1].
      rng: decides whether, which and how much; the same draws for every share.

    Returns:
      uint8, the clip itself where it has no fault.
    """
    # Drawn before the decision, so that a larger share only adds faults to those of a smaller one.
    draw, severity = rng.random(), rng.uniform(0.3, 1.0)
    fault = FAULTS[rng.integers(len(FAULTS))]
    if draw >= share:
        return video_FHW3
    spoiled = fault(video_FHW3 / 255.0, severity, rng)
    return (np.clip(spoiled, 0, 1) * 255 + 0.5).astype(np.uint8)
