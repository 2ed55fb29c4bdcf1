"""Pairs of identity images and a prompt: the tiny world's, or a user's own folder.

Letters: P pairs, A identity attributes.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from PIL import Image, ImageOps

from evoid_jax.world import people, portraits, prompts

PROMPTS_FILE = "prompts.jsonl"
EXAMPLE = '{"image": "anna.png", "prompt": "A person waves a hand."}'


class Pair(NamedTuple):
    """One pair: (H, W, 3) uint8 images of one person, a prompt, (A,) attributes or None, a name."""

    images: list[np.ndarray]
    prompt: str
    attributes: np.ndarray | None
    name: str


class Batch(NamedTuple):
    """P pairs: images by pair, prompts, (P, A) float32 attributes or None, (P,) pair indices."""

    images: list[list[np.ndarray]]
    prompts: list[str]
    attributes: np.ndarray | None
    index: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """A data set with random access; `batch` draws from it in shuffled epochs."""

    rows: grain.MapDataset
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"pair {index} of {len(self.rows)}")
        return self.rows[index]


def open_pairs(
    source: str | None = None,
    folder: str | None = None,
    split: str = "evolution",
    seed: int = 0,
    cache_dir: str | None = None,
) -> Pairs:
    """Open a data set of pairs; a user's folder is checked from end to end first.

    Args:
      source: "portraits" for the tiny world, None for a user's folder.
      folder: a folder with images and prompts.jsonl; wins over `source` when given.
      split: "evolution" or "heldout"; a user's folder has one split and ignores it.
      seed: of the shuffle.
      cache_dir: where the tiny world's pairs are prepared once and then read from.

    Returns:
      The pairs.

    Raises:
      ValueError: nothing to open, an unknown source or split, no cache_dir, or a faulty folder.
    """
    if folder:
        return Pairs(_folder_rows(Path(folder)), seed)
    if source != "portraits":
        raise ValueError(f"unknown source of pairs {source!r}: use 'portraits', or give a folder")
    if split not in ("evolution", "heldout"):
        raise ValueError(f"unknown split {split!r}: use 'evolution' or 'heldout'")
    if not cache_dir:
        raise ValueError("the portraits need a cache_dir to be prepared in")
    return Pairs(_portrait_rows(split, Path(cache_dir)), seed)


def batch(pairs: Pairs, step: int, count: int) -> Batch:
    """Take batch `step` of `count` pairs; a pure function of its arguments.

    Each epoch is a new order of all pairs and holds len(pairs) // count batches, so no pair comes
    twice in an epoch; the rest of the order is left out. With fewer pairs than `count` the orders
    are chained instead.

    Args:
      pairs: where from.
      step: 0, 1, ...
      count: pairs in a batch, P.

    Returns:
      The batch.
    """
    size = len(pairs)
    order = grain.MapDataset.range(size).shuffle(seed=pairs.seed).repeat()
    epoch, place = divmod(step, max(size // count, 1))
    first = epoch * size + place * count if size >= count else step * count
    index_P = np.array([order[first + i] for i in range(count)])
    rows = [pairs[int(i)] for i in index_P]
    known = all(row.attributes is not None for row in rows)
    return Batch(
        images=[row.images for row in rows],
        prompts=[row.prompt for row in rows],
        attributes=np.stack([row.attributes for row in rows]) if known else None,
        index=index_P,
    )


def _world_digest() -> str:
    """Identify the world's source code, so that a changed world never reads old pairs."""
    files = (people.__file__, portraits.__file__, prompts.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:12]


def _portrait_rows(split: str, cache_dir: Path) -> grain.MapDataset:
    import tensorflow_datasets as tfds  # a second to import, and only needed here

    from evoid_jax.data.portrait_pairs import PortraitPairs

    tfds.disable_progress_bar()
    builder = PortraitPairs(data_dir=cache_dir / _world_digest(), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")

    def read(row: dict) -> Pair:
        index = int(row["identity"])
        name = f"{index}-{int(row['scene'])}"
        return Pair([row["image"]], row["prompt"].decode(), people.identity(index), name)

    return grain.MapDataset.source(builder.as_data_source(split=split)).map(read)


def _folder_rows(folder: Path) -> grain.MapDataset:
    lines = _read_lines(folder)

    def read(line: tuple[list[Path], str]) -> Pair:
        files, prompt = line
        return Pair([load_image(file) for file in files], prompt, None, files[0].stem)

    return grain.MapDataset.source(lines).map(read)


def load_image(file: str | Path) -> np.ndarray:
    """Read an image file upright, on white where it is transparent: (H, W, 3) uint8."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return np.asarray(image.convert("RGB"))


def _read_lines(folder: Path) -> list[tuple[list[Path], str]]:
    """Read and check prompts.jsonl and every image it names; blank lines are skipped."""
    file = folder / PROMPTS_FILE
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder with images and {PROMPTS_FILE}")
    if not file.is_file():
        raise ValueError(f"{file} is missing; write one line per pair, such as {EXAMPLE}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    rows, checked = [], set()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            fail = _complain(file, number)
            row = _parse_line(folder, line, fail)
            for image in row[0]:
                if image not in checked:
                    _check_image(image, fail)
                    checked.add(image)
            rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty; write one line per pair, such as {EXAMPLE}")
    return rows


def _complain(file: Path, number: int) -> Callable[[str], ValueError]:
    return lambda text: ValueError(f"{file}, line {number}: {text}")


def _parse_line(folder: Path, line: str, fail) -> tuple[list[Path], str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise fail(f"not valid JSON ({error}); write it like {EXAMPLE}") from None
    if not isinstance(row, dict) or not {"image", "prompt"} <= row.keys():
        raise fail(f'must be an object with "image" and "prompt", such as {EXAMPLE}')
    prompt, names = row["prompt"], row["image"]
    if not isinstance(prompt, str):
        raise fail(f'"prompt" must be a string, not {json.dumps(prompt)}; put it in quotes')
    if not prompt.strip():
        raise fail('"prompt" is empty; describe what the video shows')
    names = names if isinstance(names, list) else [names]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise fail(
            f'"image" must be a file name or a list of file names, not {json.dumps(row["image"])}'
        )
    return [folder / name for name in names], prompt


def _check_image(file: Path, fail) -> None:
    """Decode the image once (JPEGs at an eighth of their size), which also finds a cut-off file."""
    if not file.is_file():
        raise fail(f"image {file} does not exist; correct the name or add the file")
    try:
        with Image.open(file) as image:
            image.draft("RGB", (64, 64))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise fail(f"{file} is not a readable image ({error}); replace or remove it") from None
