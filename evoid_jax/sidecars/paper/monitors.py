"""What preset `paper` measures and never rewards: motion, sharpness, and faces that are copies.

A reward that rises while one of these falls is called possible reward hacking. None needs weights
but `uncopied`, which takes the embeddings that `arcface` has made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from evoid_jax.sidecars import copying
from evoid_jax.sidecars.open import looks, steadiness
from evoid_jax.sidecars.paper.clips import Clip, One, each, sample
from evoid_jax.sidecars.preset import Scorer

VERSION = "paper-1"
MOVING = 0.1  # shorter sides of the frame per second: the mean speed whose score is 1/2
SHARP = 200.0  # the variance of the Laplacian whose score is 1/2
DESCRIPTIONS = {
    "motion": "mean speed by DIS flow, v/(v + 0.1 shorter sides a second)",
    "sharpness": "variance of the frames' Laplacian, v/(v + 200)",
    "uncopied": "1 - how much nearer the face is to one photo of the person than to the others, by "
    "ArcFace's angles; needs two photos",
}


def of(find_faces: Callable[[Clip], None] | None) -> tuple[Scorer, ...]:
    """Return the monitors.

    find_faces: fills a clip's faces in, unless that was done; None where no face net is loaded.
    """
    measures: dict[str, tuple[Callable[[Clip], One], object]] = {
        "motion": (motion, steadiness),
        "sharpness": (sharpness, looks),
    }
    if find_faces is not None:
        measures["uncopied"] = partial(uncopied, find_faces), copying
    return tuple(_scorer(name, *measure) for name, measure in measures.items())


def motion(clip: Clip) -> One:
    """Measure the amount of motion by another flow than the reward's."""
    speed = float(steadiness.motion(clip.video_THWC).length_F.mean()) * clip.fps
    return One(speed, speed / (speed + MOVING))


def sharpness(clip: Clip) -> One:
    """Measure how sharp the sampled frames are."""
    index = np.unique(sample(len(clip.video_THWC)))
    greys = [cv2.cvtColor(clip.video_THWC[i], cv2.COLOR_RGB2GRAY) for i in index]
    value = float(np.mean([looks.laplacian(grey_HW) for grey_HW in greys]))
    return One(value, value / (value + SHARP))


def uncopied(find_faces: Callable[[Clip], None], clip: Clip) -> One:
    """Measure how far the face is from being a copy of one of the photos."""
    find_faces(clip)
    photos, shown = (
        [face.embedding_D for face in found if face is not None]
        for found in (clip.photo_faces, clip.frame_faces)
    )
    if len(photos) < 2 or not shown:
        why = "uncopied: needs a face in the video and in two photos"
        return One(math.nan, math.nan, why, excused=True)
    value = copying.uncopied(np.stack(shown), np.stack(photos))
    return One(value, value)


def _scorer(name: str, measure: Callable[[Clip], One], code: object) -> Scorer:
    digest = hashlib.sha256(Path(code.__file__).read_bytes()).hexdigest()
    return Scorer(name, VERSION, digest, DESCRIPTIONS[name], partial(each, name, measure))
