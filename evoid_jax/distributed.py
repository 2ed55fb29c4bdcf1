"""Several processes, one run: start-up, what they tell each other, and one end for all.

Every process runs the same program on the same seeded batches, holds its share of the arrays and
scores its own videos. An array that spans processes is read through `whole`; what one process alone
knows is told to the others through `exchange`. Both are collective: all processes must call them,
in the same order, or those that do wait for ever. With one process everything here does nothing or
returns its argument.
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
START = 300  # seconds in which all processes must have connected
END = 24 * 3600  # seconds that a process which is done waits for process 0, which still writes
SILENT = 100  # seconds after which a process without a sign of life counts as dead (JAX's default)
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")  # set by srun
EXPECTED = (ValueError, OSError, FloatingPointError)  # their text tells the user what to do


class Settings(NamedTuple):
    """Which processes are one run. All None: JAX finds out (Slurm, TPU VMs, Open MPI, GKE)."""

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
    flags.DEFINE_integer("silent", SILENT, text, 1, 1_000_000)


def settings(
    environ: Mapping[str, str],
    address: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Settings | None:
    """Return which processes are one run, or None for a process on its own.

    Args:
      environ: of this process; an argument that is None is taken from it (see ENVIRONMENT).
      address: HOST:PORT of process 0, or "auto". Without one, tasks of one Slurm step are a run.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      ValueError: only some of the three are known, or they do not fit each other.
    """
    values = {"coordinator": address, "processes": processes, "process": process}
    for flag, name in zip(values, ENVIRONMENT, strict=True):
        values[flag] = environ.get(name) if values[flag] is None else values[flag]
    if values["coordinator"] == AUTO:
        return Settings()
    if all(value is None for value in values.values()):
        return Settings() if _slurm_tasks(environ) > 1 else None
    for flag, name in zip(values, ENVIRONMENT, strict=True):
        if values[flag] is None:
            raise ValueError(f"several processes need --{flag} (or ${name}) too")
    host, _, port = values["coordinator"].rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError(f"--coordinator must be HOST:PORT or auto, got {values['coordinator']!r}")
    count, index = (_number(flag, values[flag]) for flag in ("processes", "process"))
    if not 0 <= index < count:
        raise ValueError(f"--process must be from 0 to {count - 1} (--processes), got {index}")
    return Settings(address=values["coordinator"], processes=count, process=index)


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Return how many tasks srun started together; 1 for a process that it did not start."""
    # A shell inside of an allocation (salloc) has SLURM_NTASKS too, but is no task of a step.
    if not all(name in environ for name in SLURM):
        return 1
    return int(environ.get("SLURM_NTASKS", "1"))


def _number(flag: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"--{flag} must be a whole number, got {value!r}") from None


def from_flags() -> Settings | None:
    """Return `settings` of the command line and of this process's environment."""
    f = flags.FLAGS
    return settings(os.environ, address=f.coordinator, processes=f.processes, process=f.process)


def start(chosen: Settings | None, silent: int = SILENT) -> None:
    """Connect to the other processes. Call it before anything else touches JAX's devices.

    Args:
      chosen: of `settings`; None does nothing.
      silent: seconds after which a process without a sign of life counts as dead.

    Raises:
      ConnectionError: this process cannot listen, or JAX did not find out who belongs to the run.
    """
    if chosen is None:
        return
    meeting = chosen.address or "an address that JAX finds"
    # Where the others are late, JAX ends this process itself and hardly says why: this line does.
    print(f"waiting up to {START} s for all processes at {meeting}", file=sys.stderr, flush=True)
    # JAX would take SIGTERM for the notice of a preemption and not end on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=chosen.address,
            num_processes=chosen.processes,
            process_id=chosen.process,
            # With an address all is said: looking at Slurm's variables could only contradict it.
            cluster_detection_method="deactivate" if chosen.address else None,
            initialization_timeout=START,
            heartbeat_timeout_seconds=silent,
            # JAX's five minutes are less than many videos and a report may take. A process that
            # ends early is noticed by its connection or its silence, not by this.
            shutdown_timeout_seconds=END,
        )
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"the processes did not meet at {meeting} ({str(error).splitlines()[0]}); start all of "
            "them, with the same --coordinator"
        ) from error


@contextmanager
def together(chosen: Settings | None, silent: int = SILENT) -> Iterator[None]:
    """Start as `start` does, run the block, and leave together with the other processes.

    After an error in the block this process prints it and ends at once, and so end the others.
    Arguments and errors are those of `start`.
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
        # An interpreter that exits in the usual way says goodbye first, and waits minutes for the
        # others, who wait for this process in their next collective. os._exit drops the
        # connections, which the others notice at once, or by the missing heartbeat.
        os._exit(getattr(error, "code", 1) if isinstance(error, KeyboardInterrupt) else 1)


def _complain(who: str, error: BaseException) -> None:
    """Print an error: one line where its text is made for the user, else all of it."""
    if isinstance(error, EXPECTED):
        print(f"error: {who}: {error}", file=sys.stderr)
        return
    if isinstance(error, KeyboardInterrupt):  # its text says what is saved, where there is one
        print(f"{who}: {str(error) or 'stopped'}", file=sys.stderr)
        return
    # Of many processes' logs only one holds the cause; the others hold its consequences.
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
    """Return a folder for files of this process alone, inside of one that all processes share."""
    return folder if jax.process_count() == 1 else folder / f"process_{jax.process_index()}"


@contextmanager
def leader_first() -> Iterator[None]:
    """Run the block in process 0, then in the others: for files that the first one there makes."""
    # An exchange ends when all have called it: the others call it before the block and so wait for
    # process 0, which calls it after.
    if not leads():
        exchange(None)
    yield
    if leads():
        exchange(None)


def whole(tree):
    """Return a tree of arrays as numpy, with the parts that other processes hold. Collective.

    Args:
      tree: of jax or numpy arrays of any shape, laid out alike in every process.

    Returns:
      The same tree of numpy arrays, each whole in every process.
    """

    def read(x):
        # Replicated arrays span processes too, but every process has a copy at hand.
        if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(read, tree)


def exchange(value) -> list:
    """Return every process's value, in the order of processes. Collective.

    Args:
      value: anything that JSON holds, NaN included, of whatever size in each process.
    """
    if jax.process_count() == 1:
        return [value]
    # JAX gathers arrays of one shape only: send the sizes first, then bytes padded to the largest.
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size)).ravel()
    room = 1 << int(sizes.max()).bit_length()  # a power of two: few programs to compile
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
