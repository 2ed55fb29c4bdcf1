"""What a proof has made so far, part by part, so that one that was stopped goes on where it was.

    proof/base_0000.npz     scores and monitors of the first part's videos, of the start's arm
    samples/heldout_00_base.mp4   the videos that are kept, written as soon as they are made

A part belongs to one adapter, one set of settings and one set of scorers: its key says which, and
one of another key is made again.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from absl import logging

from evoid_jax import checkpoint, config, distributed, files, media
from evoid_jax.arms import Arm
from evoid_jax.session import Run

FOLDER = "proof"  # in a run's folder
COLUMNS = ("score_BM", "valid_BM", "blank_BM")
MONITOR = "monitor/"  # before a monitor's name
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class Parts:
    """The kept parts of one arm of a proof.

    Args:
      role: base or evolved.
      adapter: of the arm.

    Attributes:
      seconds: that the parts took which an earlier start made.
    """

    def __init__(self, run: Run, role: str, adapter: dict):
        self.seconds = 0.0
        self._run, self._role, self._key = run, role, key(run, adapter)

    def read(self, number: int, first: int, shown: int) -> Arm | None:
        """Return a part that was made before, without its videos, or None. Collective.

        first: of the trial's pairs, the part's first. shown: how many videos of it are kept.
        """
        found = self._read(number)
        videos = [self.video(first + k) for k in range(shown)]
        there = found is not None and all(video.is_file() for video in videos)
        if not all(distributed.exchange(there)):
            return None
        arm, seconds = found
        self.seconds += seconds
        return arm

    def write(self, number: int, first: int, arm: Arm, seconds: float) -> None:
        """Keep a part: its videos, then its scores if it is whole."""
        if not distributed.leads():
            return
        for k, video_FHWC in enumerate(arm.shown):
            with files.replacing(self.video(first + k)) as part:
                media.write(part, video_FHWC, self._run.cfg.video.fps)
        if not arm.whole:
            return
        columns = {name: getattr(arm, name) for name in COLUMNS}
        columns |= {MONITOR + name: value_B for name, value_B in arm.monitor.items()}
        with files.replacing(self._file(number)) as part, part.open("wb") as out:
            np.savez(out, key=np.array(self._key), seconds=np.array(seconds), **columns)

    def video(self, k: int) -> Path:
        """Return the file of the first video of pair k."""
        return self._run.workdir / "samples" / f"heldout_{k:02d}_{self._role}.mp4"

    def _file(self, number: int) -> Path:
        return self._run.workdir / FOLDER / f"{self._role}_{number:04d}.npz"

    def _read(self, number: int) -> tuple[Arm, float] | None:
        file = self._file(number)
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as held:
                if str(held["key"]) != self._key:
                    return None
                names = [name for name in held.files if name.startswith(MONITOR)]
                monitor = {name.removeprefix(MONITOR): held[name] for name in names}
                columns = {name: held[name] for name in COLUMNS}
                return Arm(shown=[], monitor=monitor, **columns), float(held["seconds"])
        except BROKEN as error:
            logging.warning("%s is damaged and is made again: %s", file, error)
            return None


def key(run: Run, adapter: dict) -> str:
    """Return what a part hangs on: the adapter, all settings, and who scores."""
    return files.digest([checkpoint.digests(adapter), config.digest(run.cfg), run.panel.scorers()])
