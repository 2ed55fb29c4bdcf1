"""All rows of a folder as one table: numbers, differences with their intervals, published rows.

Differences are paired: the same keys, photos and prompts, both with the metric, by models of one
source. A photo is known by its content where a row says it, else by its name. The 95 % intervals
are of a bootstrap over people (proof.py), since two videos of a face are not two independent
observations. V videos.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evoid_jax import proof
from evoid_jax.evaluate import published, rows, scorers, stored, upstream
from evoid_jax.evaluate.stored import Row
from evoid_jax.metrics import plain, write_text
from evoid_jax.rewards import absent

TEXT, DATA = "table.md", "table.json"
HEADS = {
    "total_score": "total",
    "aes_score": "aesthetics",
    "motion_smoothness": "smoothness",
    "motion_amplitude": "amplitude",
    "facesim_cur": "FaceSim",
    "gme_score": "GME",
    "natural_score": "naturalness",
    "evoscore": "EvoScore",
}
COUNTS = ("videos", "people")  # of a change
MEASURED = {reward: HEADS[metric] for metric, reward in rows.REWARDS.items()}
MEASURED |= {scorers.NATURALNESS: HEADS[upstream.NATURAL.name], scorers.EVOSCORE: "EvoScore"}


def load(out: Path, first: str | None = None) -> list[Row]:
    """Return the rows of a folder, the oldest first, or the one that is named.

    Raises:
      ValueError: there is no row of that name, or a file was changed to something else.
    """
    found = [
        (stored.added(file.parent), stored.read(file.parent))
        for file in sorted(out.glob("*/total.json"))
    ]
    listed = [row for _, row in sorted(found, key=lambda pair: (pair[0], pair[1].name))]
    if first is None:
        return listed
    check_name(out, first, [row.name for row in listed])
    return sorted(listed, key=lambda row: row.name != first)


def check_name(out: Path, first: str, names: list[str]) -> None:
    """Raise a ValueError unless `first` is one of the names, those of a folder's rows."""
    if first not in names:
        raise ValueError(f"--against={first} is no row of {out}; there are {', '.join(names)}")


def check(out: Path, anew: Iterable[str]) -> None:
    """Raise what `load` would raise; the rows named `anew` are left out, being written again.

    Raises:
      OSError, ValueError: a row is not as this program writes it; the message names its file.
    """
    for file in sorted(out.glob(f"*/{rows.TOTAL}")):
        if file.parent.name not in anew:
            stored.added(file.parent)
            stored.read(file.parent)


def names(out: Path) -> list[str]:
    """Return the names of the rows that a folder has."""
    return sorted(file.parent.name for file in out.glob(f"*/{rows.TOTAL}"))


def compare(base: Row, other: Row) -> dict[str, dict[str, Any]]:
    """Return of each column the change from base to other, in [0, 1], or why there is none.

    The total's is over the videos that have all of its metrics in both.
    """
    people = base.total["people"]
    changes = {}
    for column in HEADS:
        if base.by[column] is None or other.by[column] is None:
            changes[column] = {"reason": "not measured"}
            continue
        if base.by[column] != other.by[column]:
            changes[column] = {"reason": "by other models"}
            continue
        both = base.units[column].keys() & other.units[column].keys()
        keys = sorted(both - unlike(base, other) - strangers(base, other))
        if both and not keys:
            changes[column] = {"reason": "of other photos or prompts"}
            continue
        before_V, after_V = (
            np.array([row.units[column][key] for key in keys]) for row in (base, other)
        )
        cluster_V = np.array([people[key] for key in keys])
        delta, low, high = proof.paired_bootstrap(before_V, after_V, cluster_B=cluster_V)
        changes[column] = {"mean": delta, "ci95": [low, high], "videos": len(keys)}
        changes[column]["people"] = len(set(cluster_V.tolist()))
    return changes


def unlike(base: Row, other: Row) -> set[str]:
    """Return the keys that ask for another photo or prompt in the one than in the other."""
    mine, theirs = base.total["asked"], other.total["asked"]
    return {key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}


def strangers(base: Row, other: Row) -> set[str]:
    """Return the keys whose photo, of one name in both, is known to be another in each."""
    mine, theirs = base.made_of, other.made_of
    known = (mine.keys() & theirs.keys()) - unlike(base, other)  # of one prompt, then
    return {key for key in known if mine[key] != theirs[key]}


