"""The photos of a request: each travels once, and every video says which are its own; numpy only.

Letters: B videos, H W C pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import evoid_jax.sidecars.limits as limits

Photos = Sequence[Sequence[np.ndarray]]  # of each video its person's photos, uint8 HWC of any sizes


def shared(references: Photos) -> tuple[list[np.ndarray], list[list[int]]]:
    """Return the photos of all videos, each array once, and which of them each video has."""
    number_of: dict[int, int] = {}  # id of an array -> its place in `photos`
    photos: list[np.ndarray] = []
    indices: list[list[int]] = []
    for own in references:
        numbers = []
        for photo in own:
            if id(photo) not in number_of:
                number_of[id(photo)] = len(photos)
                photos.append(photo)
            numbers.append(number_of[id(photo)])
        indices.append(numbers)
    return photos, indices


def sizes(header: dict) -> list[tuple[int, ...]]:
    """Return the shapes of all photos, as a header claims them."""
    value = header.get("photos")
    if not isinstance(value, list):
        raise ValueError(f"photos must be a list of sizes, one per photo; got {value!r:.80}")
    limits.check("photos", len(value), limits.PHOTOS)
    shapes = [rgb_shape(shape, f"photo {i} of photos", 3) for i, shape in enumerate(value)]
    largest = max((height * width for height, width, _ in shapes), default=0)
    limits.check("pixels of a photo", largest, limits.PHOTO_PIXELS)
    return shapes


def references(header: dict, count: int, photos: int) -> list[list[int]]:
    """Return which photos each video has."""
    value = header.get("references")
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(
            f"references must be {count} lists of photos, one per prompt; got {value!r:.80}"
        )
    for own in value:
        if not _are_photos(own, photos) or not own:
            raise ValueError(
                f"references must hold, for every video, one or more numbers from 0 to "
                f"{photos - 1} (there are {photos} photos); got {own!r:.80}"
            )
        limits.check("photos of a video", len(own), limits.PHOTOS_OF_A_VIDEO)
    return value


def others(header: dict, count: int, photos: int) -> list[list[int]] | None:
    """Return which photos each video has beside `references`; None where nothing is said."""
    value = header.get("others")
    if value is None:
        return None
    good = isinstance(value, list) and all(_are_photos(own, photos) for own in value)
    if not good or len(value) != count:
        raise ValueError(
            f"others must be {count} lists of numbers from 0 to {photos - 1}, or left out; got "
            f"{value!r:.80}"
        )
    limits.check("photos of a video", max(map(len, value)), limits.PHOTOS_OF_A_VIDEO)
    return value


def _are_photos(own, photos: int) -> bool:
    return isinstance(own, list) and all(type(i) is int and 0 <= i < photos for i in own)


def split(payload: memoryview, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the photos that follow each other in a body; they share its memory."""
    photos, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        photos.append(np.frombuffer(payload, np.uint8, size, offset=start).reshape(shape))
        start += size
    return photos


def rgb_shape(shape, name: str, rank: int) -> tuple[int, ...]:
    """Return a shape of a header; raise a ValueError unless it has `rank` sizes, 3 the last."""
    # type(n) is int: JSON's true is a bool, and a bool is an int to isinstance.
    good = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not good or len(shape) != rank or shape[-1] != 3:
        text = f"{name} must be {rank} positive sizes ending in 3 (RGB)"
        raise ValueError(f"{text}; got {shape!r:.80}")
    limits.check(f"as any size of {name}", max(shape), limits.SIDE)
    return tuple(shape)
