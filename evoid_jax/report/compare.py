"""Build the page that compares several runs, and the blind page on which people do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evoid_jax import files, metrics
from evoid_jax.report import (
    against,
    choices,
    curves,
    folder,
    overlay,
    places,
    rows,
    settings_table,
    shelf,
    shell,
    study,
)
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder
from evoid_jax.report.shelf import Source

FILE = "compare.html"


def write(
    workdirs: Sequence[str | Path],
    out: str | Path,
    shown: int = 12,
    media: str = "auto",
    answers: Sequence[str | Path] = (),
) -> list[Path]:
    """Write `out/compare.html` and `out/blind/blind.html`; return their paths.

    Args:
      workdirs: of two runs or more.
      out: a folder, made where it is absent; it may hold a comparison from before.
      shown: triples whose videos are shown, at most; the blind page has all.
      media: of shelf.MODES; beside the page means copied into `out/media`.
      answers: files that the blind page saved, besides those in `out/blind`.

    Raises:
      OSError: a run's folder is missing, or out cannot be written.
      ValueError: a file is malformed, a run is given twice, or out holds something else.
    """
    place = places.chosen(out, FILE)
    runs = [folder.load(workdir, folder.ALL) for workdir in workdirs]
    names = _names(workdirs)
    trials = study.of_runs(runs, names)
    counted = choices.counted(place, trials, answers)
    place.mkdir(parents=True, exist_ok=True)
    kept = rows.matched(runs)
    same = kept[:shown]
    source = shelf.choose(media, rows.media(same), shelf.copied(place))
    text = page(runs, names, same, source, counted, blind=bool(trials), kept=len(kept))
    written = [metrics.write_text(place / FILE, text)]
    shelf.tidy(place, source.names)
    if not trials:
        study.remove(place)  # of other runs
        return written
    return [*written, study.write(place, trials, media)]


def page(
    runs: Sequence[RunFolder],
    names: Sequence[str],
    same: Sequence[rows.Row],
    source: Source,
    counted: choices.Tally | None,
    blind: bool,
    kept: int,
) -> str:
    """Return the whole page.

    Args:
      names: of the runs, all different.
      same: triples to show that runs share, see `rows.matched`.
      counted: what people chose; None where nobody was asked.
      blind: whether a blind page lies beside this one.
      kept: triples that runs share, shown or not.
    """
    hues = dict(zip(names, curves.HUES * len(names), strict=False))
    sections = (
        against.runs(runs, names, hues),
        against.rewards(runs, names),
        against.each_other(runs, names),
        choices.section(counted) if counted else "",
        rows.section(same, runs, names, source, kept),
        overlay.section(runs, names, hues),
        settings_table.section(runs, names),
    )
    body = "\n".join(sections)
    head = f"<header><h1>{fmt.escape(', '.join(names))}</h1>{_head(runs, names, blind)}</header>"
    whole = f"{shell.links(body)}{head}<main>{body}</main>"
    return shell.page(f"{', '.join(names)} · EvoID", whole, media=shelf.policy(source))


def _head(runs, names, blind: bool) -> str:
    warnings = [*against.cautions(runs, names)]
    notes = "".join(f"<p class='know' role='note'>{fmt.escape(words)}</p>" for words in warnings)
    link = ""
    if blind:
        link = (
            f"<p class='facts'><a href='{study.FOLDER}/{study.FILE}'>Blind page</a>: people choose "
            "between the runs' videos without knowing whose they are. Put the answers that it "
            "saves beside it and write this page again.</p>"
        )
    return f"<p class='facts'>{len(names)} runs compared</p>{link}{notes}"


def _names(workdirs: Sequence[str | Path]) -> list[str]:
    """Return the folders' names where they differ, and their paths as they were typed otherwise."""
    places = [files.user_path(workdir).resolve() for workdir in workdirs]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise ValueError(f"{twice} is given twice; name different runs")
    names = [place.name for place in places]
    names = names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]
    return [fmt.whole(name) for name in names]
