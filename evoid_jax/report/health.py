"""Build the report's section on the rewards' health: whether they could still tell videos apart.

A reward that is the same for every video of a pair, stands at an end of its range, or is missing,
teaches nothing, whatever its mean says.
"""

from evoid_jax import proof
from evoid_jax.metrics import get
from evoid_jax.report import text as fmt

FLAT = 1e-4  # a spread below this is no difference between videos
STUCK = 0.5  # a larger share of scores at 0 or 1 leaves little to tell apart
HEADS = ("score", "spread", "at 0 or 1", "missing", "")


def section(steps: list[dict], hues) -> str:
    """Return the section, or nothing where the record has no spreads, as older runs' has none.

    hues: name of a reward -> CSS colour.
    """
    names = list(
        dict.fromkeys(n for record in steps for n in get(record, "reward", "spread") or {})
    )
    if not names:
        return ""
    note = (
        "Means over the last fifth of the steps. Spread: standard deviation of the scores within a "
        "pair's videos. At 0 or 1: share of the scores that have no room left on one side."
    )
    last = steps[-max(1, len(steps) // 5) :]
    rows = "".join(_row(name, last, hues) for name in names)
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("reward", *HEADS))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return fmt.section("health", "Health of the rewards", fmt.rows(table), note)


def remark(spread: float | None, saturated: float | None, missing: float | None) -> str:
    """Say what keeps a reward from teaching, or return "".

    Args:
      spread: of its scores within a pair. saturated, missing: shares of its scores.
    """
    words = []
    if spread is not None and spread < FLAT:
        words.append("the same for all videos of a pair")
    if saturated is not None and saturated > STUCK:
        words.append("mostly at an end of its range")
    if missing is not None and missing > proof.MISSING:
        words.append("often missing")
    return ", ".join(words)


def _row(name: str, steps: list[dict], hues) -> str:
    score = _mean(steps, "reward", "score", name)
    spread = _mean(steps, "reward", "spread", name)
    saturated = _mean(steps, "reward", "saturated", name)
    missing = _mean(steps, "missing", name)
    said = remark(spread, saturated, missing)
    cells = (
        fmt.score(score),
        fmt.number(spread),
        fmt.share(saturated),
        fmt.share(missing),
        f"<mark>{said}</mark>" if said else "",
    )
    head = f"<i style='--c:{hues[name]}'></i>{fmt.escape(name)}"
    named = zip(HEADS, cells, strict=True)
    body = "".join(f"<td data-head='{title}'>{cell}</td>" for title, cell in named)
    return f"<tr><th scope='row'>{head}</th>{body}</tr>"


def _mean(steps: list[dict], *keys: str) -> float | None:
    known = [value for record in steps if (value := get(record, *keys)) is not None]
    return sum(known) / len(known) if known else None
