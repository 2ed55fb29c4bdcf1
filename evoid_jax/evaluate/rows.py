"""One system's row: a folder with its numbers, in the benchmark's files and in one of our own.

    NAME/system.json     what the videos are, and how they were made
    NAME/videos/         KEY.mp4, where they were made here
    NAME/scores.jsonl    every number as it came (journal.py)
    NAME/sources.json    who was asked for them (kept.py)
    NAME/metrics/        the benchmark's files, and nothing else: its merge reads every file there
    NAME/evoscore.json   EvoScore of every video, with its aspects
    NAME/total.json      the total, what is missing, and why it may not be compared
    NAME/.lock           held by the command that fills the row

Numbers of another preset than `paper` are in metrics_not_comparable/ instead of metrics/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evoid_jax import files
from evoid_jax.evaluate import cases, scorers, upstream
from evoid_jax.evaluate.cases import Case
from evoid_jax.evaluate.journal import Entry
from evoid_jax.evaluate.scorers import Source
from evoid_jax.evaluate.scoring import Found
from evoid_jax.evaluate.upstream import Fault
from evoid_jax.metrics import plain, write_text

SYSTEM, TOTAL, VIDEOS = "system.json", "total.json", "videos"
EVOSCORE_FILE = "evoscore.json"
# Of each key a digest of prompt and photo: in system.json those that its video was made of, in
# total.json those that it was measured by, null where the photo could not be read.
OF = "made_of"
METRICS, APART = "metrics", "metrics_not_comparable"
OTHERS = "the metric files of another program: what measured them is not known here"
# The reward that gives each metric of the benchmark; of naturalness there may be several grades.
REWARDS = {
    "aes_score": "aesthetic",
    "motion_smoothness": "qalign",
    "motion_amplitude": "flow",
    "facesim_cur": "curricularface",
    "gme_score": "gme",
}


def begin(folder: Path, system: Mapping[str, Any]) -> None:
    """Write down what a row is; refuse to go on with one that is something else.

    Raises:
      ValueError: the row was begun with other videos; says what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, now = folder / SYSTEM, plain(system)
    was = files.read_json(file) if file.exists() else now
    differ = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    each = [
        f"{key} was {was.get(key)!r}, now {now.get(key)!r}"
        for key in differ
        if key not in ("added", OF)
    ]
    # The list may have grown; what it has asked for before it must ask for still.
    old, new = was.get(OF) or {}, now.get(OF) or {}
    each += [
        f"another prompt or photo of {key}" for key in new if old.get(key, new[key]) != new[key]
    ]
    if each:
        raise ValueError(
            f"{folder} was begun with other videos ({', '.join(each):.300}); give another --name "
            "or --out"
        )
    # With microseconds: of rows that one command begins the first stays the first.
    added = was.get("added") or datetime.now(UTC).isoformat(timespec="microseconds")
    merged = now | ({OF: old | new} if OF in now else {})
    write_text(file, _json(merged | {"added": added}))


def begun(folder: Path) -> dict[str, Any]:
    """Return how a row's videos were made, as `begin` wrote it; {} where there is no row."""
    file = folder / SYSTEM
    return files.read_json(file) if file.exists() else {}


