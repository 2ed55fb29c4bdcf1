"""Settings: the paper's defaults, bounds in every field, and errors that say what to do."""

import ast
import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest

from configs import evoid
from evoid_jax import config, fields
from evoid_jax.models import lora

ROOT = Path(__file__).parents[1]
LEAVES = fields.leaves(config.Config, "config")
ROW = fields.leaves(config.Metric, "config.reward.table.arcface")
EVERY = LEAVES | {name: leaf for name, leaf in ROW.items() if not name.endswith(".name")}
NUMBERS = {name: leaf for name, leaf in EVERY.items() if leaf.kind in (int, float)}


def changed(name: str, value) -> dict:
    """Return the defaults as nested dicts with one setting changed."""
    values = copy.deepcopy(config.to_dict(config.Config()))
    *groups, key = name.split(".")[1:]
    group = values
    for word in groups:
        group = group[word]
    group[key] = value
    return values


def beyond(leaf: fields.Leaf) -> list:
    """Return values just outside of a number's bounds."""
    bounds, wrong = leaf.entry.metadata["bounds"], []
    step = 1 if leaf.kind is int else 0.001
    for end, way in ((bounds.least, -1), (bounds.above, 0), (bounds.most, 1), (bounds.below, 0)):
        wrong += [] if end is None else [end + way * step]
    if bounds.multiple > 1:
        wrong.append(bounds.least + 1)
    return [leaf.kind(value) for value in wrong]


def bounded(leaf: fields.Leaf) -> bool:
    """Tell whether a setting's field says from where to where, or which texts."""
    bounds = leaf.entry.metadata["bounds"]
    if leaf.kind in (int, float):
        ends = bounds.least, bounds.above, bounds.most, bounds.below
        # Without both ends a slip such as lr=1e30 would train, and would end as a success.
        return ends[:2] != (None, None) and ends[2:] != (None, None)
    if leaf.kind in (str, fields.TEXTS):
        return bool(bounds.choices or bounds.pattern)
    return leaf.kind is bool or fields.row_of(leaf.kind) is not None


def test_defaults_are_the_papers():
    c = config.Config()
    assert (c.data.pairs, c.data.seeds, c.steps, c.train.lr) == (4, 8, 200, 1e-4)
    assert (c.loss.lambda_t2v, c.loss.lambda_self) == (0.01, 0.2)
    assert (c.lora.rank, c.lora.alpha) == (32, 32.0)
    assert c.rollout.steps == 20


@pytest.mark.parametrize("name", ["tiny", "vace_1_3b", "vace_14b", "vace_14b,uniform,no_teacher"])
def test_every_preset_is_sound(name):
    cfg = config.from_dict(evoid.get_config(name).to_dict())
    assert cfg.reward.uniform == ("uniform" in name)
    assert (cfg.loss.lambda_t2v == 0) == ("no_teacher" in name)


def test_every_default_is_in_its_bounds_and_has_words():
    assert config.from_dict(config.to_dict(config.Config())) == config.from_dict({})
    assert all(len(leaf.entry.metadata["words"]) > 3 for leaf in EVERY.values())


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_has_bounds(name):
    assert bounded(EVERY[name])


def test_a_setting_without_bounds_is_noticed():
    for kind, bounds in ((int, fields.Bounds(least=1)), (float, fields.ANY), (str, fields.ANY)):
        assert not bounded(fields.Leaf(kind, fields.setting(1, "words", bounds)))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_bounds_is_refused_by_its_dotted_name(name):
    wrong = [math.nan, math.inf, -math.inf, -1e30, 1e30, 1e39, 10**400, 2**31, True, "1", None]
    if NUMBERS[name].entry.metadata["bounds"].also != -1:
        wrong.append(NUMBERS[name].kind(-1))
    if NUMBERS[name].entry.metadata["bounds"].most == 2**32 - 1:  # of a seed
        wrong.remove(2**31)
    for value in [*wrong, *beyond(NUMBERS[name]), [], {}]:
        with pytest.raises(ValueError) as error:
            config.from_dict(changed(name, value))
        assert str(error.value).startswith(f"{name} must be "), value
        assert f"got {value!r}" in str(error.value)


