"""Missing scores: told in few words, and a run that learns from nothing ends."""

import pytest

from evoid_jax.rewards import absent


def test_a_run_idles_for_as_many_steps_as_it_may():
    for most, steps in ((3, 2), (0, 99), (1, 0)):
        absent.check_idle(most, steps, {})
    words = r"no video of the last 3 steps .*\(no face; and 1 more\).*idle_steps=0"
    with pytest.raises(absent.MissingReward, match=words):
        absent.check_idle(3, 3, {"no face": 5, "no answer in time": 2})


def test_a_reason_is_one_short_line_and_its_kind_has_no_numbers():
    assert absent.shortened("a\n  b") == "a b"
    assert len(absent.shortened("x" * 500)) == absent.SHOWN
    assert absent.kind("face 3 of 17") == absent.kind("face 4 of 18") == "face # of #"
    assert absent.because({}) == "no reason is known"
