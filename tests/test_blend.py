"""What rewards remember between steps, and the order in which they are blended."""

import dataclasses
import json

import numpy as np
import pytest

from configs import evoid
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


def scores(spread=0.2, valid=None, blank=None) -> ScoreTable:
    score_BM = np.full((4, 3), 0.5, np.float32)
    score_BM[1::2] += np.float32(spread)
    valid_BM = np.ones((4, 3), bool) if valid is None else valid
    score_BM = np.where(valid_BM, score_BM, np.nan)
    blank_BM = np.zeros((4, 3), bool) if blank is None else blank
    return ScoreTable(raw_BM=score_BM, score_BM=score_BM, valid_BM=valid_BM, blank_BM=blank_BM)


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


def test_every_ablation_is_proved_by_the_same_rewards_with_the_same_weights():
    for ablation in ("", *(f",{name}" for name in evoid.ABLATIONS)):
        cfg = config.from_dict(evoid.get_config(f"tiny{ablation}").to_dict()).reward
        # A row beyond the usual ones, EvoScore's, has no say in the proof's total.
        usual = {metric.name: metric.prior for metric in config.METRICS} | {"flow": 0.5}
        expected = [usual.get(metric.name, 0.0) for metric in cfg.table]
        np.testing.assert_allclose(blend.proof_priors(cfg), expected, rtol=1e-6)
    nobody = change(preference=False, dynamic=False, judge="")  # who could grade it
    np.testing.assert_allclose(blend.proof_priors(nobody), [0.2, 0.3, 0])


def test_evoscore_is_rewarded_by_its_row_and_never_part_of_the_proofs_total():
    """A run that it rewards is compared with others by the same total."""
    row = config.Metric("evoscore", "quality", 0.4)
    cfg = change(table=(*TABLE, row))
    np.testing.assert_allclose(blend.priors(cfg), [0.2, 0.3, 0.5, 0.4])
    np.testing.assert_allclose(blend.priors(dataclasses.replace(cfg, uniform=True)), [1, 1, 1, 1])
    np.testing.assert_allclose(blend.proof_priors(cfg), [0.2, 0.3, 0.5, 0])
    silent = dataclasses.replace(cfg, judge="")
    np.testing.assert_allclose(blend.proof_priors(silent), [0.2, 0.3, 0, 0])
    assert blend.rewarded(cfg) == ["arcface", "gme", "vqscore", "evoscore"]


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
    memory = blend.FORGOTTEN._replace(attention=[10.0, 0.0, 0.0])
    _, fused = blend.blend(change(gamma=1.0), memory, table, PAIR_B, ask)
    (by_prior_B, valid_B), by_attention_B = seen[0], fused.reward_B
    assert by_prior_B[1] > by_prior_B[0] and by_attention_B[0] > by_attention_B[1]
    assert np.all(valid_B)


def test_a_spread_far_below_the_usual_one_counts_as_noise():
    usual = blend.FORGOTTEN._replace(deviations=[[0.4] * 3] * 3)
    _, fused = blend.blend(CFG, usual, scores(spread=0.02), PAIR_B, silent)
    # std 0.01, floor a quarter of the median deviation so far, which stays 0.4
    np.testing.assert_allclose(fused.reward_B[1], 0.5 + 0.5 * 0.01 / (2 * 0.1), rtol=1e-4)


def test_every_step_is_remembered():
    memory = blend.FORGOTTEN
    for step in range(3):
        memory, _ = blend.blend(CFG, memory, scores(), PAIR_B, silent)
        assert len(memory.deviations) == step + 1
    np.testing.assert_allclose(memory.deviations[0], [0.1] * 3, rtol=1e-5)
    np.testing.assert_allclose(memory.spreads[0], [0.1] * 3, rtol=1e-5)


