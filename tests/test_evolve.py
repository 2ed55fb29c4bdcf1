"""The evolutionary update: its gradient is that of the four-term loss, and its laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from small_update import (
    CFG,
    PAIRS,
    VIDEOS,
    WAN,
    accumulate,
    change,
    drifted,
    one_device,
    sample,
    scored,
    setup,
    shaken_base,
)

from evoid_jax import config, evolve, losses
from evoid_jax.models import wan as wan_model


@pytest.fixture(scope="module")
def base():
    return shaken_base()


@pytest.fixture(scope="module")
def mesh():
    return one_device()


GUIDED = {
    "unguided": config.Guidance(),
    "null with adapter": config.Guidance(train=3.0, null="adapter"),
    "null of the base": config.Guidance(train=3.0, null="base"),
}


@pytest.mark.parametrize("guidance", GUIDED.values(), ids=GUIDED)
def test_gradient_is_that_of_the_four_terms(base, mesh, guidance):
    """Written out as the paper prints it, every role in one differentiated function."""
    state, data = drifted(base), scored()
    keys = jax.random.split(jax.random.key(9), 2)
    noise = jax.random.normal(keys[0], data.clean_BTHWC.shape)
    t_B = jnp.array([0.3, 0.3, 0.8, 0.8])
    text, control = data.text_PSE[data.pair_B], data.control_PTHWC[data.pair_B]
    null = jnp.repeat(data.null_1SE, VIDEOS, axis=0)

    def paper(evolving):
        t = t_B[:, None, None, None, None]
        x_t, v = (1 - t) * data.clean_BTHWC + t * noise, (noise - data.clean_BTHWC)[:, 1:]

        def see_one(lora, text):
            hints = wan_model.hints(WAN, base, lora, x_t, 1000 * t_B, text, control)
            return wan_model.velocity(WAN, base, lora, x_t, 1000 * t_B, text, hints)[:, 1:]

        def teach_one(text):
            return wan_model.velocity(WAN, base, None, x_t[:, 1:], 1000 * t_B, text)

        def guided(v_text, v_null):
            return v_text if guidance.train == 1 else v_null + 3 * (v_text - v_null)

        def see(lora):
            null_lora = lora if guidance.null == "adapter" else None
            return guided(see_one(lora, text), see_one(null_lora, null))

        v_evo, v_stb, v_ini = see(evolving), see(state.stable), see(None)
        v_t2v = guided(teach_one(text), teach_one(null))
        loss_B = losses.policy(v_evo, v_stb, v, data.reward_B, 1.0)
        loss_B += 0.01 * losses.anchor(v_evo, v_t2v) + 0.2 * losses.anchor(v_evo, v_ini)
        return loss_B.mean()

    at_t, cfg = sample(data, noise, t_B), dataclasses.replace(CFG, guidance=guidance)
    objective = jax.jit(lambda s: evolve.objective(s, base, at_t, None, setup(mesh, cfg)))
    grads, terms = objective(state)
    value, want = jax.jit(jax.value_and_grad(paper))(state.evolving)
    np.testing.assert_allclose(terms["loss"]["total"], value, rtol=1e-5)
    close(grads, want, 5e-5)


def test_videos_that_see_the_negative_prompt_are_held_and_learn_no_score(base, mesh):
    """All of them: rewards do not matter, and only the anchors and the trust region pull."""
    guidance = config.Guidance(rollout=5.0, null_share=1.0)
    cfg = change(dataclasses.replace(CFG, guidance=guidance), "loss", lambda_t2v=0.0)
    start = evolve.init(cfg, base, WAN.config)
    grads, _ = accumulate(start, base, scored(), mesh, cfg)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-6
    state = drifted(base)
    one = accumulate(state, base, scored(), mesh, cfg)
    close(one, accumulate(state, base, scored(reward=(0.1, 0.9, 0.2, 0.7)), mesh, cfg), 1e-7)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one[0])) > 1e-5


def test_the_share_of_videos_that_see_the_negative_prompt(base, mesh):
    """None where it never guides, and where the adapter does not answer it."""
    apart = dict(train=1.0, proof=5.0, null_share=0.25)
    share = lambda **values: evolve.null_share(config.Config(guidance=config.Guidance(**values)))
    assert share(rollout=5.0, **apart) == 0.25
    assert share(rollout=1.0, **apart) == 0
    assert share(rollout=5.0, **apart, null="base") == 0


def test_guided_drift_is_that_of_the_guided_velocity(base, mesh):
    """v_null + g (v - v_null) of evolving against initial; zero for equal adapters."""
    guidance = config.Guidance(rollout=5.0, null_share=0.0)
    cfg = change(dataclasses.replace(CFG, guidance=guidance), "train", timesteps=1)
    measure = lambda state, data: evolve.guided_drift(state, base, data, setup=setup(mesh, cfg))
    state, data = drifted(base), scored()
    far = measure(state, data)
    assert float(far["guided"]) > 0 and float(far["null"]) > 0
    start = measure(evolve.init(cfg, base, WAN.config), data)
    assert float(start["null"]) == float(start["guided"]) == 0
    # A text that is the negative prompt is guided nowhere: v_null + 5 (v_null - v_null).
    same = data._replace(text_PSE=jnp.repeat(data.null_1SE, PAIRS, axis=0))
    drift, (_, terms) = measure(state, same), accumulate(state, base, same, mesh, cfg)
    np.testing.assert_allclose(drift["guided"], drift["null"], rtol=1e-4)
    np.testing.assert_allclose(terms["drift"]["evo_init"], drift["null"], rtol=1e-5)


def test_step_moves_evolving_and_stable_follows(base, mesh):
    state, data = drifted(base), scored()
    before = jax.tree.map(np.array, (state.evolving, state.stable))
    frozen = jax.tree.map(np.array, base)
    new, terms = evolve.train_step(state, base, data, None, setup=setup(mesh))
    assert int(new.step) == 1 and terms["grad_norm"] > 0
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), new.evolving, before[0]))
    assert max(moved) <= 1.2e-2 and min(moved) > 1e-3  # Adam's first step is the learning rate
    close(new.stable, jax.tree.map(lambda s, e: 0.75 * s + 0.25 * e, before[1], new.evolving))
    jax.tree.map(np.testing.assert_array_equal, base, frozen)


def test_parts_of_the_batch_add_up_to_the_whole(base, mesh):
    state, data = drifted(base), scored(valid=(1, 0, 1, 1))
    whole = accumulate(state, base, data, mesh)
    for each in (1, 2):
        cfg = change(CFG, "train", videos_per_device=each)
        close(accumulate(state, base, data, mesh, cfg), whole, 1e-4)


def test_video_without_reward_trains_nothing(base, mesh):
    state = drifted(base)
    one = scored(valid=(1, 1, 0, 1), reward=(0.9, 0.1, 0.0, 0.4))
    other = scored(valid=(1, 1, 0, 1), reward=(0.9, 0.1, 1.0, 0.4))
    summed = accumulate(state, base, one, mesh)
    close(summed, accumulate(state, base, other, mesh), 1e-7)
    counted = accumulate(state, base, scored(reward=(0.9, 0.1, 0.0, 0.4)), mesh)
    assert abs(float(summed[1]["loss"]["policy"] - counted[1]["loss"]["policy"])) > 1e-4


def test_an_update_that_is_not_finite_changes_nothing_but_the_step(base, mesh):
    """One pixel of one video is enough, and the next sound step goes on as if it had not been."""
    broken = scored()
    broken = broken._replace(clean_BTHWC=broken.clean_BTHWC.at[2, 1, 0, 0, 0].set(jnp.nan))
    new, terms = evolve.train_step(drifted(base), base, broken, None, setup=setup(mesh))
    assert float(terms["refused"]) == 1 and not np.isfinite(terms["loss"]["total"])
    assert int(new.step) == 1
    jax.tree.map(
        np.testing.assert_array_equal, new._replace(step=0), drifted(base)._replace(step=0)
    )
    went_on, terms = evolve.train_step(new, base, scored(), None, setup=setup(mesh))
    assert float(terms["refused"]) == 0 and int(went_on.step) == 2
    assert largest_change(went_on.evolving, drifted(base).evolving) > 0


@pytest.mark.parametrize("part", [{"lr": 1e4}, {"drift": 1e-9}])
def test_an_update_too_long_or_too_far_is_refused(base, mesh, part):
    cfg = change(CFG, "train", **part)
    new, terms = evolve.train_step(drifted(base), base, scored(), None, setup=setup(mesh, cfg))
    assert float(terms["refused"]) == 1 and np.isfinite(terms["loss"]["total"])
    assert largest_change(new.evolving, drifted(base).evolving) == 0


def largest_change(a, b) -> float:
    return max(float(abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_nothing_valid_changes_nothing_but_the_step(base, mesh):
    state = drifted(base)
    before = jax.tree.map(np.array, state)
    nothing = scored(valid=(0, 0, 0, 0))
    new, _ = evolve.train_step(state, base, nothing, None, setup=setup(mesh))
    assert int(new.step) == 1
    jax.tree.map(np.testing.assert_array_equal, new._replace(step=before.step), before)


def test_neutral_rewards_at_the_start_give_no_force(base, mesh):
    """R = 1/2 and v_evo = v_stb = v_init: with no teacher every term is at its minimum."""
    cfg = change(CFG, "loss", lambda_t2v=0.0)
    grads, terms = accumulate(
        evolve.init(cfg, base, WAN.config), base, scored(reward=(0.5,) * 4), mesh, cfg
    )
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-6
    assert float(terms["drift"]["evo_stb"]) == 0 and float(terms["loss"]["self"]) == 0


def test_a_run_is_held_by_the_adapter_that_it_started_from(base, mesh):
    """theta_0 is the start, lora.init included: no pull at step 0, and one back to it later."""
    cfg = change(change(CFG, "lora", init="start.safetensors"), "loss", lambda_t2v=0.0)
    start = jax.tree.map(np.array, drifted(base).evolving)
    state = evolve.init(cfg, base, WAN.config, jax.tree.map(jnp.array, start))
    neutral = scored(reward=(0.5,) * 4)
    grads, terms = accumulate(state, base, neutral, mesh, cfg)
    assert float(terms["loss"]["self"]) == 0 and float(terms["drift"]["evo_init"]) == 0
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-6
    new, _ = evolve.train_step(state, base, scored(), None, setup=setup(mesh, cfg))
    jax.tree.map(np.testing.assert_array_equal, new.initial, start)
    assert float(accumulate(new, base, neutral, mesh, cfg)[1]["loss"]["self"]) > 0


def test_opposite_rewards_give_opposite_forces(base, mesh):
    """On policy, with no anchors, dL/dv is -2 beta (2R - 1)(v - v_stb)."""
    cfg = change(CFG, "loss", lambda_t2v=0.0, lambda_self=0.0)
    state = evolve.init(cfg, base, WAN.config)
    good = accumulate(state, base, scored(reward=(1.0,) * 4), mesh, cfg)[0]
    bad = accumulate(state, base, scored(reward=(0.0,) * 4), mesh, cfg)[0]
    close(good, jax.tree.map(jnp.negative, bad), 1e-4)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(good)) > 1e-5


def test_reference_slot_is_not_trained_on(base, mesh):
    """The velocity at the reference frame does not enter; only its content is seen."""
    state, data = drifted(base), scored()
    t_B, noise = jnp.full(VIDEOS, 0.5), jnp.ones_like(data.clean_BTHWC)

    def objective(shift):  # x0 and noise move against each other: x_t stays, the target v moves
        at = jnp.zeros_like(noise).at[:, 0].set(shift)
        moved = sample(data, noise + at, t_B, clean_BTHWC=data.clean_BTHWC - at)
        return evolve.objective(state, base, moved, None, setup(mesh))

    close(jax.jit(objective)(1.0), jax.jit(objective)(0.0), 1e-4)


def test_vace_blocks_learn_when_asked(base, mesh):
    cfg = change(CFG, "lora", targets="main+vace")
    state = drifted(base, cfg)
    grads, _ = accumulate(state, base, scored(), mesh, cfg)
    assert float(jnp.abs(grads["vace_blocks"]["attn1"]["to_q"]["a"]).max()) > 0


def test_times_are_one_per_part_of_the_list_and_shared_by_a_pair():
    cfg = change(CFG, "train", timesteps=4, grid=20, shift=5.0)
    t_PK = np.asarray(evolve.times(jax.random.key(0), 50, cfg))
    grid = 5 * (1 - np.arange(20) / 20) / (1 + 4 * (1 - np.arange(20) / 20))
    assert t_PK.shape == (50, 4)
    for k in range(4):
        part = grid[5 * k : 5 * k + 5].astype(np.float32)
        assert np.isclose(t_PK[:, k, None], part[None], atol=1e-6).any(1).all()
        assert len(np.unique(t_PK[:, k])) > 1


def test_the_rate_falls_linearly_to_its_share():
    """Adam's update of a constant gradient is the rate itself."""
    settings = config.Train(lr=0.1, lr_end=0.5, lr_steps=4, weight_decay=0.0)
    tx = evolve.optimizer(config.Config(train=settings))
    weight, rates = {"a": jnp.zeros(1)}, []
    opt = tx.init(weight)
    for _ in range(6):
        update, opt = tx.update({"a": jnp.ones(1)}, opt, weight)
        rates.append(-float(update["a"][0]))
    np.testing.assert_allclose(rates, [0.1, 0.0875, 0.075, 0.0625, 0.05, 0.05], rtol=1e-5)
