"""rows.py: who is the same person, and who is held out, told from names and bytes of pictures."""

import re

import pytest
from picture_files import photo

from evoid_jax.data.pairs import open_splits
from evoid_jax.data.rows import Picture, Row, identified, split


def row(number: int, pictures: str, identity: str = "", split: str = "") -> Row:
    """Make a row of pictures that have one letter each: their file and its bytes."""
    shown = tuple(Picture(f"{letter}.png", "", 64, 48, letter) for letter in pictures)
    return Row("waves", f"line {number}", shown, identity, split)


def rows(*lines: str | tuple[str, ...]) -> list[Row]:
    """Make rows of lines: pictures, or (pictures, identity, split) with the rest left out."""
    lines = [line if isinstance(line, tuple) else (line,) for line in lines]
    return [row(n, *line) for n, line in enumerate(lines, start=1)]


def people(*lines) -> list[str]:
    return [r.identity for r in identified(rows(*lines))]


def test_every_picture_is_a_person_unless_told_otherwise():
    assert people("a", "b", "a") == ["picture a.png", "picture b.png", "picture a.png"]
    assert people(("a", "anna"), ("b", "anna"), "c") == ["anna", "anna", "picture c.png"]


def test_a_shared_picture_is_a_shared_person():
    assert len(set(people("ab", "cd", "bc"))) == 1  # through the third line
    assert len(set(people("ab", "cd", "ef", "ea"))) == 2
    assert people(("a", "anna"), "ab", "b", "c")[1:] == ["anna", "anna", "picture c.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("a", "anna"), ("a", "ana")], 'line 2: this picture of "ana" is one of "anna" in line 1'),
        ([("a", "anna"), ("b", "Anna ")], 'line 2: identity "Anna " is written "anna" in line 1'),
        (
            [("a", "anna"), ("b", "ben"), "ab"],
            'line 3: its pictures belong to "anna" (line 1) and to "ben" (line 2)',
        ),
        ([("a", "anna"), "ac", "cb", ("b", "ben")], 'line 2: its pictures belong to "anna"'),
    ],
)
def test_two_names_of_one_person_are_refused(lines, message):
    with pytest.raises(ValueError) as error:
        identified(rows(*lines))
    assert message in str(error.value)


def sides(lines, share=0.0) -> tuple[list[str], list[str]]:
    split_rows = split(identified(lines), validation=0.0, heldout=share)
    assert not split_rows["validation"]
    return [r.origin for r in split_rows["evolution"]], [r.origin for r in split_rows["heldout"]]


def test_nobody_is_held_out_unless_asked_for():
    assert sides(rows("a", "b")) == (["line 1", "line 2"], [])


def test_lines_of_a_person_follow_the_one_that_names_a_split():
    lines = rows(("a", "anna"), ("b", "anna", "heldout"), "c", ("d", "", "evolution"), "b")
    assert sides(lines) == (["line 3", "line 4"], ["line 1", "line 2", "line 5"])


@pytest.mark.parametrize(
    ("lines", "share", "message"),
    [
        (
            [("a", "anna", "heldout"), ("b", "anna", "evolution")],
            0.0,
            'line 2: identity "anna" is in "evolution", but line 1 puts the same person in "heldou',
        ),
        ([("a", "", "heldout"), ("a", "", "evolution")], 0.0, "a person belongs to one split"),
        ([("a", "", "heldout"), ("ab", "", "evolution")], 0.0, "a person belongs to one split"),
        (
            [("ax", "anna"), ("bx", "ben", "heldout")],
            0.0,
            'line 2 is in "heldout", but its picture x.png is in "evolution" in line 1',
        ),
        ([("a", "", "heldout"), ("b", "", "heldout")], 0.0, "all 2 identities are held out"),
        (["a", ("b", "", "heldout")], 0.2, "config.data.heldout is 0.2: use only one"),
        (["a", "b"], 0.001, "config.data.heldout=0.001 holds out none of 2 identities"),
        (["a"], 0.999, "all 1 identities are held out"),
        (["a"], 1.0, "must be at least 0 and below 1, got 1.0"),
        (["a"], -0.1, "must be at least 0"),
        (["a"], float("nan"), "must be at least 0"),
    ],
)
def test_splits_that_cannot_be(lines, share, message):
    with pytest.raises(ValueError) as error:
        sides(rows(*lines), share)
    assert message in str(error.value)


