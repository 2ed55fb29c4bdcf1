"""EvoScore: numbers by hand, the laws of its means, and what a run that it rewards needs."""

import itertools

import pytest

from configs import evoid
from evoid_jax import config, settings
from evoid_jax.rewards import evoscore


def test_aspects_are_their_least_items():
    grades = [10, 9, 4, 2, 10, 10, 7, 8, 7]
    want = {"identity": 3 / 9, "prompt": 1 / 9, "technical": 6 / 9}
    assert evoscore.aspects(grades) == pytest.approx(want)
    assert list(evoscore.ASPECTS) == ["identity", "prompt", "technical"]  # the paper's


def test_the_score_by_hand():
    """3 / (9 / 3 + 9 / 1 + 9 / 6) = 3 / 13.5."""
    assert evoscore.evoscore([10, 9, 4, 2, 10, 10, 7, 8, 7]) == pytest.approx(3 / 13.5)
    assert evoscore.evoscore([10] * 9) == 1
    assert evoscore.evoscore([1] * 9) == 0
    assert evoscore.evoscore([5.5] * 9) == pytest.approx(0.5)  # an expected grade is no whole one


def test_one_failed_item_fails_the_video_and_only_the_least_counts():
    for failed in range(9):
        grades = [10] * 9
        grades[failed] = 1
        assert evoscore.evoscore(grades) == 0
    low = [3, 10, 10, 5, 10, 10, 8, 10, 10]
    for spare in (1, 2, 4, 5, 7, 8):
        lower = list(low)
        lower[spare] = 9
        assert evoscore.evoscore(lower) == evoscore.evoscore(low)


def test_the_score_lies_between_the_worst_aspect_and_the_mean():
    for a, b, c in itertools.product((2, 4, 7, 10), repeat=3):
        shares = [(grade - 1) / 9 for grade in (a, b, c)]
        value = evoscore.evoscore([a] * 3 + [b] * 3 + [c] * 3)
        assert min(shares) - 1e-12 <= value <= sum(shares) / 3 + 1e-12


def test_grades_of_another_number_are_refused():
    with pytest.raises(ValueError):
        evoscore.evoscore([5] * 8)


def test_a_run_is_rewarded_by_a_row_of_its_table_and_then_needs_a_judge():
    cfg = evoid.get_config("tiny")
    cfg.reward.table.evoscore = {"group": "quality", "prior": 0.3}
    made = config.from_dict(cfg.to_dict())
    assert made.reward.table[-1] == config.Metric("evoscore", "quality", 0.3)
    settings.check_start(made)
    cfg.reward.update({"judge": "", "preference": False, "dynamic": False})
    words = "judge='' is no judge; give one, or config.reward.table.evoscore.prior=0"
    with pytest.raises(ValueError, match=words):
        settings.check_start(config.from_dict(cfg.to_dict()))
    cfg.reward.table.evoscore.prior = 0.0
    settings.check_start(config.from_dict(cfg.to_dict()))
