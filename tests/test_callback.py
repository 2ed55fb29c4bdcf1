import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from evoid_jax.rewards import callback

M = 2


def one_device():
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))


def videos(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 4, 5, 3), dtype=np.uint8)


def by_pixels(video_bFHWC, index_b):
    """Score a video by its own first pixel and its index, so that mixed-up rows show."""
    raw_bM = np.stack([video_bFHWC[:, 0, 0, 0, 0], index_b], axis=1).astype(np.float32)
    return raw_bM, raw_bM / 255, np.ones(raw_bM.shape, bool)


def want(video_BFHWC, index_B):
    return np.stack([video_BFHWC[:, 0, 0, 0, 0], index_B], axis=1).astype(np.float32)


@pytest.fixture
def made():
    pairs = []

    def make(score_fn, **options):
        pairs.append(callback.make(score_fn, one_device(), "data", M, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def test_scores_come_back_to_their_videos(made):
    pair, video, index = made(by_pixels), videos(), np.array([7, 5, 3, 1], np.int32)
    raw_BM, score_BM, valid_BM = pair.collect(pair.submit(video, index))
    np.testing.assert_array_equal(raw_BM, want(video, index))
    np.testing.assert_allclose(score_BM, want(video, index) / 255, rtol=1e-6)
    assert valid_BM.dtype == bool and np.all(valid_BM)
    assert jax.jit(lambda x: x.sum())(score_BM).shape == ()  # another program can take them


def test_tickets_of_several_submits_can_be_joined_and_reordered(made):
    pair, index = made(by_pixels), np.arange(4, dtype=np.int32)
    first, second = videos(seed=1), videos(seed=2)
    tickets = [pair.submit(first, index), pair.submit(second, index + 4)]
    order = np.array([5, 0, 7, 2, 1, 3, 6, 4])
    raw_BM, _, valid_BM = pair.collect(jnp.concatenate(tickets)[order])
    both = want(np.concatenate([first, second]), np.arange(8))
    np.testing.assert_array_equal(raw_BM, both[order])
    assert np.all(valid_BM)


def test_a_ticket_is_good_once(made):
    pair = made(by_pixels)
    ticket_B = pair.submit(videos(), np.arange(4, dtype=np.int32))
    assert np.all(pair.collect(ticket_B)[2])
    raw_BM, score_BM, valid_BM = pair.collect(ticket_B)
    assert not np.any(valid_BM) and np.all(np.isnan(raw_BM)) and np.all(np.isnan(score_BM))


def test_other_work_runs_while_the_host_scores(made):
    """Scoring waits for an event that is set only after later device work is done."""
    go, began, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(video_bFHWC, index_b):
        began.set()
        assert go.wait(60)
        ended.set()
        return by_pixels(video_bFHWC, index_b)

    pair, video, index = made(slow), videos(), np.arange(4, dtype=np.int32)
    ticket_B = pair.submit(video, index).block_until_ready()
    work = jax.jit(lambda x: x @ x.T)(jnp.ones((64, 64))).block_until_ready()
    later_B = pair.submit(video, index + 4).block_until_ready()
    assert began.wait(60) and not ended.is_set() and work[0, 0] == 64
    go.set()
    np.testing.assert_array_equal(pair.collect(ticket_B)[0], want(video, index))
    np.testing.assert_array_equal(pair.collect(later_B)[0], want(video, index + 4))


def boom(video_bFHWC, index_b):
    raise RuntimeError("the sidecar burns")


def wrong_shape(video_bFHWC, index_b):
    return tuple(x[:, :1] for x in by_pixels(video_bFHWC, index_b))


def nothing(video_bFHWC, index_b):
    return None


@pytest.mark.parametrize("score_fn", [boom, wrong_shape, nothing])
def test_failures_are_invalid_and_raise_nothing(made, score_fn, caplog):
    pair = made(score_fn)
    raw_BM, score_BM, valid_BM = pair.collect(pair.submit(videos(), np.arange(4, dtype=np.int32)))
    assert not np.any(valid_BM) and np.all(np.isnan(raw_BM)) and np.all(np.isnan(score_BM))
    assert "scoring 4 videos failed" in caplog.text


def test_the_next_batch_is_scored_after_a_failure(made):
    def sometimes(video_bFHWC, index_b):
        return boom(video_bFHWC, index_b) if index_b[0] < 0 else by_pixels(video_bFHWC, index_b)

    pair, index = made(sometimes), np.arange(4, dtype=np.int32)
    assert not np.any(pair.collect(pair.submit(videos(), index - 9))[2])
    assert np.all(pair.collect(pair.submit(videos(), index))[2])


def test_single_scores_may_be_missing(made):
    def partly(video_bFHWC, index_b):
        raw_bM, score_bM, valid_bM = by_pixels(video_bFHWC, index_b)
        valid_bM[1, 0] = False
        score_bM[2, 1] = np.nan  # claims to be valid
        return raw_bM, score_bM, valid_bM

    pair, video, index = made(partly), videos(), np.arange(4, dtype=np.int32)
    raw_BM, score_BM, valid_BM = map(np.asarray, pair.collect(pair.submit(video, index)))
    lost = np.zeros((4, 2), bool)
    lost[1, 0] = lost[2, 1] = True
    np.testing.assert_array_equal(~valid_BM, lost)
    np.testing.assert_array_equal(np.isnan(score_BM), lost)
    np.testing.assert_array_equal(raw_BM[~lost], want(video, index)[~lost])


def test_too_late_is_invalid(made):
    go = threading.Event()

    def never(video_bFHWC, index_b):
        go.wait(60)
        return by_pixels(video_bFHWC, index_b)

    pair = made(never, timeout=0.05)
    assert not np.any(pair.collect(pair.submit(videos(), np.arange(4, dtype=np.int32)))[2])
    go.set()


def test_the_memory_of_the_arguments_is_kept(made):
    """Videos are scored after their device buffers are gone and used for others."""
    go, seen = threading.Event(), []

    def slow(video_bFHWC, index_b):
        assert go.wait(60)
        seen.append(video_bFHWC)
        return by_pixels(video_bFHWC, index_b)

    pair, index = made(slow, workers=16), np.arange(4, dtype=np.int32)
    batches = [videos(seed=s) for s in range(8)]
    tickets = [pair.submit(jnp.asarray(x), index).block_until_ready() for x in batches]
    go.set()
    for ticket_B, video in zip(tickets, batches, strict=True):
        np.testing.assert_array_equal(pair.collect(ticket_B)[0], want(video, index))
    assert all(isinstance(x, np.ndarray) and x.dtype == np.uint8 for x in seen)


def run_on_eight():
    """Check shards, replicas and shardings; run in a process of its own with 8 devices."""
    assert jax.device_count() == 8
    video, index = videos(8), np.arange(8, dtype=np.int32)
    calls = []

    def score_fn(video_bFHWC, index_b):
        calls.append(index_b.tolist())
        return by_pixels(video_bFHWC, index_b)

    for shape, names, axes, shards in [
        ((8,), ("data",), "data", 8),
        ((2, 2, 2), ("data", "fsdp", "context"), ("data", "fsdp"), 4),
    ]:
        calls.clear()
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
        pair = callback.make(score_fn, mesh, axes, M)
        rows = NamedSharding(mesh, P(axes))
        ticket_B = pair.submit(jax.device_put(video, rows), jax.device_put(index, rows))
        raw_BM, score_BM, valid_BM = pair.collect(ticket_B)
        np.testing.assert_array_equal(raw_BM, want(video, index))
        assert np.all(valid_BM) and len(calls) == shards  # replicas are scored once
        assert sorted(b for call in calls for b in call) == list(range(8))
        for x in (ticket_B, raw_BM, score_BM, valid_BM):
            assert x.sharding.is_equivalent_to(rows, x.ndim)
        for shard in raw_BM.addressable_shards:  # every replica holds the same
            np.testing.assert_array_equal(shard.data, want(video, index)[shard.index[0]])
        np.testing.assert_allclose(
            jax.jit(lambda x: x.mean(axis=0))(raw_BM), want(video, index).mean(axis=0), rtol=1e-6
        )
        pair.close()
    print("eight devices agree")


def test_eight_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "eight devices agree" in done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    run_on_eight()