def unsure(base: Row, other: Row) -> set[str]:
    """Return the keys that ask for the same in both, where one does not say of which photo."""
    both = (base.total["asked"].keys() & other.total["asked"].keys()) - unlike(base, other)
    return both - (base.made_of.keys() & other.made_of.keys())


def write(out: Path, listed: list[Row]) -> str:
    """Write the table as text and as data. Returns the text."""
    changes = {row.name: compare(listed[0], row) for row in listed[1:]}
    held = {
        "benchmark": upstream.BENCHMARK,
        "rows": [row.total for row in listed],
        "base": listed[0].name,
        "changes": changes,
        "published": [one._asdict() for one in published.ROWS],
    }
    write_text(out / DATA, json.dumps(plain(held), indent=2, allow_nan=False) + "\n")
    text = "\n\n".join(part for part in _parts(listed, changes) if part) + "\n"
    write_text(out / TEXT, text)
    return text


# --- text


def _parts(listed: list[Row], changes: Mapping[str, Mapping]) -> list[str]:
    """Return the paragraphs of the table's text."""
    base = listed[0].name
    parts = [
        f"# {upstream.BENCHMARK}",
        "Hundredths, and EvoScore in [0, 1] by our own rubric, unlike any published one.",
        _grid(["system", *HEADS.values(), "videos"], [_cells(row) for row in listed]),
        "\n".join(line for row in listed for line in _warnings(row)),
    ]
    if changes:
        parts += [
            f"## Change from {base}, with 95 % intervals over people",
            _grid(
                ["system", *HEADS.values(), "videos, people"],
                [_change_cells(name, change) for name, change in changes.items()],
            ),
            "\n".join([*_few(changes), *_cautions(listed, changes)]),
        ]
    told = [_published_cells(one) for one in published.ROWS]
    heads = ["system", *HEADS.values(), "source"]
    parts += ["## Published by others, not measured here", _grid(heads, told)]
    return parts


