"""The settings of a run: looked at before anything is loaded, read back, compared when it goes on.

A run keeps them in its config.json, which `config.dumps` words and which is read here alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evoid_jax import config, fields, files, hub
from evoid_jax.algorithm_groups import ALGORITHMS
from evoid_jax.config import Config
from evoid_jax.groups import ENOUGH
from evoid_jax.provenance import HEURISTIC
from evoid_jax.reward_groups import EVOSCORE

FILE = "config.json"
NAMED = ("config.model", "config.teacher")  # which may be names on the Hugging Face hub

# --- before anything is loaded


def reward_presets() -> list[str]:
    """Return the reward sets that a local sidecar can serve: the folders with a rewards.py."""
    return sorted(file.parent.name for file in fields.PACKAGE.glob("sidecars/*/rewards.py"))


def check_reward_preset(name: str) -> None:
    """Raise a ValueError for a reward set that does not exist."""
    presets = reward_presets()
    if name not in presets:
        raise ValueError(
            f"config.reward.preset must be one of {', '.join(presets)}, got {name!r}; others run "
            "in servers of their own, whose addresses config.reward.sidecars takes"
        )


def check_address(name: str, url: str) -> None:
    """Raise a ValueError, which calls the setting by its name, for an address with a wrong port."""
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise ValueError(f"{name}: {url} is no address: {error}") from None


def check_start(cfg: Config, fresh: bool = True) -> None:
    """Find in a moment what training would only find when it had loaded the model.

    fresh: the run has no checkpoint yet; later it does not need config.lora.init's file any more.

    Raises:
      ValueError: no data, no such reward set, no judge, or an address that cannot be.
      FileNotFoundError: a file or folder that a setting names is not there.
    """
    # First: a model that is not there is no embedded one either, which has data of its own.
    needed = {"config.model": cfg.model, "config.teacher": cfg.teacher}
    needed |= {"config.data.dir": cfg.data.dir}
    for name, path in needed.items():
        if path and not Path(path).is_dir() and not (name in NAMED and hub.is_id(path)):
            raise FileNotFoundError(f"{name}: there is no folder {Path(path).absolute()}")
    if not cfg.data.dir and not cfg.data.source:
        raise ValueError(
            "config.data.dir is missing: give a folder with photos and prompts.jsonl. This makes "
            "one of your photos: python -m evoid_jax.prepare --photos=PHOTOS --out=FOLDER; then "
            "train with --config.data.dir=FOLDER. Drawn faces of 64 pixels, for a trial without "
            "data, are config.data.source=portraits"
        )
    if "local" in cfg.reward.sidecars:
        check_reward_preset(cfg.reward.preset)
    judged = {"preference": cfg.reward.preference, "dynamic": cfg.reward.dynamic}
    idle = [f"config.reward.{name}=False" for name, wanted in judged.items() if wanted]
    idle += [
        f"config.reward.table.{row.name}.prior=0"
        for row in cfg.reward.table
        if row.name == EVOSCORE and row.prior > 0
    ]
    if idle and not cfg.reward.judge:
        raise ValueError(f"config.reward.judge='' is no judge; give one, or {' and '.join(idle)}")
    if cfg.reward.judge == "local" and cfg.reward.judge_model != HEURISTIC:
        raise ValueError(
            f"config.reward.judge_model is {cfg.reward.judge_model}, and no server was named that "
            "has it: start one (docs/judge.md), --config.reward.judge=http://HOST:8200/v1. For a "
            "trial without, by the heuristic of plain measurements: "
            f"--config.reward.judge_model={HEURISTIC}"
        )
    check_stops(cfg)
    for url in cfg.reward.sidecars:
        check_address("config.reward.sidecars", url)
    check_address("config.reward.judge", cfg.reward.judge)
    if cfg.reward.judge_rubric:
        files.require_file(cfg.reward.judge_rubric, hint="config.reward.judge_rubric names it")
    if fresh and cfg.lora.init and not Path(cfg.lora.init).exists():
        raise FileNotFoundError(f"config.lora.init: there is no {Path(cfg.lora.init).absolute()}")


def check_stops(cfg: Config) -> None:
    """Raise a ValueError for what only the watch's comparisons can do, where it makes none."""
    asked = {
        "config.watch.patience": cfg.watch.patience > 0,
        "config.watch.drift": cfg.watch.drift > 0,
        "config.watch.export=best": cfg.watch.export == "best",
        "config.reward.stop_on_hacking": cfg.reward.stop_on_hacking,
    }
    named = ", ".join(name for name, wanted in asked.items() if wanted)
    if named and cfg.watch.every == 0:
        raise ValueError(f"{named}: needs config.watch.every above 0, got 0")
    if cfg.reward.stop_on_hacking and cfg.watch.identities < ENOUGH:
        raise ValueError(
            f"config.reward.stop_on_hacking needs config.watch.identities of {ENOUGH} or more: of "
            f"fewer nothing is said to rise or fall; got {cfg.watch.identities}"
        )


def check_watched(cfg: Config, people: int) -> None:
    """Raise a ValueError where the watch has too few people to stop a run as it was told to."""
    if cfg.reward.stop_on_hacking and people < ENOUGH:
        raise ValueError(
            f"config.reward.stop_on_hacking: the watch has {people} people, and of fewer than "
            f"{ENOUGH} nothing is said to rise or fall; set more apart (config.data.validation, or "
            "`split` in prompts.jsonl), or leave it out"
        )


