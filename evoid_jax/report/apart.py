"""Say which numbers of runs do not compare, and why: other scorers, priors, models or data.

What is not recorded is taken as equal: an older run says little of how it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evoid_jax.metrics import get
from evoid_jax.report import origin, settings_table
from evoid_jax.report.folder import RunFolder

# Settings by what the runs then have not in common; a group stands for all that is in it.
SETTINGS = {
    "started from different models": ("model", "lora.init"),
    "made their videos in different ways": ("video", "rollout", "guidance.proof"),
    "had different data": ("data.source", "data.dir"),
}
MEMORY = ("rollout.videos_per_device", "rollout.split")  # of the device alone: the same videos
NOISE = ("model", "video.frames", "video.height", "video.width")  # what gives it its shape


class Apart(NamedTuple):
    """Why numbers of two runs do not compare, in words; [] for what does compare."""

    total: list[str]
    judge: list[str]
    monitors: list[str]


def why(one: RunFolder, other: RunFolder) -> Apart:
    """Return why the totals, the judge's grades and the monitors of two runs do not compare.

    Monitors come from the services that give the rewards: with other models there, they may be
    others too.
    """
    mine, theirs = ({row.name: row for row in run.rewards} for run in (one, other))
    both = [name for name in mine if name in theirs]
    models = [name for name in both if _unlike(_models(mine[name]), _models(theirs[name]))]
    priors = [name for name in both if _differ(mine[name].prior, theirs[name].prior)]
    alone = sorted(mine.keys() ^ theirs.keys())
    scorers = [f"other models gave {_list(models)}"] if models else []
    judge = _judge(one, other)
    total = [f"one has no {_list(alone)}"] if alone else []
    total += [f"other priors of {_list(priors)}"] if priors else []
    return Apart(total=total + scorers + judge, judge=judge, monitors=scorers)


def caution(one: RunFolder, other: RunFolder, names: Sequence[str]) -> str:
    """Say which numbers of two runs do not compare; "" where all do. names: of the runs."""
    apart = why(one, other)
    if not apart.total:
        return ""
    what = ["totals"]
    what += ["judge's grades"] if apart.judge else []
    what += ["monitors"] if apart.monitors else []
    of_both = f"of {names[0]} and {names[1]} do not compare"
    return f"The {' and '.join(what)} {of_both}: {'; '.join(apart.total)}."


def of_settings(runs: Sequence[RunFolder]) -> str:
    """Say what else than their training is not the same in all runs; "" where all is."""
    differing = _differing(runs)
    found = []
    for words, groups in SETTINGS.items():
        names = [
            key
            for key in differing
            if key not in MEMORY and any(key == g or key.startswith(f"{g}.") for g in groups)
        ]
        found += [f"{words} ({_list(names)})"] if names else []
    if not found:
        return ""
    apart = f"The runs {'; '.join(found)}."
    return f"{apart} A difference between them may come from that and not from training."


def same_noise(runs: Sequence[RunFolder]) -> bool:
    """Tell whether one seed is the same noise in all runs, as far as their settings are known."""
    return not {*NOISE} & {*_differing(runs)}


def _differing(runs: Sequence[RunFolder]) -> list[str]:
    """Return the settings that have two values or more among the runs that know them."""
    apart = settings_table.differing([run.config or {} for run in runs])
    return [key for key, values in apart.items() if len({*values} - {settings_table.ABSENT}) > 1]


def _judge(one: RunFolder, other: RunFolder) -> list[str]:
    if _unlike(origin.judge_model(one), origin.judge_model(other)):
        return ["another judge"]
    asked = _asked_otherwise(one, other)
    return [f"the judge was asked otherwise ({_list(asked)})"] if asked else []


def _models(row) -> tuple | None:
    keys = ("preset", "version", "sha256")
    sources = tuple(tuple(source.get(key) for key in keys) for source in row.sources)
    return sources or None


def _asked_otherwise(one: RunFolder, other: RunFolder) -> list[str]:
    """Return the settings by which two runs' judge was asked that are not the same in both."""
    if origin.judge_model(one) is None or one.config is None or other.config is None:
        return []
    names = ("frames", "side", "rubric", "extra", "expected")
    mine, theirs = (
        {n: get(run.config, "reward", f"judge_{n}") for n in names} for run in (one, other)
    )
    return [f"judge_{name}" for name in names if _unlike(mine[name], theirs[name])]


def _unlike(mine, theirs) -> bool:
    return mine is not None and theirs is not None and mine != theirs


def _differ(mine: float | None, theirs: float | None) -> bool:
    return mine is not None and theirs is not None and abs(mine - theirs) > 1e-6


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
