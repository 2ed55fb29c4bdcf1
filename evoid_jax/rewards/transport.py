"""Requests to a sidecar over HTTP: tried until they succeed, one replica after the other."""

from __future__ import annotations

import functools
from typing import NamedTuple

import httpx2
import tenacity


class Options(NamedTuple):
    """How patient to be, and how to send."""

    timeout: float = 120.0  # seconds for a reply
    attempts: int = 4  # tries of a request, in all
    backoff: float = 0.5  # seconds before the second try; doubles, at most 10
    batch: int = 32  # videos per request, at most
    fps: int = 8


DEFAULTS = Options()


class SidecarError(ConnectionError):
    """A sidecar that cannot be used, and why."""


class _Busy(SidecarError):
    """A server's trouble that may pass: try again."""


def retry(urls: tuple[str, ...], method: str, path: str, options: Options, body=None) -> dict:
    """Make a request until it succeeds, one replica after the other, with growing pauses.

    Raises:
      SidecarError: the last failure, when tries ran out or another try could not help.
    """
    tries = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(options.attempts),
        wait=tenacity.wait_exponential(options.backoff, max=10)
        + tenacity.wait_random(0, options.backoff / 2),
        retry=tenacity.retry_if_exception_type(_Busy),
        reraise=True,
    )
    for attempt in tries:
        with attempt:  # swallows a _Busy, and raises what came of the last try
            number = attempt.retry_state.attempt_number
            return _once(urls[(number - 1) % len(urls)] + path, method, options.timeout, body)
    raise AssertionError("tenacity either returns or raises")


def _once(url: str, method: str, timeout: float, body: bytes | None) -> dict:
    try:
        reply = _http().request(method, url, content=body, timeout=timeout)
    except httpx2.RequestError as error:
        raise _Busy(f"{url}: {type(error).__name__}: {error}") from error
    except httpx2.InvalidURL as error:
        raise SidecarError(f"{url}: {error}") from error
    if reply.status_code != 200:
        # 429 and 5xx may pass; any other refusal would be the same the next time.
        kind = _Busy if reply.status_code >= 500 or reply.status_code == 429 else SidecarError
        raise kind(f"{url}: HTTP {reply.status_code}: {reply.text[:300]}")
    try:
        answer = reply.json()
    except ValueError as error:
        raise SidecarError(f"{url}: expected JSON, got {reply.text[:80]!r}") from error
    if not isinstance(answer, dict):
        raise SidecarError(f"{url}: expected a JSON object, got {type(answer).__name__}")
    return answer


@functools.lru_cache(maxsize=1)
def _http() -> httpx2.Client:
    # Sidecars are our own machines: a proxy from the environment would only lose them.
    return httpx2.Client(trust_env=False, limits=httpx2.Limits(max_connections=64))
