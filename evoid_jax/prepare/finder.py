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

    name = f"yunet {catalogue.YUNET.sha256[:12]}, sface {catalogue.SFACE.sha256[:12]}"
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
        return Eyes(faces.Finder(place).find, sface.SFace(place).embed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"finding faces needs the weights of preset open: {error}, or name the folder that has "
            "them with --weights"
        ) from None
    except RuntimeError as error:  # an OpenCV that cannot read them
        raise ValueError(f"finding faces: {error}") from None
