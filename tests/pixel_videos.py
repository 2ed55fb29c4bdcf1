"""Videos whose pixels are 1, 2, ..., which a Fake scores by them, to see who gets which score."""

import time

import numpy as np

from evoid_jax.rewards import client

QUICK = client.Options(timeout=60.0, attempts=3, backoff=0.01, probe=0.2, batch=2, patience=0.3)


def batch(count: int) -> dict:
    """Return `client.score`'s arguments for videos whose pixels are 1, 2, ..."""
    pixel_B = np.arange(1, count + 1, dtype=np.uint8).reshape(-1, 1, 1, 1, 1)
    photo = np.full((8, 8, 3), 7, np.uint8)
    return {
        "video_BFHWC": np.broadcast_to(pixel_B, (count, 3, 16, 16, 3)).copy(),
        "references": [[photo]] * count,
        "prompts": [f"video {b}" for b in range(count)],
    }


def check(scores, count: int):
    """Every video has its own scores, in the columns of their rewards."""
    want_BM = 1.0 + np.arange(count)[:, None] + np.arange(7)
    np.testing.assert_array_equal(scores.table.raw_BM[:, :7], want_BM)
    assert scores.failed == 0


def port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
