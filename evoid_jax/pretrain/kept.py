"""What pretraining keeps in its work folder: finished stages, and how far an unfinished one is.

Every file is an npz that is moved into place when it is whole, so that a run may be killed at any
moment. It holds the settings that it was made with, and is never used under others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from evoid_jax import files

SETTINGS = "settings"  # the name of their JSON among a file's arrays


class Place(NamedTuple):
    """Where a stage is kept, and what it depends on."""

    folder: Path
    name: str
    settings: dict  # as JSON has it
    every: int  # steps of training from one save to the next

    @property
    def done(self) -> Path:
        """The file of the finished stage."""
        return self.folder / f"{self.name}.npz"

    @property
    def begun(self) -> Path:
        """The file of a training under way."""
        return self.folder / f"{self.name}.begun.npz"


def write(path: Path, arrays: dict[str, np.ndarray], settings: dict) -> None:
    """Write arrays and the settings that they depend on; a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays, **{SETTINGS: np.array(json.dumps(settings, sort_keys=True))})
    part.replace(path)


def read(path: Path, settings: dict) -> dict[str, np.ndarray]:
    """Read what `write` wrote.

    Raises:
      ValueError: it was made with other settings, which the message names; or it is damaged.
    """
    files.require_file(path)
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        made_with = json.loads(str(arrays.pop(SETTINGS)))
    except Exception as error:  # of zip, zlib, numpy and json
        raise ValueError(
            f"{path} is damaged ({error!r}); delete it to make this stage anew"
        ) from None
    then, now = (traverse_util.flatten_dict(x, sep=".") for x in (made_with, settings))
    other = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    if other:
        changes = ", ".join(f"{k} {then.get(k)} and not {now.get(k)}" for k in other)
        raise ValueError(
            f"{path} was made with {changes}; expected the settings of this run: take another "
            "--workdir, or delete this stage and those that follow it"
        )
    return arrays


def stage(place: Place, make) -> dict:
    """Return the tree of arrays that `make()` gives, kept for the next run.

    Args:
      place: where; its settings are all that `make` depends on.
      make: () -> nested dicts of arrays.

    Raises:
      ValueError: as `read`.
    """
    if not place.done.is_file():
        flat = traverse_util.flatten_dict(jax.device_get(make()), sep="/")
        write(place.done, flat, place.settings)
        place.begun.unlink(missing_ok=True)  # a finished training needs no way to go on
    return traverse_util.unflatten_dict(read(place.done, place.settings), sep="/")


def save(place: Place, step: int, state: Any) -> None:
    """Save a training under way: the steps done, and a tree of arrays."""
    leaves = {str(i): x for i, x in enumerate(jax.device_get(jax.tree.leaves(state)))}
    write(place.begun, leaves | {"step": np.array(step)}, place.settings)


def restore(place: Place, state: Any) -> tuple[int, Any]:
    """Return the steps done and the state of a training under way, or 0 and `state` as it is.

    Args:
      state: of step 0; what was saved has its structure.

    Raises:
      ValueError: as `read`.
    """
    if not place.begun.is_file():
        return 0, state
    arrays = read(place.begun, place.settings)
    step = int(arrays.pop("step"))
    leaves = [arrays[str(i)] for i in range(len(arrays))]
    return step, jax.tree.unflatten(jax.tree.structure(state), leaves)
