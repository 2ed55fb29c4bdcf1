"""Build the section on every triple of the proof: how often evolved was ahead, and by how much."""

from __future__ import annotations

import math

from evoid_jax import proof, triples
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder
from evoid_jax.reward_groups import JUDGE
from evoid_jax.triples import Scores, WinRate

WIDTH, HEIGHT = 1000, 190  # of the picture in user units; it is stretched to the page's width
INTERVAL = "intervals are Wilson's, 95 %, with identities as clusters"  # of win rates


def rates(scores: Scores) -> dict[str, WinRate]:
    """Return the win rates of evolved over base: by the total, and by the judge where it scored."""
    cluster_B = [triple.identity for triple in scores.triples]
    found = {"total": triples.win_rate(*triples.totals(scores), cluster_B)}
    if JUDGE in scores.prior:
        found["judge"] = triples.win_rate(*triples.of_reward(scores, JUDGE), cluster_B)
    return {name: rate for name, rate in found.items() if rate.pairs}


def rewarded_by_judge(run: RunFolder) -> bool:
    """Tell whether a run learned from the judge's grade that its videos have."""
    judged = run.scores is not None and "judge" in rates(run.scores)
    return judged and JUDGE in proof.rewarded(run.summary or {"prior": run.scores.prior})


def tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """Return the head's tiles on win rates: title, value, caption."""
    if run.scores is None:
        return []
    titles = {"total": "Win rate by total", "judge": "Win rate by the judge"}
    return [(titles[name], fmt.share(r.rate), said(r)) for name, r in rates(run.scores).items()]


def said(rate: WinRate) -> str:
    """Say what a win rate is of: interval, wins and ties."""
    between = "no interval"
    if rate.low is not None:
        between = f"{fmt.share(rate.low)} to {fmt.share(rate.high)}"
    ties = f", {rate.ties} ties" if rate.ties else ""
    return f"{between}; ahead in {rate.ahead} of {rate.pairs}{ties}"


def section(run: RunFolder) -> str:
    """Return the section, or nothing where no scores of single videos were kept."""
    if run.scores is None or not run.scores.triples:
        return ""
    base_B, evolved_B = triples.totals(run.scores)
    rise_B = [None if math.isnan(x) else float(x) for x in evolved_B - base_B]
    found = rates(run.scores)
    words = "; ".join(f"by {name} {fmt.share(r.rate)} ({said(r)})" for name, r in found.items())
    note = (
        "Each bar is a face, a prompt and a seed: the change of its total from base to evolved, "
        f"sorted. Win rate of evolved {fmt.escape(words)}. A tie counts half; {INTERVAL}."
    )
    if rewarded_by_judge(run):
        note += " The judge's grade is one of the rewards."
    body = f"<div class='panel bars'>{_bars(rise_B)}</div>{_table(run.scores, rise_B)}"
    return fmt.section("every", "Every triple", body, note)


def _bars(rise_B: list[float | None]) -> str:
    """Draw the changes of the total from the largest to the smallest."""
    known = sorted((x for x in rise_B if x is not None), reverse=True)
    if not known:
        return "<p class='empty'>No triple has a total in both arms.</p>"
    top, bottom = max(*known, 0.0), min(*known, 0.0)
    span = (top - bottom) or 1.0
    y = lambda value: 10 + (top - value) / span * (HEIGHT - 20)
    step = WIDTH / len(known)
    bars = "".join(
        f"<rect class='{'up' if x > 0 else 'down'}' x='{i * step:.1f}' "
        f"y='{y(max(x, 0.0)):.1f}' width='{max(step - 2, 1):.1f}' "
        f"height='{max(abs(x) / span * (HEIGHT - 20), 0.8):.1f}'/>"
        for i, x in enumerate(known)
    )
    zero = f"<line class='zero' x1='0' x2='{WIDTH}' y1='{y(0):.1f}' y2='{y(0):.1f}'/>"
    # Beside the picture and not in it: they keep their size on a phone.
    ends = "".join(f"<span>{fmt.signed(x) if x else ''}</span>" for x in (top, bottom))
    risen = sum(x > 0 for x in known)
    label = (
        f"Change of the total of {len(known)} triples: {risen} rose; from {fmt.signed(known[-1])} "
        f"to {fmt.signed(known[0])}"
    )
    return (
        f"<div class='sorted'><div aria-hidden='true'>{ends}</div>"
        f"<svg class='bars' viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio='none' role='img' "
        f"aria-label='{fmt.escape(label)}'>{bars}{zero}</svg></div>"
    )


def _table(scores: Scores, rise_B: list[float | None]) -> str:
    """Return every triple's totals and grades as a folded table, in the order of the list."""
    base_B, evolved_B = triples.totals(scores)
    judged = triples.of_reward(scores, JUDGE) if JUDGE in scores.prior else None
    heads = ["base", "evolved", "change", "rewards ahead", *(["judge"] if judged else []), "prompt"]
    known = lambda x: fmt.score(None if math.isnan(x) else float(x))
    rows = ""
    for b, triple in enumerate(scores.triples):
        won, both = triples.rewards_won(triple)
        cells = [known(base_B[b]), known(evolved_B[b]), fmt.signed(rise_B[b]), f"{won} of {both}"]
        if judged:
            cells.append(f"{known(judged[0][b])} → {known(judged[1][b])}")
        cells.append(fmt.escape(triple.prompt))
        body = "".join(
            f"<td data-head='{head}'>{cell}</td>" for head, cell in zip(heads, cells, strict=True)
        )
        name = f"{fmt.escape(triple.identity)}, seed {triple.seed}"
        rows += f"<tr><th scope='row'>{name}</th>{body}</tr>"
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("identity and seed", *heads))
    table = f"<table class='prompts'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f"<details id='triples'><summary>Every triple as a table</summary>{fmt.rows(table)}"
        "</details>"
    )
