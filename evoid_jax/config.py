"""All settings of a run, and the rules between them; the groups are in groups.py, reward_groups.py.

`configs/*.py` give an ml_collections ConfigDict; `from_dict` turns it into the frozen dataclasses
of these files and refuses a key that does not exist or a value that cannot be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evoid_jax import fields
from evoid_jax.algorithm_groups import ALGORITHMS, Grpo, Imitation, Nft, Rwr
from evoid_jax.fields import COUNT, Bounds, one_of, setting
from evoid_jax.groups import (
    FEW,
    FOLDER,
    PATH,
    Data,
    Guidance,
    Lora,
    Loss,
    Mesh,
    Rollout,
    Train,
    Video,
    Watch,
)
from evoid_jax.groups import NEGATIVE_PROMPT as NEGATIVE_PROMPT
from evoid_jax.reward_groups import EVOSCORE, JUDGE, Reward
from evoid_jax.reward_groups import GROUPS as GROUPS
from evoid_jax.reward_groups import METRICS as METRICS
from evoid_jax.reward_groups import Metric as Metric

TINY = "evoid_jax/assets/tiny"  # the embedded model
PROJECT = Bounds(  # as Weights & Biases has them
    pattern=r"[^/\\#?%:]{0,128}", form="a name of at most 128 letters, none of them / \\ # ? % :"
)
# A user's name before a host, or a value that is called a key, in what should be an address.
SECRET = re.compile(r"(?i)@|[?&][^=&]*(?:key|token|secret|passw|sig)[^=&]*=")
# Fields of a request to the judge that are ours, and those that would hold a key.
RESERVED = re.compile(r"(?i)model|messages|stream|n|.*(?:api.?key|authorization|secret|passw).*")


@dataclass(frozen=True)
class Config:
    """One run."""

    model: str = setting(
        TINY, "the base, in diffusers' layout: a folder, or a name on the hub (Org/Name)", FOLDER
    )
    teacher: str = setting(
        "",
        "a T2V folder or hub name; '' is the model's main blocks, as VACE left them unchanged",
        PATH,
    )
    algorithm: str = setting(
        "evoid",
        "what learns from the rewards; the others are for comparison (docs/algorithms.md)",
        one_of(*ALGORITHMS),
    )
    dtype: str = setting("bfloat16", "of the frozen base", one_of("bfloat16", "float32"))
    residual: str = setting(
        "model",
        "sums between layers; model: of dtype, as in diffusers, float32: as in Wan's own code",
        one_of("model", "float32"),
    )
    attention: str = setting(
        "auto",
        "auto goes by the platform, cudnn is for NVIDIA, splash for TPU",
        one_of("auto", "exact", "cudnn", "splash"),
        free=True,
    )
    deterministic: bool = setting(
        False, "on GPUs: the same bits in every run, by slower kernels and no tuning", free=True
    )
    seed: int = setting(0, "of everything that is drawn", Bounds(least=0, most=2**32 - 1))
    steps: int = setting(200, "evolution steps (paper)", COUNT, free=True)
    save_every: int = setting(10, "steps between checkpoints", COUNT, free=True)
    keep: int = setting(2, "newest checkpoints that are kept", FEW, free=True)
    keep_every: int = setting(
        0,
        "steps of which every checkpoint is kept besides; 0: none",
        Bounds(least=0, most=10**6),
        free=True,
    )
    grace: float = setting(
        25.0,
        "seconds from a signal to the end of the process; steps that take longer are saved one by "
        "one, so that none is lost",
        Bounds(above=0, most=86400),
        free=True,
    )
    tensorboard: bool = setting(False, "write events for TensorBoard too", free=True)
    wandb: str = setting("", "project name at Weights & Biases; '' is off", PROJECT, free=True)
    data: Data = Data()
    video: Video = Video()
    rollout: Rollout = Rollout()
    guidance: Guidance = Guidance()
    lora: Lora = Lora()
    loss: Loss = Loss()
    imitation: Imitation = Imitation()
    rwr: Rwr = Rwr()
    nft: Nft = Nft()
    grpo: Grpo = Grpo()
    train: Train = Train()
    reward: Reward = Reward()
    watch: Watch = Watch()
    mesh: Mesh = Mesh()


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as nested dicts that JSON and ConfigDict hold, with portable paths."""
    return fields.plain(config)


def from_dict(values: dict[str, Any]) -> Config:
    """Build and check a Config; its paths are as this machine has them, see `fields.locate`.

    Raises:
      ValueError: an unknown key (names the nearest), a wrong type, or an impossible value.
    """
    fields.refuse_unknown(Config, values, "config", names())
    _refuse_passwords(values)
    config = _settled(fields.build(Config, values, "config"))
    for wrong, message in _rules(config):
        if wrong:
            raise ValueError(message)
    return config


def checked(config: Config) -> Config:
    """Return a Config that was made by hand as `from_dict` would have made it."""
    return from_dict(to_dict(config))


def names() -> list[str]:
    """Return the dotted name of every setting and every group of settings."""
    every = list(fields.leaves(Config, "config"))
    groups = {name.rpartition(".")[0] for name in every} - {"config"}
    return every + sorted(groups)


