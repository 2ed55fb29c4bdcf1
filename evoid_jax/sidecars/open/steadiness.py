"""How a video holds together over time: the qalign role, and the monitor `motion`.

Three measures: how well each frame is the one before it, moved (optical flow, warped); how alike
neighbouring frames are to a classifier; and whether there is a cut. Letters: F frames, H W, D.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 320  # px of the longer side at which motion is taken: a larger one costs, and shows no more
ALIKE = 0.9  # the cosine of neighbouring frames of one scene, at least
MOVING = 0.1  # shorter sides of the frame per second: the mean speed whose score is 1/2
SPEED = "mean speed by DIS flow, v/(v + 0.1 shorter sides a second)"
TAU = 0.04  # the warp error, in [0, 1] of the pixels' range, at which the score is 1/e


class Motion(NamedTuple):
    """Of each step from a frame to the next."""

    error_F: np.ndarray  # mean |frame - the other one warped|, pixels in [0, 1]
    length_F: np.ndarray  # mean length of the flow, in shorter sides of the frame


def motion(video_FHWC: np.ndarray) -> Motion:
    """Measure the steps of a video by DIS optical flow (Kroeger et al. 2016).

    Args:
      video_FHWC: uint8 RGB.

    Raises:
      ValueError: fewer than two frames.
    """
    if len(video_FHWC) < 2:
        raise ValueError(f"needs 2 frames or more; got {len(video_FHWC)}")
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = [_small(frame) for frame in video_FHWC]
    height, width = greys[0].shape
    x_HW, y_HW = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    errors, lengths = [], []
    for first, second in pairwise(greys):
        flow_HW2 = flow.calc(first, second, None)
        from_x, from_y = x_HW + flow_HW2[..., 0], y_HW + flow_HW2[..., 1]
        # Where the flow leads out of the picture, its edge stands for what cannot be seen.
        warped = cv2.remap(second, from_x, from_y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        errors.append(float(cv2.absdiff(first, warped).mean()) / 255)
        lengths.append(float(np.linalg.norm(flow_HW2, axis=-1).mean()) / min(height, width))
    return Motion(np.array(errors), np.array(lengths))


def speed(length_F: np.ndarray, fps: float) -> tuple[float, float]:
    """Return the mean speed in shorter sides a second, and its score in [0, 1).

    length_F: of `motion`.
    """
    mean = float(length_F.mean()) * fps
    return mean, mean / (mean + MOVING)


def steadiness(error_F: np.ndarray, feature_FD: np.ndarray, cut_F: np.ndarray) -> float:
    """Return how steady a video is, in [0, 1].

    Args:
      error_F: of `motion`.
      feature_FD: of neighbouring frames, by `efficientnet.Backbone`.
      cut_F: the probability of a cut behind each frame.
    """
    unit_FD = feature_FD / np.linalg.norm(feature_FD, axis=1, keepdims=True)
    least = float((unit_FD[1:] * unit_FD[:-1]).sum(1).min())
    alike = min(max(least / ALIKE, 0.0), 1.0)
    # The 95th percentile: a few bad steps are seen, one of a hundred may be the scene's own.
    smooth = float(np.exp(-np.quantile(error_F, 0.95) / TAU))
    return smooth * alike / (1 + float(cut_F.sum()))


def _small(frame_HWC: np.ndarray) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    grey = cv2.cvtColor(np.ascontiguousarray(frame_HWC), cv2.COLOR_RGB2GRAY)
    factor = SIDE / max(height, width)
    if factor >= 1:
        return grey
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
