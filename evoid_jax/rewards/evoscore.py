"""EvoScore as far as the paper tells it: three aspects, the least item of each, one harmonic mean.

Published are the aspects (identity, prompt, technical), that an aspect is the minimum of its items,
and that the score is the harmonic mean of the three. The items, their wording and their scale are
not published: those here are ours, so that our numbers do not compare with the paper's. The judge
gives the grades, see judge.py and rubrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST, MOST = 1, 10  # of a grade
ASPECTS = {
    "identity": ("face", "look", "constancy"),
    "prompt": ("setting", "action", "camera"),
    "technical": ("picture", "bodies", "motion"),
}
ITEMS = tuple(item for items in ASPECTS.values() for item in items)
RUBRIC = """\
You have seen one or more reference photos of a person and, in order of time, frames of a \
generated video of that person. Look for the weakest point: grade nine items with whole numbers \
from 1 (fails) over 4 (poor), 6 (acceptable) and 8 (good) to 10 (nothing to improve).
Identity, against the photos:
face: shape, eyes, nose and mouth. 1: another person; 10: the same person beyond doubt.
look: hair, apparent age, skin and build. 1: all different; 10: all as in the photos.
constancy: is it one person from the first frame to the last? 1: turns into someone else; 10: \
never drifts.
Prompt, against its words:
setting: person, clothes, place, things, light and style. 1: something else; 10: every detail.
action: what the person does, and how much. 1: not to be seen, or nearly frozen; 10: just so.
camera: framing and movement of the camera. 1: contrary to the words, or shaking; 10: as asked, or \
calm where nothing is asked.
Technical, as footage:
picture: sharpness, texture, exposure. 1: blurred, noisy or smeared; 10: clean.
bodies: hands, limbs, teeth, eyes and contact with things. 1: melted or impossible; 10: sound.
motion: smoothness and weight from frame to frame. 1: jumps, flickers or floats; 10: like life.
Grade each item by itself. A still copy of a photo earns its face, not its action or motion."""


def aspects(grades: Sequence[float]) -> dict[str, float]:
    """Return each aspect in [0, 1]: its least item, (grade - 1) / 9.

    grades: LEAST..MOST, in the order of ITEMS.

    Raises:
      ValueError: as many grades as there are items were expected.
    """
    named = dict(zip(ITEMS, grades, strict=True))
    share = lambda item: (named[item] - LEAST) / (MOST - LEAST)
    return {aspect: float(min(map(share, items))) for aspect, items in ASPECTS.items()}


def evoscore(grades: Sequence[float]) -> float:
    """Return the harmonic mean of the three aspects, in [0, 1]; 0 where one of them is 0.

    Args and errors: as of `aspects`.
    """
    values = aspects(grades).values()
    if min(values) <= 0:  # what the harmonic mean tends to
        return 0.0
    return len(values) / sum(1 / value for value in values)
