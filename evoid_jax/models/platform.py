"""For which platform a program is traced: this machine's, or that of devices that are elsewhere.

The plan compiles for chips that are not here. A layer that has another form on a CPU asks here, and
not JAX, which platform it is traced for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

# XLA's kernels for GPUs, cuDNN's attention among them, then add up in one order, and none is chosen
# by how fast it was just now. CPUs and TPUs compute so anyway, and ignore it.
SAME_BITS = "--xla_gpu_deterministic_ops=true"
_CHOSEN: ContextVar[str] = ContextVar("platform", default="")


def current() -> str:
    """Return cpu, cuda or tpu."""
    name = _CHOSEN.get() or jax.default_backend()
    # JAX says gpu of an NVIDIA device here and cuda there (in shardings and lowering).
    return "cuda" if name == "gpu" else name


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Trace for `name` (cpu, cuda or tpu) in the block, whatever devices this machine has."""
    # A context variable, not a global: threads that trace at the same time do not see it.
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def make_deterministic() -> None:
    """Have XLA compile for the same bits in every run; to be called before JAX starts a backend."""
    flags = os.environ.get("XLA_FLAGS", "")
    if SAME_BITS not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {SAME_BITS}".strip()


def check_deterministic() -> None:
    """Raise a ValueError where `make_deterministic` has not been called: now it is too late."""
    if SAME_BITS not in os.environ.get("XLA_FLAGS", "").split():
        raise ValueError(
            "config.deterministic must be known before JAX starts: set XLA_FLAGS="
            f"{SAME_BITS} before Python starts, or use python -m evoid_jax.train"
        )
