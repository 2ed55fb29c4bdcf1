"""A restored state is the saved one, and damage is noticed."""

import jax.numpy as jnp
import numpy as np
import pytest
from damage import damage

from evoid_jax import checkpoint


def state(value: float):
    noise = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)  # does not compress
    return {"step": jnp.asarray(3), "a": jnp.asarray(noise) + value, "b": {"c": jnp.arange(5.0)}}


def folder_with(tmp_path, values):
    checkpoints = checkpoint.open_folder(tmp_path / "ck", keep=3)
    for step, value in values.items():
        checkpoint.save(checkpoints, step, state(value), {"attention": [1.0, value]})
    checkpoints.manager.wait_until_finished()
    return checkpoints


def test_restores_the_newest(tmp_path):
    checkpoints = folder_with(tmp_path, {1: 1.5, 2: 2.5})
    back, host = checkpoint.restore(checkpoints, state(0.0))
    np.testing.assert_array_equal(back["a"], state(2.5)["a"])
    np.testing.assert_array_equal(back["b"]["c"], np.arange(5.0))
    assert int(back["step"]) == 3 and host == {"attention": [1.0, 2.5]}
    checkpoint.close(checkpoints)


def test_empty_folder_is_a_fresh_start(tmp_path):
    checkpoints = checkpoint.open_folder(tmp_path / "ck", keep=1)
    assert checkpoint.restore(checkpoints, state(0.0)) is None
    checkpoint.close(checkpoints)


def test_keeps_only_so_many(tmp_path):
    checkpoints = folder_with(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    assert list(checkpoints.manager.all_steps()) == [2, 3, 4]
    checkpoint.close(checkpoints)


def test_damaged_step_is_skipped_and_all_damaged_is_an_error(tmp_path):
    checkpoints = folder_with(tmp_path, {1: 1.5, 2: 2.5})
    damage(checkpoints.folder / "2")
    back, _ = checkpoint.restore(checkpoints, state(0.0))
    np.testing.assert_array_equal(back["a"], state(1.5)["a"])
    damage(checkpoints.folder / "1")
    with pytest.raises(OSError, match="move the folder away"):
        checkpoint.restore(checkpoints, state(0.0))
    checkpoint.close(checkpoints)


def test_another_shape_is_refused(tmp_path):
    checkpoints = folder_with(tmp_path, {1: 1.5})
    other = state(0.0) | {"a": jnp.zeros((64, 32))}
    with pytest.raises(OSError, match="could be read"):
        checkpoint.restore(checkpoints, other)
    checkpoint.close(checkpoints)


def test_digests_tell_dtype_shape_and_value_apart():
    a = {"x": np.zeros(4, np.float32)}
    different = [np.zeros(4, np.int32), np.zeros((2, 2), np.float32), np.ones(4, np.float32)]
    for x in different:
        assert checkpoint.digests({"x": x}) != checkpoint.digests(a)
    assert checkpoint.digests({"x": np.zeros(4, np.float32)}) == checkpoint.digests(a)


def test_steps_are_told_by_the_names_of_folders(tmp_path):
    assert checkpoint.steps_in(tmp_path / "absent") == []
    for name in ("2", "10", "12.orbax-checkpoint-tmp", "x"):
        (tmp_path / name).mkdir()
    assert sorted(checkpoint.steps_in(tmp_path)) == [2, 10]
