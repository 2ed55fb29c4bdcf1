"""What servers reply, read: each case is a reply as some server or model sends it."""

import json
import math

import pytest

from evoid_jax.rewards import judge_answers
from evoid_jax.rewards.judge_answers import Said, Token, Unusable

KEYS = ("identity", "motion")
GOOD = '{"identity": 3, "motion": 10}'
DRAFT = '{"identity": 9, "motion": 9}'


def read(said, **bounds):
    said = Said(said) if isinstance(said, str) else said
    return judge_answers.numbers(said, **({"keys": KEYS, "least": 1, "most": 10} | bounds))


@pytest.mark.parametrize(
    "said",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is my grade:\n{GOOD}\nI hope that helps {{smile}}.",
        f"First I thought {DRAFT}, but it is {GOOD}.",
        f"<think>Perhaps {DRAFT}?</think>\n{GOOD}",
        f"Perhaps {DRAFT}?\n</think>\n\n{GOOD}",  # the template had opened it
        f"[THINK]Perhaps {DRAFT}?[/THINK]{GOOD}",
        f"◁think▷Perhaps {DRAFT}?◁/think▷{GOOD}",
        f"<think>So it is\n{GOOD}\n",  # never closed, and this is what it ends in
        f'{{"grades": {GOOD}}}',
        '{"motion": "10", "identity": " 3 "}',
        '{"identity": 3.0, "motion": "10.0"}',
        '{"identity": "3/10", "motion": "10 / 10"}',
        '{"why": "stiff, a {brace}", "identity": 3, "motion": 10}',
        Said("", reasoning=GOOD),
        Said("  \n", reasoning=f"The face drifts, {DRAFT} is too much:\n```{GOOD}```"),
        Said(GOOD, reasoning=f"Perhaps {DRAFT}?"),
        Said(f"{GOOD}     \n  ", finish="length"),  # blanks up to max_tokens
        Said(GOOD, finish="stop"),
        Said(GOOD, finish="some word of a server's own"),
    ],
    ids=str,
)
def test_an_answer_is_found_wherever_it_is_put(said):
    assert read(said) == [3, 10]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("seven", "expected a JSON object with identity, motion, got 'seven'"),
        ("", "expected a JSON object"),
        ("[3, 10]", "expected a JSON object"),
        ('{"identity": 3}', "expected a JSON object"),
        ('{"identity": 3, "motion": 10, "beauty": 7}', "expected a JSON object"),
        ('{"identity": 3, "motion": 10, "identity": 4}', "expected a JSON object"),
        ("{" * 5000, "expected a JSON object"),
        ('{"a":' * 3000, "expected a JSON object"),
        ('{"identity": 3, "motion": 11}', "motion: expected a whole number 1..10, got '11'"),
        ('{"identity": 0, "motion": 9}', "identity: expected a whole number 1..10"),
        ('{"identity": 3, "motion": 7.5}', "got '7.5'"),
        ('{"identity": 3, "motion": true}', "got 'true'"),
        ('{"identity": 3, "motion": null}', "got 'null'"),
        ('{"identity": 3, "motion": NaN}', "got 'NaN'"),
        ('{"identity": 3, "motion": 1e999}', "got 'Infinity'"),
        ('{"identity": 3, "motion": "seven"}', "got 'seven'"),
        ('{"identity": 3, "motion": "7/5"}', "got '7/5'"),
        ('{"identity": 3, "motion": "-7"}', "got '-7'"),
        ('{"identity": 3, "motion": [7]}', r"got '\[7\]'"),
        ('{"identity": 3, "motion": %s}' % ("9" * 5000), "expected a JSON object"),
        (Said("", refusal="I cannot judge people."), "refused: 'I cannot judge people.'"),
        (Said(GOOD, refusal="No."), "refused"),
        ("I'm sorry, but I can't help with that.", "got \"I'm sorry"),
        (Said(GOOD, finish="content_filter"), "content filter"),
        (Said('{"identity": 3, "mot', finish="length"), "max_tokens.*judge_tokens"),
        (Said("", reasoning=f"Perhaps {DRAFT}? Or", finish="length"), "max_tokens"),
        (Said(f"<think>Perhaps {DRAFT}? Or", finish="length"), "max_tokens"),
        (Said("", reasoning=f"Perhaps {DRAFT}? No, I will not say."), "did not answer"),
        (f"<think>Perhaps {DRAFT}? I wonder", "did not answer"),
        (f"<think>{GOOD}</think> I would rather not.", "expected a JSON object"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_no_answer_is_told_and_not_guessed(said, words):
    with pytest.raises(Unusable, match=words):
        read(said)


def test_a_need_may_have_a_fraction():
    said = '{"identity": 2.5, "motion": "4"}'
    assert read(said, least=0, whole=False) == [2.5, 4]
    with pytest.raises(Unusable, match="a number 0..10, got '10.5'"):
        read('{"identity": 10.5, "motion": 4}', least=0, whole=False)


def message(content, **more):
    return {"choices": [{"message": {"content": content} | more, "finish_reason": "stop"}]}


def test_a_reply_is_taken_apart():
    assert judge_answers.said(message("a")) == Said("a", finish="stop")
    parts = [{"type": "text", "text": "a"}, {"type": "other"}, {"type": "text", "text": "b"}]
    assert judge_answers.said(message(parts)).text == "ab"
    for name in ("reasoning_content", "reasoning"):
        said = judge_answers.said(message(None, **{name: "hm", "refusal": None}))
        assert said == Said("", reasoning="hm", finish="stop")
    assert judge_answers.said(message("", refusal="no")).refusal == "no"
    bare = {"choices": [{"message": {"content": "a"}, "finish_reason": None}]}
    assert judge_answers.said(bare) == Said("a")


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        "hello",
        {},
        {"choices": []},
        {"choices": [7]},
        {"choices": [{"text": "a"}]},
        {"error": {"message": "overloaded"}},
    ],
    ids=str,
)
def test_a_reply_of_another_shape_is_told(reply):
    with pytest.raises(Unusable, match="expected a chat completion with a message, got"):
        judge_answers.said(reply)


