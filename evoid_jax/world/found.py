"""Found pairs: photos beside clips of their people, as a model learns from that copies faces.

Where a photo is a frame of its own clip, the person looks exactly as on it and hardly moves. Where
people move, the clip is of another day: they look a little different. A base that imitates such
pairs learns that likeness and stillness go together, which is the copy-paste effect of the paper;
to want both is what the rewards add. NumPy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from evoid_jax.world.people import ATTRIBUTES, Scene

# Nobody gets glasses or a beard for a day.
CHANGING = np.array([name not in ("glasses", "beard") for name in ATTRIBUTES])


def found(scene: Scene, posed: float, drift: float, rng: np.random.Generator) -> Scene:
    """Return what the clip shows where `scene` is what the photo and the prompt say.

    With probability `posed` the person moves by at most three tenths of what is said, before a
    camera that stands still; else every attribute is off by up to `drift`.

    Args:
      scene: the photo is of its identity, the prompt tells its action and camera.
      posed: share of clips that are of the photo's own hour, in [0, 1].
      drift: of attributes from one day to another, in their unit.
      rng: decides; the same draws for every share.
    """
    draw, still = rng.random(), rng.uniform(0.0, 0.3)
    change_A = np.where(CHANGING, rng.uniform(-drift, drift, len(ATTRIBUTES)), 0.0)
    if draw < posed:
        return dataclasses.replace(scene, amplitude=still * scene.amplitude, camera="static")
    person_A = np.clip(scene.identity + change_A, 0, 1).astype(np.float32)
    return dataclasses.replace(scene, identity=person_A)
