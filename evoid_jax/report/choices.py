"""Read what people chose on a blind page, and say how often each arm was preferred.

An answers file is what the page saves:

    {"schema": 1, "study": NAME, "rater": NAME, "saved": UTC, "answers": [ANSWER, ...]}
    ANSWER = {"trial": NAME, "question": NAME, "left": VIDEO, "right": VIDEO, "choice": VIDEO or
              null where it was skipped, "seconds": float}

Videos go by their fingerprints, see study.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from scipy import special

from evoid_jax import files
from evoid_jax.report import charts, study
from evoid_jax.report import text as fmt
from evoid_jax.report.study import Trial

SCHEMA = 1
PATTERN = "answers*.json"  # in the study's folder these are read by themselves


class Preference(NamedTuple):
    """How often the second arm was preferred to the first in one question."""

    first: str
    second: str
    question: str
    wins: int  # of the second
    answers: int
    raters: int


class Tally(NamedTuple):
    """All that people chose."""

    preferences: list[Preference]
    left: int  # answers for the left side, whatever was there
    answers: int
    skipped: int
    foreign: int  # answers on trials that these runs do not have
    raters: int


class Answer(NamedTuple):
    """One choice, checked."""

    rater: str
    trial: str
    question: str
    left: str
    choice: str | None


class Saved(NamedTuple):
    """What an answers file holds."""

    when: str  # UTC, as the page writes it: of two texts the later one is greater
    study: str
    rater: str
    answers: list[Answer]


def counted(
    place: Path,
    trials: Sequence[Trial],
    given: Sequence[str | Path],
    run: Path | None = None,
) -> Tally | None:
    """Read the answers in `place/blind` and those given besides; None where there are none.

    A file holds all that a person has answered so far, and takes back what it no longer holds: of
    one person's files of one study only the newest counts, whatever the browser called it.

    Args:
      run: a folder whose `blind` may have answers too, where the page goes elsewhere.

    Raises:
      OSError, ValueError: a file is missing or of something else; or some were given, and no
        answer is about these trials.
    """
    places = [place] if run is None else [place, run]
    there = [file for one in places for file in sorted((one / study.FOLDER).glob(PATTERN))]
    every = list(dict.fromkeys([*there, *map(files.user_path, given)]))
    if not every:
        return None
    held = sorted(map(read, every), key=lambda one: one.when)
    newest = {(one.study, one.rater): one for one in held}
    last = sorted(newest.values(), key=lambda one: one.when)
    made = tally(trials, [answer for one in last for answer in one.answers])
    # Those that merely lie there may be of videos that were made anew; the page says so.
    if given and not made.answers and not made.skipped:
        raise ValueError(
            f"no answer in {', '.join(map(str, every))} is about videos of these runs: give the "
            "runs that the blind page was made of, in any order"
        )
    return made


def tally(trials: Sequence[Trial], answers: Sequence[Answer]) -> Tally:
    """Count what was chosen on the trials.

    A person who answered a question of a trial in two studies counts with the later answer.
    """
    known = {trial.name: trial for trial in trials}
    latest = {(one.rater, one.trial, one.question): one for one in answers}
    ours = [one for one in latest.values() if _is_about(one, known.get(one.trial))]
    chosen = [one for one in ours if one.choice is not None]
    return Tally(
        preferences=_preferences(known, chosen),
        left=sum(one.choice == one.left for one in chosen),
        answers=len(chosen),
        skipped=len(ours) - len(chosen),
        foreign=len(latest) - len(ours),
        raters=len({one.rater for one in chosen}),
    )


def interval(wins: int, answers: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson 1934)."""
    low = special.betaincinv(wins, answers - wins + 1, 0.025) if wins else 0.0
    high = special.betaincinv(wins + 1, answers - wins, 0.975) if wins < answers else 1.0
    return float(low), float(high)


def read(file: Path) -> Saved:
    """Read an answers file. One that does not say when it was saved goes by its own date.

    Raises:
      OSError: there is none. ValueError: it is of something else; the message names it.
    """
    made = files.read_json(file, dict, "expected answers that the blind page saved")
    if made.get("schema") != SCHEMA:
        raise ValueError(
            f"{file} has schema {made.get('schema')!r:.60}, expected {SCHEMA}: it is no answers "
            "file of a blind page, or one of another version"
        )
    of, rater, rows = made.get("study"), made.get("rater"), made.get("answers")
    if not isinstance(of, str) or not isinstance(rater, str) or not isinstance(rows, list):
        raise ValueError(
            f"{file}: expected a study's name, a rater's name and a list of answers; give the file "
            "as the blind page saved it"
        )
    dated = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    when = made.get("saved", dated)
    if not isinstance(when, str):
        raise ValueError(f"{file}: expected a time as saved, got {when!r:.60}")
    answers = [_answer(file, rater, i, row) for i, row in enumerate(rows)]
    return Saved(when, study=of, rater=rater, answers=answers)


