"""Options of every entry point: numbers that cannot work are refused before anything begins."""

import math

import pytest
from absl import flags

from configs import pretrain_tiny
from evoid_jax import commandline, convert, deployment, generate
from evoid_jax.evaluate import __main__ as evaluate
from evoid_jax.prepare import __main__ as prepare
from evoid_jax.pretrain import __main__ as pretrain

# What absl's own bounds cannot say, and who says it instead.
ELSEWHERE = {*deployment.BOUNDS, "shift"}
ENTRIES = {"convert": convert, "generate": generate, "evaluate": evaluate, "prepare": prepare}


def defined(entry) -> flags.FlagValues:
    """Return an entry point's own flags."""
    values = flags.FlagValues()
    entry.define_flags(values)
    return values


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_number_of_a_command_line_has_two_ends(entry):
    values = defined(ENTRIES[entry])
    for name in values:
        parser = values[name].parser
        number = isinstance(parser, flags.FloatParser | flags.IntegerParser)
        # Those of rewards go through the bounds of config.reward.
        if number and name not in ELSEWHERE and not name.startswith("reward."):
            assert None not in (parser.lower_bound, parser.upper_bound), name


@pytest.mark.parametrize("key", deployment.BOUNDS)
def test_a_number_that_no_video_has_is_refused_by_its_flag(key, tmp_path):
    for wrong in (math.nan, math.inf, -math.inf, -1, 1e9, 10**400, "1", True, None, []):
        with pytest.raises(ValueError, match=f"^--{key} must be a"):
            deployment.check_bounds(f"--{key}", key, wrong)


def test_a_negative_prompt_is_a_text():
    for wrong in (5, None, ["a"], "half \ud83d"):
        with pytest.raises(ValueError, match="^it"):
            deployment.check_bounds("it", "negative_prompt", wrong)


def test_what_is_no_finite_number_is_refused_though_it_is_in_absls_bounds():
    values = defined(prepare)
    values["heldout"].value = 0.5
    commandline.check_finite(values)
    for wrong in (math.nan, math.inf):
        values["heldout"].value = wrong
        with pytest.raises(ValueError, match=f"^--heldout must be a finite number, got {wrong}"):
            commandline.check_finite(values)


def numbers(values: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the place of every number in nested settings."""
    places = []
    for key, value in values.items():
        if isinstance(value, dict):
            places += numbers(value, (*path, key))
        elif type(value) in (int, float):
            places.append((*path, key))
    return places


@pytest.mark.parametrize("place", numbers(pretrain_tiny.get_config().to_dict()), ids=".".join)
def test_a_number_that_no_pretraining_has_is_refused_by_its_name(place):
    for wrong in (math.nan, math.inf, -1, 10**12):
        values = pretrain_tiny.get_config().to_dict()
        pretrain.check(values)
        group = values
        for word in place[:-1]:
            group = group[word]
        group[place[-1]] = wrong
        with pytest.raises(ValueError, match=rf"^config\.{'.'.join(place)} must be "):
            pretrain.check(values)
