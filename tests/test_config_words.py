"""Words after a preset, and bounds that more than one group of settings shares."""

import pytest

from configs import evoid
from evoid_jax import config


def test_there_is_one_algorithm_at_a_time():
    assert evoid.get_config("tiny,grpo,evoscore").algorithm == "grpo"
    with pytest.raises(ValueError, match="one algorithm at a time, got nft, grpo"):
        evoid.get_config("tiny,nft,uwr,grpo")


def test_regression_learns_from_the_start_s_videos():
    """As Flow-RWR was published: its policy generates nothing that it learns from."""
    assert evoid.get_config("tiny,rwr").train.ema_decay == 1


def test_a_walk_s_steps_are_the_rollout_s_and_not_of_the_grid():
    walks = {"algorithm": "grpo", "train": {"grid": 2, "timesteps": 4}, "rollout": {"steps": 5}}
    assert config.from_dict(walks).train.timesteps == 4
    with pytest.raises(ValueError, match="1 to 4, got 5"):
        config.from_dict(walks | {"train": {"timesteps": 5}})
    with pytest.raises(ValueError, match=r"config\.train\.timesteps must be 1 to 2"):
        config.from_dict(walks | {"algorithm": "evoid"})


@pytest.mark.parametrize("name", ["grpo.level", "rwr.temperature", "loss.beta", "nft.beta"])
def test_what_is_divided_by_is_no_dust(name):
    group, key = name.split(".")
    assert config.from_dict({group: {key: 1e-6}})
    with pytest.raises(ValueError, match=key):
        config.from_dict({group: {key: 1e-20}})
