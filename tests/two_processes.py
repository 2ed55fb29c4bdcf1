"""Check facts of two processes; test_distributed.py starts both.

python two_processes.py FOLDER
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import conftest  # noqa: F401  exact matmuls, compiled programs cached
import jax
import jax.numpy as jnp
import numpy as np
from compare import apart, apart_whole
from damage import damage
from fake_sidecar import Fake
from servers import serve
from three_steps import shaken_base, trained

from evoid_jax import checkpoint, config, distributed, sharding
from evoid_jax.rewards import absent
from evoid_jax.rewards.panel import Panel
from evoid_jax.rewards.request import Request
from evoid_jax.sidecars.tiny import judge as judge_server

PAIR_B = np.repeat(np.arange(2), 4)


def check_exchange(me: int):
    mine = [["a", float("nan")], ["b" * 3000, None]][me]
    (a, nan), (b, none) = distributed.exchange(mine)
    assert (a, b, none) == ("a", "b" * 3000, None) and np.isnan(nan)
    assert distributed.own_folder(Path("logs")) == Path(f"logs/process_{me}")
    with distributed.leader_first():
        entered = time.time()
    assert np.diff(distributed.exchange(entered)) > 0


def check_arrays(mesh):
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    for put, shape in ((sharding.place_batch, (2, 3)), (sharding.replicate, (8, 3))):
        for source in (x, jnp.asarray(x), jax.device_put(x, jax.local_devices()[1])):
            placed = put(put(source, mesh), mesh)
            assert not placed.is_fully_addressable
            assert {shard.data.shape for shard in placed.addressable_shards} == {shape}
            np.testing.assert_array_equal(distributed.whole(placed), x)
            np.testing.assert_array_equal(distributed.whole(placed[5]), x[5])


def check_panel(me: int, mesh):
    """Each process has its own servers and asks about its own videos; all know all the answers."""
    video = np.random.default_rng(0).integers(0, 256, (8, 9, 64, 64, 3), dtype=np.uint8)
    faces = [[frame_HWC] for frame_HWC in video[:, 0]]
    prompts = [f"A person waves {i} times." for i in range(8)]
    reward_B = np.linspace(0, 1, 8)
    fake = Fake()
    with serve(fake.app()) as sidecar, serve(judge_server.app()) as url:
        cfg = config.Reward(sidecars=(sidecar,), judge=f"{url}/v1")
        with TemporaryDirectory() as logs, Panel(cfg, mesh, 8, logs) as panel:
            request = Request(faces, prompts, monitors=True)
            placed = sharding.place_batch(video, mesh)
            ticket_B = panel.submit(placed, request, np.arange(8, dtype=np.int32))
            scores = panel.collect([ticket_B], request)
            assert sorted(request.videos) == list(range(4 * me, 4 * me + 4))
            assert sum(len(batch.videos) for batch in fake.batches) == 4
            first_B = video[:, 0, 0, 0, 0].astype(np.float32)
            np.testing.assert_array_equal(
                scores.raw_BM[:, :7], first_B[:, None] + np.arange(7.0)[None]
            )
            assert np.all(scores.valid_BM)
            np.testing.assert_array_equal(panel.monitors(request)["truth"], 2 * first_B)
            attention_G, answered = panel.attention(request, PAIR_B, reward_B, np.ones(8, bool))
            want_G, pairs = panel.judge.attention(video, faces, prompts, PAIR_B, reward_B)
            assert answered and pairs == 2
            np.testing.assert_allclose(attention_G, want_G, rtol=1e-6)
            # Each process: 4 grades and its own pair, then both pairs, of which it had the one.
            usage = panel.judge_usage()
            assert (usage["calls"], usage["cached"], usage["failures"]) == (12, 2, 0)


def check_missing(me: int, mesh):
    """What one process lost both wait for, leave out or stop at."""
    video, prompts = np.full((8, 5, 16, 16, 3), 9, np.uint8), ["A person waves."] * 8
    faces = [[frame_HWC] for frame_HWC in video[:, 0]]

    def collected(fake: Fake, **changes):
        with serve(fake.app()) as sidecar:
            cfg = config.Reward(sidecars=(sidecar,), judge="", preference=False, **changes)
            with Panel(cfg, mesh, 8, "unused") as panel:
                request = Request(faces, prompts)
                placed = sharding.place_batch(video, mesh)
                ticket_B = panel.submit(placed, request, np.arange(8, dtype=np.int32))
                return panel.collect([ticket_B], request), request.why

    both_shards = lambda times: [(400, "out of order")] * 2 * times
    late, why = collected(Fake(before=both_shards(1)))  # both had nothing, and have it again
    assert np.all(late.valid_BM[:, :7]) and why == {}
    half, why = collected(Fake(before=both_shards(1 if me == 1 else 0)))
    np.testing.assert_array_equal(
        half.valid_BM[:, :7], np.repeat([[True] * 7, [False] * 7], 4, axis=0)
    )
    ((reason, count),) = why.items()
    assert "out of order" in reason and count == 4 * 7
    try:
        collected(Fake(before=both_shards(9)), patience=1.0)
        raise AssertionError("went on")
    except absent.MissingReward as error:
        assert "asked for again over 1 s" in str(error)


def check_training():
    """Three updates on both processes' devices are those on one, wherever the mesh is cut."""
    base = shaken_base()
    want, _ = trained(base, sharding.make_mesh(devices=jax.local_devices()[:1]))
    for data, fsdp, context in ((4, 1, 1), (1, 2, 2), (1, 1, 4)):
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, context=context)
        got, _ = trained(base, mesh)
        assert apart_whole(got["gradient"], want["gradient"]) < 1e-5
        for name, limit in {"terms": 1e-5, "gradient": 1e-4, "adapters": 1e-5}.items():
            assert apart(got[name], want[name]) < limit, (mesh.shape, name)


def check_checkpoint(me: int, mesh, folder: str):
    """All processes read the newest step that is sound for all of them."""
    noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    state = lambda value: sharding.replicate({"a": noise + value, "step": jnp.asarray(3)}, mesh)
    checkpoints = checkpoint.open_folder(folder, keep=2)
    for step in (1, 2):
        checkpoint.save(checkpoints, step, state(step), {"memory": [step]})
    checkpoints.manager.wait_until_finished()
    for sound in (2, 1):
        back, host, _ = checkpoint.restore(checkpoints, state(0))
        np.testing.assert_array_equal(distributed.whole(back["a"]), noise + np.float32(sound))
        assert host == {"memory": [sound]} and len(checkpoint.digests(back)) == 2
        if me == 0 and sound == 2:
            damage(checkpoints.folder / "2")
        distributed.exchange(None)
    checkpoint.close(checkpoints)


def agree(folder: str):
    me, mesh = jax.process_index(), sharding.make_mesh()
    assert jax.process_count() == 2 and mesh.shape["data"] == 4
    assert distributed.leads() == (me == 0)
    check_exchange(me)
    check_arrays(mesh)
    check_panel(me, mesh)
    check_missing(me, mesh)
    check_training()
    check_checkpoint(me, mesh, folder)
    distributed.say("two processes agree")


if __name__ == "__main__":
    with distributed.together(distributed.settings(os.environ)):
        agree(sys.argv[1])
