"""The files of examples/ do what the documents say of them."""

import json
import math
import struct
from pathlib import Path

import httpx2
import numpy as np
import pytest
from example_sidecar import FILE, running

from evoid_jax import commandline, config
from evoid_jax.rewards import client
from evoid_jax.sidecars import wire

EXAMPLES = FILE.parent


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


def stripes(step):
    """Return a video (1, 5, 16, 32, 3) whose neighbouring columns differ by `step` grey levels."""
    row_W = (np.arange(32) % 2 * step).astype(np.uint8)
    return np.broadcast_to(row_W[:, None], (1, 5, 16, 32, 3)).copy()


def test_the_sidecar_is_at_most_40_lines():
    assert len(FILE.read_text().splitlines()) <= 40


def test_the_client_gets_its_scores_in_order(url):
    video_BFHWC = np.concatenate([stripes(0), stripes(8), stripes(24)])
    faces = [[np.zeros((16, 32, 3), np.uint8)]] * 3
    asked = ("sharpness", "arcface")
    scores = client.score([url], asked, video_BFHWC, faces, ["a", "b", "c"])
    np.testing.assert_allclose(scores.table.raw_BM[:, 0], [0, 8, 24])
    np.testing.assert_allclose(scores.table.score_BM[:, 0], [0, 0.5, 0.75])
    assert scores.table.valid_BM.tolist() == [[True, False]] * 3
    assert scores.reasons[0] == {"arcface": "no sidecar offers it"}
    assert scores.failed == 0


def test_a_request_it_cannot_read_is_400_with_words(url):
    body = wire.encode(stripes(8), [[np.zeros((16, 32, 3), np.uint8)]], ["a"])
    cut = httpx2.post(f"{url}/score", content=body[:200], trust_env=False)
    assert cut.status_code == 400 and "ValueError" in cut.json()["detail"]


def test_the_request_of_the_protocol_page_byte_for_byte():
    """docs/sidecar_protocol.md shows this header; the client sends exactly it."""
    page = (Path(__file__).parents[1] / "docs" / "sidecar_protocol.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    video = np.arange(2 * 9 * 64 * 64 * 3, dtype=np.uint32).astype(np.uint8)
    video = video.reshape(2, 9, 64, 64, 3)
    large, small = np.full((640, 480, 3), 7, np.uint8), np.full((96, 96, 3), 9, np.uint8)
    large[3, 5] = 0, 1, 2
    prompts = ["A person waves.", "A person nods."]
    rewards = ["arcface", "sharpness"]
    photos, ids = [[large, small]] * 2, ["0", "1"]
    body = wire.encode(video, photos, prompts, rewards=rewards, fps=8, ids=ids)
    (size,) = struct.unpack("<I", body[:4])
    assert json.loads(body[4 : 4 + size]) == shown
    assert body[4 + size :] == video.tobytes() + large.tobytes() + small.tobytes()
    # The page's lines of Python find the photos in it.
    code = page.split("```python\n")[1].split("```")[0]
    names = {"json": json, "math": math, "np": np, "struct": struct}
    exec(code, names)
    for photo, sent in zip(names["photos"](body, 1), (large, small), strict=True):
        np.testing.assert_array_equal(photo, sent)


def test_the_settings_add_one_row_to_the_table():
    cfg = config.from_dict(commandline.load(f"{EXAMPLES / 'sharpness.py'}:tiny").to_dict())
    plain = config.from_dict(commandline.load("configs/evoid.py:tiny").to_dict())
    assert cfg.reward.table[:-1] == plain.reward.table
    assert cfg.reward.table[-1] == config.Metric("sharpness", "quality", 0.1)
    assert cfg.reward.sidecars == ("local", "http://127.0.0.1:8101")


def test_the_settings_for_photographs_ask_for_what_is_served():
    values = commandline.load(f"{EXAMPLES / 'faces.py'}:vace_14b").to_dict()
    cfg = config.from_dict(values)
    assert [metric.name for metric in cfg.reward.table] == ["vqscore", "sharpness"]
    assert cfg.model == "Wan-AI/Wan2.1-VACE-14B-diffusers" and cfg.data.source == ""
