"""Build the sections of a report that show a run over its steps: rewards, weights, training.

What is drawn follows from the keys found in the record: another objective, other rewards or other
phases need no change here.
"""

from collections.abc import Iterable

from evoid_jax.metrics import get, weighted
from evoid_jax.report import charts
from evoid_jax.report import text as fmt
from evoid_jax.report.charts import Series

COLOURS = {  # one hue per group: identity blue, text green, quality warm
    "arcface": "var(--blue)",
    "curricularface": "var(--sky)",
    "gme": "var(--green)",
    "aesthetic": "var(--amber)",
    "qalign": "var(--orange)",
    "naturalness": "var(--red)",
    "flow": "var(--violet)",
    "vqscore": "var(--slate)",
    "identity": "var(--blue)",
    "text": "var(--green)",
    "quality": "var(--orange)",
    "rollout": "var(--blue)",
    "decode": "var(--sky)",
    "score": "var(--amber)",
    "train": "var(--green)",
}
HUES = tuple(
    f"var(--{name})"
    for name in ("blue", "green", "orange", "violet", "amber", "sky", "red", "slate")
)
INK = "var(--accent)"


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return a CSS colour per reward, group or phase: names of COLOURS keep theirs.

    Other names get colours in their order, first those that no name here has.
    """
    names = list(dict.fromkeys(names))
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = [hue for hue in HUES if hue not in taken] or list(HUES)
    others = [name for name in names if name not in COLOURS]
    return {name: COLOURS[name] for name in names if name in COLOURS} | {
        name: free[i % len(free)] for i, name in enumerate(others)
    }


def rewards(steps, hues) -> str:
    """Return the reward curves: overall, unified, and each reward's mean score.

    hues: name of a reward -> CSS colour.
    """
    if not steps:
        return fmt.section("rewards", "Rewards", "<p class='empty'>No step is logged yet.</p>")
    names = _names(steps, "reward", "score")
    # One set of weights for the whole curve: with each step's own it would move with the judge.
    mean = {name: _average(_column(steps, "weights", name)) or 0.0 for name in names}
    overall = [weighted(get(record, "reward", "score") or {}, mean) for record in steps]
    unified = _column(steps, "reward", "unified")
    pair = _panel(
        "Mean score of the rollouts",
        steps,
        [Series("score", INK, overall)],
        "All rewards, each with its average weight over the run.",
    )
    pair += _panel(
        "Unified reward",
        steps,
        [Series("unified", INK, unified)],
        "Normalised within each group of videos: near one half by construction.",
        low=0.0,
        high=1.0,
    )
    small = "".join(
        _small(name, steps, _column(steps, "reward", "score", name), hues[name]) for name in names
    )
    note = (
        "Mean absolute score, 0 to 1, of each step's videos. Every step has other faces and "
        "prompts; the line is a running mean, the points are the steps."
    )
    body = f"<div class='pair'>{pair}</div><div class='small'>{small}</div>"
    return fmt.section("rewards", "Rewards", body, note)


def weights(steps, hues) -> str:
    """Return the final weights by reward, stacked, and the judge's attention by group.

    hues: name of a reward -> CSS colour.
    """
    names, groups = _names(steps, "weights"), _names(steps, "attention")
    if not names:
        return ""
    stack = [Series(name, hues[name], _column(steps, "weights", name)) for name in names]
    body = _panel(
        "Final weights", steps, stack, "They sum to one at every step.", areas=True, high=1
    )
    if groups:
        own = palette(groups)
        focus = [Series(name, own[name], _column(steps, "attention", name)) for name in groups]
        body += _panel("The judge's attention", steps, focus, "0 to 10 by group.", low=0, high=10)
    note = "How the prior and the judge's attention share the reward."
    return fmt.section("weights", "Weights", f"<div class='pair'>{body}</div>", note)


def health(steps) -> str:
    """Return what training reports of itself: losses, drifts, the rest, seconds per phase."""
    if not steps:
        return ""
    small = "".join(
        _small(title, steps, column, INK)
        for title, column in _training(steps)
        if any(value is not None for value in column)
    )
    phases = [name for name in _names(steps, "seconds") if name != "total"]
    own = palette(phases)
    stack = [Series(name, own[name], _column(steps, "seconds", name)) for name in phases]
    pair = _panel("Seconds per phase", steps, stack, "Phases may overlap.", areas=True)
    valid = [Series("valid", INK, _column(steps, "valid_fraction"))]
    caption = "Share of the scores obtained; missing ones are masked."
    pair += _panel("Valid scores", steps, valid, caption, low=0.0, high=1.0)
    note = (
        "Drift: mean absolute difference between two velocities on the same noisy latents: the "
        "evolving one's and the stable (stb), initial (init) or teacher's (t2v)."
    )
    if _names(steps, "ratio"):
        note += (
            " Ratio, of the evolving one's probabilities to the stable one's: how far it is from 1 "
            "(off), and the share of samples beyond the clip, which teach nothing more (clipped)."
        )
    note = note if _names(steps, "drift") else ""
    body = f"<div class='small'>{small}</div><div class='pair'>{pair}</div>"
    return fmt.section("training", "Training", body, note)


def every_step(steps) -> str:
    """Return the curves' numbers as a folded table."""
    if not steps:
        return ""
    scores = [
        (name, _column(steps, "reward", "score", name)) for name in _names(steps, "reward", "score")
    ]
    columns = [("unified", _column(steps, "reward", "unified")), *scores, *_training(steps)]
    columns += [("valid", _column(steps, "valid_fraction"))]
    columns += [("seconds", _column(steps, "seconds", "total"))]
    heads = ["step", *(title for title, _ in columns)]
    head = "".join(f"<th scope='col'>{fmt.escape(title)}</th>" for title in heads)
    rows = "".join(
        f"<tr><th scope='row'>{fmt.escape(record['step'])}</th>"
        + "".join(f"<td>{fmt.escape(fmt.number(values[i]))}</td>" for _, values in columns)
        + "</tr>"
        for i, record in enumerate(steps)
    )
    return (
        f"<details id='steps'><summary>Every step as a table</summary><div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _panel(title, steps, series, caption, areas=False, low=None, high=None):
    numbers = [record["step"] for record in steps]
    if areas:
        chart = charts.areas(title, numbers, series, high=high)
    else:
        smooth = _window(steps) if len(series) == 1 else 1
        chart = charts.lines(title, numbers, series, smooth=smooth, low=low, high=high)
    keys = "".join(
        f"<li><i style='--c:{one.colour}'></i>{fmt.escape(one.name)}</li>" for one in series
    )
    legend = f"<ul class='legend' aria-hidden='true'>{keys}</ul>" if len(series) > 1 else ""
    return f"<div class='panel'><h3>{title}</h3><p>{caption}</p>{chart}{legend}</div>"


def _training(steps) -> list[tuple[str, list]]:
    """Return the losses, drifts, ratios and lone numbers of the record: title, a value per step."""
    columns = [
        (f"{group} {name}", _column(steps, group, name))
        for group in ("loss", "drift", "ratio")
        for name in _names(steps, group)
    ]
    lone = dict.fromkeys(
        name
        for record in steps
        for name, value in record.items()
        if isinstance(value, int | float) and name not in ("step", "valid_fraction")
    )
    return columns + [(name.replace("_", " "), _column(steps, name)) for name in lone]


def _small(title, steps, values, hue):
    known = [value for value in values if value is not None]
    fifth = max(1, len(known) // 5)  # single steps are too noisy to compare
    ends = [_average(known[:fifth]), _average(known[-fifth:])]
    form = fmt.score if known and 0.1 <= max(map(abs, ends)) < 10 else fmt.number
    change = f"{form(ends[0])} → {form(ends[1])}" if known else "none"
    chart = charts.lines(
        title,
        [record["step"] for record in steps],
        [Series(title, hue, values)],
        width=300,
        height=150,
        smooth=_window(steps),
    )
    tip = "mean of the first fifth of the steps → of the last fifth"
    return (
        f"<div class='panel'><h3><i style='--c:{hue}'></i>{fmt.escape(title)}"
        f"<span title='{tip}'>{change}</span></h3>{chart}</div>"
    )


def _names(steps, *keys):
    """Return the keys under a path in order of first appearance."""
    return list(dict.fromkeys(name for record in steps for name in get(record, *keys) or {}))


def _column(steps, *keys):
    return [get(record, *keys) for record in steps]


def _average(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _window(steps):
    """Return the length of the running mean: odd, a sixth of the run; 1 for a very short one."""
    return max(3, len(steps) // 6 | 1) if len(steps) >= 8 else 1
