"""Settings: the paper's defaults, and errors that say what to do."""

import ast
from pathlib import Path

import pytest

from configs import evoid
from evoid_jax import config

ROOT = Path(__file__).parents[1]


def test_defaults_are_the_papers():
    c = config.Config()
    assert (c.data.pairs, c.data.seeds, c.steps, c.train.lr) == (4, 8, 200, 1e-4)
    assert (c.loss.lambda_t2v, c.loss.lambda_self) == (0.01, 0.2)
    assert (c.lora.rank, c.lora.alpha) == (32, 32.0)
    assert (c.rollout.steps, c.rollout.guidance) == (20, 5.0)


@pytest.mark.parametrize("name", ["tiny", "vace_1_3b", "vace_14b", "vace_14b,uniform,no_teacher"])
def test_every_preset_is_sound(name):
    cfg = config.from_dict(evoid.get_config(name).to_dict())
    assert cfg.reward.uniform == ("uniform" in name)
    assert (cfg.loss.lambda_t2v == 0) == ("no_teacher" in name)


def test_round_trip_and_digest():
    c = config.from_dict({"train": {"lr": 3e-4}})
    assert config.from_dict(config.to_dict(c)) == c
    assert config.digest(c) != config.digest(config.Config())
    assert config.digest(config.from_dict(config.to_dict(c))) == config.digest(c)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tran": {}}, r"config.tran does not exist; did you mean config.train\?"),
        ({"train": {"learning_rate": 1.0}}, r"config.train.learning_rate does not exist"),
        ({"train": {"lr": "fast"}}, "config.train.lr must be float, got 'fast'"),
        ({"steps": 1.5}, "config.steps must be int"),
        ({"steps": True}, "config.steps must be int"),
        ({"video": {"frames": 80}}, r"must be 4 k \+ 1, got 80"),
        ({"video": {"width": 100}}, "config.video.width must be a multiple of 16, got 100"),
        ({"rollout": {"scheduler": "ddim"}}, "one of unipc, euler, got 'ddim'"),
        ({"data": {"heldout_seeds": 0}}, "config.data.heldout_seeds must be at least 1, got 0"),
        ({"mesh": {"fsdp": 0}}, "config.mesh.fsdp must be -1 or at least 1, got 0"),
        (
            {"mesh": {"fsdp": -1}},
            "one of config.mesh.data and config.mesh.fsdp may be -1, not both",
        ),
        ({"attention": "flash"}, "config.attention must be one of auto, exact, cudnn, splash"),
        ({"attention": "cudnn", "dtype": "float32"}, "cudnn needs config.dtype=bfloat16"),
        ({"data": {"seeds": 1}}, "at least 2"),
        ({"train": {"timesteps": 21}}, "must be 1 to 20"),
        ({"reward": {"gamma": 1.5}}, "config.reward.gamma must be from 0 to 1"),
        ({"reward": {"sidecars": [1]}}, "config.reward.sidecars must be"),
    ],
)
def test_errors_name_the_field_and_the_value(values, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(values)


def test_unknown_preset_or_ablation_is_named():
    with pytest.raises(ValueError, match="'huge' is none of tiny"):
        evoid.get_config("huge")
    with pytest.raises(ValueError, match="'unifrom' is none of uniform"):
        evoid.get_config("tiny,unifrom")


def test_every_setting_is_read_somewhere():
    """A key that nothing reads is a lie to its user."""
    read = set()
    for file in (ROOT / "evoid_jax").rglob("*.py"):
        if file.name != "config.py":
            tree = ast.parse(file.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    tree = config.to_dict(config.Config())
    keys = {k for part in tree.values() if isinstance(part, dict) for k in part} | set(tree)
    assert keys - read == set()