def is_embedded(model: str) -> bool:
    """Tell whether a model's folder is the one that ships with the package."""
    return os.path.realpath(fields.locate(model)) == os.path.realpath(fields.locate(TINY))


def _settled(c: Config) -> Config:
    """Say outright which data is meant: only the embedded model takes the portraits unasked."""
    source = c.data.source
    if c.data.dir:
        source = ""
    elif not source and is_embedded(c.model):
        source = "portraits"
    return dataclasses.replace(c, data=dataclasses.replace(c.data, source=source))


def _refuse_passwords(values: dict[str, Any]) -> None:
    """Raise a ValueError, which does not repeat it, for an address that holds a secret.

    Settings are written into the run's files and shown in messages.
    """
    reward = values.get("reward")
    reward = reward if isinstance(reward, Mapping) else {}
    by_name = "put the key into an environment variable and give that one's name as "
    by_name += "config.reward.judge_key_env"
    instead = {"judge": by_name, "sidecars": "reach them through a private network or a tunnel"}
    for name, advice in instead.items():
        held = reward.get(name)
        for url in held if isinstance(held, list | tuple) else [held]:
            if isinstance(url, str) and SECRET.search(url):
                raise ValueError(
                    f"config.reward.{name}: an address must hold no name, password or key, since "
                    f"settings are written down; {advice}"
                )
    named = reward.get("judge_key_env")
    if isinstance(named, str) and not re.fullmatch(r"([A-Za-z_]\w*)?", named):
        raise ValueError(f"config.reward.judge_key_env is no name of a variable; {by_name}")


def _rules(c: Config) -> Iterator[tuple[bool, str]]:
    """Yield (is wrong, message) for every rule between settings."""
    t, r = c.train, c.reward
    many = f"config.train.timesteps must be 1 to {t.grid} (config.train.grid), got {t.timesteps}"
    # A walk's steps are the rollout's, and have a rule of their own.
    yield t.timesteps > t.grid and c.algorithm != "grpo", many
    both = c.mesh.data == c.mesh.fsdp == -1
    yield both, "one of config.mesh.data and config.mesh.fsdp may be -1, not both"
    wide = "config.attention=cudnn needs config.dtype=bfloat16; take auto or exact for float32"
    yield c.attention == "cudnn" and c.dtype == "float32", wide
    columns = [metric.name for metric in r.table]
    missing = f"config.reward.preference=True needs the judge's {JUDGE} in config.reward.table"
    yield r.preference and JUDGE not in columns, missing
    yield from _prior_rules(r)
    yield from _algorithm_rules(c)
    yield from _extra_rules(r.judge_extra)


def _prior_rules(r: Reward) -> Iterator[tuple[bool, str]]:
    """Yield the rules of priors: something must count in the update, and in the proof's total."""
    counting = [m for m in r.table if r.preference or m.name != JUDGE]
    weightless = "config.reward.table needs a metric with a prior above 0"
    yield not any(metric.prior > 0 for metric in counting), weightless
    proved = [m for m in r.table if m.name != EVOSCORE and (r.judge or m.name != JUDGE)]
    besides = EVOSCORE if r.judge else f"{EVOSCORE} and {JUDGE}"
    yield (
        not any(metric.prior > 0 for metric in proved),
        f"{weightless} besides {besides}: the total of the watch and the proof is over the others",
    )


def _algorithm_rules(c: Config) -> Iterator[tuple[bool, str]]:
    """Yield the rules of algorithms besides EvoID."""
    clips = c.algorithm == "imitation" and c.imitation.target == "clips"
    drawn = c.data.source == "portraits" and c.video.height == c.video.width
    yield (
        clips and not drawn,
        "config.imitation.target=clips needs config.data.source=portraits, whose prompts tell of "
        "clips that can be drawn, and square videos; take best with a folder of photos",
    )
    walks, g = c.algorithm == "grpo", c.guidance
    one_policy = g.rollout == g.train or max(g.rollout, g.train) <= 1
    yield (
        walks and not one_policy,
        f"config.algorithm=grpo learns from the policy that generates: config.guidance.rollout "
        f"({g.rollout:g}) and config.guidance.train ({g.train:g}) must be equal",
    )
    yield (
        walks and c.train.timesteps > c.rollout.steps - 1,
        f"config.algorithm=grpo trains all steps of a rollout but the last: "
        f"config.train.timesteps must be 1 to {c.rollout.steps - 1}, got {c.train.timesteps}",
    )


def _extra_rules(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the rules of config.reward.judge_extra."""
    try:
        extra = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        yield True, f"config.reward.judge_extra is not JSON: {error}"
        return
    wrong = [name for name in extra if RESERVED.fullmatch(name)]
    yield bool(wrong), f"config.reward.judge_extra must not hold {', '.join(wrong)}"


def digest(config: Config) -> str:
    """Return twelve hex digits that change when any setting does: the name of these settings."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dumps(config: Config) -> str:
    """Return the text of a run's config.json: every setting, and the digest."""
    return json.dumps(to_dict(config) | {"digest": digest(config)}, indent=2) + "\n"
