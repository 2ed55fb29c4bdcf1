"""Photographs made up for evoid_jax.prepare, and a finder that sees the faces in them.

A face is a square of little blue before a background that is full of it; its red says whose it is.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from evoid_jax.prepare.finder import Eyes, Finder

PEOPLE = 12  # that red tells apart
STEP = 20  # of red from one person to the next


def photo(*faces, seed=0, size=(300, 400), sharp=True) -> Image.Image:
    """Draw faces, each (who, x, y, side) with the upper left corner in pixels.

    seed: of their structure, which differs from photo to photo of one person.
    """
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    image_HWC = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 255)], axis=-1)
    for who, left, top, side in faces:
        blocks = Image.fromarray(random.integers(40, 216, (8, 8), dtype=np.uint8))
        green = np.asarray(blocks.resize((side, side), Image.Resampling.BICUBIC), int)
        if sharp:
            green = green + random.integers(-40, 41, green.shape)
        face = np.stack([np.full_like(green, STEP * who + 10), green, np.zeros_like(green)], -1)
        image_HWC[top : top + side, left : left + side] = face
    return Image.fromarray(image_HWC.clip(0, 255).astype(np.uint8))


def save(folder: Path, **images: Image.Image) -> Path:
    """Save images as PNG under their names, in which "__" stands for "/"."""
    for name, image in images.items():
        file = folder / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return folder


class Face:
    """A face as a finder gives it."""

    def __init__(self, box):
        self.box = np.array(box, np.float32)


class Watched:
    """A finder of drawn faces that counts what it is asked."""

    def __init__(self, name: str = "drawn"):
        self.opened = self.asked = 0
        self.finder = Finder(name, self._open)

    def _open(self) -> Eyes:
        self.opened += 1
        return Eyes(self._find, embed)

    def _find(self, image_HWC: np.ndarray) -> list[Face]:
        self.asked += 1
        return find(image_HWC)


def find(image_HWC: np.ndarray) -> list[Face]:
    """Return the faces, largest first."""
    label_HW, _ = ndimage.label(image_HWC[..., 2] < 128)
    found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(label_HW)]
    size = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return [Face(box) for box in sorted(found, key=size, reverse=True)]


def embed(image_HWC: np.ndarray, face: Face) -> np.ndarray:
    """Return a unit vector that is nearly the same for one person, and apart from all others."""
    x0, y0, x1, y1 = (int(side) for side in face.box)
    inside = image_HWC[y0:y1, x0:x1]
    vector = np.zeros(PEOPLE + 1)
    vector[int(np.median(inside[..., 0])) // STEP] = 1
    vector[-1] = inside[..., 1].mean() / 1000
    return vector / np.linalg.norm(vector)
