"""One call from photos to pairs: look, refuse, tell who is who, cut out, find prompts, write."""

from __future__ import annotations

import difflib
import unicodedata
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files
from evoid_jax.prepare import people, photos, prompts, proposals, refuse, sheet, write
from evoid_jax.prepare.finder import Finder
from evoid_jax.prepare.people import Person
from evoid_jax.prepare.photos import Photo
from evoid_jax.prepare.refuse import Refused


class Options(NamedTuple):
    """What the command line asks for, checked."""

    photos: Path
    out: Path
    pool: list[str]  # of prompts
    given: dict[str, str]  # names of people by photo, those of --people
    per_face: int = 5  # prompts of each photo
    judge: proposals.Asked | None = None
    folders: bool = False  # a folder below `photos` is one person, of its name
    canvas: tuple[int, int] = (480, 832)  # (height, width) of the videos
    crop: float = 2.6  # what is cut out, over the face's longer side; 0: the whole photo
    limits: refuse.Limits = refuse.Limits()
    alike: float = people.ALIKE
    validation: float = 0.1  # shares of the people
    heldout: float = 0.2


class Result(NamedTuple):
    """What a call has made."""

    people: list[Person]
    refused: list[Refused]
    looked: int  # photos that were looked at now
    lines: int  # of prompts.jsonl
    filled: int  # prompts that the judge owed and the pool gave
    sheet: Path
    moved: list[str]  # who is in another split than an earlier call had put them into


def run(options: Options, finder: Finder) -> Result:
    """Make a folder of pairs.

    Raises:
      ValueError, OSError: photos, names or the folder cannot be used, or nothing of them; the
        message says what to do.
    """
    out, cache = options.out, options.out / write.CACHE
    shares = {"validation": options.validation, "heldout": options.heldout}
    known = write.known(out, shares)
    seen, looked = photos.look_at_all(options.photos, cache, finder)
    used, refused = refuse.sift(seen, options.limits)
    given = names_given([photo.name for photo in seen], options.given, options.folders)
    found = people.gather(used, given, known, shares, options.alike)
    cuts = {
        photo.name: write.planned(photo, options.canvas, options.crop)
        for person in found
        for photo in person.photos
    }
    page = sheet.write_sheet(out, found, refused, cuts, options.alike)
    if not used:
        raise ValueError(f"none of {len(seen)} photos can be used, {counts(refused)}; see {page}")
    path_of = write.pictures(options.photos, out, found, cuts)
    prompts_of, filled = prompts_for(options, found, path_of)
    text = write.text_of(found, path_of, prompts_of)
    write.save(out, text, found, refused, shares)
    photos.forget_others(cache, finder.name, seen)
    moved = [
        f"{person.name} from {known.were[person.name]} to {person.split}"
        for person in found
        if known.were.get(person.name, person.split) != person.split
    ]
    return Result(found, refused, looked, text.count("\n"), filled, page, moved)


def prompts_for(
    options: Options, found: list[Person], path_of: dict[str, str]
) -> tuple[dict[str, list[str]], int]:
    """Return the prompts by photo, and how many a judge left to the pool."""
    used = [photo for person in found for photo in person.photos]
    if options.judge is None:
        pool, count = options.pool, options.per_face
        return {p.name: prompts.choose(pool, p.look.digest, count) for p in used}, 0
    return proposals.of_pictures(
        {photo.name: options.out / path_of[photo.name] for photo in used},
        options.out / write.CACHE,
        options.judge,
        options.pool,
        options.per_face,
    )


def names_given(listed: list[str], given: dict[str, str], folders: bool) -> dict[str, str]:
    """Return the person's name by photo, where the user has given one.

    Args:
      listed: all photos, below the folder of photos.
      given: by photo; wins over a folder's name.
      folders: whether the first folder of a photo's path is a person's name.

    Raises:
      ValueError: a photo that is not there, a folder's name that is none, or one name in two
        spellings.
    """
    # macOS writes an accent as a character of its own, editors write one with its letter.
    there = {unicodedata.normalize("NFC", name): name for name in listed}
    named = {}
    if folders:
        inside = [name for name in listed if "/" in name]
        named = {name: people.cleaned(name.split("/")[0], "--folders") for name in inside}
    for photo, name in given.items():
        photo = unicodedata.normalize("NFC", photo)
        if photo not in there:
            near = difflib.get_close_matches(photo, there, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; remove it"
            raise ValueError(f"--people names {photo!r}, which is no photo there{hint}")
        named[there[photo]] = name
    spelled: dict[str, str] = {}
    for name in named.values():
        first = spelled.setdefault(" ".join(name.casefold().split()), name)
        if first != name:
            raise ValueError(f"two names are one but for their spelling: {first!r}, {name!r}")
    return named


def read_people(path: str) -> dict[str, str]:
    """Read the file of --people: a JSON object of a name for each photo's path.

    Raises:
      OSError, ValueError: no such file, no such object, or a name that is none.
    """
    hint = 'expected JSON such as {"a/1.jpg": "anna", "2.jpg": "anna"}'
    held = files.read_json(files.user_path(path), dict, hint)
    return {photo: people.cleaned(name, f"{path}, {photo}") for photo, name in held.items()}


def counts(refused: list[Refused]) -> str:
    """Say how many photos were refused, kind by kind."""
    many = {kind: sum(one.kind == kind for one in refused) for kind in refuse.KINDS}
    return ", ".join(f"{count} {kind}" for kind, count in many.items() if count)


def photos_in(found: list[Person]) -> list[Photo]:
    """Return the photos of all these people."""
    return [photo for person in found for photo in person.photos]
