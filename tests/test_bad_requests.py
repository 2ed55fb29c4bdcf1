"""Requests made to hurt: each gets a status and a line, and the servers go on answering others."""

import asyncio
import base64
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from servers import serve

from evoid_jax import media
from evoid_jax.rewards import judge as judge_client
from evoid_jax.rewards import rubrics
from evoid_jax.sidecars import listen, preset, queue, wire
from evoid_jax.sidecars import serve as server
from evoid_jax.sidecars.tiny import judge, rewards

PHOTO = np.zeros((4, 4, 3), np.uint8)
UNDER_WAY = 200


class Waits:
    """A preset whose reward and whose look at photos wait for `go`; `seen` are its videos."""

    def __init__(self):
        self.go, self.began, self.seen, self.looked = threading.Event(), threading.Event(), 0, []
        reward = preset.Scorer("level", "1", "", "the first pixel", self.score)
        self.preset = preset.Preset("waits", (reward,), (), self.prepare, 1, self.look)

    def prepare(self, request):
        there = [i for i, video in enumerate(request.videos) if video is not None]
        yield there, [int(request.videos[i][0, 0, 0, 0]) for i in there]

    def score(self, levels):
        self.began.set()
        assert self.go.wait(120)
        self.seen += len(levels)
        return preset.Column(np.array(levels), np.array(levels) / 255, [None] * len(levels))

    def look(self, photo_HWC):
        self.looked.append(int(photo_HWC[0, 0, 0]))
        self.began.set()
        assert self.go.wait(120)
        return ""


def framed(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<I", len(header)) + header + payload


def body(level: int = 0, frames: int = 1) -> bytes:
    video_BFHWC = np.full((1, frames, 1, 1, 3), level, np.uint8)
    return wire.encode(video_BFHWC, [[PHOTO]], ["a"])


def until(true):
    end = threading.Event()
    for _ in range(6000):
        if true():
            return
        end.wait(0.01)
    raise AssertionError("it never happened")


# --- sidecars


@pytest.fixture(scope="module")
def http():
    made = Waits()
    made.go.set()
    return TestClient(server.app(made.preset), raise_server_exceptions=True)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (body(frames=100_000), 413, "got 100,000"),
        (body(frames=5000), 413, "2,048 frames of a video, got 5,000"),
        (framed(b"[" * 100_000), 413, "8 lists in each other"),
        (framed(b"{}" + b" " * 2**22), 413, "bytes of a header"),
        (framed(b'{"protocol": 1e999}'), 400, "protocol must be 2"),
        (framed(b'{"protocol": ' + b"9" * 5000 + b"}"), 400, "not JSON"),
        (framed(b"[1]"), 400, "must be a JSON object"),
        (b"", 400, "4-byte"),
        (b"\x80\x04\x95" + b"." * 100, 400, "the header should be"),
    ],
)
def test_a_request_that_claims_or_nests_too_much_gets_a_line(http, sent, status, said):
    for path in ("/score", "/photos"):
        reply = http.post(path, content=sent)
        assert reply.status_code in (400, 413)
    reply = http.post("/score", content=sent)
    assert reply.status_code == status and said in reply.json()["detail"]
    assert len(reply.json()["detail"]) < 400


def test_half_a_character_is_no_traceback(http):
    """JSON can say it and UTF-8, in which replies are written, cannot."""
    header = {"protocol": 2, "shape": [1, 1, 1, 1, 3], "photos": [[4, 4, 3]], "references": [[0]]}
    for change in ({"ids": ["\ud800"]}, {"rewards": ["\ud800"]}, {"format": "\ud800"}):
        text = json.dumps(header | {"prompts": ["a"]} | change).encode()
        assert http.post("/score", content=framed(text, bytes(51))).status_code == 400


def test_decoded_videos_count_towards_the_size_of_a_request():
    made = Waits()
    made.go.set()
    video = np.zeros((16, 64, 64, 3), np.uint8)
    small = wire.encode_mp4([media.encode(video, 8)], [[PHOTO]], ["a"])
    gib = lambda size: size / 2**30
    over, enough = gib(video.nbytes), gib(video.nbytes + len(small))
    refused = TestClient(server.app(made.preset, request_gib=over)).post("/score", content=small)
    assert refused.status_code == 413 and "its videos, decoded" in refused.json()["detail"]
    app = server.app(made.preset, request_gib=enough)
    assert TestClient(app).post("/score", content=small).status_code == 200
    assert app.state.desk.room.held == 0