def section(made: Tally) -> str:
    """Return the section on what people chose."""
    note = (
        "Two-alternative forced choice on the blind page: photo, prompt and two videos, sides and "
        f"order shuffled. {_many(made.answers, 'answer')} of "
        f"{_many(made.raters, 'person', 'people')}"
    )
    note += f", {made.skipped} skipped" if made.skipped else ""
    note += f", {made.foreign} about other videos left out" if made.foreign else ""
    if made.answers:
        note += f"; the left side was chosen in {fmt.share(made.left / made.answers)}"
    note += ". Intervals: exact binomial, 95 %, each answer taken as independent of the others."
    if not made.preferences:
        return fmt.section("choices", "What people chose", "", note)
    heads = ("question", "preferred", "95 % interval", "", "answers", "people")
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("second over first", *heads))
    rows = "".join(_row(one, heads) for one in made.preferences)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return fmt.section("choices", "What people chose", fmt.rows(table), note)


def _is_about(answer: Answer, trial: Trial | None) -> bool:
    """Tell whether an answer is about the videos of a trial that is there, and to a question."""
    if trial is None or answer.question not in study.QUESTIONS:
        return False
    return {answer.left, answer.choice} - {None} <= {*trial.videos}


def _row(one: Preference, heads: Sequence[str]) -> str:
    share, (low, high) = one.wins / one.answers, interval(one.wins, one.answers)
    kind = "up" if low > 0.5 else "down" if high < 0.5 else "flat"
    between = f"{fmt.share(low)} to {fmt.share(high)}"
    label = f"{one.second} over {one.first}, {one.question}: {fmt.share(share)}, {between}"
    picture = charts.interval(label, share - 0.5, low - 0.5, high - 0.5, 0.5, kind)
    cells = (
        fmt.escape(one.question),
        f"<b class='{kind}'>{fmt.share(share)}</b>",
        between,
        picture,
        str(one.answers),
        str(one.raters),
    )
    body = "".join(
        f"<td data-head='{head}'>{cell}</td>" for head, cell in zip(heads, cells, strict=True)
    )
    return (
        f"<tr><th scope='row'>{fmt.escape(one.second)} over {fmt.escape(one.first)}</th>{body}</tr>"
    )


def _preferences(known: dict[str, Trial], chosen: list[Answer]) -> list[Preference]:
    """Count wins by the arms of a trial and by question, in the order of trials and questions."""
    counts: dict[tuple, list[tuple[str, bool]]] = {}
    for trial in known.values():
        for arms in trial.arms:
            for question in study.QUESTIONS:
                counts.setdefault((*_ordered(arms), question), [])
    for one in chosen:
        for arms in known[one.trial].arms:
            key = (*_ordered(arms), one.question)
            if key in counts:
                counts[key].append((one.rater, arms[one.choice] == key[1]))
    return [
        Preference(
            first=first,
            second=second,
            question=question,
            wins=sum(won for _, won in rows),
            answers=len(rows),
            raters=len({rater for rater, _ in rows}),
        )
        for (first, second, question), rows in counts.items()
        if rows
    ]


def _ordered(arms: dict[str, str]) -> tuple[str, str]:
    """Return a trial's arms in the order in which they were given."""
    first, second = arms.values()
    return first, second


def _answer(file: Path, rater: str, index: int, row) -> Answer:
    row = row if isinstance(row, dict) else {}
    words = [row.get(key) for key in ("trial", "question", "left", "right")]
    choice = row.get("choice")
    named = all(isinstance(word, str) for word in words) and isinstance(choice, str | None)
    if not named or choice not in {*words[2:], None}:
        raise ValueError(
            f"{file}: answer {index} does not name a trial, a question, two videos and one of them "
            f"as the choice, got {row!r:.80}"
        )
    return Answer(rater, row["trial"], row["question"], row["left"], choice)


def _many(count: int, word: str, several: str = "") -> str:
    return f"{count} {word if count == 1 else several or word + 's'}"