@pytest.mark.parametrize("name", EVERY)
def test_what_cannot_even_be_written_out_is_refused_by_its_dotted_name(name):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, deep):
        with pytest.raises(
            ValueError, match=rf"^{name} .* got a \w+ that is too large to be shown"
        ):
            config.from_dict(changed(name, value))
    while deep:  # freed from inside: from outside it would go as deep
        deep = deep.pop()


@pytest.mark.parametrize("name", [n for n in EVERY if EVERY[n].kind in (str, fields.TEXTS)])
def test_a_text_that_no_file_can_hold_is_refused_by_its_dotted_name(name):
    for value in ("a\0b", "half \ud83d"):
        held = [value] if EVERY[name].kind == fields.TEXTS else value
        with pytest.raises(ValueError, match=f"^{name} (must be text without NUL|is no name of)"):
            config.from_dict(changed(name, held))


@pytest.mark.parametrize("name", [n for n in EVERY if EVERY[n].kind in (str, fields.TEXTS, bool)])
def test_a_text_of_another_kind_is_refused_by_its_dotted_name(name):
    leaf, wrong = EVERY[name], [1, None, math.nan, {"a": 1}]
    bounds = leaf.entry.metadata["bounds"]
    if leaf.kind == fields.TEXTS:
        wrong += [(), ("",), ("nonsense",), (1,), leaf.entry.default * 2, "to_q"]
    elif bounds.choices:
        wrong += ["nonsense", f"{bounds.choices[-1]} "]
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} (must be|is a group of)"):
            config.from_dict(changed(name, value))


