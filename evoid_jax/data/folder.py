"""A user's folder of pairs: prompts.jsonl and pictures, checked from end to end when it is opened.

Every line is an object: {"image": "anna.png", "prompt": "A person waves a hand."}. `image` may be a
list of pictures of one person, each relative to the folder or absolute. Two keys are optional:
"identity", a name for the person, and "split", "evolution", "validation" or "heldout".
"""

from __future__ import annotations

import difflib
import html
import json
import os
import unicodedata
from pathlib import Path

from evoid_jax import files, media
from evoid_jax.data.rows import SPLITS, Picture, Row, identified

FILE = "prompts.jsonl"
EXAMPLE = '{"image": "anna.png", "prompt": "A person waves a hand."}'
KEYS = ("image", "prompt", "identity", "split")
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols, for Unicode, that show nothing


def read(folder: Path) -> list[Row]:
    """Read and check prompts.jsonl and every picture that it names; blank lines are skipped.

    Raises:
      ValueError: anything in it cannot be used; the message names file, line and remedy.
    """
    file, rows, pictures = folder / FILE, [], {}
    # Only "\n" ends a line: a prompt may hold U+2028, at which str.splitlines would cut.
    for number, line in enumerate(_text(folder).split("\n"), start=1):
        if line.strip():
            origin = f"{file}, line {number}"
            try:
                rows.append(_row(folder, line, origin, pictures))
            except (ValueError, OSError) as error:
                raise ValueError(f"{origin}: {error}") from None
    if not rows:
        raise ValueError(f"{file} is empty; write one line per pair, such as {EXAMPLE}")
    _compare(rows)
    return identified(rows)


def _text(folder: Path) -> str:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder with pictures and {FILE}")
    file = folder / FILE
    if os.path.lexists(file):  # a folder, a pipe, or a link to nothing is not missing
        files.require_file(file, f"write one line per pair, such as {EXAMPLE}")
        what = files.kind_of(file)
        if what and what != files.BOM:  # the mark is skipped
            raise ValueError(f"{file} is {what}; expected lines such as {EXAMPLE}")
    else:
        near = _near(file)
        hint = f" (there is {near})" if near else ""
        raise ValueError(
            f"{file} is missing{hint}; write one line per pair, such as {EXAMPLE}, or make a "
            f"folder of pairs: python -m evoid_jax.prepare --photos={folder} --out=FOLDER"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    return text


def _row(folder: Path, line: str, origin: str, pictures: dict[Path, Picture]) -> Row:
    """Check one line; `pictures` remembers those of earlier lines."""
    values = _parse(line)
    prompt = check_prompt(values["prompt"])
    names = values["image"] if isinstance(values["image"], list) else [values["image"]]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        shown = json.dumps(values["image"])
        raise ValueError(f'"image" must be a file name or a list of file names, not {shown}')
    identity, split = values.get("identity"), values.get("split")
    if "identity" in values and not (isinstance(identity, str) and visible(identity)):
        shown = json.dumps(identity)
        raise ValueError(f'"identity" must be a name in quotes, not {shown}; or leave it out')
    if "split" in values and split not in SPLITS:
        shown = json.dumps(split)
        known = ", ".join(json.dumps(name) for name in SPLITS)
        raise ValueError(f'"split" must be one of {known}, not {shown}')
    if identity:
        identity = unicodedata.normalize("NFC", _characters("identity", identity).strip())
    files = [_locate(folder, _characters("image", name)) for name in names]
    for name, file in zip(names, files, strict=True):
        if file not in pictures:
            pictures[file] = _picture(name, file)
    known = tuple(pictures[file] for file in files)
    return Row(prompt, origin, known, identity or "", split or "")


def _parse(line: str) -> dict:
    """Read one line as JSON; raise a ValueError unless it is an object of known keys."""
    try:
        values = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error}); write it like {EXAMPLE}") from None
    except RecursionError:
        raise ValueError(f"nested too deep; write it like {EXAMPLE}") from None
    if not isinstance(values, dict):
        raise ValueError(f'must be an object with "image" and "prompt", such as {EXAMPLE}')
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key.lower(), KEYS, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "remove it"
            known = ", ".join(KEYS)
            raise ValueError(f"has an unknown key {json.dumps(key)} (known: {known}); {hint}")
    if not {"image", "prompt"} <= values.keys():
        raise ValueError(f'must be an object with "image" and "prompt", such as {EXAMPLE}')
    return values


