"""Laws that hold for any input: fusion of rewards, losses, schedules, tables of keys, the wire.

Letters: B videos in pairs of four, M rewards, G groups.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evoid_jax import flow, losses
from evoid_jax.models import adapter_names, native, weights
from evoid_jax.models.vae import VAEConfig
from evoid_jax.models.wan import rules
from evoid_jax.models.wan_config import WanConfig
from evoid_jax.rewards import fuse
from evoid_jax.sidecars import wire

# The same examples every time: a failure is of the change that is tested, and comes again.
settings.register_profile("laws", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("laws")

PAIR_B = np.repeat([0, 1], 4)
GROUP_M = np.array([0, 0, 1, 2])
# Steps of 1/64 are exact in float32, in sums of a few too.
scores = arrays.arrays(np.float32, (8, 4), elements=st.integers(-256, 256).map(lambda n: n / 64))
had = arrays.arrays(bool, (8, 4))
weights_M = arrays.arrays(np.float32, 4, elements=st.integers(0, 16).map(lambda n: n / 16))
videos = st.permutations(range(8)).map(np.array)
rewards = st.permutations(range(4)).map(np.array)
velocity = arrays.arrays(np.float32, (2, 3), elements=st.integers(-64, 64).map(lambda n: n / 16))
reward_B = arrays.arrays(np.float32, 2, elements=st.integers(0, 8).map(lambda n: n / 8))
beta = st.sampled_from([0.25, 0.5, 1.0, 2.0])


def normalized(score_BM, had_BM, pair_B=PAIR_B, scale=1.0):
    return np.asarray(fuse.normalize(score_BM, had_BM, pair_B, 2.0, np.full(4, 0.125 * scale)))


# --- fusion


@given(scores, had, videos)
def test_the_order_of_videos_changes_no_reward(score_BM, had_BM, order):
    made_BM = normalized(score_BM, had_BM)
    other_BM = normalized(score_BM[order], had_BM[order], PAIR_B[order])
    np.testing.assert_allclose(other_BM, made_BM[order], atol=1e-6)


@given(scores, had, rewards)
def test_the_order_of_rewards_changes_none(score_BM, had_BM, order):
    made_BM = normalized(score_BM, had_BM)
    np.testing.assert_allclose(
        normalized(score_BM[:, order], had_BM[:, order]), made_BM[:, order], atol=1e-6
    )


@given(scores, had, st.sampled_from([0.25, 4.0, 1024.0]), st.integers(-8, 8))
def test_the_unit_of_scores_and_their_zero_change_no_reward(score_BM, had_BM, scale, shift):
    moved_BM = normalized(scale * (score_BM + shift), had_BM, scale=scale)
    np.testing.assert_allclose(moved_BM, normalized(score_BM, had_BM), atol=2e-5)


@given(scores, had)
def test_a_pairs_rewards_lie_around_a_half_and_missing_ones_are_half(score_BM, had_BM):
    made_BM = normalized(np.where(had_BM, score_BM, np.nan), had_BM)
    assert (made_BM >= 0).all() and (made_BM <= 1).all()
    assert (made_BM[~had_BM] == 0.5).all()
    for pair in (0, 1):
        of_pair_BM = made_BM[pair == PAIR_B]
        np.testing.assert_allclose(of_pair_BM.mean(axis=0), 0.5, atol=1e-5)


@given(scores, had, st.data())
def test_a_better_score_is_never_a_worse_reward(score_BM, had_BM, data):
    made_BM = normalized(score_BM, had_BM)
    m, pair = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 1))
    here_B = had_BM[:, m] & (pair == PAIR_B)
    order = np.argsort(score_BM[here_B, m], kind="stable")
    assert (np.diff(made_BM[here_B, m][order]) >= -1e-6).all()


@given(weights_M, arrays.arrays(np.float32, 3, elements=st.integers(0, 10)), rewards, beta)
def test_final_weights_sum_to_one_whatever_the_priors_unit_and_order(prior_M, need_G, order, tau):
    if not prior_M.any():
        with pytest.raises(ValueError, match="priors must not all be zero"):
            fuse.final_weights(prior_M, GROUP_M, need_G, tau, 0.5)
        return
    made_M = np.asarray(fuse.final_weights(prior_M, GROUP_M, need_G, tau, 0.5))
    assert made_M.sum() == pytest.approx(1, abs=1e-5) and (made_M >= 0).all()
    assert (made_M[prior_M == 0] == 0).all()
    scaled_M = fuse.final_weights(8 * prior_M, GROUP_M, need_G, tau, 0.5)
    np.testing.assert_allclose(scaled_M, made_M, atol=1e-6)
    other_M = fuse.final_weights(prior_M[order], GROUP_M[order], need_G, tau, 0.5)
    np.testing.assert_allclose(other_M, made_M[order], atol=1e-6)


@given(scores, had, weights_M)
def test_shares_sum_to_one_where_anything_with_weight_is_there(score_BM, had_BM, weight_M):
    share_BM = np.asarray(fuse.shares(had_BM, weight_M, GROUP_M))
    assert (share_BM[~had_BM] == 0).all()
    there_B = (had_BM & (weight_M > 0)).any(axis=1)
    np.testing.assert_allclose(share_BM.sum(axis=1), there_B, atol=1e-5)
    one_B, valid_B = fuse.unify(normalized(score_BM, had_BM), share_BM)
    assert (np.asarray(valid_B) == there_B).all()
    assert ((np.asarray(one_B) >= 0) & (np.asarray(one_B) <= 1)).all()
    assert (np.asarray(one_B)[~there_B] == 0.5).all()


# --- losses


@given(velocity, velocity, velocity, velocity, velocity, reward_B, beta)
def test_the_loss_is_a_square_around_its_target(v_evo, v_stb, v_t2v, v, other, reward, reach):
    """Whatever v_evo is, the terms and the one square differ by the same constant."""
    lambdas = {"lambda_t2v": 0.5, "lambda_self": 0.25}
    star, a = losses.target(v_stb, v_t2v, v_stb, v, reward, reach, **lambdas)

    def apart(x):
        terms = losses.policy(x, v_stb, v, reward, reach) + 0.5 * losses.anchor(x, v_t2v)
        terms += 0.25 * losses.anchor(x, v_stb)
        return np.asarray(terms - a * losses.anchor(x, star))

    np.testing.assert_allclose(apart(v_evo), apart(other), rtol=1e-3, atol=1e-3)


@given(velocity, velocity, velocity, reward_B, beta)
def test_policy_is_never_negative_and_between_its_two_ends(v_evo, v_stb, v, reward, reach):
    loss = lambda share_B: np.asarray(losses.policy(v_evo, v_stb, v, share_B, reach))
    good_B, bad_B, mixed_B = loss(np.ones(2)), loss(np.zeros(2)), loss(reward)
    assert (mixed_B >= 0).all()
    np.testing.assert_allclose(mixed_B, reward * good_B + (1 - reward) * bad_B, rtol=1e-5)
    # To go the other way is to take the opposite reward.
    back_B = losses.policy(2 * v_stb - v_evo, v_stb, v, 1 - reward, reach)
    np.testing.assert_allclose(back_B, mixed_B, rtol=1e-4, atol=1e-5)


@given(velocity, velocity)
def test_distances_are_symmetric_and_nothing_for_equals(v_a, v_b):
    for distance in (losses.anchor, losses.drift):
        np.testing.assert_array_equal(distance(v_a, v_b), distance(v_b, v_a))
        np.testing.assert_array_equal(distance(v_a, v_a), 0)


# --- schedules


@given(
    st.sampled_from(["unipc", "euler"]),
    st.integers(1, 1000),
    st.floats(0.1, 50),
)
def test_a_schedule_falls_from_noise_to_video(kind, steps, shift):
    try:
        table = flow.schedule(kind, steps, shift)
    except ValueError as error:  # so many steps or such a shift that two times would be one
        assert str(steps) in str(error)
        return
    times, sigmas = np.asarray(table.timesteps_N), np.asarray(table.sigmas_N)
    assert len(times) == steps and (np.diff(sigmas) < 0).all()
    # UniPC's times are whole numbers: at a large shift the first ones round to the same.
    assert (np.diff(times) <= 0).all()
    assert sigmas[-1] > 0 and sigmas[0] <= 1 and times[0] <= 1000
    for part in (table.corrector_N5, table.predictor_N3):
        assert np.isfinite(np.asarray(part)).all()


@given(st.sampled_from(["unipc", "euler"]), st.sampled_from([1, 3, 8]), st.floats(0.5, 20))
def test_a_straight_flow_is_solved_in_any_number_of_steps(kind, steps, shift):
    noise, clean = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    table = flow.schedule(kind, steps, shift)
    made = flow.solve(table, lambda x, t: flow.velocity(clean, noise), noise)
    # The first sigma need not be 1: then the video is short of noise by as much.
    left = (1 - float(np.asarray(table.sigmas_N)[0])) * (noise - clean)
    np.testing.assert_allclose(made, clean + left, atol=1e-4)


# --- tables of keys

transformers = st.builds(
    WanConfig,
    num_attention_heads=st.integers(1, 3),
    attention_head_dim=st.sampled_from([4, 6]),
    num_layers=st.integers(1, 4),
    ffn_dim=st.integers(1, 9),
    freq_dim=st.sampled_from([4, 8]),
    vace_layers=st.sampled_from([(), (0,)]),
)


@given(transformers)
def test_every_key_of_a_transformer_has_one_name_in_each_layout(config):
    ours = {key for rule in rules(config) for key in weights.keys(rule)}
    names = native.transformer_names(config)
    assert names.keys() == ours and len(set(names.values())) == len(names)
    assert WanConfig.from_json(config.to_json()) == config


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_every_key_of_an_autoencoder_has_one_name_in_each_layout(blocks, multiples):
    config = VAEConfig(
        num_res_blocks=blocks,
        dim_mult=tuple(multiples),
        temperal_downsample=(False,) * (len(multiples) - 1),
    )
    names = native.vae_names(config)
    assert len(set(names.values())) == len(names)


@given(
    st.sampled_from(sorted(native.BLOCK)),
    st.sampled_from(["blocks", "vace_blocks"]),
    st.integers(0, 999),
    st.sampled_from(["lora_A", "lora_B", "lora_down", "lora_up"]),
    st.lists(st.sampled_from(["base_model.model.", "module.", "dit."]), max_size=2),
)
def test_an_adapters_key_means_the_same_in_every_spelling(inner, stack, layer, half, wrappers):
    module = f"{stack}.{layer}.{inner}"
    side = {"lora_A": "A", "lora_down": "A"}.get(half, "B")
    flat = module.replace(".", "_")
    spellings = [f"{adapter_names.PREFIX}{module}", f"{''.join(wrappers)}{module}"]
    spellings += [f"{adapter_names.COMFYUI}{adapter_names.original(module)}"]
    spellings += [f"{start}{flat}" for start in adapter_names.KOHYA]
    for written in spellings:
        name = adapter_names.parse(f"{written}.{half}.weight")
        assert (name.module, name.part) == (module, side), written


# --- the wire

photos = st.lists(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(3))),
    min_size=1,
    max_size=2,
)


@given(
    arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 3)] * 4, st.just(3))),
    photos,
    st.text(min_size=1),
    st.booleans(),
)
def test_a_request_is_read_as_it_was_written(videos_BFHWC, shown, prompt, monitors):
    count = len(videos_BFHWC)
    body = wire.encode(videos_BFHWC, [shown] * count, [prompt] * count, monitors=monitors, fps=8)
    read = wire.decode(body)
    np.testing.assert_array_equal(np.stack(read.videos), videos_BFHWC)
    assert read.prompts == [prompt] * count and read.monitors == monitors and read.fps == 8
    for own in read.references:
        assert len(own) == len(shown)
        assert all(map(np.array_equal, own, shown))


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_are_a_request_or_a_plain_error(data, place, byte):
    body = bytearray(wire.encode(np.zeros((1, 1, 2, 2, 3), np.uint8), [[_photo()]], ["x"]))
    body[place % len(body)] = byte
    for sent in (data, bytes(body), bytes(body[: place % len(body)])):
        try:
            assert wire.decode(sent).videos is not None
        except ValueError as error:
            assert str(error)


def _photo() -> np.ndarray:
    return np.zeros((2, 2, 3), np.uint8)
