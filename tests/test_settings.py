"""A run's settings: refused before anything is loaded, read back, and compared when it goes on."""

import json
import re
import shutil
from pathlib import Path

import pytest

from configs import evoid
from evoid_jax import config, fields, settings

TINY = Path(fields.locate(config.TINY))


def preset(name: str = "tiny", **changes) -> config.Config:
    """Return a preset with groups of settings changed."""
    cfg = evoid.get_config(name)
    cfg.update(changes)
    return config.from_dict(cfg.to_dict())


def written(cfg: config.Config) -> dict:
    """Return what config.json of a run with these settings holds."""
    return json.loads(config.dumps(cfg))


# --- before anything is loaded


def test_what_is_there_may_start():
    settings.check_start(preset())


def test_a_base_other_than_tiny_needs_data(tmp_path):
    with pytest.raises(ValueError, match="config.data.dir is missing: give a folder with photos"):
        settings.check_start(preset("vace_14b", reward={"preset": "tiny"}))
    for name in ("vace_14b", "vace_1_3b"):
        with pytest.raises(ValueError, match=r"evoid_jax\.prepare --photos.* --config\.data\.dir="):
            settings.check_start(preset(name))
    unasked = preset(model=str(shutil.copytree(TINY, tmp_path / "wan")))
    with pytest.raises(ValueError, match="config.data.source=portraits"):
        settings.check_start(unasked)
    settings.check_start(preset(model=unasked.model, data={"source": "portraits"}))


def test_a_reward_set_that_does_not_exist_is_refused_before_the_model_is_looked_for(tmp_path):
    data = {"dir": str(tmp_path)}
    with pytest.raises(ValueError, match="config.reward.preset must be one of .*, got 'huge'"):
        settings.check_start(preset("vace_14b", reward={"preset": "huge"}, data=data))
    elsewhere = preset(reward={"preset": "theirs", "sidecars": ("http://host:8100",)})
    settings.check_start(elsewhere)  # those servers know their own


@pytest.mark.parametrize("name", ["config.model", "config.teacher", "config.data.dir"])
def test_a_folder_that_is_missing_is_named_with_its_setting(name, tmp_path):
    gone = str(tmp_path / "gone")
    changes = {"model": gone, "data": {"source": "portraits"}}
    changes = {"config.model": changes, "config.teacher": {"teacher": gone}}.get(name)
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no folder {gone}"):
        settings.check_start(preset(**(changes or {"data": {"dir": gone}})))


def test_a_model_that_is_not_there_is_named_before_the_data_that_it_would_need(tmp_path):
    """With another model than the embedded one there are no drawn faces to fall back on."""
    with pytest.raises(FileNotFoundError, match="config.model: there is no folder .*typo"):
        settings.check_start(preset(model=str(tmp_path / "typo")))


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, []),
        ({"nft": {"kl": 0.2}}, ["config.nft.kl=0.2"]),
        (
            {"algorithm": "nft", "loss": {"beta": 1.0, "lambda_self": 0.3}},
            ["config.loss.lambda_self=0.3", "config.train.ema_decay=0.2"],
        ),
        ({"algorithm": "rwr", "teacher": "t2v"}, ["config.teacher=t2v", "config.loss.beta=2.0"]),
        ({"algorithm": "nft", "nft": {"kl": 0.2, "decay": "train"}}, ["config.loss.beta=2.0"]),
        (
            {"algorithm": "grpo", "train": {"grid": 30}, "nft": {"beta": 2.0}},
            [
                "config.loss.beta=2.0",
                "config.nft.beta=2.0",
                "config.train.grid=30",
                "config.train.shift=3.0",
            ],
        ),
        (
            {"algorithm": "imitation", "imitation": {"target": "clips"}},
            ["config.loss.beta=2.0", "config.train.ema_decay=0.2"],
        ),
        ({"algorithm": "imitation", "loss": {"beta": 1.0}}, []),
    ],
)
def test_settings_that_another_algorithm_leaves_alone_are_named(changes, idle):
    assert settings.unused(preset(**changes)) == idle


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"watch": {"every": 0, "patience": 1}}, r"config\.watch\.patience: needs config"),
        ({"watch": {"every": 0, "drift": 0.1}}, r"config\.watch\.drift: needs"),
        ({"watch": {"every": 0, "export": "best"}}, r"config\.watch\.export=best: needs"),
        ({"watch": {"every": 0}, "reward": {"stop_on_hacking": True}}, "stop_on_hacking: needs"),
        (
            {"watch": {"identities": 7}, "reward": {"stop_on_hacking": True}},
            r"needs config\.watch\.identities of 8 or more: .* got 7",
        ),
    ],
)
def test_what_could_never_stop_a_run_does_not_start_one(values, message):
    with pytest.raises(ValueError, match=message):
        settings.check_start(preset(**values))


def test_a_watch_of_few_people_cannot_stop_a_run():
    settings.check_watched(preset(), people=3)
    stops = preset(reward={"stop_on_hacking": True})
    settings.check_watched(stops, people=8)
    with pytest.raises(ValueError, match="the watch has 7 people, and of fewer than 8 nothing"):
        settings.check_watched(stops, people=7)


def test_the_start_file_is_needed_only_before_the_first_checkpoint(tmp_path):
    cfg = preset(lora={"init": str(tmp_path / "a.safetensors")})
    with pytest.raises(FileNotFoundError, match="config.lora.init: there is no"):
        settings.check_start(cfg)
    settings.check_start(cfg, fresh=False)
    assert settings.resumable(written(cfg), cfg) == []


