"""Files as people have them: what one really is, JSON read with every fault named, outputs tried.

Nothing here knows of models or settings, so everything else may use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SEAL = "digest"  # the key of what `sealed` adds

# What a file starts with, what it is then, and what to do about it.
LFS = b"version https://git-lfs"
TORCH = ("a zip archive, as PyTorch's .pt, .pth and .ckpt are",)
TORCH += ("a Python pickle, as PyTorch's .bin and .ckpt once were",)
BOM = "text with a byte order mark; save it as UTF-8 without one (no BOM)"
SAFETENSORS = "a single safetensors file"
KINDS = (
    (LFS, "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"),
    (b"GGUF", "a GGUF file; quantised weights are not supported, take the safetensors files"),
    (b"PK\x03\x04", TORCH[0]),
    (b"\x80\x02", TORCH[1]),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"<!DOCTYPE", "a web page; the download gave an error page, download it again"),
    (b"<!doctype", "a web page; the download gave an error page, download it again"),
    (b"<html", "a web page; the download gave an error page, download it again"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
    (b"\xef\xbb\xbf", BOM),
)
NAMES = {dict: "an object {...}", list: "a list [...]", str: "a string", bool: "true or false"}
NAMES |= {int: "a number", float: "a number", type(None): "null"}
LARGEST_JSON = 2**28  # bytes: read, it takes some ten times as much memory
DEEPEST = 100  # objects and lists inside of each other: far from where Python gives up


def user_path(path: str | Path) -> Path:
    """Return a path that a user wrote, with `~` and `~name` replaced by the home folder.

    Raises ValueError where there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; write the path in full") from None


def hidden(file: Path) -> bool:
    """Tell whether a file is of the operating system: .DS_Store, macOS's ._ copies, Thumbs.db."""
    return file.name.startswith(".") or file.name.lower() in ("thumbs.db", "desktop.ini")


def kind_of(file: Path) -> str:
    """Say what a file is and what to do, from its first bytes; "" where nothing is known."""
    with open(file, "rb") as f:
        start = f.read(64)
    if not start:
        return "an empty file; its download or copy was cut off"
    # First: the length of its header, in front, may look like the start of any of the others.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 10**8:
        return SAFETENSORS
    return next((kind for magic, kind in KINDS if start.startswith(magic)), "")


def require_file(file: str | Path, hint: str = "") -> Path:
    """Return the path if a file is there; hint: what was expected, or what to do.

    Raises:
      FileNotFoundError: nothing is there, or a link whose target is gone.
      IsADirectoryError, OSError: a folder is there, or a pipe or a device.
    """
    file, more = Path(file), f"; {hint}" if hint else ""
    if file.is_file():
        return file
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; expected a file{more}")
    if file.exists():  # a pipe, a socket, a device
        raise OSError(f"{file} is not a regular file; expected a file{more}")
    if file.is_symlink():
        raise FileNotFoundError(
            f"{file} is a link to {os.readlink(file)}, which is not there; download the rest{more}"
        )
    raise FileNotFoundError(f"{file} is missing{more}")


