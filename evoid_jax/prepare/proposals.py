"""Prompts that a judge proposes for each photo; kept, so that each photo is asked about once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from evoid_jax import media
from evoid_jax.prepare import prompts

FILE = "proposed.jsonl"
WORKERS = 8  # requests under way at once
log = logging.getLogger(__name__)

Propose = Callable[[np.ndarray, int], list[str]]  # uint8 (H, W, 3), how many -> prompts


class Asked(NamedTuple):
    """A judge that is yet to be reached."""

    name: str  # its model and address; another one is asked again
    open: Callable[[], Propose]  # what it returns may raise OSError or ValueError


def of_pictures(
    files: dict[str, Path], cache: Path, judge: Asked, pool: list[str], count: int
) -> tuple[dict[str, list[str]], int]:
    """Ask for prompts for every picture that was not asked about yet, showing progress.

    Args:
      files: the pictures, by the name of the photo.
      cache: the folder that keeps the answers.
      judge: who is asked.
      pool: prompts that fill in what an answer lacks.
      count: prompts of each picture.

    Returns:
      The prompts by photo, and how many of them the pool had to give.

    Raises:
      ValueError, OSError: the judge cannot be reached, or not one usable prompt came.
    """
    known = _recall(cache)
    key_of = {name: f"{judge.name} {count} {file.name}" for name, file in files.items()}
    absent = [name for name in files if key_of[name] not in known]
    propose = judge.open() if absent else None

    def ask(name: str) -> list[str]:
        try:
            return propose(media.read_image(files[name]), count)
        except (OSError, ValueError) as error:
            log.warning("%s: %s", name, error)
            return []

    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(WORKERS) as executor, open(cache / FILE, "a") as kept:
        kept.write("\n")  # a line that a crash cut off ends here
        answers = executor.map(ask, absent)
        bar = tqdm(answers, "prompts", len(absent), unit="photo", disable=not absent)
        for name, answer in zip(absent, bar, strict=True):
            known[key_of[name]] = answer
            if len(prompts.completed(answer, [], name, count)[0]) == count:  # else asked again
                kept.write(json.dumps({"key": key_of[name], "prompts": answer}) + "\n")
                kept.flush()
    made = {name: prompts.completed(known[key_of[name]], pool, name, count) for name in files}
    filled = sum(missing for _, missing in made.values())
    if filled == count * len(files):
        raise ValueError(f"the judge {judge.name} gave no usable prompt; leave --judge out")
    return {name: texts for name, (texts, _) in made.items()}, filled


def _recall(cache: Path) -> dict[str, list[str]]:
    file, known = cache / FILE, {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            known[values["key"]] = [str(prompt) for prompt in values["prompts"]]
        except (ValueError, TypeError, KeyError, RecursionError):  # a crash cut it off
            continue
    return known
