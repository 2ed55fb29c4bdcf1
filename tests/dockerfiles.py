"""Dockerfiles taken apart: instructions in order, with what their arguments stand for."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

VARIABLE = re.compile(r"\$\{(\w+)\}")


class Step(NamedTuple):
    """One instruction, such as RUN, and what follows it in one line; variables are filled in."""

    word: str
    rest: str


class Image(NamedTuple):
    """What a Dockerfile says."""

    arguments: dict[str, str]  # ARG, its default or what was given instead
    steps: list[Step]

    def of(self, word: str) -> list[str]:
        """Return what follows each instruction of this word."""
        return [step.rest for step in self.steps if step.word == word]


def read(file: Path, **arguments: str) -> Image:
    """Read a Dockerfile; arguments as --build-arg gives them. Raises KeyError for unknown ones."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    known, steps = {}, []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "ARG":
            name, _, default = rest.partition("=")
            known[name] = arguments.get(name, default)
        steps.append(Step(word, VARIABLE.sub(lambda match: known[match[1]], rest.strip())))
    for name in arguments:
        known[name]  # a build would refuse it too
    return Image(known, steps)


def copied(image: Image) -> list[tuple[list[str], str]]:
    """Return (sources, target) of every COPY."""
    words = [shlex.split(rest) for rest in image.of("COPY")]
    return [(some[:-1], some[-1]) for some in words]


def modules(text: str) -> set[str]:
    """Return our modules that a file runs: after -m, in a shell's line, a list or YAML."""
    return set(re.findall(r"-m[\s\",\n-]+(evoid_jax(?:\.\w+)+)", text))
