"""Pairs of identity images and a prompt: the tiny world's, or a user's own folder.

Letters: P pairs, A identity attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from evoid_jax import files, media
from evoid_jax.data import folder as user_folder
from evoid_jax.data import rows as pair_rows
from evoid_jax.data.rows import SPLITS, Picture, Row
from evoid_jax.proof import TRAINED, UNSEEN

OTHERS = 3  # photos of a person beside a pair's own, at most: each is sent to the scorers


class Pair(NamedTuple):
    """One pair: (H, W, 3) uint8 images of one person, a prompt, (A,) attributes or None."""

    images: list[np.ndarray]
    prompt: str
    attributes: np.ndarray | None
    identity: str  # the person
    origin: str  # the line it came from, or its name in the tiny world
    others: Sequence[np.ndarray] = ()  # photos of the person on other lines; for monitors alone


class PairBatch(NamedTuple):
    """P pairs: images by pair, prompts, (P, A) float32 attributes or None."""

    images: list[list[np.ndarray]]
    prompts: list[str]
    attributes: np.ndarray | None
    others: list[Sequence[np.ndarray]] | None = None  # None: nobody has any


@dataclass(frozen=True)
class Pairs:
    """A data set with random access; only indexing decodes pictures."""

    rows: list[Row]
    look: Callable[[int], tuple[list[np.ndarray], np.ndarray | None]]  # images, attributes or None
    seed: int  # of the shuffle
    kind: str  # of the held-out evidence: proof.UNSEEN or proof.TRAINED
    look_beside: Callable[[int], list[np.ndarray]] = lambda index: []  # Pair.others

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"pair {index} of {len(self.rows)}")
        row, (images, attributes) = self.rows[index], self.look(index)
        return Pair(images, row.prompt, attributes, row.identity, row.origin)

    def with_others(self, index: int) -> Pair:
        """Return a pair with other photos of its person, which take longer to read."""
        return self[index]._replace(others=self.look_beside(index))

    @property
    def prompts(self) -> list[str]:
        """Every pair's prompt."""
        return [row.prompt for row in self.rows]

    @property
    def origins(self) -> list[str]:
        """What a message calls every pair: "FILE, line N", or its name in the tiny world."""
        return [row.origin for row in self.rows]

    @property
    def identities(self) -> list[str]:
        """The person of every pair."""
        return [row.identity for row in self.rows]


class Splits(NamedTuple):
    """The pairs to train on, those to watch and tune on, and those for the proof alone."""

    evolution: Pairs
    validation: Pairs
    heldout: Pairs

    def digest(self) -> str:
        """Return what tells these pairs from others: people, prompts and pictures, in their order.

        Where files lie and what they are called counts for nothing.
        """
        told = [
            [[row.key or row.identity, row.prompt, *(picture.digest for picture in row.pictures)]]
            for split in self
            for row in split.rows
        ]
        return files.digest([[len(split.rows) for split in self], told])[:16]


def open_splits(
    source: str | None = None,
    folder: str | None = None,
    validation: float = 0.0,
    heldout: float = 0.0,
    seed: int = 0,
    cache_dir: str | None = None,
) -> Splits:
    """Open the pairs of all splits; a user's folder is checked from end to end first.

    A folder that keeps nobody for a split lends it the pairs that it trains on.

    Args:
      source: "portraits" for the tiny world, None for a user's folder.
      folder: a folder with images and prompts.jsonl; wins over `source` when given.
      validation, heldout: shares of the folder's identities that are set apart, where its lines
        name no split.
      seed: of the shuffle of the pairs to train on; does not change who is held out.
      cache_dir: where the tiny world's pairs are prepared once and then read from.

    Raises:
      ValueError: nothing to open, an unknown source, no cache_dir, or a faulty folder.
    """
    if folder:
        return _open_folder(files.user_path(folder), validation, heldout, seed)
    if source != "portraits":
        raise ValueError(f"unknown source of pairs {source!r}: use 'portraits', or give a folder")
    for name, share in (("validation", validation), ("heldout", heldout)):
        if share:
            raise ValueError(
                f"config.data.{name}={share} is for a folder of yours (config.data.dir); the "
                "portraits have people of their own set apart: set it to 0"
            )
    if not cache_dir:
        raise ValueError("the portraits need a cache_dir to be prepared in")
    from evoid_jax.data import portrait_pairs  # its library takes a second to import

    opened = {name: portrait_pairs.open_split(name, Path(cache_dir)) for name in SPLITS}
    seeds = {"evolution": seed, "validation": 0, "heldout": 0}
    return Splits(**{name: Pairs(*opened[name], seeds[name], UNSEEN) for name in SPLITS})