def test_bounds_hold_in_float32():
    for name, value in [("eps", 1e-50), ("b2", 1 - 1e-9), ("b1", 0.99999999), ("lr", 1e-46)]:
        with pytest.raises(ValueError, match=f"config.train.{name} must be"):
            config.from_dict({"train": {name: value}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tran": {}}, r"config.tran does not exist; did you mean config.train\?"),
        ({"train": {"lrr": 1.0}}, r"config.train.lrr does not exist; .* config.train.lr\?"),
        ({"train": {"rank": 4}}, r"config.train.rank does not exist; .* config.lora.rank\?"),
        ({"lr": 1.0}, r"config.lr does not exist; .* config.train.lr\?"),
        ({"train": {"lr": "fast"}}, r"config.train.lr must be a number, got 'fast' \(str\)"),
        ({"train": 3}, "config.train is a group of settings, got 3"),
        ({"steps": 1.5}, "config.steps must be a whole number, got 1.5"),
        ({"steps": True}, "config.steps must be a whole number"),
        ({"video": {"frames": 80}}, r"config.video.frames must be 4 k \+ 1 and .*, got 80"),
        ({"video": {"frames": -3}}, r"must be 4 k \+ 1 and from 1 to 4093, got -3"),
        ({"video": {"width": 100}}, "config.video.width must be a multiple of 16 .*, got 100"),
        ({"rollout": {"scheduler": "ddim"}}, "one of unipc, euler, got 'ddim'"),
        ({"rollout": {"shift": 0}}, "config.rollout.shift must be above 0 and .*, got 0"),
        ({"train": {"shift": 0}}, "config.train.shift must be above 0 and at most 1000, got 0"),
        ({"lora": {"alpha": 0}}, "config.lora.alpha must be above 1e-09 and .*, got 0"),
        ({"lora": {"modules": ["to_z"]}}, r"config.lora.modules must be some of to_q.*\['to_z'\]"),
        (
            {"reward": {"clip": -1}},
            "^config.reward.clip must be above 1e-09 and .* 1000000, got -1$",
        ),
        ({"reward": {"timeout": -1}}, "config.reward.timeout must be above 0 and .*, got -1"),
        ({"reward": {"gamma": 1.5}}, "config.reward.gamma must be from 0 to 1, got 1.5"),
        ({"reward": {"sidecars": [1]}}, "config.reward.sidecars must be"),
        ({"reward": {"sidecars": ["host:80"]}}, "config.reward.sidecars must be .* http://host:81"),
        ({"reward": {"judge": "vllm"}}, "config.reward.judge must be local, '' or an address"),
        ({"data": {"heldout_seeds": 0}}, "config.data.heldout_seeds must be from 1 to 1000, got 0"),
        ({"data": {"seeds": 1}}, "config.data.seeds must be from 2 to 1000, got 1"),
        ({"mesh": {"fsdp": 0}}, "config.mesh.fsdp must be -1 or from 1 to 100000, got 0"),
        ({"mesh": {"fsdp": -1}}, "one of config.mesh.data and config.mesh.fsdp may be -1"),
        ({"residual": "bfloat16"}, "config.residual must be one of model, float32"),
        ({"attention": "flash"}, "config.attention must be one of auto, exact, cudnn, splash"),
        ({"attention": "cudnn", "dtype": "float32"}, "cudnn needs config.dtype=bfloat16"),
        ({"train": {"timesteps": 21}}, r"must be 1 to 20 \(config.train.grid\), got 21"),
        ({"model": " "}, "config.model must be a folder, got ' '"),
    ],
)
def test_errors_name_the_setting_what_was_expected_and_what_came(values, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(values)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"judge": "http://me:hunter2@host/v1"}, "config.reward.judge_key_env"),
        ({"judge": "me:hunter2@host/v1"}, "config.reward.judge: an address must hold no name"),
        ({"judge": "http://me:hunter2/x@host/v1"}, "config.reward.judge: an address must"),
        ({"judge": "https://host/v1?api_key=hunter2"}, "config.reward.judge: an address must"),
        ({"sidecars": ["http://a", "http://hunter2@b"]}, "config.reward.sidecars: an address must"),
        ({"judge_key_env": "sk-hunter2"}, "config.reward.judge_key_env is no name of a variable"),
        ({"judge_extra": '{"api_key": "hunter2"}'}, "judge_extra must not hold api_key"),
        ({"judge_extra": '{"model": "hunter2", "seed": 1}'}, "judge_extra must not hold model"),
    ],
    ids=str,
)
def test_a_secret_is_refused_and_not_repeated(reward, words):
    """Settings are written into the run's files; a key is in the environment."""
    with pytest.raises(ValueError, match=words) as error:
        config.from_dict({"reward": reward})
    assert "hunter2" not in str(error.value)


def test_an_address_with_a_path_and_a_query_is_one():
    for url in ("https://host:8443/a/judge/v1", "https://host/v1?api-version=2026-01"):
        assert config.from_dict({"reward": {"judge": url}}).reward.judge == url


def test_extra_fields_of_the_judge_are_json():
    with pytest.raises(ValueError, match="config.reward.judge_extra is not JSON"):
        config.from_dict({"reward": {"judge_extra": "{'top_p': 1}"}})
    with pytest.raises(ValueError, match="config.reward.judge_extra must be '' or a JSON object"):
        config.from_dict({"reward": {"judge_extra": "[1]"}})


def test_lora_can_adapt_what_the_settings_allow():
    allowed = EVERY["config.lora.modules"].entry.metadata["bounds"].choices
    assert set(allowed) == {*lora.ATTENTION, "ffn_up", "ffn_down"}
    assert EVERY["config.lora.targets"].entry.metadata["bounds"].choices == tuple(lora.STACKS)


# --- paths, data, digest


