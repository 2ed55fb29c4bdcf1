"""Save and restore what a run cannot recompute: adapters, optimizer, step, and the host's memory.

The frozen base is never saved. Orbax writes atomically but does not notice flipped bits, so the
SHA-256 of every leaf and of the host's part goes beside them, with the step, and is compared on
restore; a damaged step is skipped with a warning and the one before it is used. A write that fails,
as on a full disk, is told, and the run goes on. Several processes must share the folder; each
checks what it has read, and a step is sound when all say so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from evoid_jax import distributed, files

FOLDER = "checkpoints"  # in a run's workdir
ASIDE = "checkpoints_damaged"  # beside it: steps that could not be read


class Checkpoints(NamedTuple):
    """An open checkpoint folder."""

    manager: ocp.CheckpointManager
    folder: Path


class Restored(NamedTuple):
    """A checkpoint that was read, and found to be what was saved."""

    state: Any
    host: dict
    step: int


def open_folder(folder: str | Path, keep: int, keep_every: int = 0) -> Checkpoints:
    """Open `folder`, made where it is missing, for checkpoints.

    keep: so many of the newest stay. keep_every: those of every so many steps stay too; 0: none.
    """
    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
    )
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

    A step that is already there is left as it is. Where it cannot be written a warning says so.

    Raises:
      FloatingPointError: the state holds a number that is not finite; nothing is written.
    """
    settle(checkpoints)  # what is wrong with the step before has nothing to do with this one
    if step in checkpoints.manager.all_steps():
        return  # a resumed run comes by its own checkpoint again; orbax would raise
    state = jax.tree.map(_whole, state)
    check_finite(step, state)
    host = json.loads(json.dumps(host))  # as it will be read
    items = {
        "state": ocp.args.StandardSave(state),
        "host": ocp.args.JsonSave(host),
        "digests": ocp.args.JsonSave(_seal(step, state, host)),
    }
    try:
        checkpoints.manager.save(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax wraps what the disk says in errors of many kinds
        _failed(checkpoints, error)


def settle(checkpoints: Checkpoints) -> None:
    """Wait for the write under way; where it failed a warning says so, and what stays."""
    try:
        checkpoints.manager.wait_until_finished()
    except Exception as error:
        _failed(checkpoints, error)


def _failed(checkpoints: Checkpoints, error: Exception) -> None:
    """Tell of a write that failed, and free what it took."""
    if distributed.leads():
        for part in checkpoints.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
    checkpoints.manager.reload()  # it had counted the step as there
    steps = sorted(checkpoints.manager.all_steps())
    kept = f"the newest that is there is of step {steps[-1]}" if steps else "there is none yet"
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    logging.warning(
        "a checkpoint could not be written to %s: %s. %s; the run goes on and tries again at the "
        "next one. Make room, or see to the disk",
        checkpoints.folder,
        why,
        kept,
    )


def check_finite(step: int, state: Any) -> None:
    """Raise FloatingPointError where a state holds NaN or infinity; names the leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        x = np.asarray(leaf)
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise FloatingPointError(
                f"step {step}: {jax.tree_util.keystr(path)} is not finite, and is not saved; the "
                "checkpoints of earlier steps are as they were"
            )


def _seal(step: int, state: Any, host: dict) -> dict:
    """Return what binds a checkpoint together: digests of its parts, and its step."""
    return {"step": step, "state": digests(state), "host": files.digest(host)}


def _whole(x):
    """Return an array that every process holds all of, so that each can digest it."""
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return x
    return jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))


def restore(checkpoints: Checkpoints, like: Any) -> Restored | None:
    """Return the newest sound step, or None when there is no step at all.

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


def set_aside(checkpoints: Checkpoints, after: int) -> None:
    """Move the steps after `after`, which could not be read, out of the folder, and say so.

    Left there they would count as the newest: they would never be written again, and the sound
    ones would make room for them.
    """
    damaged = [step for step in _steps(checkpoints) if step > after]
    if damaged and distributed.leads():
        aside = checkpoints.folder.with_name(ASIDE)
        aside.mkdir(exist_ok=True)
        for step in damaged:
            shutil.rmtree(aside / str(step), ignore_errors=True)  # of an earlier time
            shutil.move(checkpoints.folder / str(step), aside / str(step))
        logging.warning("steps %s were moved to %s, and are made again", damaged, aside)
    distributed.exchange(None)  # nobody looks before they are gone
    checkpoints.manager.reload()


def _steps(checkpoints: Checkpoints) -> list[int]:
    """Return the steps there are, newest first."""
    seen = distributed.exchange(sorted(checkpoints.manager.all_steps(), reverse=True))
    if any(steps != seen[0] for steps in seen):
        raise OSError(
            f"{checkpoints.folder} is not the same folder for every process: they see the steps "
            f"{seen}. Use a --workdir that all of them share"
        )
    return seen[0]


def _restore_step(manager: ocp.CheckpointManager, step: int, like: Any) -> Restored:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {
        "state": ocp.args.StandardRestore(abstract),
        "host": ocp.args.JsonRestore(),
        "digests": ocp.args.JsonRestore(),
    }
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    state, host, seal = restored["state"], restored["host"], restored["digests"]
    if not isinstance(seal, dict) or not isinstance(seal.get("state"), dict):
        raise ValueError("its digests are missing")
    if seal.get("step") != step:
        raise ValueError(f"it is of step {seal.get('step')}, under another name")
    saved = seal["state"]
    wrong = {leaf for leaf, digest in digests(state).items() if saved.get(leaf) != digest}
    if wrong:
        raise ValueError(f"{min(wrong)} is not what was saved ({len(wrong)} leaves differ)")
    if seal.get("host") != files.digest(host):
        raise ValueError("the host's part is not what was saved")
    return Restored(state, host, step)


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
    """Wait for the write under way, which may fail with a warning, and close."""
    settle(checkpoints)
    checkpoints.manager.close()