def write(
    folder: Path,
    listed: list[Case],
    found: Found,
    today: Mapping[str, Source],
    kept: Mapping[str, Source],
) -> dict:
    """Write a scored system's files. Returns what total.json holds.

    Args:
      folder: of the row.
      listed: the cases.
      found: what is known of each.
      today: who measured now, by measure.
      kept: who measured the others in an earlier command.
    """
    both = {**kept, **today}
    sources = {name: both[name] for name in scorers.MEASURES if name in both}
    why = scorers.not_comparable(sources)
    paper = not any(source.preset not in (scorers.PAPER, "") for source in sources.values())
    entries = metric_entries(found, sources)
    used, other = (METRICS, APART) if paper else (APART, METRICS)
    upstream.write(folder / used, entries)
    if (folder / other).is_dir():  # of an earlier command, by other models
        upstream.write(folder / other, {})
    evoscores = _evoscores(found)
    if evoscores:
        write_text(folder / EVOSCORE_FILE, _json(evoscores))
    else:
        (folder / EVOSCORE_FILE).unlink(missing_ok=True)
    read = upstream.read(folder / used) if entries else upstream.nothing()
    faults = [fault for case in listed for fault in _faults(case, found[case.key], read.values)]
    digests = {metric: _by(metric, sources) for metric in (*REWARDS, upstream.NATURAL.name)}
    told = {name: source._asdict() for name, source in sources.items()}
    more = {"metrics": used, "sources": told, "kept": list(kept), "measured_by": digests}
    more |= {"evoscore": _mean(evoscores), OF: {case.key: _made_of(case) for case in listed}}
    return _finish(
        folder,
        listed,
        read._replace(faults=faults),
        why,
        more,
    )


def write_merged(folder: Path, listed: list[Case], source: Path) -> dict:
    """Write the row of metric files that another program wrote. Returns what total.json holds."""
    read = upstream.read(source)
    upstream.write(folder / METRICS, read.usable)
    keys = {case.key for case in listed}
    strange = sorted({key for of_metric in read.values.values() for key in of_metric} - keys)
    values = {
        metric: {key: value for key, value in of_metric.items() if key in keys}
        for metric, of_metric in read.values.items()
    }
    told = {(fault.key, fault.metric) for fault in read.faults}
    faults, doubts = (
        [fault for fault in told if fault.key in keys] for told in (read.faults, read.doubts)
    )
    faults += [
        Fault(case.key, metric.name, "its file has no such video")
        for case in listed
        for metric in upstream.METRICS
        if case.key not in values.get(metric.name, {}) and (case.key, metric.name) not in told
    ]
    read = read._replace(values=values, faults=faults, doubts=doubts)
    digests = dict.fromkeys((*REWARDS, upstream.NATURAL.name), OTHERS)
    more = {"metrics": METRICS, "sources": {}, "measured_by": digests, "evoscore": None}
    more |= {"files_left_alone": read.others, "videos_left_out": strange}
    return _finish(folder, listed, read, [OTHERS], more)