def test_more_lines_in_another_order_move_nobody_across():
    letters = [chr(ord("\u4e00") + i) for i in range(300)]
    few = [row(i, letter, f"person {i}" if i % 2 else "") for i, letter in enumerate(letters[:100])]
    more = [row(i, x, f"person {i}" if i % 2 else "") for i, x in enumerate(letters)][::-1]
    _, before = sides(few, 0.2)
    _, after = sides(more, 0.2)
    assert set(before) == {origin for origin in after if int(origin.split()[1]) < 100}
    assert 40 <= len(after) <= 80  # a fifth of 300, give or take three deviations


def test_the_share_for_validation_moves_nobody_out_of_the_proof():
    lines = identified(rows(*(chr(ord("\u4e00") + i) for i in range(300))))
    origins = lambda got, name: {r.origin for r in got[name]}
    alone = split(lines, validation=0.0, heldout=0.2)
    both = split(lines, validation=0.3, heldout=0.2)
    assert origins(both, "heldout") == origins(alone, "heldout")
    assert origins(both, "validation") < origins(alone, "evolution")
    assert 66 <= len(both["validation"]) <= 114  # 0.3 of 300, give or take three deviations
    assert sum(map(len, both.values())) == 300


@pytest.mark.parametrize(
    ("validation", "heldout", "message"),
    [
        (1.0, 0.0, "config.data.validation must be at least 0 and below 1, got 1.0"),
        (0.5, 0.5, "config.data.validation=0.5 and config.data.heldout=0.5 leave nobody to train"),
        (0.0001, 0.0, "config.data.validation=0.0001 holds out none of 2 identities"),
    ],
)
def test_shares_that_leave_nobody(validation, heldout, message):
    with pytest.raises(ValueError) as error:
        split(identified(rows("a", "b")), validation, heldout)
    assert message in str(error.value)


def test_a_picture_of_two_people_in_two_splits_is_refused():
    lines = rows(("ax", "anna", "validation"), ("bx", "ben", "heldout"), "c")
    message = 'line 2 is in "heldout", but its picture x.png is in "validation" in line 1'
    with pytest.raises(ValueError, match=re.escape(message)):
        split(identified(lines), 0.0, 0.0)


def test_a_folder_is_split_by_person(tmp_path):
    """`0.png` of two folders are two people; the same bytes under two names are one."""
    for k, name in enumerate(("anna/0.png", "ben/0.png", "IMG-0001.png", "IMG-0002.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(32, 32, seed=k).save(tmp_path / name)
    (tmp_path / "copy.png").write_bytes((tmp_path / "ben/0.png").read_bytes())
    names = ["anna/0.png", "ben/0.png", "IMG-0001.png", "IMG-0002.png", "copy.png"]
    text = '{"image": "%s", "prompt": "waves"%s}'
    lines = [text % (name, "") for name in names[:4]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    pairs = open_splits(folder=str(tmp_path))
    assert pairs.evolution.identities == [f"picture {name}" for name in names[:4]]
    assert pairs.heldout.identities == pairs.evolution.identities
    assert pairs.heldout.kind == "training pairs, new seeds"

    lines = [text % (name, "") for name in names[:4]]
    lines.append(text.replace("waves", "nods") % ("copy.png", ', "split": "heldout"'))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    pairs = open_splits(folder=str(tmp_path))
    assert [pair.prompt for pair in pairs.heldout] == ["waves", "nods"]
    assert len(set(pairs.heldout.identities)) == 1
    assert len(pairs.evolution) == 3
    assert pairs.heldout.kind == "unseen identities"


def test_a_letter_that_nobody_sees_makes_no_other_person():
    with pytest.raises(ValueError, match='line 2: identity .* is written "anna" in line 1'):
        people(("a", "anna"), ("b", "an\u200bna"))
