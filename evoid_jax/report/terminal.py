"""Say in a few lines of the terminal what a run came to."""

import textwrap

from evoid_jax import proof, stopping
from evoid_jax.metrics import WIDTH, get
from evoid_jax.report import current, folder, origin
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import RunFolder


def terminal_summary(run: RunFolder) -> str:
    """Return base -> evolved, interval, verdict, changes, monitors, adapter and what to do next.

    Args:
      run: of `folder.load(workdir, videos=0)`, once summary.json and export/ are written.

    Returns:
      At most 14 lines of at most 100 columns, unless a path alone is longer.
    """
    lines = textwrap.wrap(" ".join(current.notice(run)[:1]), WIDTH)
    lines += [] if run.summary is None else _comparison(run.summary)
    short = _short_notes(run)
    if short:
        lines.append(f"note: {short}")
    if run.adapter is not None:
        lines.append("to generate with the adapter:")
        lines += folder.next_command(run.path, run.config, run.adapter).split("\n")
    return fmt.whole("\n".join(lines))


def _comparison(summary) -> list[str]:
    base, evolved = (get(summary, arm, "total") for arm in ("base", "evolved"))
    low, high = summary.get("delta_total_ci95") or (None, None)
    _, verdict = proof.verdict(summary)
    lines = [
        f"total {fmt.score(base)} -> {fmt.score(evolved)}, change "
        f"{fmt.signed(summary.get('delta_total'))}, 95 % interval {fmt.interval(low, high)}"
    ]
    for words in (verdict, stopping.warning(summary)):
        lines += textwrap.wrap(words, WIDTH, max_lines=2, placeholder=" ...")
    changes = [
        f"{name} {fmt.signed(row.get('mean'))}"
        for name, row in (summary.get("delta") or {}).items()
        if name != "total"
    ]
    lines += _listed("rewards", changes, lines=2)
    fallen = proof.fallen(summary)
    monitors = [
        f"{name} {fmt.signed(row.get('mean'))}{' (LOWER)' if name in fallen else ''}"
        for name, row in (summary.get("monitor_delta") or {}).items()
    ]
    lines += _listed("monitors, never rewarded", monitors, lines=1)
    return [line.replace(fmt.MINUS, "-").replace(fmt.NONE, "--") for line in lines]


def _listed(title, items, lines) -> list[str]:
    """Return the items on at most so many lines; what does not fit is counted."""
    for shown in range(len(items), 0, -1):
        rest = len(items) - shown
        more = f", {rest} more in the report" if rest else ""
        wrapped = textwrap.wrap(f"{title}: {', '.join(items[:shown])}{more}", WIDTH)
        if len(wrapped) <= lines:
            return wrapped
    return []


def _short_notes(run) -> str:
    """Return origin.notes in one line of the terminal."""
    words = []
    if origin.stand_ins(run):
        words.append("rewards are small stand-ins")
    if origin.judge_is_heuristic(run):
        words.append("the judge is no language model")
    if get(run.config or {}, "lora", "init"):
        words.append("base has config.lora.init")
    return "; ".join(words)
