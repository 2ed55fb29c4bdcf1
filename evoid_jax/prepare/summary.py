"""What a call has made, in the words that it ends with."""

from __future__ import annotations

from evoid_jax.data.rows import SPLITS
from evoid_jax.prepare import people
from evoid_jax.prepare.job import Options, Result, counts, photos_in
from evoid_jax.proof import ENOUGH

SHOWN = 3  # pairs of people, or photos, that a note names


def lines(options: Options, result: Result) -> list[str]:
    """Return the summary: what was found, what was refused, where it is, what to do next."""
    used, refused = len(photos_in(result.people)), result.refused
    out = options.out
    told = [
        f"photos   {used + len(refused)}, {result.looked} of them looked at now",
        f"refused  {len(refused)}" + (f": {counts(refused)}" if refused else ""),
        f"people   {len(result.people)} in {_many(used, 'photo')}: {_splits(result)}",
        f"pairs    {result.lines} in {out / 'prompts.jsonl'}, {options.per_face} prompts a photo",
        f"look at  {result.sheet}",
        "train    python -m evoid_jax.train --config=configs/evoid.py:vace_1_3b "
        f"--workdir=runs/faces --config.data.dir={out} --config.reward.judge=http://HOST:8200/v1",
    ]
    return told + [f"note: {note}" for note in notes(options, result)]


def _splits(result: Result) -> str:
    of_split = {split: [p for p in result.people if p.split == split] for split in SPLITS}
    return ", ".join(
        f"{split} {len(found)} ({_many(len(photos_in(found)), 'photo')})"
        for split, found in of_split.items()
    )


def notes(options: Options, result: Result) -> list[str]:
    """Return what a user should know before training, one sentence each."""
    found, told = result.people, []
    apart = sum(person.split == "heldout" for person in found)
    if apart < ENOUGH:
        told.append(
            f"{_people(apart)} held out, and the proof gives no verdict under {ENOUGH}: add "
            f"people, or raise --heldout={options.heldout:g}"
        )
    if result.moved:
        shown = ", ".join(result.moved[:SHOWN])
        told.append(
            f"{_people(len(result.moved))} now of another split: {shown}; do not prove a run on "
            "people that it has learned from"
        )
    alike = people.look_alikes(found, options.alike)
    if alike:
        shown = ", ".join(f"{x.one} and {x.other} ({x.cosine:.2f})" for x in alike[:SHOWN])
        told.append(
            f"{_many(len(alike), 'pair')} of people look alike: {shown}; see the contact sheet"
        )
    strange = [p.name for person in found for p in people.strangers(person, options.alike)]
    if strange:
        shown = ", ".join(strange[:SHOWN])
        told.append(f"{len(strange)} photos are unlike the others of their person: {shown}")
    if result.filled:
        told.append(
            f"{result.filled} of {result.lines} prompts are of the built-in ones, where the judge "
            "gave too few; the same command asks again"
        )
    return told


def _people(count: int) -> str:
    return "1 person is" if count == 1 else f"{count} people are"


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
