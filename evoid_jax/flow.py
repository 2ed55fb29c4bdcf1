"""Flow matching: the path, its schedules, and both solvers as one scan over a table of numbers.

Time t runs from 1 (noise) to 0 (video): x_t = (1 - t) x_0 + t noise. The model predicts the
velocity v = noise - x_0, so x_0 = x_t - t v, and takes t scaled to 0..1000. A solver's sigma is t.

UniPC and Euler update linearly in what they remember, so a schedule is a table of coefficients,
made once in float64, and one `lax.scan` runs either.

Shape letters: N steps, K chosen times; samples may have any shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TIMESTEPS = 1000  # what the model calls t = 1


class Table(NamedTuple):
    """A schedule: all a solver needs besides the model. Leaves are float32, rows are steps.

    With m = x - sigma v the video that the model sees behind x, `last` the corrected sample before
    x, and m1, m2 the videos seen one and two steps earlier, a step is
      x_c = corrector . (x, last, m, m1, m2)      the corrected sample
      x'  = predictor . (x_c, m, m1)              the next sample
    """

    timesteps_N: np.ndarray  # as the model takes them
    sigmas_N: np.ndarray
    corrector_N5: np.ndarray
    predictor_N3: np.ndarray


class State(NamedTuple):
    """What a solver remembers between steps; see `Table`."""

    x: jax.Array
    last: jax.Array
    m1: jax.Array
    m2: jax.Array


def add_noise(x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Mix a clean sample and noise at time t (broadcastable): x_t = (1 - t) x0 + t noise."""
    return (1 - t) * x0 + t * noise


def velocity(x0: jax.Array, noise: jax.Array) -> jax.Array:
    """Return the velocity that flow matching regresses on: noise - x0."""
    return noise - x0


def shifted(u: np.ndarray, shift: float) -> np.ndarray:
    """Move times towards noise: s u / (1 + (s - 1) u), the identity for shift 1."""
    return shift * u / (1 + (shift - 1) * u)


def train_timesteps(steps: int, shift: float) -> np.ndarray:
    """Return the list of times training draws from: (steps,) float32, falling from 1, none 0.

    The grid of the original Wan sampler (wan/utils/fm_solvers.py): shifted(1 - i / steps).
    """
    return shifted(1 - np.arange(steps) / steps, shift).astype(np.float32)


def choose_timesteps(key: jax.Array, t_N: jax.Array, count: int) -> jax.Array:
    """Draw `count` times from a list, one from each of `count` equal consecutive parts.

    Where `count` divides N, every entry is as likely as any other.
    """
    if not 0 < count <= len(t_N):
        raise ValueError(f"cannot choose {count} of {len(t_N)} times")
    edges = np.arange(count + 1) * len(t_N) // count
    return jnp.asarray(t_N)[jax.random.randint(key, (count,), edges[:-1], edges[1:])]


