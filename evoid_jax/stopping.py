"""What the watch's comparisons say: which was best, whether a reward is gamed, whether to stop.

All of it follows from the summaries alone (`proof.summary`, with the step and the drift), so that a
run that is resumed, and `convert --which=best`, come to the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evoid_jax import proof
from evoid_jax.groups import Watch


def gamed(summary: Mapping) -> str:
    """Say how a reward was gamed, in one sentence, or return "".

    A reward with weight has clearly risen, and a measure that is never rewarded has clearly fallen.
    """
    rewarded = proof.rewarded(summary)
    risen = [name for name in rewarded if proof.direction_of(summary, "delta", name) == "up"]
    fallen = proof.fallen(summary)
    if not risen or not fallen:
        return ""
    return f"{', '.join(risen)} rose, and {', '.join(fallen)}, not rewarded, fell"


def warning(summary: Mapping) -> str:
    """Return `gamed` as it is told to people, in the terminal and the report alike; or ""."""
    how = gamed(summary)
    return f"possible reward hacking: {how}" if how else ""


def comparable(watched: Sequence[Mapping]) -> list[Mapping]:
    """Return the comparisons whose scores are by the scorers of the last one.

    One of an older version does not say whose its are, and counts.
    """
    return [one for one in watched if one.get("scorers") in (None, watched[-1].get("scorers"))]


def best(watched: Sequence[Mapping]) -> Mapping | None:
    """Return the comparison with the highest total among those in which nothing was gamed.

    watched: in the order of their steps; those of other scorers than the last one's are left out.
    Of equal ones the earliest; None where all were gamed.
    """
    sound = [
        summary
        for summary in comparable(watched)
        if summary.get("delta_total") is not None and not gamed(summary)
    ]
    return max(sound, key=lambda summary: summary["delta_total"], default=None)


def reason(cfg: Watch, watched: Sequence[Mapping], stop_on_hacking: bool = False) -> str:
    """Say why a run should stop after its last comparison, or return "".

    Args:
      cfg: config.watch, with the other rules.
      watched: in the order of their steps.
      stop_on_hacking: config.reward.stop_on_hacking.
    """
    if not watched:
        return ""
    watched, last = comparable(watched), watched[-1]
    if stop_on_hacking and (said := warning(last)):
        return said
    drift = last.get("drift")
    if cfg.drift and drift is not None and drift > cfg.drift:
        return f"the evolved model is {drift:.3g} from its start, more than {cfg.drift:g}"
    if cfg.patience and len(watched) > cfg.patience:
        top = best(watched)
        since = [summary for summary in watched if top is None or summary["steps"] > top["steps"]]
        if len(since) >= cfg.patience:
            at = "none was sound" if top is None else f"the best is that of step {top['steps']}"
            return f"no better total in {len(since)} comparisons: {at}"
    return ""
