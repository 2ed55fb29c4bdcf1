"""Motion by OpenCV's Farneback optical flow: the one reward of `tiny` that is not a stand-in.

Raw is OpenS2V-Eval's MotionAmplitude (`motion_fb`): Farneback on gray frames, each flow shrunk to
width 16, then the absolute value of the mean over time, space and BOTH signed components. Opposite
motions cancel in that mean and a plain camera pan maximises it, so the score that is optimised uses
the mean length of the flow instead, through a saturating curve: more motion always counts, but
ever less.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

HALF = 0.8  # px per frame at 64x64 whose score is 0.5: near the median of the portrait world


def farneback(video_FHWC: np.ndarray) -> np.ndarray:
    """Return the optical flow between neighbouring frames.

    Args:
      video_FHWC: uint8 RGB.

    Returns:
      (F - 1, H, W, 2) float32, x and y in pixels per frame.

    Raises:
      ValueError: fewer than two frames.
    """
    if len(video_FHWC) < 2:
        raise ValueError(f"optical flow needs 2 frames or more; got {len(video_FHWC)}")
    # BGR2GRAY on RGB frames: the benchmark's own channel order, kept so that raw values compare.
    grays = [cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_BGR2GRAY) for f in video_FHWC]
    pairs = pairwise(grays)
    flows = [
        cv2.calcOpticalFlowFarneback(
            a, b, None, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5,
            poly_sigma=1.2, flags=0,
        )
        for a, b in pairs
    ]  # fmt: skip
    return np.stack(flows)


def amplitude(flows_FHWC: np.ndarray) -> float:
    """Return OpenS2V-Eval's MotionAmplitude: |mean signed flow| at width 16, in pixels per frame.

    flows_FHWC: of `farneback`.
    """
    height, width = flows_FHWC.shape[1:3]
    size = (16, max(1, round(16 * height / width)))
    small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in flows_FHWC]
    # The mean over time first, as the benchmark takes it: in float32 the order shows.
    return float(abs(np.stack(small).mean(0).mean()))


def score(flows_FHWC: np.ndarray, half: float = HALF) -> float:
    """Map the mean length m of a video's flows to [0, 1): m / (m + half), 0 for a still video.

    Args:
      flows_FHWC: of `farneback`.
      half: pixels per frame whose score is 1/2.
    """
    mean = float(np.linalg.norm(flows_FHWC, axis=-1).mean())
    return mean / (mean + half)
