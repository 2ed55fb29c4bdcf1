"""Reads what a chat server replied: numbers or texts, or an error that says what came instead.

Servers promise the schema that they are given, and not all of them keep it: an answer may stand in
a code fence, between prose, after the model's thinking, or where the thinking should be. Whatever
is read here was said as the answer; nothing is guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SHOWN = 160  # letters of an answer in a message
BRACES = 200  # that are looked at, from the end: each may be followed through all of the text
# What closes a model's thinking, in the notations of Qwen and DeepSeek, Mistral, and Kimi.
CLOSED = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷")
OPENED = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷")


class Unusable(ValueError):
    """An answer that cannot be used; says what was expected and what came."""


class Token(NamedTuple):
    """One token of an answer, with what the model might have said there instead."""

    text: str
    likely: tuple[tuple[str, float], ...]  # (text, logprob), itself among them


class Said(NamedTuple):
    """What a reply holds. finish: why it ended, as the server calls it; "" is unknown."""

    text: str
    reasoning: str = ""
    refusal: str = ""
    finish: str = ""
    tokens: tuple[Token, ...] = ()  # () where the server gave no logprobs


class Found(NamedTuple):
    """A JSON object in a text: its value, the text that it was read from, and where that ends."""

    value: dict
    source: str
    stop: int


# --- from a reply to what was said


def said(reply: object) -> Said:
    """Return what a chat completion says.

    reply: the parsed JSON of the server.

    Raises:
      Unusable: it is no chat completion.
    """
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise Unusable(f"expected a chat completion with a message, got {shown(reply)}")
    return Said(
        text=_text(message.get("content")),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        refusal=_text(message.get("refusal")),
        finish=_text(choice.get("finish_reason")),
        tokens=_tokens(choice.get("logprobs")),
    )


def shown(value: object) -> str:
    """Return the start of a value as a message may show it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _text(content: object) -> str:
    """Return a message's text, which may come in parts; "" where there is none."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _tokens(logprobs: object) -> tuple[Token, ...]:
    """Return the tokens of an answer; () where they are absent or of another shape."""
    rows = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    try:
        return tuple(_token(row) for row in rows or ())
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return ()


def _token(row: Mapping) -> Token:
    others = row.get("top_logprobs") or []
    likely = {str(row["token"]): float(row["logprob"])}
    likely |= {str(other["token"]): float(other["logprob"]) for other in others}
    return Token(str(row["token"]), tuple(likely.items()))


# --- from what was said to the object in it


def found(said: Said, keys: tuple[str, ...]) -> Found:
    """Return the last JSON object with these keys that was said as the answer.

    Further keys may only hold texts, such as an explanation.

    Raises:
      Unusable: there is none, the model or a filter refused, or the answer was cut off.
    """
    _check_said(said)
    text, thought = _spoken(said)
    objects = [one for one in _objects(text) if _fits(one.value, keys)]
    last = objects[-1] if objects else None
    if said.finish == "length" and not (last and text.strip() == last.source):
        raise Unusable(
            f"the answer was cut off at max_tokens, after {shown(text)}; give a model that thinks "
            "more room (config.reward.judge_tokens), or have it think less"
        )
    if last is None:
        raise Unusable(f"expected a JSON object with {', '.join(keys)}, got {shown(text)}")
    # Thinking may weigh several answers; only what it ends in is one.
    if thought and text[last.stop :].strip(" \n\t`."):
        raise Unusable(f"the judge thought and did not answer: {shown(text)}")
    return last


def _check_said(said: Said) -> None:
    """Raise Unusable where the model or a filter refused."""
    if said.refusal:
        raise Unusable(f"the judge refused: {shown(said.refusal)}")
    if said.finish == "content_filter":
        raise Unusable("the server's content filter stopped the answer")


def _spoken(said: Said) -> tuple[str, bool]:
    """Return the text that should hold the answer, and whether it is the model's thinking.

    Some servers put all that was said where the thinking belongs, and some models never close it.
    """
    closed = list(CLOSED.finditer(said.text))
    if closed:
        return said.text[closed[-1].end() :], False
    if OPENED.search(said.text):
        return said.text, True
    if said.text.strip():
        return said.text, False
    return said.reasoning, True


def _objects(text: str) -> Iterator[Found]:
    """Yield the JSON objects near the end of a text, those inside of others too."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    braces = [match.start() for match in re.finditer("{", text)]
    for at in braces[-BRACES:]:
        try:
            value, stop = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue  # a brace of prose
        yield Found(value, text[at:stop], stop)


def _once(pairs: list[tuple[str, object]]) -> dict:
    """Refuse a key that stands twice: nobody knows which of the two is meant."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _fits(value: dict, keys: tuple[str, ...]) -> bool:
    others = [held for key, held in value.items() if key not in keys]
    return set(keys) <= set(value) and all(isinstance(held, str) for held in others)


# --- what the object holds


def numbers(
    said: Said, keys: tuple[str, ...], least: int, most: int, whole: bool = True
) -> list[float]:
    """Return the number that was answered for each key.

    Where the server gave the probabilities of what it might have answered, a number is its
    expected value over them.

    Args:
      said: what was answered.
      keys: of the object, in the order of the result.
      least, most: bounds, whole and at most 10.
      whole: whether a fraction is refused.

    Raises:
      Unusable: no such object, or not such numbers.
    """
    answer = found(said, keys)
    values = [_number(answer.value[key], key, least, most, whole) for key in keys]
    if not said.tokens:
        return values
    start = "".join(token.text for token in said.tokens).rfind(answer.source)
    if start < 0:  # a token may be part of a letter, which stands otherwise in the text
        return values
    return [
        _expected(said.tokens, start + _place(answer.source, key), value, least, most)
        for key, value in zip(keys, values, strict=True)
    ]


def grade(said: Said, least: int, most: int) -> list[float]:
    """Return the one whole number that was answered, and nothing beside it.

    Raises:
      Unusable: something else was, the model or a filter refused, or the answer was cut off.
    """
    _check_said(said)
    text, thought = _spoken(said)
    if thought or said.finish == "length":
        raise Unusable(f"the judge thought and did not answer: {shown(text)}")
    return [_number(text.strip().strip("*."), "the grade", least, most, whole=True)]


def texts(said: Said, key: str, count: int, longest: int) -> list[str]:
    """Return up to `count` different texts that were answered in a list.

    Blanks at the ends, texts of more than `longest` letters, empty ones and repetitions are left
    out.

    Raises:
      Unusable: no object with such a list, or nothing in it that can be used.
    """
    value = found(said, (key,)).value[key]
    rows = value if isinstance(value, list) else []
    cleaned = [" ".join(row.split()) for row in rows if isinstance(row, str)]
    different: dict[str, str] = {}
    for text in cleaned:
        if 0 < len(text) <= longest:
            different.setdefault(text.casefold(), text)
    if not different:
        raise Unusable(f"{key}: expected a list of texts, got {shown(value)}")
    return list(different.values())[:count]


def _number(value: object, key: str, least: int, most: int, whole: bool) -> float:
    """Return a number of least..most; a whole one may come as text, as 7.0 or as 7/10."""
    read = value
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*([0-9]{{1,4}})(?:\.0+)?(?:\s*/\s*{most})?\s*", value)
        read = int(match[1]) if match else None
    elif type(value) is float and value.is_integer():
        read = int(value)
    # type(..) is int: true is an int to Python, and 1 to a reader who only compares.
    kinds = (int,) if whole else (int, float)
    if type(read) not in kinds or not least <= read <= most:
        form = "a whole number" if whole else "a number"
        raise Unusable(f"{key}: expected {form} {least}..{most}, got {shown(value)}")
    return read


# --- expected values


def _place(source: str, key: str) -> int:
    """Return where in a JSON object's text the number of a key begins."""
    matches = list(re.finditer(rf'{re.escape(json.dumps(key))}\s*:\s*"?\s*(?=[0-9])', source))
    return matches[-1].end() if matches else 0


def _expected(tokens: tuple[Token, ...], place: int, value: float, least: int, most: int) -> float:
    """Return the mean of the numbers that might have stood at `place`, by their probabilities.

    tokens: of the whole answer. place: in their joined text. value: what does stand there.
    """
    i, start = 0, 0
    while i < len(tokens) and start + len(tokens[i].text) <= place:
        start += len(tokens[i].text)
        i += 1
    if i == len(tokens) or type(value) is not int:
        return value
    before = tokens[i].text[: place - start]
    shares = _shares(tokens[i], before, least, most)
    if 1 in shares and most == 10 and 10 not in shares:
        _split_ten(shares, value, tokens[i + 1] if i + 1 < len(tokens) else None)
    mass = sum(shares.values())
    return sum(number * share for number, share in shares.items()) / mass if mass else value


def _shares(token: Token, before: str, least: int, most: int) -> dict[int, float]:
    """Return the probability of each number that a token may begin with, after `before`."""
    shares: dict[int, float] = {}
    for text, logprob in token.likely:
        match = re.match(r"[0-9]{1,4}", text[len(before) :]) if text.startswith(before) else None
        if match and least <= int(match[0]) <= most:
            shares[int(match[0])] = shares.get(int(match[0]), 0.0) + _chance(logprob)
    return shares


def _split_ten(shares: dict[int, float], value: int, after: Token | None) -> None:
    """Give 10 its part of the probability of 1, where a tokenizer has one token for each digit.

    Where a 1 or a 10 was said, the next token tells which part. Else nothing does, and all of it
    goes to the one of the two that is nearer to what was said.
    """
    ten = 1.0 if value > 5 else 0.0
    if value in (1, 10) and after is not None:
        zeros = sum(_chance(x) for text, x in after.likely if text.startswith("0"))
        mass = sum(_chance(x) for _, x in after.likely)
        ten = zeros / mass if mass else ten
    one = shares.pop(1)
    shares[10], shares[1] = one * ten, one * (1 - ten)


def _chance(logprob: float) -> float:
    """Return a probability; 0 for what is no logarithm of one."""
    return math.exp(logprob) if logprob <= 0 else float(logprob < 1e-3)
