"""Deterministic kernels: asked of XLA before it starts, and refused when that is too late."""

import os

import pytest
from programs import python

from evoid_jax.models import platform
from evoid_jax.notebook import evolve

OTHER = "--xla_gpu_autotune_level=4"


@pytest.mark.parametrize("before", ["", OTHER, platform.SAME_BITS])
def test_the_flag_joins_those_that_are_there(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    platform.make_deterministic()
    platform.make_deterministic()
    platform.check_deterministic()
    assert sorted(os.environ["XLA_FLAGS"].split()) == sorted({*before.split(), platform.SAME_BITS})


def test_too_late_is_said_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(ValueError, match="before JAX starts: set XLA_FLAGS=--xla_gpu_determ"):
        evolve("configs/evoid.py:tiny", tmp_path / "run", {"deterministic": True})
    assert not (tmp_path / "run").exists()


def test_xla_takes_the_flag_after_jax_is_imported(tmp_path):
    """An unknown flag would end the process: the installed XLA knows this one, and reads it."""
    python("tests/deterministic_program.py", str(tmp_path))
    dumped = next(tmp_path.glob("*debug_options*")).read_text()
    assert "xla_gpu_deterministic_ops: true" in dumped
