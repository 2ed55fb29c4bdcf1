"""What scorers see of a person: every photo in its own pixels, or as the model sees them."""

import dataclasses

import jax
import numpy as np
import pytest
from fake_sidecar import Fake
from servers import serve

from evoid_jax import canvas, config, session, sharding
from evoid_jax.data import pairs
from evoid_jax.rewards.panel import Panel

SIZES = ((50, 40), (33, 91)), ((64, 48), (200, 120))  # of both photos of both pairs
PAIR_B = np.repeat(np.arange(2), 2)
VIDEO = config.Video(frames=5, height=32, width=48)


def batch() -> pairs.PairBatch:
    random = np.random.default_rng(0)
    photos = [[random.integers(0, 256, (*s, 3), dtype=np.uint8) for s in own] for own in SIZES]
    return pairs.PairBatch(photos, ["A person waves.", "A person nods."], None)


def sent(images: pairs.PairBatch, tmp_path, photos: str, monitors=False, of="references"):
    """Return the photos that arrive at a sidecar with each of four videos, in order."""
    fake = Fake()
    with serve(fake.app()) as url:
        reward = config.Reward(sidecars=(url,), judge="", preference=False, photos=photos)
        cfg = dataclasses.replace(config.Config(), video=VIDEO, reward=reward)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        with Panel(reward, mesh, 8, tmp_path) as panel:
            request = session.request(images, PAIR_B, cfg, monitors, proof=False)
            video_BFHWC = np.zeros((4, 5, 32, 48, 3), np.uint8)
            rows = np.arange(4, dtype=np.int32)
            panel.collect([panel.submit(video_BFHWC, request, rows)], request)
    (arrived,) = fake.batches
    assert arrived.prompts == [images.prompts[p] for p in PAIR_B]
    # Both videos of a pair share its photos on the way, whatever becomes of them before.
    assert len({id(photo) for own in arrived.references for photo in own}) == 4
    return getattr(arrived, of)


def test_monitors_are_sent_other_photos_of_the_person_too(tmp_path):
    images, (extra,) = batch(), batch().images[0][:1]
    images = images._replace(others=[[extra], ()])
    asked = {"photos": "original", "monitors": True}
    for own, pair in zip(sent(images, tmp_path, of="others", **asked), PAIR_B, strict=True):
        assert [photo.tobytes() for photo in own] == [x.tobytes() for x in images.others[pair]]
    assert sent(images, tmp_path, of="others", photos="original") is None
    (seen,) = sent(images, tmp_path, of="others", photos="canvas", monitors=True)[0]
    np.testing.assert_array_equal(seen, canvas.seen(extra, 32, 48))


def test_scorers_get_all_photos_pixel_by_pixel(tmp_path):
    images = batch()
    for own, pair in zip(sent(images, tmp_path, "original"), PAIR_B, strict=True):
        assert [photo.shape[:2] for photo in own] == list(SIZES[pair])
        for photo, image in zip(own, images.images[pair], strict=True):
            np.testing.assert_array_equal(photo, image)


def test_the_canvas_is_what_the_model_sees_of_all_of_them(tmp_path):
    images = batch()
    for own, pair in zip(sent(images, tmp_path, "canvas"), PAIR_B, strict=True):
        for photo, image in zip(own, images.images[pair], strict=True):
            np.testing.assert_array_equal(photo, canvas.seen(image, 32, 48))


def test_original_is_the_default_and_nothing_else_is_taken():
    assert config.Config().reward.photos == "original"
    values = config.to_dict(config.Config())
    values["reward"]["photos"] = "square"
    with pytest.raises(ValueError, match=r"config\.reward\.photos"):
        config.from_dict(values)
