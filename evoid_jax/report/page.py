"""Build the HTML of a report from a loaded run: one function per section, text out.

Everything that comes from a file of the run (prompts, names, config values) goes through `escape`.
The page's Content-Security-Policy allows no network and no script but its own, by digest, so that
a mistake in escaping could still not run anything.
"""

import base64
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files, metrics, proof, stopping
from evoid_jax.metrics import get
from evoid_jax.report import charts, curves, folder, health, origin, watched
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder

FILE = "report.html"
LINKS = (
    "videos",
    "numbers",
    "watch",
    "scorers",
    "rewards",
    "health",
    "weights",
    "training",
    "made",
    "config",
)
TITLES = {
    "scorers": "models",
    "rewards": "curves",
    "health": "reward health",
    "made": "origin",
}  # of the links


def write(workdir: str | Path, videos: int = 12) -> Path:
    """Write `workdir/report.html` from what the run folder holds now; return its path.

    Raises:
      FileNotFoundError: there is no such folder. OSError: it cannot be written to.
      ValueError: a file is malformed; names it.
    """
    run = folder.load(workdir, videos)
    return metrics.write_text(files.user_path(workdir) / FILE, page(run))


def page(run: RunFolder) -> str:
    """Return the whole page."""
    template = resources.files("evoid_jax").joinpath("assets/report.html").read_text("utf-8")
    # The page's policy names its one script by the digest of the text between the tags.
    start = template.index("<script>") + len("<script>")
    script = template[start : template.index("</script>")]
    hues = curves.palette(reward.name for reward in run.rewards)
    sections = (
        videos(run),
        numbers(run.summary, hues),
        watched.section(run.watched, run.watch_start),
        origin.rewards(run, hues),
        curves.rewards(run.steps, hues),
        health.section(run.steps, hues),
        curves.weights(run.steps, hues),
        curves.health(run.steps),
        curves.every_step(run.steps),
        origin.made(run),
        config(run.config),
    )
    body = "\n".join(sections)
    fill = {
        "TITLE": fmt.escape(f"{run.name} · EvoID report"),
        "SCRIPT_DIGEST": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "BODY": f"{_links(body)}{header(run)}{body}",
    }
    # One pass: what is filled in is not searched again, whatever a prompt contains.
    return re.sub(r"@@([A-Z_]+)@@", lambda match: fill[match[1]], template)


def _links(body):
    there = [name for name in LINKS if f" id='{name}'" in body]
    links = "".join(f"<a href='#{name}'>{TITLES.get(name, name)}</a>" for name in there)
    return f"<nav aria-label='sections'>{links}</nav>"


def header(run: RunFolder) -> str:
    """Return the head of the page: run, digest, what to know, headline with interval, tiles."""
    steps = (run.summary or {}).get("steps") or len(run.steps)
    facts = [_digest(run), f"{fmt.escape(steps)} steps", fmt.duration(_seconds(run))]
    head = f"<h1>{fmt.escape(run.name)}</h1><p class='facts'>{' · '.join(facts)}</p>"
    words = " ".join(origin.notes(run))
    head += f"<p class='know' role='note'>{fmt.escape(words)}</p>" if words else ""
    if run.summary is None:
        planned = (run.config or {}).get("steps")
        done = f"{len(run.steps)} of {fmt.escape(planned)}" if planned else str(len(run.steps))
        return (
            f"<header>{head}<div class='unfinished' role='status'><strong>This run has not "
            f"finished.</strong> {done} steps are logged and there is no summary.json, so base and "
            "evolved have not been compared yet. Write the report again later.</div></header>"
        )
    return f"<header>{head}{_headline(run.summary)}</header>"


def _digest(run):
    if run.config is None:
        return "no config.json"
    return f"config <code>{fmt.escape(run.digest or 'without digest')}</code>"


def _headline(summary):
    delta = summary.get("delta_total")
    low, high = summary.get("delta_total_ci95") or (None, None)
    kind, verdict = proof.verdict(summary)
    widest = max((abs(x) for x in (delta, low, high) if x is not None), default=0.0)
    span = widest * 1.25 or 1.0  # of the picture on each side of zero
    interval = fmt.interval(low, high)
    label = f"total changed by {fmt.signed(delta)}, 95 % interval {interval}"
    measured = fmt.escape(proof.measured_on(summary))
    return (
        f"<div class='headline'><div class='big {kind}'><span>{fmt.signed(delta)}</span>"
        f"<small>change of the total on {measured}, 95 % interval {interval}</small>"
        f"{charts.interval(label, delta, low, high, span, kind)}"
        "<div class='scale' aria-hidden='true'><b>worse</b><b>0</b><b>better</b></div>"
        f"<p>{fmt.escape(verdict)}{_warning(summary)}</p></div>"
        f"<dl class='tiles'>{_tiles(summary)}</dl></div>"
    )


