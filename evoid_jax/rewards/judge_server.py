"""One OpenAI-compatible server: its address and key, its limits, and sending it a request in time.

A key is read from the environment, sent, and stands nowhere else: not in a message, not in a file.
Requests are made in the thread of background.py: what runs there ends in time, whatever a server
sends or keeps back, and holds nobody who gives up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import httpx2
import openai
import tenacity

from evoid_jax.config import SECRET
from evoid_jax.rewards import background
from evoid_jax.rewards.judge_answers import shown
from evoid_jax.rewards.judge_record import Usage

USUAL_KEY = "OPENAI_API_KEY"  # a variable that may be absent; any other that is named must be set
NO_KEY = "EMPTY"  # what vLLM's own examples send
LONGEST = 400  # letters of a message
PATIENCE = 10.0  # longest pause between two tries, where the server does not ask for another
ANY_REPLY = 2**20  # bytes that any reply may have, and for each token of an answer:
PER_TOKEN, PER_LIKELY_TOKEN = 2**7, 2**13  # alone, and with the 20 that were likely in its place
# All that goes to a server besides the request. The environment may hold more that is meant for
# somebody else: OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS.
HEADERS = ("host", "accept", "connection", "user-agent", "content-type", "content-length")
HEADERS += ("x-stainless-raw-response",)  # by which openai itself knows how it was asked
# What else a server may call a field that it refuses.
ALIASES = {
    "response_format": r"response_format|json.?schema|guided_json|structured.outputs?|grammar",
    "logprobs": r"logprobs|top_logprobs",
}


class Server(NamedTuple):
    """Where a judge is, and how it is asked.

    url: such as "http://127.0.0.1:8200/v1". model: as the server names it; "" is the only one that
    it has. key_env: the environment variable with its key; "" sends none. timeout: seconds for one
    question, or for all questions about one batch. retries: after a failure that may pass. workers:
    requests under way at once. tokens: longest answer, thinking included. extra: fields that are
    added to every request, over those that we send. expected: whether numbers are expected values
    over the server's logprobs. name: by which answers are kept; "" is the url. setting: what gave
    the url, for messages. patience: seconds that it may be away, as one that is started again is.
    """

    url: str
    model: str = ""
    key_env: str = ""
    timeout: float = 60.0
    retries: int = 3
    workers: int = 8
    tokens: int = 4096
    extra: Mapping = MappingProxyType({})
    expected: bool = False
    name: str = ""
    setting: str = "config.reward.judge"
    patience: float = 0.0


class JudgeError(Exception):
    """A question without a usable answer, and why."""


class _Passing(JudgeError):
    """Trouble that may pass: try again, after the seconds that the server asked for if it did.

    away: the server is not there, or not yet.
    """

    def __init__(self, words: str, pause: float | None = None, away: bool = False):
        super().__init__(words)
        self.pause, self.away = pause, away


class Broken(JudgeError):
    """A server that failed over this very request: another answer might do better."""


class Refused(JudgeError):
    """A request that the server does not take; `field` is what it names as the reason, or None."""

    def __init__(self, words: str, status: int, field: str | None):
        super().__init__(words)
        self.status, self.field = status, field


class Wire:
    """Sends requests to a server; safe to use from several threads.

    usage: counts every request.

    Raises:
      ValueError: the variable of the key is not set, or an address, key or proxy cannot be.
    """

    def __init__(self, server: Server, usage: Usage):
        self._server, self._usage = server, usage
        self._key = read_key(server.key_env, server.setting)
        self._client = _client(server, self._key)
        self._room = threading.BoundedSemaphore(server.workers)
        self.address, self._closed = str(self._client.base_url), False

    def close(self) -> None:
        """Close the connections; nothing is sent any more."""
        self._closed = True
        background.run(self._client.close())

    def models(self) -> list[str] | None:
        """Return the names of the server's models; None where it does not list them.

        A server that is not there is waited for, for `patience` seconds.

        Raises:
          Refused: it wants a key, or another one.
          JudgeError: it does not answer.
          ValueError: it answers, and is no OpenAI API.
        """
        tries = tenacity.Retrying(
            stop=self._enough,
            wait=_pause,
            retry=tenacity.retry_if_exception_type(_Passing),
            reraise=True,
        )
        return tries(self._models)

    def _models(self) -> list[str] | None:
        try:
            asked = asyncio.wait_for(self._client.models.list(), self._server.timeout)
            page = background.run(asked)
            return [model.id for model in page.data] or None
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 422, 501):
                return None
            if error.status_code >= 500:
                raise _Passing(self.words(error), away=True) from None
            raise Refused(self.words(error), error.status_code, None) from None
        except TimeoutError:
            raise JudgeError(f"no answer in {self._server.timeout:g} s") from None
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise _Passing(self.words(error), away=True) from None
        except Exception as error:  # any server answers something, of which openai expects a shape
            raise ValueError(self.words(error)) from None

    def _enough(self, state: tenacity.RetryCallState) -> bool:
        """Tell whether a server has been tried often enough."""
        error = state.outcome.exception()
        waits = isinstance(error, _Passing) and error.away
        if waits and state.seconds_since_start < self._server.patience:
            return False
        return state.attempt_number > self._server.retries

    def post(self, body: dict, until: float) -> object:
        """Send a chat request until it succeeds, with growing pauses, and return the reply's JSON.

        until: by `time.monotonic`; the reply is here then, or none comes.

        Raises:
          Refused: the server does not take the request.
          Broken: it failed over it.
          JudgeError: no reply came in time, or none that is JSON.
        """
        tries = tenacity.Retrying(
            stop=tenacity.stop_any(
                self._enough, tenacity.stop_before_delay(max(until - time.monotonic(), 0.0))
            ),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(_Passing),
            reraise=True,
        )
        return tries(self._once, body, until)

    def words(self, error: object) -> str:
        """Return an error in one line, without the key, which a server may repeat."""
        words = str(error)
        if isinstance(error, openai.APIStatusError):
            words = f"HTTP {error.status_code}: {_message(error)}"
        elif isinstance(error, openai.APIConnectionError):  # which itself says no more than that
            words = f"{words} {error.__cause__ or ''}"
        words = " ".join(self.hide(words).split())
        return words if len(words) <= LONGEST else f"{words[:LONGEST]}..."

    def hide(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._key, "***") if self._key else text

    def _once(self, body: dict, until: float) -> object:
        left = until - time.monotonic()
        if left <= 0 or not self._room.acquire(timeout=left):
            raise JudgeError(f"there was no time to ask it, of {self._server.timeout:g} s")
        began = time.monotonic()
        try:
            if self._closed:
                raise JudgeError("nobody waits for its answer any more")
            content = background.run(self._content(body, until))
        finally:
            self._room.release()
            self._usage.add(calls=1, seconds=time.monotonic() - began)
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            text = self.hide(content.decode(errors="replace"))
            raise _Passing(f"expected JSON, got {shown(text)}") from None  # cut off, or a proxy's
        self._usage.add_tokens(reply)
        return reply

    async def _content(self, body: dict, until: float) -> bytes:
        """Return the bytes of a reply."""
        rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
        late = JudgeError(f"no answer in {self._server.timeout:g} s")
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with (
                asyncio.timeout(until - time.monotonic()),
                create(
                    model=body["model"],
                    messages=body["messages"],
                    extra_body=rest,
                    timeout=max(until - time.monotonic(), 1e-3),
                ) as reply,
            ):
                return b"".join([chunk async for chunk in reply.iter_bytes()])
        except openai.APIStatusError as error:
            status, words = error.status_code, self.words(error)
            if status == 500:  # llama.cpp's, where an answer was cut off or is no text
                raise Broken(words) from None
            if status in (408, 409, 429) or status > 500:
                away = status in (502, 503, 504)
                raise _Passing(words, _wanted_pause(error), away) from None
            raise Refused(words, status, refused_field(error, body)) from None
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            raise late from None
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise _Passing(self.words(error), away=_refused(error)) from None


def read_key(name: str, setting: str = "config.reward.judge") -> str:
    """Return the key that an environment variable holds; "" where none is wanted.

    The usual variable of OpenAI's programs may be absent, any other must be there.

    Raises:
      ValueError: it is not there, or cannot be a key; the message does not hold it.
    """
    key = os.environ.get(name, "").strip() if name else ""
    if name not in ("", USUAL_KEY) and not key:
        # Its name is not repeated: it might be the key itself.
        raise ValueError(f"{setting}_key_env names an environment variable that is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"{setting}_key_env: the variable holds no key: it has odd letters in it")
    return key


def refused_field(error: openai.APIStatusError, body: Mapping) -> str | None:
    """Return which field of a request a server says that it does not take; None if it says none.

    Only fields without which a request still asks the same.
    """
    if error.status_code not in (400, 422):
        return None
    free = [name for name in body if name not in ("model", "messages", "top_logprobs")]
    details = error.body.get("detail") if isinstance(error.body, Mapping) else None
    # The place of the fault goes before words, which may repeat the whole request.
    told = [error.param]
    for row in details if isinstance(details, list) else ():
        told += row.get("loc", ()) if isinstance(row, Mapping) else ()
    for words in (*told, _message(error)):
        named = [(match.start(), name) for name in free if (match := _named(name, str(words)))]
        if named:
            return min(named)[1]
    return None


def _message(error: openai.APIStatusError) -> str:
    """Return what the server says of an error, which openai drops where it is no object."""
    said = error.body.get("message") if isinstance(error.body, Mapping) else error.body
    return str(said or error.message)


def _named(field: str, words: str) -> re.Match | None:
    pattern = ALIASES.get(field, re.escape(field))
    return re.search(rf"(?<![\w-])(?:{pattern})(?![\w-])", words, re.IGNORECASE)


def _refused(error: Exception) -> bool:
    """Tell whether nobody takes connections there."""
    return isinstance(error.__cause__, httpx2.ConnectError)


def _client(server: Server, key: str) -> openai.AsyncOpenAI:
    """Return the client of a server, which may be behind a path, a proxy or SOCKS."""
    if SECRET.search(server.url):
        raise ValueError(
            f"{server.setting}: an address must hold no name, password or key; put the key into "
            f"the environment variable {server.key_env or USUAL_KEY}"
        )
    address = urlsplit(server.url)
    # A proxy of the environment must not catch this machine's own addresses.
    proxies = not _is_own_machine(address.hostname or "")
    per_token = PER_LIKELY_TOKEN if server.expected else PER_TOKEN
    most = ANY_REPLY + per_token * server.tokens

    async def bare(request: httpx2.Request) -> None:
        kept = {name: request.headers[name] for name in HEADERS if name in request.headers}
        kept |= {"authorization": f"Bearer {key or NO_KEY}", "accept-encoding": "identity"}
        request.headers = httpx2.Headers(kept)

    async def short(reply: httpx2.Response) -> None:
        reply.stream = _Short(reply, most)

    hooks = {"request": [bare], "response": [short]}
    try:
        http = openai.DefaultAsyncHttpxClient(trust_env=proxies, event_hooks=hooks)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{server.setting}: the environment's proxy: {error}") from None
    return openai.AsyncOpenAI(
        base_url=urlunsplit(address._replace(query="", fragment="")),
        api_key=key or NO_KEY,
        timeout=server.timeout,
        max_retries=0,  # counted and timed here, so that all of them end in time
        default_query=dict(parse_qsl(address.query)),
        http_client=http,
    )


class _Short(httpx2.AsyncByteStream):
    """The bytes of a reply, of which only so many are taken."""

    def __init__(self, reply: httpx2.Response, most: int):
        self._stream, self._most = reply.stream, most
        self._packed = reply.headers.get("content-encoding", "identity") != "identity"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._packed:  # a little of it may be gigabytes
            raise httpx2.ReadError("a compressed reply, which was not asked for")
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._most:
                raise httpx2.ReadError(f"a reply of more than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _is_own_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pause(state: tenacity.RetryCallState) -> float:
    """Return the seconds before the next try: what the server asked for, else doubled each time."""
    error = state.outcome.exception()
    if isinstance(error, _Passing) and error.pause is not None:
        return error.pause
    return min(0.5 * 2 ** (state.attempt_number - 1), PATIENCE)


def _wanted_pause(error: openai.APIStatusError) -> float | None:
    """Return the seconds of a Retry-After header; None where it has none that is a number."""
    try:
        pause = float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return pause if pause >= 0 else None
