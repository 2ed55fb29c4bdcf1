"""flow.py against diffusers' schedulers, and the laws of the path and of the time lists."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from evoid_jax import flow

NOISE = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 4)).astype(np.float32)
GRID = [(4, 3.0), (10, 5.0), (20, 16.0), (20, 3.0), (1, 3.0), (2, 5.0)]


def scheduler(kind: str, shift: float):
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def velocity(xp, x, t):
    """Some smooth, nonlinear field that depends on time."""
    return xp.tanh(1.7 * x + 0.3) * (0.5 + t / 1000) - 0.2 * x**2 / (1 + x**2)


@pytest.mark.parametrize("kind", ["unipc", "euler"])
@pytest.mark.parametrize(("steps", "shift"), GRID)
def test_grid_equals_diffusers(kind, steps, shift):
    theirs = scheduler(kind, shift)
    theirs.set_timesteps(steps)
    table = flow.schedule(kind, steps, shift)
    exact = dict(rtol=0, atol=0) if kind == "unipc" else dict(rtol=3e-7, atol=0)
    np.testing.assert_allclose(table.timesteps_N, theirs.timesteps.numpy(), **exact)
    np.testing.assert_allclose(table.sigmas_N, theirs.sigmas.numpy()[:-1], **exact)


@pytest.mark.parametrize("kind", ["unipc", "euler"])
@pytest.mark.parametrize(("steps", "shift"), GRID)
def test_solve_equals_diffusers(kind, steps, shift):
    theirs = scheduler(kind, shift)
    theirs.set_timesteps(steps)
    x = torch.tensor(NOISE)
    for t in theirs.timesteps:
        x = theirs.step(velocity(torch, x, t), t, x, return_dict=False)[0]
    table = flow.schedule(kind, steps, shift)
    ours = jax.jit(lambda x: flow.solve(table, lambda x, t: velocity(jnp, x, t), x))(NOISE)
    assert relative(np.asarray(ours), x.numpy()) <= 1e-5


@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_a_constant_velocity_is_integrated_exactly(kind):
    table = flow.schedule(kind, 7, 5.0)
    x0 = np.float32(0.25) * NOISE[::-1] + 1
    ours = flow.solve(table, lambda x, t: jnp.asarray(NOISE - x0), NOISE)
    np.testing.assert_allclose(ours, x0, atol=2e-5)


def test_coefficients_preserve_noise_and_video():
    """A point x_t = (1 - s) m + s e with constant m moves to (1 - s') m + s' e."""
    table = flow.schedule("unipc", 20, 3.0)
    sigma = np.append(table.sigmas_N, 0)
    c, p = table.corrector_N5, table.predictor_N3
    np.testing.assert_allclose(p[:, 0] * sigma[:-1], sigma[1:], atol=1e-6)
    np.testing.assert_allclose(
        p[:, 0] * (1 - sigma[:-1]) + p[:, 1] + p[:, 2], 1 - sigma[1:], atol=1e-6
    )
    np.testing.assert_allclose(c[1:, 1] * sigma[:-2], sigma[1:-1], atol=1e-6)
    np.testing.assert_allclose(
        c[1:, 1] * (1 - sigma[:-2]) + c[1:, 2:].sum(1), 1 - sigma[1:-1], atol=2e-6
    )


def test_rows_can_be_run_apart():
    table = flow.schedule("unipc", 6, 3.0)
    v = lambda x, t: velocity(jnp, x, t)
    state = flow.start(jnp.asarray(NOISE))
    for i in range(6):
        state = flow.advance(jax.tree.map(lambda a, i=i: a[i : i + 1], table), v, state)
    np.testing.assert_allclose(state.x, flow.solve(table, v, jnp.asarray(NOISE)), rtol=2e-5)


def test_path_runs_from_noise_to_video():
    x0, noise = jnp.full((2,), 3.0), jnp.full((2,), -1.0)
    np.testing.assert_array_equal(flow.add_noise(x0, noise, 1.0), noise)
    np.testing.assert_array_equal(flow.add_noise(x0, noise, 0.0), x0)
    x_t = flow.add_noise(x0, noise, 0.25)
    np.testing.assert_array_equal(x_t, [2.0, 2.0])
    np.testing.assert_array_equal(x_t - 0.25 * flow.velocity(x0, noise), x0)


def test_train_timesteps_literal():
    t = flow.train_timesteps(20, 5.0)
    assert t.shape == (20,)
    assert t[0] == 1.0
    np.testing.assert_allclose(t[-1], 0.25 / 1.2, rtol=1e-6)  # 5/20 / (1 + 4/20)
    np.testing.assert_allclose(flow.train_timesteps(4, 1.0), [1, 0.75, 0.5, 0.25])


def test_chosen_timesteps_are_stratified():
    t = flow.train_timesteps(20, 5.0)
    keys = jax.random.split(jax.random.key(0), 400)
    chosen = jax.vmap(lambda key: flow.choose_timesteps(key, t, 4))(keys)
    for k in range(4):
        stratum = t[5 * k : 5 * k + 5]
        values, counts = np.unique(np.asarray(chosen[:, k]), return_counts=True)
        np.testing.assert_array_equal(values, np.sort(stratum))
        assert counts.min() > 40  # of 80 expected


def test_every_time_is_chosen_when_as_many_as_listed():
    t = flow.train_timesteps(5, 3.0)
    np.testing.assert_array_equal(flow.choose_timesteps(jax.random.key(1), t, 5), t)


@pytest.mark.parametrize(
    ("kind", "steps", "shift"), [("heun", 4, 3.0), ("unipc", 0, 3.0), ("euler", 4, 0.0)]
)
def test_bad_schedules_are_refused(kind, steps, shift):
    with pytest.raises(ValueError, match=r"got|unknown"):
        flow.schedule(kind, steps, shift)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shift", [1e30, 1e-30])
def test_a_shift_that_leaves_no_times_is_refused(shift):
    """Tables of NaN, or of one time alone, would end in videos of nothing but noise.

    NumPy prints nothing on the way to the refusal.
    """
    makers = [partial(flow.schedule, kind, 20, shift) for kind in ("unipc", "euler")]
    for make in (*makers, partial(flow.train_timesteps, 20, shift)):
        with pytest.raises(ValueError, match=re.escape(f"a shift of {shift:g} leaves no room")):
            make()


@pytest.mark.parametrize("shift", [0.1, 1, 3, 16, 100])
def test_usual_shifts_leave_room_for_every_number_of_steps(shift):
    for steps in (1, 2, 20, 1000):
        for kind in ("unipc", "euler"):
            sigmas_N = flow.schedule(kind, steps, shift).sigmas_N
            assert np.all(np.diff(sigmas_N, append=0) < 0)