def _tiles(summary):
    totals = [fmt.score(get(summary, arm, "total")) for arm in ("base", "evolved")]
    tiles = [("Total score", " → ".join(totals), "base → evolved, mean weighted by prior")]
    if summary.get("pairs") is not None:
        lost = summary.get("pairs_dropped") or 0
        dropped = f", {lost} more without scores" if lost else ""
        tiles.append(("Evidence", f"{summary['pairs']} pairs", origin.evidence(summary) + dropped))
    for name in get(summary, "monitor", "base") or {}:
        row = _row_of(summary, name, "monitor_delta")
        known = f"never rewarded, {fmt.interval(row.low, row.high)}"
        tiles.append((f"Monitor: {name}", fmt.signed(row.delta), known))
    return "".join(
        f"<div><dt>{fmt.escape(name)}</dt><dd>{fmt.escape(value)}"
        f"<small>{fmt.escape(caption)}</small></dd></div>"
        for name, value, caption in tiles
    )


def _warning(summary):
    """Name the monitors that clearly fell: a reward that rises while they fall was hacked."""
    if said := stopping.warning(summary):
        return f" <mark>{fmt.escape(said[0].upper() + said[1:])}.</mark>"
    names = ", ".join(proof.fallen(summary))
    if not names:
        return ""
    return f" <mark>Measured but never rewarded, and lower: {fmt.escape(names)}.</mark>"


def videos(run: RunFolder) -> str:
    """Return base and evolved videos side by side for the first triples that were kept."""
    title = "Base and evolved"
    if not run.samples:
        why = "No videos yet." if run.summary is None else "No videos were kept."
        if run.samples_total:
            why = f"{run.samples_total} are kept, none is shown (--videos)."
        return fmt.section("videos", title, f"<p class='empty'>{why}</p>")
    shown, total = len(run.samples), run.samples_total
    on = f" ({fmt.escape(proof.measured_on(run.summary))})" if run.summary else ""
    note = (
        f"The first {shown} of the {total} pairs that this run kept{on}. Both sides have the "
        "same face, prompt and noise; only the adapter differs. They are chosen by their place in "
        "the list alone (see how this run was made)."
    )
    cards = "".join(_card(sample) for sample in run.samples)
    button = "<button type='button' id='play' aria-pressed='false'>Pause all</button>"
    return fmt.section("videos", title, f"<div class='cards'>{cards}</div>", note, button)


def _card(sample):
    entry = sample.entry
    prompt = fmt.escape(entry.get("prompt", ""))
    facts = ", ".join(
        f"{key} {fmt.escape(entry[key])}" for key in ("identity", "seed") if key in entry
    )
    return (
        f"<article class='card'><div class='media'>{_reference(sample.reference, prompt)}"
        f"{_video(sample.base, 'base', prompt)}{_video(sample.evolved, 'evolved', prompt)}</div>"
        f"<p class='prompt'>{prompt}</p><p class='facts'>{facts}</p></article>"
    )


def _reference(data, prompt):
    if data is None:
        return "<figure><div class='hole'>no image</div><figcaption>reference</figcaption></figure>"
    return (
        f"<figure><img src='data:image/png;base64,{base64.b64encode(data).decode()}' "
        f"alt='reference face for: {prompt}'><figcaption>reference</figcaption></figure>"
    )


def _video(data, arm, prompt):
    caption = f"<figcaption class='{arm}'>{arm}</figcaption>"
    if data is None:
        return f"<figure><div class='hole'>no video</div>{caption}</figure>"
    return (
        f"<figure><video autoplay loop muted playsinline controls "
        f"aria-label='{arm} video for: {prompt}' "
        f"src='data:video/mp4;base64,{base64.b64encode(data).decode()}'></video>{caption}</figure>"
    )


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


def numbers(summary, hues) -> str:
    """Return the table of base, evolved and change with interval, and the monitors.

    hues: name of a reward -> CSS colour.
    """
    if summary is None:
        why = "<p class='empty'>There are no numbers before the run has finished.</p>"
        return fmt.section("numbers", "Numbers", why)
    rows = [_row_of(summary, name, "delta") for name in summary["base"] if name != "total"]
    total = _total(summary)
    watched = [
        _row_of(summary, name, "monitor_delta") for name in get(summary, "monitor", "base") or {}
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


HEADS = ("base", "evolved", "change", "95 % interval", "", "failed")


def _row_of(summary, name, part) -> NumbersRow:
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


def config(values) -> str:
    """Return the config as a folded table of dotted keys."""
    if values is None:
        return ""
    rows = "".join(
        f"<tr><th scope='row'><code>{fmt.escape(key)}</code></th>"
        f"<td><code>{fmt.escape(value)}</code></td></tr>"
        for key, value in _dotted(metrics.without_secrets(values))
    )
    return (
        "<details id='config'><summary>Config</summary><div class='scroll'>"
        f"<table class='config'><tbody>{rows}</tbody></table></div></details>"
    )


def _seconds(run):
    spent = (run.summary or {}).get("seconds") or {}
    if spent:
        return spent.get("total") or sum(value or 0.0 for value in spent.values())
    return sum(get(record, "seconds", "total") or 0.0 for record in run.steps)


def _dotted(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
