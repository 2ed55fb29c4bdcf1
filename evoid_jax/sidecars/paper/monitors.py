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

import numpy as np

from evoid_jax.sidecars import copying
from evoid_jax.sidecars.open import looks, steadiness
from evoid_jax.sidecars.paper.clips import Clip, One, each, sample
from evoid_jax.sidecars.paper.faces import Face
from evoid_jax.sidecars.preset import Scorer

VERSION = "paper-1"
DESCRIPTIONS = {
    "motion": steadiness.SPEED,
    "sharpness": looks.SHARPNESS,
    "uncopied": f"{copying.UNCOPIED}; angles are ArcFace's",
}


def of(find_faces: Callable[[Clip], list[Face]] | None) -> tuple[Scorer, ...]:
    """Return the monitors.

    find_faces: fills a clip's faces in, unless that was done, and returns those of its `others`;
      None where no face net is loaded.
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
    return One(*steadiness.speed(steadiness.motion(clip.video_THWC).length_F, clip.fps))


def sharpness(clip: Clip) -> One:
    """Measure how sharp the sampled frames are."""
    index = np.unique(sample(len(clip.video_THWC)))
    return One(*looks.sharpness([clip.video_THWC[i] for i in index]))


def uncopied(find_faces: Callable[[Clip], list[Face]], clip: Clip) -> One:
    """Measure how far the face is from being a copy of one of the photos."""
    others = find_faces(clip)
    photos, shown = (
        [face.embedding_D for face in found if face is not None]
        for found in ([*clip.photo_faces, *others], clip.frame_faces)
    )
    if len(photos) < 2 or not shown:
        why = "uncopied: needs a face in the video and in two photos"
        return One(math.nan, math.nan, why, excused=True)
    value = copying.uncopied(np.stack(shown), np.stack(photos))
    return One(value, value)


def _scorer(name: str, measure: Callable[[Clip], One], code: object) -> Scorer:
    digest = hashlib.sha256(Path(code.__file__).read_bytes()).hexdigest()
    return Scorer(name, VERSION, digest, DESCRIPTIONS[name], partial(each, name, measure))
