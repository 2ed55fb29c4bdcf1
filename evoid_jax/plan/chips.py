"""Chips that need not be here: XLA compiles for them ahead of time, on any machine.

A target is `h100:8`, `h200:N` (that many GPUs of one machine), or a TPU slice by its topology:
`v5p:2x2x1`, `v6e:4x4`, `v5e:4x4`. The compilers come as wheels; no accelerator is touched.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import jax

DESCRIPTIONS = Path(__file__).parents[1] / "assets" / "targets"
PLUGINS = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}
EXTRAS = {"cuda": "cuda12", "tpu": "tpu"}
FORM = "h100:N, h200:N, v5p:AxBxC, v6e:AxB or v5e:AxB"


@dataclass(frozen=True)
class Chip:
    """One device: the vendor's peak, and the memory that its runtime reports."""

    platform: str  # cuda | tpu
    hbm_gib: float
    peak_flops: float  # dense bfloat16, per second
    axes: int  # numbers in a topology


# A GPU's memory is the `device_memory_size` of its description in assets/targets, which limits the
# compiler too; a TPU's is what its compiler names when it refuses a program. Peaks: data sheets.
CHIPS = {
    "h100": Chip(platform="cuda", hbm_gib=84942979072 / 2**30, peak_flops=989e12, axes=1),
    "h200": Chip(platform="cuda", hbm_gib=150754820096 / 2**30, peak_flops=989e12, axes=1),
    "v5p": Chip(platform="tpu", hbm_gib=95.74, peak_flops=459e12, axes=3),
    "v6e": Chip(platform="tpu", hbm_gib=31.25, peak_flops=918e12, axes=2),
    "v5e": Chip(platform="tpu", hbm_gib=15.75, peak_flops=197e12, axes=2),
}


@dataclass(frozen=True)
class Target:
    """A kind of chip and how many, along each axis of its topology."""

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Target:
    """Read a target's name.

    Raises:
      ValueError: not of the form above.
    """
    name = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    if not name or name[1] not in CHIPS:
        raise ValueError(f"target {text!r}: expected {FORM}")
    kind, shape = name[1], tuple(map(int, name[2].split("x")))
    if len(shape) != CHIPS[kind].axes:
        raise ValueError(f"target {text!r}: expected {FORM}")
    return Target(kind, shape)


def check_compiler(platform: str) -> None:
    """Raise a RuntimeError that says what to install if the platform's compiler is missing."""
    if not any(importlib.util.find_spec(name) for name in PLUGINS[platform]):
        extra = EXTRAS[platform]
        raise RuntimeError(
            f"no compiler for {platform} here; install it (no accelerator is needed) with: "
            f'pip install "jax[{extra}]=={jax.__version__}"'
        )


def quiet_host() -> None:
    """Keep JAX from looking for accelerators of this machine; to be called before it starts."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks a cloud's metadata otherwise
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    jax.config.update("jax_platforms", "cpu")


def devices(target: Target) -> list:
    """Return the target's devices, good for a mesh and for compiling, not for running.

    Raises:
      RuntimeError: the compiler is missing, or knows no such topology.
    """
    from jax.experimental import topologies

    check_compiler(target.chip.platform)
    try:
        if target.chip.platform == "tpu":
            return list(topologies.get_topology_desc(str(target), "tpu").devices)
        description = (DESCRIPTIONS / f"{target.kind}.txtpb").read_text()
        topology = topologies.get_topology_desc(
            target.kind,
            "cuda",
            target_config=description,
            topology=f"1x1x{target.count}",  # slices x hosts x GPUs: one machine
        )
        return list(topology.devices)
    except Exception as error:  # the compilers raise what they like
        raise RuntimeError(f"target {target}: {error}") from error