def test_paths_are_usable_inside_and_portable_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    monkeypatch.chdir(tmp_path)
    typed = {"teacher": "~/t2v", "lora": {"init": "~/a.safetensors"}, "data": {"dir": "~/faces"}}
    c = config.from_dict(typed)
    home = f"{tmp_path}/anna"
    assert (c.teacher, c.lora.init) == (f"{home}/t2v", f"{home}/a.safetensors")
    assert (c.data.dir, c.data.cache) == (f"{home}/faces", f"{home}/.cache/evoid_jax")
    assert Path(c.model, "model_index.json").is_file()
    values = config.to_dict(c)
    assert values["model"] == "evoid_jax/assets/tiny" and values["teacher"] == "~/t2v"
    assert config.to_dict(config.from_dict({"model": f"{home}/wan"}))["model"] == "~/wan"
    assert config.from_dict({"model": "wan"}).model == "wan"  # where the user says: from here
    name = config.digest(c)
    monkeypatch.setenv("HOME", str(tmp_path / "ben"))
    assert config.digest(config.from_dict(values)) == name
    paths = {n for n, leaf in LEAVES.items() if leaf.entry.metadata["bounds"].path}
    assert {n.removeprefix("config.") for n in paths} == {
        "model",
        "teacher",
        "data.dir",
        "data.cache",
        "lora.init",
        "reward.judge_rubric",
    }


def test_only_the_embedded_model_trains_on_portraits_unasked():
    source = lambda values: config.from_dict(values).data.source
    assert source({}) == source(evoid.get_config("tiny").to_dict()) == "portraits"
    assert source({"model": str(ROOT / "evoid_jax" / "assets" / "tiny")}) == "portraits"
    assert source(evoid.get_config("vace_14b").to_dict()) == source({"model": "Wan"}) == ""
    assert source({"model": "Wan", "data": {"source": "portraits"}}) == "portraits"
    assert source({"data": {"source": "portraits", "dir": "faces"}}) == ""  # a folder wins


def test_a_config_made_by_hand_is_checked_and_settled():
    by_hand = config.Config(train=config.Train(lr=-1.0))
    with pytest.raises(ValueError, match="config.train.lr must be above 0 and at most 1, got -1"):
        config.checked(by_hand)
    c = config.checked(dataclasses.replace(by_hand, train=config.Train()))
    assert c == config.from_dict({}) == config.checked(c)


def test_every_setting_changes_the_digest():
    digests = {config.digest(config.from_dict({}))}
    other = {int: 33, float: 0.75, bool: None, str: "other"}
    special = {"frames": 5, "height": 32, "width": 32, "sidecars": ["http://a"]}
    special |= {"modules": ["to_q"], "judge": "", "fsdp": 2, "timesteps": 5}
    special |= {"judge_extra": '{"top_p": 0.5}'}
    for name, leaf in EVERY.items():
        key, kind = name.rpartition(".")[2], leaf.kind
        bounds = leaf.entry.metadata["bounds"]
        if key == "table" or name == "config.data.source":
            continue
        value = special.get(key, other.get(kind))
        if kind is bool:
            value = not leaf.entry.default
        elif bounds.choices and kind is str:
            value = bounds.choices[-1] if bounds.choices[-1] != leaf.entry.default else "float32"
        digests.add(config.digest(config.from_dict(changed(name, value))))
    assert len(digests) == len(EVERY) - 1  # of all but table and source, and the defaults'
    stored = json.loads(config.dumps(config.from_dict({})))
    assert stored.pop("digest") == config.digest(config.from_dict(stored))


def test_unknown_preset_or_ablation_is_named():
    with pytest.raises(ValueError, match="'huge' is none of tiny"):
        evoid.get_config("huge")
    with pytest.raises(ValueError, match="'unifrom' is none of uniform"):
        evoid.get_config("tiny,unifrom")


def test_every_setting_is_read_somewhere():
    """A key that nothing reads is a lie to its user."""
    read = set()
    for file in (ROOT / "evoid_jax").rglob("*.py"):
        if file.name not in ("config.py", "groups.py", "reward_groups.py"):
            tree = ast.parse(file.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name.rpartition(".")[2] for name in EVERY} - read == set()
