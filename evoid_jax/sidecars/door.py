"""Who comes in and how much they bring: a layer around every server of ours.

It asks for the token, counts a body while it comes, and sends away whoever brings it too slowly.
What waits or computes behind it has its own limits; see limits.py and listen.py.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evoid_jax.sidecars import limits
from evoid_jax.sidecars.queue import NoRoom, Share

OPEN = "/health"  # is answered without a token: whoever starts servers asks it, and it tells little
SHORTEST_TOKEN = 16  # characters; 32 bytes of `openssl rand -hex 32` are 64
PATIENCE = 30.0  # seconds for a body's first bytes, and for what comes unevenly
PACE = 2**18  # bytes per second that a body must bring after that; 2 Mbit/s


class Door:
    """An ASGI app that lets in to another one who may come in.

    Args:
      app: the other one.
      most: bytes that a body may have; a larger one is 413.
      token: what `Authorization: Bearer ..` must bring everywhere but to OPEN, else 401; None asks
        for nothing.
      patience, pace: seconds, and bytes per second after these; a slower body is 408.
    """

    def __init__(
        self,
        app: ASGIApp,
        most: int,
        token: str | None = None,
        patience: float = PATIENCE,
        pace: float = PACE,
    ):
        self._app, self._most, self._token = app, most, token
        self._patience, self._pace = patience, pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # "lifespan"; a WebSocket finds no route
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if refusal := self._refusal(scope, headers):
            await refusal(scope, receive, send)
            return
        most = self._most if b"content-length" in headers else min(self._most, limits.UNTOLD)
        await self._app(scope, self._measured(receive, most), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """Return the answer to who may not come in."""
        # Browsers name the page that sends them. One that a user of this machine looks at could
        # reach loopback, where there is no token.
        if b"origin" in headers:
            return JSONResponse({"detail": "this server is not for pages in a browser"}, 403)
        # Behind a proxy that serves several apps the path begins with the app's own place there.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token and path != OPEN and not self._knows(headers.get(b"authorization", b"")):
            words = "expected the header Authorization: Bearer TOKEN, with this server's token"
            return JSONResponse({"detail": words}, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self._most:
            return JSONResponse({"detail": _too_large(self._most)}, 413)
        return None

    def _knows(self, sent: bytes) -> bool:
        """Tell whether it is the token, in a time that does not tell how much of it is right."""
        kind, _, value = sent.partition(b" ")
        right = hmac.compare_digest(value.strip(), self._token.encode())
        return right and kind.lower() == b"bearer"

    def _measured(self, receive: Receive, most: int) -> Receive:
        """Wrap what gives a request's body, so that it is counted by bytes and seconds."""
        began, got, whole = time.monotonic(), 0, False

        async def measured() -> Message:
            nonlocal got, whole
            if whole:  # what comes now is that the peer has gone
                return await receive()
            due = began + self._patience + got / self._pace
            try:
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                words = (
                    f"the body comes too slowly: {got} bytes in {time.monotonic() - began:.0f} s"
                )
                raise HTTPException(408, words) from None
            got += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if got > most:
                raise HTTPException(413, _too_large(most))
            return message

        return measured


def _too_large(most: int) -> str:
    advice = "send less at once, and say how long it is in Content-Length"
    return f"expected a body of at most {most:,} bytes; {advice}"


async def body(request: Request, share: Share, most: int) -> bytearray:
    """Read a body as it comes, and take room for it before it is there.

    Raises:
      NoRoom: there is none now. TooMuch: it has more than `most` bytes.
    """
    length = int(request.headers.get("content-length") or 0)
    limits.check("bytes of a body", length, most)
    try:
        share.grow(length)
    except NoRoom:
        # Read and thrown away: a connection that is closed on its sender loses the reply too.
        async for _ in request.stream():
            pass
        raise
    whole = bytearray()  # grows in place; the pieces and their sum would be there twice
    async for chunk in request.stream():
        size = len(whole) + len(chunk)
        limits.check("bytes of a body", size, most)
        if size > share.size:  # it came without its length
            share.grow(size - share.size)
        whole += chunk
    return whole


def token(variable: str, host: str, loopback: bool, trusted: bool) -> str | None:
    """Return the token that a server asks for, None for none.

    Args:
      variable: the environment variable that holds it; "" names none.
      host: where the server listens, and loopback: whether only this machine reaches that.
      trusted: whether everybody who reaches it may use it.

    Raises:
      ValueError: there must be a token and there is none, or it is too short or cannot be sent.
    """
    value = os.environ.get(variable, "") if variable else ""
    if value:
        # Neither is shown: somebody may have given the token in place of the variable's name.
        if len(value) < SHORTEST_TOKEN or not (value.isascii() and value.isprintable()):
            raise ValueError(
                f"the token that --token-env names must have {SHORTEST_TOKEN} or more printable "
                "characters of ASCII, such as `openssl rand -hex 32` gives"
            )
        if " " in value:
            raise ValueError("the token that --token-env names must have no blanks")
        return value
    if trusted:
        return None
    if variable:
        raise ValueError(
            "--token-env must name an environment variable, and the one that it names is not set; "
            "such as: export EVOID_JAX_SIDECAR_TOKEN=$(openssl rand -hex 32)"
        )
    if not loopback:
        raise ValueError(
            f"--host={host} is reached from other machines: give --token-env=VARIABLE, the "
            "environment variable that holds the token which they must send, or "
            "--trusted-network where everybody who reaches this port may use it"
        )
    return None
