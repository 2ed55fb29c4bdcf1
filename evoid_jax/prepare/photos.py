"""A folder's photos, each looked at once: where its faces are, whose the largest is, how sharp.

What was seen is kept by the SHA-256 of a file's bytes, so that a second call, after Ctrl-C or with
more photos, looks at new photos alone, whatever they are called now.

Letters: H W C pixels, D entries of an embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from evoid_jax import files, media
from evoid_jax.prepare.finder import Eyes, Finder

LOOKS, THUMBS = "looks.jsonl", "thumbs"
PLAIN = 112  # pixels: side of the face whose sharpness is measured
MARK = 16  # cells along each side of a face's mark
THUMB = 200  # pixels: longest side of a picture on the contact sheet

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, pixels of the upright photo


class Look(NamedTuple):
    """What was seen in a photo; judged by refuse.py."""

    digest: str  # SHA-256 of the file's bytes
    height: int = 0  # pixels, upright
    width: int = 0
    boxes: tuple[Box, ...] = ()  # of all faces, largest first; the rest is of the first
    sharpness: float = 0.0  # as `sharpness` measures it
    mark: str = ""  # as `mark` makes it
    embedding: tuple[float, ...] = ()  # (D,) of length 1
    fault: str = ""  # why the file cannot be read; then nothing else is known


class Photo(NamedTuple):
    """A file, and what is in it."""

    name: str  # below the folder of photos, with "/"
    look: Look


def names(folder: Path) -> list[str]:
    """Return every file below a folder in order of name, but for the operating system's own.

    Raises ValueError where there is none.
    """
    found = []
    for place, inner, held in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(place) / name for name in held if not files.hidden(Path(name))]
    if not found:
        raise ValueError(f"{folder} holds no file; expected photos, in it or in folders below")
    return sorted(file.relative_to(folder).as_posix() for file in found)


def look_at_all(folder: Path, cache: Path, finder: Finder) -> tuple[list[Photo], int]:
    """Look at every photo below a folder that is not known yet, showing progress.

    Args:
      cache: the folder that keeps what was seen, and small pictures for the contact sheet.

    Returns:
      The photos in order of name, and how many were looked at now.

    Raises:
      ValueError, OSError: no file at all, or the finder cannot be opened.
      KeyboardInterrupt: its text says how far it came.
    """
    listed = names(folder)
    looks = [_digested(folder / name) for name in listed]
    known = recall(cache, finder.name)
    new = {
        look.digest: name
        for name, look in zip(listed, looks, strict=True)
        if not look.fault and look.digest not in known
    }
    if new:
        (cache / THUMBS).mkdir(parents=True, exist_ok=True)
        seen = _seen(folder, cache, finder, new)
        try:
            known |= {look.digest: look for look in tqdm(seen, "photos", len(new), unit="photo")}
        except KeyboardInterrupt:
            done = len(recall(cache, finder.name))
            raise KeyboardInterrupt(
                f"stopped; what was seen in {done} of the photos is kept, and the same command "
                "goes on from there"
            ) from None
    both = zip(listed, looks, strict=True)
    looked = sum(not known[digest].fault for digest in new)
    return [Photo(name, known.get(look.digest, look)) for name, look in both], looked


def recall(cache: Path, finder: str) -> dict[str, Look]:
    """Return by digest what was seen with a finder; lines that a crash cut off are passed over."""
    file, known = cache / LOOKS, {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            if values.keys() != {"finder", *Look._fields}:  # of another version
                continue
            if values.pop("finder") == finder and _thumb(cache, values["digest"]).exists():
                values["boxes"] = tuple(tuple(box) for box in values["boxes"])
                values["embedding"] = tuple(values["embedding"])
                known[values["digest"]] = Look(**values)
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
    return known


def forget_others(cache: Path, finder: str, photos: list[Photo]) -> None:
    """Remove from the cache what was seen in files that are not among the photos any more."""
    looks = {photo.look.digest: photo.look for photo in photos if not photo.look.fault}
    with files.replacing(cache / LOOKS) as part:
        part.write_text("".join(_line(look, finder) for look in looks.values()))
    for thumb in (cache / THUMBS).glob("*.jpg"):
        if thumb.stem not in looks:
            thumb.unlink()


def thumbnail(cache: Path, look: Look) -> bytes | None:
    """Return the small JPEG of a photo for the contact sheet; None of one that cannot be read."""
    return None if look.fault else _thumb(cache, look.digest).read_bytes()


def _thumb(cache: Path, digest: str) -> Path:
    return cache / THUMBS / f"{digest}.jpg"


def _digested(file: Path) -> Look:
    try:
        return Look(files.sha256(files.require_file(file)))
    except OSError as error:
        return Look("", fault=f"it cannot be opened: {error.strerror or error}")


def _seen(folder: Path, cache: Path, finder: Finder, new: dict[str, str]) -> Iterator[Look]:
    """Look at files by digest, one after the other; each is kept before the next is begun."""
    eyes = None
    with open(cache / LOOKS, "a") as kept:
        kept.write("\n")  # a line that a crash cut off ends here
        for digest, name in new.items():
            try:
                image_HWC = media.read_image(folder / name)
            except (OSError, ValueError) as error:  # not kept: another Pillow may read it
                yield Look(digest, fault=str(error).removeprefix(f"{folder / name} "))
                continue
            eyes = eyes or finder.open()
            look = look_at(image_HWC, digest, eyes)
            _write_thumb(image_HWC, _thumb(cache, digest))
            kept.write(_line(look, finder.name))
            kept.flush()
            yield look


def _line(look: Look, finder: str) -> str:
    return json.dumps({"finder": finder} | look._asdict()) + "\n"


def _write_thumb(image_HWC: np.ndarray, file: Path) -> None:
    small = Image.fromarray(image_HWC)
    small.thumbnail((THUMB, THUMB))
    with files.replacing(file) as part:
        small.save(part, "JPEG", quality=80)


def look_at(image_HWC: np.ndarray, digest: str, eyes: Eyes) -> Look:
    """Find a photo's faces; embed and measure the largest.

    Args:
      image_HWC: uint8 RGB, upright.
      digest: of its file.
    """
    height, width = image_HWC.shape[:2]
    found = eyes.find(image_HWC)
    if not found:
        return Look(digest, height, width)
    box = _plain(found[0].box)
    return Look(
        digest=digest,
        height=height,
        width=width,
        boxes=tuple(_plain(face.box) for face in found),
        sharpness=sharpness(image_HWC, box),
        mark=mark(image_HWC, box),
        embedding=_plain(eyes.embed(image_HWC, found[0])),
    )


def _plain(array: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(x), 5) for x in array)


def around(box: Box, times: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return x0 y0 x1 y1 of a box that is enlarged about its centre, inside a (height, width)."""
    height, width = size
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = times * (box[2] - box[0]) / 2, times * (box[3] - box[1]) / 2
    x0, y0 = max(0, int(x - across)), max(0, int(y - down))
    x1, y1 = min(width, round(x + across)), min(height, round(y + down))
    # At least one pixel, wherever a detector has put the box.
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x0 + 1, x1), max(y0 + 1, y1)


