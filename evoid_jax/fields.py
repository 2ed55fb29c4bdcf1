"""What a setting may be: type, bounds and words stand in its field, and one check reads them.

Settings are frozen dataclasses whose fields `setting` makes. `build` makes them from nested dicts,
as configs and JSON hold them, and refuses what cannot be with the dotted name of the setting, what
was expected and what came; `plain` is its inverse. A table is a tuple of dataclasses that each have
a `name`; outside it is a mapping from names.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, field
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np

PACKAGE = Path(__file__).parent
OWN = "evoid_jax/assets/"  # paths that begin so are files of the package, wherever it lies
TEXTS = tuple[str, ...]
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    TEXTS: "a list of texts",
}
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # no path, file or request can hold these
FLOAT32 = float(np.finfo(np.float32).max)


class Bounds(NamedTuple):
    """What values a setting may have. Numbers have two ends, and are finite in float32 besides."""

    least: float | None = None  # this or more
    above: float | None = None  # more than this
    most: float | None = None  # this or less
    below: float | None = None  # less than this
    multiple: int = 1  # whole numbers: a multiple of this
    plus: int = 0  # ... and so much more: 4 k + 1
    also: int | None = None  # one value out of bounds that has a meaning of its own
    choices: tuple[str, ...] = ()  # of a text, or of each text in a list
    pattern: str = ""  # the same, as a regular expression
    form: str = ""  # what the pattern means
    path: bool = False  # a path, see `locate`


ANY = Bounds()
SHARE = Bounds(least=0, most=1)
DECAY = Bounds(least=0, below=1)
# Numbers end where nothing that works lies beyond: a million of anything is a slip of the finger,
# and so is a billionth, by whose square little can be divided in float32.
COUNT = Bounds(least=1, most=1_000_000)
POSITIVE = Bounds(above=1e-9, most=1e6)
NOT_NEGATIVE = Bounds(least=0, most=1e6)


def setting(default: Any, words: str, bounds: Bounds = ANY, *, free: bool = False) -> Any:
    """Return a dataclass field that carries all that is to be known of a setting.

    Args:
      default: MISSING where there is none.
      words: one sentence for whoever sets it: unit, meaning, source. `--help` shows it.
      bounds: see `Bounds`.
      free: a run that is resumed may change it.
    """
    notes = {"words": words, "bounds": bounds, "free": free}
    return field(default=default, metadata=notes)


def one_of(*choices: str) -> Bounds:
    """Return the bounds of a text that is one of `choices`, or of a list of some of them."""
    return Bounds(choices=choices)


# --- names


class Leaf(NamedTuple):
    """A setting as it stands in its dataclass."""

    kind: Any  # its type
    entry: Field


@cache
def types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass, by name."""
    return get_type_hints(kind)


@cache
def leaves(kind: type, path: str) -> dict[str, Leaf]:
    """Return every setting by its dotted name; a table is one setting."""
    hints, named = types(kind), {}
    for entry in dataclasses.fields(kind):
        name = f"{path}.{entry.name}"
        if dataclasses.is_dataclass(hints[entry.name]):
            named |= leaves(hints[entry.name], name)
        else:
            named[name] = Leaf(hints[entry.name], entry)
    return named


def value(settings: Any, name: str) -> Any:
    """Return a setting by its dotted name, `config.part.key`."""
    for part in name.split(".")[1:]:
        settings = getattr(settings, part)
    return settings


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the dotted name that `name` most likely means: the same last word, or the likest."""
    known = list(known)
    word = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == word]
    return max(same or known, key=lambda other: SequenceMatcher(None, other, name).ratio())


def unknown(name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a setting that does not exist."""
    return ValueError(f"{name} does not exist; did you mean {nearest(name, known)}?")


# --- paths


def locate(path: str) -> str:
    """Return a path as this machine has it: ~ is the home, OWN the package's folder."""
    if path.startswith(OWN):
        return str(PACKAGE.parent / path)
    return os.path.expanduser(path)


