"""Build the tables that set runs against each other: headline, rewards, run against run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evoid_jax import proof, stopping, triples
from evoid_jax.metrics import get
from evoid_jax.report import apart, charts, current, every, faces, numbers, origin
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder
from evoid_jax.reward_groups import JUDGE
from evoid_jax.triples import Scores, WinRate


class Change(NamedTuple):
    """A difference with its interval; None where it is not known."""

    delta: float | None
    low: float | None
    high: float | None
    kind: str  # see proof.direction


def cautions(runs: Sequence[RunFolder], names: Sequence[str]) -> list[str]:
    """Say in plain words what keeps the runs' numbers from being set against each other."""
    words = []
    for (one, other), (name, rival) in _every_two(runs, names):
        words.append(apart.caution(one, other, (name, rival)))
        words.append(faces.caution(one, other, (name, rival)))
    words.append(apart.of_settings(runs))
    unfinished = [name for run, name in zip(runs, names, strict=True) if run.summary is None]
    if unfinished:
        words.append(f"Not finished, so base and evolved were not compared: {_list(unfinished)}.")
    older = [n for run, n in zip(runs, names, strict=True) if run.summary and run.scores is None]
    if older:
        words.append(
            f"No scores of single videos are kept in {_list(older)} (an older version made it): "
            "there are no win rates of it."
        )
    for run, name in zip(runs, names, strict=True):
        if aged := current.notice(run):
            words.append(f"{name}: {' '.join(aged)}")
        if run.summary and (said := stopping.warning(run.summary)):
            words.append(f"{name}: {said}.")
    small = [name for run, name in zip(runs, names, strict=True) if origin.stand_ins(run)]
    if small:
        words.append(
            f"Rewards of {_list(small)} are small stand-ins, not the published models whose roles "
            "they have."
        )
    return [each for each in words if each]


def runs(runs: Sequence[RunFolder], names: Sequence[str], hues: dict[str, str]) -> str:
    """Return the table of the runs' headlines: total, change, interval, win rates, monitors."""
    rows = [_headline(run.summary) for run in runs]
    span = _span(rows)
    monitors = _names([get(run.summary or {}, "monitor_delta") or {} for run in runs])
    heads = ("base", "evolved", "change", "95 % interval", "", "wins by total", "wins by the judge")
    titles = [f"monitor {fmt.escape(name)}" for name in monitors]
    lines = []
    for run, name, row in zip(runs, names, rows, strict=True):
        summary = run.summary or {}
        won = _rates(run.scores) if run.scores else {}
        label = f"{name}: change {fmt.signed(row.delta)}"
        cells = [
            fmt.score(get(summary, "base", "total")),
            fmt.score(get(summary, "evolved", "total")),
            f"<b class='{row.kind}'>{fmt.signed(row.delta)}</b>",
            fmt.interval(row.low, row.high),
            charts.interval(label, row.delta, row.low, row.high, span, row.kind),
            won.get("total", fmt.NONE),
            won.get("judge", fmt.NONE),
        ]
        cells += [_told(_row(summary, watched, "monitor_delta")) for watched in monitors]
        lines.append((f"<i style='--c:{hues[name]}'></i>{fmt.escape(name)}", cells))
    note = (
        "Each run's evolved model against what the run started from. Intervals: 95 %, paired "
        f"bootstrap over identities, coloured from {proof.ENOUGH} identities on. Wins: share of "
        f"the triples in which evolved is ahead, a tie counts half; {every.INTERVAL}."
        f"{_rewarded_by_judge(runs, names)}"
    )
    return fmt.section("runs", "The runs", fmt.table("run", (*heads, *titles), lines), note)


