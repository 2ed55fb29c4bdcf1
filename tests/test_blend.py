"""What rewards remember between steps, and the order in which they are blended."""

import dataclasses

import numpy as np
import pytest

from evoid_jax import config
from evoid_jax.rewards import blend
from evoid_jax.rewards.table import ScoreTable

TABLE = (
    config.Metric("arcface", "identity", 0.2),
    config.Metric("gme", "text", 0.3),
    config.Metric("vqscore", "quality", 0.5),
)
CFG = config.Reward(table=TABLE, clip=2.0, floor=0.25, tau=1.0, gamma=0.5, attention_memory=0.75)
PAIR_B = np.array([0, 0, 1, 1])


def scores(spread=0.2, valid=None) -> ScoreTable:
    score_BM = np.full((4, 3), 0.5, np.float32)
    score_BM[1::2] += np.float32(spread)
    valid_BM = np.ones((4, 3), bool) if valid is None else valid
    score_BM = np.where(valid_BM, score_BM, np.nan)
    return ScoreTable(raw_BM=score_BM, score_BM=score_BM, valid_BM=valid_BM)


def change(**values):
    return dataclasses.replace(CFG, **values)


def silent(reward_B, valid_B):
    return np.zeros(3, np.float32), False


def answers(*needs):
    return lambda reward_B, valid_B: (np.array(needs, np.float32), True)


def test_priors_are_the_tables_or_uniform_and_without_the_preference():
    np.testing.assert_allclose(blend.priors(CFG), [0.2, 0.3, 0.5])
    np.testing.assert_allclose(blend.priors(change(preference=False)), [0.2, 0.3, 0])
    np.testing.assert_allclose(blend.priors(change(uniform=True)), [1, 1, 1])
    np.testing.assert_allclose(blend.priors(change(uniform=True, preference=False)), [1, 1, 0])
    # The proof weighs every ablation alike, but for a reward that the run had not.
    np.testing.assert_allclose(blend.proof_priors(change(uniform=True)), [0.2, 0.3, 0.5])


def test_a_reward_of_prior_zero_only_watches_uniform_or_not():
    table = (*TABLE, config.Metric("sharpness", "quality", 0.0))
    assert blend.priors(change(table=table, uniform=True))[3] == 0


def test_without_an_answer_the_weights_are_the_priors():
    memory, fused = blend.blend(CFG, blend.FORGOTTEN, scores(), PAIR_B, silent)
    assert memory.attention is None
    np.testing.assert_allclose(fused.weights_M, [0.2, 0.3, 0.5], rtol=1e-6)
    # Two videos of a pair lie one std below and above its mean: 1/2 -+ 1/2 * 1/2.
    np.testing.assert_allclose(fused.reward_B, [0.25, 0.75, 0.25, 0.75], rtol=1e-6)
    assert all(isinstance(x, np.ndarray) for x in fused)


def test_the_first_answer_stands_alone_and_later_ones_are_averaged():
    memory, fused = blend.blend(CFG, blend.FORGOTTEN, scores(), PAIR_B, answers(3, 1, 0))
    assert memory.attention == [3, 1, 0]
    # p = 1/2 prior share + 1/2 (s + 1) / sum(s + 1), one reward in each group
    want = 0.5 * np.array([0.2, 0.3, 0.5]) + 0.5 * np.array([4, 2, 1]) / 7
    np.testing.assert_allclose(fused.weights_M, want, rtol=1e-6)
    memory, _ = blend.blend(CFG, memory, scores(), PAIR_B, answers(1, 9, 2))
    np.testing.assert_allclose(memory.attention, [2.5, 3, 0.5])
    kept, _ = blend.blend(CFG, memory, scores(), PAIR_B, silent)
    assert kept.attention == memory.attention  # a judge that is silent once changes nothing


def test_a_run_without_dynamic_weights_does_not_ask():
    def ask(reward_B, valid_B):
        raise AssertionError("the judge was asked")

    memory, fused = blend.blend(change(dynamic=False), blend.FORGOTTEN, scores(), PAIR_B, ask)
    np.testing.assert_allclose(fused.weights_M, [0.2, 0.3, 0.5], rtol=1e-6)
    assert memory.attention is None


def test_the_judge_is_shown_who_is_best_by_prior_alone():
    """Else its last answer would choose what it sees next."""
    seen = []

    def ask(reward_B, valid_B):
        seen.append((reward_B, valid_B))
        return np.array([10, 0, 0], np.float32), True

    table = scores()
    table.score_BM[0, 0], table.score_BM[1, 0] = 0.9, 0.1  # arcface alone prefers video 0
    memory = blend.RewardMemory(attention=[10.0, 0.0, 0.0], deviations=[])
    _, fused = blend.blend(change(gamma=1.0), memory, table, PAIR_B, ask)
    (by_prior_B, valid_B), by_attention_B = seen[0], fused.reward_B
    assert by_prior_B[1] > by_prior_B[0] and by_attention_B[0] > by_attention_B[1]
    assert np.all(valid_B)


def test_a_spread_far_below_the_usual_one_counts_as_noise():
    usual = blend.RewardMemory(attention=None, deviations=[[0.4] * 3] * 3)
    _, fused = blend.blend(CFG, usual, scores(spread=0.02), PAIR_B, silent)
    # std 0.01, floor a quarter of the median deviation so far, which stays 0.4
    np.testing.assert_allclose(fused.reward_B[1], 0.5 + 0.5 * 0.01 / (2 * 0.1), rtol=1e-4)


def test_every_step_is_remembered():
    memory = blend.FORGOTTEN
    for step in range(3):
        memory, _ = blend.blend(CFG, memory, scores(), PAIR_B, silent)
        assert len(memory.deviations) == step + 1
    np.testing.assert_allclose(memory.deviations[0], [0.1] * 3, rtol=1e-5)


@pytest.mark.parametrize("lost", [(0,), (0, 1), (0, 1, 2)])
def test_a_video_without_rewards_is_not_valid(lost):
    valid = np.ones((4, 3), bool)
    valid[2, list(lost)] = False
    _, fused = blend.blend(CFG, blend.FORGOTTEN, scores(valid=valid), PAIR_B, silent)
    assert fused.valid_B.tolist() == [True, True, len(lost) < 3, True]
