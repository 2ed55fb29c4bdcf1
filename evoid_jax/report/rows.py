"""Build the rows of the compare page: what all runs made of the same face, prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evoid_jax.report import shelf, videos
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import HeldoutSample, RunFolder
from evoid_jax.report.shelf import Source


class Row(NamedTuple):
    """One triple, and each run's sample of it; None where a run kept none."""

    samples: tuple[HeldoutSample | None, ...]

    @property
    def first(self) -> HeldoutSample:
        """A sample of it."""
        return next(sample for sample in self.samples if sample)


def matched(runs: Sequence[RunFolder]) -> list[Row]:
    """Return the triples of which two runs or more kept videos, in the order of the first run."""
    kept = [{_key(sample): sample for sample in run.samples} for run in runs]
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


def section(rows: Sequence[Row], names: Sequence[str], source: Source, kept: int) -> str:
    """Return the section; names: of the runs; kept: triples that they share, shown or not."""
    title = "The same face, prompt and seed"
    if kept and not rows:
        why = f"{kept} are kept by two runs or more, none is shown (--videos)."
        return fmt.section("rows", title, f"<p class='empty'>{why}</p>")
    if not rows:
        why = "No two of these runs kept videos of the same face, prompt and seed."
        return fmt.section("rows", title, f"<p class='empty'>{why}</p>")
    note = (
        "What each run's evolved model made of the same face, prompt and noise. Total: of this "
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
    marks = {name: shelf.fingerprint(one.base) for name, one in there if one.base}
    shown = []
    if len(set(marks.values())) == 1:
        _, one = next((name, one) for name, one in there if one.base)
        shown.append(("base", one.base, _total(one, 0)))
    else:
        shown += [(f"base of {n}", one.base, _total(one, 0)) for n, one in there if one.base]
    return shown + [
        (name, one.evolved if one else None, _total(one, 1))
        for name, one in zip(names, row.samples, strict=True)
    ]


def _figure(file, source: Source, label: str, title: str, caption: str) -> str:
    small = f"<small>{caption}</small>" if caption else ""
    return (
        f"<figure>{shelf.video(file, source, label)}<figcaption>{fmt.escape(title)}{small}"
        "</figcaption></figure>"
    )


def _total(sample: HeldoutSample | None, arm: int) -> str:
    if sample is None or sample.total is None:
        return ""
    base, evolved = sample.total
    return fmt.score(base) if arm == 0 else f"{fmt.score(evolved)} ({fmt.signed(evolved - base)})"


def _key(sample: HeldoutSample) -> tuple[str, ...]:
    """Return what makes a sample the same as another run's, whatever heldout.json holds."""
    return tuple(repr(value) for value in sample.key)
