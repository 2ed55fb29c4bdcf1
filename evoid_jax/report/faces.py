"""Tell which triples two runs have in common: the same face, prompt and seed.

An identity is a name in a run's own data, for many a photo's file name, and the seeds of the proof
are the same in every run. So two folders with a 001.png and one prompt call different people alike;
the photo tells them apart. An older scores.json names no photos, those kept beside the videos do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from evoid_jax import media, triples
from evoid_jax.report.folder import HeldoutSample, RunFolder
from evoid_jax.triples import Scores

Key = tuple[str, ...]  # whatever heldout.json holds, which may be no text


def kept(run: RunFolder) -> dict[Key, HeldoutSample]:
    """Return the run's samples by what makes them the same as another run's: the photo too."""
    known, samples = _scored(run), {}
    for sample in run.samples:
        name = _name(sample.key)
        photo = _photo(sample.reference) or known.get(name)
        samples[(*name, str(photo))] = sample
    return samples


def shared(one: RunFolder, other: RunFolder) -> Scores:
    """Return `triples.between` of two runs with scores, without triples of other faces.

    Where some names are known to stand for other photos, a triple whose photo is not recorded may
    be of anybody, and is left out.
    """
    scores = [one.scores, other.scores]
    if strangers(one, other):
        told = [tuple(triple for triple in held.triples if triple.photo) for held in scores]
        scores = [held._replace(triples=rows) for held, rows in zip(scores, told, strict=True)]
    return triples.between(*scores)


def strangers(one: RunFolder, other: RunFolder) -> int:
    """Count the triples that two runs call alike and that are known to show other photos."""
    mine, theirs = _photos(one), _photos(other)
    return sum(mine[name] != theirs[name] for name in mine.keys() & theirs.keys())


def caution(one: RunFolder, other: RunFolder, names: Sequence[str]) -> str:
    """Say that names stand for other people in two runs; "" where that is not known to be so.

    names: of the two runs.
    """
    count = strangers(one, other)
    if not count:
        return ""
    words = (
        f"{count} of the triples that {names[0]} and {names[1]} call alike (identity, prompt and "
        "seed) have different photos: they are not set against each other."
    )
    older = [
        name
        for run, name in zip((one, other), names, strict=True)
        if run.scores and any(triple.photo is None for triple in run.scores.triples)
    ]
    if older:
        words += (
            f" The scores of {' and '.join(older)} do not say of which photos they are (an older "
            "version made them), so that none of them is."
        )
    return words


def _photos(run: RunFolder) -> dict[Key, str]:
    """Return the photo of every triple of which it is known; those in the scores go first."""
    photos = _scored(run)
    for sample in run.samples:
        name = _name(sample.key)
        if name not in photos and (photo := _photo(sample.reference)):
            photos[name] = photo
    return photos


def _scored(run: RunFolder) -> dict[Key, str]:
    """Return the photos that a run's scores name."""
    rows = () if run.scores is None else run.scores.triples
    return {_name(triple.key): triple.photo for triple in rows if triple.photo}


def _photo(file: Path | None) -> str | None:
    """Return what `media.digest` calls a photo; None where there is none that can be read."""
    return None if file is None else _read(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read(file: Path, changed: int) -> str | None:
    """Read a photo once, however many runs it is set against; changed: when, so that it is new."""
    try:
        return media.digest(media.read_image(file))
    except (OSError, ValueError):
        return None


def _name(key: tuple) -> Key:
    return tuple(repr(value) for value in key)
