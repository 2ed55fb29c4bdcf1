"""The calls of a notebook do what the commands do."""

import numpy as np
import pytest
from fake_sidecar import SEVEN, Fake
from servers import serve
from small_run import SMALL

from evoid_jax import media, notebook
from evoid_jax.world import portraits

PROMPT = "A person waves a hand."


@pytest.fixture(scope="module")
def model():
    return notebook.load()


@pytest.fixture(scope="module")
def photo():
    return portraits.reference(portraits.identity(3), 80)


def test_a_seed_and_a_photo_make_one_video(model, photo, tmp_path):
    media.write_image(tmp_path / "face.png", photo)
    video = notebook.generate(model, tmp_path / "face.png", PROMPT, seed=1, steps=2)
    assert video.shape == (9, 64, 64, 3) and video.dtype == np.uint8
    again = notebook.generate(model, photo, PROMPT, seed=1, steps=2)
    np.testing.assert_array_equal(video, again)
    assert np.any(video != notebook.generate(model, photo, PROMPT, seed=2, steps=2))


def test_a_size_that_the_model_cannot_make_is_refused(model, photo):
    with pytest.raises(ValueError, match="height must be a positive multiple of 16, got 50"):
        notebook.generate(model, photo, PROMPT, height=50)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        notebook.generate(model, photo, PROMPT, steps=0)


def test_scores_come_by_name(photo):
    video = np.full((3, 32, 32, 3), 51, np.uint8)
    fake = Fake()
    with serve(fake.app()) as url:
        images = [photo, [photo, photo[::2]]]
        scores = notebook.score([video, video * 2], images, [PROMPT] * 2, sidecars=[url])
    assert list(scores) == list(SEVEN)
    np.testing.assert_allclose(scores["arcface"], [0.2, 0.4], rtol=1e-6)
    one, two = fake.batches[0].references
    np.testing.assert_array_equal(one[0], photo)  # whole, not on a canvas of the videos' size
    np.testing.assert_array_equal(two[1], photo[::2])


def test_a_run_is_made_and_read(tmp_path):
    flat = {
        f"{a}.{b}": v for a, part in SMALL.items() if a != "save_every" for b, v in part.items()
    }
    changes = flat | {"steps": 1, "data.heldout_identities": 1, "data.cache": str(tmp_path / "c")}
    run = notebook.evolve("configs/evoid.py:tiny", tmp_path / "run", changes)
    assert [row["step"] for row in run.steps] == [0] and run.summary["steps"] == 1
    assert notebook.load(adapter=run.adapter).adapter is not None
    assert notebook.read(tmp_path / "run").steps == run.steps


def test_a_setting_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.train\.lrr.*config\.train\.lr"):
        notebook.evolve("configs/evoid.py:tiny", tmp_path, {"train.lrr": 1.0})
    with pytest.raises(ValueError, match=r"config\.steps must be"):
        notebook.evolve("configs/evoid.py:tiny", tmp_path, {"steps": "many"})
