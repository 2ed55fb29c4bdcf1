"""Say where a page takes its videos and photos from: out of itself, or out of files beside it.

Inside of the page (data URIs) they travel with it, which suits small ones; beside it the page stays
light, and a browser reads a video when it is played.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import av

from evoid_jax import decoding
from evoid_jax.report import text as fmt

INSIDE = 12_000_000  # bytes of videos and photos that a page takes in; mail servers take 25 MB
MODES = ("auto", "inside", "beside")
TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}
MEDIA = "media"  # the folder of copies and still pictures beside a page
NAMED = re.compile(r"[0-9a-f]{16}\.(mp4|png|jpg)")  # what lies there
POSTER = 480  # pixels of a still picture's longer side
SMALL = 192  # pixels; a video up to this width is enlarged without blur


class Source(NamedTuple):
    """Where a page takes its media from. Both functions return what stands in src=""."""

    file: Callable[[Path], str]  # of a video or photo that is there
    still: Callable[[bytes], str]  # of a JPEG that the report makes
    names: set[str]  # what the page has in `media/`, as far as it was asked for


class Clip(NamedTuple):
    """What a page must know of a video before it is played."""

    width: int
    height: int
    poster: bytes  # its first frame, a JPEG


def _data(content: bytes, suffix: str) -> str:
    """Return a file's content as a data URI."""
    return f"data:{TYPES[suffix]};base64,{base64.b64encode(content).decode()}"


inside = Source(
    file=lambda file: _data(file.read_bytes(), file.suffix),
    still=lambda content: _data(content, ".jpg"),
    names=set(),
)


def beside(page: Path) -> Source:
    """Return a source that names files where they are, relative to the page's folder.

    Still pictures, which are nowhere yet, are written to `media/` there.
    """
    where = lambda file: urllib.parse.quote(
        os.fsencode(Path(os.path.relpath(file, page)).as_posix())
    )
    return copied(page)._replace(file=where)


def copied(page: Path) -> Source:
    """Return a source that copies files to `media/` in the page's folder.

    They are named by their content, so that equal ones lie there once and no name tells what a
    video is.
    """
    names: set[str] = set()

    def put(content: bytes, suffix: str) -> str:
        name = f"{_digest(content)}{suffix}"
        copy = page / MEDIA / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            part = copy.with_suffix(".part")
            part.write_bytes(content)
            part.replace(copy)
        names.add(name)
        return f"{MEDIA}/{name}"

    return Source(
        file=lambda file: put(file.read_bytes(), file.suffix),
        still=lambda content: put(content, ".jpg"),
        names=names,
    )


def tidy(page: Path, names: Collection[str]) -> None:
    """Remove from `media/` what earlier pages put there, all but `names`.

    What is not named by its own content is not of a page and stays.
    """
    folder = page / MEDIA
    old = [file for file in folder.glob("*") if NAMED.fullmatch(file.name)]
    for file in old:
        if file.name not in names and file.is_file() and file.stem == fingerprint(file):
            file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def choose(mode: str, media: Iterable[Path | None], outside: Source) -> Source:
    """Return `inside` or `outside`, by a mode of MODES or, in "auto", by the files' whole size."""
    size = sum(file.stat().st_size for file in {*media} if file is not None)
    return inside if mode == "inside" or (mode == "auto" and size <= INSIDE) else outside


def policy(source: Source) -> str:
    """Return the origins of videos and photos that a page's Content-Security-Policy must allow."""
    return "data:" if source is inside else "data: 'self' file:"


def fingerprint(file: Path) -> str:
    """Return a short name for a file's content."""
    return _digest(file.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def video(file: Path | None, source: Source, label: str) -> str:
    """Return a silent video that does not start by itself, or a box that says there is none.

    label: plain text for those who do not see it.
    """
    if file is None:
        return "<div class='hole'>no video</div>"
    clip = look(file)
    if clip is None:
        return "<div class='hole'>a video that cannot be decoded</div>"
    small = " class='tiny'" if clip.width <= SMALL else ""
    poster = source.still(clip.poster)
    # Nothing is read or decoded before it is played: the poster stands there till then.
    return (
        f"<video{small} preload='none' poster='{poster}' loop muted playsinline controls "
        f"width='{clip.width}' height='{clip.height}' aria-label='{fmt.escape(label)}' "
        f"src='{source.file(file)}'></video>"
    )


def photo(file: Path | None, source: Source, label: str) -> str:
    """Return a photo, or a box that says there is none."""
    if file is None:
        return "<div class='hole'>no photo</div>"
    lazy = "" if source is inside else "loading='lazy' "
    return f"<img {lazy}src='{source.file(file)}' alt='{fmt.escape(label)}'>"


def look(file: Path) -> Clip | None:
    """Return a video's size and first frame; None where it cannot be decoded.

    A playlist is no video: what other files it names are not looked at.
    """
    options = {"format_whitelist": decoding.CONTAINERS}
    try:
        with open(file, "rb") as opened, av.open(opened, options=options) as container:
            frame = next(container.decode(video=0))
            picture = frame.to_image()
    except (av.error.FFmpegError, OSError, StopIteration, IndexError):
        return None
    width, height = picture.size
    picture.thumbnail((POSTER, POSTER))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=70)
    return Clip(width, height, content.getvalue())
