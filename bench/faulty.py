"""A sidecar and a judge whose answers are known, and which fail in all ways that we could think of.

Bytes are written to the socket by hand: a web server would not send what a broken one does.
"""

import asyncio
import base64
import gzip
import io
import json
import threading

import numpy as np
from PIL import Image

from evoid_jax.sidecars import wire

NAMES = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow")
BOMB = gzip.compress(bytes(64 * 2**20))
RETRY_AFTER = ("99999999999", "-5", "nan", "inf", "Fri, 31 Dec 9999 23:59:59 GMT", "\xb2", "soon")


def true_raw(level: int) -> list[float]:
    """Return what a video of a grey level gets of the sidecar, by the order of NAMES."""
    return [level + column for column in range(len(NAMES))]


def true_grade(level: int) -> int:
    """Return the grade that the judge gives to a video of a grey level."""
    return 1 + level // 28


LOOP = asyncio.new_event_loop()  # of all servers, in a thread of its own
threading.Thread(target=LOOP.run_forever, daemon=True).start()


class Faulty:
    """A server at `url`; use it as a context.

    fault: how it fails, one of the methods' names below, "" not at all. left: how many requests
    still meet it. met: how many have.
    """

    def __init__(self, port: int = 0):
        self.fault, self.left, self.met, self.version, self.port = "", 10**9, 0, "1", port
        self._server: asyncio.Server | None = None
        self._ended = False
        self._last: dict | None = None  # another request's answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Faulty":
        asyncio.run_coroutine_threadsafe(self._open(), LOOP).result(60)
        return self

    def __exit__(self, *_) -> None:
        self._ended = True
        self.shut()

    def shut(self, seconds: float | None = None) -> None:
        """End connections and take no more; again at the same port after so many seconds."""
        asyncio.run_coroutine_threadsafe(self._shut(), LOOP).result(60)
        if seconds is not None:
            asyncio.run_coroutine_threadsafe(self._open_after(seconds), LOOP)

    async def _open_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._ended:
            await self._open()

    async def _open(self) -> None:
        self._tasks = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=64)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader, writer) -> bool:
        """Answer a request; return whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = 0
        for line in head.split("\r\n"):
            if line.lower().startswith("content-length:"):
                length = int(line.split(":", 1)[1])
        body = await reader.readexactly(length)
        route = head.split(" ", 2)[1]
        fails = self.fault and self.left > 0
        if fails and (body or self.fault == "hang"):
            if body:
                self.left, self.met = self.left - 1, self.met + 1
            return await FAULTS[self.fault](self, writer, self._answer(route, body))
        return await send(writer, self._answer(route, body))

    def _answer(self, route: str, body: bytes) -> dict:
        if route == "/info":
            return {"preset": "faulty", "rewards": self._rewards(), "monitors": []}
        if route.endswith("/models"):
            return {"object": "list", "data": [{"id": "faulty", "object": "model"}]}
        return grades(json.loads(body)) if route.endswith("/completions") else self._scores(body)

    def _rewards(self) -> list[dict]:
        return [{"name": name, "version": self.version, "sha256": ""} for name in NAMES]

    def _scores(self, body: bytes) -> dict:
        asked = wire.decode(body)
        levels = [int(video[0, 0, 0, 0]) for video in asked.videos]
        scores = {}
        for column, name in enumerate(NAMES):
            raw = [true_raw(level)[column] for level in levels]
            scores[name] = {"raw": raw, "score": [level / 255 for level in levels]}
        bound = {"digest": wire.digest(body), "ids": asked.ids, "rewards": self._rewards()}
        return {"scores": scores} | bound


def grades(asked: dict) -> dict:
    """Return a chat completion that grades a video by the grey level of its last picture."""
    parts = asked["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    picture = Image.open(io.BytesIO(base64.b64decode(urls[-1].split(",")[1])))
    grade = true_grade(int(np.asarray(picture).mean().round()))
    names = asked["response_format"]["json_schema"]["schema"]["properties"]
    return said(dict.fromkeys(names, grade))


def said(answer: object) -> dict:
    """Return a chat completion with this answer."""
    message = {"role": "assistant", "content": json.dumps(answer)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": "faulty", "choices": [choice]}


# --- how replies are sent


async def send(writer, reply, status="200 OK", headers="", cut=0) -> bool:
    """Send a whole reply, JSON or bytes; but of the promised bytes the last `cut` do not come."""
    content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    writer.write(head.encode("latin-1") + content[: len(content) - cut])
    await writer.drain()
    return not cut


async def drip(writer, content: bytes) -> bool:
    """Send a byte after the other, and never come to an end."""
    while True:
        for byte in content:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)


async def hang(server, writer, reply) -> bool:
    await asyncio.sleep(3600)
    return False


async def close(server, writer, reply) -> bool:
    return False


async def close_half_way(server, writer, reply) -> bool:
    return await send(writer, reply, cut=len(json.dumps(reply)) // 2)


async def no_memory(server, writer, reply) -> bool:
    return await send(writer, {"detail": "CUDA out of memory"}, "500 Internal Server Error")


async def unavailable(server, writer, reply) -> bool:
    return await send(writer, b"", "503 Service Unavailable")


async def too_many(server, writer, reply) -> bool:
    seconds = RETRY_AFTER[server.met % len(RETRY_AFTER)]
    return await send(writer, b"", "429 Too Many Requests", f"Retry-After: {seconds}\r\n")


async def moved(server, writer, reply) -> bool:
    return await send(writer, b"", "302 Found", "Location: http://127.0.0.1:1/\r\n")


async def truncated(server, writer, reply) -> bool:
    whole = json.dumps(reply).encode()
    return await send(writer, whole[: len(whole) // 2])


async def html(server, writer, reply) -> bool:
    return await send(writer, b"<html>502 Bad Gateway</html>")


async def empty(server, writer, reply) -> bool:
    return await send(writer, b"")


async def a_list(server, writer, reply) -> bool:
    return await send(writer, [reply])


async def deep(server, writer, reply) -> bool:
    return await send(writer, b"[" * 200_000)


async def packed(server, writer, reply) -> bool:
    return await send(writer, BOMB, headers="Content-Encoding: gzip\r\n")


async def drips(server, writer, reply) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    return await drip(writer, json.dumps(reply).encode())


async def headers_drip(server, writer, reply) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    return await drip(writer, b"X-Slow: " + b"a" * 60 + b"\r\n")


async def endless(server, writer, reply) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = b"%x\r\n" % 2**16 + b" " * 2**16 + b"\r\n"
    while True:
        writer.write(block)
        await writer.drain()


async def slow(server, writer, reply) -> bool:
    await asyncio.sleep(0.3)
    return await send(writer, reply)


# --- what replies of a sidecar hold


async def unbound(server, writer, reply) -> bool:
    return await send(writer, {"scores": reply["scores"]})


async def another(server, writer, reply) -> bool:
    """Answer with what the request before should have got; the first one's is made up."""
    before = server._last or reply | {"digest": "0" * 64}
    server._last = reply
    return await send(writer, before)


