"""Answers of a judge that are kept: who asks the same of the same pictures again has them at once.

A file of SQLite in the run's folder holds what was read from usable answers, a few numbers each, by
the digest of all that the judge was asked. A file that cannot be used is told of once; the judge is
then asked every time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)
FILE = "judge_answers.sqlite3"


def digest(asked: Mapping) -> str:
    """Return the name of a question with all that belongs to it, JSON values."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Cache:
    """Answers by digest; safe to use from several threads.

    file: where they are kept; None keeps nothing.
    """

    def __init__(self, file: Path | None):
        self._file, self._lock = file, threading.Lock()
        self._base: sqlite3.Connection | None = None
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # Every thread may use it, since each holds the lock when it does.
                self._base = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
                self._base.execute("CREATE TABLE IF NOT EXISTS answers (digest PRIMARY KEY, read)")
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def get(self, name: str) -> list | None:
        """Return what was read of the answer to a question, None where it was not asked yet."""
        rows = self._run("SELECT read FROM answers WHERE digest = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def put(self, name: str, read: list) -> None:
        """Keep what was read of the answer to a question."""
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", name, json.dumps(read))

    def close(self) -> None:
        """Close the file; nothing is kept any more."""
        with self._lock:
            if self._base is not None:
                self._base.close()
            self._base = None

    def _run(self, command: str, *values: str) -> list:
        with self._lock:
            if self._base is None:
                return []
            try:
                return self._base.execute(command, values).fetchall()
            except sqlite3.Error as error:
                self._give_up(error)
                return []

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "judge: answers are not kept, %s cannot be used: %s; remove it to start anew",
            self._file,
            error,
        )
        self._base = None