def sharpness(image_HWC: np.ndarray, box: Box) -> float:
    """Measure how sharp a face is, apart from its size, light and contrast.

    The standard deviation of the Laplacian of the grey face at PLAIN x PLAIN pixels, over that of
    the grey face itself; 0 of a flat one.
    """
    grey_HW = _grey(image_HWC, box, (PLAIN, PLAIN))
    inner_HW = grey_HW[1:-1, 1:-1]
    beside_HW = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    contrast = float(grey_HW.std())
    return round(float((4 * inner_HW - beside_HW).std()) / contrast, 5) if contrast > 1 else 0.0


def mark(image_HWC: np.ndarray, box: Box) -> str:
    """Return 256 bits, as hex, that stay nearly the same when a photo is scaled or compressed.

    Each bit says whether one of 16 x 16 cells of the grey face is darker than its right neighbour.
    """
    grey_HW = _grey(image_HWC, box, (MARK + 1, MARK))
    return np.packbits(grey_HW[:, :-1] < grey_HW[:, 1:]).tobytes().hex()


def _grey(image_HWC: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Return what is in a box as float32 grey of a (width, height)."""
    x0, y0, x1, y1 = around(box, 1.0, image_HWC.shape[:2])
    face = Image.fromarray(image_HWC[y0:y1, x0:x1]).convert("L")
    return np.asarray(face.resize(size, Image.Resampling.LANCZOS), np.float32)
