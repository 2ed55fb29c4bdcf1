"""Several processes, one run: start-up, what they tell each other, and one end for all.

Every process runs the same program on the same seeded batches, holds its share of the arrays and
scores its own videos. An array that spans processes is read through `whole` and anything else of
one process through `exchange`; both are collective, so all processes must come to them, in the same
order. With one process everything here does nothing or returns what it was given.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

AUTO = "auto"
START = 300  # seconds in which all processes must have come
SILENT = 100  # seconds after which a process without a sign of life counts as dead (JAX's default)
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")  # set by srun
EXPECTED = (ValueError, OSError, FloatingPointError)  # their text tells the user what to do


class Settings(NamedTuple):
    """Who belongs together. All None: JAX finds out (Slurm, TPU VMs, Open MPI, Kubernetes)."""

    address: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


def define_flags() -> None:
    """Define the command-line flags that `from_flags` reads."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT where process 0 listens, or auto to let JAX find out (TPU VMs; Slurm is always "
        "noticed). Default: $JAX_COORDINATOR_ADDRESS; without it there is one process.",
    )
    flags.DEFINE_integer("processes", None, "How many. Default: $JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0. Default: $JAX_PROCESS_ID.")
    text = "Seconds after which a silent process counts as dead, which ends all."
    flags.DEFINE_integer("silent", SILENT, text, lower_bound=1)


def settings(
    environ: Mapping[str, str],
    address: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Settings | None:
    """Return who belongs together, or None for a process on its own.

    What is not given is taken from `environ` (see ENVIRONMENT). Without an address, tasks of one
    Slurm step belong together.

    Raises:
      ValueError: only a part of the three is given, or they do not fit each other.
    """
    given = {"coordinator": address, "processes": processes, "process": process}
    for flag, name in zip(given, ENVIRONMENT, strict=True):
        given[flag] = environ.get(name) if given[flag] is None else given[flag]
    if given["coordinator"] == AUTO:
        return Settings()
    if all(value is None for value in given.values()):
        tasks = environ.get("SLURM_NTASKS", "1") if all(x in environ for x in SLURM) else "1"
        return Settings() if int(tasks) > 1 else None
    for flag, name in zip(given, ENVIRONMENT, strict=True):
        if given[flag] is None:
            raise ValueError(f"several processes need --{flag} (or ${name}) too")
    host, _, port = given["coordinator"].rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError(f"--coordinator must be HOST:PORT or auto, got {given['coordinator']!r}")
    count, index = (_number(flag, given[flag]) for flag in ("processes", "process"))
    if not 0 <= index < count:
        raise ValueError(f"--process must be from 0 to {count - 1} (--processes), got {index}")
    return Settings(given["coordinator"], count, index)


def _number(flag: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"--{flag} must be a whole number, got {value!r}") from None


def from_flags() -> Settings | None:
    """Return `settings` of the command line and of this process's environment."""
    f = flags.FLAGS
    return settings(os.environ, f.coordinator, f.processes, f.process)


def start(chosen: Settings | None, silent: int = SILENT) -> None:
    """Meet the other processes; before anything else touches JAX's devices.

    silent: seconds after which a process without a sign of life counts as dead.

    Raises:
      ConnectionError: JAX found nobody, or cannot listen. Where others do not come in time it ends
        the process itself, with few words: hence the line before.
    """
    if chosen is None:
        return
    where = chosen.address or "an address that JAX finds"
    print(f"waiting up to {START} s for all processes at {where}", file=sys.stderr, flush=True)
    # JAX would take SIGTERM for the notice of a preemption and not end on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *chosen,
            cluster_detection_method="deactivate" if chosen.address else None,
            initialization_timeout=START,
            heartbeat_timeout_seconds=silent,
        )
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"the processes did not meet at {where} ({str(error).splitlines()[0]}); start all of "
            "them, with the same --coordinator"
        ) from error


@contextmanager
def together(chosen: Settings | None, silent: int = SILENT) -> Iterator[None]:
    """Start together and leave together: after an error this process ends at once.

    Arguments and errors are those of `start`. An interpreter that exits in the usual way waits
    minutes for the other processes, which wait for this one in their next collective. Gone without
    a word it takes them along: its connections close, or its heartbeat stops.
    """
    who = "this process"
    try:
        start(chosen, silent)
        who = f"process {jax.process_index()} of {jax.process_count()}"
        yield
        jax.distributed.shutdown()  # waits for the others
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        _complain(who, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _complain(who: str, error: BaseException) -> None:
    if isinstance(error, EXPECTED):
        print(f"error: {who}: {error}", file=sys.stderr)
        return
    traceback.print_exception(error)
    print(
        f"error: {who} ends. If the error above speaks of a connection, a heartbeat or a barrier, "
        "another process ended first and its own log says why",
        file=sys.stderr,
    )


def leads() -> bool:
    """Say whether this process writes the run's files and speaks for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print, once for all processes."""
    if leads():
        print(text)


def own_folder(folder: Path) -> Path:
    """Return a folder of this process alone, where all share `folder`."""
    return folder if jax.process_count() == 1 else folder / f"process_{jax.process_index()}"


@contextmanager
def leader_first() -> Iterator[None]:
    """Run what prepares files once: by process 0, then by the others, who find them."""
    if not leads():
        exchange(None)
    yield
    if leads():
        exchange(None)


def whole(tree):
    """Return a tree of arrays as numpy, with the parts that other processes hold. Collective."""

    def one(x):
        if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def exchange(value) -> list:
    """Return every process's value, in the order of processes. Collective.

    value: anything that JSON holds, NaN included, of whatever size in each process.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size)).ravel()
    room = 1 << int(sizes.max()).bit_length()  # a power of two: few programs to compile
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
