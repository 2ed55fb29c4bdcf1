"""What waits for the nets is scored in order, as many at once as they take, and none is lost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import serve

from evoid_jax import media
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars import serve as server
from evoid_jax.sidecars.queue import Queue, Room


class Made:
    """A preset whose reward is a video's first pixel; it waits for `go` and notes what it saw."""

    def __init__(self, together=None, bad=255):
        self.go, self.batches, self.bad = threading.Event(), [], bad
        self.requests = []
        self.go.set()
        reward = preset.Scorer("pixel", "1", "", "the first pixel", self.score)
        watcher = preset.Scorer("twice", "1", "", "twice the first pixel", self.twice)
        self.preset = preset.Preset("made", (reward,), (watcher,), self.prepare, together)

    def prepare(self, request):
        pixels = [int(video[0, 0, 0, 0]) for video in request.videos]
        self.batches.append(pixels)
        self.requests.append(request)
        assert self.go.wait(60)
        if self.bad in pixels:
            raise RuntimeError("out of memory")
        yield list(range(len(pixels))), pixels

    def score(self, pixels):
        return preset.Column(np.array(pixels), np.array(pixels) / 255, [None] * len(pixels))

    def twice(self, pixels):
        return preset.Column(2.0 * np.array(pixels), np.ones(len(pixels)), [None] * len(pixels))


def body(*pixels, **changes) -> bytes:
    video_BFHWC = np.array(pixels, np.uint8).reshape(-1, 1, 1, 1, 1).repeat(3, axis=4)
    photos = [[np.zeros((1, 1, 3), np.uint8)]] * len(pixels)
    return wire.encode(video_BFHWC, photos, ["a"] * len(pixels), **changes)


def request(*pixels, **changes) -> wire.ScoreRequest:
    return wire.decode(body(*pixels, **changes))


def raw(future) -> list:
    return future.result(60)["scores"]["pixel"]["raw"]