def metric_entries(found: Found, sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """Return what the benchmark's files hold, by their names without .json.

    The numbers are the measures' own where they are the benchmark's models; a stand-in's score in
    [0, 1] is put on the benchmark's scale. Motion is measured as the benchmark does in any case.
    """
    made: dict[str, dict[str, Any]] = {}
    for key, entries in found.items():
        for metric in upstream.METRICS[:-1]:
            value = _value(entries, REWARDS[metric.name], metric, sources)
            if value is not None:
                made.setdefault(metric.file, {})[key] = {metric.entry: value}
        arc = _value(entries, "arcface", upstream.METRICS[3], sources)
        if arc is not None:
            made.setdefault("facesim", {}).setdefault(key, {})["arc_score"] = arc
        for number in range(1, upstream.ASKS + 1):
            # A sidecar's one grade stands in all three files: asked again it says the same.
            asked = f"{scorers.NATURALNESS}_{number}"
            name = asked if asked in entries else scorers.NATURALNESS
            grade = _value(entries, name, upstream.NATURAL, sources)
            if grade is not None:  # as text, as the benchmark has it
                made.setdefault(f"naturalscore_{number}", {})[key] = f"{grade:g}"
    return made


def _value(
    entries: Mapping[str, Entry], name: str, metric: upstream.Metric, sources: Mapping[str, Source]
) -> float | None:
    """Return a measure on the benchmark's scale; None where it is missing."""
    entry = entries.get(name)
    if entry is None or entry.raw is None:
        return None
    source = sources.get(name) or sources[scorers.NATURALNESS]
    if source.preset in (scorers.PAPER, "") or name == "flow":
        return entry.raw
    return metric.low + entry.score * (metric.high - metric.low)


def _faults(case: Case, entries: Mapping[str, Entry], values: upstream.Values) -> list[Fault]:
    """Return what a video lacks of each metric, or of its grades, and why."""
    faults = []
    for metric in upstream.METRICS:
        name = REWARDS.get(metric.name, scorers.NATURALNESS)
        own = [entry for measure, entry in entries.items() if measure.startswith(name)]
        reasons = list(dict.fromkeys(entry.reason for entry in own if entry.raw is None))
        if not own:
            reasons = ["nobody measures it"]
        elif case.key not in values.get(metric.name, {}) and not reasons:
            reasons = ["no number"]
        faults += [Fault(case.key, metric.name, str(reason)) for reason in reasons]
    evoscore = entries.get(scorers.EVOSCORE)
    if evoscore is not None and evoscore.raw is None:
        faults.append(Fault(case.key, scorers.EVOSCORE, str(evoscore.reason)))
    return faults


def _made_of(case: Case) -> str | None:
    """Return a digest of a case's prompt and photo; None where that cannot be read."""
    try:
        return cases.made_of(case)
    except OSError:
        return None


def _by(metric: str, sources: Mapping[str, Source]) -> str | None:
    """Return the digest of what measures a metric; None where nobody does."""
    source = sources.get(REWARDS.get(metric, scorers.NATURALNESS))
    return None if source is None else source.digest


def _evoscores(found: Found) -> dict[str, dict[str, float]]:
    """Return EvoScore and its aspects by key, of the videos that have it."""
    own = {key: entries.get(scorers.EVOSCORE) for key, entries in found.items()}
    return {
        key: {scorers.EVOSCORE: entry.raw} | (entry.more or {})
        for key, entry in own.items()
        if entry is not None and entry.raw is not None
    }


def _mean(evoscores: Mapping[str, Mapping[str, float]]) -> dict[str, float] | None:
    """Return the means over the videos that were graded, and how many they are."""
    if not evoscores:
        return None
    rows = list(evoscores.values())
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means | {"videos": len(rows)}


def _finish(
    folder: Path, listed: list[Case], read: upstream.Read, why: list[str], more: dict
) -> dict:
    """Write total.json and return what it holds."""
    merged = upstream.merge(read.values)
    why = [*why, *_unlike_the_benchmark(listed, merged, read.grades)]
    made = {"benchmark": upstream.BENCHMARK, "name": folder.name}
    made |= {"comparable_with_the_leaderboard": not why, "not_comparable_because": why}
    made |= {"total_score": merged.total} | merged.scores
    made |= {"videos": len(listed), "videos_with_metric": merged.counts}
    made |= {"missing": [fault._asdict() for fault in read.faults]}
    made |= {"doubtful": [fault._asdict() for fault in read.doubts]}
    made |= more | {"people": {case.key: case.image for case in listed}}
    made["asked"] = {case.key: cases.asked([case]) for case in listed}
    write_text(folder / TOTAL, _json(plain(made)))
    return made


def _unlike_the_benchmark(
    listed: list[Case], merged: upstream.Merged, grades: Mapping[str, int]
) -> list[str]:
    """Say what of the videos, whoever measured them, keeps them from the leaderboard.

    grades: how many of naturalness each video has that has any.
    """
    why = []
    if cases.asked(listed) != cases.WHOLE:
        why.append("the list: not the benchmark's own 60 keys, prompts and names of photos")
    fewest = min(merged.counts.values())
    if fewest < len(listed):
        why.append(f"missing: {len(listed) - fewest} of {len(listed)} videos lack a metric")
    if few := sum(0 < grades.get(case.key, 0) < upstream.ASKS for case in listed):
        why.append(
            f"naturalness: {few} of {len(listed)} videos have fewer than {upstream.ASKS} grades"
        )
    return why


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