def unused(cfg: Config) -> list[str]:
    """Return NAME=VALUE of settings that are not at their default and have no effect here."""
    own = [name for name in ALGORITHMS if name != "evoid"]
    idle = [f"config.{name}." for name in own if name != cfg.algorithm]
    if cfg.algorithm != "evoid":
        idle += ["config.teacher", "config.loss."]
    if cfg.algorithm == "nft" and cfg.nft.decay != "train":
        idle += ["config.train.ema_decay"]
    if cfg.algorithm == "grpo":
        idle += ["config.train.grid", "config.train.shift"]
    if cfg.algorithm == "imitation" and cfg.imitation.target == "clips":
        idle += ["config.guidance.rollout", "config.train.ema_decay"]
    values = {name: fields.value(cfg, name) for name in fields.leaves(Config, "config")}
    usual = Config()
    return [
        f"{name}={value}"
        for name, value in values.items()
        if name.startswith(tuple(idle)) and value != fields.value(usual, name)
    ]


# --- config.json


def stored(workdir: str | Path) -> dict[str, Any]:
    """Return what a run's config.json holds, digest included, without a look at the settings.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a JSON object; names the file.
    """
    return files.read_json(Path(workdir) / FILE, hint="expected the --workdir of a training run")


def read(workdir: str | Path) -> Config:
    """Return the settings of a run.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: another version wrote it, or somebody changed it; names file and setting.
    """
    file, values = Path(workdir) / FILE, stored(workdir)
    written = values.pop("digest", None)
    if said := other_version(values):
        raise ValueError(f"{file}: {said[0]}")
    try:
        cfg = config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if written not in (None, config.digest(cfg)):
        raise ValueError(f"{file}: settings were changed after the run wrote it; change them back")
    return cfg


def other_version(values: Mapping[str, Any]) -> list[str]:
    """Say what shows that another version wrote nested dicts of settings; [] if nothing does."""
    known = fields.leaves(Config, "config")
    lacking = [name for name in known if _at(values, name) is MISSING]
    extra = [name for name in _names(values, "config", known) if name not in known]
    advice = "another version of evoid_jax wrote it; go on with that one, or take a new --workdir"
    said = []
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        said.append(f"it lacks {', '.join(lacking[:3])}{more}: {advice}")
    return said + [f"it has {name}, which does not exist here: {advice}" for name in extra]


# --- going on with a run


def resumable(old: Mapping[str, Any], new: Config) -> list[str]:
    """Say what keeps a run from going on with new settings, one sentence each; [] if nothing does.

    Settings that are free to change may differ, and so may the spelling of a path.

    old: what `stored` returned.
    """
    was = {name: value for name, value in old.items() if name != "digest"}
    now = json.loads(json.dumps(config.to_dict(new)))  # lists for tuples, as JSON has them
    return other_version(was) or changes(was, now)


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings differ in nested dicts that hold all of them, but for the free ones."""
    said = []
    for name, leaf in fields.leaves(Config, "config").items():
        notes, old, new = leaf.entry.metadata, _at(was, name), _at(now, name)
        if notes["free"] or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):  # a table: only the rows that differ
            rows = [row for row in {**old, **new} if old.get(row) != new.get(row)]
            said += [f"{name}.{row} was {old.get(row)}, now {new.get(row)}" for row in rows]
        elif not (notes["bounds"].path and isinstance(old, str) and same_place(old, new)):
            said.append(f"{name} was {old!r}, now {new!r}")
    return said


def same_place(one: str, other: str) -> bool:
    """Tell whether two paths lead to the same file or folder, or to copies of one.

    Of two names on the hub one may be without the commit that the other has.
    """
    if not one or not other:
        return False
    if hub.same(one, other):
        return True
    try:
        first, second = Path(fields.locate(one)), Path(fields.locate(other))
        if first.resolve() == second.resolve():
            return True
        held = _contents(first)
        return held is not None and held == _contents(second)
    except (OSError, ValueError, RuntimeError):  # no path of this system, or links in a circle
        return False


def _contents(place: Path) -> Any:
    """Return what copies share: a file's SHA-256; a folder's JSON, and its files with their sizes.

    Weights are not read, they may be many gigabytes: folders with files of the same names and
    sizes beside the same JSON hold the same model here.
    """
    if place.is_file():
        return files.sha256(place)
    if not place.is_dir():
        return None
    contents = {}
    for file in place.rglob("*"):
        if file.is_file():
            held = file.read_bytes() if file.suffix == ".json" else file.stat().st_size
            contents[str(file.relative_to(place))] = held
    return contents


def _at(values: Any, name: str) -> Any:
    """Return what nested dicts hold by a dotted name, whose first word is their own; or MISSING."""
    for word in name.split(".")[1:]:
        if not isinstance(values, Mapping) or word not in values:
            return MISSING
        values = values[word]
    return values


def _names(values: Mapping, path: str, known: Mapping) -> Iterator[str]:
    """Yield the dotted names in nested dicts, no deeper than the settings that are known."""
    for key, value in values.items():
        name = f"{path}.{key}"
        if isinstance(value, Mapping) and name not in known:
            yield from _names(value, name, known)
        else:
            yield name
