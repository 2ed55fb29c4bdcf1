"""Who is who, and who is set apart: by likeness and by name, and never again otherwise."""

import re
from collections import Counter

import numpy as np
import pytest

from evoid_jax.data.rows import drawn_side
from evoid_jax.prepare import people
from evoid_jax.prepare.people import NOBODY, Known
from evoid_jax.prepare.photos import Look, Photo

SHARES = {"validation": 0.1, "heldout": 0.2}


def photo(name: str, *embedding: float) -> Photo:
    vector = np.array(embedding) / np.linalg.norm(embedding)
    return Photo(name, Look(name[:1] * 64, embedding=tuple(vector)))


def at(degrees: float) -> tuple[float, float]:
    return float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))


# a, b, c are one person (10 and 20 degrees apart), d and e two others.
FIVE = [photo(name, *at(angle)) for name, angle in zip("abcde", (0, 10, 20, 100, 190), strict=True)]


def names(photos, given=(), known=NOBODY, alike=people.ALIKE) -> list[str]:
    return people.identities(photos, dict(given), known, alike)


def known(found: list[str], photos) -> Known:
    digests = {}
    for name, one in zip(found, photos, strict=True):
        digests.setdefault(name, set()).add(one.look.digest)
    splits = {name: "evolution" for name in digests}
    return Known(digests, splits, were=splits)


def test_groups_by_hand():
    """Mean cosines: (a, b) .9848, (ab, c) (.9397 + .9848) / 2 = .9622; all others are below .18."""
    embedding_ND = np.array([one.look.embedding for one in FIVE])
    assert people.groups(embedding_ND, 0.97) == [[0, 1], [2], [3], [4]]
    assert people.groups(embedding_ND, 0.96) == [[0, 1, 2], [3], [4]]
    assert people.groups(embedding_ND[:1], 0.9) == [[0]]
    assert people.groups(embedding_ND[:0], 0.9) == []


def test_the_mean_counts_and_not_the_nearest_pair():
    """A chain of look-alikes, about 60 degrees (cosine .5) apart, is not one person."""
    chain = np.array([at(angle) for angle in (0, 58, 120, 178)])
    assert people.groups(chain, 0.363) == [[0, 1], [2, 3]]


def test_without_names_a_person_is_called_by_the_least_digest():
    assert names(FIVE) == [
        "person-aaaaaaaa",
        "person-aaaaaaaa",
        "person-aaaaaaaa",
        "person-dddddddd",
        "person-eeeeeeee",
    ]


def test_digests_that_begin_alike_are_told_apart():
    one, other = (photo("x", *at(angle)) for angle in (0, 120))
    other = other._replace(look=other.look._replace(digest="x" * 63 + "y"))
    assert names([one, other]) == ["person-xxxxxxxx", "person-xxxxxxxxx"]


def test_a_name_counts_and_those_who_look_so_take_it():
    assert names(FIVE, {"b": "anna"}) == ["anna", "anna", "anna", *names(FIVE)[3:]]
    # c looks more like b than like a
    assert names(FIVE[:3], {"a": "anna", "b": "ben"}) == ["anna", "ben", "ben"]
    # and unlike photos of one name are one person
    assert names(FIVE, {"d": "dora", "e": "dora"})[3:] == ["dora", "dora"]


def test_more_photos_change_no_name():
    before = names(FIVE[1:])
    assert before[0] == "person-bbbbbbbb"
    assert names(FIVE, known=known(before, FIVE[1:])) == ["person-bbbbbbbb", *before]


def test_two_who_turn_out_to_be_one_take_the_name_of_most_photos():
    earlier = ["person-new", "person-old", "person-old"]
    assert names(FIVE[:3], known=known(earlier, FIVE[:3])) == ["person-old"] * 3


def test_one_who_turns_out_to_be_two_keeps_the_name_once():
    earlier = known(["person-old"] * 5, FIVE)
    assert names(FIVE, known=earlier) == ["person-old"] * 3 + ["person-dddddddd", "person-eeeeeeee"]
    assert names(FIVE, {"d": "person-old"}, earlier)[:1] == ["person-aaaaaaaa"]


# --- splits


def splits(count: int, fixed=(), shares=SHARES) -> dict[str, str]:
    return people.splits([f"p{i}" for i in range(count)], dict(fixed), shares)


def test_a_split_is_drawn_by_the_name_as_training_draws_it():
    drawn = splits(300)
    assert drawn == {name: drawn_side(name, SHARES) for name in drawn}
    many = Counter(drawn.values())
    assert 40 <= many["heldout"] <= 80 and 15 <= many["validation"] <= 45  # three deviations


def test_more_people_and_another_order_move_nobody():
    few, more = splits(50), splits(200)
    assert few == {name: more[name] for name in few}


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_few_people_still_fill_every_split(first):
    """Drawn alone, four people would leave the proof without anybody in four of ten cases."""
    four = [f"p{i}" for i in range(first, first + 4)]
    for count, least in ((1, 1), (2, 2), (3, 3), (4, 3)):
        side = people.splits(four[:count], {}, SHARES)
        assert len(set(side.values())) >= least and "evolution" in side.values()
        assert "heldout" in side.values() or count == 1


def test_shares_of_nothing_set_nobody_apart():
    assert set(splits(50, shares={"validation": 0.0, "heldout": 0.0}).values()) == {"evolution"}


def test_what_was_fixed_stays_even_where_a_split_is_empty():
    fixed = {"p0": "evolution", "p1": "evolution"}
    assert splits(2, fixed) == fixed
    assert splits(3, fixed)["p2"] == "heldout"  # the only one who may still go there


def test_a_person_is_in_one_split_with_all_photos():
    found = people.gather(FIVE, {}, NOBODY, SHARES)
    assert [(person.name, len(person.photos)) for person in found] == [
        ("person-aaaaaaaa", 3),
        ("person-dddddddd", 1),
        ("person-eeeeeeee", 1),
    ]
    assert sorted(person.split for person in found) == ["evolution", "heldout", "validation"]


# --- names and likeness


@pytest.mark.parametrize("name", ["", "  ", "\u200b", 3, None, "an\nna", "a\x07"])
def test_what_is_no_name_is_refused_with_its_origin(name):
    with pytest.raises(ValueError, match=re.escape(f"file, x.jpg: {name!r} is no name")):
        people.cleaned(name, "file, x.jpg")


def test_a_name_is_composed_and_stripped():
    assert people.cleaned(" Zoe\u0308 ", "x") == "Zoë"


def test_people_who_look_alike_are_told():
    near = [photo("a", *at(0)), photo("b", *at(60)), photo("c", *at(200))]
    found = [people.Person(one.name, "evolution", [one]) for one in near]
    (pair,) = people.look_alikes(found, 0.4)
    assert pair[:2] == ("a", "b") and pair.cosine == pytest.approx(0.5)
    assert not people.look_alikes(found, 0.6)


def test_a_photo_unlike_the_others_of_its_person_is_told():
    person = people.Person("anna", "evolution", [*FIVE[:3], FIVE[3]])
    assert people.strangers(person) == [FIVE[3]]
    assert not people.strangers(person._replace(photos=FIVE[:3]))
    assert not people.strangers(person._replace(photos=FIVE[3:4]))
