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


class SolverState(NamedTuple):
    """What a solver remembers between steps, in the letters of `Table`; all four of one shape."""

    x: jax.Array  # the sample, before it is corrected
    last: jax.Array  # the corrected sample of the step before
    m1: jax.Array  # the video that the model saw one step earlier
    m2: jax.Array  # and two steps earlier


def add_noise(x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Mix a clean sample and noise: x_t = (1 - t) x0 + t noise.

    Args:
      x0: clean sample, any shape.
      noise: standard normal, shaped as x0.
      t: times in [0, 1] that broadcast against x0, such as (B, 1, 1, 1, 1).

    Returns:
      x_t, shaped as x0.
    """
    return (1 - t) * x0 + t * noise


def velocity(x0: jax.Array, noise: jax.Array) -> jax.Array:
    """Return the velocity that flow matching regresses on, dx_t / dt = noise - x0.

    Args:
      x0, noise: as of `add_noise`.

    Returns:
      The velocity, shaped as x0; the same at every t, because the path is a straight line.
    """
    return noise - x0


def shifted(u: np.ndarray, shift: float) -> np.ndarray:
    """Move times towards noise: s u / (1 + (s - 1) u), the identity for shift s = 1.

    Args:
      u: times in [0, 1], any shape; 0 and 1 stay where they are.
      shift: s > 0; larger videos need more, for more pixels show through the same noise.

    Returns:
      Times in [0, 1], shaped as u.
    """
    # A shift lost beside 1 divides by zero at u = 1; the grids are checked after it.
    with np.errstate(divide="ignore"):
        return shift * u / (1 + (shift - 1) * u)


def train_timesteps(steps: int, shift: float) -> np.ndarray:
    """Return the list of times training draws from: (steps,) float32, falling from 1, none 0.

    The grid of the original Wan sampler (wan/utils/fm_solvers.py): shifted(1 - i / steps).
    """
    t_N = shifted(1 - np.arange(steps) / steps, shift).astype(np.float32)
    _check_falling(t_N, steps, shift)
    return t_N


def _check_falling(t_N: np.ndarray, steps: int, shift: float) -> None:
    """Raise a ValueError unless times fall all the way: then rounding has not made two of them one.

    A shift of a million or a millionth leaves all of them at one end, where nothing is denoised.
    """
    if not (np.isfinite(t_N).all() and np.all(np.diff(t_N, append=0) < 0)):
        raise ValueError(
            f"a shift of {shift:g} leaves no room for {steps} steps between noise and video; take "
            "one nearer to 1 (Wan2.1 has 3 to 16), or fewer steps"
        )


def choose_timesteps(key: jax.Array, t_N: jax.Array, count: int) -> jax.Array:
    """Draw `count` times from a list, one from each of `count` equal consecutive parts.

    Where `count` divides N, every entry is as likely as any other.

    Raises:
      ValueError: `count` is not in 1..N.
    """
    if not 0 < count <= len(t_N):
        raise ValueError(f"cannot choose {count} of {len(t_N)} times")
    edges = np.arange(count + 1) * len(t_N) // count
    t_N = jnp.asarray(t_N)
    index_K = jax.random.randint(key, (count,), edges[:-1], edges[1:])
    return t_N[index_K]


def schedule(kind: str, steps: int, shift: float) -> Table:
    """Make the table of a solver.

    kind: "unipc", diffusers' UniPCMultistepScheduler with flow sigmas, order 2, bh2 and
      lower_order_final; or "euler", its FlowMatchEulerDiscreteScheduler.
    steps: number of model evaluations, at least 1. shift: time shift, above 0.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"steps must be at least 1 and shift above 0, got {steps} and {shift}")
    if kind not in ("unipc", "euler"):
        raise ValueError(f"unknown solver {kind!r}; expected 'unipc' or 'euler'")
    return _unipc(steps, shift) if kind == "unipc" else _euler(steps, shift)


def start(noise: jax.Array) -> SolverState:
    """Return the solver's state before the first step.

    Args:
      noise: standard normal, any shape, float32.

    Returns:
      A state whose past is zero; the first rows of a table give that past coefficients 0.
    """
    zero = jnp.zeros_like(noise)
    return SolverState(x=noise, last=noise, m1=zero, m2=zero)


def advance(table: Table, velocity_fn: Callable, state: SolverState) -> SolverState:
    """Run the steps of a table (or of some of its rows, in order) from a state.

    Args:
      table: of `schedule`; consecutive rows of it may run in calls of their own.
      velocity_fn: (x, timestep scalar in 0..1000) -> velocity, float32, shaped as x.
      state: of `start`, or of the call that ran the rows before these.

    Returns:
      The state after the last row; after a whole table its x is the clean sample.
    """

    def step(s: SolverState, row: Table):
        # The scan hands over one row: here sigmas_N is a scalar, corrector_N5 five numbers.
        m = s.x - row.sigmas_N * velocity_fn(s.x, row.timesteps_N)  # x_0 = x_t - t v
        c, p = row.corrector_N5, row.predictor_N3
        # Correct first: m, just computed at x, is what the step that led to x did not know yet.
        x_c = c[0] * s.x + c[1] * s.last + c[2] * m + c[3] * s.m1 + c[4] * s.m2
        x_next = p[0] * x_c + p[1] * m + p[2] * s.m1
        return SolverState(x=x_next, last=x_c, m1=m, m2=s.m1), None

    return jax.lax.scan(step, state, jax.tree.map(jnp.asarray, table))[0]


