"""Gradients that are far longer than usual are cut, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evoid_jax import clipping


def gradient(norm: float):
    """A gradient of this global norm, in two leaves."""
    return {"a": jnp.array([0.6 * norm, 0.0]), "b": jnp.array([[0.8 * norm]])}


def cut(norms: list[float], factor=2.0) -> list[float]:
    """Return the norms that gradients of these norms have after the clipping."""
    clip = clipping.clip_by_usual_norm(factor)
    update = jax.jit(clip.update)
    state, after = clip.init(gradient(1.0)), []
    for norm in norms:
        clipped, state = update(gradient(norm), state)
        np.testing.assert_allclose(clipped["a"][0] * 4, clipped["b"][0, 0] * 3, rtol=1e-6)
        after.append(float(jnp.hypot(clipped["a"][0], clipped["b"][0, 0])))
    return after


def test_usual_gradients_are_untouched_to_the_last_bit():
    clip = clipping.clip_by_usual_norm(2.0)
    state = clip.init(gradient(1.0))
    for norm in [0.02, 0.021, 0.019, 0.02, 0.03, 0.015] * 8:
        clipped, state = clip.update(gradient(norm), state)
        jax.tree.map(np.testing.assert_array_equal, clipped, gradient(norm))


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("usual", [1e-6, 0.02, 30.0])
def test_a_spike_is_cut_to_so_many_times_the_usual(factor, usual):
    norms = [usual] * 20 + [100 * usual, usual]
    np.testing.assert_allclose(
        cut(norms, factor), [usual] * 20 + [factor * usual, usual], rtol=1e-5
    )


def test_the_first_steps_are_untouched():
    np.testing.assert_allclose(cut([1, 100, 0.01, 7, 500]), [1, 100, 0.01, 7, 8], rtol=1e-5)


def test_lasting_growth_is_followed():
    """Of 16 norms the median is 1 while at most 7 are 10, 5.5 with 8 of each, then 10."""
    after = cut([1.0] * 16 + [10.0] * 10)
    np.testing.assert_allclose(after[16:], [2] * 8 + [10] * 2, rtol=1e-5)


def test_nothing_to_train_on_and_what_is_not_finite_do_not_count():
    quiet = [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 4.0, 0.0]
    np.testing.assert_allclose(cut([*quiet, 50.0])[-1], 2 * 2.5, rtol=1e-5)
    clip = clipping.clip_by_usual_norm(2.0)
    state = clip.init(gradient(1.0))
    _, state = clip.update(gradient(1.0), state)
    _, after = clip.update(gradient(float("nan")), state)
    jax.tree.map(np.testing.assert_array_equal, after, state)


# --- updates that may not be applied


def terms(loss=0.3, drift=0.01, norm=0.02) -> dict:
    return {"loss": {"total": loss}, "drift": {"evo_init": drift}, "grad_norm": norm}


def is_sound(found: dict, update: float = 0.1, adapter: float = 1.0, most_drift: float = 1.0):
    arrays = jax.tree.map(jnp.float32, found)
    return bool(jax.jit(clipping.sound)(arrays, gradient(update), gradient(adapter), most_drift))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_of_numbers_that_are_not_finite_is_refused(bad):
    assert is_sound(terms())
    assert not is_sound(terms(loss=bad))
    assert not is_sound(terms(drift=bad))
    assert not is_sound(terms(norm=bad))
    assert not is_sound(terms(), update=bad)


def test_an_update_longer_than_the_adapter_is_refused():
    assert is_sound(terms(), update=0.99, adapter=1.0)
    assert not is_sound(terms(), update=1.01, adapter=1.0)
    assert is_sound(terms(), update=0.0, adapter=0.0)


def test_an_adapter_that_has_left_its_start_is_refused_unless_that_is_allowed():
    assert is_sound(terms(drift=0.99)) and not is_sound(terms(drift=1.01))
    assert is_sound(terms(drift=0.5), most_drift=0.6)
    assert not is_sound(terms(drift=0.5), most_drift=0.4)
    assert is_sound(terms(drift=1e6), most_drift=0.0)
