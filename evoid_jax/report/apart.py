"""Say which numbers of runs do not compare, and why: other scorers, priors, models or data.

What is not recorded is taken as equal: an older run says little of how it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evoid_jax.metrics import get
from evoid_jax.report import origin, settings_table
from evoid_jax.report.folder import RewardRow, RunFolder
from evoid_jax.reward_groups import EVOSCORE, JUDGE

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

    A reward that weighs in neither run's proof is in neither total, whatever gives it.
    """
    mine, theirs = ({row.name: row for row in run.rewards} for run in (one, other))
    counts = [name for name in (*mine, *theirs) if _weighs(mine.get(name), theirs.get(name))]
    both = [name for name in mine if name in theirs and name in counts]
    models = [name for name in both if _unlike(_models(mine[name]), _models(theirs[name]))]
    priors = [name for name in both if _differ(mine[name].prior, theirs[name].prior)]
    alone = sorted((mine.keys() ^ theirs.keys()) & {*counts})
    scorers = [f"other models gave {_list(models)}"] if models else []
    judge = _judge(one, other)
    total = [f"one has no {_list(alone)}"] if alone else []
    total += [f"other priors of {_list(priors)}"] if priors else []
    total += scorers
    total += judge if not counts or {JUDGE, EVOSCORE} & {*counts} else []
    return Apart(total=total, judge=judge, monitors=_monitors(one, other, scorers))


def caution(one: RunFolder, other: RunFolder, names: Sequence[str]) -> str:
    """Say which numbers of two runs do not compare; "" where all do. names: of the runs."""
    apart = why(one, other)
    if not any(apart):
        return ""
    words = {"total": "totals", "judge": "judge's grades", "monitors": "monitors"}
    what = " and ".join(words[part] for part, reasons in apart._asdict().items() if reasons)
    reasons = dict.fromkeys(reason for part in apart for reason in part)
    return f"The {what} of {names[0]} and {names[1]} do not compare: {'; '.join(reasons)}."


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


def _weighs(*rows: RewardRow | None) -> bool:
    """Tell whether a reward counts in the total of a run that has it; not recorded, it may."""
    return any(row is not None and (row.prior is None or row.prior > 0) for row in rows)


def _monitors(one: RunFolder, other: RunFolder, scorers: list[str]) -> list[str]:
    """Return why the monitors of two runs do not compare.

    scorers: stands in where a run, of an older version, does not say which services measured its
    monitors: they may be those whose rewards came from other models.
    """
    mine, theirs = (get(run.summary or {}, "monitored_by") for run in (one, other))
    if mine is None or theirs is None:
        return scorers
    names = [name for name in mine if _unlike(mine[name], theirs.get(name))]
    return [f"other services measured {_list(names)}"] if names else []


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