def portable(path: str) -> str:
    """Return a path as another machine may understand it; `locate` is the inverse."""
    home = os.path.expanduser("~")
    if path.startswith(f"{PACKAGE.parent / OWN}/"):
        return path.removeprefix(f"{PACKAGE.parent}/")
    if home.strip("/") and path.startswith(f"{home}/"):
        return "~" + path.removeprefix(home)
    return path


# --- reading and writing


def build(kind: type, values: Any, path: str) -> Any:
    """Make a dataclass of settings from nested dicts; what they leave out is the default.

    A table is given whole or not at all.

    Raises:
      ValueError: an unknown or missing key, a wrong type, or a value out of bounds.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{path} is a group of settings, got {shown(values)}; set one of its members"
        )
    hints, made = types(kind), {}
    for entry in dataclasses.fields(kind):
        name, hint = f"{path}.{entry.name}", hints[entry.name]
        value = values.get(entry.name, entry.default)
        if value is MISSING:
            raise ValueError(f"{name} is missing; give {expected(hint, _bounds(entry))}")
        if dataclasses.is_dataclass(hint):
            made[entry.name] = build(hint, values.get(entry.name, {}), name)
        elif row_of(hint):
            made[entry.name] = _table(hint, entry.default, value, name)
        else:
            made[entry.name] = checked(hint, entry, value, name)
    return kind(**made)


def refuse_unknown(kind: type, values: Any, path: str, known: Iterable[str]) -> None:
    """Raise a ValueError for the first key of nested dicts that no setting has."""
    if not isinstance(values, Mapping):
        return  # `build` says what it should be
    hints = types(kind)
    for key, value in values.items():
        name = f"{path}.{key}"
        if key not in hints:
            raise unknown(name, known)
        row = row_of(hints[key])
        if dataclasses.is_dataclass(hints[key]):
            refuse_unknown(hints[key], value, name, known)
        elif row and isinstance(value, Mapping):
            for line, entries in value.items():
                at = f"{name}.{line}"
                refuse_unknown(row, entries, at, [f"{at}.{column}" for column in columns(row)])


def plain(group: Any) -> dict[str, Any]:
    """Return a dataclass of settings as nested dicts that `build` reads; paths are `portable`."""
    made = {}
    for entry in dataclasses.fields(group):
        held = getattr(group, entry.name)
        if isinstance(held, tuple) and held and dataclasses.is_dataclass(held[0]):
            made[entry.name] = {row.name: _row(row) for row in held}
        elif dataclasses.is_dataclass(held):
            made[entry.name] = plain(held)
        else:
            made[entry.name] = portable(held) if _bounds(entry).path else held
    return made


def row_of(hint: Any) -> type | None:
    """Return the dataclass that a table's type holds, None for any other type."""
    first = (*get_args(hint), None)[0]
    return first if dataclasses.is_dataclass(first) else None


def columns(row: type) -> list[str]:
    """Return the names of a table's columns, without the rows' own name."""
    return [entry.name for entry in dataclasses.fields(row) if entry.name != "name"]


def _row(row: Any) -> dict:
    return {name: held for name, held in plain(row).items() if name != "name"}


def _table(hint: Any, default: tuple, values: Any, path: str) -> tuple:
    """Make a table: rows of the default in its order, then others by name.

    ConfigDict sorts its keys, JSON keeps them; rows must stand alike whoever brought them.
    """
    if values is default:
        return default
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a mapping from names, got {shown(values)}")
    row, first = row_of(hint), [known.name for known in default]
    order = lambda name: (first.index(name), "") if name in first else (len(first), str(name))
    made = []
    for name in sorted(values, key=order):
        entries = values[name]
        if not isinstance(entries, Mapping):
            wanted = ", ".join(columns(row))
            raise ValueError(f"{path}.{name} must give {wanted}, got {shown(entries)}")
        made.append(build(row, {**entries, "name": name}, f"{path}.{name}"))
    return tuple(made)


# --- the check


