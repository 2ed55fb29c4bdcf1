"""Build the part of a report that shows videos: base beside evolved, with what each scored.

The page's script adds a slider, zoom and one clock for both sides; without it the videos still
stand there with their own controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from evoid_jax import proof, triples
from evoid_jax.metrics import get
from evoid_jax.report import shelf
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import HeldoutSample, RunFolder
from evoid_jax.report.shelf import Source

TALLEST = 330  # pixels of a video on a desktop, so that a pair fits on a screen
IN_A_ROW = 4  # videos; more would be small on a laptop
WIDE = 1.2  # width over height from which the scores stand below the videos
PLAY = "<button type='button' id='play' aria-pressed='true' hidden>Play what is in view</button>"


def section(run: RunFolder, source: Source) -> str:
    """Return base and evolved side by side for the triples that were kept, best and worst first."""
    title = "Base and evolved"
    if not run.samples:
        why = "No videos yet." if run.summary is None else "No videos were kept."
        if run.samples_total:
            why = f"{run.samples_total} are kept, none is shown (--videos)."
        return fmt.section("videos", title, f"<p class='empty'>{why}</p>")
    tags = ends(run.samples)
    # The two that stand out first, the rest as the list has them.
    order = [*tags, *(k for k in range(len(run.samples)) if k not in tags)]
    priors = [row.name for row in run.rewards if row.prior]
    cards = "".join(card(run.samples[k], source, tags.get(k, ""), priors) for k in order)
    return fmt.section("videos", title, f"<div class='triples'>{cards}</div>", _note(run), PLAY)


def _note(run: RunFolder) -> str:
    shown, total = len(run.samples), run.samples_total
    on = f" ({fmt.escape(proof.measured_on(run.summary))})" if run.summary else ""
    words = (
        f"The first {shown} of the {total} pairs that this run kept{on}. Both sides have the "
        "same face, prompt and noise; only the adapter differs. They are chosen by their place in "
        "the list alone (see how this run was made)."
    )
    if run.outdated:
        words += " A later proof has begun to replace them, so that none has scores beside it."
    if ends(run.samples):
        return (
            f"{words} Best and worst are those of these {shown} whose total rose most and least, "
            "or fell; the others follow in the order of the list."
        )
    if run.summary and run.scores is None:
        words += (
            " An older version made this run, which kept no scores of single videos: there is no "
            "best and no worst."
        )
    return words


def ends(samples: Sequence[HeldoutSample]) -> dict[int, str]:
    """Return which samples rose most and least, with a word for each; none of fewer than two."""
    known = {k: one.total[1] - one.total[0] for k, one in enumerate(samples) if one.total}
    if len(known) < 2:
        return {}
    best, worst = max(known, key=known.get), min(known, key=known.get)
    if best == worst:  # all rose alike
        return {}
    return {best: f"best of {len(known)}", worst: f"worst of {len(known)}"}


def card(sample: HeldoutSample, source: Source, tag: str, rewarded: Sequence[str]) -> str:
    """Return one triple: photo and prompt, both videos, their scores.

    tag: what stands out about it, or "". rewarded: the rewards with a prior, in the run's order.
    """
    entry = sample.entry
    prompt = str(entry.get("prompt", ""))
    sides = "".join(
        f"<figure class='{arm}'>{shelf.video(file, source, f'{arm} video for: {prompt}')}"
        f"<figcaption>{arm}</figcaption></figure>"
        for arm, file in (("base", sample.base), ("evolved", sample.evolved))
    )
    file = sample.evolved or sample.base
    wide, style = _looks(file)
    mark = f"<b class='tag'>{fmt.escape(tag)}</b>" if tag else ""
    return (
        f"<article class='card triple{wide}' style='{style}'>"
        f"<div class='who'>{mark}{shelf.photo(sample.reference, source, f'photo for: {prompt}')}"
        f"<p class='prompt'>{fmt.escape(prompt)}</p><p class='facts'>{facts(entry)}</p></div>"
        f"<div class='stage'><div class='duo'>{sides}</div></div>"
        f"{_scores(sample, rewarded)}</article>"
    )


def film(file: Path | None, count: int) -> str:
    """Return the opening tag of a card with several videos: up to four in one row, more in two.

    Args:
      file: one of them, for their shape. count: how many they are.
    """
    wide, style = _looks(file)
    lines = 1 if count <= IN_A_ROW else 2
    columns = math.ceil(count / lines)
    return f"<article class='card film{wide}' style='{style};--n:{columns};--lines:{lines}'>"


def facts(entry: dict) -> str:
    """Return whose face and which seed an entry names."""
    named = [key for key in ("identity", "seed") if key in entry]
    return ", ".join(f"{key} {fmt.escape(entry[key])}" for key in named)


def _looks(file: Path | None) -> tuple[str, str]:
    """Return a card's further class and its style, by the shape of its videos."""
    ratio, widest = shape(file)
    return " wide" if ratio > WIDE else "", f"--ratio:{ratio:.4f};--widest:{widest}px"


