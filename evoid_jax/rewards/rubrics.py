"""What a judge is asked, and the form in which it must answer.

The paper names the five dimensions of VQScore, the three of attention and the aspects of EvoScore
(evoscore.py), the benchmark a grade of naturalness from 1 to 5; neither gives us its wording. The
texts are ours, and a user's file may replace them. Numbers are asked for as whole ones from a list:
some servers hold to a list and to no range of other numbers. The benchmark's own question of
naturalness, where a user's file has it, is asked as the benchmark asks: for a number alone.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files
from evoid_jax.reward_groups import GROUPS
from evoid_jax.rewards import evoscore, judge_answers
from evoid_jax.rewards.judge_answers import Said

DIMENSIONS = ("visual_realism", "text_consistency", "identity", "motion", "camera_movement")
VQSCORE = """\
You have seen one or more reference photos of a person and, in order of time, frames of a \
generated video of that person. Grade the video in five dimensions with whole numbers from 1 to 10.
visual_realism: do the frames look like camera footage? 1: hardly recognisable; 4: obvious \
artefacts such as melted hands or smeared textures; 7: small flaws on a close look; 10: flawless.
text_consistency: does it show what the prompt says, person, action, place and style? 1: something \
else; 4: the subject only; 7: all but a detail; 10: everything.
identity: is it the person of the photos, in every frame? 1: someone else; 4: a vague likeness; 7: \
clearly the same with slight drift; 10: unmistakable throughout.
motion: does the person move naturally, smoothly and as much as the prompt asks? 1: frozen or \
jumping about; 4: stiff or jerky; 7: natural with a hitch; 10: like life.
camera_movement: is the camera steady or moving as the prompt asks? 1: shaking or contrary to it; \
4: uneven; 7: right with a wobble; 10: exactly right.
Use the whole range and judge each dimension alone. A frozen copy of a photo deserves a high \
identity but a low motion grade."""
ATTENTION = """\
You have seen one or more reference photos of a person and frames of the best and the worst of \
several videos that a generator made from them and one prompt. The generator is being trained. How \
much does each of three dimensions need improvement? Answer with whole numbers from 0 (nothing to \
gain) to 10 (badly needed).
identity: the likeness to the person of the photos.
text: following the prompt, its action, place and style.
quality: how the video looks and moves: realism, sharpness, natural and steady motion.
Weigh what both videos lack more than what only the worst lacks."""
NATURALNESS = """\
You have seen, in order of time, frames of a video. Could a camera have recorded this in the world \
as it is? Look at bodies (hands, eyes, teeth, limbs that melt, merge or are too many), at things \
that appear, vanish or change their shape, at weight, contact and shadows, and at whether motion \
goes on sensibly from frame to frame. Taste, beauty and sharpness do not count. Give naturalness \
one whole number from 1 to 5.
5: nothing gives it away as generated.
4: natural at first sight, a small oddity on a close look.
3: mostly natural, with an error that anybody notices.
2: several errors, or one that lasts.
1: impossible bodies, things or motion throughout."""
# Digest of the benchmark's question (OpenS2V-Nexus, eval/get_naturalscore.py), blanks made single.
BENCHMARKS = "c5d169333ddf72052de9bd7f74787c7c1052751d48071ef9caea4e25cd218329"
PROPOSALS = """\
You have seen a photo of a person. A model will make short videos of this person from written \
prompts. Write {count} different prompts in English, each of one or two sentences: who it is in \
general words that fit the photo (such as "a young woman"), one action that takes a few seconds, a \
place, how the camera stands or moves, and a light or style. Vary action, place, camera and style \
between the prompts. Name nobody, do not describe the face, and write nothing violent, sexual or \
degrading."""
LONGEST_PROMPT = 700  # letters
# Words of plain letters with one space between. Counted by words: some servers' grammars fail at
# counts of hundreds of letters.
_LETTERS = "[A-Za-z0-9,.;:'()-]"
PLAIN = f"^[A-Za-z]{_LETTERS}{{0,15}}( {_LETTERS}{{1,16}}){{2,39}}$"


class Question(NamedTuple):
    """Something to ask a judge about pictures.

    name: for logs. text: what is asked, after the pictures. form: the `response_format` of the
    request, None without one. read: brings what was said into a list, or raises
    `judge_answers.Unusable`.
    """

    name: str
    text: str
    form: dict | None
    read: Callable[[Said], list]


class Questions(NamedTuple):
    """The questions that are answered in numbers."""

    vqscore: Question
    attention: Question
    naturalness: Question
    evoscore: Question


def questions(file: str | Path = "") -> Questions:
    """Return the questions, with the texts of a file instead of ours where it has any.

    Args:
      file: TOML with one or more of the texts vqscore, attention, naturalness and evoscore; "" is
        none.

    Raises:
      ValueError, OSError: it cannot be read, has another key, or a text that does not name what
        the answer must grade.
    """
    texts = {"vqscore": VQSCORE, "attention": ATTENTION, "naturalness": NATURALNESS}
    texts["evoscore"] = evoscore.RUBRIC
    keys = {"vqscore": DIMENSIONS, "attention": GROUPS, "naturalness": ("naturalness",)}
    keys["evoscore"] = evoscore.ITEMS
    texts |= _texts(Path(file), keys) if str(file) else {}
    return Questions(
        vqscore=graded("vqscore", texts["vqscore"], DIMENSIONS, least=1, most=10),
        # A need with a fraction is as good as a whole one, where a server sends such.
        attention=graded("attention", texts["attention"], GROUPS, 0, 10, whole=False),
        naturalness=_naturalness(texts["naturalness"]),
        evoscore=graded(
            "evoscore", texts["evoscore"], evoscore.ITEMS, evoscore.LEAST, evoscore.MOST
        ),
    )


def is_benchmarks(question: Question) -> bool:
    """Tell whether a question of naturalness is the benchmark's own."""
    return question.form is None


