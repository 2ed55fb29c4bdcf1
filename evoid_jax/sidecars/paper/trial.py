"""A clip to try weights on, spoilt ones beside it, and where their scores must lie.

Wrong weights mostly load and give numbers. So each reward sees a clip of which one knows what it
should say, and the same clip spoilt in what that reward measures: the first must lie in a range,
the second clearly below it. Letters: T frames, H W C pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from evoid_jax import media
from evoid_jax.sidecars.paper.clips import Clip

FRAMES, SIDE, ZOOM, FPS = 17, 480, 24, 16
PROMPT = "A portrait of a smiling astronaut in an orange space suit, with a flag behind her."
OTHER_PROMPT = "A bowl of tomato soup on a wooden table."


class Trial(NamedTuple):
    """What is expected of one reward's raw value."""

    low: float  # of the clip
    high: float
    below: float  # the spoilt clip's is at least so much lower
    words: str  # how it was spoilt
    spoil: Callable[[Clip], Clip]


def read(video: Path, photo: Path, prompt: str) -> Clip:
    """Read a clip of the user's own.

    Raises:
      OSError, ValueError: a file is missing or cannot be read.
    """
    frames_THWC, fps = media.read(video)
    return Clip(frames_THWC, [media.read_image(photo)], prompt, fps)


def made_up() -> Clip:
    """Make a clip of a slow zoom into scikit-image's photo of an astronaut.

    Raises:
      ValueError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ValueError(
            "there is no sample clip without scikit-image, which comes with insightface; give your "
            "own with --video, --photo and --prompt"
        ) from error
    photo_HWC = data.astronaut()
    frames = []
    for cut in np.linspace(0, ZOOM, FRAMES):
        edge = photo_HWC.shape[0] - 2 * cut
        to_square = np.float32([[SIDE / edge, 0, -cut * SIDE / edge], [0, SIDE / edge, 0]])
        frames.append(cv2.warpAffine(photo_HWC, to_square, (SIDE, SIDE), flags=cv2.INTER_LINEAR))
    return Clip(np.stack(frames), [photo_HWC], PROMPT, FPS)


def changed(clip: Clip, video: np.ndarray | None = None, **other) -> Clip:
    """Return a clip with another video, other photos or another prompt."""
    fields = {"photos": clip.photos, "prompt": clip.prompt} | other
    return Clip(clip.video_THWC if video is None else video, fps=clip.fps, **fields)


def stranger(clip: Clip) -> Clip:
    """Put somebody else's photo in: the largest face of insightface's own test picture."""
    picture = resources.files("insightface") / "data" / "images" / "t1.jpg"
    with resources.as_file(picture) as file:
        return changed(clip, photos=[media.read_image(file)])


def spoilt_picture(clip: Clip) -> Clip:
    """Darken all frames and put noise on them."""
    noise = np.random.default_rng(0).normal(0, 25, clip.video_THWC.shape)
    return changed(clip, np.clip(clip.video_THWC * 0.3 + noise, 0, 255).astype(np.uint8))


def flickering(clip: Clip) -> Clip:
    """Blur every third frame beyond recognition."""
    video_THWC = clip.video_THWC.copy()
    for t in range(1, len(video_THWC), 3):
        video_THWC[t] = cv2.GaussianBlur(video_THWC[t], (0, 0), max(video_THWC.shape[1:3]) / 24)
    return changed(clip, video_THWC)


def in_pieces(clip: Clip) -> Clip:
    """Cut all frames into sixteen pieces and mix them, another way in each frame."""
    rng, rows = np.random.default_rng(0), 4
    frames = []
    for frame_HWC in clip.video_THWC:
        height, width = (size // rows for size in frame_HWC.shape[:2])
        tiles = [
            frame_HWC[i * height : (i + 1) * height, j * width : (j + 1) * width]
            for i in range(rows)
            for j in range(rows)
        ]
        order = rng.permutation(rows * rows).reshape(rows, rows)
        frames.append(np.vstack([np.hstack([tiles[k] for k in row]) for row in order]))
    return changed(clip, np.stack(frames))


def frozen(clip: Clip) -> Clip:
    """Show the first frame all the time."""
    return changed(clip, np.repeat(clip.video_THWC[:1], len(clip.video_THWC), 0))


# Ranges: what published boards and papers show for good clips, widened; raw values.
TRIALS = {
    "arcface": Trial(0.3, 1.0, 0.2, "with a stranger's photo", stranger),
    "curricularface": Trial(0.3, 1.0, 0.2, "with a stranger's photo", stranger),
    "gme": Trial(0.35, 0.9, 0.05, "with another prompt", lambda c: changed(c, prompt=OTHER_PROMPT)),
    "aesthetic": Trial(3.5, 8.0, 0.3, "dark and full of noise", spoilt_picture),
    "qalign": Trial(0.6, 1.0, 0.3, "every third frame blurred", flickering),
    "naturalness": Trial(3.0, 5.0, 1.0, "cut into pieces", in_pieces),
    "flow": Trial(0.0, 20.0, 1e-4, "frozen", frozen),
}