def shape(file: Path | None) -> tuple[float, int]:
    """Return a video's width over height, and how many pixels wide it is shown at most."""
    clip = shelf.look(file) if file is not None else None
    if clip is None:
        return 1.0, TALLEST
    ratio = clip.width / clip.height
    if clip.width <= shelf.SMALL:  # whole pixels of the screen for each of the video's
        return ratio, clip.width * max(TALLEST // clip.height, 1)
    return ratio, math.ceil(TALLEST * ratio)


def _scores(sample: HeldoutSample, rewarded: Sequence[str]) -> str:
    """Return both arms' scores of one triple: the total first, the rewards, the monitors."""
    scored = sample.scored
    if scored is None:
        return ""
    rows = _score("total", *sample.total, "total") if sample.total else ""
    # A reward without a prior had no say in the total and is told apart.
    for name in scored.base:
        style = "" if name in rewarded else "aside"
        rows += _score(name, scored.base[name], scored.evolved.get(name), style)
    for name in scored.monitor_base:
        values = scored.monitor_base[name], scored.monitor_evolved.get(name)
        rows += _score(f"{name}, monitor", *values, "aside")
    won, both = triples.rewards_won(scored)
    words = f"evolved is ahead in {won} of {both} rewards"
    return f"<div class='scores'><p>{words}</p><dl>{rows}</dl></div>"


def _score(name: str, base, evolved, style: str) -> str:
    delta = None if None in (base, evolved) else evolved - base
    kind = "" if not delta or style == "aside" else "up" if delta > 0 else "down"
    arms = f"{fmt.score(base)} → {fmt.score(evolved)}"
    return (
        f"<div class='{style}'><dt>{fmt.escape(name)}</dt><dd>{arms}</dd>"
        f"<dd class='{kind}'>{fmt.signed(delta)}</dd></div>"
    )


def over_steps(run: RunFolder, source: Source) -> str:
    """Return the watch's videos: each kept pair at the start and after some steps."""
    steps = [get(summary, "steps") for summary in run.watched]
    picked = thinned(len(steps))
    cards = ""
    for pair in run.watched_pairs:
        prompt = str(pair.entry.get("prompt", ""))
        shown = [("start", pair.start)]
        shown += [(f"step {steps[i]}", pair.videos[i]) for i in picked]
        if not any(file for _, file in shown):
            continue
        row = "".join(
            f"<figure>{shelf.video(file, source, f'{name}, video for: {prompt}')}"
            f"<figcaption>{fmt.escape(name)}</figcaption></figure>"
            for name, file in shown
        )
        face = shelf.photo(pair.reference, source, f"photo for: {prompt}") if pair.reference else ""
        who = (
            f"<div class='who'>{face}<p class='prompt'>{fmt.escape(prompt)}</p>"
            f"<p class='facts'>{facts(pair.entry)}</p></div>"
        )
        who = who if pair.entry else ""
        cards += f"{film(pair.start, len(shown))}{who}<div class='row'>{row}</div></article>"
    return f"<div class='triples'>{cards}</div>" if cards else ""


def thinned(count: int, most: int = 5) -> list[int]:
    """Return at most `most` of `count` places, spread evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def media(run: RunFolder) -> list:
    """Return every file that the page of a run shows; None where one is missing."""
    shown = [file for one in run.samples for file in (one.base, one.evolved, one.reference)]
    for pair in run.watched_pairs:
        picked = [pair.videos[i] for i in thinned(len(pair.videos))]
        shown += [pair.reference, pair.start, *picked]
    return shown
