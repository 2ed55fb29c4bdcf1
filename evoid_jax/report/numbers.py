"""Build the table of a run's numbers: base, evolved, change with its interval, and the monitors."""

from __future__ import annotations

from typing import NamedTuple

from evoid_jax import proof
from evoid_jax.metrics import get
from evoid_jax.report import charts
from evoid_jax.report import text as fmt

HEADS = ("base", "evolved", "change", "95 % interval", "", "failed")


class NumbersRow(NamedTuple):
    """One line of the table of numbers."""

    name: str
    base: float | None
    evolved: float | None
    delta: float | None
    low: float | None
    high: float | None
    kind: str  # see proof.direction
    failed: str  # missing scores, base / evolved


def section(summary, hues) -> str:
    """Return the table of base, evolved and change with interval, and the monitors.

    hues: name of a reward -> CSS colour.
    """
    if summary is None:
        why = "<p class='empty'>There are no numbers before the run has finished.</p>"
        return fmt.section("numbers", "Numbers", why)
    rows = [row_of(summary, name, "delta") for name in summary["base"] if name != "total"]
    total = _total(summary)
    watched = [
        row_of(summary, name, "monitor_delta") for name in get(summary, "monitor", "base") or {}
    ]
    # One span for all rows, so that their pictures compare.
    ends = [x for row in (*rows, total, *watched) for x in (row.delta, row.low, row.high) if x]
    span = max(map(abs, ends), default=1.0)
    body = "".join(_row(row, span, summary, hues) for row in rows)
    body += _row(total, span, summary, hues, "total")
    if watched:
        head = "<th colspan='7' scope='rowgroup'>Monitors, never rewarded</th>"
        body += f"<tr class='rule'>{head}</tr>"
        body += "".join(_row(row, span, summary, hues) for row in watched)
    columns = "".join(f"<th scope='col'>{name}</th>" for name in ("reward", *HEADS))
    note = (
        f"Absolute scores, 0 to 1, on {fmt.escape(proof.measured_on(summary))}; total is their "
        "mean, weighted by prior. Intervals: paired bootstrap over identities, coloured from "
        f"{proof.ENOUGH} identities on. Failed: missing scores, base / evolved."
    )
    body = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return fmt.section("numbers", "Numbers", fmt.rows(body), note)


def row_of(summary, name, part) -> NumbersRow:
    """Return a reward's row (part "delta") or a monitor's (part "monitor_delta")."""
    arms = summary if part == "delta" else summary.get("monitor") or {}
    base, evolved = (get(arms, arm, name) for arm in ("base", "evolved"))
    known = get(summary, part, name) or {}
    low, high = known.get("ci95") or (None, None)
    missing = [get(summary, "failures", arm, name) for arm in ("base", "evolved")]
    failed = "" if None in missing else f"{missing[0]} / {missing[1]}"
    delta = known.get("mean", None if None in (base, evolved) else evolved - base)
    return NumbersRow(
        name=name,
        base=base,
        evolved=evolved,
        delta=delta,
        low=low,
        high=high,
        kind=proof.direction_of(summary, part, name),
        failed=failed,
    )


def _total(summary) -> NumbersRow:
    base, evolved = (get(summary, arm, "total") for arm in ("base", "evolved"))
    low, high = summary.get("delta_total_ci95") or (None, None)
    kind, _ = proof.verdict(summary)
    return NumbersRow(
        name="total",
        base=base,
        evolved=evolved,
        delta=summary.get("delta_total"),
        low=low,
        high=high,
        kind=kind,
        failed="",
    )


def _row(row: NumbersRow, span, summary, hues, style="") -> str:
    priors = summary.get("prior") or {}
    share, mass = priors.get(row.name), sum(value or 0.0 for value in priors.values())
    prior = f" <small>prior {share / mass:.0%}</small>" if share is not None and mass else ""
    interval = fmt.interval(row.low, row.high)
    label = f"{row.name}: change {fmt.signed(row.delta)}, 95 % interval {interval}"
    picture = charts.interval(label, row.delta, row.low, row.high, span, row.kind)
    swatch = f"<i style='--c:{hues[row.name]}'></i>" if row.name in priors else ""
    cells = (
        fmt.score(row.base),
        fmt.score(row.evolved),
        fmt.signed(row.delta),
        interval,
        picture,
        fmt.escape(row.failed),
    )
    return (
        f"<tr class='{style}'><th scope='row'>{swatch}{fmt.escape(row.name)}{prior}</th>"
        + "".join(
            f"<td data-head='{head}'>{cell}</td>" for head, cell in zip(HEADS, cells, strict=True)
        )
        + "</tr>"
    )
