"""Who measured a row in earlier commands: what nobody measures today stays as they measured it.

    NAME/sources.json    everybody who was asked about the row, the latest last

So several commands fill a row, some scorers up in each, and one with fewer takes nothing from it.
A measure has one source for all videos of a row: numbers of two versions never meet in a mean.
Nor do those of two reward sets meet in a total, unless one command asked both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evoid_jax import files
from evoid_jax.evaluate import rows, scorers
from evoid_jax.evaluate.scorers import Source
from evoid_jax.metrics import plain, write_text

FILE = "sources.json"


def earlier(folder: Path, today: Mapping[str, Source]) -> dict[str, Source]:
    """Return who measured what nobody measures today, by measure.

    Of several it is the one whose numbers stand in the row; where none does, as its command was
    killed, the latest one.

    Args:
      folder: of the row.
      today: who is there now, by measure.

    Raises:
      OSError, ValueError: sources.json cannot be read; says what to do.
    """
    noted, standing = _noted(folder), list(_standing(folder).items())
    latest = [(name, source) for name, source in noted if source.preset][-1:]
    sets = _sets(today.items()) or _sets(standing) or _sets(latest)
    # Of one measure the last one counts.
    known = {name: one for name, one in (*noted, *standing) if one.preset in {"", *sets}}
    return {n: known[n] for n in scorers.MEASURES if n in known and n not in today}


def note(folder: Path, sources: Mapping[str, Source]) -> None:
    """Write down who is asked about a row, before anybody is: a kill loses no one's name."""
    folder.mkdir(parents=True, exist_ok=True)
    now = list(sources.items())
    held = {(name, source.digest) for name, source in now}
    others = [(n, source) for n, source in _noted(folder) if (n, source.digest) not in held]
    lines = [plain({"name": name} | source._asdict()) for name, source in (*others, *now)]
    write_text(folder / FILE, json.dumps(lines, indent=2) + "\n")


def _sets(sources: Iterable[tuple[str, Source]]) -> set[str]:
    """Return the reward sets that some sources are of; the judge is of none."""
    return {source.preset for _, source in sources} - {""}


def _noted(folder: Path) -> list[tuple[str, Source]]:
    """Return everybody who was asked, with the measure, the latest last."""
    file = folder / FILE
    held = files.read_json(file, kind=list) if os.path.lexists(file) else []
    try:
        return [(one["name"], _source(one["name"], one, False)) for one in held]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not as this program writes it ({error!r}); remove it"
        ) from None


def _standing(folder: Path) -> dict[str, Source]:
    """Return whose numbers stand in a row's total.json; nobody's where that is none of ours."""
    file = folder / rows.TOTAL
    try:
        total = files.read_json(file) if file.exists() else {"sources": {}}
        compares = total.get("comparable_with_the_leaderboard") is True
        return {name: _source(name, one, compares) for name, one in total["sources"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # this row is about to be written again


def _source(name: str, held: Mapping[str, Any], compares: bool) -> Source:
    """Read a source. compares: whether the numbers that it is beside do, with the leaderboard's.

    An earlier version did not write what keeps a source's numbers from it, nor how a judge is
    asked.
    """
    preset, model, about, digest = (held[part] for part in ("preset", "model", "about", "digest"))
    why = held.get("why")
    if why is None and preset:
        why = scorers.objections(name, preset, about)
    elif why is None and name == scorers.NATURALNESS and not compares:
        why = [f"naturalness: graded by {model}; in whose words it was asked is not known any more"]
    source = Source(preset, model, about, digest, tuple(why or ()))
    if not all(isinstance(text, str) for text in (name, *source[:4], *source.why)):
        raise TypeError(f"{name!r} has parts that are no texts")
    return source