def _open_folder(folder: Path, validation: float, heldout: float, seed: int) -> Splits:
    split_rows = pair_rows.split(user_folder.read(folder), validation, heldout)
    evolution = split_rows["evolution"]

    def of(rows: list[Row], seed: int, kind: str) -> Pairs:
        beside = pair_rows.beside(rows, OTHERS)
        look_beside = lambda index: _read(rows[index].origin, beside[index])
        return Pairs(rows, partial(_read_images, rows), seed, kind, look_beside)

    def apart(name: str) -> Pairs:
        rows = split_rows[name]
        return of(rows, 0, UNSEEN) if rows else of(evolution, 0, TRAINED)

    heldout_pairs = apart("heldout")
    return Splits(
        of(evolution, seed, heldout_pairs.kind),
        validation=apart("validation"),
        heldout=heldout_pairs,
    )


def _read_images(rows: list[Row], index: int) -> tuple[list[np.ndarray], None]:
    """Read a row's pictures; a user's folder knows no attributes."""
    return _read(rows[index].origin, rows[index].pictures), None


def _read(origin: str, pictures: Iterable[Picture]) -> list[np.ndarray]:
    """Read pictures; raise a ValueError where they are not as they were when opened."""
    images = []
    for picture in pictures:
        try:
            image_HWC = media.read_image(picture.file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{origin}: {error}") from None
        if image_HWC.shape[:2] != (picture.height, picture.width):
            raise ValueError(f"{origin}: {picture.file} has changed since the start; start again")
        images.append(image_HWC)
    return images


def check_images(pairs: Pairs, fits: Callable[[int, int], object]) -> None:
    """Raise where a picture cannot be used at its size; no picture is decoded.

    Args:
      pairs: all of them are checked.
      fits: called with (height, width) in pixels; raises a ValueError for a size that cannot be.

    Raises:
      ValueError: what `fits` says, with the line and the file.
    """
    for row in pairs.rows:
        for picture in row.pictures:
            try:
                fits(picture.height, picture.width)
            except ValueError as error:
                raise ValueError(f"{row.origin}: {picture.file}: {error}") from None


def batch(pairs: Pairs, step: int, count: int) -> PairBatch:
    """Take batch `step` of `count` pairs, those of `order`; a pure function of its arguments."""
    return gather([pairs[int(i)] for i in order(pairs, step, count)])


def order(pairs: Pairs, step: int, count: int) -> np.ndarray:
    """Return the (P,) indices of the pairs of batch `step`.

    Each epoch is a new order of all pairs and holds len(pairs) // count batches, so no pair comes
    twice in an epoch; the rest of the order is left out. With fewer pairs than `count` the orders
    are chained instead.

    Args:
      pairs: where from.
      step: 0, 1, ...
      count: pairs in a batch, P.
    """
    size = len(pairs)
    shuffled = grain.MapDataset.range(size).shuffle(seed=pairs.seed).repeat()
    epoch, place = divmod(step, max(size // count, 1))
    first = epoch * size + place * count if size >= count else step * count
    return np.array([shuffled[first + i] for i in range(count)])


def gather(pairs: list[Pair]) -> PairBatch:
    """Put pairs into a batch; it has attributes where all of them have."""
    known = all(pair.attributes is not None for pair in pairs)
    return PairBatch(
        images=[pair.images for pair in pairs],
        prompts=[pair.prompt for pair in pairs],
        attributes=np.stack([pair.attributes for pair in pairs]) if known else None,
        others=[pair.others for pair in pairs],
    )


def spread(identities: list[str], count: int) -> list[int]:
    """Return the indices of up to `count` pairs that show as many people as can be.

    One pair of every person in order, then a second one of each, and so on.
    """
    turns: dict[str, int] = {}
    turn_of = []
    for identity in identities:
        turns[identity] = turns.get(identity, 0) + 1
        turn_of.append(turns[identity])
    return sorted(range(len(identities)), key=turn_of.__getitem__)[:count]
