"""Save and restore what a run cannot recompute: adapters, optimizer, step, and the host's memory.

The frozen base is never saved. Orbax writes atomically but does not notice flipped bits, so every
leaf's SHA-256 goes beside it and is compared on restore; a damaged step is skipped with a warning
and the one before it is used. Several processes must share the folder; each checks what it has
read, and a step is sound when all say so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from evoid_jax import distributed

FOLDER = "checkpoints"  # in a run's workdir


class Checkpoints(NamedTuple):
    """An open checkpoint folder."""

    manager: ocp.CheckpointManager
    folder: Path


def open_folder(folder: str | Path, keep: int) -> Checkpoints:
    """Open `folder`, made where it is missing, for checkpoints; the newest `keep` of them stay."""
    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return Checkpoints(ocp.CheckpointManager(folder, options=options), folder)


def any_in(folder: str | Path) -> bool:
    """Say whether a folder holds a checkpoint; it need not exist, and is not opened."""
    return bool(steps_in(folder))


def steps_in(folder: str | Path) -> list[int]:
    """Return the steps that a folder holds checkpoints of, in any order; as `any_in`."""
    folder = Path(folder)
    inside = folder.iterdir() if folder.is_dir() else ()
    return [int(step.name) for step in inside if step.name.isdecimal()]


def save(checkpoints: Checkpoints, step: int, state: Any, host: dict) -> None:
    """Save `state` (a pytree of arrays) and `host` (JSON) as `step`; returns before it is written.

    A step that is already there is left as it is.
    """
    if step in checkpoints.manager.all_steps():
        return  # a resumed run comes by its own checkpoint again; orbax would raise
    state = jax.tree.map(_whole, state)
    items = {
        "state": ocp.args.StandardSave(state),
        "host": ocp.args.JsonSave(host),
        "digests": ocp.args.JsonSave(digests(state)),
    }
    checkpoints.manager.save(step, args=ocp.args.Composite(**items))


def _whole(x):
    """Return an array that every process holds all of, so that each can digest it."""
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return x
    return jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))


def restore(checkpoints: Checkpoints, like: Any) -> tuple[Any, dict] | None:
    """Return (state, host) of the newest sound step, or None when there is no step at all.

    Args:
      like: a state of the wanted shapes, dtypes and shardings; its values are not used.

    Raises:
      OSError: there are steps, and none could be read.
    """
    reasons = []
    for step in _steps(checkpoints):
        restored, reason = None, None
        try:
            restored = _restore_step(checkpoints.manager, step, like)
        except Exception as error:  # orbax raises bare Exception for a truncated array
            reason = f"step {step}: {str(error).strip().splitlines()[0][:200]}"
        # All processes must take the same step: one that cannot read it speaks for all.
        wrong = [reason for reason in distributed.exchange(reason) if reason]
        if not wrong:
            return restored
        logging.warning("checkpoint skipped, %s", wrong[0])
        reasons.append(wrong[0])
    if reasons:
        raise OSError(
            f"no checkpoint in {checkpoints.folder} could be read; move the folder away to start "
            f"anew. " + "; ".join(reasons)
        )
    return None


def _steps(checkpoints: Checkpoints) -> list[int]:
    """Return the steps there are, newest first."""
    seen = distributed.exchange(sorted(checkpoints.manager.all_steps(), reverse=True))
    if any(steps != seen[0] for steps in seen):
        raise OSError(
            f"{checkpoints.folder} is not the same folder for every process: they see the steps "
            f"{seen}. Use a --workdir that all of them share"
        )
    return seen[0]


def _restore_step(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict]:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {
        "state": ocp.args.StandardRestore(abstract),
        "host": ocp.args.JsonRestore(),
        "digests": ocp.args.JsonRestore(),
    }
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    saved = restored["digests"]
    now = digests(restored["state"])
    wrong = {leaf for leaf, digest in now.items() if saved.get(leaf) != digest}
    if wrong:
        raise ValueError(f"{min(wrong)} is not what was saved ({len(wrong)} leaves differ)")
    return restored["state"], restored["host"]


def digests(state: Any) -> dict[str, str]:
    """Return a SHA-256 per leaf, by its path, over its dtype, shape and bytes.

    Args:
      state: tree of arrays of any shape. A leaf of which other processes hold a part is left out.
    """
    digest_of = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        whole = getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated
        if not whole:
            continue  # other processes hold a part; orbax checks shapes
        x = np.ascontiguousarray(leaf)
        # dtype and shape too: zeros are the same bytes in any form of as many.
        content = f"{x.dtype}{x.shape}".encode() + x.tobytes()
        digest_of[jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()
    return digest_of


def close(checkpoints: Checkpoints) -> None:
    """Wait for the writes under way and close."""
    checkpoints.manager.wait_until_finished()
    checkpoints.manager.close()
