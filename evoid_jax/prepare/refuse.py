"""Which photos can serve as a reference of one person, and why the others cannot."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evoid_jax.prepare.photos import Box, Look, Photo

# Of the sides of two faces of a photo: a smaller one is somebody in the background.
RIVAL = 0.35
# Copies of one picture have marks and embeddings closer together than other pictures of anybody:
# scaled, compressed or brightened ones differed in at most 49 of 256 bits, with a cosine of .90 or
# more; other pictures in at least 89 (docs/data.md).
COPY_BITS, COPY_COSINE = 60, 0.85

UNREADABLE, NONE, SEVERAL = "unreadable", "no face", "several faces"
SMALL, BLURRED, DUPLICATE = "too small", "blurred", "duplicate"
KINDS = (UNREADABLE, NONE, SEVERAL, SMALL, BLURRED, DUPLICATE)


class Limits(NamedTuple):
    """What a face needs at least."""

    side: float = 80  # pixels of the shorter side of its box
    sharpness: float = 0.1  # as photos.py measures it


class Refused(NamedTuple):
    """A photo that is not used."""

    photo: Photo
    kind: str  # one of KINDS
    why: str


def sift(photos: list[Photo], limits: Limits) -> tuple[list[Photo], list[Refused]]:
    """Divide photos into those that can serve and those that cannot, both in their order.

    Of several copies of a picture the one with the largest face stays, then the sharpest, then the
    first by name.
    """
    refused, fit = {}, []
    for photo in photos:
        fault = _fault(photo.look, limits)
        if fault:
            refused[photo.name] = Refused(photo, *fault)
        else:
            fit.append(photo)
    refused |= {copy.photo.name: copy for copy in _copies(fit)}
    used = [photo for photo in fit if photo.name not in refused]
    return used, [refused[photo.name] for photo in photos if photo.name in refused]


def side(box: Box) -> float:
    """Return the shorter side of a face in pixels."""
    return min(box[2] - box[0], box[3] - box[1])


def rivals(look: Look) -> int:
    """Return how many faces of a photo are about as large as its largest."""
    return sum(side(box) >= RIVAL * side(look.boxes[0]) for box in look.boxes[1:])


def _fault(look: Look, limits: Limits) -> tuple[str, str] | None:
    """Return the kind of a photo's fault, and it in words; None of one that can serve."""
    if look.fault:
        return UNREADABLE, look.fault
    if not look.boxes:
        return NONE, "no face was found in it"
    if others := rivals(look):
        return SEVERAL, f"{others + 1} faces of like size; cut out one"
    pixels = side(look.boxes[0])
    if pixels < limits.side:
        least = f"expected at least {limits.side:g} (--min_face)"
        return SMALL, f"the face is {pixels:.0f} pixels wide; {least}"
    if look.sharpness < limits.sharpness:
        measured = f"the face's sharpness is {look.sharpness:.3f}"
        return BLURRED, f"{measured}; expected at least {limits.sharpness:g} (--min_sharpness)"
    return None


def _copies(photos: list[Photo]) -> list[Refused]:
    """Return the photos that show the same picture as a better one."""
    rank = lambda photo: (-side(photo.look.boxes[0]), -photo.look.sharpness, photo.name)
    kept: list[Photo] = []
    copies = []
    for photo in sorted(photos, key=rank):
        first = next((other for other in kept if _same(photo.look, other.look)), None)
        if first is None:
            kept.append(photo)
        elif first.look.digest == photo.look.digest:
            copies.append(Refused(photo, DUPLICATE, f"the same file as {first.name}"))
        else:
            copies.append(Refused(photo, DUPLICATE, f"nearly the same picture as {first.name}"))
    return copies


def _same(one: Look, other: Look) -> bool:
    if one.digest == other.digest:
        return True
    bits = (int(one.mark, 16) ^ int(other.mark, 16)).bit_count()
    return bits <= COPY_BITS and float(np.dot(one.embedding, other.embedding)) >= COPY_COSINE
