"""Prompts: the built-in bank, a user's file, and what a judge proposes."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from evoid_jax.prepare import prompts, proposals, words

BANK = prompts.bank()


def test_the_bank_is_large_and_every_prompt_is_another():
    assert len(BANK) == len(set(BANK)) == 144
    assert prompts.bank() == BANK


def test_the_bank_reads_as_sentences():
    for prompt in BANK:
        assert re.fullmatch(r"A person [^.]+\. [A-Z][^.]+\. [A-Z][^.]+\.", prompt), prompt
        assert "  " not in prompt and 15 <= len(prompt.split()) <= 50, prompt
    assert BANK[0] == (
        "A person stirs a pot and tastes the soup from a wooden spoon in a small kitchen with "
        "copper pans on the wall. The camera stands still at eye level. Natural colours, with the "
        "look of a feature film."
    )
    assert BANK[143] == (
        "A person takes a deep breath and relaxes in the front seat of a parked vintage car. "
        "The camera glides along beside the person. Pastel colours and soft edges, as in a "
        "fashion film."
    )


def test_the_bank_uses_its_words_evenly():
    for phrases, most in ((words.CAMERAS, 15), (words.STYLES, 16), (words.ANYWHERE, 6)):
        uses = Counter(phrase for phrase in phrases for prompt in BANK if phrase in prompt)
        assert set(uses) == set(phrases)
        assert max(uses.values()) <= most and min(uses.values()) >= most - 1
    for place, *own in words.PLACES:
        assert sum(place in prompt for prompt in BANK) == 6
        assert all(sum(f" {deed} " in prompt for prompt in BANK) == 1 for deed in own)
    # no camera is bound to a style, nor to a place
    met = {(c, s) for c in words.CAMERAS for s in words.STYLES for p in BANK if c in p and s in p}
    assert len(met) == 90


def test_nobody_is_described():
    assert not re.search(r"\b(he|she|his|her|him|man|woman|they|their)\b", " ".join(BANK))


# --- choices


def test_a_photos_prompts_depend_on_it_alone():
    chosen = prompts.choose(BANK, "digest", 5)
    assert len(set(chosen)) == 5 and set(chosen) <= set(BANK)
    assert prompts.choose(BANK[::-1], "digest", 5) == chosen
    assert prompts.choose(BANK, "another", 5) != chosen


def test_a_new_prompt_takes_at_most_one_place():
    for key in map(str, range(20)):
        before, after = (set(prompts.choose(p, key, 5)) for p in (BANK, [*BANK, "A person sings."]))
        assert after <= before | {"A person sings."} and len(after) == 5


def test_many_photos_use_the_whole_bank():
    uses = Counter(text for key in range(300) for text in prompts.choose(BANK, str(key), 5))
    assert len(uses) == 144 and max(uses.values()) < 30  # 10.4 each, on average


# --- a user's file


def test_a_file_has_one_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffA person sings.\n\n  Eine Person lächelt.\u2028Sie winkt. \r\n")
    assert prompts.read(file) == ["A person sings.", "Eine Person lächelt.\u2028Sie winkt."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt; write one a line"),
        (b"A person sings.\n\nA person sings.\n", "line 3 repeats line 1; remove one"),
        (b"A person sings.\n&nbsp;\n", 'line 2: "prompt" is empty, or has no visible character'),
        (b"A person\x07 sings.\n", "line 1: .* control character U+0007"),
        (b"\xff\xfeA", "is not UTF-8 text"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("U+", r"U\+")):
        prompts.read(tmp_path / "prompts.txt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.txt is missing; expected a text file"):
        prompts.read(tmp_path / "none.txt")


# --- a judge's


def test_an_answer_is_cleaned_and_filled_up():
    answer = ["  A person\n sings. ", "", "A person sings.", "A person\x07 dances.", "One too many"]
    assert prompts.completed(answer, BANK, "key", 1) == (["A person sings."], 0)
    texts, missing = prompts.completed(answer[:4], BANK, "key", 3)
    assert texts == ["A person sings.", *prompts.choose(BANK, "key", 2)] and missing == 2


@pytest.fixture
def pictures(tmp_path):
    files = {f"{i}.jpg": tmp_path / f"face-{i}.png" for i in range(3)}
    for i, file in enumerate(files.values()):
        Image.new("RGB", (16, 16), (50 * i, 0, 0)).save(file)
    return files


def asked_of(pictures, cache, answer, judge="model at url", count=2):
    """Return the prompts, how many the bank gave, and the red of each picture that was shown."""
    shown = []

    def propose(photo_HWC: np.ndarray, many: int) -> list[str]:
        assert many == count
        shown.append(int(photo_HWC[0, 0, 0]))
        return answer(shown[-1])

    asked = proposals.Asked(judge, lambda: propose)
    return (*proposals.of_pictures(pictures, cache, asked, BANK, count), shown)


def test_every_picture_is_asked_about_once(pictures, tmp_path):
    answer = lambda red: [f"Red {red}.", "Another."]
    cache = tmp_path / "cache"
    made, filled, shown = asked_of(pictures, cache, answer)
    assert made == {f"{i}.jpg": [f"Red {50 * i}.", "Another."] for i in range(3)}
    assert filled == 0 and sorted(shown) == [0, 50, 100]
    assert asked_of(pictures, cache, answer) == (made, 0, [])
    assert len(asked_of(pictures, cache, answer, judge="another")[2]) == 3


def test_short_answers_are_filled_up_and_asked_for_again(pictures, tmp_path):
    def answer(red):
        if red == 100:
            raise ValueError("no JSON")
        return [f"Red {red}.", "Another."][: 1 if red else 2]

    for _ in range(2):
        made, filled, shown = asked_of(pictures, tmp_path / "cache", answer)
        assert made["0.jpg"] == ["Red 0.", "Another."]
        assert made["1.jpg"][0] == "Red 50." and made["1.jpg"][1] in BANK
        assert set(made["2.jpg"]) <= set(BANK) and filled == 3
    assert sorted(shown) == [50, 100]
    kept = (tmp_path / "cache" / proposals.FILE).read_text().split()
    assert len([line for line in kept if line.startswith("{")]) == 1
    assert json.loads((tmp_path / "cache" / proposals.FILE).read_text().strip())


def test_a_judge_that_says_nothing_is_no_source_of_prompts(pictures, tmp_path):
    with pytest.raises(ValueError, match="the judge model at url gave no usable prompt"):
        asked_of(pictures, tmp_path / "cache", lambda red: [])