def until(true):
    """Wait for something to become true."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def behind(made, queue, *waiting):
    """Queue requests while the nets are busy with a first one; return their futures."""
    made.go.clear()
    first = queue.put(request(200))
    until(lambda: made.batches)
    futures = [queue.put(one) for one in waiting]
    return first, futures


def test_a_large_request_is_scored_in_pieces():
    made = Made(together=3)
    queue = Queue(made.preset)
    assert raw(queue.put(request(*range(7)))) == list(range(7))
    assert made.batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_other_photos_stay_with_their_videos():
    made, extra = Made(together=4), np.full((2, 2, 3), 7, np.uint8)
    queue = Queue(made.preset)
    with_one = request(1, 2, others=[[], [extra]], monitors=True)
    first, futures = behind(made, queue, with_one, request(3, monitors=True))
    made.go.set()
    for future in (first, *futures):
        future.result(60)
    assert [len(own) for own in made.requests[-1].others] == [0, 1, 0]


def test_small_requests_that_wait_are_put_together():
    made = Made(together=4)
    queue = Queue(made.preset)
    waiting = [request(k) for k in range(3)] + [request(3, 4, 5)]
    first, futures = behind(made, queue, *waiting)
    assert queue.waiting() == 6
    made.go.set()
    assert raw(first) == [200]
    assert [raw(future) for future in futures] == [[0], [1], [2], [3, 4, 5]]
    assert made.batches == [[200], [0, 1, 2, 3], [4, 5]]
    assert queue.waiting() == 0


def test_a_preset_that_names_no_number_gets_requests_as_they_come():
    made = Made()
    queue = Queue(made.preset)
    first, futures = behind(made, queue, request(1, 2, 3), request(4))
    made.go.set()
    assert [raw(first), *map(raw, futures)] == [[200], [1, 2, 3], [4]]
    assert made.batches == [[200], [1, 2, 3], [4]]


@pytest.mark.parametrize("changes", [{"fps": 9}, {"monitors": True}, {"rewards": ["pixel"]}])
def test_who_asks_for_something_else_is_scored_apart(changes):
    made = Made(together=9)
    queue = Queue(made.preset)
    _, futures = behind(made, queue, request(1), request(2, **changes), request(3))
    made.go.set()
    assert [raw(future) for future in futures] == [[1], [2], [3]]
    assert made.batches[1:] == [[1], [2], [3]]
    twice = futures[1].result()["monitor"]
    assert set(twice) == ({"twice"} if "monitors" in changes else set())


def test_one_that_cannot_be_scored_costs_nobody_else():
    made = Made(together=9)
    queue = Queue(made.preset)
    _, futures = behind(made, queue, request(1), request(2, made.bad), request(3))
    made.go.set()
    assert raw(futures[0]) == [1] and raw(futures[2]) == [3]
    with pytest.raises(RuntimeError, match="out of memory"):
        raw(futures[1])
    assert queue.alive()


def test_pieces_of_a_request_that_failed_are_dropped():
    made = Made(together=1)
    queue = Queue(made.preset)
    with pytest.raises(RuntimeError):
        raw(queue.put(request(made.bad, 1, 2)))
    assert raw(queue.put(request(7))) == [7]
    assert made.batches == [[made.bad], [7]]


def test_who_has_gone_is_left_out():
    made = Made(together=1)
    queue = Queue(made.preset)
    _, futures = behind(made, queue, request(1), request(2), request(3))
    assert futures[1].cancel()
    assert queue.waiting() == 2
    made.go.set()
    assert raw(futures[2]) == [3]
    assert made.batches == [[200], [1], [3]]


def test_an_unknown_reward_is_refused_before_it_waits():
    with pytest.raises(ValueError, match="no reward 'pixle'"):
        Queue(Made().preset).put(request(1, rewards=["pixle"]))


def test_seconds_are_shared_out_by_videos():
    made, spent = Made(together=4), []
    queue = Queue(made.preset, told=lambda *row: spent.append(row))
    first, futures = behind(made, queue, request(1), request(2, 3, 4))
    made.go.set()
    one, three = (future.result(60)["seconds"] for future in futures)
    assert three == pytest.approx(3 * one, abs=2e-4)
    assert [(name, count) for name, _, count in spent] == [("pixel", 1), ("pixel", 4)]
    assert first.done()


# --- room


def test_room_is_given_to_the_first_whatever_it_takes():
    room = Room(10)
    assert room.take(50) and not room.take(1)
    room.give(50)
    assert room.take(6) and room.take(4) and not room.take(1)
    assert room.held == 10


def test_a_request_may_grow_when_it_is_alone():
    room = Room(10)
    assert room.take(2) and room.take(90, held=2)
    room.give(92)
    assert room.take(5) and room.take(2) and not room.take(4, held=2)
    assert room.held == 7


# --- the server


def figures(url: str) -> dict[tuple, float]:
    """Return what /metrics tells: (name, labels..) -> value."""
    reply = httpx2.get(f"{url}/metrics", trust_env=False)
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(reply.text)
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples}


def post(url: str, data: bytes) -> httpx2.Response:
    return httpx2.post(f"{url}/score", content=data, timeout=60, trust_env=False)


def test_a_reply_is_bound_to_its_request():
    with serve(server.app(Made().preset)) as url:
        data = body(1, 2, ids=["left", "right"])
        reply = post(url, data).json()
        assert reply["ids"] == ["left", "right"]
        assert reply["digest"] == wire.digest(data) and len(reply["digest"]) == 64
        assert "ids" not in post(url, body(1)).json()
        info = httpx2.get(f"{url}/info", trust_env=False).json()
        assert info["formats"] == ["raw", "mp4"] and info["together"] is None


def test_a_full_server_says_when_to_come_again():
    made, data = Made(), body(7)
    made.go.clear()
    limit = 1.5 * len(data) / 2**30
    with serve(server.app(made.preset, queue_gib=limit)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, data)
        until(lambda: made.batches)
        assert figures(url)[("evoid_queue_bytes",)] == len(data)
        refused = post(url, data)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert f"hold {len(data)} of" in refused.json()["detail"]
        made.go.set()
        assert first.result(60).status_code == 200
        assert post(url, data).status_code == 200


def test_what_is_decoded_counts_as_much_as_it_takes():
    made = Made()
    video = np.zeros((16, 64, 64, 3), np.uint8)
    photos, prompts = [[np.zeros((1, 1, 3), np.uint8)]], ["a"]
    small = wire.encode_mp4([media.encode(video, 8)], photos, prompts)
    assert len(small) < video.nbytes / 20
    made.go.clear()
    with (
        serve(server.app(made.preset, queue_gib=1.5 * video.nbytes / 2**30)) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(post, url, small)
        until(lambda: made.batches)
        assert figures(url)[("evoid_queue_bytes",)] == len(small) + video.nbytes
        assert post(url, small).status_code == 429
        made.go.set()
        assert first.result(60).status_code == 200


def test_metrics_tell_what_each_reward_took():
    with serve(server.app(Made(together=2).preset)) as url:
        post(url, body(1, 2, 3, monitors=True))
        post(url, b"nonsense")
        told = figures(url)
    assert told[("evoid_reward_videos_total", "pixel")] == 3
    assert told[("evoid_reward_seconds_count", "pixel")] == 2  # two pieces
    assert told[("evoid_reward_seconds_sum", "twice")] >= 0
    assert told[("evoid_replies_total", "200")] == told[("evoid_replies_total", "400")] == 1
    assert told[("evoid_queue_videos",)] == told[("evoid_queue_bytes",)] == 0


def test_a_scorer_that_fails_as_a_whole_is_500_with_words():
    made = Made()
    with serve(server.app(made.preset)) as url:
        reply = post(url, body(made.bad))
        assert reply.status_code == 500
        assert reply.json()["detail"] == "RuntimeError: out of memory"
        assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200


def test_who_hangs_up_frees_the_nets():
    made = Made(together=1)
    made.go.clear()
    with serve(server.app(made.preset)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, body(1))
        until(lambda: made.batches)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/score", content=body(2), timeout=0.3, trust_env=False)
        until(lambda: figures(url).get(("evoid_replies_total", "499")) == 1)
        made.go.set()
        first.result(60)
        assert post(url, body(3)).json()["scores"]["pixel"]["raw"] == [3]
    assert made.batches == [[1], [3]]
