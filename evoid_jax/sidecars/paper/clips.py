"""Videos as the rewards of preset `paper` take them, one by one, and their scores as a column.

Nothing here asks for videos of one size: each reward looks at a video alone, and its batches are
that video's frames. Letters: T frames, H W C pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from evoid_jax.sidecars.paper.faces import Face
from evoid_jax.sidecars.preset import Column
from evoid_jax.sidecars.wire import ScoreRequest

FRAMES = 32  # that the benchmark looks at, where it does not look at all


@dataclass
class Clip:
    """A video with its prompt and its person's photos."""

    video_THWC: np.ndarray  # uint8 RGB
    photos: list[np.ndarray]  # uint8 RGB, of any sizes
    prompt: str
    fps: float
    others: list[np.ndarray] = field(default_factory=list)  # more photos, for `uncopied` alone
    # Found by whichever face reward comes first: of the photos, and of the sampled frames.
    photo_faces: list[Face | None] | None = None
    frame_faces: list[Face | None] | None = None


class One(NamedTuple):
    """A video's score by one reward, or why there is none."""

    raw: float
    score: float  # in [0, 1]
    reason: str | None = None
    excused: bool = False  # the video cannot help it


def prepare(request: ScoreRequest) -> Iterable[tuple[list[int], list[Clip]]]:
    """Yield all videos that could be read, in one group."""
    indices = [i for i, video in enumerate(request.videos) if video is not None]
    beside = request.others or [[]] * len(request.videos)
    clips = [
        Clip(request.videos[i], request.references[i], request.prompts[i], request.fps, beside[i])
        for i in indices
    ]
    if clips:
        yield indices, clips


def sample(count: int, frames: int = FRAMES) -> np.ndarray:
    """Return which frames the benchmark looks at; a short video's stand there several times."""
    return np.linspace(0, count - 1, frames, dtype=int)


def over_sample(measure: Callable[[list[np.ndarray]], np.ndarray], video_THWC: np.ndarray):
    """Measure the sampled frames, each once, and return the values of all 32.

    measure: frames -> array whose first axis is theirs.
    """
    index, inverse = np.unique(sample(len(video_THWC)), return_inverse=True)
    return measure([video_THWC[i] for i in index])[inverse]


def each(name: str, score: Callable[[Clip], One], clips: list[Clip], workers: int = 1) -> Column:
    """Score videos one by one; what goes wrong with one costs only that one its score.

    Args:
      name: of the reward, for reasons.
      workers: videos under way at once.
    """

    def attempt(clip: Clip) -> One:
        try:
            return score(clip)
        except Exception as error:  # whatever it is: the other videos must have their scores
            words = f"{name}: {type(error).__name__}: {error}"
            return One(math.nan, math.nan, words, excused=True)

    if workers == 1:
        ones = [attempt(clip) for clip in clips]
    else:
        with ThreadPoolExecutor(workers) as pool:
            ones = list(pool.map(attempt, clips))
    return Column(
        raw_B=np.array([one.raw for one in ones], float),
        score_B=np.array([one.score for one in ones], float),
        reasons=[one.reason for one in ones],
        excused=[one.excused for one in ones],
    )


def unit(value: float, low: float, high: float) -> float:
    """Map low..high to 0..1 and clip what lies outside."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
