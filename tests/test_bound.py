"""A reply counts where it says that it belongs to the request, and holds what it should."""

import numpy as np
import pytest
from fake_sidecar import NAMES, Fake
from pixel_videos import QUICK, batch, check
from servers import serve

from evoid_jax.rewards import client


def other_ids(reply):
    return reply | {"ids": [str(int(name) + 1) for name in reply["ids"]]}


WRONG = {
    "digest": lambda reply: reply | {"digest": "0" * 64},
    "no text": lambda reply: reply | {"digest": 7},
    "ids": other_ids,
    "order": lambda reply: reply | {"ids": reply["ids"][::-1]},
    "numbers": lambda reply: reply | {"ids": [int(name) for name in reply["ids"]]},
    "odd letters": lambda reply: reply | {"digest": "é" * 64},
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_reply_to_another_request_is_not_taken(kind):
    fake = Fake(change=WRONG[kind])
    with serve(fake.app()) as url:
        scores = client.score([url], NAMES, **batch(2), options=QUICK)
    assert fake.posts == 3 and not np.any(scores.table.valid_BM)
    kinds = ("digest", "no text", "odd letters")
    words = "another request" if kind in kinds else "about other videos"
    assert words in scores.reasons[0]["gme"]


@pytest.mark.parametrize("key", ["digest", "ids", "rewards"])
def test_a_reply_that_does_not_say_whose_it_is_is_not_taken(key):
    fake = Fake(change=lambda reply: {name: reply[name] for name in reply if name != key})
    with serve(fake.app()) as url:
        scores = client.score([url], NAMES, **batch(2), options=QUICK)
    assert fake.posts == 1 and not np.any(scores.table.valid_BM)
    assert f"does not repeat {key}" in scores.reasons[0]["gme"]


def test_what_one_will_not_take_another_one_may():
    refuses, good = Fake(before=[(401, "no token")] * 9), Fake()
    with serve(refuses.app()) as one, serve(good.app()) as other:
        check(client.score([one, other], NAMES, **batch(2), options=QUICK), 2)
    assert refuses.posts == 1


def test_a_doubtful_column_is_asked_for_elsewhere_and_its_own_if_nobody_has_a_better_one():
    def nan(reply):
        reply["scores"]["gme"]["score"][0] = float("nan")
        return reply

    odd, good = Fake(change=nan), Fake()
    with serve(odd.app()) as one, serve(good.app()) as other:
        check(client.score([one, other], NAMES, **batch(2), options=QUICK), 2)
        scores = client.score([one], NAMES, **batch(2), options=QUICK)
    np.testing.assert_array_equal(scores.table.valid_BM[:, :7].sum(axis=1), [6, 7])


def test_a_right_reply_after_a_wrong_one_counts():
    wrong = [WRONG["digest"]]
    fake = Fake(change=lambda reply: wrong.pop()(reply) if wrong else reply)
    with serve(fake.app()) as url:
        check(client.score([url], NAMES, **batch(2), options=QUICK, first=30), 2)
    assert [b.ids for b in fake.batches] == [["30", "31"]] * 2
