"""What was scored, line by line as it came: a command that is started again goes on from it.

scores.jsonl has a line for each number: which video, by the digest of its file, photo and prompt;
which measure, by the digest of the model that gave it; and the number, or why there is none. The
last line of a video and a measure counts. A number is never asked for twice; what is missing is.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from evoid_jax import files

FILE = "scores.jsonl"


class Entry(NamedTuple):
    """One number of one video, or why there is none."""

    key: str
    of: str  # digest of the video with its photo and prompt
    name: str  # of the measure
    by: str  # digest of what measured
    raw: float | None  # in the measure's own unit
    score: float | None = None  # in [0, 1]
    reason: str | None = None
    more: dict[str, Any] | None = None  # what else is known, such as parts of the number


class Journal:
    """The lines of a system's file; safe to use from several threads.

    Raises:
      OSError: the file cannot be read or written.
      ValueError: a line that is none of ours; only the last one may be torn.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._lock = folder / FILE, threading.Lock()
        self._held: dict[tuple[str, str, str, str], Entry] = {}
        there = os.path.lexists(self._file)
        text = files.require_file(self._file).read_bytes() if there else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # the process ended while it wrote
            os.truncate(self._file, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._keep(_entry(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{self._file}, line {number}: {error}; remove it") from None

    def had(self, key: str, of: str, name: str, by: str) -> Entry | None:
        """Return the newest line of a video and a measure; None where there is none."""
        return self._held.get((key, of, name, by))

    def add(self, entries: Iterable[Entry]) -> None:
        """Write lines, which are on the disk when this returns."""
        entries = list(entries)
        lines = "".join(json.dumps(entry._asdict(), allow_nan=False) + "\n" for entry in entries)
        with self._lock, open(self._file, "a", encoding="utf-8") as out:
            out.write(lines)
            out.flush()
            os.fsync(out.fileno())
            for entry in entries:
                self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        self._held[(entry.key, entry.of, entry.name, entry.by)] = entry


def _entry(line: bytes) -> Entry:
    """Read one line; raise a ValueError or TypeError where its values are of other kinds."""
    entry = Entry(**json.loads(line))
    texts = all(isinstance(text, str) for text in entry[:4])
    numbers = all(type(x) in (int, float, type(None)) for x in (entry.raw, entry.score))
    if not (texts and numbers and isinstance(entry.more, dict | None)):
        raise ValueError("expected four texts and a number or null")
    return entry