def test_room_is_taken_while_a_body_without_a_length_comes():
    made, data = Waits(), body(7)
    app = server.app(made.preset, queue_gib=1.5 * len(data) / 2**30)
    with serve(app) as url, ThreadPoolExecutor(1) as pool:
        post = lambda content: httpx2.post(
            f"{url}/score", content=content, timeout=120, trust_env=False
        )
        first = pool.submit(post, data)
        assert made.began.wait(60)
        refused = post(iter([data[:20], data[20:]]))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        made.go.set()
        assert first.result(60).status_code == 200
        assert post(iter([data[:20], data[20:]])).status_code == 200
    assert app.state.desk.room.held == 0


def test_a_share_gives_back_what_it_took_whatever_happens():
    room = queue.Room(10)
    with pytest.raises(queue.NoRoom), queue.Share(room) as one, queue.Share(room) as other:
        one.grow(4)
        other.grow(5)
        assert room.held == 9
        other.grow(2)
    assert room.held == 0


def test_health_answers_while_requests_wait_and_one_is_decoded(monkeypatch):
    """All readers are busy, and so is every thread that frameworks keep for plain functions."""
    made, decoding, decoded = Waits(), threading.Event(), threading.Event()
    whole = wire.decode

    def slow(content, *rest):
        if len(content) > 5_000:
            decoding.set()
            assert decoded.wait(120)
        return whole(content, *rest)

    monkeypatch.setattr(wire, "decode", slow)

    async def ask(url: str):
        limit = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(trust_env=False, timeout=120, limits=limit) as http:
            small = [http.post(f"{url}/score", content=body(k)) for k in range(UNDER_WAY)]
            waiting = [asyncio.create_task(one) for one in small]
            await asyncio.to_thread(made.began.wait, 60)
            huge = [http.post(f"{url}/score", content=body(1, frames=2000)) for _ in range(3)]
            waiting += [asyncio.create_task(one) for one in huge]
            await asyncio.to_thread(decoding.wait, 60)
            replies = [await http.get(url + path) for path in ("/health", "/info", "/metrics")]
            assert [reply.status_code for reply in replies] == [200] * 3
            assert not any(task.done() for task in waiting)
            decoded.set()
            made.go.set()
            return await asyncio.gather(*waiting)

    with serve(server.app(made.preset), make=listen.server) as url:
        replies = asyncio.run(ask(url))
    assert [reply.status_code for reply in replies] == [200] * (UNDER_WAY + 3)


def test_photos_of_who_has_gone_are_not_looked_at():
    made = Waits()
    photos = [np.full((2, 2, 3), level, np.uint8) for level in range(5)]
    app = server.app(made.preset)
    with serve(app) as url:
        with pytest.raises(httpx2.ReadTimeout):
            data = wire.encode_photos(photos)
            httpx2.post(f"{url}/photos", content=data, timeout=0.5, trust_env=False)
        made.go.set()
        until(lambda: not app.state.desk.room.held)
    assert made.looked == [0]


def test_many_small_videos_go_to_the_nets_a_few_at_a_time():
    """Of one pixel each, they would all be 64 x 64 numbers, and what nets make of those."""
    video_BFHWC = np.zeros((100, 3, 1, 1, 3), np.uint8)
    request = wire.decode(wire.encode(video_BFHWC, [[PHOTO]] * 100, ["a"] * 100))
    parts = list(rewards.prepare(request))
    assert [i for indices, _ in parts for i in indices] == list(range(100))
    assert max(len(clips.x_BFCHW) for _, clips in parts) == rewards.TOGETHER


# --- the judge


def chat(pictures: list[str], form=None, text: str = "reference") -> dict:
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    parts = [{"type": "text", "text": text}, *shown[:1], {"type": "text", "text": "frame"}]
    form = form or rubrics.questions().vqscore.form
    return {
        "messages": [{"role": "user", "content": [*parts, *shown[1:]]}],
        "response_format": form,
    }


