"""The other algorithms' formulas: published numbers and laws, in float32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evoid_jax import config, flow, losses
from evoid_jax.algorithms import choice, grpo, imitation, nft, rwr

DTYPES = (jnp.float32, jnp.bfloat16)
PAIR_B = jnp.array([0, 0, 0, 1, 1, 1])
REWARD_B = jnp.array([0.2, 0.9, 0.4, 0.5, 0.5, 0.8])
VALID_B = jnp.ones(6)
SHAPE = (6, 2, 3, 4)


def draw(count, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return [jax.random.normal(key, SHAPE).astype(dtype) for key in keys]


# --- imitation


def test_the_best_of_a_pair_takes_all_its_places():
    row_B, valid_B = imitation.best_of_pair(REWARD_B, PAIR_B, VALID_B)
    assert row_B.tolist() == [1, 1, 1, 5, 5, 5]
    assert valid_B.tolist() == [1] * 6


def test_what_lacks_a_reward_is_never_the_best():
    valid_B = jnp.array([1.0, 0, 1, 0, 0, 0])
    row_B, any_B = imitation.best_of_pair(REWARD_B, PAIR_B, valid_B)
    assert row_B[:3].tolist() == [2, 2, 2]
    assert any_B.tolist() == [1, 1, 1, 0, 0, 0]  # the other pair has nothing to imitate


def test_of_equal_rewards_the_first_is_the_best():
    row_B, _ = imitation.best_of_pair(jnp.full(6, 0.5), PAIR_B, VALID_B)
    assert row_B.tolist() == [0, 0, 0, 3, 3, 3]


def test_imitation_is_flow_matching():
    v_evo, v = jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])
    assert imitation.loss(v_evo, v).tolist() == [2.5]  # (1 + 4) / 2


# --- reward-weighted regression


def test_weights_are_exponentials_over_their_mean():
    """exp(0), exp(1), exp(2) have the mean 3.702445."""
    weight_B = rwr.weights(jnp.array([0.0, 0.5, 1.0]), jnp.ones(3), temperature=0.5)
    np.testing.assert_allclose(weight_B, [0.270092, 0.734186, 1.995722], rtol=1e-5)


def test_weights_of_the_valid_average_to_one():
    valid_B = jnp.array([1.0, 1, 0, 1, 0, 1])
    for temperature in (10.0, 0.3, 1e-3, 1e-9):  # exp(900) is no float
        weight_B = rwr.weights(REWARD_B, valid_B, temperature)
        assert float((weight_B * valid_B).sum() / valid_B.sum()) == pytest.approx(1, rel=1e-6)
        assert not np.any(weight_B[valid_B == 0])
    assert weight_B.tolist() == [0, 4, 0, 0, 0, 0]  # at temperature 0 the best is left alone
    assert not np.any(rwr.weights(REWARD_B, jnp.zeros(6), 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rewards_are_imitation(dtype):
    v_evo, v = draw(2, dtype)
    weight_B = rwr.weights(jnp.full(6, 0.7), VALID_B, temperature=0.1)
    of_rwr = rwr.loss(v_evo, v, weight_B)
    np.testing.assert_array_equal(of_rwr, imitation.loss(v_evo, v))
    assert of_rwr.dtype == jnp.float32


# --- DiffusionNFT

NFT_CASES = [  # beta, r, the authors' loss at t 0.6, adv_clip_max 5, on the four numbers below
    (1.0, 0.7, 0.49375),
    (1.0, 0.5, 0.65625),
    (0.1, 0.7, 6.33641108),
]
X0, NOISE = np.array([[0.5, -0.25, 1, 0]]), np.array([[1, 0.5, -0.5, -1]])
OLD, NEW = np.array([[0.4, 0.6, -1.2, -0.8]]), np.array([[0.45, 0.7, -1.4, -0.9]])


@pytest.mark.parametrize(("beta", "reward", "want"), NFT_CASES)
def test_nft_has_the_authors_numbers(beta, reward, want):
    t_B, reward_B = jnp.array([0.6]), jnp.array([reward])
    got = nft.policy(NEW, OLD, NOISE - X0, t_B, reward_B, beta, adv_clip=5.0)
    np.testing.assert_allclose(got, [want], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nft_by_its_own_words(dtype):
    """Written out with x_t and both predicted videos, as the authors' script has it."""
    v_evo, v_stb, x0, noise = draw(4, dtype)
    t_B = jnp.array([0.05, 0.2, 0.4, 0.6, 0.8, 1.0])
    wide = lambda x: np.asarray(x, np.float64)
    t = wide(t_B)[:, None, None, None]
    x_t = (1 - t) * wide(x0) + t * wide(noise)
    want = np.zeros(6)
    for side, share in ((1, wide(REWARD_B)), (-1, 1 - wide(REWARD_B))):
        v_side = wide(v_stb) + side * 0.3 * (wide(v_evo) - wide(v_stb))
        error = x_t - t * v_side - wide(x0)
        size = np.abs(error).mean((1, 2, 3), keepdims=True)
        want += 5 * share / 0.3 * (error**2 / size).mean((1, 2, 3))
    v = flow.velocity(x0.astype(jnp.float32), noise.astype(jnp.float32))
    v_evo, v_stb = v_evo.astype(jnp.float32), v_stb.astype(jnp.float32)
    got = nft.policy(v_evo, v_stb, v, t_B, REWARD_B, beta=0.3, adv_clip=5.0)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_on_policy_the_force_of_nft_follows_the_reward():
    """At v_evo = v_stb it is -2 adv_clip (2 r - 1) t (v - v_stb) / mean |v - v_stb| / elements."""
    v_stb, v = draw(2)
    t_B = jnp.linspace(0.1, 1, 6)
    total = lambda x: nft.policy(x, v_stb, v, t_B, REWARD_B, beta=0.7, adv_clip=5.0).sum()
    size = jnp.abs(v - v_stb).mean((1, 2, 3), keepdims=True)
    force = (2 * REWARD_B - 1) * t_B * 2 * 5.0 / 24
    want = -force[:, None, None, None] * (v - v_stb) / size
    np.testing.assert_allclose(jax.grad(total)(v_stb), want, rtol=1e-4, atol=1e-6)


