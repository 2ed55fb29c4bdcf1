"""Build the report's section on the watch: how a run stood every some steps, and what it made."""

from evoid_jax import proof, stopping
from evoid_jax.metrics import get
from evoid_jax.report import charts, videos
from evoid_jax.report import text as fmt
from evoid_jax.report.charts import Series
from evoid_jax.report.folder import RunFolder
from evoid_jax.report.shelf import Source


def section(run: RunFolder, source: Source) -> str:
    """Return the section, or nothing where there was no comparison."""
    summaries = run.watched
    if not summaries:
        return ""
    note = (
        f"What the run started from against the adapter of the moment, on "
        f"{fmt.escape(proof.measured_on(summaries[0]))}, always the same faces, prompts and noise. "
        "These people are not those of the proof. "
        "<code>python -m evoid_jax.convert RUN OUT --which=best</code> takes the best adapter."
    )
    body = f"<div class='pair'>{_totals(summaries)}{_monitors(summaries)}</div>"
    body += _table(summaries) + videos.over_steps(run, source)
    return fmt.section("watch", "Over the steps", body, note)


def _totals(summaries) -> str:
    """Draw the change of the total with its interval."""
    ends = [summary.get("delta_total_ci95") or (None, None) for summary in summaries]
    series = [
        Series("change of the total", "var(--accent)", [s.get("delta_total") for s in summaries]),
        Series("lower end of 95 %", "var(--slate)", [low for low, _ in ends]),
        Series("upper end", "var(--slate)", [high for _, high in ends]),
    ]
    return _panel("Change of the total", "With its 95 % interval.", summaries, series)


def _monitors(summaries) -> str:
    """Draw the changes of what is measured and never rewarded."""
    names = list(dict.fromkeys(name for s in summaries for name in s.get("monitor_delta") or {}))
    if not names:
        return ""
    hues = ("var(--blue)", "var(--green)", "var(--orange)", "var(--violet)")
    changes = lambda name: [get(s, "monitor_delta", name, "mean") for s in summaries]
    series = [Series(n, hues[i % len(hues)], changes(n)) for i, n in enumerate(names)]
    return _panel("Change of the monitors", "Measured, never rewarded.", summaries, series)


def _panel(title, caption, summaries, series) -> str:
    chart = charts.lines(title, [summary["steps"] for summary in summaries], series)
    keys = "".join(
        f"<li><i style='--c:{one.colour}'></i>{fmt.escape(one.name)}</li>" for one in series
    )
    legend = f"<ul class='legend' aria-hidden='true'>{keys}</ul>"
    return f"<div class='panel'><h3>{title}</h3><p>{caption}</p>{chart}{legend}</div>"


def _table(summaries) -> str:
    """Return one line for each comparison: totals, change, interval, and what is wrong with it."""
    best = stopping.best(summaries)
    heads = ("after", "start", "then", "change", "95 % interval", "drift", "")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    rows = ""
    for summary in summaries:
        low, high = summary.get("delta_total_ci95") or (None, None)
        remark = stopping.warning(summary) or ("best" if summary is best else "")
        cells = (
            fmt.score(get(summary, "base", "total")),
            fmt.score(get(summary, "evolved", "total")),
            fmt.signed(summary.get("delta_total")),
            fmt.interval(low, high),
            fmt.number(summary.get("drift")),
            f"<mark>{fmt.escape(remark)}</mark>" if remark and remark != "best" else remark,
        )
        named = zip(heads[1:], cells, strict=True)
        body = "".join(f"<td data-head='{name}'>{cell}</td>" for name, cell in named)
        rows += f"<tr><th scope='row'>step {fmt.escape(summary['steps'])}</th>{body}</tr>"
    return fmt.rows(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
