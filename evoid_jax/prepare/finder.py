"""The nets that find faces and tell people apart; they are of preset `open`, and torch's.

They are opened when the first photo is new: a call that knows all its photos needs neither torch
nor weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from evoid_jax import files

INSTALL = "pip install -r requirements-sidecars.txt"
# The detector's trust from which a face counts. On photographs faces had 0.88 to 0.95, and what was
# none, such as folded hands in a blurred picture, up to 0.71.
SURE = 0.8


class Eyes(NamedTuple):
    """What looks at photos. A face has a box (x0, y0, x1, y1) in pixels, among other things."""

    find: Callable[[np.ndarray], list[Any]]  # uint8 (H, W, 3) -> its faces, largest first
    embed: Callable[[np.ndarray, Any], np.ndarray]  # photo, face -> (D,) of length 1


class Finder(NamedTuple):
    """Eyes that are yet to be opened."""

    name: str  # of nets and weights: what was seen with others is not used again
    open: Callable[[], Eyes]


def of_folder(folder: str | None) -> Finder:
    """Return the finder whose weights lie in a folder; None is where `fetch` puts them.

    Opening it raises ValueError or OSError where packages or weights are missing.
    """
    from evoid_jax.sidecars.open import catalogue  # without torch

    digests = [net.sha256[:12] for net in (catalogue.YUNET, catalogue.SFACE)]
    name = f"yunet {digests[0]} from {SURE}, sface {digests[1]}"
    return Finder(name, lambda: _opened(folder))


def _opened(folder: str | None) -> Eyes:
    try:
        from evoid_jax.sidecars.open import catalogue, faces, sface
    except ModuleNotFoundError as error:
        raise ValueError(
            f"finding faces needs the package {error.name}, which is not installed: {INSTALL}"
        ) from None
    place = files.user_path(folder) if folder else catalogue.folder()
    try:
        detector, encoder = faces.Finder(place), sface.SFace(place)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"finding faces needs the weights of preset open: {error}, or name the folder that has "
            "them with --weights"
        ) from None
    except RuntimeError as error:  # an OpenCV that cannot read them
        raise ValueError(f"finding faces: {error}") from None

    def sure(image_HWC: np.ndarray) -> list[faces.Face]:
        return [face for face in detector.find(image_HWC) if face.score >= SURE]

    return Eyes(sure, encoder.embed)
