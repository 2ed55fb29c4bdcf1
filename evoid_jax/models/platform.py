"""For which platform a program is traced: this machine's, or that of devices that are elsewhere.

The plan compiles for chips that are not here. A layer that has another form on a CPU asks here, and
not JAX, which platform it is traced for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

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