# --- config.json


def test_a_run_reads_back_the_settings_that_it_wrote(tmp_path):
    cfg = preset(lora={"modules": ("to_q",)}, reward={"tau": 2.0})
    (tmp_path / "config.json").write_text(config.dumps(cfg))
    assert settings.read(tmp_path) == cfg
    assert settings.stored(tmp_path)["digest"] == config.digest(cfg)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list \\[...\\]; expected an object"),
        (
            '{"steps": 3}',
            "lacks config.model, .* and [0-9]+ more: another",
        ),
    ],
)
def test_a_broken_or_foreign_file_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json.*{message}"):
        settings.read(tmp_path)


def test_a_folder_without_config_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing; expected the --workdir"):
        settings.read(tmp_path / "no" / "such")


def test_a_file_that_was_changed_by_hand_is_refused(tmp_path):
    values = written(preset())
    values["lora"]["alpha"] = 16.0  # the export would get another scale than the run had
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config.json: settings were changed after the run"):
        settings.read(tmp_path)
    values["lora"]["alpha"] = -1
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"config.json: config.lora.alpha must be above 1e-09 .*, got -1"
    ):
        settings.read(tmp_path)


def test_a_file_of_another_version_is_called_so(tmp_path):
    old = written(preset())
    del old["reward"]["table"]  # as before priors could be set
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="it lacks config.reward.table: another version"):
        settings.read(tmp_path)
    assert "it lacks config.reward.table" in settings.resumable(old, preset())[0]
    newer = written(preset()) | {"magic": {"wand": 1}}
    assert "config.magic.wand, which does not exist here" in settings.resumable(newer, preset())[0]


# --- going on


@pytest.mark.parametrize("name", fields.leaves(config.Config, "config"))
def test_a_setting_may_change_on_resume_exactly_where_its_field_says_so(name):
    cfg = preset()
    was = written(cfg)
    *groups, key = name.split(".")[1:]
    group = was
    for word in groups:
        group = group[word]
    group[key] = "something else"
    said = settings.resumable(was, cfg)
    free = fields.leaves(config.Config, "config")[name].entry.metadata["free"]
    assert (said == []) == free
    assert free or said[0].startswith(f"{name} was 'something else', now ")


def test_a_changed_table_of_rewards_is_noticed_row_by_row():
    cfg, was = preset(), written(preset())
    was["reward"]["table"]["gme"]["prior"] = 0.5
    del was["reward"]["table"]["flow"]
    was["reward"]["table"]["sharpness"] = {"group": "quality", "prior": 0.1, "floor": 0.01}
    gme, sharpness, flow = settings.resumable(was, cfg)
    assert gme.startswith("config.reward.table.gme was {'group': 'text', 'prior': 0.5")
    assert sharpness.endswith("now None") and sharpness.startswith("config.reward.table.sharpness")
    assert flow.startswith("config.reward.table.flow was None, now {'group'")


def test_another_spelling_of_a_path_is_the_same_path(tmp_path, monkeypatch):
    home = tmp_path / "anna"
    monkeypatch.setenv("HOME", str(home))
    model = shutil.copytree(TINY, home / "wan")
    monkeypatch.chdir(home)
    (tmp_path / "link").symlink_to(model)
    copied = shutil.copytree(model, tmp_path / "copy")
    was = written(preset(model="~/wan", data={"source": "portraits"}))
    for spelling in ("wan", "./wan/", str(model), "~/wan", "../link", str(copied)):
        now = preset(model=spelling, data={"source": "portraits"})
        assert settings.resumable(was, now) == [], spelling
    (copied / "transformer" / "config.json").write_text("{}")
    (said,) = settings.resumable(was, preset(model=str(copied), data={"source": "portraits"}))
    assert said == f"config.model was '~/wan', now '{copied}'"
    assert settings.resumable(was, preset(model=str(tmp_path / "no"), data={"source": "portraits"}))


def test_a_file_is_the_same_by_its_bytes(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for file, text in ((one, "a"), (same, "a"), (other, "b")):
        file.write_text(text)
    was = written(preset(lora={"init": str(one)}))
    assert settings.resumable(was, preset(lora={"init": str(same)})) == []
    for path in (str(other), str(tmp_path / "gone"), ""):
        assert len(settings.resumable(was, preset(lora={"init": path}))) == 1


# --- scorers, told from settings alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": ""}, "config.reward.preference=False and config.reward.dynamic=False"),
        ({"judge": "", "preference": False}, "or config.reward.dynamic=False"),
        ({"judge": "http://host:port/v1"}, "config.reward.judge: http://host:port/v1 is no"),
        ({"judge": "http://[::1"}, "config.reward.judge: "),
        ({"sidecars": ("http://host:99999",)}, "config.reward.sidecars: http://host:99999 is no"),
    ],
)
def test_scorers_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check_start(preset(reward=changes))


def test_the_judges_questions_are_looked_for_at_once(tmp_path):
    gone = str(tmp_path / "rubric.toml")
    with pytest.raises(FileNotFoundError, match="config.reward.judge_rubric"):
        settings.check_start(preset(reward={"judge_rubric": gone}))


def test_a_run_may_do_without_a_judge():
    settings.check_start(preset(reward={"judge": "", "preference": False, "dynamic": False}))
