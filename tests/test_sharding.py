"""Where arrays live: the mesh, the table of weights, batches in parts."""

from types import SimpleNamespace
from typing import NamedTuple

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


def test_moments_are_in_pieces_along_the_layers_where_they_divide():
    assert sharding.moment_spec((40, 5120, 32), FOUR) == P("fsdp")
    assert sharding.moment_spec((30, 1536, 32), FOUR) == P()
    assert sharding.moment_spec((16,), FOUR) == P() == sharding.moment_spec((), FOUR)


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


class Device(NamedTuple):
    """All that a layout asks of a device."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0
    slice_index: int = 0


def gpus(hosts: int, each: int) -> list[Device]:
    return [
        Device(id=host * each + i, process_index=host) for host in range(hosts) for i in range(each)
    ]


def tpus(size: tuple[int, int, int], host: tuple[int, int, int], kind: str) -> list[Device]:
    """Return chips in the order of their ids, x fastest; hosts are boxes of them."""
    devices = []
    grid = [-(-side // part) for side, part in zip(size, host, strict=True)]
    for z, y, x in np.ndindex(size[::-1]):
        place = [c // part for c, part in zip((x, y, z), host, strict=True)]
        process = place[0] + grid[0] * (place[1] + grid[1] * place[2])
        devices.append(Device(len(devices), process, "tpu", kind, (x, y, z)))
    return devices


MACHINES = {
    "2 x 8 H100": gpus(2, 8),
    "3 x 4 H100": gpus(3, 4),
    "v5p:4x4x4": tpus((4, 4, 4), (2, 2, 1), "TPU v5"),
    "v5p:2x2x1": tpus((2, 2, 1), (2, 2, 1), "TPU v5"),
    "v6e:4x4": tpus((4, 4, 1), (2, 2, 1), "TPU v6 lite"),
    "v6e:8x8": tpus((8, 8, 1), (2, 2, 1), "TPU v6 lite"),
}


CASES = [(m, c) for m in MACHINES for c in (1, 2, 4, 8) if len(MACHINES[m]) % c == 0]


@pytest.mark.parametrize(("machine", "context"), CASES)
@pytest.mark.parametrize("order", ["as numbered", "mixed"])
def test_a_video_stays_on_one_host_and_hosts_in_order(machine, context, order):
    """For every machine whose hosts divide into groups of that size, whatever the order of ids."""
    devices = list(MACHINES[machine])
    each = sum(device.process_index == 0 for device in devices)
    if order == "mixed":
        devices = [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]
    shape = (1, len(devices) // context, context)
    mesh = sharding.laid_out(devices, shape)
    assert mesh.shape == shape
    assert sorted(d.id for d in mesh.flat) == sorted(d.id for d in devices)  # each of them once
    if each % context:
        return
    process = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh)[0]
    assert (process == process[:, :1]).all()
    assert (np.diff(process[:, 0]) >= 0).all()


def test_chips_of_a_context_group_are_neighbours():
    """A ring through the group goes along wires of the torus: each step is one chip long."""
    mesh = sharding.laid_out(MACHINES["v6e:4x4"], (2, 2, 4))
    for group in mesh.reshape(-1, 4):
        xy = np.array([device.coords for device in group])
        assert np.abs(xy - xy.mean(0)).max() == 0.5  # a square of two by two
    pairs = sharding.laid_out(MACHINES["v5p:4x4x4"], (1, 32, 2)).reshape(-1, 2)
    assert all(np.abs(np.subtract(a.coords, b.coords)).sum() == 1 for a, b in pairs)


def test_a_group_larger_than_a_host_takes_whole_hosts_or_an_axis_of_the_torus():
    mesh = sharding.laid_out(gpus(4, 4), (1, 2, 8))
    hosts = [{device.process_index for device in group} for group in mesh.reshape(-1, 8)]
    assert hosts == [{0, 1}, {2, 3}]
    mesh = sharding.laid_out(MACHINES["v6e:8x8"], (1, 8, 8))
    for group in mesh.reshape(-1, 8):
        xy = np.array([device.coords for device in group])
        assert sorted(np.ptp(xy, axis=0)) == [0, 0, 7]  # a row or a column


def test_slices_follow_one_another():
    one = tpus((2, 2, 1), (2, 2, 1), "TPU v5")
    two = [d._replace(id=d.id + 4, process_index=1, slice_index=1) for d in one]
    mesh = sharding.laid_out([two[0], *one, *two[1:]], (2, 1, 4))
    assert [[d.slice_index for d in group] for group in mesh.reshape(-1, 4)] == [[0] * 4, [1] * 4]
    assert sharding.laid_out([*two, *one], (1, 1, 8)).shape == (1, 1, 8)


def test_hosts_of_different_sizes_are_taken_in_order():
    devices = [Device(id=i, process_index=int(i > 2)) for i in range(8)]  # 3 and 5
    mesh = sharding.laid_out(devices[::-1], (1, 4, 2))
    assert [d.process_index for d in mesh.flat] == [0] * 3 + [1] * 5
