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

from evoid_jax import report_charts as charts
from evoid_jax import report_curves as curves
from evoid_jax import report_text as fmt
from evoid_jax.metrics import get

LINKS = ("videos", "numbers", "rewards", "weights", "training", "config")


def page(run) -> str:
    """Return the whole page for a `report.Run`."""
    template = resources.files("evoid_jax").joinpath("assets/report.html").read_text("utf-8")
    script = template[template.index("<script>") + 8 : template.index("</script>")]
    sections = (
        videos(run),
        numbers(run.summary),
        curves.rewards(run.steps),
        curves.weights(run.steps),
        curves.health(run.steps),
        curves.every_step(run.steps),
        config(run.config),
    )
    body = "\n".join(sections)
    fill = {
        "TITLE": fmt.escape(f"{run.name} · EvoID report"),
        "SCRIPT_DIGEST": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "BODY": f"{_links(body)}{header(run)}{body}",
    }
    return re.sub(r"@@([A-Z_]+)@@", lambda match: fill[match[1]], template)


def _links(body):
    there = [name for name in LINKS if f" id='{name}'" in body]
    links = "".join(f"<a href='#{name}'>{name}</a>" for name in there)
    return f"<nav aria-label='sections'>{links}</nav>"


def header(run) -> str:
    """Return the head of the page: run, digest, the headline with its interval, tiles."""
    digest = f"config <code>{run.digest}</code>" if run.digest else "no config.json"
    steps = (run.summary or {}).get("steps") or len(run.steps)
    facts = [digest, f"{fmt.escape(steps)} steps", fmt.duration(_seconds(run))]
    head = f"<h1>{fmt.escape(run.name)}</h1><p class='facts'>{' · '.join(facts)}</p>"
    if run.summary is None:
        planned = (run.config or {}).get("steps")
        done = f"{len(run.steps)} of {fmt.escape(planned)}" if planned else str(len(run.steps))
        return (
            f"<header>{head}<div class='unfinished' role='status'><strong>This run has not "
            f"finished.</strong> {done} steps are logged and there is no summary.json, so there "
            "are no held-out numbers yet. Write the report again later.</div></header>"
        )
    return f"<header>{head}{_headline(run.summary)}</header>"


def _headline(summary):
    delta, (low, high) = summary.get("delta_total"), summary.get("delta_total_ci95") or (None, None)
    kind, verdict = _verdict(low, high)
    span = max([abs(x) for x in (delta, low, high) if x is not None], default=0.0) * 1.25 or 1.0
    interval = fmt.interval(low, high)
    label = f"total changed by {fmt.signed(delta)}, 95 % interval {interval}"
    return (
        f"<div class='headline'><div class='big {kind}'><span>{fmt.signed(delta)}</span>"
        f"<small>held-out total, 95 % interval {interval}</small>"
        f"{charts.interval(label, delta, low, high, span)}"
        "<div class='scale' aria-hidden='true'><b>worse</b><b>0</b><b>better</b></div>"
        f"<p>{verdict}{_warning(summary)}</p></div><dl class='tiles'>{_tiles(summary)}</dl></div>"
    )


def _tiles(summary):
    totals = [fmt.score(get(summary, f"{arm}/total")) for arm in ("base", "evolved")]
    tiles = [("Total score", " → ".join(totals), "base → evolved, mean weighted by prior")]
    if summary.get("pairs") is not None:
        lost = summary.get("pairs_dropped") or 0
        dropped = f", {lost} more without scores" if lost else ""
        faces = f"{_where(summary)}: {summary.get('identities')}{dropped}"
        tiles.append(("Held-out evidence", f"{summary['pairs']} pairs", faces))
    for name in get(summary, "monitor/base") or {}:
        _, _, _, delta, low, high, _ = _row_values(summary, "monitor", name)
        known = f"never rewarded, {fmt.interval(low, high)}"
        tiles.append((f"Monitor: {name}", fmt.signed(delta), known))
    return "".join(
        f"<div><dt>{fmt.escape(name)}</dt><dd>{fmt.escape(value)}<small>{fmt.escape(about)}</small></dd></div>"
        for name, value, about in tiles
    )


def _where(summary):
    """Say what the proof was held on; with a user's own few pairs it may be new seeds only."""
    return summary.get("heldout") or "held-out identities"


def _verdict(low, high):
    if low is None or high is None:
        return "flat", "There is no interval for this run."
    if low > 0:
        return "up", "The evolved adapter is better: the interval lies above zero."
    if high < 0:
        return "down", "The evolved adapter is worse: the interval lies below zero."
    return "flat", "No clear difference: the interval holds zero."


def _warning(summary):
    """Name the monitors that clearly fell: a reward that rises while they fall was hacked."""
    rows = [_row_values(summary, "monitor", name) for name in get(summary, "monitor/base") or {}]
    fallen = [row[0] for row in rows if row[5] is not None and row[5] < 0]
    if not fallen:
        return ""
    return f" <mark>Measured but never rewarded, and lower: {fmt.escape(', '.join(fallen))}.</mark>"


