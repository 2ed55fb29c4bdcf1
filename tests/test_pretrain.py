"""Pretraining in miniature: the folder is whole, and the VACE stage spares the main blocks."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import pretrain_tiny
from evoid_jax import flow, rollout
from evoid_jax.pretrain import __main__ as pretrain
from evoid_jax.pretrain import stages


def test_noisy_is_the_flows_path():
    """x_t - t v is the clean sample, at every time and shift."""
    x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 2, 3))
    x_t, v, t_B = stages.noisy(jax.random.key(0), x0, 3.0)
    t = t_B[:, None, None, None, None]
    np.testing.assert_allclose(x_t - t * v, x0, atol=1e-5)
    assert t_B.min() > 0 and t_B.max() < 1
    assert abs(float((t_B > flow.shifted(0.5, 3.0)).mean()) - 0.5) < 0.2  # the median is shifted


def test_split_is_a_partition():
    tree = {"blocks": {"a": 1}, "vace_blocks": {"a": 2}, "vace_proj_in": {"b": 3}, "proj_out": 4}
    main, vace = stages.split(tree)
    assert main == {"blocks": {"a": 1}, "proj_out": 4}
    assert main | vace == tree


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    cfg = pretrain_tiny.get_config()
    cfg.videos = 512
    for part in (cfg.text_train, cfg.vae_train, cfg.t2v_train, cfg.vace_train):
        part.update({"steps": 4, "warmup": 1, "batch": 4})
    cfg.vae_train.whole_steps = 1
    pretrain.run(cfg, tmp_path / "out", tmp_path / "work", "vace")
    t2v, done = (pretrain.stage(tmp_path / "work", name, None) for name in ("t2v", "vace"))
    jax.tree.map(np.testing.assert_array_equal, stages.split(t2v)[0], stages.split(done)[0])
    moved = traverse_util.flatten_dict(stages.split(done)[1])
    assert np.abs(moved["vace_blocks", "proj_out", "kernel"]).max() > 0
    frozen = rollout.load(tmp_path / "out")
    rollout.check_size(frozen, cfg.frames, cfg.size, cfg.size)