def read_json(file: str | Path, kind: type = dict, hint: str = "", halves: bool = False):
    """Read a JSON file.

    Args:
      kind: what the whole must be, such as dict or list.
      hint: what to do where the file is missing, or what was expected.
      halves: let halves of characters stand, as Python writes names of files that are no text.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: it cannot be opened.
      ValueError: not JSON, a key twice, or of another kind; names file and line.
    """
    file = require_file(file, hint)
    if what := kind_of(file):
        raise ValueError(f"{file} is {what}; expected JSON")
    if (size := file.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{file} has {size:,} bytes; expected JSON of at most {LARGEST_JSON:,}")
    return parse_json(file.read_bytes(), str(file), kind, halves)


def parse_json(content: bytes, name: str, kind: type = dict, halves: bool = False):
    """Return what JSON text holds.

    name: of the text, for messages. kind, halves, errors: as of `read_json`.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{name} is not JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise ValueError(f"{name} is not JSON that can be read: it nests too deep") from None
    except _Twice as error:
        raise ValueError(f"{name} has the key {error} twice; remove one") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{name} is not JSON that can be read: {error}") from None
    if nests_deeper(value, DEEPEST):
        raise ValueError(f"{name} is not JSON that can be read: it nests too deep")
    if not halves and b"\\ud" in content.lower() and (half := half_character(value)):
        raise ValueError(f"{name} has half a character, {half}; write the whole one, in UTF-8")
    if not isinstance(value, kind):
        raise ValueError(f"{name} holds {NAMES[type(value)]}; expected {NAMES[kind]}")
    return value


def sealed(value: dict) -> dict:
    """Return an object of JSON with a digest of itself, by which `unsealed` knows it again."""
    return value | {SEAL: digest(value)}


def unsealed(file: Path, value: dict) -> dict:
    """Return what `sealed` was given.

    Raises:
      ValueError: it is not what was written; names the file.
    """
    held = {key: inner for key, inner in value.items() if key != SEAL}
    if value.get(SEAL) != digest(held):
        raise ValueError(f"{file} is not as it was written: its digest is another")
    return held


def digest(value: dict | list) -> str:
    """Return the SHA-256 of JSON, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sketch(file: Path, pieces: int = 256, size: int = 2**16) -> str:
    """Return the SHA-256 of a file's length and of some of its bytes, spread evenly over it.

    Of a large file a small part is read, so that it tells two models apart and not two bytes. One
    of at most pieces * size bytes is read as a whole.
    """
    length = file.stat().st_size
    found = hashlib.sha256(f"{length}\n".encode())
    with open(file, "rb") as stream:
        if length <= pieces * size:
            found.update(stream.read())
            return found.hexdigest()
        for k in range(pieces):
            stream.seek(k * (length - size) // (pieces - 1))
            found.update(stream.read(size))
    return found.hexdigest()


def half_character(value) -> str:
    """Return the first half of a character in JSON, as it is escaped there, or ""."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return ""


def nests_deeper(value, most: int) -> bool:
    """Tell whether JSON has objects and lists inside of each other more than `most` times."""
    level = [value]
    for _ in range(most):
        level = [
            one for inside in level if isinstance(inside, dict | list) for one in _inside(inside)
        ]
    return any(isinstance(inside, dict | list) for inside in level)


def _inside(held: dict | list) -> Iterable:
    return held.values() if isinstance(held, dict) else held


class _Twice(Exception):
    """A key that an object holds two times; json itself would take the last in silence."""


def _once(pairs: list[tuple[str, object]]) -> dict:
    held = dict(pairs)
    if len(held) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(repr(next(key for key in keys if keys.count(key) > 1)))
    return held


def check_writable(path: str | Path) -> Path:
    """Raise unless a file could be written at `path` now; leaves everything as it was.

    Tries the real thing, a file beside it: permissions alone say nothing of read-only disks, quotas
    or names that are too long. Folders that are absent are tried under a name of this call's own:
    another process may make, or try, the same ones at this moment.

    Returns the path with `~` replaced.

    Raises:
      OSError, ValueError: it could not; says why and names the path.
    """
    path = user_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; expected the name of a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be overwritten: it is read-only")
    target = Path(os.path.realpath(path))
    nearest = next(folder for folder in target.parents if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {nearest} is a file, not a folder")
    try:
        if target.parent == nearest:
            _try(target)
        else:
            with tempfile.TemporaryDirectory(prefix=".try.", dir=nearest) as trial:
                _try(Path(trial) / target.relative_to(nearest))
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from None
    return path


def _try(target: Path) -> None:
    """Make what `replacing` makes before a file takes its place, and remove it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    part.touch()
    part.unlink()


def _part(target: Path) -> Path:
    """Return where a file is written before it takes its place: beside it, of this call alone.

    The process's number would not do: hosts and containers that share a disk have the same ones.
    """
    return target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a place to write, which becomes `path` at the end and vanishes on any error.

    A link stays a link: the file that it names is replaced.
    """
    target = Path(os.path.realpath(user_path(path)))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