def test_nft_s_schedules():
    steps = {"1": (1, 100, 200, 500, 900), "2": (1, 75, 100, 150, 200, 209)}
    want = {"1": (0.001, 0.1, 0.2, 0.5, 0.5), "2": (0, 0, 0.1875, 0.5625, 0.9375, 0.999)}
    for kind in steps:
        got = [float(nft.decay(step, kind)) for step in steps[kind]]
        np.testing.assert_allclose(got, want[kind], rtol=1e-6)
    assert float(nft.decay(300, "0")) == 0


# --- GRPO

EULER = flow.schedule("euler", 20, 3.0)
LINEAR = grpo.schedule(EULER, "linear", level=1.0)


def one_step(index, dtype=jnp.float32, made=LINEAR):
    """A step of six videos as the sampler makes it, by a velocity that is returned too."""
    x, v_stb, noise = draw(3, seed=index)
    row = [jnp.full(6, column[index]) for column in made]
    _, sigma, fall, s = (column[index] for column in made)
    after = grpo.mean(x, v_stb, sigma, fall, s) + s * np.sqrt(fall) * noise
    return grpo.Step(x.astype(dtype), after.astype(dtype), *row), v_stb.astype(dtype)


def test_the_noise_of_a_step_by_hand():
    """Times 1, .5, .25: s is .5 t, or a sqrt(t / (1 - t)) with .5 for t = 1; none at the end."""
    table = EULER._replace(sigmas_N=np.array([1, 0.5, 0.25]), timesteps_N=np.array([999, 500, 250]))
    linear = grpo.schedule(table, "linear", level=1.0)
    np.testing.assert_allclose(linear.noise_N, [0.5, 0.25, 0])
    np.testing.assert_allclose(linear.fall_N, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(linear.timestep_N, [999, 500, 250])
    root = grpo.schedule(table, "root", level=0.7)
    np.testing.assert_allclose(root.noise_N, [0.7 * np.sqrt(2), 0.7, 0], rtol=1e-6)
    nearly = grpo.schedule(flow.schedule("unipc", 20, 3.0), "root", level=0.7)
    assert nearly.noise_N[0] < 6  # its first time is 1 - 1e-6, which alone would make it 700


def test_a_step_by_hand():
    """x 2, v 1, from .5 down by .1 with s .4: 2 - .1 (1 + .16 (2 + .5)) = 1.86."""
    assert float(grpo.mean(2.0, 1.0, sigma=0.5, fall=0.1, noise=0.4)) == pytest.approx(1.86)
    assert float(grpo.mean(2.0, 1.0, sigma=0.5, fall=0.1, noise=0.0)) == pytest.approx(1.9)


def moments(made, clean_mean, clean_std):
    """Mean and std after each step for normal videos, where every step is linear in x.

    v = E[noise - x_0 | x] is then (noise's share - x_0's share) of x's distance from its mean.
    """
    mean, var, rows = 0.0, 1.0, []
    for sigma, fall, s in zip(made.sigma_N, made.fall_N, made.noise_N, strict=True):
        m_t, var_t = (1 - sigma) * clean_mean, (1 - sigma) ** 2 * clean_std**2 + sigma**2
        slope = (sigma - (1 - sigma) * clean_std**2) / var_t
        after = [  # of 0, of 1 and of the mean
            float(grpo.mean(x, -clean_mean + slope * (x - m_t), sigma, fall, s))
            for x in (0.0, 1.0, mean)
        ]
        mean, var = after[2], (after[1] - after[0]) ** 2 * var + s**2 * fall
        rows.append((mean, np.sqrt(var)))
    return np.array(rows)


@pytest.mark.parametrize(("noise", "level", "rows"), [("linear", 1.0, 0), ("root", 0.7, -1)])
def test_the_walk_keeps_the_marginals_of_the_ode(noise, level, rows):
    """Of normal videos they are known: N((1 - t) m, (1 - t)^2 std^2 + t^2).

    For root only at the end: its noise is unbounded at t = 1, so that no first step is fine enough.
    """
    worst = []
    for steps in (100, 200, 400):
        made = grpo.schedule(flow.schedule("euler", steps, 3.0), noise, level)
        t_N = np.append(made.sigma_N[1:], 0)
        want = np.stack([(1 - t_N) * 0.8, np.sqrt((1 - t_N) ** 2 * 0.25 + t_N**2)], axis=1)
        worst.append(np.abs(moments(made, 0.8, 0.5) - want)[rows:].max())
    assert worst[2] < 0.01
    assert worst[0] > 1.9 * worst[1] > 1.9**2 * worst[2]  # first order


def test_a_walk_without_noise_is_euler_s():
    x = draw(1)[0]
    velocity_fn = lambda x, timestep: jnp.sin(x) + timestep / 1000
    silent = LINEAR._replace(noise_N=np.zeros_like(LINEAR.noise_N))
    states = grpo.walk(silent, velocity_fn, x, lambda index: jnp.ones_like(x))
    assert states.shape == (6, 21, *SHAPE[1:])
    np.testing.assert_array_equal(states[:, 0], x)
    np.testing.assert_allclose(states[:, -1], flow.solve(EULER, velocity_fn, x), atol=2e-5)


def test_the_last_step_of_a_walk_adds_no_noise():
    x = draw(1)[0]
    velocity_fn = lambda x, timestep: 0.5 * x
    walk = lambda size: grpo.walk(LINEAR, velocity_fn, x, lambda index: size * jnp.ones_like(x))
    loud, louder = walk(1.0), walk(2.0)
    assert float(jnp.abs(loud[:, 1] - louder[:, 1]).min()) > 0.1
    ode = loud[:, -2] - LINEAR.fall_N[-1] * 0.5 * loud[:, -2]
    np.testing.assert_allclose(loud[:, -1], ode, rtol=1e-6)


def test_a_step_is_taken_out_of_a_walk():
    walk_BN = jnp.arange(3 * 21, dtype=jnp.float32).reshape(3, 21, 1)
    step = grpo.taken(LINEAR, walk_BN, jnp.array([0, 7, 18]))
    assert step.x.ravel().tolist() == [0, 28, 60]
    assert step.next.ravel().tolist() == [1, 29, 61]
    np.testing.assert_array_equal(step.sigma_B, LINEAR.sigma_N[[0, 7, 18]])
    np.testing.assert_array_equal(step.timestep_B, LINEAR.timestep_N[[0, 7, 18]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 9, 18])
def test_at_equal_adapters_the_ratio_is_one_and_the_divergence_zero(index, dtype):
    step, v = one_step(index, dtype)
    assert not np.any(grpo.log_ratio(v, v, step)) and not np.any(grpo.kl(v, v, step))
    advantage_B = jnp.array([-2.0, -1, 0, 0.5, 1, 2])
    loss = lambda x: grpo.policy(grpo.log_ratio(x, v, step), advantage_B, clip=1e-3)
    np.testing.assert_array_equal(loss(v), -advantage_B)
    # There the clip lets everything through: the slope is that of -A log p.
    slope = jax.grad(lambda x: loss(x).sum())(v.astype(jnp.float32))
    assert not np.any(slope[2]) and np.all(np.any(slope != 0, axis=(1, 2, 3)) == (advantage_B != 0))


@pytest.mark.parametrize("index", [0, 9, 18])
def test_the_ratio_is_that_of_two_normal_densities(index):
    step, v_stb = one_step(index)
    v_evo = v_stb + 0.05 * draw(1, seed=50)[0]
    wide = lambda x: np.asarray(x, np.float64)
    sigma, fall, s = (float(x[0]) for x in (step.sigma_B, step.fall_B, step.noise_B))

    def log_prob(v):
        apart = wide(step.next) - grpo.mean(wide(step.x), wide(v), sigma, fall, s)
        var = s**2 * fall
        return (-(apart**2) / (2 * var) - np.log(var) / 2 - np.log(2 * np.pi) / 2).mean((1, 2, 3))

    want = log_prob(v_evo) - log_prob(v_stb)
    np.testing.assert_allclose(grpo.log_ratio(v_evo, v_stb, step), want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("index", [0, 9, 18])
def test_the_divergence_is_flow_grpo_s_closed_form(index):
    """fall / 2 (s (1 - t) / (2 t) + 1 / s)^2 |v_evo - v_init|^2."""
    step, v_init = one_step(index)
    v_evo = v_init + 0.1
    sigma, fall, s = (float(x[0]) for x in (step.sigma_B, step.fall_B, step.noise_B))
    want = fall / 2 * (s * (1 - sigma) / (2 * sigma) + 1 / s) ** 2 * 0.01
    np.testing.assert_allclose(grpo.kl(v_evo, v_init, step), [want] * 6, rtol=1e-4)


def test_clipping_by_hand():
    """Ratios e^.1, e^-.1 at clip .05: gains beyond 1.05 are not paid, losses are charged."""
    log_ratio_B = jnp.array([0.1, 0.1, -0.1, -0.1])
    got = grpo.policy(log_ratio_B, jnp.array([1.0, -1, 1, -1]), clip=0.05)
    np.testing.assert_allclose(got, [-1.05, 1.105171, -0.904837, 0.95], rtol=1e-6)


def test_advantages_by_hand():
    """Of .2, .9, .4: mean .5, std .294392; a video without a reward has no part."""
    got = grpo.advantages(REWARD_B, PAIR_B, VALID_B, clip=5.0)
    np.testing.assert_allclose(got[:3], [-1.018700, 1.358267, -0.339567], rtol=1e-4)
    left = grpo.advantages(REWARD_B, PAIR_B, VALID_B.at[0].set(0), clip=5.0)
    np.testing.assert_allclose(left[:3], [0, 0.9996, -0.9996], rtol=1e-4)
    assert not np.any(grpo.advantages(jnp.full(6, 0.3), PAIR_B, VALID_B, clip=5.0))
    assert float(grpo.advantages(REWARD_B, PAIR_B, VALID_B, clip=0.5).max()) == 0.5


# --- the choice


def chosen(algorithm, **groups):
    return config.Config(algorithm=algorithm, **groups)


def test_what_rewards_become():
    lessons = lambda cfg: choice.lessons(cfg, REWARD_B, PAIR_B, VALID_B)
    for cfg in (chosen("nft"), chosen("rwr"), chosen("grpo")):
        assert lessons(cfg).row_B is None  # every place has its own video
    np.testing.assert_array_equal(lessons(chosen("nft")).lesson_B, REWARD_B)
    clips = chosen("imitation", imitation=config.Imitation(target="clips"))
    assert lessons(clips).row_B is None
    assert lessons(chosen("imitation")).row_B.tolist() == [1, 1, 1, 5, 5, 5]
    assert lessons(chosen("imitation")).lesson_B.tolist() == [1] * 6
    assert float(lessons(chosen("grpo")).lesson_B.sum()) == pytest.approx(0, abs=1e-5)


def test_only_nft_brings_a_schedule_of_its_own():
    train = config.Train(ema_decay=0.75)
    for algorithm in ("evoid", "imitation", "rwr", "grpo"):
        assert choice.decay(chosen(algorithm, train=train), jnp.int32(99)) == 0.75
    assert float(choice.decay(chosen("nft", train=train), jnp.int32(99))) == pytest.approx(0.1)
    own = chosen("nft", train=train, nft=config.Nft(decay="train"))
    assert choice.decay(own, jnp.int32(99)) == 0.75


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["imitation", "rwr", "nft", "grpo"])
def test_every_loss_is_finite_and_float32(algorithm, dtype):
    v_evo, v, v_init = draw(3, dtype)
    step, v_stb = one_step(9, dtype)
    seen = choice.Seen(v, v_stb, v_init, jnp.full(6, 0.5), REWARD_B, step)
    terms = jax.tree.leaves(choice.loss(chosen(algorithm), v_evo, seen))
    assert all(x.shape == (6,) and x.dtype == jnp.float32 for x in terms)
    assert all(np.isfinite(x).all() for x in terms)
    assert losses.anchor(v_evo, v).dtype == jnp.float32
