"""What single videos scored: written, read back, counted."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from evoid_jax import proof, triples

NAMES, PRIOR = ("face", "text"), (0.75, 0.25)
KEYS = [("anna", "waves", 5), ("anna", "waves", 6), ("ben", "nods", 7)]
BASE_BM = np.array([[0.2, 0.6], [0.4, np.nan], [np.nan, np.nan]])
EVOLVED_BM = np.array([[0.6, 0.2], [0.4, 0.9], [0.5, 0.5]])
MONITOR = {"motion": [0.1, None, 0.3]}
ROW = {"identity": "a", "prompt": "p", "seed": 1, "base": {}, "evolved": {}}
ROW |= {"monitor": {"base": {}, "evolved": {}}}


def written(folder, base_BM=BASE_BM, evolved_BM=EVOLVED_BM, keys=KEYS, **more):
    triples.write(folder, NAMES, PRIOR, keys, (base_BM, evolved_BM), (MONITOR, MONITOR), **more)
    return triples.read(folder)


def test_what_is_written_is_read(tmp_path):
    scores = written(tmp_path)
    assert scores.prior == {"face": 0.75, "text": 0.25}
    first, second, third = scores.triples
    assert first.key == KEYS[0] and first.base == {"face": 0.2, "text": 0.6}
    assert second.base == {"face": 0.4, "text": None} and second.monitor_base == {"motion": None}
    assert third.evolved == {"face": 0.5, "text": 0.5} and third.monitor_evolved["motion"] == 0.3
    assert triples.read(tmp_path / "nowhere") is None
    assert [triple.photo for triple in scores.triples] == [None] * 3  # as in an older file
    again = written(tmp_path, photos=["ab", "ab", "cd"])
    assert [triple.photo for triple in again.triples] == ["ab", "ab", "cd"]
    assert [triple.key for triple in again.triples] == KEYS


def test_totals_count_what_both_arms_have(tmp_path):
    base_B, evolved_B = triples.totals(written(tmp_path))
    # 3/4 of face and 1/4 of text; the second's text is missing in base and counts in neither
    np.testing.assert_allclose(base_B, [0.3, 0.4, math.nan], rtol=1e-12)
    np.testing.assert_allclose(evolved_B, [0.5, 0.4, math.nan], rtol=1e-12)


def test_totals_are_those_of_the_proof(tmp_path):
    rng = np.random.default_rng(0)
    base_BM, evolved_BM = rng.random((2, 3, 2))
    base_BM[1, 1] = np.nan
    names = [name for name, *_ in KEYS]
    made = proof.summary(NAMES, PRIOR, base_BM, evolved_BM, names, {}, {}, 1, {})
    base_B, evolved_B = triples.totals(written(tmp_path, base_BM, evolved_BM))
    assert made["base"]["total"] == pytest.approx(base_B.mean(), rel=1e-12)
    assert made["delta_total"] == pytest.approx((evolved_B - base_B).mean(), rel=1e-12)


def test_a_win_is_one_and_a_tie_a_half():
    rate = triples.win_rate([0, 0, 0, 0, 0], [1, 1, 0, -1, math.nan], ["a", "b", "c", "d", "e"])
    assert (rate.rate, rate.ahead, rate.ties, rate.pairs) == (0.625, 2, 1, 4)
    assert rate.identities == 4 and 0 < rate.low < 0.625 < rate.high < 1
    nothing = triples.win_rate([math.nan], [1.0], ["a"])
    assert nothing.rate is None and nothing.low is None and nothing.pairs == 0
    assert triples.win_rate([0, 0], [1, 1], ["a", "a"]).low is None  # one person says little


def test_the_interval_is_wilsons_of_a_plain_share():
    """With one video of each of many people: scipy's own, but for a factor near 1."""
    won_B = np.arange(2000) < 1400
    plain = stats.binomtest(1400, 2000).proportion_ci(method="wilson")
    np.testing.assert_allclose(triples.interval(won_B, np.arange(2000)), plain, atol=2e-4)


