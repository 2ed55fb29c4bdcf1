"""The table of rewards: rows by name, priors that count for something, in the proof too."""

import json

import ml_collections
import pytest

from configs import evoid
from evoid_jax import config


def test_the_table_is_a_mapping_by_name_outside_and_rows_in_order_inside():
    values = config.to_dict(config.Config())["reward"]["table"]
    assert values["arcface"] == {"group": "identity", "prior": 0.125, "floor": 0.0}
    assert list(values)[-1] == config.JUDGE == "vqscore" and len(values) == 8
    cfg = evoid.get_config("tiny")
    cfg.reward.table.arcface.prior = 0.2
    cfg.reward.table.sharpness = {"group": "quality", "prior": 0.1}
    cfg.reward.table.blur = {"group": "quality", "prior": 1, "floor": 0.02}
    del cfg.reward.table.flow
    table = config.from_dict(cfg.to_dict()).reward.table
    kept = [metric.name for metric in config.METRICS if metric.name != "flow"]
    assert [metric.name for metric in table] == [*kept, "blur", "sharpness"]
    assert table[0] == config.Metric("arcface", "identity", 0.2, 0.0)
    assert table[-2:] == (
        config.Metric("blur", "quality", 1.0, 0.02),
        config.Metric("sharpness", "quality", 0.1, 0.0),
    )


def test_settings_survive_json_and_configdict_in_order_and_can_be_hashed():
    changes = {"train": {"lr": 3e-4}, "lora": {"modules": ["to_q"]}}
    table = config.to_dict(config.Config())["reward"]["table"]
    table["zeal"] = table["awe"] = {"group": "text", "prior": 0.5, "floor": 0.0}
    c = config.from_dict(changes | {"reward": {"table": table}})
    as_json = json.loads(json.dumps(config.to_dict(c)))
    as_config = ml_collections.ConfigDict(config.to_dict(c)).to_dict()
    for values in (config.to_dict(c), as_json, as_config):
        again = config.from_dict(values)
        assert again == c and config.digest(again) == config.digest(c) and hash(again) == hash(c)
    assert list(config.to_dict(c)["reward"]["table"])[-2:] == ["awe", "zeal"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"group": "quality"}, "table.sharp.prior is missing; give a number, from 0 to 1000000"),
        ({"prior": 1.0}, "table.sharp.group is missing; give one of identity, text, quality"),
        ({"group": "sound", "prior": 1.0}, "table.sharp.group must be one of identity, text"),
        ({"group": "text", "prior": -1}, "table.sharp.prior must be from 0 to 1000000, got -1"),
        ({"group": "text", "prior": 1, "flor": 0}, "table.sharp.flor does not .*sharp.floor"),
        (0.5, "table.sharp must give group, prior, floor, got 0.5"),
    ],
)
def test_a_faulty_row_is_named(row, message):
    with pytest.raises(ValueError, match=f"^config.reward.{message}"):
        config.from_dict({"reward": {"table": {"sharp": row}}})


@pytest.mark.parametrize("name", ["", "two words", "9lives", "a.b", "total", "é!"])
def test_a_metric_needs_a_name_that_is_one(name):
    values = config.to_dict(config.Config())
    values["reward"]["table"][name] = {"group": "text", "prior": 1.0}
    with pytest.raises(ValueError, match=r"\.name must be a name such as arcface"):
        config.from_dict(values)


def test_some_metric_must_count():
    values = config.to_dict(config.Config())
    for row in values["reward"]["table"].values():
        row["prior"] = 0
    with pytest.raises(ValueError, match="config.reward.table needs a metric with a prior above 0"):
        config.from_dict(values)
    values["reward"]["table"]["vqscore"]["prior"] = 1.0
    config.from_dict(values)
    values["reward"]["preference"] = False  # the judge does not count, and nobody else does
    with pytest.raises(ValueError, match="needs a metric with a prior above 0"):
        config.from_dict(values)
    values["reward"]["uniform"] = True  # equal weights of those with a prior
    with pytest.raises(ValueError, match="needs a metric with a prior above 0"):
        config.from_dict(values)


def test_something_must_count_in_the_proof():
    """EvoScore never does, and the judge's grade only where there is a judge."""
    values = config.to_dict(config.Config())
    values["reward"]["table"]["evoscore"] = {"group": "quality", "prior": 1.0, "floor": 0.0}
    for name in values["reward"]["table"]:
        values["reward"]["table"][name]["prior"] = float(name in ("evoscore", "vqscore"))
    config.from_dict(values)
    values["reward"]["judge"] = ""
    with pytest.raises(ValueError, match="besides evoscore and vqscore: the total of the watch"):
        config.from_dict(values)
    values["reward"] |= {"judge": "local"}
    values["reward"]["table"]["vqscore"]["prior"] = 0.0
    with pytest.raises(ValueError, match="besides evoscore: the total of the watch and the proof"):
        config.from_dict(values)


def test_preference_needs_the_judges_metric():
    values = config.to_dict(config.Config())
    del values["reward"]["table"]["vqscore"]
    with pytest.raises(ValueError, match="config.reward.preference=True needs the judge's vqscore"):
        config.from_dict(values)
    values["reward"]["preference"] = False
    assert len(config.from_dict(values).reward.table) == 7
