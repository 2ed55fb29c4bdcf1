"""Every test: CPU, exact float32 matmuls, no silent broadcasting, compiled programs cached."""

import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
import torch

CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
    tempfile.gettempdir(), "evoid_jax_compile_cache"
)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

torch.set_num_threads(1)  # on a busy machine its threads wait for each other


@pytest.fixture(autouse=True)
def nothing_known_of_servers():
    """Forget what sidecars said: a port that is free again may be another server's."""
    if replica := sys.modules.get("evoid_jax.rewards.replica"):
        replica.named.cache_clear()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a made-up finished run with its report; copy it before you change it."""
    import made_up

    from evoid_jax.report import page

    workdir = made_up.fill(tmp_path_factory.mktemp("tiny-seed0"))
    assert page.write(workdir) == workdir / "report.html"
    return workdir
