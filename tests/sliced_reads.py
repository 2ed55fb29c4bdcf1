"""Load a pipeline on eight devices and watch what is read; a process of its own, for test_weights.

    python tests/sliced_reads.py FOLDER [PLATFORM_WHOSE_MEMORY_IS_THE_HOST_S ...]

Prints "sharded" where no device asked for more than its slice of any kernel.
"""

import math
import sys

import jax
import numpy as np
from flax import traverse_util

from evoid_jax import rollout, sharding
from evoid_jax.models import loading, weights

PROMPTS = ["a woman nods", "an old man turns his head"]
KERNEL, QUARTER = (64, 64), (16, 64)  # of the tiny transformer's attention


def watched(asked: list):
    """Return a stand-in for `weights._map` that notes (shape of the tensor, shape of the cut)."""
    read = weights._map

    class Spy(np.ndarray):
        def __getitem__(self, at):
            cut = super().__getitem__(at)
            asked.append((self.shape, np.shape(cut)))
            return cut.view(np.ndarray)

    def spy(file, dtype, shape, start):
        return read(file, dtype, shape, start).view(Spy)

    return spy


def main(folder: str, hosts: list[str]) -> None:
    loading.SMALL, loading.HOSTS, asked, read = 0, hosts, [], weights._map
    mesh = sharding.make_mesh(data=2, fsdp=4)
    weights._map = watched(asked)
    frozen = rollout.load(folder, mesh=mesh)
    weights._map = read
    assert {cut for shape, cut in asked if shape == KERNEL} == {QUARTER}

    alone = rollout.load(folder)
    whole = traverse_util.flatten_dict(alone.wan_params)
    for path, x in traverse_util.flatten_dict(frozen.wan_params).items():
        assert x.sharding.spec == sharding.weight_spec("/".join(path), x.shape, mesh), path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(whole[path]))
    kernel = frozen.wan_params["blocks"]["attn1"]["to_q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, *QUARTER)}
    assert len(jax.tree.leaves(frozen.vae_params)[0].sharding.device_set) == 8
    for path, x in traverse_util.flatten_dict(frozen.umt5_params).items():
        stacked = path[0] == "layers"
        in_pieces = x.ndim > 1 + stacked and x.shape[1 if stacked else 0] % 8 == 0
        held = math.prod(x.addressable_shards[0].data.shape)
        assert held * (8 if in_pieces else 1) == x.size, path
    texts = [np.asarray(rollout.encode_text(model, PROMPTS)) for model in (frozen, alone)]
    np.testing.assert_array_equal(*texts)
    print("sharded")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