def schedule(kind: str, steps: int, shift: float) -> Table:
    """Make the table of a solver.

    kind: "unipc", diffusers' UniPCMultistepScheduler with flow sigmas, order 2, bh2 and
      lower_order_final; or "euler", its FlowMatchEulerDiscreteScheduler.
    steps: number of model evaluations, at least 1. shift: time shift, above 0.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"steps must be at least 1 and shift above 0, got {steps} and {shift}")
    if kind == "unipc":
        return _unipc(steps, shift)
    if kind == "euler":
        return _euler(steps, shift)
    raise ValueError(f"unknown solver {kind!r}; expected 'unipc' or 'euler'")


def start(noise: jax.Array) -> State:
    """Return the solver state before the first step. The unknown past has coefficients 0."""
    zero = jnp.zeros_like(noise)
    return State(noise, noise, zero, zero)


def advance(table: Table, velocity_fn: Callable, state: State) -> State:
    """Run the steps of a table (or of some of its rows, in order) from a state.

    velocity_fn: (x, timestep scalar in 0..1000) -> velocity, float32, shaped as x.
    """

    def step(s: State, row: Table):
        m = s.x - row.sigmas_N * velocity_fn(s.x, row.timesteps_N)
        c, p = row.corrector_N5, row.predictor_N3
        x_c = c[0] * s.x + c[1] * s.last + c[2] * m + c[3] * s.m1 + c[4] * s.m2
        x_next = p[0] * x_c + p[1] * m + p[2] * s.m1
        return State(x_next, x_c, m, s.m1), None

    return jax.lax.scan(step, state, jax.tree.map(jnp.asarray, table))[0]


def solve(table: Table, velocity_fn: Callable, noise: jax.Array) -> jax.Array:
    """Integrate from noise to a clean sample, float32; `velocity_fn` as in `advance`."""
    return advance(table, velocity_fn, start(noise)).x


def _unipc(steps: int, shift: float) -> Table:
    """Table of UniPC (Zhao et al. 2023, arXiv 2302.04867), B(h) = e^h - 1, predicting x_0.

    Numbers as scheduling_unipc_multistep.py of diffusers 0.42. Sigmas are rounded to float32
    before use: alpha_0 = 1 - sigma_0 is 1e-6, where that rounding moves it by 1 %.
    """
    sigmas = shifted(np.linspace(1, 1 / TIMESTEPS, steps + 1)[:-1], shift)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # log(alpha_0) must be finite
    timesteps = (sigmas * TIMESTEPS).astype(np.int64)  # the scheduler truncates: 999, not 1000
    sigma = np.append(sigmas, 0).astype(np.float32).astype(np.float64)
    with np.errstate(divide="ignore"):
        lam = np.log(1 - sigma) - np.log(sigma)  # ends at infinity, where sigma is 0
    corrector, predictor = np.zeros((steps, 5)), np.zeros((steps, 3))
    for i in range(steps):
        # Second order once there is a past, first order again for the last step.
        two = 0 < i < steps - 1
        corrector[i] = _correct(sigma, lam, i, two=i > 1) if i else (1, 0, 0, 0, 0)
        predictor[i] = _predict(sigma, lam, i, two)
    return _table(timesteps, sigma[:-1], corrector, predictor)


def _predict(sigma: np.ndarray, lam: np.ndarray, i: int, two: bool) -> tuple:
    """Coefficients of (x_c, m, m1) from step i to i + 1, of order 2 or 1."""
    h = lam[i + 1] - lam[i]
    scale = -(1 - sigma[i + 1]) * np.expm1(-h)  # -alpha B, and B equals phi_1 for bh2
    slope = scale * 0.5 * h / (lam[i - 1] - lam[i]) if two else 0.0
    return sigma[i + 1] / sigma[i], scale - slope, slope


def _correct(sigma: np.ndarray, lam: np.ndarray, i: int, two: bool) -> tuple:
    """Coefficients of (x, last, m, m1, m2) that redo the step from i - 1 to i, knowing m."""
    h = lam[i] - lam[i - 1]
    scale = -(1 - sigma[i]) * np.expm1(-h)
    past, now, rk = 0.0, 0.5, 1.0
    if two:
        rk = (lam[i - 2] - lam[i - 1]) / h
        phi2 = np.expm1(-h) / -h - 1
        phi3 = phi2 / -h - 0.5
        b = np.array([phi2, 2 * phi3]) / np.expm1(-h)
        past, now = np.linalg.solve(np.array([[1, 1], [rk, 1]]), b)
    past = past / rk
    return 0.0, sigma[i] / sigma[i - 1], scale * now, scale * (1 - past - now), scale * past


def _euler(steps: int, shift: float) -> Table:
    """Table of scheduling_flow_match_euler_discrete.py of diffusers 0.42.

    x + (s' - s) v in terms of m is (s'/s) x + (1 - s'/s) m. The scheduler takes its lowest sigma
    after the shift and shifts the grid again, so the low end is shifted twice.
    """
    low = float(np.float32(shifted(np.float32(1 / TIMESTEPS), np.float32(shift))))
    sigmas = shifted(np.linspace(1, low, steps), shift).astype(np.float32)
    sigma = np.append(sigmas, 0).astype(np.float64)
    ratio = sigma[1:] / sigma[:-1]
    corrector = np.tile([1.0, 0, 0, 0, 0], (steps, 1))
    predictor = np.stack([ratio, 1 - ratio, 0 * ratio], axis=1)
    return _table(sigmas * np.float32(TIMESTEPS), sigma[:-1], corrector, predictor)


def _table(timesteps, sigmas, corrector, predictor) -> Table:
    return Table(*(np.asarray(x, np.float32) for x in (timesteps, sigmas, corrector, predictor)))
