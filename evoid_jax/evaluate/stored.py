"""A row as it stands in its folder: total.json and the metric files, read back and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from evoid_jax import files
from evoid_jax.evaluate import rows, scorers, upstream

# What total.json must have for the table.
KINDS = {
    "metrics": str,
    "people": dict,
    "asked": dict,
    "measured_by": dict,
    "sources": dict,
    "videos": int,
}
KINDS |= {"videos_with_metric": dict, "not_comparable_because": list, "missing": list}
KINDS |= {"doubtful": list}
KINDS |= {"comparable_with_the_leaderboard": bool, "evoscore": dict | None}


class Row(NamedTuple):
    """A system's total.json, and its videos' parts in it."""

    name: str
    total: dict[str, Any]
    units: dict[str, dict[str, float]]  # column -> key -> in [0, 1] mostly
    by: dict[str, str | None]  # column -> digest of what measures it
    made_of: dict[str, str]  # key -> digest of photo and prompt, where it is known


def added(folder: Path) -> str:
    """Return when a row was begun, as text that sorts."""
    hint = f"every row has one: move {folder.name}/ out of the table's folder if it is none"
    return str(files.read_json(folder / rows.SYSTEM, hint=hint).get("added"))


def read(folder: Path) -> Row:
    """Read the row of a folder.

    Raises:
      OSError, ValueError: it is not as this program writes it; the message names its file.
    """
    total = files.read_json(folder / rows.TOTAL)
    try:
        return _row(folder, total)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{folder / rows.TOTAL} is not as this program writes it ({error!r}); run its row again"
        ) from None


def _check(total: dict) -> None:
    """Raise a TypeError or KeyError for a part of a total.json that the table cannot use."""
    for key, kind in KINDS.items():
        _need(key, isinstance(total[key], kind))
    _need("metrics", total["metrics"] in (rows.METRICS, rows.APART))
    for name in ("total_score", *(metric.name for metric in upstream.METRICS)):
        _need(name, _is_number(total[name]) or total[name] is None)
    _need("asked", total["asked"].keys() == total["people"].keys())
    for key in ("people", "asked", "not_comparable_because", "files_left_alone", "videos_left_out"):
        held = total.get(key) or ()
        texts = held.values() if isinstance(held, dict) else held
        _need(key, all(isinstance(text, str) for text in texts))
    for name in total.get("kept") or ():
        _need("kept", all(isinstance(total["sources"][name][p], str) for p in ("preset", "model")))
    known = total.get(rows.OF) or {}
    _need(rows.OF, all(isinstance(digest, str | None) for digest in known.values()))
    for part in ("missing", "doubtful"):
        for fault in total[part]:
            _need(part, all(isinstance(fault[name], str) for name in ("key", "metric", "reason")))
    digests = [total["measured_by"][metric.name] for metric in upstream.METRICS]
    _need("measured_by", all(isinstance(digest, str | None) for digest in digests))
    _need("videos_with_metric", all(map(_is_number, total["videos_with_metric"].values())))
    if graded := total["evoscore"]:
        _need("evoscore", _is_number(graded["evoscore"]) and _is_number(graded["videos"]))


def _need(part: str, sound: bool) -> None:
    if not sound:
        raise TypeError(part)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _row(folder: Path, total: dict) -> Row:
    _check(total)
    metrics = folder / total["metrics"]
    values = upstream.read(metrics).values if any(metrics.glob("*.json")) else {}
    people = total["people"]
    units = {
        metric.name: {
            key: upstream.unit(metric, value)
            for key, value in values.get(metric.name, {}).items()
            if key in people
        }
        for metric in upstream.METRICS
    }
    whole = set.intersection(*(set(units[metric.name]) for metric in upstream.METRICS))
    parts = lambda key: sum(metric.weight * units[metric.name][key] for metric in upstream.METRICS)
    units["total_score"] = {key: parts(key) for key in whole}
    graded = folder / rows.EVOSCORE_FILE
    held = files.read_json(graded) if graded.exists() else {}
    units["evoscore"] = {key: float(entry["evoscore"]) for key, entry in held.items()}
    by = dict(total["measured_by"])
    by["total_score"] = None if None in by.values() else " ".join(by[m] for m in sorted(by))
    source = total["sources"].get(scorers.EVOSCORE)
    by["evoscore"] = source["digest"] if source else None
    return Row(folder.name, total, units, by, _made_of(folder, total))


def _made_of(folder: Path, total: dict) -> dict[str, str]:
    """Return a digest of every video's photo and prompt, where it is known.

    Metric files of another program do not say it, nor did an earlier version but of what it made.
    """
    held = total.get(rows.OF) or rows.begun(folder).get(rows.OF) or {}
    return {key: held[key] for key in total["people"] if isinstance(held.get(key), str)}
