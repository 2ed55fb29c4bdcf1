"""OpenS2V-Eval v1.1's per-metric files of the Human-Domain, and the total that they merge to.

The numbers are those of the benchmark's own eval/merge_result.py, OpenS2V-Nexus. What that does in
silence is told here: a metric that no video has counts there as an average of 0, which makes
aesthetics -1.33 and naturalness -0.25; every json file of the folder is taken for a metric, an
earlier total too; a grade "error" ends it; and what no model can have measured is clipped. Here the
first gives no total, the second is left alone, the third is missing, and the fourth is clipped too
and told.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files
from evoid_jax.metrics import write_text

BENCHMARK = "OpenS2V-Eval v1.1, Human-Domain"
ASKS = 3  # how often the benchmark asks for naturalness


class Metric(NamedTuple):
    """One metric of the total."""

    name: str  # in the total
    file: str  # without .json; of naturalness there are ASKS, numbered from 1
    entry: str  # of a video in its file; "": the video's value itself, a text
    weight: float
    low: float  # becomes 0 in the total
    high: float  # becomes 1
    least: float  # that can be measured at all
    most: float


# The weights of v1.1; those of v1.0 were others, and the benchmark's own example of a total is of
# v1.0.
METRICS = (
    Metric("aes_score", "aesthetic_score", "aes_score", 0.18, 4, 7, -math.inf, math.inf),
    Metric("motion_smoothness", "motion_smoothness", "motion_smoothness", 0.09, 0, 1, -1, 1),
    Metric("motion_amplitude", "motion_amplitude", "motion_fb", 0.03, 0, 1, -math.inf, math.inf),
    Metric("facesim_cur", "facesim", "cur_score", 0.25, 0, 1, -1, 1),
    Metric("gme_score", "gmescore", "gme_score", 0.15, 0, 1, -1, 1),
    Metric("natural_score", "naturalscore", "", 0.30, 1, 5, 1, 5),
)
ROUNDING = 1e-3  # that a cosine of float16 may be above 1
NATURAL = METRICS[-1]
BOTH_SIDES = ("aes_score", "natural_score")  # clipped below too
SIGNED = ("motion_smoothness", "motion_amplitude")  # taken without their sign

Values = Mapping[str, Mapping[str, float]]  # metric -> key of the video -> value in its own unit


class Fault(NamedTuple):
    """A value in a file that cannot be used, or a video without one."""

    key: str
    metric: str
    reason: str


class Read(NamedTuple):
    """What a folder of metric files holds."""

    values: dict[str, dict[str, float]]
    faults: list[Fault]
    doubts: list[Fault]  # values that count as the benchmark counts them, and cannot be
    grades: dict[str, int]  # how many grades of naturalness a video has
    others: list[str]  # json files that are no metric's, and are left alone
    usable: dict[str, dict[str, object]]  # the files without what cannot be used, as `write` takes


def nothing() -> Read:
    """Return what an empty folder holds."""
    return Read({}, [], [], {}, [], {})


class Merged(NamedTuple):
    """The total and its parts, each in its share of 1; None where no video has the metric."""

    total: float | None
    scores: dict[str, float | None]
    counts: dict[str, int]  # videos that have the metric


def file_names() -> list[str]:
    """Return the names of all metric files, with .json."""
    numbered = [f"{NATURAL.file}_{k}" for k in range(1, ASKS + 1)]
    return [f"{name}.json" for name in (*(m.file for m in METRICS[:-1]), *numbered)]


def unit(metric: Metric, value: float) -> float:
    """Return a video's part in the total: clipped as the benchmark does, then low..high to 0..1."""
    value = abs(value) if metric.name in SIGNED else value
    value = min(value, metric.high)
    value = max(value, metric.low) if metric.name in BOTH_SIDES else value
    return (value - metric.low) / (metric.high - metric.low)


def merge(values: Values) -> Merged:
    """Average each metric over the videos that have it, and weigh the averages.

    Returns:
      No total where a metric is wholly missing.
    """
    scores: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    for metric in METRICS:
        units = [unit(metric, value) for value in values.get(metric.name, {}).values()]
        counts[metric.name] = len(units)
        scores[metric.name] = sum(units) / len(units) if units else None
    total = None
    if all(score is not None for score in scores.values()):
        total = sum(metric.weight * scores[metric.name] for metric in METRICS)
    return Merged(total, scores, counts)


def read(folder: str | Path) -> Read:
    """Read a folder of metric files, of ours or of the benchmark's own scripts.

    Raises:
      OSError, ValueError: no such folder, none of these files in it, or one that is no object.
    """
    folder = files.user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()} of metric files")
    present = {file.name for file in folder.glob("*.json")}
    if not present & set(file_names()):
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(file_names())}, the benchmark's metric files"
        )
    found = nothing()._replace(others=sorted(present - set(file_names())))
    for metric in METRICS[:-1]:
        values = _take(found, metric, folder / f"{metric.file}.json")
        if values:
            found.values[metric.name] = values
    _take_natural(found, folder)
    return found


def write(folder: Path, entries: Mapping[str, Mapping[str, object]]) -> None:
    """Write metric files, and remove those of metrics that no video has.

    entries: by the name of the file without .json: a video's key -> what the file holds of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in file_names():
        held = entries.get(name.removesuffix(".json"))
        if held:
            write_text(folder / name, json.dumps(held, indent=4, allow_nan=False))
        else:
            (folder / name).unlink(missing_ok=True)


def _entry(held: object, name: str) -> object:
    """Return a video's entry of a file; facesim has another number beside it, which is none."""
    return held.get(name) if isinstance(held, dict) else held


def _take(found: Read, metric: Metric, file: Path) -> dict[str, float]:
    """Return what can be used of a file's entries, and tell of the rest."""
    held = files.read_json(file) if os.path.lexists(file) else {}
    values = {}
    for key, entry in held.items():
        of_video = _entry(entry, metric.entry)
        value = _number(of_video)
        told = f"{file.name} has {of_video!r:.40}"
        if value is None:
            found.faults.append(Fault(key, metric.name, told))
            continue
        if not metric.least - ROUNDING <= value <= metric.most + ROUNDING:
            outside = f"{told}, outside {metric.least:g}..{metric.most:g}"
            found.doubts.append(Fault(key, metric.name, outside))
        values[key] = value
    found.usable[file.stem] = {key: held[key] for key in values}
    return values


def _take_natural(found: Read, folder: Path) -> None:
    """Take the mean of the grades that a video has; one that is missing is told of."""
    grades: dict[str, list[float]] = {}
    names = file_names()[-ASKS:]
    given = {name: _take(found, NATURAL, folder / name) for name in names}
    for of_file in given.values():
        for key, value in of_file.items():
            grades.setdefault(key, []).append(value)
    told = {(fault.key, fault.reason.partition(" has ")[0]) for fault in found.faults}
    found.faults.extend(
        Fault(key, NATURAL.name, f"{name} has no such video")
        for name, of_file in given.items()
        for key in grades
        if key not in of_file and (key, name) not in told
    )
    found.grades.update({key: len(of_video) for key, of_video in grades.items()})
    if grades:
        means = {key: sum(of_video) / len(of_video) for key, of_video in grades.items()}
        found.values[NATURAL.name] = means


def _number(entry: object) -> float | None:
    """Return a finite number, which may come as text; None for anything else."""
    if isinstance(entry, bool) or not isinstance(entry, int | float | str):
        return None
    try:
        value = float(entry)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
