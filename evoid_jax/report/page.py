"""Build the report of one run: its sections in their order, text out."""

from collections.abc import Sequence
from pathlib import Path

from evoid_jax import files, metrics, proof, stopping
from evoid_jax.metrics import get
from evoid_jax.report import (
    charts,
    choices,
    current,
    curves,
    every,
    folder,
    health,
    numbers,
    origin,
    places,
    settings_table,
    shelf,
    shell,
    study,
    videos,
    watched,
)
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder
from evoid_jax.report.shelf import Source

FILE = "report.html"


def write(
    workdir: str | Path,
    shown: int = 12,
    media: str = "auto",
    answers: Sequence[str | Path] = (),
    out: str | Path | None = None,
) -> Path:
    """Write `report.html` from what the run folder holds now; return its path.

    Args:
      shown: triples whose videos are shown, at most.
      media: of shelf.MODES; beside the page means in the run's folder, where they are anyway, or
        copied into `out/media`.
      answers: files that the run's blind page saved, besides those in `blind` of either folder.
      out: the page's folder, made where it is absent; by default the run's. It may hold a page of
        a run from before. Nothing is written to the run's folder then.

    Raises:
      FileNotFoundError: there is no such run. OSError: the page cannot be written.
      ValueError: a file is malformed, or out holds something else; names it.
    """
    run, home = folder.load(workdir, shown), files.user_path(workdir)
    place = places.of_run(workdir, out, FILE)
    trials = study.of_run(folder.load(workdir, folder.ALL))
    counted = choices.counted(place, trials, answers, run=home)
    place.mkdir(parents=True, exist_ok=True)
    outside = shelf.beside(place) if place == home else shelf.copied(place)
    source = shelf.choose(media, videos.media(run), outside)
    written = metrics.write_text(place / FILE, page(run, source, counted))
    shelf.tidy(place, source.names)
    return written


def write_blind(workdir: str | Path, media: str = "auto", out: str | Path | None = None) -> Path:
    """Write the page on which people choose between a run's base and evolved; return its path.

    Args:
      media, out: as of `write`; the page lies in `blind` there.

    Raises: as `write`; ValueError also where the run kept no videos.
    """
    trials = study.of_run(folder.load(workdir, folder.ALL))
    return study.write(places.of_run(workdir, out, FILE), trials, media)


def page(
    run: RunFolder, source: Source = shelf.inside, counted: choices.Tally | None = None
) -> str:
    """Return the whole page.

    counted: what people chose; None where nobody was asked.
    """
    hues = curves.palette(reward.name for reward in run.rewards)
    sections = (
        videos.section(run, source),
        numbers.section(run.summary, hues),
        every.section(run),
        choices.section(counted) if counted else "",
        watched.section(run, source),
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
    whole = f"{shell.links(body)}{header(run)}<main>{body}</main>"
    return shell.page(f"{run.name} · EvoID report", whole, media=shelf.policy(source))


def header(run: RunFolder) -> str:
    """Return the head of the page: run, digest, what to know, headline with interval, tiles."""
    steps = (run.summary or {}).get("steps") or len(run.steps)
    later = current.gone_on(run)
    count = f"{fmt.escape(steps)} steps"
    count = count if later is None else f"result of {count}, {later} are made"
    facts = [_digest(run), count, fmt.duration(_seconds(run))]
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
    return f"<header>{head}{_aged(run)}{_headline(run)}</header>"


def _aged(run):
    """Say that the result is not of the run as it is now."""
    first, *others = current.notice(run) or [""]
    if not first:
        return ""
    return (
        f"<div class='unfinished' role='status'><strong>{fmt.escape(first)}</strong> "
        f"{fmt.escape(' '.join(others))} Write the report again when the run has ended.</div>"
    )


def _digest(run):
    if run.config is None:
        return "no config.json"
    return f"config <code>{fmt.escape(run.digest or 'without digest')}</code>"


def _headline(run):
    summary = run.summary
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
        f"<dl class='tiles'>{_tiles(run)}</dl></div>"
    )


def _tiles(run):
    summary = run.summary
    totals = [fmt.score(get(summary, arm, "total")) for arm in ("base", "evolved")]
    tiles = [("Total score", " → ".join(totals), "base → evolved, mean weighted by prior")]
    if summary.get("pairs") is not None:
        lost = summary.get("pairs_dropped") or 0
        dropped = f", {lost} more without scores" if lost else ""
        tiles.append(("Evidence", f"{summary['pairs']} pairs", origin.evidence(summary) + dropped))
    tiles += every.tiles(run)
    for name in get(summary, "monitor", "base") or {}:
        row = numbers.row_of(summary, name, "monitor_delta")
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


def config(values) -> str:
    """Return the config as a folded table of dotted keys."""
    if values is None:
        return ""
    rows = "".join(
        f"<tr><th scope='row'><code>{fmt.escape(key)}</code></th>"
        f"<td><code>{fmt.escape(value)}</code></td></tr>"
        for key, value in settings_table.dotted(metrics.without_secrets(values))
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