# --- expected values


def tokens(*rows):
    """Return tokens of (text, {alternative: probability})."""
    return tuple(
        Token(text, tuple((other, math.log(p)) for other, p in (likely or {text: 1.0}).items()))
        for text, likely in rows
    )


def test_a_grade_is_the_expected_value_over_what_might_have_been_said():
    """Tokens as Qwen cuts them: digits apart. 0.5 * 7 + 0.25 * 8 + 0.25 * 3 = 6.25 by hand."""
    said = Said(
        '{"identity": 7, "motion": 4}',
        tokens=tokens(
            ('{"identity": ', None),
            ("7", {"7": 0.5, "8": 0.25, "3": 0.25}),
            (', "motion":', None),
            (" 4", {" 4": 0.4, " 5": 0.4, "x": 0.1, " 12": 0.1}),  # what is no grade has no part
            ("}", None),
        ),
    )
    assert read(said) == pytest.approx([6.25, 4.5])


def test_ten_is_two_tokens_for_some_and_one_for_others():
    after = (', "motion": 4}', None)
    two = tokens(
        ('{"identity": ', None), ("1", {"1": 0.5, "9": 0.5}), ("0", {"0": 0.8, ",": 0.2}), after
    )
    # 0.5 * 9 + 0.5 * (0.8 * 10 + 0.2 * 1)
    assert read(Said('{"identity": 10, "motion": 4}', tokens=two))[0] == pytest.approx(8.6)
    one = tokens(('{"identity": ', None), ("10", {"10": 0.5, "1": 0.25, "9": 0.25}), after)
    assert read(Said('{"identity": 10, "motion": 4}', tokens=one))[0] == pytest.approx(7.5)
    # Where another grade was said, a 1 stands for the one of 1 and 10 that is nearer to it.
    nine = tokens(('{"identity": ', None), ("9", {"9": 0.5, "1": 0.5}), after)
    assert read(Said('{"identity": 9, "motion": 4}', tokens=nine))[0] == pytest.approx(9.5)
    two = tokens(('{"identity": ', None), ("2", {"2": 0.5, "1": 0.5}), after)
    assert read(Said('{"identity": 2, "motion": 4}', tokens=two))[0] == pytest.approx(1.5)


def test_the_expected_value_is_of_the_answer_and_not_of_the_thinking_before_it():
    thinking = tokens(("<think>", None), (DRAFT, None), ("</think>", None))
    answer = tokens(('{"identity": ', None), ("3", {"3": 0.5, "4": 0.5}), (', "motion": 10}', None))
    said = Said(f"<think>{DRAFT}</think>{GOOD}", tokens=thinking + answer)
    assert read(said) == pytest.approx([3.5, 10])


def test_without_usable_logprobs_a_grade_is_what_was_said():
    assert read(Said(GOOD, tokens=tokens(("something else", None)))) == [3, 10]
    reply = message(GOOD)
    for rows in (None, {}, {"content": None}, {"content": [{"token": "a"}]}, {"content": 7}):
        reply["choices"][0]["logprobs"] = rows
        assert judge_answers.said(reply).tokens == ()
    rows = [{"token": t, "logprob": -1.0, "top_logprobs": []} for t in ("a", "b")]
    reply["choices"][0]["logprobs"] = {"content": rows}
    assert judge_answers.said(reply).tokens == (Token("a", (("a", -1),)), Token("b", (("b", -1),)))
    for bad in (math.nan, 7.0, -math.inf):
        odd = (Token('{"identity": ', ()), Token("3", (("3", bad),)), Token(', "motion": 10}', ()))
        assert read(Said(GOOD, tokens=odd)) == [3, 10]


# --- texts


def texts(value, count=3):
    said = Said(json.dumps({"prompts": value}))
    return judge_answers.texts(said, key="prompts", count=count, longest=30)


def test_texts_are_cleaned_and_no_two_are_alike():
    rows = ["  A man\nnods. ", "A MAN NODS.", "", 7, "He waves.", "x" * 31, "He runs.", "He sits."]
    assert texts(rows) == ["A man nods.", "He waves.", "He runs."]
    assert texts(["He waves."]) == ["He waves."]  # fewer than were asked for are some
    for nothing in ([], [7], "He waves.", None, ["x" * 31]):
        with pytest.raises(Unusable, match="prompts: expected a list of texts"):
            texts(nothing)
