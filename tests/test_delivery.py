"""Videos reach a replica that answers, whatever the others do, and each gets its own scores."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from fake_sidecar import NAMES, SEVEN, Fake
from pixel_videos import QUICK, batch, check, port, until
from servers import serve

from evoid_jax.rewards import client, delivery, replica, sharing, transport

# --- one dies, hangs, comes back


def test_a_replica_that_is_gone_is_used_again_when_it_is_back():
    stays, goes = Fake(), Fake()
    with serve(stays.app()) as first:
        with serve(goes.app()) as second:
            check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
            assert goes.posts and stays.posts
        alone = goes.posts
        check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
        assert goes.posts == alone
        # One long enough for a look at it while it is under way.
        stays.before = [1.0]
        with serve(goes.app(), port(second)):
            check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
            check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
            assert goes.posts > alone


def test_what_hangs_loses_nothing():
    """Connections are taken and nothing is ever answered: only asking tells it from being busy."""
    good, hangs = Fake(), Fake()
    with serve(good.app()) as first, serve(hangs.app()) as second:
        check(client.score([first, second], NAMES, **batch(4), options=QUICK), 4)
        served, hangs.hung = len(hangs.batches), True
        check(client.score([first, second], NAMES, **batch(12), options=QUICK), 12)
        assert len(hangs.batches) == served and hangs.posts > served  # it was tried
        hangs.hung = False
        good.before = [1.0]
        check(client.score([first, second], NAMES, **batch(4), options=QUICK), 4)
        check(client.score([first, second], NAMES, **batch(4), options=QUICK), 4)
        assert len(hangs.batches) > served


def test_a_replica_that_only_works_long_is_waited_for():
    """It answers GET /info meanwhile, so nothing is sent twice."""
    slow = Fake(before=[1.0])
    with serve(slow.app()) as one, serve(Fake().app()) as other:
        check(client.score([one, other], NAMES, **batch(2), options=QUICK), 2)
    assert slow.posts == 1


def test_after_half_of_the_time_another_one_is_asked_too():
    """The request may be lost, though the server is well."""
    lost, good = Fake(before=[600.0]), Fake()
    options = QUICK._replace(timeout=4.0)
    with serve(lost.app()) as one, serve(good.app()) as other:
        check(client.score([one, other], NAMES, **batch(1), options=options), 1)
    assert (lost.posts, good.posts) == (1, 1)


def test_one_that_comes_back_as_another_is_left_alone():
    """Its measures would not compare with those of the others."""
    stays, changes = Fake(), Fake()
    with serve(stays.app()) as first, serve(changes.app()) as second:
        check(client.score([first, second], NAMES, **batch(4), options=QUICK), 4)
        posts, changes.version = changes.posts, "2"
        changes.before = [(500, "restarting")]
        stays.before = [0.5]
        check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
        check(client.score([first, second], NAMES, **batch(8), options=QUICK), 8)
    assert changes.posts <= posts + replica.REQUESTS
    assert "other rewards, or versions" in replica.named(second).down


def test_versions_that_differ_are_no_team():
    infos = {
        url: {"rewards": [{"name": "gme", "version": version}], "monitors": []}
        for url, version in (("a", "1"), ("b", "2"), ("c", "1"))
    }
    teams = list(sharing._teams(infos, ("gme",)).values())
    assert teams == [["a", "c"], ["b"]]
    said = sharing.unasked(list(infos), list(infos.values()), ("gme",))
    assert [sentence.split(",")[0] for sentence in said] == ["gme is asked of a"]
    assert "not of b" in said[0]
    assert sharing.unasked(["a", "c"], [infos["a"], infos["c"]], ("gme",)) == []


def test_one_that_was_too_late_is_asked_after_the_others():
    """It says what it is and scores nothing: each request there costs half of the time."""
    stuck, good = Fake(before=[600.0] * 9), Fake()
    options = QUICK._replace(timeout=4.0, batch=1)
    with serve(stuck.app()) as one, serve(good.app()) as other:
        check(client.score([one, other], NAMES, **batch(1), options=options), 1)
        for _ in range(3):
            check(client.score([one, other], NAMES, **batch(1), options=options), 1)
        assert stuck.posts == 1
        good.hung = True  # but if there is nobody else ...
        scores = client.score([one], NAMES, **batch(1), options=options._replace(timeout=1.0))
        good.hung = False
    assert stuck.posts == 2 and not np.any(scores.table.valid_BM)


def test_one_that_is_started_again_is_waited_for():
    """It is away for longer than its tries would last, were they not spared for when it is back."""
    again = Fake()
    with serve(again.app()) as url:
        client.info(url)
    back = threading.Event()

    def come_back():
        time.sleep(1.5)
        with serve(again.app(), port(url)):
            back.wait(60)

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    check(client.score([url], NAMES, **batch(2), options=QUICK._replace(patience=60.0)), 2)
    back.set()
    thread.join(60)


def test_one_that_is_not_there_yet_is_waited_for_at_the_start():
    late = Fake()
    with serve(late.app()) as url:
        pass
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.info, url, QUICK._replace(patience=60.0))
        time.sleep(1.0)
        with serve(late.app(), port(url)):
            assert asked.result(60)["names"] == list(SEVEN)


def test_one_that_silently_became_another_is_seen_by_its_reply():
    changes = Fake()
    with serve(changes.app()) as url:
        check(client.score([url], NAMES, **batch(2), options=QUICK), 2)
        changes.version = "2"
        began = time.monotonic()
        scores = client.score([url], NAMES, **batch(2), options=QUICK._replace(patience=600.0))
        assert time.monotonic() - began < 600  # it is not waited for: it is there
    assert not np.any(scores.table.valid_BM)
    why = scores.reasons[0]["gme"]
    assert "was [" in why and "('gme', '1', '')" in why and "('gme', '2', '')" in why


# --- deadlines


def test_at_the_deadline_the_columns_that_are_there_are_kept():
    here, never = Fake(SEVEN[:2]), Fake(SEVEN[2:])
    with serve(here.app()) as one, serve(never.app()) as other:
        client.info(one), client.info(other)
        never.hung = True
        options = QUICK._replace(timeout=1.0)
        scores = client.score([one, other], NAMES, **batch(3), options=options)
        never.hung = False
    assert np.all(scores.table.valid_BM[:, :2]) and not np.any(scores.table.valid_BM[:, 2:])
    assert not np.any(scores.table.blank_BM)  # no fault of the videos
    assert f"no reply from {other} in 1 s" in scores.reasons[2]["gme"]


def test_a_judge_that_is_late_costs_its_own_column():
    go = threading.Event()
    late = SimpleNamespace(vqscore=lambda *_: go.wait(60))
    with serve(Fake().app()) as url:
        options = QUICK._replace(timeout=1.0)
        scores = client.score([url], NAMES, **batch(2), options=options, judge=late)
    go.set()
    check(scores, 2)
    assert {reasons["vqscore"] for reasons in scores.reasons} == {"the judge gave no answer in 1 s"}


# --- back-pressure


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(replica, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_nothing_is_sent_before_a_replica_wants_to_be_asked_again(clock):
    one = replica.Replica("http://a")
    assert one.takes(1)
    one.put_off(7.0, QUICK)
    clock.seconds = 106.9
    assert not one.takes(1)
    clock.seconds = 107.0
    assert one.takes(1)


def test_pauses_grow_where_a_refusal_names_none(clock):
    one, pauses = replica.Replica("http://a"), []
    for _ in range(4):
        one.put_off(None, QUICK)
        pauses.append(one.free_at - clock.seconds)
    np.testing.assert_allclose(pauses, [0.01, 0.02, 0.04, 0.08])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 12 ", 12.0),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("\xb2", None),  # which Python calls a digit
        ("9" * 400, transport.LONGEST_REST),
        ("Fri, 31 Dec 9999 23:59:59 GMT", transport.LONGEST_REST),
        ("Fri, 99 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_read(header, seconds):
    assert transport._seconds(header) == seconds


def test_retry_after_may_be_a_date(monkeypatch):
    monkeypatch.setattr(transport, "time", SimpleNamespace(time=lambda: 784111777.0 - 30))
    assert transport._seconds("Sun, 06 Nov 1994 08:49:37 GMT") == 30.0
    assert transport._seconds("Sun, 06 Nov 1994 08:49:00 GMT") == 0.0  # gone by


def test_a_full_server_gets_the_request_when_it_has_room():
    full = Fake(before=[(429, "full", {"Retry-After": "1"})])
    with serve(full.app()) as url:
        check(client.score([url], NAMES, **batch(2), options=QUICK), 2)
    assert full.posts == 2


# --- load


def chosen(paces, videos, count=4) -> int:
    """Return which of some replicas gets a request: by seconds per video, and videos there."""
    team = [replica.Replica(f"http://{k}") for k in range(len(paces))]
    for one, pace, there in zip(team, paces, videos, strict=True):
        one.pace, one.videos, one.requests = pace, there, there > 0
    parcel = delivery.Parcel([str(b) for b in range(count)], pack=list)
    errand = delivery._Errand(team, parcel, QUICK, time.monotonic() + 60)
    return team.index(errand._next())


@pytest.mark.parametrize(
    ("paces", "videos", "first"),
    [
        ([None, None, None], [0, 0, 0], 0),  # the first of equals
        ([None, None, None], [4, 4, 0], 2),
        ([2.0, 1.0], [0, 0], 1),
        ([1.0, 1.0], [4, 2], 1),
        ([1.0, 3.0], [4, 0], 0),  # 8 s against 12
        ([1.0, 3.0], [12, 0], 1),  # 16 s against 12
        ([None, 3.0], [0, 0], 0),  # what is unknown counts as usual
    ],
)
def test_who_should_be_done_first_is_asked(paces, videos, first):
    assert chosen(paces, videos) == first


def test_a_replica_gets_no_more_than_it_can_begin_with():
    one = replica.Replica("http://a")
    one.info = {"together": 8}
    assert one.takes(99)  # whatever it is, when nothing is there
    one.began(8)
    assert one.takes(8) and not one.takes(9)
    other = replica.Replica("http://b")
    for _ in range(replica.REQUESTS):
        assert other.takes(32)
        other.began(32)
    assert not other.takes(1)


def test_a_slow_replica_gets_less():
    """It keeps what it has until the fast one has done all that is left."""
    slow, fast = Fake(), Fake()
    with serve(slow.app()) as one, serve(fast.app()) as other, ThreadPoolExecutor(1) as pool:
        client.info(one), client.info(other)
        slow.hung = True
        options = QUICK._replace(probe=60.0)
        asked = pool.submit(client.score, [one, other], NAMES, **batch(40), options=options)
        until(lambda: len(fast.batches) == 20 - replica.REQUESTS)
        slow.hung = False
        check(asked.result(60), 40)
    assert len(slow.batches) == replica.REQUESTS


def test_requests_are_no_larger_than_what_a_sidecar_takes_at_once():
    fake = Fake()
    fake.info = {"together": 3}
    with serve(fake.app()) as url:
        check(client.score([url], NAMES, **batch(8), options=QUICK._replace(batch=32)), 8)
    assert sorted(len(b.videos) for b in fake.batches) == [2, 3, 3]


def test_an_address_with_several_servers_gets_the_share_of_each():
    alone, three = Fake(), Fake()
    three.info = {"replicas": 3}
    with serve(alone.app()) as one, serve(three.app()) as other:
        options = QUICK._replace(batch=32)
        check(client.score([one, other], NAMES, **batch(8), options=options), 8)
    sizes = [[len(b.videos) for b in fake.batches] for fake in (alone, three)]
    assert sorted(sizes[0] + sizes[1]) == [2] * 4
    several = replica.Replica("http://c")
    several.info = {"replicas": 3}
    for _ in range(3 * replica.REQUESTS):
        assert several.takes(1)
        several.began(1)
    assert not several.takes(1)


# --- what travels


@pytest.mark.parametrize("encoding", ["h264", "lossless"])
def test_videos_travel_encoded_where_they_are_read(encoding):
    fake = Fake()
    fake.info = {"formats": ["raw", "mp4"]}
    sent = batch(3)
    with serve(fake.app()) as url:
        options = QUICK._replace(encoding=encoding, batch=3)
        scores = client.score([url], NAMES, **sent, options=options)
    (got,) = fake.batches
    apart = np.abs(np.stack(got.videos).astype(int) - sent["video_BFHWC"]).max()
    assert apart == 0 if encoding == "lossless" else apart <= 2
    assert np.all(scores.table.valid_BM[:, :7])


def test_a_sidecar_that_reads_raw_alone_gets_raw():
    fake = Fake()
    with serve(fake.app()) as url:
        check(client.score([url], NAMES, **batch(2), options=QUICK._replace(encoding="h264")), 2)
        with pytest.raises(ValueError, match=f"encoding is h264.*{url} reads raw videos alone"):
            sharing.check_encoding("h264", [url], [client.info(url)])
