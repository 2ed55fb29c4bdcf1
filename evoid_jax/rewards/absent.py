"""Scores that are missing: which, why, and how long a run waits for a reward that nobody has.

A reward with weight that no video of a step has would change what the run is rewarded for. So it is
asked for again, and then the run stops, unless it was told to go on. Every process must decide
alike: what is decided on here is known to all of them. B videos, M rewards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evoid_jax.rewards.table import ScoreTable

FIRST, LONGEST = 2.0, 60.0  # seconds between two tries: doubled from the one to the other
SHOWN = 200  # letters of a reason


class MissingReward(ConnectionError):
    """Rewards that cannot be had: one by no video of a step, or enough by none of many steps."""


class Known(NamedTuple):
    """What one process knows of a request's scores besides those that it had at once; JSON."""

    blanks: list[tuple[int, str]]  # (row, reward) that a scorer could not measure
    missing: list[tuple[int, dict[str, str]]]  # (row, reward -> why it is missing)
    had: list[tuple[int, str, float, float]]  # (row, reward, raw, score) of the last try
    watched: list[str]  # monitors that a reply had


def completed(names: tuple[str, ...], scores: ScoreTable, known: list[Known]) -> ScoreTable:
    """Return the scores with those that were had since, and with what is known to be blank."""
    column = {name: m for m, name in enumerate(names)}
    raw_BM, score_BM, valid_BM = (np.array(x) for x in scores[:3])
    blank_BM = np.zeros_like(valid_BM)
    for of_process in known:
        for row, name, raw, score in of_process.had:
            at = row, column[name]
            raw_BM[at], score_BM[at], valid_BM[at] = raw, score, True
        for row, name in of_process.blanks:
            blank_BM[row, column[name]] = True
    return ScoreTable(raw_BM, score_BM, valid_BM, blank_BM & ~valid_BM)


def reasons(
    names: tuple[str, ...], counts_M: np.ndarray, scores: ScoreTable, known: list[Known]
) -> dict[str, int]:
    """Return how many scores that count are missing for each reason, the most frequent first."""
    told = {}
    for of_process in known:
        for row, of_row in of_process.missing:
            told |= {(row, name): why for name, why in of_row.items()}
    missing = np.argwhere(~scores.valid_BM & counts_M[None, :]).tolist()
    # What came too late, or was lost with its shard, left no word.
    why = [told.get((row, names[m]), "no answer in time") for row, m in missing]
    return dict(Counter(shortened(reason) for reason in why).most_common())


def nobody_has(names: tuple[str, ...], counts_M: np.ndarray, scores: ScoreTable) -> list[str]:
    """Return the rewards that count, that no video has, and that an answer is missing of.

    A blank is an answer, which no other try would change.
    """
    answered_BM = scores.valid_BM | scores.blank_BM
    lost_M = counts_M & ~scores.valid_BM.any(axis=0) & ~answered_BM.all(axis=0)
    return [name for name, lost in zip(names, lost_M, strict=True) if lost]


def all_blank(names: tuple[str, ...], counts_M: np.ndarray, scores: ScoreTable) -> list[str]:
    """Return the rewards that count and that could be measured in no video."""
    blank_M = counts_M & scores.blank_BM.all(axis=0)
    return [name for name, blank in zip(names, blank_M, strict=True) if blank]


def pauses(patience: float) -> Iterator[tuple[float, float]]:
    """Yield (seconds to wait before the next try, seconds that are left after it).

    By the sum of the pauses and not by a clock: clocks differ between processes.
    """
    pause, left = FIRST, patience
    while left > 0:
        pause = min(pause, left)
        left -= pause
        yield pause, left
        pause = min(2 * pause, LONGEST)


def shortened(reason: str) -> str:
    """Return a reason in one line of at most SHOWN letters."""
    words = " ".join(reason.split())
    return words if len(words) <= SHOWN else words[: SHOWN - 3] + "..."


def kind(reason: str) -> str:
    """Return a reason without its numbers, so that it can be told once."""
    return re.sub(r"\d+", "#", reason)


def because(why: dict[str, int]) -> str:
    """Say the most frequent reason, and that there are others."""
    first, *others = why or {"no reason is known": 0}
    return f"{first}; and {len(others)} more" if others else first


def check_idle(most: int, steps: int, why: dict[str, int]) -> None:
    """Raise where so many steps in a row had no video to learn from that a run should end.

    Args:
      most: steps that may be so; 0: any number.
      steps: how many the last ones are.
      why: of the last step, scores that are missing for each reason.

    Raises:
      MissingReward: the message says what to do.
    """
    if most and steps >= most:
        raise MissingReward(
            f"no video of the last {steps} steps could be learned from: each lacks a reward with "
            f"weight, or has no other video of its pair to be compared with ({because(why)}). See "
            "to what scores them, and start the run again, which goes on from its newest "
            "checkpoint. To let it idle: --config.reward.idle_steps=0"
        )


def check_blank(most: int, steps: dict[str, int], why: dict[str, int]) -> None:
    """Raise where a reward that counts could be measured in no video of too many steps in a row.

    Args:
      most: steps that may be so; 0: any number.
      steps: of each such reward, how many the last ones are.
      why: of the last step, scores that are missing for each reason.

    Raises:
      MissingReward: the message says what to do.
    """
    gone = [name for name, count in steps.items() if most and count >= most]
    if gone:
        raise MissingReward(
            f"{', '.join(gone)} could be measured in no video of the last {most} steps "
            f"({because(why)}). Look at the videos of the watch and at the scorer's log. To let "
            "it be so: --config.reward.idle_steps=0; to do without it, in another --workdir: "
            "--config.reward.table.NAME.prior=0"
        )


def stopped(lost: list[str], patience: float, why: dict[str, int]) -> MissingReward:
    """Return the error that ends a run, with what to do."""
    return MissingReward(
        f"no video of this step has {', '.join(lost)}, asked for again over {patience:g} s "
        f"({because(why)}). Start what scores them again, and then the run, which goes on from its "
        "newest checkpoint (addresses may change: config.reward.sidecars, config.reward.judge). "
        "To go on with the other rewards alone: --config.reward.on_missing=go_on"
    )
