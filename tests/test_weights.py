"""Files in and out byte for byte, devices fed slice by slice, and every bad file named."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_pipeline
import torch
from diffusers import WanVACETransformer3DModel
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from evoid_jax import rollout, sharding
from evoid_jax.models import loading, pipeline, wan, weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def shards(folder, tmp_path):
    """The tiny transformer's folder, in shards of its own."""
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def part_of(folder):
    return pipeline.part("transformer", weights.read_config(folder))


def load(folder, dtype=jnp.float32, mesh=None):
    part, mesh = part_of(folder), mesh or sharding.make_mesh(devices=jax.devices()[:1])
    place = lambda path, shape: NamedSharding(mesh, P())
    tensors = weights.open_folder(folder)
    return loading.load(tensors, part.rules, part.shapes, lambda _: dtype, place)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_files_are_byte_for_byte_the_library_s(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = ("f4", "bfloat16", "f2", "f8", "i4", "i8")
    tensors = {f"{d}.{n}": rng.normal(size=(n, 3)).astype(d) for d in dtypes for n in (2, 1, 0)}
    tensors |= {"scalar": np.float32(2.5), "näme": np.arange(5, dtype=np.float32)}
    weights.write_tensors(tmp_path / "ours.safetensors", tensors)
    save_file(
        {k: np.asarray(x) for k, x in tensors.items()},
        tmp_path / "theirs.safetensors",
        {"format": "pt"},
    )
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sharded_files_of_diffusers_are_read_without_torch(folder, tmp_path, dtype):
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="100KB")
    tensors = weights.read_tensors(tmp_path)
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    for key, x in state.items():
        assert str(tensors[key].dtype) == dtype
        np.testing.assert_array_equal(tensors[key].astype(np.float32), x.float().numpy())


def grow_on_the_device(monkeypatch):
    """Load as an accelerator does: every stack grows there."""
    monkeypatch.setattr(loading, "SMALL", 0)
    monkeypatch.setattr(loading, "HOSTS", ())


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_load_is_to_params_bit_for_bit(folder, monkeypatch, grow, dtype):
    if grow:
        grow_on_the_device(monkeypatch)
    transformer = folder / "transformer"
    tensors = load_file(transformer / "diffusion_pytorch_model.safetensors")
    want = weights.to_params(tensors, part_of(transformer).rules, dtype)
    assert_trees_equal(jax.device_get(load(transformer, dtype)), want)


def test_half_precision_files_grow_into_float32_exactly(folder, tmp_path, monkeypatch):
    grow_on_the_device(monkeypatch)
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shutil.copy(folder / "transformer" / "config.json", tmp_path)
    half = {key: x.astype(ml_dtypes.bfloat16) for key, x in tensors.items()}
    weights.write_tensors(tmp_path / "model.safetensors", half)
    want = weights.to_params(half, part_of(tmp_path).rules, np.float32)
    assert_trees_equal(jax.device_get(load(tmp_path)), want)


