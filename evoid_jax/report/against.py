"""Build the tables that set runs against each other: headline, rewards, run against run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evoid_jax import proof, stopping, triples
from evoid_jax.metrics import get
from evoid_jax.report import charts, every, numbers, origin
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder
from evoid_jax.triples import Scores


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
        if why := why_not(one, other):
            words.append(f"The scores of {name} and {rival} do not compare: {'; '.join(why)}.")
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
        if run.summary and (said := stopping.warning(run.summary)):
            words.append(f"{name}: {said}.")
    small = [name for run, name in zip(runs, names, strict=True) if origin.stand_ins(run)]
    if small:
        words.append(
            f"Rewards of {_list(small)} are small stand-ins, not the published models whose roles "
            "they have."
        )
    return words


def why_not(one: RunFolder, other: RunFolder) -> list[str]:
    """Return why the scores of two runs do not compare; nothing where they do.

    What is not recorded is taken as equal: an older run says little of its scorers.
    """
    mine, theirs = ({row.name: row for row in run.rewards} for run in (one, other))
    if mine.keys() != theirs.keys():
        return [f"one has no {_list(sorted(mine.keys() ^ theirs.keys()))}"]
    why = []
    priors = [name for name in mine if _differ(mine[name].prior, theirs[name].prior)]
    if priors:
        why.append(f"other priors of {_list(priors)}")
    models = [n for n in mine if _unlike(_models(mine[n]), _models(theirs[n]))]
    if models:
        why.append(f"other models gave {_list(models)}")
    if _unlike(origin.judge_model(one), origin.judge_model(other)):
        why.append("another judge")
    elif asked := _asked_otherwise(one, other):
        why.append(f"the judge was asked otherwise ({_list(asked)})")
    return why


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
        won = every.rates(run.scores) if run.scores else {}
        label = f"{name}: change {fmt.signed(row.delta)}"
        cells = [
            fmt.score(get(summary, "base", "total")),
            fmt.score(get(summary, "evolved", "total")),
            f"<b class='{row.kind}'>{fmt.signed(row.delta)}</b>",
            fmt.interval(row.low, row.high),
            charts.interval(label, row.delta, row.low, row.high, span, row.kind),
            _rate(won.get("total")),
            _rate(won.get("judge")),
        ]
        cells += [_told(_row(summary, watched, "monitor_delta")) for watched in monitors]
        lines.append((f"<i style='--c:{hues[name]}'></i>{fmt.escape(name)}", cells))
    note = (
        "Each run's evolved model against what the run started from. Intervals: 95 %, paired "
        f"bootstrap over identities, coloured from {proof.ENOUGH} identities on. Wins: share of "
        "the triples in which evolved is ahead, a tie counts half. The judge's grade is one of the "
        "rewards."
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
        if one.scores is None or other.scores is None or why_not(one, other):
            continue
        both = triples.between(one.scores, other.scores)
        if both.triples:
            found.append((f"{fmt.escape(rival)} over {fmt.escape(name)}", both))
    note = (
        "Evolved against evolved on the same faces, prompts and seeds: the change when the second "
        "takes the place of the first."
    )
    if not found:
        why = (
            "No two of these runs share scored triples that compare: the same face, prompt and "
            "seed, scored by the same models."
        )
        return fmt.section("against", "Run against run", f"<p class='empty'>{why}</p>")
    changes = [_total(both) for _, both in found]
    span = _span(changes)
    monitors = _names([t.monitor_evolved for _, both in found for t in both.triples[:1]])
    lines = []
    for (title, both), change in zip(found, changes, strict=True):
        won, lacking = every.rates(both), _lacking(both)
        picture = charts.interval(
            "change of the total", change.delta, change.low, change.high, span, change.kind
        )
        cells = [
            f"<b class='{change.kind}'>{fmt.signed(change.delta)}</b>",
            fmt.interval(change.low, change.high),
            picture,
            _rate(won.get("total")),
            _rate(won.get("judge")),
            *(_told(_monitor(both, name)) for name in monitors),
            str(len(both.triples)) + "".join(f"<small>{words}</small>" for words in lacking),
        ]
        lines.append((title, cells))
    heads = ("change", "95 % interval", "", "wins by total", "wins by the judge")
    titles = [f"monitor {fmt.escape(name)}" for name in monitors]
    table = fmt.table("second over first", (*heads, *titles, "triples"), lines)
    return fmt.section("against", "Run against run", table, note)


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
    words = []
    for name, prior in both.prior.items():
        had_B = np.isfinite(triples.of_reward(both, name)).all(axis=0)
        if prior > 0 and (share := 1 - had_B.mean()) > proof.MISSING:
            words.append(f"{fmt.escape(name)} is missing in {fmt.share(share)}")
    return words


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


def _rate(rate) -> str:
    if rate is None or rate.rate is None:
        return fmt.NONE
    kind = "flat"
    if rate.low is not None:
        kind = "up" if rate.low > 0.5 else "down" if rate.high < 0.5 else "flat"
    between = fmt.NONE if rate.low is None else f"{fmt.share(rate.low)} to {fmt.share(rate.high)}"
    return f"<b class='{kind}'>{fmt.share(rate.rate)}</b><small>{between}</small>"


def _span(changes: Sequence[Change]) -> float:
    """Return one range for all pictures of a table, so that they compare."""
    ends = [x for one in changes for x in (one.delta, one.low, one.high) if x]
    return max(map(abs, ends), default=1.0)


def _models(row) -> tuple | None:
    keys = ("preset", "version", "sha256")
    sources = tuple(tuple(source.get(key) for key in keys) for source in row.sources)
    return sources or None


def _asked_otherwise(one: RunFolder, other: RunFolder) -> list[str]:
    """Return the settings by which two runs' judge was asked that are not the same in both."""
    if origin.judge_model(one) is None or one.config is None or other.config is None:
        return []
    names = ("frames", "side", "rubric", "extra", "expected")
    mine, theirs = (
        {n: get(run.config, "reward", f"judge_{n}") for n in names} for run in (one, other)
    )
    return [f"judge_{name}" for name in names if _unlike(mine[name], theirs[name])]


def _unlike(mine, theirs) -> bool:
    return mine is not None and theirs is not None and mine != theirs


def _differ(mine: float | None, theirs: float | None) -> bool:
    return mine is not None and theirs is not None and abs(mine - theirs) > 1e-6


def _names(tables) -> list[str]:
    """Return the keys of all tables in the order of their first appearance."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