async def turned(server, writer, reply) -> bool:
    return await send(writer, moved_by(reply, lambda rows: rows[::-1]))


async def shifted(server, writer, reply) -> bool:
    return await send(writer, moved_by(reply, lambda rows: [*rows[1:], *rows[:1]]))


def moved_by(reply: dict, move) -> dict:
    """Return a reply in another order, ids and all."""
    columns = {
        name: {key: move(rows) for key, rows in column.items()}
        for name, column in reply["scores"].items()
    }
    return reply | {"scores": columns, "ids": move(reply["ids"])}


async def other_version(server, writer, reply) -> bool:
    server.version = "2"
    wrong = altered(reply, raw=lambda rows: [x + 100 for x in rows])
    return await send(writer, wrong | {"rewards": server._rewards()})


def altered(reply: dict, **changes) -> dict:
    """Return a reply with one column changed."""
    column = reply["scores"]["gme"]
    column = column | {key: change(column[key]) for key, change in changes.items()}
    return reply | {"scores": reply["scores"] | {"gme": column}}


def altering(**changes):
    async def fault(server, writer, reply) -> bool:
        return await send(writer, altered(reply, **changes))

    return fault


async def lacking(server, writer, reply) -> bool:
    scores = {name: rows for name, rows in reply["scores"].items() if name != "gme"}
    return await send(writer, reply | {"scores": scores})


def answering(change):
    """Make a judge that says something else than it should."""

    async def fault(server, writer, reply) -> bool:
        answer = json.loads(reply["choices"][0]["message"]["content"])
        return await send(writer, change(answer))

    return fault


OF_BOTH = {
    "hang": hang,
    "hang in scoring": hang,
    "close": close,
    "close half-way": close_half_way,
    "500 out of memory": no_memory,
    "503": unavailable,
    "429, odd Retry-After": too_many,
    "302": moved,
    "truncated JSON": truncated,
    "HTML": html,
    "empty body": empty,
    "a list": a_list,
    "deep JSON": deep,
    "gzip bomb": packed,
    "body drips": drips,
    "headers drip": headers_drip,
    "endless body": endless,
    "slow": slow,
}
OF_SIDECARS = {
    "no digest": unbound,
    "another request's": another,
    "reversed": turned,
    "shifted": shifted,
    "other versions": other_version,
    "NaN": altering(raw=lambda rows: [float("nan")] * len(rows)),
    "infinity": altering(score=lambda rows: [float("inf")] * len(rows)),
    "strings": altering(raw=lambda rows: [str(x) for x in rows]),
    "nested": altering(score=lambda rows: [[x] for x in rows]),
    "too few": altering(raw=lambda rows: rows[1:], score=lambda rows: rows[1:]),
    "too many": altering(raw=lambda rows: [1.0, *rows], score=lambda rows: [1.0, *rows]),
    "beyond floats": altering(raw=lambda rows: [10**400] * len(rows)),
    "beyond 0..1": altering(score=lambda rows: [7.0] * len(rows)),
    "a reward less": lacking,
}
OF_JUDGES = {
    "NaN": answering(lambda answer: said(dict.fromkeys(answer, float("nan")))),
    "strings": answering(lambda answer: said(dict.fromkeys(answer, "high"))),
    "beyond 1..10": answering(lambda answer: said(dict.fromkeys(answer, 99))),
    "a grade less": answering(lambda answer: said(dict(list(answer.items())[1:]))),
    "no choices": answering(lambda answer: {"choices": []}),
    "prose": answering(lambda answer: said("I cannot see the video.")),
}
FAULTS = OF_BOTH | OF_SIDECARS | {f"judge: {name}": fault for name, fault in OF_JUDGES.items()}
