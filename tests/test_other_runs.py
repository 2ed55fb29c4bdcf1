"""Runs by other algorithms, from rollout to proof: the loop is the same, the lessons are not."""

import json

import pytest
from small_run import lines, settings

from evoid_jax import train

OWN = {  # the names of the losses
    "imitation": {"total"},
    "clips": {"total"},
    "rwr": {"total"},
    "nft": {"policy", "self", "total"},
    "grpo": {"policy", "kl", "total"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def ran(word, cache, workdir, steps=1):
    """Run a preset's word and return the records of its steps."""
    changes = {"algorithm": {"clips": "imitation"}.get(word, word), "watch": {"every": 0}}
    if word == "clips":
        changes["imitation"] = {"target": "clips"}
    if word == "grpo":
        changes["train"] = {"timesteps": 1, "ema_decay": 0.0}
    train.train(settings(cache, steps, **changes), workdir)
    return lines(workdir)


def check(word, rows, workdir):
    for row in rows:
        assert row["loss"].keys() == OWN[word]
        assert row["grad_norm"] > 0 and row["valid_fraction"] == 1
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == len(rows) and summary["pairs"] == 2
    assert (workdir / "report.html").stat().st_size > 1000


def test_grpo_from_walks_to_the_proof(cache, tmp_path):
    """What generated is what the update calls the old policy: the ratio is 1."""
    rows = ran("grpo", cache, tmp_path)
    check("grpo", rows, tmp_path)
    assert rows[0]["ratio"] == {"off": 0, "clipped": 0} and rows[0]["loss"]["kl"] == 0
    assert max(rows[0]["reward"]["spread"].values()) > 1e-3  # each seed has noise of its own


@pytest.mark.slow
@pytest.mark.parametrize("word", [word for word in OWN if word != "grpo"])
def test_others_from_rollout_to_the_proof(word, cache, tmp_path):
    rows = ran(word, cache, tmp_path, steps=2)
    check(word, rows, tmp_path)
    if word == "clips":  # one clip in all places of a pair
        assert max(rows[0]["reward"]["spread"].values()) < 1e-6
    else:
        assert max(rows[0]["reward"]["spread"].values()) > 1e-3


@pytest.mark.slow
def test_a_resumed_run_of_grpo_equals_a_straight_one(cache, tmp_path):
    straight = ran("grpo", cache, tmp_path / "straight", steps=2)
    ran("grpo", cache, tmp_path / "resumed", steps=1)
    assert ran("grpo", cache, tmp_path / "resumed", steps=2) == straight
