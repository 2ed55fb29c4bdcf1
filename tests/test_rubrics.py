"""What a judge is asked: names, numbers and forms that belong together, and a user's own texts."""

import hashlib
import json
import re

import pytest

from evoid_jax.reward_groups import GROUPS
from evoid_jax.rewards import evoscore, judge_answers, rubrics


def schema(question):
    assert question.form["type"] == "json_schema" and question.form["json_schema"]["strict"]
    return question.form["json_schema"]["schema"]


@pytest.mark.parametrize(
    ("name", "keys", "numbers"),
    [
        ("vqscore", rubrics.DIMENSIONS, range(1, 11)),
        ("attention", GROUPS, range(11)),
        ("naturalness", ("naturalness",), range(1, 6)),
        ("evoscore", evoscore.ITEMS, range(1, 11)),
    ],
)
def test_a_question_asks_for_whole_numbers_from_a_list_by_the_names_in_its_text(
    name, keys, numbers
):
    """A server that keeps to no range of numbers keeps to a list of them."""
    question = getattr(rubrics.questions(), name)
    asked = schema(question)
    assert asked["required"] == list(keys) == list(asked["properties"])
    assert asked["additionalProperties"] is False
    for kind in asked["properties"].values():
        assert kind == {"type": "integer", "enum": list(numbers)}
    for key in keys:
        assert key in question.text
    # Where no schema is enforced the text alone says what the answer looks like.
    example = re.search(r"\{.*\}", question.text)[0].replace("N", str(numbers[-1]))
    assert question.read(judge_answers.Said(example)) == [numbers[-1]] * len(keys)
    assert f"from {numbers[0]} to {numbers[-1]}" in question.text


def test_proposals_ask_for_as_many_texts_as_wanted():
    question = rubrics.proposals(3)
    texts = schema(question)["properties"]["prompts"]
    assert texts["minItems"] == texts["maxItems"] == 3
    assert "3 different prompts" in question.text
    said = judge_answers.Said(json.dumps({"prompts": ["A man nods.", "A man waves.", "He runs."]}))
    assert question.read(said) == ["A man nods.", "A man waves.", "He runs."]


def test_a_file_replaces_the_texts_that_it_has(tmp_path):
    file = tmp_path / "rubric.toml"
    file.write_text('naturalness = """Is it natural?\nGive naturalness."""\n')
    mine, ours = rubrics.questions(file), rubrics.questions()
    assert mine.naturalness.text.startswith("Is it natural?\nGive naturalness.\nAnswer with")
    assert mine.naturalness.form == ours.naturalness.form
    assert mine.vqscore.text == ours.vqscore.text and mine.attention.text == ours.attention.text


def test_what_there_is_one_of_needs_no_name(tmp_path):
    file = tmp_path / "rubric.toml"
    file.write_text('naturalness = "How real does it look? **Naturalness** counts most."')
    assert '"naturalness": N' in rubrics.questions(file).naturalness.text


def test_the_benchmarks_own_question_is_put_as_it_stands(tmp_path, monkeypatch):
    """Known by a digest in which blanks do not count; its wording is not here."""
    text = "Your task is to grade.\nOnly return the score (1-5)."
    single = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
    monkeypatch.setattr(rubrics, "BENCHMARKS", single)
    file = tmp_path / "rubric.toml"
    file.write_text(f"naturalness = '''\n{text}\n\n'''")
    question = rubrics.questions(file).naturalness
    assert rubrics.is_benchmarks(question) and question.form is None
    assert question.text.strip() == text
    assert not rubrics.is_benchmarks(rubrics.questions().naturalness)
    file.write_text('naturalness = "Is the naturalness of cats good?"')
    assert not rubrics.is_benchmarks(rubrics.questions(file).naturalness)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "beauty = 'how?'",
            "has beauty; it may have the texts vqscore, attention, naturalness, evoscore",
        ),
        ("naturalness = 3", "naturalness must be a text, got 3"),
        ("attention = 'identity, text'", "it does not name quality"),
        ("vqscore = 'how good is it?'", "does not name visual_realism, text_consistency"),
        ("evoscore = 'a face, and its look'", "does not name constancy, setting, action"),
        ("naturalness is", "is not TOML in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_is_refused(text, words, tmp_path):
    file = tmp_path / "rubric.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        rubrics.questions(file)
    with pytest.raises(FileNotFoundError, match="config.reward.judge_rubric"):
        rubrics.questions(tmp_path / "gone.toml")
