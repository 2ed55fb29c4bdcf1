"""One request to a sidecar over HTTP, and what its failure means: try again, later, or never."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

import httpx2

from evoid_jax.rewards import background
from evoid_jax.sidecars import wire

Encoding = Literal["raw", "h264", "lossless"]
CHUNK = 2**20  # bytes written at once
TOKEN = "EVOID_JAX_SIDECAR_TOKEN"  # the environment variable; every sidecar of a run is sent it
ANY_REPLY = 2**20  # bytes that any reply may have
PER_VIDEO = 2**16  # and those about videos for each: numbers, and words where there are none
LONGEST_REST = 60.0  # seconds that a server may ask to be left alone


class Options(NamedTuple):
    """How patient to be, and how to send."""

    timeout: float = 120.0  # seconds for all tries of a request, by a clock that never jumps
    attempts: int = 8  # tries of a request at each replica; what a 429 puts off is none
    backoff: float = 0.5  # seconds before a failed replica is looked at again; doubles, at most 10
    batch: int = 32  # videos per request, at most
    fps: float = 8
    encoding: Encoding = "raw"  # of the videos; a team with a member that reads raw alone gets raw
    probe: float = 5.0  # seconds without a word, after which a replica is asked whether it is there
    patience: float = 120.0  # seconds that a sidecar may be away, as one that is started again is


DEFAULTS = Options()


class SidecarError(ConnectionError):
    """A sidecar that cannot be used, and why."""


class Trouble(SidecarError):
    """A server's trouble that may pass: try again, there or elsewhere."""


class Away(Trouble):
    """A server that is not there, or not yet."""


class Doubtful(Trouble):
    """A reply that holds what no sound server sends, beside what may be right."""


class Later(Trouble):
    """A server that has too much to do: `seconds` until it wants to be asked again, or None."""

    seconds: float | None = None


async def ask(
    method: str,
    url: str,
    timeout: float,
    body: wire.Pieces | None = None,
    most: int = ANY_REPLY,
) -> dict:
    """Make a request once and return the JSON object that it is answered with.

    To be called in the thread of background.py. timeout: seconds for all of it, however it comes.
    body: sent from where it lies, so that gigabytes are never there twice. most: bytes of a reply.

    Raises:
      SidecarError: a Trouble where another try may help.
    """
    headers, sent = credentials() | {"Accept-Encoding": "identity"}, {}
    if body is not None:
        headers["Content-Length"] = str(sum(memoryview(piece).nbytes for piece in body))
        sent = {"content": _chunks(body)}
    http = background.http()
    try:
        async with (
            asyncio.timeout(timeout),
            http.stream(method, url, timeout=timeout, headers=headers, **sent) as reply,
        ):
            content = await _content(url, reply, most)
    except TimeoutError:
        raise Away(f"{url}: no answer in {timeout:g} s") from None
    except httpx2.RequestError as error:
        raise Away(f"{url}: {type(error).__name__}: {error}") from error
    except httpx2.InvalidURL as error:
        raise SidecarError(f"{url}: {error}") from error
    if reply.status_code != 200:
        raise _refusal(url, reply, content)
    return _object(url, content)


def credentials() -> dict[str, str]:
    """Return the header that a sidecar with a token wants; none where the variable is not set."""
    token = os.environ.get(TOKEN, "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


async def _chunks(body: wire.Pieces) -> AsyncIterator[bytes]:
    for piece in body:
        flat = memoryview(piece).cast("B")
        for start in range(0, len(flat), CHUNK):
            yield bytes(flat[start : start + CHUNK])


async def _content(url: str, reply: httpx2.Response, most: int) -> bytes:
    """Read a reply, which may come to no end."""
    if (packing := reply.headers.get("content-encoding", "identity")) != "identity":
        raise Trouble(f"{url}: a reply in {packing}, which was not asked for")
    content = bytearray()
    async for chunk in reply.aiter_bytes():
        content += chunk
        if len(content) > most:
            raise Trouble(f"{url}: a reply of more than {most} bytes, too long for what was asked")
    return bytes(content)


def _object(url: str, content: bytes) -> dict:
    """Read a reply; whatever is cut off or of somebody else may be right the next time."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        shown = content[:80].decode(errors="replace")
        raise Trouble(f"{url}: expected JSON, got {shown!r}") from error
    if not isinstance(answer, dict):
        raise Trouble(f"{url}: expected a JSON object, got {type(answer).__name__}")
    return answer


def _refusal(url: str, reply: httpx2.Response, content: bytes) -> SidecarError:
    """Return the error of a status that is not 200."""
    why = f"{url}: HTTP {reply.status_code}: {content[:300].decode(errors='replace')}"
    wait = _seconds(reply.headers.get("retry-after"))
    if reply.status_code == 429 or (reply.status_code == 503 and wait is not None):
        later = Later(why)
        later.seconds = wait
        return later
    # 5xx may pass; any other refusal would be the same the next time.
    return Away(why) if reply.status_code >= 500 else SidecarError(why)


def _seconds(header: str | None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3); None where it says nothing.

    At most LONGEST_REST: a server that asks for a year is asked again before it is over.
    """
    words = (header or "").strip()
    try:
        if words.isascii() and words.isdigit():
            seconds = float(words)
        else:
            seconds = email.utils.parsedate_to_datetime(words).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_REST)
