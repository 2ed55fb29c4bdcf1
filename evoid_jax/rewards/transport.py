"""One request to a sidecar over HTTP, and what its failure means: try again, later, or never."""

from __future__ import annotations

import email.utils
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


class Options(NamedTuple):
    """How patient to be, and how to send."""

    timeout: float = 120.0  # seconds for all tries of a request, by a clock that never jumps
    attempts: int = 8  # tries of a request at each replica; what a 429 puts off is none
    backoff: float = 0.5  # seconds before a failed replica is looked at again; doubles, at most 10
    batch: int = 32  # videos per request, at most
    fps: float = 8
    encoding: Encoding = "raw"  # of the videos; a team with a member that reads raw alone gets raw
    probe: float = 5.0  # seconds without a word, after which a replica is asked whether it is there


DEFAULTS = Options()


class SidecarError(ConnectionError):
    """A sidecar that cannot be used, and why."""


class Trouble(SidecarError):
    """A server's trouble that may pass: try again, there or elsewhere."""


class Later(Trouble):
    """A server that has too much to do: `seconds` until it wants to be asked again, or None."""

    seconds: float | None = None


async def ask(method: str, url: str, timeout: float, body: wire.Pieces | None = None) -> dict:
    """Make a request once and return the JSON object that it is answered with.

    To be called in the thread of background.py. timeout: seconds without progress, after which it
    counts as failed. body: sent from where it lies, so that gigabytes are never there twice.

    Raises:
      SidecarError: a Trouble where another try may help.
    """
    headers, sent = credentials(), {}
    if body is not None:
        headers["Content-Length"] = str(sum(memoryview(piece).nbytes for piece in body))
        sent = {"content": _chunks(body)}
    try:
        reply = await background.http().request(
            method, url, timeout=timeout, headers=headers, **sent
        )
    except httpx2.RequestError as error:
        raise Trouble(f"{url}: {type(error).__name__}: {error}") from error
    except httpx2.InvalidURL as error:
        raise SidecarError(f"{url}: {error}") from error
    if reply.status_code != 200:
        raise _refusal(url, reply)
    try:
        answer = reply.json()
    except ValueError as error:
        raise SidecarError(f"{url}: expected JSON, got {reply.text[:80]!r}") from error
    if not isinstance(answer, dict):
        raise SidecarError(f"{url}: expected a JSON object, got {type(answer).__name__}")
    return answer


def credentials() -> dict[str, str]:
    """Return the header that a sidecar with a token wants; none where the variable is not set."""
    token = os.environ.get(TOKEN, "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


async def _chunks(body: wire.Pieces) -> AsyncIterator[bytes]:
    for piece in body:
        flat = memoryview(piece).cast("B")
        for start in range(0, len(flat), CHUNK):
            yield bytes(flat[start : start + CHUNK])


def _refusal(url: str, reply: httpx2.Response) -> SidecarError:
    """Return the error of a status that is not 200."""
    why = f"{url}: HTTP {reply.status_code}: {reply.text[:300]}"
    wait = _seconds(reply.headers.get("retry-after"))
    if reply.status_code == 429 or (reply.status_code == 503 and wait is not None):
        later = Later(why)
        later.seconds = wait
        return later
    # 5xx may pass; any other refusal would be the same the next time.
    return Trouble(why) if reply.status_code >= 500 else SidecarError(why)


def _seconds(header: str | None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3); None where it says nothing."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