def _grid(heads: list[str], cells: list[list[str]]) -> str:
    """Return a table in Markdown whose columns are as wide as their widest cell."""
    lines = [heads, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rule = ["-" * width for width in widths]
    padded = lambda line: [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
    return "\n".join(f"| {' | '.join(padded(line))} |" for line in (heads, rule, *cells))


def _cells(row: Row) -> list[str]:
    """Return a row's cells; * marks a mean over fewer videos than the list has."""
    total = row.total
    counts = total["videos_with_metric"]
    short = {name for name, count in counts.items() if count < total["videos"]}
    cells = [_hundredths(total["total_score"], bool(short))]
    cells += [_hundredths(total[m.name], m.name in short) for m in upstream.METRICS]
    evoscore = total["evoscore"]
    cells.append("-")
    if evoscore:
        star = "*" if evoscore["videos"] < total["videos"] else ""
        cells[-1] = f"{evoscore['evoscore']:.3f}{star}"
    dagger = "" if total["comparable_with_the_leaderboard"] else " (not comparable)"
    whole = len(row.units["total_score"])
    return [f"{row.name}{dagger}", *cells, f"{whole} of {total['videos']}"]


def _hundredths(value: float | None, short: bool) -> str:
    return "-" if value is None else f"{100 * value:.2f}{'*' if short else ''}"


def _warnings(row: Row) -> list[str]:
    """Return a line for whatever keeps a row's numbers from meaning what they seem to."""
    total = row.total
    lines = [
        f"- {row.name}: not comparable with the leaderboard: {why}"
        for why in total["not_comparable_because"]
    ]
    if kept := [_kept(name, total["sources"][name]) for name in total.get("kept") or ()]:
        lines.append(
            f"- {row.name}: kept from an earlier command, as nobody measured it in the last one: "
            f"{', '.join(kept)}"
        )
    if total["total_score"] is None:
        lacking = [HEADS[m.name] for m in upstream.METRICS if total[m.name] is None]
        lines.append(f"- {row.name}: no total, since no video has {', '.join(lacking)}")
    for (metric, reason), videos in _counted(row, total["missing"]).items():
        lines.append(f"- {row.name}: {metric} is missing in {videos}: {reason}")
    for (metric, reason), videos in _counted(row, total["doubtful"]).items():
        lines.append(f"- {row.name}: {metric} cannot be so in {videos}, and counts: {reason}")
    if left := total.get("files_left_alone"):
        lines.append(f"- {row.name}: no metric's, and not merged: {', '.join(left)}")
    if left := total.get("videos_left_out"):
        lines.append(f"- {row.name}: not in the list, and not merged: {', '.join(left)}")
    return lines


def _kept(name: str, source: Mapping[str, str]) -> str:
    """Return a measure that is kept, in words, with who measured it."""
    who = f"the set {source['preset']}" if source["preset"] else source["model"]
    return f"{MEASURED.get(name, name)} by {who}"


def _counted(row: Row, faults: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    """Return in how many videos a metric has the same fault, by metric and reason, in words."""
    counted: dict[tuple[str, str], int] = {}
    for fault in faults:
        metric = HEADS.get(fault["metric"], fault["metric"])
        # One of three grades: the others count.
        graded = fault["metric"] == upstream.NATURAL.name
        if graded and fault["key"] in row.units.get(fault["metric"], ()):
            metric = f"a grade of {metric}"
        kind = metric, absent.shortened(fault["reason"])
        counted[kind] = counted.get(kind, 0) + 1
    return {kind: f"{count} video{'s' * (count != 1)}" for kind, count in counted.items()}


def _change_cells(name: str, change: Mapping[str, Mapping]) -> list[str]:
    cells = []
    for column in HEADS:
        held = change[column]
        if "reason" in held:
            cells.append(held["reason"])
            continue
        scale, digits = (1, 3) if column == "evoscore" else (100, 2)
        mean, low, high = (scale * x for x in (held["mean"], *held["ci95"]))
        if not np.isfinite(mean):
            cells.append("-")
        elif not np.isfinite(low):
            cells.append(f"{mean:+.{digits}f}")
        else:
            cells.append(f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
    counts = [_range([held[count] for held in _compared(change)]) for count in COUNTS]
    return [name, *cells, ", ".join(counts)]


def _compared(change: Mapping[str, Mapping]) -> list[Mapping]:
    """Return the columns in which two rows have videos in common."""
    return [held for held in change.values() if held.get("videos")]


def _range(counts: list[int]) -> str:
    """Return a count, or where columns differ the least and the most."""
    ends = sorted({min(counts), max(counts)}) if counts else ["-"]
    return "-".join(map(str, ends))


def _few(changes: Mapping[str, Mapping]) -> list[str]:
    """Warn of intervals over too few people."""
    few = [
        name
        for name, change in changes.items()
        if any(held["people"] < proof.ENOUGH for held in _compared(change))
    ]
    if not few:
        return []
    return [
        f"- fewer than {proof.ENOUGH} people ({', '.join(few)}): these intervals are too narrow, "
        "and show nothing"
    ]


def _cautions(listed: list[Row], changes: Mapping[str, Mapping]) -> list[str]:
    """Say what is not known of a comparison with the first row, or was left out of it."""
    base, *others = listed
    lines = []
    for row in others:
        if keys := unlike(base, row):
            lines.append(
                f"- {row.name}: another photo or prompt than {base.name}'s in {len(keys)} videos, "
                "which are not compared"
            )
        if keys := strangers(base, row):
            lines.append(
                f"- {row.name}: photos of the same names as {base.name}'s show something else in "
                f"{len(keys)} videos, which are not compared"
            )
        if (keys := unsure(base, row)) and _compared(changes[row.name]):
            lines.append(
                f"- {row.name}: whether its photos are those of {base.name} is not known in "
                f"{len(keys)} videos; what is known of them is their names"
            )
        if rows.OTHERS in base.by.values() and rows.OTHERS in row.by.values():
            lines.append(
                f"- {row.name}: whether the models that measured it are those of {base.name} is "
                "not known here"
            )
    return lines


def _published_cells(one: published.Published) -> list[str]:
    digits = 2 if one.source == published.LEADERBOARD else 1  # as they were printed
    shown = lambda value, digits: "-" if value is None else f"{value:.{digits}f}"
    parts = [shown(one.metrics.get(metric.name), digits) for metric in upstream.METRICS]
    return [one.name, shown(one.total, digits), *parts, shown(one.evoscore, 3), one.source]