def solve(table: Table, velocity_fn: Callable, noise: jax.Array) -> jax.Array:
    """Integrate from noise to a clean sample.

    Args:
      table: of `schedule`.
      velocity_fn: as of `advance`.
      noise: standard normal, any shape, float32.

    Returns:
      The clean sample, float32, shaped as noise.
    """
    return advance(table, velocity_fn, start(noise)).x


def _unipc(steps: int, shift: float) -> Table:
    """Table of UniPC (Zhao et al. 2023, arXiv 2302.04867), B(h) = e^h - 1, predicting x_0.

    Numbers as scheduling_unipc_multistep.py of diffusers 0.42. Sigmas are rounded to float32
    before use: alpha_0 = 1 - sigma_0 is 1e-6, where that rounding moves it by 1 %.
    """
    sigmas = shifted(np.linspace(1, 1 / TIMESTEPS, steps + 1)[:-1], shift)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # log(alpha_0) must be finite
    _check_falling(sigmas.astype(np.float32), steps, shift)
    timesteps = (sigmas * TIMESTEPS).astype(np.int64)  # the scheduler truncates: 999, not 1000
    sigma = np.append(sigmas, 0).astype(np.float32).astype(np.float64)
    # lambda = log(alpha / sigma), half the log signal-to-noise ratio, is the solver's own time: in
    # it the linear part of the equation integrates exactly. It ends at infinity, where sigma is 0.
    with np.errstate(divide="ignore"):
        lam = np.log(1 - sigma) - np.log(sigma)
    corrector, predictor = np.zeros((steps, 5)), np.zeros((steps, 3))
    for i in range(steps):
        # Second order once there is a past, first order again for the last step.
        two = 0 < i < steps - 1
        predictor[i] = _predict(sigma, lam, i, two)
        # The corrector of step i redoes step i - 1; the first step has none, so x_c = x.
        corrector[i] = _correct(sigma, lam, i, two=i > 1) if i else (1, 0, 0, 0, 0)
    return _table(timesteps, sigma[:-1], corrector, predictor)


def _predict(sigma: np.ndarray, lam: np.ndarray, i: int, two: bool) -> tuple:
    """Coefficients of (x_c, m, m1) from step i to i + 1, of order 2 or 1."""
    h = lam[i + 1] - lam[i]
    # With -h for h, since x_0 is predicted: -alpha (e^-h - 1), and B equals phi_1 for bh2.
    scale = -(1 - sigma[i + 1]) * np.expm1(-h)
    # Order 2 adds (m1 - m) / r_1 with weight 1/2, where r_1 h is the step back to m1.
    slope = scale * 0.5 * h / (lam[i - 1] - lam[i]) if two else 0.0
    return sigma[i + 1] / sigma[i], scale - slope, slope


def _correct(sigma: np.ndarray, lam: np.ndarray, i: int, two: bool) -> tuple:
    """Coefficients of (x, last, m, m1, m2) that redo the step from i - 1 to i, knowing m."""
    h = lam[i] - lam[i - 1]
    scale = -(1 - sigma[i]) * np.expm1(-h)
    # Order 1: half of the difference m - m1, and nothing of m2.
    past, now, rk = 0.0, 0.5, 1.0
    if two:
        # R rho = b of the paper, for the two differences (m2 - m1) / rk and m - m1.
        rk = (lam[i - 2] - lam[i - 1]) / h
        phi2 = np.expm1(-h) / -h - 1
        phi3 = phi2 / -h - 0.5
        b = np.array([phi2, 2 * phi3]) / np.expm1(-h)
        past, now = np.linalg.solve(np.array([[1, 1], [rk, 1]]), b)
    past = past / rk
    # 0 of x: what the predictor made is thrown away, the step starts again from the last sample.
    return 0.0, sigma[i] / sigma[i - 1], scale * now, scale * (1 - past - now), scale * past


def _euler(steps: int, shift: float) -> Table:
    """Table of scheduling_flow_match_euler_discrete.py of diffusers 0.42.

    x + (s' - s) v in terms of m is (s'/s) x + (1 - s'/s) m. The scheduler takes its lowest sigma
    after the shift and shifts the grid again, so the low end is shifted twice.
    """
    low = float(np.float32(shifted(np.float32(1 / TIMESTEPS), np.float32(shift))))
    sigmas = shifted(np.linspace(1, low, steps), shift).astype(np.float32)
    _check_falling(sigmas, steps, shift)
    sigma = np.append(sigmas, 0).astype(np.float64)
    ratio = sigma[1:] / sigma[:-1]
    corrector = np.tile([1.0, 0, 0, 0, 0], (steps, 1))  # Euler corrects nothing: x_c = x
    predictor = np.stack([ratio, 1 - ratio, 0 * ratio], axis=1)
    return _table(sigmas * np.float32(TIMESTEPS), sigma[:-1], corrector, predictor)


def _table(timesteps, sigmas, corrector, predictor) -> Table:
    return Table(
        timesteps_N=np.asarray(timesteps, np.float32),
        sigmas_N=np.asarray(sigmas, np.float32),
        corrector_N5=np.asarray(corrector, np.float32),
        predictor_N3=np.asarray(predictor, np.float32),
    )
