"""Build the curves of several runs, each quantity in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evoid_jax.metrics import get, weighted
from evoid_jax.report import charts
from evoid_jax.report import text as fmt
from evoid_jax.report.charts import Series
from evoid_jax.report.folder import RunFolder

Values = dict[int, float | None]  # by step


def section(runs: Sequence[RunFolder], names: Sequence[str], hues: dict[str, str]) -> str:
    """Return the section; hues: name of a run -> CSS colour."""
    draw = lambda title, caption, columns: _panel(title, caption, columns, names, hues)
    overall = [_smoothed(_overall(run.steps, _shared_weights(runs))) for run in runs]
    body = draw("Mean score of the rollouts", "One set of weights for all runs.", overall)
    watched = [_watch(run, lambda s: s.get("delta_total")) for run in runs]
    body += draw("Change of the total, by the watch", "Validation people.", watched)
    for name in _names(runs, lambda run: run.watched, "monitor_delta"):
        column = [_watch(run, lambda s, n=name: get(s, "monitor_delta", n, "mean")) for run in runs]
        body += draw(f"Change of {name}, by the watch", "Measured, never rewarded.", column)
    for keys in (("drift", "evo_init"), ("drift", "evo_stb"), ("loss", "total"), ("grad_norm",)):
        column = [_smoothed(_column(run.steps, *keys)) for run in runs]
        body += draw(" ".join(keys).replace("_", " "), "", column)
    small = ""
    for name in _names(runs, lambda run: [get(s, "reward") or {} for s in run.steps], "score"):
        column = [_smoothed(_column(run.steps, "reward", "score", name)) for run in runs]
        small += _panel(name, "", column, names, hues, small=True)
    if not body and not small:
        return fmt.section("rewards", "Curves", "<p class='empty'>No step is logged yet.</p>")
    note = (
        "Of training: means over each step's videos, smoothed. Of the watch: as measured. A dash "
        "under the pointer: the run has no such step. Runs draw the same faces at the same step "
        "only where they share config.seed and config.data."
    )
    whole = f"<div class='pair'>{body}</div><div class='small'>{small}</div>"
    return fmt.section("rewards", "Curves", whole, note)


def _panel(title, caption, columns: list[Values], names, hues, small=False) -> str:
    """Draw one quantity of all runs; nothing where no run has it."""
    steps = sorted({step for column in columns for step in column})
    if not any(value is not None for column in columns for value in column.values()):
        return ""
    series = [
        _series(name, hues[name], steps, column)
        for name, column in zip(names, columns, strict=True)
    ]
    size = {"width": 300, "height": 150} if small else {}
    chart = charts.lines(title, steps, series, **size)
    keys = "".join(f"<li><i style='--c:{hues[n]}'></i>{fmt.escape(n)}</li>" for n in names)
    legend = "" if small else f"<ul class='legend' aria-hidden='true'>{keys}</ul>"
    words = f"<p>{fmt.escape(caption)}</p>" if caption else ""
    return f"<div class='panel'><h3>{fmt.escape(title)}</h3>{words}{chart}{legend}</div>"


def _series(name: str, colour: str, steps: list[int], column: Values) -> Series:
    """Return a run's curve over the steps of all runs."""
    foreign = frozenset(i for i, step in enumerate(steps) if step not in column)
    return Series(name, colour, [column.get(step) for step in steps], foreign)


def _smoothed(column: Values) -> Values:
    """Return running means over the run's own steps, so that another run's leave no gaps."""
    own = sorted(column)
    means = charts.running_mean([column[step] for step in own], _window(own))
    return dict(zip(own, means, strict=True))


def _overall(steps: list[dict], weights: dict[str, float]) -> Values:
    scores = {record["step"]: get(record, "reward", "score") or {} for record in steps}
    return {step: weighted(score, weights) for step, score in scores.items()}


def _shared_weights(runs: Sequence[RunFolder]) -> dict[str, float]:
    """Return the first run's priors: with each run's own weights the curves would not compare."""
    return {row.name: row.prior or 0.0 for run in runs[:1] for row in run.rewards}


def _column(steps: list[dict], *keys: str) -> Values:
    return {record["step"]: get(record, *keys) for record in steps}


def _watch(run: RunFolder, value: Callable[[dict], float | None]) -> Values:
    return {s["steps"]: value(s) for s in run.watched if isinstance(s.get("steps"), int)}


def _names(runs, records: Callable, key: str) -> list[str]:
    return list(dict.fromkeys(n for run in runs for r in records(run) for n in get(r, key) or {}))


def _window(steps: list[int]) -> int:
    return max(3, len(steps) // 6 | 1) if len(steps) >= 8 else 1
