"""What asking a judge took, counted, and its replies as they came, in a log of bounded size."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE = "judge_replies.jsonl"
LARGEST, OLDER = 16 * 2**20, 3  # bytes of the log, and how many full ones stay beside it
COUNTS = ("calls", "failures", "cached", "prompt_tokens", "answer_tokens", "seconds")
TOKENS = {"prompt_tokens": "prompt_tokens", "answer_tokens": "completion_tokens"}


class Usage:
    """Counts of what a judge was asked; safe to use from several threads.

    calls: requests that were sent, tries that failed included. failures: questions without a
    usable answer. cached: questions whose answer was kept from before. prompt_tokens,
    answer_tokens: as the server counts them, None where a reply did not tell. seconds: of all
    calls, which overlap.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: dict[str, float | None] = {}
        self.take()

    def take(self) -> dict[str, float | None]:
        """Return the counts by the names of COUNTS, and start again from zero."""
        with self._lock:
            counts, self._counts = self._counts, dict.fromkeys(COUNTS, 0) | {"seconds": 0.0}
        return counts

    def add(self, **counts: float) -> None:
        """Add to some counts, such as `add(failures=1)`."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def add_tokens(self, reply: object) -> None:
        """Add what a reply says of its tokens; where it says nothing the sum is unknown."""
        usage = reply.get("usage") if isinstance(reply, Mapping) else None
        with self._lock:
            for name, theirs in TOKENS.items():
                count = usage.get(theirs) if isinstance(usage, Mapping) else None
                known = type(count) is int and self._counts[name] is not None
                self._counts[name] = self._counts[name] + count if known else None


def total(usages: Iterable[Mapping]) -> dict[str, float | None]:
    """Return the sums of several counts; None where one of them is unknown."""
    usages = list(usages)
    columns = {name: [usage.get(name) for usage in usages] for name in COUNTS}
    return {name: None if None in column else sum(column) for name, column in columns.items()}


class Replies:
    """A log with a line of JSON for each reply: which question, what came, what became of it.

    Pictures are not in it. folder: where FILE is, and older ones beside it; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self._handler = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / FILE
            self._handler = RotatingFileHandler(
                file,
                maxBytes=LARGEST,
                backupCount=OLDER,
                encoding="utf-8",
                errors="backslashreplace",
                delay=True,
            )

    def write(self, line: str) -> None:
        """Add a line."""
        if self._handler is not None:
            self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()