def _once(items: list[tuple]) -> dict:
    keys = [key for key, _ in items]
    for key in keys:
        if keys.count(key) > 1:  # JSON's readers silently keep the last one
            raise ValueError(f"has {json.dumps(key)} twice; keep one")
    return dict(items)


def _no_constant(name: str):
    raise ValueError(f"{name} is not valid JSON; write a text in quotes")


def check_prompt(prompt) -> str:
    """Return a prompt; raise a ValueError for what is no text, or has nothing to see."""
    if not isinstance(prompt, str):
        raise ValueError(f'"prompt" must be a string, not {json.dumps(prompt)}; put it in quotes')
    _characters("prompt", prompt)
    if not visible(prompt):
        raise ValueError('"prompt" is empty, or has no visible character; say what the video shows')
    return prompt


def visible(text: str) -> bool:
    """Whether anything is seen: a letter, number, sign or symbol, not zero-width spaces alone."""
    # The text encoder resolves entities, twice, and drops blanks: "&nbsp;" is nothing to it.
    shown = html.unescape(html.unescape(text))
    return any(unicodedata.category(c)[0] in "LNPS" and c not in BLANK for c in shown)


def _characters(key: str, text: str) -> str:
    """Return the text; raise a ValueError for what is no character, or controls a terminal."""
    for c in text:
        category = unicodedata.category(c)
        if category == "Cs":  # JSON may hold one half of a pair that only together is a character
            raise ValueError(
                f'"{key}" has half a character (\\u{ord(c):04x}), such as half an emoji; write the '
                "character itself"
            )
        if category == "Cc" and c not in "\t\n\r":
            raise ValueError(f'"{key}" has the control character U+{ord(c):04X}; remove it')
    return text


def _locate(folder: Path, name: str) -> Path:
    """Return the file of that name, composed (Linux, Windows) or not (macOS)."""
    names = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    file = next((folder / n for n in names if (folder / n).exists()), folder / name)
    if file.is_symlink() and not file.exists():
        raise ValueError(f"image {file} is a link to {os.readlink(file)}, which is not there")
    if not file.exists() and "\\" in name:
        raise ValueError(f'image {file} does not exist; write "/" between a folder and a file')
    if not file.exists() and (near := _near(file)):
        raise ValueError(f"image {file} does not exist; did you mean {near}?")
    return file


def _near(file: Path) -> str | None:
    """Return the name in the same folder that a mistyped one resembles most."""
    folder = file.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    same = [name for name in names if name.casefold() == file.name.casefold()]
    return next(iter(same + difflib.get_close_matches(file.name, names, n=1)), None)


def _picture(name: str, file: Path) -> Picture:
    height, width = media.check_image(file)
    return Picture(name, str(file), height, width, files.sha256(file))


def _compare(rows: list[Row]) -> None:
    """Raise a ValueError where two lines do not go together."""
    first, seen = rows[0], {}
    for row in rows:
        # Videos of one step are one array, and every reference picture is a frame of it.
        if len(row.pictures) != len(first.pictures):
            raise ValueError(
                f"{row.origin}: the number of pictures is {len(row.pictures)}, but "
                f"{len(first.pictures)} in {first.origin}; give every line as many"
            )
        pair = row.prompt, tuple(picture.digest for picture in row.pictures)
        if pair in seen:
            raise ValueError(f"{row.origin} repeats {seen[pair]}; remove one of them")
        seen[pair] = row.origin