def test_the_interval_counts_people_and_not_videos():
    won_B = np.tile([1.0, 1.0, 1.0, 0.0], 5)
    people = triples.interval(won_B, np.arange(20))
    # the same people twice tell nothing new; four videos of each that go by chance tell more
    np.testing.assert_allclose(
        triples.interval(np.tile(won_B, 2), np.tile(np.arange(20), 2)), people
    )
    by_chance = np.random.default_rng(0).permutation(np.tile(won_B, 4))
    low, high = triples.interval(by_chance, np.repeat(np.arange(20), 4))
    assert high - low < 0.8 * (people[1] - people[0])
    order = np.random.default_rng(0).permutation(20)
    names = np.array([f"person {k}" for k in range(20)])
    np.testing.assert_allclose(triples.interval(won_B[order], names[order]), people)


def test_people_who_differ_less_than_by_chance_are_not_more_than_their_videos():
    won_B = np.tile([1.0, 0.0], 20)
    won_B[1] = 1
    low, high = triples.interval(won_B, np.repeat(np.arange(20), 2))
    alone = triples.interval(won_B, np.arange(40))
    assert high - low > 0.9 * (alone[1] - alone[0])


@pytest.mark.parametrize("each", [0.0, 0.5, 1.0])
def test_an_interval_always_has_a_width(each):
    for people in (2, 8, 32):
        low, high = triples.interval(np.full(2 * people, each), np.arange(2 * people) // 2)
        assert 0 <= low <= each <= high <= 1 and high - low > 0.1


def draws(rng, kind, share, people):
    """Return what two videos of each person are to the win rate, whose true value is share."""
    if kind == "alike":  # the second seed of a face goes as the first
        return np.repeat(rng.random(people) < share, 2).astype(float)
    if kind == "apart":
        return (rng.random(2 * people) < share).astype(float)
    if kind == "faces":  # some faces are easier than others
        of_person = rng.beta(share, 1 - share, people)
        return (rng.random(2 * people) < np.repeat(of_person, 2)).astype(float)
    ties = min(share, 1 - share)
    drawn = rng.random(2 * people)
    return np.select([drawn < share - ties / 2, drawn < share + ties / 2], [1.0, 0.5], 0.0)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("people", [8, 16, 32])
@pytest.mark.parametrize("kind", ["alike", "apart", "faces", "ties"])
def test_the_interval_covers_the_true_share(kind, people, share):
    """In 0.95 of all cases; a whole number of wins allows no exact one, so that it may be more."""
    rng, cases, hits = np.random.default_rng(5), 600, 0
    faces = np.arange(2 * people) // 2
    for _ in range(cases):
        low, high = triples.interval(draws(rng, kind, share, people), faces)
        hits += low <= share <= high
    assert hits / cases > 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / cases)


def test_rewards_won_are_counted_where_both_have_them(tmp_path):
    scores = written(tmp_path)
    assert [triples.rewards_won(t) for t in scores.triples] == [(1, 2), (0, 1), (0, 0)]


def test_two_runs_meet_on_the_triples_that_both_have(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = written(tmp_path / "a")
    second = written(tmp_path / "b", EVOLVED_BM[::-1], BASE_BM[::-1], [KEYS[2], *KEYS[:2]])
    both = triples.between(first, second)
    assert [t.key for t in both.triples] == KEYS
    for mine in both.triples:
        (one,) = (t for t in first.triples if t.key == mine.key)
        (other,) = (t for t in second.triples if t.key == mine.key)
        assert mine.base == one.evolved and mine.evolved == other.evolved
    assert not triples.between(first, second._replace(triples=())).triples


def test_triples_of_another_photo_do_not_meet(tmp_path):
    scores = written(tmp_path)
    with_photos = lambda *photos: scores._replace(
        triples=tuple(t._replace(photo=p) for t, p in zip(scores.triples, photos, strict=True))
    )
    both = triples.between(with_photos("a", "b", None), with_photos("a", "c", "d"))
    assert [t.key for t in both.triples] == [KEYS[0], KEYS[2]]  # unknown is no other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"prior": [1]}, "expected a prior"),
        ({"triples": {}}, "a list of triples"),
        ({"triples": [3]}, "triple 0 is not"),
        ({"triples": [{"identity": "a", "prompt": "p", "seed": "1"}]}, "triple 0 is not"),
        ({"triples": [ROW | {"photo": 3}]}, "triple 0 is not"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change, words):
    written(tmp_path)
    file = tmp_path / triples.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"scores\.json") as caught:
        triples.read(tmp_path)
    assert words in str(caught.value)