def test_loaded_weights_do_not_look_into_the_file(folder, tmp_path):
    copy = shutil.copytree(folder / "transformer", tmp_path / "copy")
    params = load(copy)
    before = jax.tree.map(np.array, params)
    file = copy / "diffusion_pytorch_model.safetensors"
    with open(file, "r+b") as f:
        f.seek(file.stat().st_size // 2)
        f.write(b"\xff" * (file.stat().st_size // 4))
    assert_trees_equal(jax.device_get(params), before)


@pytest.mark.parametrize("hosts", [[], ["cpu"]])
def test_each_device_gets_its_slice_and_no_more_is_read(folder, hosts):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "sliced_reads.py"), str(folder), *hosts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.stdout.strip() == "sharded", done.stderr[-3000:]


def test_rollout_keeps_in_float32_what_cast_keeps(folder):
    exact = rollout.load(folder)
    frozen = rollout.load(folder, jnp.bfloat16)
    want = wan.cast(exact.wan_params, jnp.bfloat16)
    assert_trees_equal(jax.device_get(frozen.wan_params), jax.device_get(want))
    flat = traverse_util.flatten_dict(frozen.wan_params)
    kept = {path[-1] for path, x in flat.items() if x.dtype == np.float32}
    assert kept == {"kernel", "bias", "scale_shift_table", "norm2_scale", "norm2_bias"}
    assert {x.dtype for x in jax.tree.leaves(frozen.umt5_params)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(frozen.vae_params)} == {np.dtype("float32")}


# --- bad files


KEY = "blocks.1.attn1.to_q.weight"


def first(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def rewrite(folder: Path, change) -> None:
    """Change the tensors of the shard that holds KEY."""
    file = next(f for f in folder.glob("*.safetensors") if KEY in weights.read_header(f)[0])
    save_file(change(load_file(file)), file, {"format": "pt"})


def test_a_missing_shard_is_named(shards):
    name = first(shards).name
    first(shards).unlink()
    with pytest.raises(FileNotFoundError, match=rf"index\.json names {name}, which is not in"):
        load(shards)


def test_a_cut_off_shard_is_named_with_its_tensor(shards):
    size = first(shards).stat().st_size
    os.truncate(first(shards), size - 4)
    with pytest.raises(ValueError, match=rf"tensor .* of .*{first(shards).name} ends at byte"):
        load(shards)
    os.truncate(first(shards), 40)
    with pytest.raises(ValueError, match=rf"{first(shards).name} is cut off within its header"):
        load(shards)
    first(shards).write_bytes((2).to_bytes(8, "little") + b"\xff\xff" + bytes(64))
    with pytest.raises(ValueError, match="no safetensors file: its header is not UTF-8"):
        load(shards)


def test_an_index_that_places_a_tensor_elsewhere_is_named(shards):
    index = next(shards.glob("*.index.json"))
    content = json.loads(index.read_text())
    content["weight_map"]["blocks.9.norm2.bias"] = first(shards).name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"places blocks\.9\.norm2\.bias in .*00001-of"):
        load(shards)


def test_a_wrong_shape_is_named(shards):
    rewrite(shards, lambda t: t | {KEY: np.zeros((64, 65), np.float32)})
    with pytest.raises(
        ValueError, match=rf"{KEY} of .*safetensors is \(64, 65\); expected \(64, 64\)"
    ):
        load(shards)


def test_an_unknown_tensor_is_named(shards):
    next(shards.glob("*.index.json")).unlink()
    rewrite(shards, lambda t: t | {"blocks.0.new": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"blocks\.0\.new of .*safetensors belongs to no weight"):
        load(shards)


def test_a_missing_tensor_is_named(shards):
    next(shards.glob("*.index.json")).unlink()
    rewrite(shards, lambda t: {k: x for k, x in t.items() if k != KEY})
    with pytest.raises(ValueError, match=rf"tensor {KEY} is missing \(1 in all\)"):
        load(shards)


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_named(shards, monkeypatch, grow, bad):
    if grow:
        grow_on_the_device(monkeypatch)

    def spoil(tensors):
        tensors[KEY][3, 5] = bad
        return tensors

    rewrite(shards, spoil)
    with pytest.raises(ValueError, match=rf"{KEY} of .*safetensors holds NaN or infinity"):
        load(shards)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "bfloat16", "i8"])
def test_only_nan_and_infinity_are_not_finite(dtype):
    info = ml_dtypes.finfo if dtype == "bfloat16" else np.finfo
    edges = [0, -1] if dtype == "i8" else [0, -0.0, 1, info(dtype).max, info(dtype).tiny]
    x = np.array([*edges, *edges] * 3, dtype).reshape(2, -1).T  # not contiguous
    weights.check_finite(x, "x")
    for bad in () if dtype == "i8" else (np.nan, np.inf, -np.inf):
        x[1, 1] = bad
        with pytest.raises(ValueError, match="x holds NaN or infinity"):
            weights.check_finite(x, "x")


def test_the_same_tensor_in_two_files_is_named(shards):
    shutil.copy(first(shards), shards / "copy.safetensors")
    next(shards.glob("*.index.json")).unlink()
    with pytest.raises(ValueError, match="is in another file of the folder too"):
        load(shards)


def test_a_type_without_meaning_here_is_named(tmp_path):
    from safetensors.torch import save_file as save_torch

    save_torch({"x": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="tensor x of .* is F8_E4M3; expected one of"):
        weights.open_folder(tmp_path)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    weights.write_tensors(file, {"a": np.zeros(3, np.float32)})
    before = file.read_bytes()
    plain = weights._write

    def full(f, tensor):
        if tensor.label == "tensor b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(f, tensor)

    monkeypatch.setattr(weights, "_write", full)
    with pytest.raises(OSError, match=r"No space left on device: tensor b: .*model\.safetensors"):
        weights.write_tensors(file, {k: np.ones(3, np.float32) for k in "abc"})
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="tensor a holds NaN or infinity"):
        weights.write_tensors(tmp_path / "x.safetensors", {"a": np.array([1, np.nan], np.float32)})
    assert not list(tmp_path.iterdir())
