"""Where arrays live: the mesh, the table of weights, batches in parts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from evoid_jax import sharding
from evoid_jax.models import wan as wan_model

FOUR = SimpleNamespace(shape={"data": 1, "fsdp": 4, "context": 1})  # all that a spec asks for


def shapes():
    config = wan_model.WanConfig(2, 16, 2, 64, text_dim=24, vace_layers=(0,))
    wan = wan_model.Wan(config)
    tree = jax.eval_shape(lambda key: wan_model.init(key, wan), jax.random.key(0))
    return {"/".join(k): v.shape for k, v in traverse_util.flatten_dict(tree).items()}


def test_every_weight_has_exactly_one_rule_and_big_ones_are_split():
    specs = {path: sharding.weight_spec(path, shape, FOUR) for path, shape in shapes().items()}
    split = {path for path, spec in specs.items() if "fsdp" in spec}
    assert split == {p for p in specs if p.endswith("kernel") and "patch_embedding" not in p}
    assert specs["blocks/attn1/to_q/kernel"] == P(None, "fsdp", None)
    assert specs["time_proj/kernel"] == P("fsdp", None)


def test_unknown_weight_is_an_error():
    with pytest.raises(ValueError, match="blocks/new: 0 sharding rules|0 sharding rules fit"):
        sharding.weight_spec("blocks/new", (2, 8, 8), FOUR)


def test_mesh_sizes_must_multiply_to_the_devices():
    devices = jax.devices()[:1]
    assert sharding.make_mesh(devices=devices).shape == {"data": 1, "fsdp": 1, "context": 1}
    with pytest.raises(ValueError, match="needs 6 devices, there are 1"):
        sharding.make_mesh(data=3, fsdp=2, devices=devices)


@pytest.mark.parametrize(
    ("videos", "each", "parts"), [(32, 32, 1), (32, 5, 8), (6, 4, 2), (7, 2, 7)]
)
def test_parts_are_equal_and_no_larger_than_asked(videos, each, parts):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert sharding.parts_of(videos, each, mesh) == parts


def test_split_keeps_every_video_once():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    x = jnp.arange(24).reshape(12, 2)
    parts = jax.jit(lambda x: sharding.split(x, 3, mesh))(x)
    assert parts.shape == (3, 4, 2)
    np.testing.assert_array_equal(np.sort(np.asarray(parts).ravel()), np.arange(24))


def test_devices_share_videos_then_planes():
    mesh = SimpleNamespace(size=8, shape={"data": 1, "fsdp": 2, "context": 4})
    for shape, parts in [
        ((8, 3, 5, 7), 8),
        ((2, 3, 8, 7), 8),
        ((2, 3, 6, 8), 8),
        ((2, 3, 6, 6), 2),
    ]:
        assert sharding.share((*shape, 16), mesh) == 1 / parts
    assert sharding.share((8, 3, 5, 7, 16), None) == 1


def test_the_model_takes_all_devices_where_fsdp_is_what_is_left():
    shape = lambda data, fsdp, context: sharding.mesh_shape(data, fsdp, context, 8)
    assert shape(1, -1, 1) == (1, 8, 1) and shape(1, -1, 4) == (1, 2, 4)
    assert shape(-1, 2, 2) == (2, 2, 2)


def test_videos_that_do_not_divide_are_named():
    sharding.check_videos(8, FOUR)
    with pytest.raises(ValueError, match="6 videos of a step do not divide over 4 groups"):
        sharding.check_videos(6, FOUR)
