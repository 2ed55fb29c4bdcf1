"""A restored state is the saved one, and damage is noticed."""

import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import programs
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
    back, host, _ = checkpoint.restore(checkpoints, state(0.0))
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
    back, _, _ = checkpoint.restore(checkpoints, state(0.0))
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


# --- damage of every kind


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def flip(file, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= 0x10
    file.write_bytes(bytes(raw))


def read_newest(folder):
    """Restore from a folder; returns the step and its value, or the error's text."""
    checkpoints = checkpoint.open_folder(folder, keep=3)
    try:
        found = checkpoint.restore(checkpoints, state(0.0))
    except OSError as error:
        return str(error)
    finally:
        checkpoint.close(checkpoints)
    value = float(found.state["a"][0, 0] - state(0.0)["a"][0, 0])
    assert found.host == {"attention": [1.0, pytest.approx(value)]}
    return found.step, round(value, 3)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    checkpoint.close(folder_with(folder, {1: 1.5, 2: 2.5}))
    return folder / "ck"


def test_every_file_cut_or_gone_or_changed_is_noticed_or_harmless(two_steps, tmp_path):
    """Whatever happens to step 2, what is read is step 2 as it was, or step 1; never another."""
    kinds = {
        "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "empty": lambda file: file.write_bytes(b""),
        "gone": lambda file: file.unlink(),
        "flipped": lambda file: flip(file, at=file.stat().st_size // 2),
    }
    seen = set()
    for i, file in enumerate(files_of(two_steps / "2")):
        for kind, hurt in kinds.items():
            if file.stat().st_size == 0:
                continue
            copy = tmp_path / f"{kind}_{i}"
            shutil.copytree(two_steps, copy)
            hurt(copy / file.relative_to(two_steps))
            found = read_newest(copy)
            assert found in ((2, 2.5), (1, 1.5)), (file.name, kind, found)
            seen.add(found)
    assert seen == {(2, 2.5), (1, 1.5)}


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 20))]
)
def test_random_flips_never_change_what_is_read(two_steps, tmp_path, seed):
    numbers = np.random.default_rng(seed)
    every = [file for file in files_of(two_steps / "2") if file.stat().st_size]
    for k in range(10):
        copy = tmp_path / str(k)
        shutil.copytree(two_steps, copy)
        file = every[numbers.integers(len(every))]
        flip(copy / file.relative_to(two_steps), at=int(numbers.integers(file.stat().st_size)))
        found = read_newest(copy)
        assert found in ((2, 2.5), (1, 1.5)), (file.name, found)


def change_host(folder, text: str) -> None:
    (file,) = (folder / "2" / "host").glob("metadata")
    file.write_text(text)


@pytest.mark.parametrize("text", ["{}", '{"attention": [1.0, 9.5]}', "[]", "null", "{"])
def test_a_changed_host_part_is_noticed(two_steps, tmp_path, text):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    change_host(copy, text)
    assert read_newest(copy) == (1, 1.5)


def test_a_step_under_another_name_is_noticed(two_steps, tmp_path):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    (copy / "2").rename(copy / "7")
    assert read_newest(copy) == (1, 1.5)


def test_an_empty_step_is_noticed(two_steps, tmp_path):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    (copy / "6").mkdir()
    assert read_newest(copy) == (2, 2.5)


def test_another_dtype_is_not_cast_in_silence(two_steps, tmp_path):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    checkpoints = checkpoint.open_folder(copy, keep=3)
    like = state(0.0) | {"a": jnp.zeros((64, 64), jnp.bfloat16)}
    with pytest.raises(OSError, match="not what was saved"):
        checkpoint.restore(checkpoints, like)
    checkpoint.close(checkpoints)


def test_a_damaged_step_is_moved_aside_and_written_again(two_steps, tmp_path):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    damage(copy / "2")
    checkpoints = checkpoint.open_folder(copy, keep=1)
    found = checkpoint.restore(checkpoints, state(0.0))
    checkpoint.set_aside(checkpoints, after=found.step)
    assert checkpoint.steps_in(copy) == [1]
    assert checkpoint.steps_in(tmp_path / checkpoint.ASIDE) == [2]
    checkpoint.save(checkpoints, 2, state(4.5), {"attention": [1.0, 4.5]})
    checkpoint.close(checkpoints)
    assert read_newest(copy) == (2, 4.5)


def test_nothing_is_set_aside_where_all_is_sound(two_steps, tmp_path):
    copy = tmp_path / "ck"
    shutil.copytree(two_steps, copy)
    checkpoints = checkpoint.open_folder(copy, keep=3)
    checkpoint.set_aside(checkpoints, after=2)
    checkpoint.close(checkpoints)
    assert sorted(checkpoint.steps_in(copy)) == [1, 2]
    assert not (tmp_path / checkpoint.ASIDE).exists()


# --- what is written


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_never_written(tmp_path, bad):
    checkpoints = folder_with(tmp_path, {1: 1.5})
    broken = state(0.0)
    broken["a"] = broken["a"].at[3, 4].set(bad)
    with pytest.raises(FloatingPointError, match=r"step 2: \['a'\] is not finite"):
        checkpoint.save(checkpoints, 2, broken, {})
    checkpoint.close(checkpoints)
    assert checkpoint.steps_in(tmp_path / "ck") == [1]


def test_every_so_many_steps_one_stays(tmp_path):
    checkpoints = checkpoint.open_folder(tmp_path / "ck", keep=1, keep_every=3)
    for step in range(1, 8):
        checkpoint.save(checkpoints, step, state(float(step)), {"attention": [1.0, float(step)]})
    checkpoint.close(checkpoints)
    assert sorted(checkpoint.steps_in(tmp_path / "ck")) == [3, 6, 7]


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_checkpoint as t
from evoid_jax import checkpoint
checkpoints = checkpoint.open_folder(Path(sys.argv[1]) / "ck", keep=2)
checkpoint.save(checkpoints, 1, t.state(1.5), {"attention": [1.0, 1.5]})
checkpoint.settle(checkpoints)
for step in (2, 3):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    checkpoint.save(checkpoints, step, t.state(2.5), {"attention": [1.0, 2.5]})
    checkpoint.settle(checkpoints)
    print("after", step, sorted(checkpoint.steps_in(checkpoints.folder)), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save(checkpoints, 4, t.state(4.5), {"attention": [1.0, 4.5]})
checkpoint.close(checkpoints)
print("left", sorted(checkpoint.steps_in(checkpoints.folder)), flush=True)
"""


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path):
    """Files that may not grow stand for a full disk: writing fails in the middle."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=programs.ROOT,
        env=programs.environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-3:] == ["after 2 [1]", "after 3 [1]", "left [1, 4]"]
    assert done.stderr.count("could not be written") == 2 and "is of step 1" in done.stderr
    assert read_newest(tmp_path / "ck") == (4, 4.5)
