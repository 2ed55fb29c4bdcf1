"""Requests travel with their videos: what one batch is told and answered never reaches another."""

import dataclasses
import gc
import time

import jax
import numpy as np
import pytest
from fake_sidecar import Fake
from fastapi import FastAPI
from servers import serve

from evoid_jax import config, sharding
from evoid_jax.rewards.panel import Panel, Request

VIDEOS = 4
ROWS = np.arange(VIDEOS, dtype=np.int32)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def videos(first: int) -> np.ndarray:
    """Return videos that a Fake scores by their first pixel: first, first + 1, ..."""
    video_BFHWC = np.zeros((VIDEOS, 3, 16, 16, 3), np.uint8)
    video_BFHWC[:] = np.arange(first, first + VIDEOS, dtype=np.uint8).reshape(-1, 1, 1, 1, 1)
    return video_BFHWC


def request(word: str, monitors: bool = False) -> Request:
    photos = [np.zeros((8, 8, 3), np.uint8)]
    return Request([photos] * VIDEOS, [f"{word} {row}" for row in ROWS], monitors=monitors)


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def panel(fake, tmp_path):
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", timeout=20.0)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            yield panel


def test_two_requests_under_way_at_once_keep_their_own(panel, fake):
    first, second = request("first", monitors=True), request("second")
    tickets = [panel.submit(videos(10), first, ROWS), panel.submit(videos(50), second, ROWS[::-1])]
    scores = panel.collect(tickets)
    np.testing.assert_array_equal(scores.raw_BM[:, 0], [*range(10, 14), *range(50, 54)])
    assert np.all(scores.valid_BM[:, :7]) and not np.any(scores.valid_BM[:, 7])
    # Each video was sent with the prompt of its row in its own request ...
    sent = {}
    for batch in fake.batches:
        pixels = [int(video[0, 0, 0, 0]) for video in batch.videos]
        sent |= dict(zip(pixels, batch.prompts, strict=True))
    of_first = {10 + row: f"first {row}" for row in ROWS}
    of_second = {50 + i: f"second {row}" for i, row in enumerate(ROWS[::-1])}
    assert sent == of_first | of_second
    # ... and what came back besides scores stands in that request alone.
    np.testing.assert_array_equal(panel.monitors(first)["truth"], [20, 22, 24, 26])
    assert panel.monitors(second) == {}
    assert [int(second.videos[row][0, 0, 0, 0]) for row in ROWS] == [53, 52, 51, 50]


def test_an_answer_after_its_batch_was_dropped_reaches_nobody(fake, tmp_path):
    fake.before = [1.0]  # seconds that the first request is kept waiting
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", timeout=20.0)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            dropped, kept = request("dropped"), request("kept")
            jax.block_until_ready(panel.submit(videos(10), dropped, ROWS))
            while not fake.posts:
                time.sleep(0.01)
            del dropped
            scores = panel.collect([panel.submit(videos(50), kept, ROWS)])
            while len(fake.batches) < 2:
                time.sleep(0.01)
            np.testing.assert_array_equal(scores.raw_BM[:, 0], [50, 51, 52, 53])
            assert sorted(kept.videos) == [0, 1, 2, 3]
            assert all(int(video[0, 0, 0, 0]) >= 50 for video in kept.videos.values())


def test_a_request_is_forgotten_with_its_batch(panel):
    """Its videos are gigabytes at a real size."""
    done = request("done")
    panel.collect([panel.submit(videos(10), done, ROWS)])
    number = done.number
    assert number in panel._requests
    del done
    gc.collect()
    assert number not in panel._requests


def test_the_table_of_the_config_says_who_is_asked(fake, tmp_path):
    mine = (config.METRICS[2], config.Metric("sharpness", "quality", 0.5))
    fake.names = ["sharpness", "gme"]
    fake.column = {"sharpness": 3, "gme": 2}
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", table=mine)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            scores = panel.collect([panel.submit(videos(10), request("a"), ROWS)])
    np.testing.assert_array_equal(scores.raw_BM, np.stack([ROWS + 12, ROWS + 13], axis=1))
    assert set(fake.batches[0].rewards) == {"gme", "sharpness"}


def test_a_reward_that_no_sidecar_offers_is_refused_unless_it_only_watches(fake, tmp_path):
    fake.names = ["gme"]
    rows = config.METRICS[2], config.Metric("sharpness", "quality", 0.5)
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", table=rows)
        with pytest.raises(ValueError, match="has sharpness, which no sidecar .*they offer gme"):
            Panel(cfg, one_device(), 8, tmp_path)
        idle = rows[0], dataclasses.replace(rows[1], prior=0.0)
        Panel(dataclasses.replace(cfg, table=idle), one_device(), 8, tmp_path).close()


def test_a_sidecar_that_is_not_ours_is_named_with_its_setting(tmp_path):
    with serve(FastAPI()) as url:  # answers 404
        cfg = config.Reward(sidecars=(url,), judge="")
        words = f"^config.reward.sidecars: {url}/info: HTTP 404.*; start a reward sidecar there"
        with pytest.raises(ConnectionError, match=words):
            Panel(cfg, one_device(), 8, tmp_path)
