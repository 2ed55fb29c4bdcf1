"""Faults of found footage: each does what its name says, grows with severity, spares the input."""

import numpy as np
import pytest

from evoid_jax.world import faults, portraits


@pytest.fixture(scope="module")
def clip():
    return portraits.render(portraits.scene(portraits.SPLITS["pretrain"][0], 0))


def spoiled(fault, clip, severity):
    return fault(clip / 255.0, severity, np.random.default_rng(3))


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_damage_grows_from_nothing_with_severity(fault, clip):
    moved = [np.abs(spoiled(fault, clip, s) - clip / 255.0).mean() for s in (0, 0.3, 0.6, 1)]
    assert moved[0] < 1e-6 and np.all(np.diff(moved) > 0.003), moved


def test_haze_takes_four_fifths_of_the_contrast(clip):
    np.testing.assert_allclose(spoiled(faults.haze, clip, 1.0).std(), 0.2 * (clip / 255).std())


def test_tint_is_one_cast_of_length_035_that_keeps_brightness(clip):
    moved = spoiled(faults.tint, clip, 1.0) - clip / 255.0
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0, 0, 0], moved.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(moved[0, 0, 0]), 0.35)
    np.testing.assert_allclose(moved.mean(), 0, atol=1e-12)


def test_defocus_keeps_a_flat_picture_and_softens_edges(clip):
    flat = np.full((2, 64, 64, 3), 0.4)
    np.testing.assert_allclose(faults.defocus(flat, 1.0, None), flat)
    edges = lambda x: np.square(np.diff(x, axis=2)).mean()
    assert edges(spoiled(faults.defocus, clip, 1.0)) < 0.5 * edges(clip / 255)


def test_a_share_of_the_clips_is_found_faulty_and_the_rest_is_untouched(clip):
    before = clip.copy()
    clips = [faults.as_found(clip, 0.3, np.random.default_rng((0, i))) for i in range(400)]
    faulty = [i for i, x in enumerate(clips) if x is not clip]
    assert 90 <= len(faulty) <= 150
    more = [faults.as_found(clip, 0.6, np.random.default_rng((0, i))) for i in range(400)]
    assert all(np.array_equal(more[i], clips[i]) for i in faulty)  # a larger share adds to it
    assert {x.dtype for x in clips} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(clip, before)
