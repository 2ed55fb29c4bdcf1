"""The update by other algorithms: what each learns from, and how the stable transformer follows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from small_update import (
    CFG,
    VIDEOS,
    WAN,
    accumulate,
    drifted,
    one_device,
    sample,
    scored,
    setup,
    shaken_base,
)

from evoid_jax import config, evolve, flow
from evoid_jax.algorithms import grpo
from evoid_jax.models import wan as wan_model

ROLLOUT = config.Rollout(scheduler="euler", steps=5, shift=3.0)


@pytest.fixture(scope="module")
def base():
    return shaken_base()


@pytest.fixture(scope="module")
def mesh():
    return one_device()


def by(algorithm, **groups):
    return dataclasses.replace(CFG, algorithm=algorithm, rollout=ROLLOUT, **groups)


def walked(cfg, data):
    """The same videos as the ends of walks by a made-up velocity."""
    x = jax.random.normal(jax.random.key(8), data.clean_BTHWC.shape)
    draw = lambda index: jax.random.normal(jax.random.key(index), x.shape)
    walk_BNTHWC = grpo.walk(grpo.of_config(cfg), lambda x, t: 0.5 * x, x, draw)
    return data._replace(clean_BTHWC=walk_BNTHWC[:, -1], walk_BNTHWC=walk_BNTHWC)


def learned(state, base, data, mesh, cfg):
    """Gradients and terms, rewards turned into lessons first."""
    return accumulate(state, base, evolve.lessons(data, cfg), mesh, cfg)


def largest(grads):
    return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))


@pytest.fixture(scope="module")
def imitated(base, mesh):
    """What imitation learns from videos whose rewards do not matter to it."""
    cfg = by("imitation", imitation=config.Imitation(target="clips"))
    return learned(drifted(base), base, scored(), mesh, cfg)


def test_imitation_is_flow_matching_on_its_videos(base, mesh):
    """Written out: the mean of (v_evo - (noise - video))^2, without the reference frame."""
    state, data = drifted(base), scored()
    noise = jax.random.normal(jax.random.key(9), data.clean_BTHWC.shape)
    t_B = jnp.array([0.3, 0.3, 0.8, 0.8])
    text, control = data.text_PSE[data.pair_B], data.control_PTHWC[data.pair_B]

    def matching(evolving):
        t = t_B[:, None, None, None, None]
        x_t = (1 - t) * data.clean_BTHWC + t * noise
        hints = wan_model.hints(WAN, base, None, x_t, 1000 * t_B, text, control)
        v = wan_model.velocity(WAN, base, evolving, x_t, 1000 * t_B, text, hints)
        return jnp.square(v - (noise - data.clean_BTHWC))[:, 1:].mean()

    at_t = sample(data._replace(reward_B=jnp.ones(VIDEOS)), noise, t_B)
    learn = lambda s: evolve.other_objective(s, base, at_t, None, setup(mesh, by("imitation")))
    grads, terms = jax.jit(learn)(state)
    value, want = jax.jit(jax.value_and_grad(matching))(state.evolving)
    np.testing.assert_allclose(terms["loss"]["total"], value, rtol=1e-5)
    close(grads, want, 5e-5)
    assert terms["drift"].keys() == {"evo_stb", "evo_init"}  # no teacher is asked


def test_weights_that_are_equal_make_regression_imitation(base, mesh, imitated):
    equal = scored(reward=(0.3,) * VIDEOS)
    close(learned(drifted(base), base, equal, mesh, by("rwr")), imitated, 1e-6)


def test_the_best_of_a_pair_is_all_that_is_imitated(base, mesh, imitated):
    """Its pair's other videos do not matter, and it is seen with the noise of all places."""
    state, data, cfg = drifted(base), scored(), by("imitation")
    best = learned(state, base, data, mesh, cfg)
    other = data.clean_BTHWC.at[jnp.array([1, 3])].add(1.0)  # rewards .1 and .4
    close(learned(state, base, data._replace(clean_BTHWC=other), mesh, cfg), best, 1e-7)
    only = data._replace(clean_BTHWC=data.clean_BTHWC[jnp.array([0, 0, 2, 2])])
    clips = dataclasses.replace(cfg, imitation=config.Imitation(target="clips"))
    close(learned(state, base, only, mesh, clips), best, 1e-7)


def test_on_policy_nft_turns_around_with_the_rewards(base, mesh):
    cfg = by("nft", nft=config.Nft(kl=0.0))
    state = evolve.init(cfg, base, WAN.config)
    good, _ = learned(state, base, scored(reward=(1.0,) * VIDEOS), mesh, cfg)
    bad, terms = learned(state, base, scored(reward=(0.0,) * VIDEOS), mesh, cfg)
    close(good, jax.tree.map(jnp.negative, bad), 1e-4)
    assert largest(good) > 1e-5 and float(terms["loss"]["self"]) == 0


