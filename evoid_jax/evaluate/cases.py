"""What is to be filmed: the benchmark's list of photos and prompts, and the videos of a system.

The list is OpenS2V-Eval's Human-Domain_Eval.json, or one of its form:

    {"singleface_1": {"img_paths": ["Images/.../1.png"], "prompt": "..."}, ...}

Of it the photos are paths below a folder; a system's videos are KEY.mp4 in one folder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files, media
from evoid_jax.data.folder import visible
from evoid_jax.models import umt5

KEY = re.compile(r"single(?:human|face)_\w+")  # the keys that are people's, and good file names
DATA_SET = "BestWishYsh/OpenS2V-Eval"  # on the Hugging Face hub, with the photos
WHOLE = "c9f0760de9fe10c4"  # what the benchmark's own list asks for, by `asked`


class Case(NamedTuple):
    """One video that is asked for."""

    key: str
    prompt: str
    image: str  # as the list names it: whose video it is
    photo: Path


def read(
    data: str | Path, images: str | Path | None = None, with_photos: bool = True
) -> list[Case]:
    """Read the list, and try every photo.

    Args:
      data: the JSON file.
      images: the folder that photos are named below; None: the file's own.
      with_photos: False where nobody looks at them, so that they may be missing.

    Raises:
      OSError, ValueError: a file is missing or of another form; the message names the key.
    """
    file = files.user_path(data)
    listed = files.read_json(file, hint="--data names OpenS2V-Eval's list of photos and prompts")
    folder = file.parent if images is None else files.user_path(images)
    if with_photos and not folder.is_dir():
        raise FileNotFoundError(f"--images: there is no folder {folder.absolute()}")
    if not listed:
        raise ValueError(f"{file} names no video")
    cases = [_case(f"{file}, {key}", key, entry, folder) for key, entry in listed.items()]
    for case in cases if with_photos else ():
        _check_photo(f"{file}, {case.key}", case)
    return cases


def asked(listed: list[Case]) -> str:
    """Return a digest of what some cases ask for: their keys, prompts and photos' names."""
    lines = sorted(f"{case.key}\t{case.image}\t{case.prompt}" for case in listed)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def made_of(case: Case) -> str:
    """Return a digest of what a case's video is made of, and measured by: prompt, photo's bytes.

    Names of photos tell no two folders apart: this does.

    Raises:
      OSError: the photo cannot be read.
    """
    parts = case.photo.read_bytes(), case.prompt.encode()
    each = "".join(hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256(each.encode()).hexdigest()[:16]


def _case(where: str, key: str, entry: object, folder: Path) -> Case:
    if not KEY.fullmatch(key):
        raise ValueError(
            f"{where}: expected keys such as singleface_1 and singlehuman_1, of the Human-Domain; "
            "the other domains are graded by NexusScore too, which is not here"
        )
    paths = entry.get("img_paths") if isinstance(entry, dict) else None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not (isinstance(paths, list) and len(paths) == 1 and isinstance(paths[0], str)):
        raise ValueError(f'{where}: expected "img_paths" with one path, got {paths!r:.80}')
    if not (isinstance(prompt, str) and visible(prompt)):
        raise ValueError(f'{where}: expected a text as "prompt", got {prompt!r:.80}')
    try:
        umt5.check_text(prompt)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Case(key, prompt, paths[0], folder / paths[0])


def _check_photo(where: str, case: Case) -> None:
    try:
        media.check_image(case.photo)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{where}: {error}; --images is the folder that {case.image} is named below (the "
            f"benchmark's photos: data set {DATA_SET} on the hub)"
        ) from None


def check_videos(folder: Path, listed: list[Case]) -> None:
    """Raise a FileNotFoundError where a system's folder has no video of the list.

    Names those that are called nearly as they should be.
    """
    if any(video(folder, case).is_file() for case in listed):
        return
    keys = {case.key.casefold() for case in listed}
    near = sorted(file.name for file in folder.iterdir() if file.stem.casefold() in keys)
    first = video(folder, listed[0]).name
    called = f"; {near[0]} must be called as its key in the list, with .mp4" if near else ""
    raise FileNotFoundError(f"--videos: {folder} has no video of the list, such as {first}{called}")


def video(folder: Path, case: Case) -> Path:
    """Return where a system's video of a case lies, if it is there."""
    return folder / f"{case.key}.mp4"