def test_a_step_without_a_reward_says_nothing_of_its_spread():
    valid = np.ones((4, 3), bool)
    valid[:, 0] = False
    memory, _ = blend.blend(CFG, blend.FORGOTTEN, scores(valid=valid), PAIR_B, silent)
    assert memory.deviations[0][0] is None is memory.spreads[0][0]
    assert json.loads(json.dumps(memory._asdict())) == memory._asdict()
    memory, fused = blend.blend(CFG, memory, scores(), PAIR_B, silent)
    np.testing.assert_allclose(fused.reward_B, [0.25, 0.75, 0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize("band", [1.0, 0.02, 0.001])
def test_a_reward_that_lives_in_a_narrow_band_counts_as_any_other(band):
    """Motion smoothness lies from 0.97 to 0.99; at the first step as at any."""
    rng, pair_B = np.random.default_rng(0), np.repeat([0, 1, 2, 3], 8)
    wide_BM = rng.random((32, 3)).astype(np.float32)
    all_BM, none_BM = np.ones((32, 3), bool), np.zeros((32, 3), bool)

    def rewards(score_BM):
        table = ScoreTable(score_BM, score_BM, all_BM, none_BM)
        return blend.blend(CFG, blend.FORGOTTEN, table, pair_B, silent)[1].reward_B

    narrow_BM = wide_BM.copy()
    narrow_BM[:, 2] = 1 - band * wide_BM[:, 2]
    wide_BM[:, 2] = 1 - wide_BM[:, 2]
    np.testing.assert_allclose(rewards(narrow_BM), rewards(wide_BM), atol=1e-4)


@pytest.mark.parametrize("lost", [(0,), (0, 1), (0, 1, 2)])
def test_a_video_that_lacks_what_its_pair_has_trains_nothing(lost):
    """Nor does the one that is left: it is compared with nothing."""
    valid = np.ones((4, 3), bool)
    valid[2, list(lost)] = False
    _, fused = blend.blend(CFG, blend.FORGOTTEN, scores(valid=valid), PAIR_B, silent)
    assert fused.valid_B.tolist() == [True, True, False, False]
    np.testing.assert_allclose(fused.weights_M, [0.2, 0.3, 0.5], rtol=1e-6)


def test_the_weights_are_those_that_were_used():
    """One pair lacks arcface: its identity group is gone, and .3 and .5 share the whole."""
    valid = np.ones((4, 3), bool)
    valid[2:, 0] = False
    _, fused = blend.blend(CFG, blend.FORGOTTEN, scores(valid=valid), PAIR_B, silent)
    assert np.all(fused.valid_B)
    want = (np.array([0.2, 0.3, 0.5]) + np.array([0, 0.3 / 0.8, 0.5 / 0.8])) / 2
    np.testing.assert_allclose(fused.weights_M, want, rtol=1e-6)
    nothing = scores(valid=np.zeros((4, 3), bool))
    _, fused = blend.blend(CFG, blend.FORGOTTEN, nothing, PAIR_B, silent)
    assert not np.any(fused.valid_B) and np.all(np.isnan(fused.weights_M))


def force(table: ScoreTable, pair_B) -> np.ndarray:
    """The pull of each video on the update: 2 R - 1, and none without a reward."""
    _, fused = blend.blend(CFG, blend.FORGOTTEN, table, pair_B, silent)
    return np.where(fused.valid_B, 2 * fused.reward_B - 1, 0)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("seed", range(4))
def test_a_missing_score_is_never_better_than_any_score(seed, column):
    """A blank is as bad as the worst there can be; a score lost on the way moves nothing at all."""
    rng, pair_B = np.random.default_rng(seed), np.repeat([0, 1], 6)
    score_BM = rng.random((12, 3)).astype(np.float32)
    all_BM, none_BM = np.ones((12, 3), bool), np.zeros((12, 3), bool)
    hole_BM = none_BM.copy()
    hole_BM[2, column] = True
    with_hole = ScoreTable(score_BM, np.where(hole_BM, np.nan, score_BM), ~hole_BM, hole_BM)
    blank_B = force(with_hole, pair_B)
    lost_B = force(with_hole._replace(blank_BM=none_BM), pair_B)
    assert lost_B[2] == 0
    np.testing.assert_array_equal(blank_B[6:], lost_B[6:])
    for value in (0, 0.2, 0.5, 1):
        score_BM[2, column] = value
        had_B = force(ScoreTable(score_BM, score_BM, all_BM, none_BM), pair_B)
        assert blank_B[2] <= had_B[2] + 1e-6
        if value == 0:
            np.testing.assert_array_equal(had_B, blank_B)


def test_a_face_that_is_hidden_loses_to_one_that_is_wrong():
    score_BM = np.full((4, 3), 0.5, np.float32)
    score_BM[:, 0] = [np.nan, 0.05, 0.6, 0.7]
    blank_BM = np.isnan(score_BM)
    table = ScoreTable(score_BM, score_BM, ~blank_BM, blank_BM)
    hidden, wrong, *_ = force(table, np.zeros(4, int))
    assert hidden < wrong < 0
