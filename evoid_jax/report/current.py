"""Say of which steps a run's result is, where the run has gone on since: numbers stay, and age."""

from __future__ import annotations

from evoid_jax.metrics import get
from evoid_jax.report.folder import RunFolder


def gone_on(run: RunFolder) -> int | None:
    """Return how many steps a run has made where its result is of fewer; else None.

    With config.watch.export=best a result is of an earlier step than the run's last, and still of
    all of it: the summary says how far the run was. An older version's does not.
    """
    if run.summary is None or not run.steps:
        return None
    made, known = run.steps[-1]["step"] + 1, run.summary.get("reached")
    if known is None and get(run.config or {}, "watch", "export") != "best":
        known = run.summary.get("steps")
    return made if known is not None and made > known else None


def notice(run: RunFolder) -> list[str]:
    """Return, in sentences, what a result is of that is not of the run as it is; [] where it is."""
    words, made = [], gone_on(run)
    steps = (run.summary or {}).get("steps")
    if made is not None:
        planned = get(run.config or {}, "steps")
        aim = f" of {planned}" if isinstance(planned, int) and planned > made else ""
        words += [
            f"This result is of {steps} steps; the run has gone on to step {made}{aim}.",
            "What it has become since has not been compared with its base.",
        ]
    if run.outdated:
        words += [
            "A later proof has begun and not ended: the adapter in export/ and some of the videos "
            "are already its own.",
            "So no video has scores beside it.",
        ]
    return words