def rewards(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the change of every reward and monitor in every run."""
    summaries = [run.summary or {} for run in runs]
    lines = []
    for part, extra in (("delta", ""), ("monitor_delta", " <small>monitor</small>")):
        for reward in _names([get(summary, part) or {} for summary in summaries]):
            cells = [_told(_row(summary, reward, part)) for summary in summaries]
            lines.append((f"{fmt.escape(reward)}{extra}", cells))
    if not lines:
        return ""
    heads = [fmt.escape(name) for name in names]
    note = "Change from base to evolved with its 95 % interval, in the unit of the scores, 0 to 1."
    return fmt.section("numbers", "Rewards and monitors", fmt.table("reward", heads, lines), note)


def each_other(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the table of every run's evolved model against every other's, triple by triple."""
    found = []
    for (one, other), (name, rival) in _every_two(runs, names):
        why = apart.why(one, other)
        if one.scores is None or other.scores is None or all(why):
            continue
        both = faces.shared(one, other)
        if both.triples:
            found.append((f"{fmt.escape(rival)} over {fmt.escape(name)}", both, why))
    if not found:
        words = (
            "No two of these runs share scored triples that compare: the same face, prompt and "
            "seed, scored by the same models."
        )
        return fmt.section("against", "Run against run", f"<p class='empty'>{words}</p>")
    changes = [None if why.total else _total(both) for _, both, why in found]
    span = _span([change for change in changes if change])
    monitors = _names([t.monitor_evolved for _, both, _ in found for t in both.triples[:1]])
    lines = [
        (title, _cells(both, change, why, monitors, span))
        for (title, both, why), change in zip(found, changes, strict=True)
    ]
    note = (
        "Evolved against evolved on the same faces, prompts and seeds: the change when the second "
        "takes the place of the first."
    )
    heads = ("change", "95 % interval", "", "wins by total", "wins by the judge")
    titles = [f"monitor {fmt.escape(name)}" for name in monitors]
    table = fmt.table("second over first", (*heads, *titles, "triples"), lines)
    return fmt.section("against", "Run against run", table, note)


def _cells(
    both: Scores, change: Change | None, why: apart.Apart, monitors: Sequence[str], span: float
) -> list[str]:
    """Return a line's cells; change: of the total, None where the totals do not compare."""
    won = _rates(both)
    if change is None:
        cells = [f"{fmt.NONE}<small>the totals do not compare</small>", fmt.NONE, "", fmt.NONE]
    else:
        cells = [
            f"<b class='{change.kind}'>{fmt.signed(change.delta)}</b>",
            fmt.interval(change.low, change.high),
            charts.interval(
                "change of the total", change.delta, change.low, change.high, span, change.kind
            ),
            won.get("total", fmt.NONE),
        ]
    cells.append(fmt.NONE if why.judge else won.get("judge", fmt.NONE))
    cells += [fmt.NONE if why.monitors else _told(_monitor(both, name)) for name in monitors]
    lacking = "".join(f"<small>{words}</small>" for words in _lacking(both))
    return [*cells, f"{len(both.triples)}{lacking}"]


def _every_two(runs, names):
    pairs = itertools.combinations(zip(runs, names, strict=True), 2)
    return [((one, other), (name, rival)) for (one, name), (other, rival) in pairs]


def _headline(summary: dict | None) -> Change:
    if summary is None:
        return Change(None, None, None, "flat")
    low, high = summary.get("delta_total_ci95") or (None, None)
    kind, _ = proof.verdict(summary)
    return Change(summary.get("delta_total"), low, high, kind)


def _row(summary: dict, name: str, part: str) -> Change:
    if name not in (get(summary, part) or {}):
        return Change(None, None, None, "flat")
    if name == "total":
        return _headline(summary)
    row = numbers.row_of(summary, name, part)
    return Change(row.delta, row.low, row.high, row.kind)


def _change(first_B, second_B, identities) -> Change:
    """Return the mean of second - first with its interval over identities."""
    delta, low, high = proof.paired_bootstrap(first_B, second_B, cluster_B=identities)
    keep_B = np.isfinite(first_B) & np.isfinite(second_B)
    known = [None if np.isnan(value) else float(value) for value in (delta, low, high)]
    kind = proof.direction(known[1], known[2], len({*np.asarray(identities)[keep_B]}))
    return Change(*known, kind)


def _total(both: Scores) -> Change:
    """Return the change of the total; it shows nothing where a reward is missing too often."""
    change = _change(*triples.totals(both), _identities(both))
    return change._replace(kind="flat") if _lacking(both) else change


def _lacking(both: Scores) -> list[str]:
    """Say which rewards with weight more than `proof.MISSING` of the triples lack."""
    lacking = {
        name: share
        for name, prior in both.prior.items()
        if prior > 0 and (share := _missing(both, name)) > proof.MISSING
    }
    return [f"{fmt.escape(name)} is missing in {fmt.share(lacking[name])}" for name in lacking]


def _missing(both: Scores, name: str) -> float:
    """Return the share of the triples that lack a reward in either arm."""
    return 1 - np.isfinite(triples.of_reward(both, name)).all(axis=0).mean()


def _monitor(both: Scores, name: str) -> Change:
    column = lambda arms: np.array([arm.get(name) for arm in arms], float)
    first_B = column([triple.monitor_base for triple in both.triples])
    second_B = column([triple.monitor_evolved for triple in both.triples])
    return _change(first_B, second_B, _identities(both))


def _identities(both: Scores) -> list[str]:
    return [triple.identity for triple in both.triples]


def _told(change: Change) -> str:
    """Return a change and its interval as two lines of a cell."""
    if change.delta is None:
        return fmt.NONE
    between = fmt.interval(change.low, change.high)
    return f"<b class='{change.kind}'>{fmt.signed(change.delta)}</b><small>{between}</small>"


def _rates(scores: Scores) -> dict[str, str]:
    """Return the cells of the win rates, without colour where what they count is often missing."""
    lacking = {
        "total": bool(_lacking(scores)),
        "judge": JUDGE in scores.prior and _missing(scores, JUDGE) > proof.MISSING,
    }
    return {name: _rate(rate, lacking[name]) for name, rate in every.rates(scores).items()}


def _rate(rate: WinRate, lacking: bool) -> str:
    """Return a win rate and its interval as two lines of a cell; coloured as a change is."""
    known = rate.low is not None
    low, high = (rate.low - 0.5, rate.high - 0.5) if known else (None, None)
    kind = "flat" if lacking else proof.direction(low, high, rate.identities)
    between = f"{fmt.share(rate.low)} to {fmt.share(rate.high)}" if known else fmt.NONE
    return f"<b class='{kind}'>{fmt.share(rate.rate)}</b><small>{between}</small>"


def _rewarded_by_judge(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Say which runs learned from the grade that their wins by the judge are counted by."""
    judged = [name for run, name in zip(runs, names, strict=True) if every.rewarded_by_judge(run)]
    if not judged:
        return ""
    of = "" if len(judged) == len(names) else f" of {fmt.escape(_list(judged))}"
    return f" The judge's grade is one of the rewards{of}."


def _span(changes: Sequence[Change]) -> float:
    """Return one range for all pictures of a table, so that they compare."""
    ends = [x for one in changes for x in (one.delta, one.low, one.high) if x]
    return max(map(abs, ends), default=1.0)


def _names(tables) -> list[str]:
    """Return the keys of all tables in the order of their first appearance."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