def _naturalness(text: str) -> Question:
    """Return the question of naturalness, answered by one whole number of 1..5.

    The benchmark's own is put as the benchmark puts it, without a form for the answer.
    """
    if hashlib.sha256(" ".join(text.split()).encode()).hexdigest() != BENCHMARKS:
        return graded("naturalness", text, ("naturalness",), 1, 5)
    return Question("naturalness", text, None, partial(judge_answers.grade, least=1, most=5))


def graded(
    name: str, text: str, keys: tuple[str, ...], least: int, most: int, whole: bool = True
) -> Question:
    """Return a question that is answered by one whole number of least..most for each key.

    whole: whether a number with a fraction is refused; asked for are whole ones in any case.
    """
    example = json.dumps(dict.fromkeys(keys, "N")).replace('"N"', "N")
    form = f"Answer with one JSON object only, of this form: {example}, where each N is a whole"
    kind = {"type": "integer", "enum": list(range(least, most + 1))}
    return Question(
        name=name,
        text=f"{text.strip()}\n{form} number from {least} to {most}.",
        form=_form(name, dict.fromkeys(keys, kind)),
        read=partial(judge_answers.numbers, keys=keys, least=least, most=most, whole=whole),
    )


def proposals(count: int) -> Question:
    """Return the question for `count` prompts that suit a photo."""
    item = {"type": "string", "pattern": PLAIN}
    texts = {"type": "array", "items": item, "minItems": count, "maxItems": count}
    form = 'Answer with one JSON object only, of this form: {"prompts": ["...", "..."]}.'
    return Question(
        name="proposals",
        text=f"{PROPOSALS.format(count=count)}\n{form}",
        form=_form("proposals", {"prompts": texts}),
        read=partial(judge_answers.texts, key="prompts", count=count, longest=LONGEST_PROMPT),
    )


def _form(name: str, properties: dict[str, dict]) -> dict:
    """Return a response_format: an object of exactly these properties."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def _texts(file: Path, keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Read a user's texts, and see that each names what the answer must have."""
    file = files.require_file(file, hint="config.reward.judge_rubric names it")
    try:
        texts = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: of a number too long as well
        raise ValueError(f"{file} is not TOML in UTF-8: {error}") from None
    for name, text in texts.items():
        if name not in keys:
            raise ValueError(f"{file} has {name}; it may have the texts {', '.join(keys)}")
        if not isinstance(text, str):
            raise ValueError(f"{file}: {name} must be a text, got {text!r:.60}")
        # What there is but one of goes without a name: the form of the answer names it.
        lacking = [key for key in keys[name] if key not in text] if len(keys[name]) > 1 else []
        if lacking:
            raise ValueError(
                f"{file}: {name} must say what {', '.join(keys[name])} mean, since the answer "
                f"grades them by these names; it does not name {', '.join(lacking)}"
            )
    return texts
