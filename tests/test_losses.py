import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evoid_jax import losses

V, V_STB, V_EVO, V_T2V, V_INIT = 1.0, 0.2, 0.5, 0.1, 0.3
LAMBDAS = {"lambda_t2v": 0.01, "lambda_self": 0.2}
CASES = [  # reward, beta, policy, total, d total / d v_evo, v_star
    (0.8, 1.0, 0.442, 0.4516, -0.272, 0.61239669),
    (0.8, 0.5, 0.5185, 0.5281, -0.242, 0.76304348),
    (0.8, 0.1, 0.6121, 0.6217, -0.002, 0.50454545),
    (0.5, 1.0, 0.73, 0.7396, 0.688, 0.21570248),
    (0.0, 1.0, 1.21, 1.2196, 2.288, -0.44545455),
]


def one(x):
    return np.full((1, 1), x, np.float32)


@jax.jit
def total(v_evo, v_stb, v_t2v, v_init, v, reward_B, beta):
    return (
        losses.policy(v_evo, v_stb, v, reward_B, beta)
        + LAMBDAS["lambda_t2v"] * losses.anchor(v_evo, v_t2v)
        + LAMBDAS["lambda_self"] * losses.anchor(v_evo, v_init)
    )


def summed_total(v_evo, v_stb, v_t2v, v_init, v, reward_B, beta):
    return total(v_evo, v_stb, v_t2v, v_init, v, reward_B, beta).sum()


total_slope = jax.jit(jax.grad(summed_total))
FROZEN = ("v_stb", "v_t2v", "v_init", "v")


def draw(shape=(3, 2, 4, 4, 5), count=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("reward,beta,policy,summed,slope,v_star", CASES)
def test_hand_arithmetic(reward, beta, policy, summed, slope, v_star):
    reward_B = np.array([reward], np.float32)
    frozen = {"v_stb": one(V_STB), "v_t2v": one(V_T2V), "v_init": one(V_INIT), "v": one(V)}
    frozen |= {"reward_B": reward_B, "beta": beta}
    got = losses.policy(one(V_EVO), one(V_STB), one(V), reward_B, beta)
    np.testing.assert_allclose(got, [policy], rtol=1e-6)
    loss = total(one(V_EVO), **frozen)
    np.testing.assert_allclose(loss, [summed], rtol=1e-6)
    np.testing.assert_allclose(total_slope(one(V_EVO), **frozen), slope, atol=2e-7)
    star, a = losses.target(**frozen, **LAMBDAS)
    np.testing.assert_allclose(star, [[v_star]], rtol=1e-6)
    np.testing.assert_allclose(a, beta**2 + 0.21, rtol=1e-6)


def test_anchors_by_hand():
    np.testing.assert_allclose(losses.anchor(one(V_EVO), one(V_T2V)), [0.16], rtol=1e-6)
    np.testing.assert_allclose(losses.anchor(one(V_EVO), one(V_INIT)), [0.04], rtol=1e-6)
    np.testing.assert_allclose(losses.drift(one(V_EVO), one(V_INIT)), [0.2], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_target_holds_all_terms(beta):
    """a |v_evo - v_star|^2 differs from the four-term loss by a constant: their gradients agree."""
    v_evo, *others = draw()
    frozen = dict(zip(FROZEN, others, strict=True)) | {"beta": beta}
    frozen["reward_B"] = np.array([0.0, 0.3, 1.0], np.float32)
    star, a = losses.target(**frozen, **LAMBDAS)
    long = lambda x: total(x, **frozen)
    short = lambda x: a * losses.anchor(x, star)
    for other in draw(count=2, seed=1):
        np.testing.assert_allclose(
            long(v_evo) - long(other), short(v_evo) - short(other), atol=1e-5, rtol=1e-5
        )
    slope = total_slope(v_evo, **frozen)
    np.testing.assert_allclose(slope, jax.grad(lambda x: short(x).sum())(v_evo), atol=1e-6)


def test_first_step_follows_the_reward():
    """At v_evo = v_stb without anchors the slope is -2 beta (2R - 1)(v - v_stb) / elements."""
    v_stb, v = draw(shape=(3, 4, 5), count=2)
    reward_B = np.array([0.1, 0.5, 0.9], np.float32)
    slope = jax.grad(lambda x: losses.policy(x, v_stb, v, reward_B, 0.7).sum())(v_stb)
    want = -2 * 0.7 * (2 * reward_B - 1)[:, None, None] * (v - v_stb) / 20
    np.testing.assert_allclose(slope, want, atol=1e-7)
    assert not np.any(slope[1])


def test_losses_are_means_per_video():
    v_evo, v_stb, v = draw(count=3)
    reward_B = np.array([0.2, 0.6, 0.9], np.float32)
    whole = losses.policy(v_evo, v_stb, v, reward_B, 1.0)
    assert whole.shape == (3,)
    for b in range(3):
        own = slice(b, b + 1)
        alone = losses.policy(v_evo[own], v_stb[own], v[own], reward_B[own], 1.0)
        np.testing.assert_allclose(alone[0], whole[b], rtol=1e-6)
    twice = lambda x: np.concatenate([x, x], axis=1)
    got = losses.policy(twice(v_evo), twice(v_stb), twice(v), reward_B, 1.0)
    np.testing.assert_allclose(got, whole, rtol=1e-6)


def test_no_gradient_reaches_the_frozen_networks():
    frozen = dict(zip(FROZEN, draw(count=4), strict=True))
    fixed = {"reward_B": np.full(3, 0.9, np.float32), "beta": 1.0} | LAMBDAS
    slopes = jax.grad(lambda f: losses.target(**f, **fixed)[0].sum())(frozen)
    assert all(not np.any(x) for x in slopes.values())


def test_jit_half_precision_and_one_axis():
    v_evo, v_stb, v = draw(shape=(3,), count=3)
    reward_B = jnp.array([0.2, 0.5, 0.9])
    plain = losses.policy(v_evo, v_stb, v, reward_B, 1.0)
    np.testing.assert_allclose(
        jax.jit(losses.policy)(v_evo, v_stb, v, reward_B, 1.0), plain, rtol=1e-6
    )
    v_evo, v_stb, v = (jnp.asarray(x, jnp.bfloat16) for x in (v_evo, v_stb, v))
    assert losses.policy(v_evo, v_stb, v, reward_B, 1.0).dtype == jnp.float32


def test_wrong_shapes_are_refused():
    v_evo, v_stb, v = draw(count=3)
    with pytest.raises(ValueError, match="one shape"):
        losses.policy(v_evo, v_stb[:1], v, np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="number per video"):
        losses.policy(v_evo, v_stb, v, np.zeros((3, 1)), 1.0)
