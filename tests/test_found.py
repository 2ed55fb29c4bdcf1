"""Found pairs: those who sit still look like their photo, those who move do not."""

import numpy as np
import pytest

from evoid_jax.world import portraits
from evoid_jax.world.found import found
from evoid_jax.world.people import ATTRIBUTES

ASKED = portraits.scene(7, 0)


def shown(posed, drift=0.1, count=300):
    return [found(ASKED, posed, drift, np.random.default_rng((0, i))) for i in range(count)]


def test_who_is_posed_looks_like_the_photo_and_hardly_moves():
    for scene in shown(posed=1.0, count=20):
        np.testing.assert_array_equal(scene.identity, ASKED.identity)
        assert scene.amplitude < 0.3 * ASKED.amplitude and scene.camera == "static"
        for field in ("action", "background", "tint", "side", "seed"):
            assert getattr(scene, field) == getattr(ASKED, field)


def test_who_moves_is_off_by_the_drift_and_wears_what_he_wears():
    people_PA = np.stack([scene.identity for scene in shown(posed=0.0, drift=0.1)])
    off_PA = people_PA - ASKED.identity
    kept = [name in ("glasses", "beard") for name in ATTRIBUTES]
    assert np.all(off_PA[:, kept] == 0)
    inner = (ASKED.identity > 0.1) & (ASKED.identity < 0.9) & ~np.array(kept)
    assert inner.sum() >= 8
    assert np.abs(off_PA).max() <= 0.1 + 1e-6
    # of a uniform offset the mean size is half of the greatest
    np.testing.assert_allclose(np.abs(off_PA[:, inner]).mean(), 0.05, atol=0.003)
    assert all(scene.amplitude == ASKED.amplitude for scene in shown(posed=0.0, count=5))


def test_a_larger_share_only_adds_to_the_posed():
    few, many = ([s.amplitude != ASKED.amplitude for s in shown(posed)] for posed in (0.3, 0.6))
    assert sum(few) / 300 == pytest.approx(0.3, abs=0.06)
    assert sum(many) / 300 == pytest.approx(0.6, abs=0.06)
    assert all(b for a, b in zip(few, many, strict=True) if a)
