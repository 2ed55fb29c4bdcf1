"""What single videos scored: written, read back, counted."""

import json
import math

import numpy as np
import pytest

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
    # the interval is that of the mean of 1, 1, 1/2, 0 over people
    _, low, high = proof.paired_bootstrap([0] * 4, [1, 1, 0.5, 0])
    assert (rate.low, rate.high) == (low, high)
    nothing = triples.win_rate([math.nan], [1.0], ["a"])
    assert nothing.rate is None and nothing.low is None and nothing.pairs == 0
    assert triples.win_rate([0, 0], [1, 1], ["a", "a"]).low is None  # one person says little


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
