"""`naturalness`: how real a video looks to a multimodal model, by a rubric of whole numbers 1 to 5.

OpenS2V-Eval's NaturalScore asks GPT-4o so; its wording is its authors', the rubric below is ours.
Whoever asks is a `Grader`, such as `grader` makes of rewards/judge.py.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

FRAMES, SIDE = 16, 512
LEAST, MOST = 1, 5
NAME = "naturalness"
RUBRIC = """\
You have seen frames of one video in order of time. Some such videos were filmed and some were made \
by a generator. Say with one whole number from 1 to 5 how much it looks as if it had been filmed.
Look for what no camera records: faces, teeth, hands or limbs of a wrong number or shape; skin and \
hair like wax or paint; things that melt into each other, change shape or vanish between frames; \
shadows, reflections or weights that obey no physics; writing that is none; people who move as \
nobody moves or stay frozen while the world goes on.
1: made by a machine, at first sight and throughout. 2: probably made; several such faults. 3: \
undecided; a fault or two that need a second look. 4: probably filmed; at most small flaws that a \
lens or compression explains. 5: filmed; nothing speaks against it.
Beauty, style and sharpness do not count. Use the whole range. Answer with the JSON object only."""

# Frames, uint8 RGB in order of time -> a whole number from LEAST to MOST; raises where there is no
# usable answer.
Grader = Callable[[list[np.ndarray]], int]


def frames(video_THWC: np.ndarray) -> list[np.ndarray]:
    """Return the benchmark's 16 frames, longer side 512 pixels; all of a shorter video.

    video_THWC: uint8 RGB.
    """
    step = max(len(video_THWC) // FRAMES, 1)
    return [resized(frame) for frame in video_THWC[: FRAMES * step : step]]


def resized(frame_HWC: np.ndarray) -> np.ndarray:
    """Bring the longer side to 512 pixels; the shorter one is rounded down."""
    height, width = frame_HWC.shape[:2]
    if height >= width:
        size = (int(width * SIDE / height), SIDE)
    else:
        size = (SIDE, int(height * SIDE / width))
    return cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA)


def grade(ask: Grader, video_THWC: np.ndarray) -> int:
    """Return the grade of a video, 1 to 5.

    Raises:
      ValueError: the grader returned something else.
    """
    answer = ask(frames(video_THWC))
    if type(answer) is not int or not LEAST <= answer <= MOST:
        raise ValueError(f"expected a whole number from {LEAST} to {MOST}, got {answer!r}")
    return answer
