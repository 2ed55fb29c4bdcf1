"""Build the sections of a report that show a run over its steps: rewards, weights, training."""

from evoid_jax import report_charts as charts
from evoid_jax import report_text as fmt
from evoid_jax.metrics import get, weighted
from evoid_jax.report_charts import Series

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
SPARE = ("var(--slate)", "var(--violet)", "var(--red)", "var(--amber)")
INK = "var(--accent)"


def colour(name: str) -> str:
    """Return the CSS colour of a reward, group or phase; the same for a name in every chart."""
    return COLOURS.get(name) or SPARE[sum(name.encode()) % len(SPARE)]


def rewards(steps) -> str:
    """Return the reward curves: overall, unified, and each reward's mean score."""
    if not steps:
        return fmt.section("rewards", "Rewards", "<p class='empty'>No step is logged yet.</p>")
    names = _names(steps, "reward/score")
    mean = {name: _average(_column(steps, f"weights/{name}")) or 0.0 for name in names}
    overall = [weighted(get(record, "reward/score") or {}, mean) for record in steps]
    unified = _column(steps, "reward/unified")
    pair = _panel(
        "Mean score of the rollouts",
        steps,
        [Series("score", INK, overall)],
        "All rewards, each with its average weight over the run.",
    ) + _panel(
        "Unified reward",
        steps,
        [Series("unified", INK, unified)],
        "Normalised within each group of videos: near one half by construction.",
        low=0.0,
        high=1.0,
    )
    small = "".join(_small(name, steps, f"reward/score/{name}", colour(name)) for name in names)
    note = (
        "Mean absolute score, 0 to 1, of each step's videos. Every step has other faces and "
        "prompts; the line is a running mean, the points are the steps."
    )
    body = f"<div class='pair'>{pair}</div><div class='small'>{small}</div>"
    return fmt.section("rewards", "Rewards", body, note)


def weights(steps) -> str:
    """Return the final weights by reward, stacked, and the judge's attention by group."""
    names, groups = _names(steps, "weights"), _names(steps, "attention")
    if not names:
        return ""
    stack = [Series(name, colour(name), _column(steps, f"weights/{name}")) for name in names]
    body = _panel(
        "Final weights", steps, stack, "They sum to one at every step.", areas=True, high=1
    )
    if groups:
        focus = [Series(name, colour(name), _column(steps, f"attention/{name}")) for name in groups]
        body += _panel("The judge's attention", steps, focus, "0 to 10 by group.", low=0, high=10)
    note = "How the prior and the judge's attention share the reward."
    return fmt.section("weights", "Weights", f"<div class='pair'>{body}</div>", note)


def health(steps) -> str:
    """Return losses, drifts, gradient norm, valid fraction and the seconds per phase."""
    if not steps:
        return ""
    paths = {
        "loss total": "loss/total",
        "loss policy": "loss/policy",
        "loss t2v": "loss/t2v",
        "loss self": "loss/self",
        "drift stable": "drift/evo_stb",
        "drift initial": "drift/evo_init",
        "drift teacher": "drift/evo_t2v",
        "gradient norm": "grad_norm",
    }
    small = "".join(
        _small(title, steps, path, INK)
        for title, path in paths.items()
        if any(value is not None for value in _column(steps, path))
    )
    phases = [name for name in _names(steps, "seconds") if name != "total"]
    stack = [Series(name, colour(name), _column(steps, f"seconds/{name}")) for name in phases]
    pair = _panel("Seconds per phase", steps, stack, "Phases may overlap.", areas=True)
    valid = [Series("valid", INK, _column(steps, "valid_fraction"))]
    about = "Share of the scores obtained; missing ones are masked."
    pair += _panel("Valid scores", steps, valid, about, low=0.0, high=1.0)
    note = (
        "Drift: mean absolute difference between the evolving velocity and the stable, initial or "
        "teacher velocity on the same noisy latents."
    )
    body = f"<div class='small'>{small}</div><div class='pair'>{pair}</div>"
    return fmt.section("training", "Training", body, note)


def every_step(steps) -> str:
    """Return the curves' numbers as a folded table."""
    if not steps:
        return ""
    names = _names(steps, "reward/score")
    paths = {"unified": "reward/unified"} | {name: f"reward/score/{name}" for name in names}
    paths |= {"loss": "loss/total", "drift": "drift/evo_stb", "grad": "grad_norm"}
    paths |= {"valid": "valid_fraction", "seconds": "seconds/total"}
    head = "".join(f"<th scope='col'>{fmt.escape(name)}</th>" for name in ("step", *paths))
    rows = "".join(
        f"<tr><th scope='row'>{fmt.escape(record['step'])}</th>"
        + "".join(
            f"<td>{fmt.escape(fmt.number(get(record, path)))}</td>" for path in paths.values()
        )
        + "</tr>"
        for record in steps
    )
    return (
        f"<details id='steps'><summary>Every step as a table</summary><div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _panel(title, steps, series, about, areas=False, low=None, high=None):
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
    return f"<div class='panel'><h3>{title}</h3><p>{about}</p>{chart}{legend}</div>"


def _small(title, steps, path, hue):
    values = _column(steps, path)
    known = [value for value in values if value is not None]
    fifth = max(1, len(known) // 5)
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


def _names(steps, path):
    """Return the keys under path in order of first appearance."""
    return list(dict.fromkeys(name for record in steps for name in get(record, path) or {}))


def _column(steps, path):
    return [get(record, path) for record in steps]


def _average(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _window(steps):
    return max(3, len(steps) // 6 | 1) if len(steps) >= 8 else 1
