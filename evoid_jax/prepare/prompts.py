"""Prompts for photos: composed of our own words, read from a file, or proposed by a judge."""

from __future__ import annotations

import hashlib
from pathlib import Path

from evoid_jax import files
from evoid_jax.data.folder import check_prompt
from evoid_jax.prepare import words

TURNS = 3  # actions from anywhere that each place gets beside its own


def bank() -> list[str]:
    """Compose the built-in prompts: 144, all different, in a fixed order.

    Every place comes six times, every action from anywhere too; cameras and styles take turns.
    """
    deeds = []
    for p, (place, *own) in enumerate(words.PLACES):
        first = TURNS * p
        anywhere = [words.ANYWHERE[(first + k) % len(words.ANYWHERE)] for k in range(TURNS)]
        deeds += [f"A person {deed} {place}." for deed in (*own, *anywhere)]
    # 3 and 2 have no factor in common with 10 cameras and 9 styles: each takes all its turns, and
    # 90 prompts pass before a camera meets the same style again.
    return [
        f"{deed} {words.CAMERAS[3 * n % len(words.CAMERAS)]} "
        f"{words.STYLES[2 * n % len(words.STYLES)]}"
        for n, deed in enumerate(deeds)
    ]


def read(path: str | Path) -> list[str]:
    """Read a user's prompts: one a line, UTF-8; blank lines are skipped.

    Raises:
      OSError, ValueError: no such text file, no prompt, an unusable or a repeated one; names file
        and line.
    """
    file = files.require_file(files.user_path(path), "expected a text file, one prompt a line")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        prompt = line.strip()
        if not prompt:
            continue
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        if prompt in lines:
            raise ValueError(f"{file}, line {number} repeats line {lines[prompt]}; remove one")
        lines[prompt] = number
    if not lines:
        raise ValueError(f"{file} holds no prompt; write one a line")
    return list(lines)


def choose(pool: list[str], key: str, count: int) -> list[str]:
    """Choose prompts for one photo, by its key alone.

    More photos change nobody's prompts. A longer pool changes few: a prompt that joins can only
    take the place of one that was chosen.

    Args:
      pool: all prompts, each once.
      key: of the photo, such as the digest of its file.
      count: how many, at most all of them.
    """
    drawn = {text: hashlib.sha256(f"{key}\n{text}".encode()).digest() for text in pool}
    return sorted(pool, key=drawn.__getitem__)[:count]


def completed(proposed: list[str], pool: list[str], key: str, count: int) -> tuple[list[str], int]:
    """Take usable and different proposals; fill up from the pool.

    Returns:
      `count` prompts, and how many of them the pool had to give.
    """
    kept: list[str] = []
    for text in proposed:
        prompt = " ".join(str(text).split())
        if usable(prompt) and prompt not in kept and len(kept) < count:
            kept.append(prompt)
    others = [text for text in pool if text not in kept]
    missing = count - len(kept)
    return kept + choose(others, key, missing), missing


def usable(prompt: str) -> bool:
    """Tell whether a data folder would take a prompt."""
    try:
        check_prompt(prompt)
    except ValueError:
        return False
    return True
