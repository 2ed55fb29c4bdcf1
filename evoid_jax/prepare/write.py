"""The folder that comes out: pictures, prompts.jsonl, prepared.json; and what an earlier call left.

prompts.jsonl is what training reads. prepared.json says who was found and what was refused; the
next call goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from evoid_jax import files, media
from evoid_jax.data import folder as data_folder
from evoid_jax.data import rows
from evoid_jax.prepare import crop
from evoid_jax.prepare.people import NOBODY, Known, Person
from evoid_jax.prepare.photos import Photo
from evoid_jax.prepare.refuse import Refused

PREPARED, PICTURES, CACHE, SHEET = "prepared.json", "pictures", "cache", "contact_sheet.html"
OURS = re.compile(r"face-[0-9a-f]{16}\.png")


def known(out: Path, shares: dict[str, float]) -> Known:
    """Return what an earlier call into this folder has fixed.

    shares: where they differ from the earlier ones, the splits are open again.

    Raises:
      ValueError: the folder holds a prompts.jsonl of another origin, or one changed by hand.
    """
    lines, prepared = out / data_folder.FILE, out / PREPARED
    if not prepared.exists():
        if lines.exists():
            raise ValueError(
                f"{lines} is not from this program, which would replace it; give another --out"
            )
        return NOBODY
    held = files.read_json(prepared, halves=True)
    if lines.exists() and hashlib.sha256(lines.read_bytes()).hexdigest() != held.get(
        "prompts_sha256"
    ):
        raise ValueError(
            f"{lines} was changed since it was written, and would be replaced; give another --out, "
            "or remove it to have it made anew"
        )
    try:
        people = held["people"]
        digests = {name: set(person["photos"].values()) for name, person in people.items()}
        splits = {name: person["split"] for name, person in people.items()}
        return Known(digests, splits if held["shares"] == shares else {}, splits)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{prepared} is not as this program writes it; remove it, and who is in which split is "
            "found anew"
        ) from None


def pictures(
    photos: Path, out: Path, people: list[Person], cuts: dict[str, crop.Cut]
) -> dict[str, str]:
    """Cut out every face that is not there yet, showing progress; remove what is not used.

    Args:
      photos: the folder that they are read from.
      cuts: what is cut out of a photo, by its name.

    Returns:
      The picture's path below `out`, by the name of the photo.
    """
    place = out / PICTURES
    place.mkdir(parents=True, exist_ok=True)
    shown = [photo for person in people for photo in person.photos]
    path_of = {photo.name: f"{PICTURES}/{_name(photo, cuts[photo.name])}" for photo in shown}
    absent = [name for name, path in path_of.items() if not (out / path).exists()]
    for name in tqdm(absent, "pictures", unit="picture", disable=not absent):
        image_HWC = crop.cut(media.read_image(photos / name), cuts[name])
        with files.replacing(out / path_of[name]) as part:
            Image.fromarray(image_HWC).save(part, "PNG")
    used = {Path(path).name for path in path_of.values()}
    for file in place.iterdir():
        if OURS.fullmatch(file.name) and file.name not in used:
            file.unlink()
    return path_of


def planned(photo: Photo, canvas: tuple[int, int], times: float) -> crop.Cut:
    """Return what is cut out of a photo."""
    look = photo.look
    return crop.plan(look.boxes[0], (look.height, look.width), canvas, times)


def _name(photo: Photo, cut: crop.Cut) -> str:
    """Return a file name that changes with the photo's bytes and with what is cut out of it."""
    return f"face-{hashlib.sha256(f'{photo.look.digest} {cut}'.encode()).hexdigest()[:16]}.png"


def text_of(people: list[Person], path_of: dict[str, str], prompts_of: dict[str, list[str]]) -> str:
    """Return the text of prompts.jsonl: a line for each picture and each of its prompts.

    Args:
      path_of: of the pictures, below the folder, by the name of the photo.
      prompts_of: by the name of the photo.
    """
    held = [
        {
            "image": path_of[photo.name],
            "prompt": prompt,
            "identity": person.name,
            "split": person.split,
        }
        for person in people
        for photo in person.photos
        for prompt in prompts_of[photo.name]
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held)


def save(
    out: Path, text: str, people: list[Person], refused: list[Refused], shares: dict[str, float]
) -> None:
    """Write prepared.json and prompts.jsonl, and read the latter as training does.

    Raises ValueError where training would not take it, such as a name that comes in two spellings.
    """
    held = {
        "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "shares": shares,
        "people": {
            person.name: {
                "split": person.split,
                "photos": {photo.name: photo.look.digest for photo in person.photos},
            }
            for person in people
        },
        "refused": {one.photo.name: f"{one.kind}: {one.why}" for one in refused},
    }
    # In this order a call that is cut off leaves no lines, never lines that seem to be changed.
    (out / data_folder.FILE).unlink(missing_ok=True)
    with files.replacing(out / PREPARED) as part:
        # A file's name need not be text: what is none becomes an escape, which JSON knows.
        text_held = json.dumps(held, indent=1, ensure_ascii=False) + "\n"
        part.write_text(text_held, encoding="utf-8", errors="backslashreplace")
    with files.replacing(out / data_folder.FILE) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    rows.split(data_folder.read(out), validation=0.0, heldout=0.0)
