"""Say which folder a page may be written to: one that holds nothing else."""

from __future__ import annotations

from pathlib import Path

from evoid_jax import files
from evoid_jax.report import folder, shelf, study


def chosen(out: str | Path, page: str) -> Path:
    """Return the folder of --out, which need not be there yet.

    Args:
      page: the name of the page that is to lie there; an earlier one may.

    Raises:
      ValueError: the folder holds something else, or is that of a run.
    """
    place = files.user_path(out)
    there = {file.name for file in place.iterdir()} if place.is_dir() else set()
    if page not in there and there - {shelf.MEDIA, study.FOLDER}:
        raise ValueError(f"{out} is not empty and holds no {page}; give a new folder with --out")
    if there & {*folder.OF_RUNS} - {page}:
        raise ValueError(f"{out} is the folder of a run; give another one with --out")
    return place


def of_run(workdir: str | Path, out: str | Path | None, page: str) -> Path:
    """Return where the page of a run goes: the run's own folder, unless out names another one.

    Raises: as `chosen`.
    """
    home = files.user_path(workdir)
    if out is None or files.user_path(out).resolve() == home.resolve():
        return home
    return chosen(out, page)