def videos(run) -> str:
    """Return base and evolved videos side by side for the first held-out triples."""
    if not run.samples:
        why = "No held-out videos yet." if run.summary is None else "No held-out videos were kept."
        return fmt.section("videos", "Held-out videos", f"<p class='empty'>{why}</p>")
    shown, total = len(run.samples), run.samples_total
    note = (
        f"The first {shown} of the {total} held-out triples kept in this run. Both sides have the "
        "same face, prompt and noise; only the adapter differs."
    )
    cards = "".join(_card(sample) for sample in run.samples)
    button = "<button type='button' id='play' aria-pressed='false'>Pause all</button>"
    return fmt.section(
        "videos", "Held-out videos", f"<div class='cards'>{cards}</div>", note, button
    )


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


def numbers(summary) -> str:
    """Return the table of base, evolved and delta with interval, and the monitors."""
    if summary is None:
        why = "<p class='empty'>There are no held-out numbers before the run has finished.</p>"
        return fmt.section("numbers", "Numbers", why)
    names = [name for name in summary["base"] if name != "total"]
    rows = [_row_values(summary, "", name) for name in names]
    total = ("total", *(get(summary, f"{arm}/total") for arm in ("base", "evolved")))
    total += (summary.get("delta_total"), *(summary.get("delta_total_ci95") or (None, None)), None)
    monitors = get(summary, "monitor/base") or {}
    watched = [_row_values(summary, "monitor", name) for name in monitors]
    span = max([abs(x) for row in [*rows, total, *watched] for x in row[3:6] if x], default=1.0)
    body = "".join(_row(row, span, summary) for row in rows) + _row(total, span, summary, "total")
    if watched:
        body += (
            "<tr class='rule'><th colspan='7' scope='rowgroup'>Monitors, never rewarded</th></tr>"
        )
        body += "".join(_row(row, span, summary) for row in watched)
    columns = "<th scope='col'>reward</th>" + "".join(
        f"<th scope='col'>{name}</th>"
        for name in ("base", "evolved", "change", "95 % interval", "", "failed")
    )
    note = (
        f"Absolute scores, 0 to 1, on {fmt.escape(_where(summary))}; total is their mean, "
        "weighted by prior. Intervals: paired bootstrap over identities. "
        "Failed: missing scores, base / evolved."
    )
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return fmt.section("numbers", "Numbers", f"<div class='scroll'>{table}</div>", note)


def _row_values(summary, part, name):
    where = f"{part}/" if part else ""
    base, evolved = (get(summary, f"{where}{arm}/{name}") for arm in ("base", "evolved"))
    known = get(summary, f"{part + '_' if part else ''}delta/{name}") or {}
    low, high = known.get("ci95") or (None, None)
    missing = [get(summary, f"failures/{arm}/{name}") for arm in ("base", "evolved")]
    return name, base, evolved, known.get("mean", _minus(evolved, base)), low, high, missing


def _row(row, span, summary, kind=""):
    name, base, evolved, delta, low, high, missing = row
    missing = "" if not missing or None in missing else f"{missing[0]} / {missing[1]}"
    share = get(summary, f"prior/{name}")
    mass = sum((summary.get("prior") or {}).values())
    prior = f" <small>prior {share / mass:.0%}</small>" if share is not None and mass else ""
    label = f"{name}: change {fmt.signed(delta)}, 95 % interval {fmt.interval(low, high)}"
    rewarded = name in (summary.get("prior") or {})
    swatch = f"<i style='--c:{curves.colour(name)}'></i>" if rewarded else ""
    return (
        f"<tr class='{kind}'><th scope='row'>{swatch}{fmt.escape(name)}{prior}</th>"
        f"<td>{fmt.score(base)}</td><td>{fmt.score(evolved)}</td><td>{fmt.signed(delta)}</td>"
        f"<td>{fmt.interval(low, high)}</td>"
        f"<td>{charts.interval(label, delta, low, high, span)}</td>"
        f"<td>{fmt.escape(missing)}</td></tr>"
    )


def config(values) -> str:
    """Return the config as a folded table of dotted keys."""
    if values is None:
        return ""
    rows = "".join(
        f"<tr><th scope='row'><code>{fmt.escape(key)}</code></th>"
        f"<td><code>{fmt.escape(value)}</code></td></tr>"
        for key, value in _dotted(values)
    )
    return (
        "<details id='config'><summary>Config</summary><div class='scroll'>"
        f"<table class='config'><tbody>{rows}</tbody></table></div></details>"
    )


def _seconds(run):
    spent = (run.summary or {}).get("seconds") or {}
    if "total" in spent or spent:
        return spent.get("total", sum(value or 0.0 for value in spent.values()))
    return sum(get(record, "seconds/total") or 0.0 for record in run.steps)


def _minus(a, b):
    return None if a is None or b is None else a - b


def _dotted(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
