"""When the watch says that a reward is gamed, which comparison is best, and when to stop."""

import pytest

from evoid_jax import proof, stopping
from evoid_jax.groups import Watch

UP, DOWN, FLAT = [0.01, 0.03], [-0.03, -0.01], [-0.01, 0.01]


def compared(step, total=0.0, reward=FLAT, monitor=FLAT, unrewarded=FLAT, drift=0.1, identities=16):
    """A comparison with one reward that counts, one of prior 0 and one monitor."""
    return {
        "steps": step,
        "delta_total": total,
        "identities": identities,
        "prior": {"arcface": 0.5, "gme": 0.0},
        "delta": {"arcface": {"ci95": reward}, "gme": {"ci95": unrewarded}},
        "monitor_delta": {"motion": {"ci95": monitor}},
        "drift": drift,
    }


@pytest.mark.parametrize("what", ["monitor", "unrewarded"])
def test_a_reward_is_gamed_when_it_rises_and_something_unrewarded_falls(what):
    name = {"monitor": "motion", "unrewarded": "gme"}[what]
    bad = compared(10, reward=UP, **{what: DOWN})
    assert stopping.gamed(bad) == f"arcface rose, and {name}, not rewarded, fell"
    assert proof.fallen(bad) == [name]
    assert not stopping.gamed(compared(10, reward=FLAT, **{what: DOWN}))
    assert not stopping.gamed(compared(10, reward=UP, **{what: FLAT}))
    assert not stopping.gamed(compared(10, reward=UP, **{what: DOWN}, identities=7))


def test_what_a_run_learns_from_is_rewarded_whatever_the_proof_weighs():
    """An ablation is proved with all priors, and may game what it learns from at another's cost."""
    ablated = compared(10, reward=UP, unrewarded=DOWN) | {"prior": {"arcface": 0.5, "gme": 0.15}}
    assert stopping.gamed(ablated) == ""
    ablated["rewarded"] = ["arcface"]
    assert stopping.gamed(ablated) == "arcface rose, and gme, not rewarded, fell"


def test_the_best_is_the_highest_total_in_which_nothing_is_gamed():
    watched = [
        compared(10, 0.02),
        compared(20, 0.04),
        compared(30, 0.04),
        compared(40, 0.09, reward=UP, monitor=DOWN),
    ]
    assert stopping.best(watched)["steps"] == 20
    assert stopping.best(watched[-1:]) is None
    assert stopping.best([]) is None
    assert stopping.best([compared(10, None), compared(20, -0.5)])["steps"] == 20


def test_scores_of_other_scorers_are_compared_with_nothing():
    """A sidecar was exchanged after step 20, with config.reward.versions=any."""
    before = [compared(10, 0.09), compared(20, 0.05)]
    after = [compared(30, 0.01) | {"scorers": "b"}, compared(40, 0.02) | {"scorers": "b"}]
    watched = [one | {"scorers": "a"} for one in before] + after
    assert stopping.best(watched)["steps"] == 40
    assert stopping.reason(Watch(patience=1), watched) == ""
    assert "no better total in 1" in stopping.reason(Watch(patience=1), watched[:2])
    older = [compared(5, 0.1)]  # does not say who scored
    assert stopping.best([*older, *watched])["steps"] == 5


def test_nothing_stops_a_run_unless_it_is_asked_to():
    watched = [compared(s, -s / 10, reward=UP, monitor=DOWN, drift=99.0) for s in range(9)]
    assert stopping.reason(Watch(), watched) == ""
    assert stopping.reason(Watch(patience=1, drift=1.0), [], stop_on_hacking=True) == ""


def test_each_rule_says_why():
    gamed = [compared(10, reward=UP, monitor=DOWN)]
    said = "possible reward hacking: arcface rose, and motion, not rewarded, fell"
    assert stopping.reason(Watch(), gamed, stop_on_hacking=True) == said
    assert stopping.warning(gamed[0]) == said
    assert stopping.warning(compared(10, reward=UP)) == ""
    far = [compared(10, drift=0.31)]
    said = stopping.reason(Watch(drift=0.3), far)
    assert said == "the evolved model is 0.31 from its start, more than 0.3"
    assert not stopping.reason(Watch(drift=0.32), far)


def test_patience_counts_comparisons_since_the_best_sound_one():
    totals = [0.01, 0.05, 0.03, 0.04]
    watched = [compared(10 * i, total) for i, total in enumerate(totals, start=1)]
    assert stopping.reason(Watch(patience=3), watched) == ""
    said = stopping.reason(Watch(patience=2), watched)
    assert said == "no better total in 2 comparisons: the best is that of step 20"
    bad = [compared(10 * i, reward=UP, monitor=DOWN) for i in (1, 2, 3)]
    assert "none was sound" in stopping.reason(Watch(patience=2), bad)
