"""The words after a preset: the paper's ablation rows, and other algorithms."""

import pytest

from configs import evoid
from evoid_jax import config
from evoid_jax.rewards import blend

PAPER = {  # row: uniform weights, teacher, preference, dynamic weighting, EvoScore as a reward
    "uwr": (True, False, False, False, False),
    "uwr_tp": (True, True, False, False, False),
    "pwr": (False, False, False, False, False),
    "pwr_tp": (False, True, False, False, False),
    "pr": (False, True, True, False, False),
    "mdw": (False, True, True, True, False),
    "esr": (False, True, True, True, True),
}


def settings(words, preset="tiny"):
    return config.from_dict(evoid.get_config(f"{preset},{words}").to_dict())


@pytest.mark.parametrize("row", PAPER)
@pytest.mark.parametrize("preset", evoid.PRESETS)
def test_a_row_of_the_paper_has_what_the_paper_says(preset, row):
    cfg = settings(row, preset)
    reward, teacher = cfg.reward, cfg.loss.lambda_t2v > 0
    evoscore = "evoscore" in blend.rewarded(reward)
    assert (reward.uniform, teacher, reward.preference, reward.dynamic, evoscore) == PAPER[row]
    assert cfg.loss.lambda_self == 0.2 and cfg.algorithm == "evoid"


def test_the_whole_method_is_the_preset_itself():
    assert settings("mdw") == config.from_dict(evoid.get_config("tiny").to_dict())


def test_uniform_weights_are_those_of_the_seven_objective_rewards():
    prior_M = blend.priors(settings("uwr").reward)
    assert prior_M.tolist() == [1, 1, 1, 1, 1, 1, 1, 0]


def test_evoscore_can_be_measured_without_being_a_reward():
    cfg = settings("uwr,evoscore")
    (row,) = [metric for metric in cfg.reward.table if metric.name == "evoscore"]
    assert row.prior == 0 and "evoscore" not in blend.rewarded(cfg.reward)


@pytest.mark.parametrize("word", evoid.ALGORITHMS)
@pytest.mark.parametrize("preset", evoid.PRESETS)
def test_an_algorithm_is_a_word(preset, word):
    if (word, preset) in (("clips", "vace_1_3b"), ("clips", "vace_14b")):
        with pytest.raises(ValueError, match="clips needs config.data.source=portraits"):
            settings(word, preset)
        return
    cfg = settings(word, preset)
    assert cfg.algorithm == {"clips": "imitation"}.get(word, word)


def test_a_word_that_is_none_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match="'uwrr' is none of uniform, .*, grpo, uwr, .*, esr"):
        settings("uwrr")
    with pytest.raises(ValueError, match="'small' is none of tiny, vace_1_3b, vace_14b"):
        evoid.get_config("small")


def test_grpo_learns_from_the_policy_that_generates():
    guided = {"guidance": {"rollout": 5.0}}
    with pytest.raises(ValueError, match=r"guidance.rollout \(5\) and .*train \(1\) must be equal"):
        config.from_dict({"algorithm": "grpo"} | guided)
    config.from_dict({"algorithm": "grpo", "guidance": {"rollout": 5.0, "train": 5.0}})
    config.from_dict({"algorithm": "grpo", "guidance": {"rollout": 1.0, "train": 0.0}})
    config.from_dict({"algorithm": "nft"} | guided)


def test_grpo_trains_no_more_steps_than_a_rollout_has_with_noise():
    few = {"algorithm": "grpo", "rollout": {"steps": 4}}
    with pytest.raises(ValueError, match="timesteps must be 1 to 3, got 4"):
        config.from_dict(few)
    config.from_dict(few | {"train": {"timesteps": 3}})