def test_the_stable_transformer_follows_by_nft_s_schedule(base, mesh):
    """At once after the first update, d = 0.001, whatever config.train.ema_decay is."""
    cfg, state = by("nft"), drifted(base)
    before = jax.tree.map(np.array, state.stable)
    new, terms = evolve.train_step(state, base, scored(), None, setup=setup(mesh, cfg))
    follow = lambda s, e: 0.001 * s + 0.999 * e
    close(new.stable, jax.tree.map(follow, before, new.evolving))
    assert terms["loss"].keys() == {"policy", "self", "total"}


def test_grpo_s_times_are_those_of_its_walk(mesh):
    """Identity-GRPO's 25 steps, of which all but the last are trained; the grid has 20."""
    own = by("grpo")
    cfg = dataclasses.replace(
        own,
        rollout=dataclasses.replace(own.rollout, steps=25),
        train=dataclasses.replace(own.train, timesteps=24),
    )
    t_PK = evolve.times(jax.random.key(0), 2, cfg)
    np.testing.assert_array_equal(t_PK, np.tile(grpo.of_config(cfg).sigma_N[:-1], (2, 1)))


def test_grpo_starts_at_ratio_one_and_no_divergence(base, mesh):
    cfg = by("grpo")
    state = evolve.init(cfg, base, WAN.config)
    grads, terms = learned(state, base, walked(cfg, scored()), mesh, cfg)
    assert float(terms["ratio"]["off"]) == 0 == float(terms["ratio"]["clipped"])
    assert float(terms["loss"]["kl"]) == 0
    assert abs(float(terms["loss"]["policy"])) < 1e-6  # the mean advantage
    assert largest(grads) > 1e-4


def test_a_step_of_grpo_makes_the_better_videos_likelier(base, mesh):
    """After a step against the gradient the same steps of the same videos score better."""
    cfg = by("grpo")
    state, data = evolve.init(cfg, base, WAN.config), walked(cfg, scored())
    grads, _ = learned(state, base, data, mesh, cfg)
    size = 1e-3 / largest(grads)
    moved = jax.tree.map(lambda x, g: x - size * g, state.evolving, grads)
    _, terms = learned(state._replace(evolving=moved), base, data, mesh, cfg)
    assert float(terms["loss"]["policy"]) < -1e-6
    assert float(terms["loss"]["kl"]) > 0


def test_grpo_without_differences_learns_nothing(base, mesh):
    cfg = by("grpo")
    state = evolve.init(cfg, base, WAN.config)
    same = walked(cfg, scored(reward=(0.5,) * VIDEOS))
    assert largest(learned(state, base, same, mesh, cfg)[0]) < 1e-7


def test_the_steps_that_grpo_trains_are_the_rollout_s_but_the_last():
    cfg = dataclasses.replace(by("grpo"), train=dataclasses.replace(CFG.train, timesteps=4))
    made = grpo.of_config(cfg)
    take = evolve.walked_steps(jax.random.key(0), pairs=3, cfg=cfg)
    walk_BN = jnp.tile(jnp.arange(6.0)[None, :, None], (3, 1, 1))
    taken = [take(walk_BN, jnp.arange(3), k) for k in range(4)]
    assert [step.x.ravel().tolist() for step in taken] == [[k] * 3 for k in range(4)]
    assert [step.next.ravel().tolist() for step in taken] == [[k + 1] * 3 for k in range(4)]
    t_N = flow.schedule("euler", 5, 3.0).timesteps_N
    np.testing.assert_array_equal([step.timestep_B[0] for step in taken], t_N[:4])
    assert all(made.noise_N[:4] > 0) and made.noise_N[4] == 0


@pytest.mark.parametrize("algorithm", ["grpo", "imitation", "rwr"])
def test_a_video_of_the_negative_prompt_teaches_no_reward(base, mesh, algorithm):
    """Where every video sees it, nothing is learned: it does not make the best video.

    Of grpo the start holds them, which is where this state is.
    """
    guidance = config.Guidance(rollout=5.0, train=5.0, null_share=1.0)
    cfg = by(algorithm, guidance=guidance)
    state = evolve.init(cfg, base, WAN.config)
    data = walked(cfg, scored()) if algorithm == "grpo" else scored()
    assert largest(learned(state, base, data, mesh, cfg)[0]) < 1e-7
