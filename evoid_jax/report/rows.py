"""Build the rows of the compare page: what all runs made of the same face, prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evoid_jax.report import apart, faces, shelf, videos
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import HeldoutSample, RunFolder
from evoid_jax.report.shelf import Source

# Under a base whose total is not the same in all runs.
APART = "the runs give it different totals: other priors, scorers or missing scores"


class Row(NamedTuple):
    """One triple, and each run's sample of it; None where a run kept none."""

    samples: tuple[HeldoutSample | None, ...]

    @property
    def first(self) -> HeldoutSample:
        """A sample of it."""
        return next(sample for sample in self.samples if sample)


def matched(runs: Sequence[RunFolder]) -> list[Row]:
    """Return the triples of which two runs or more kept videos, in the order of the first run."""
    kept = [faces.kept(run) for run in runs]
    keys = dict.fromkeys(key for samples in kept for key in samples)
    rows = [Row(tuple(samples.get(key) for samples in kept)) for key in keys]
    return [row for row in rows if sum(sample is not None for sample in row.samples) > 1]


def media(rows: Sequence[Row]) -> list[Path | None]:
    """Return every file that the rows show; None where one is missing."""
    shown = []
    for row in rows:
        shown.append(row.first.reference)
        shown += [file for one in row.samples if one for file in (one.base, one.evolved)]
    return shown


def section(
    rows: Sequence[Row],
    runs: Sequence[RunFolder],
    names: Sequence[str],
    source: Source,
    kept: int,
) -> str:
    """Return the section; names: of the runs; kept: triples that they share, shown or not."""
    title = "The same face, prompt and seed"
    if kept and not rows:
        why = f"{kept} are kept by two runs or more, none is shown (--videos)."
        return fmt.section("rows", title, f"<p class='empty'>{why}</p>")
    if not rows:
        why = "No two of these runs kept videos of the same face, prompt and seed."
        return fmt.section("rows", title, f"<p class='empty'>{why}</p>")
    drawn = "noise" if apart.same_noise(runs) else "seed (other settings: not the same noise)"
    note = (
        f"What each run's evolved model made of the same face, prompt and {drawn}. Total: of this "
        "video, with the run's own priors, and its change from the run's base. In the order of "
        "the list; no score had a say."
    )
    if kept > len(rows):
        note = f"The first {len(rows)} of {kept} that two runs or more kept. {note}"
    cards = "".join(_card(row, names, source) for row in rows)
    return fmt.section("rows", title, f"<div class='triples'>{cards}</div>", note, videos.PLAY)


def _card(row: Row, names: Sequence[str], source: Source) -> str:
    entry = row.first.entry
    prompt = str(entry.get("prompt", ""))
    shown = _shown(row, names)
    figures = "".join(
        _figure(file, source, f"{title}, video for: {prompt}", title, caption)
        for title, file, caption in shown
    )
    face = shelf.photo(row.first.reference, source, f"photo for: {prompt}")
    return (
        f"{videos.film(row.first.evolved or row.first.base, len(shown))}"
        f"<div class='who'>{face}<p class='prompt'>{fmt.escape(prompt)}</p>"
        f"<p class='facts'>{videos.facts(entry)}</p></div>"
        f"<div class='stage'><div class='row'>{figures}</div></div></article>"
    )


def _shown(row: Row, names: Sequence[str]) -> list[tuple[str, Path | None, str]]:
    """Return (title, file, caption) of each video: the bases, once where they are equal."""
    there = [(name, one) for name, one in zip(names, row.samples, strict=True) if one]
    marks = {shelf.fingerprint(one.base) for _, one in there if one.base}
    shown, agreed = [], True
    if len(marks) == 1:
        base = next(one.base for _, one in there if one.base)
        agreed = _agree([one for _, one in there])
        caption = _base_total([one for _, one in there]) if agreed else APART
        shown.append(("base", base, caption))
    else:
        shown += [(f"base of {n}", one.base, _base_total([one])) for n, one in there if one.base]
    return shown + [
        (name, one.evolved if one else None, _evolved_total(one, whole=not agreed))
        for name, one in zip(names, row.samples, strict=True)
    ]


def _figure(file, source: Source, label: str, title: str, caption: str) -> str:
    small = f"<small>{caption}</small>" if caption else ""
    return (
        f"<figure>{shelf.video(file, source, label)}<figcaption>{fmt.escape(title)}{small}"
        "</figcaption></figure>"
    )


def _agree(samples: Sequence[HeldoutSample]) -> bool:
    """Tell whether all runs that have one have the same total of base, to the digits shown."""
    totals = [one.total[0] for one in samples if one.total]
    return not totals or max(totals) - min(totals) < 0.0005


def _base_total(samples: Sequence[HeldoutSample]) -> str:
    return next((fmt.score(one.total[0]) for one in samples if one.total), "")


def _evolved_total(sample: HeldoutSample | None, whole: bool) -> str:
    """Return evolved's total and its change; whole: from the run's own total of base."""
    if sample is None or sample.total is None:
        return ""
    base, evolved = sample.total
    start = f"{fmt.score(base)} → " if whole else ""
    return f"{start}{fmt.score(evolved)} ({fmt.signed(evolved - base)})"