def checked(kind: Any, entry: Field, value: Any, name: str) -> Any:
    """Return a setting's value in its type; raise a ValueError where it cannot be."""
    typed = _typed(kind, value)
    if typed is None:
        came = f"{shown(value)} ({type(value).__name__})"
        raise ValueError(f"{name} must be {KINDS[kind]}, got {came}")
    if isinstance(typed, float) and not math.isfinite(typed):
        raise ValueError(f"{name} must be finite, also in float32, got {shown(value)}")
    texts = typed if isinstance(typed, tuple) else (typed,)
    if any(isinstance(text, str) and NO_TEXT.search(text) for text in texts):
        raise ValueError(f"{name} must be text without NUL and half characters, got {value!a}")
    bounds = _bounds(entry)
    if not _fits(typed, bounds):
        raise ValueError(f"{name} must be {_range(kind, bounds)}, got {shown(value)}")
    return locate(typed) if bounds.path else typed


def shown(value: Any) -> str:
    """Return a value as a message may show it, be it too long or too deep to be written out."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no whole number of 4300 digits
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def expected(kind: Any, bounds: Bounds) -> str:
    """Say what a setting of this type and bounds may be."""
    if bounds == ANY:
        return KINDS[kind]
    if bounds.choices or bounds.pattern:
        return _range(kind, bounds)
    return f"{KINDS[kind]}, {_range(kind, bounds)}"


def _bounds(entry: Field) -> Bounds:
    return entry.metadata["bounds"]


def _typed(kind: Any, value: Any) -> Any:
    """Return the value in its type, or None. 1 may stand for 1.0, but not for True."""
    if kind == TEXTS and isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(text, str) for text in value) else None
    if kind is float and type(value) in (int, float):
        return float(value) if abs(value) <= FLOAT32 else math.inf  # NaN too: not finite
    return value if type(value) is kind else None


def _fits(value: Any, bounds: Bounds) -> bool:
    if isinstance(value, tuple):
        # All lists of ours name things, of which one at least and none twice makes sense.
        return 0 < len(value) == len(set(value)) and all(_fits(text, bounds) for text in value)
    if isinstance(value, str):
        matches = not bounds.pattern or re.fullmatch(bounds.pattern, value, re.DOTALL)
        return bool(matches) and (not bounds.choices or value in bounds.choices)
    if isinstance(value, bool) or value == bounds.also:
        return True
    if isinstance(value, int):
        return _inside(value, bounds) and value % bounds.multiple == bounds.plus
    # The run computes in float32, where 1e-50 is no longer above 0, nor 1 - 1e-9 below 1.
    return _inside(value, bounds) and _inside(float(np.float32(value)), bounds)


def _inside(value: float, bounds: Bounds) -> bool:
    return (
        (bounds.least is None or value >= bounds.least)
        and (bounds.above is None or value > bounds.above)
        and (bounds.most is None or value <= bounds.most)
        and (bounds.below is None or value < bounds.below)
    )


def _range(kind: Any, bounds: Bounds) -> str:
    """Say what the bounds allow, after `must be`."""
    listed = kind == TEXTS
    if bounds.choices:
        names = ", ".join(choice or repr(choice) for choice in bounds.choices)
        return f"some of {names}, each once" if listed else f"one of {names}"
    if bounds.pattern:
        return f"a list of one or more, each once: {bounds.form}" if listed else bounds.form
    if listed:
        return "a list of one or more texts, each once"
    words = []
    if bounds.multiple > 1:
        more = f"{bounds.multiple} k + {bounds.plus}"
        words.append(more if bounds.plus else f"a multiple of {bounds.multiple}")
    if bounds.least is not None and bounds.most is not None:
        words.append(f"from {bounds.least:g} to {bounds.most:.10g}")
    else:
        limits = {"at least": bounds.least, "above": bounds.above, "at most": bounds.most}
        limits |= {"below": bounds.below}
        words += [f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None]
    text = " and ".join(words)
    return text if bounds.also is None else f"{bounds.also} or {text}"
