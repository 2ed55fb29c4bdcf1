"""For which platform a program is traced: this machine's, or that of devices that are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_CHOSEN: ContextVar[str] = ContextVar("platform", default="")


def platform() -> str:
    """Return cpu, cuda or tpu."""
    name = _CHOSEN.get() or jax.default_backend()
    return "cuda" if name == "gpu" else name


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Trace for `name` inside of the block, whatever devices this machine has."""
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