def png(width: int, height: int) -> str:
    """Return a data: URL of a picture of one colour; small, whatever its size."""
    part = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # one bit a pixel
    lines = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    file = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", lines) + part(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


GOOD = judge_client.picture(np.zeros((48, 48, 3), np.uint8), 48)["image_url"]["url"]


@pytest.fixture(scope="module")
def asked():
    client = TestClient(judge.app(), raise_server_exceptions=True)
    return lambda sent: client.post("/v1/chat/completions", content=sent)


def test_pictures_too_large_to_be_shown_are_refused_before_they_are_decoded(asked, monkeypatch):
    assert asked(json.dumps(chat([GOOD, png(2048, 2048)]))).status_code == 200
    monkeypatch.setattr(judge.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for side in (2049, 20_000):
        reply = asked(json.dumps(chat([png(side, side)])))
        assert reply.status_code == 413
        assert "4,194,304 pixels of a picture" in reply.json()["error"]["message"]


PROPOSE = {"json_schema": {"schema": {"properties": {"prompts": {"minItems": "many"}}}}}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"[" * 90_000, 400, "lists in each other"),
        (b"[" * 300_000, 413, "lists, objects and commas"),
        (b'{"a":' * 40_000, 400, "lists in each other"),
        (b"9" * 5000, 400, "4300 digits"),
        (b"\xff\xfe\x00", 400, ""),
        (b"null", 400, "response_format"),
        (json.dumps(chat([GOOD] * 66)), 413, "64 pictures, got 66"),
        (json.dumps(chat([GOOD, GOOD], text='reference\nPrompt: "' + "a" * 30_000 + '"')), 413, ""),
        (json.dumps(chat([GOOD], form=PROPOSE)), 400, "minItems"),
        (json.dumps(chat(["http://127.0.0.1:9/a.png"])), 400, "base64"),
        (json.dumps(chat(["file:///etc/hostname"])), 400, "base64"),
        (json.dumps(chat([7])), 400, "base64"),
        (json.dumps(chat(["data:image/png;base64,é"])), 400, ""),
        (json.dumps(chat(["data:image/svg+xml;base64,PHN2Zz4="])), 400, "PNG or JPEG"),
        (json.dumps(chat([GOOD]) | {"messages": [3]}), 400, "not a chat request"),
        (json.dumps(chat([GOOD]) | {"messages": {"a": 1}}), 400, "not a chat request"),
        (json.dumps(chat([GOOD]) | {"messages": [{"content": [None]}]}), 400, "not a chat request"),
        (json.dumps(chat([GOOD], form={"json_schema": {"schema": {"properties": [3]}}})), 400, ""),
    ],
)
def test_what_the_judge_cannot_answer_gets_a_line(asked, sent, status, said):
    reply = asked(sent)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert len(reply.json()["error"]["message"]) < 500


def test_the_judge_answers_health_while_it_reads(monkeypatch):
    reading, go = threading.Event(), threading.Event()

    def slow(body):
        reading.set()
        assert go.wait(120)
        return {}

    monkeypatch.setattr(judge, "chatted", slow)
    with serve(judge.app(), make=listen.server) as url, ThreadPoolExecutor(9) as pool:
        post = lambda: httpx2.post(
            f"{url}/v1/chat/completions", content=b"{}", timeout=120, trust_env=False
        )
        asked = [pool.submit(post) for _ in range(9)]
        assert reading.wait(60)
        assert httpx2.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200
        assert not any(one.done() for one in asked)
        go.set()
        assert [one.result(60).status_code for one in asked] == [200] * 9


def test_nothing_is_fetched_for_a_request(asked, http):
    """An address of a listening server in every place where one could be tried."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        playlists = [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}.ts\n",
            f"ffconcat version 1.0\nfile {address}\n",
            f'<?xml version="1.0"?><MPD><BaseURL>{address}</BaseURL></MPD>',
        ]
        files = [text.encode() for text in playlists]
        sent = wire.encode_mp4(files, [[PHOTO]] * len(files), [address] * len(files))
        column = http.post("/score", content=sent).json()["scores"]["level"]
        assert column["score"] == [None] * len(files)
        assert asked(json.dumps(chat([address, address]))).status_code == 400
        with pytest.raises(TimeoutError):
            listener.accept()
