"""How our servers listen: where, for whom, and how long for a peer that says nothing.

Both servers, of rewards and of the heuristic judge, take the flags of `add_arguments`.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import socket
import sys
import time
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from evoid_jax.sidecars import door

HEAD_SECONDS = 20.0  # for a request's head, from the connection or from the reply before
REPLY_SECONDS = 60.0  # for a peer to take a reply that does not fit into the buffers
CONNECTIONS = 512  # a run has some tens; more than that would use up the process's files
HEAD_BYTES = 2**16
GRACE = 10  # seconds for requests under way when the server is told to end


class Protocol(H11Protocol):
    """uvicorn's protocol, which waits for ever, with limits on how long and for how many.

    uvicorn has a limit for connections between two requests, `timeout_keep_alive`; the first byte
    of the next request ends it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.began = time.monotonic()
        self._late = self._stuck = None
        if len(self.connections) > CONNECTIONS:
            self._make_room()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(REPLY_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def busy(self) -> bool:
        """Tell whether a request is under way whose head has been read."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """Start the clock for the next head; stop it once that is there."""
        if self.busy():
            if self._late is not None:
                self._late.cancel()
            self._late = None
        elif self._late is None:
            self.began = time.monotonic()
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _make_room(self) -> None:
        """End the connection that has waited longest without a request, this one if there is none.

        Whoever holds many half-sent heads loses those, and the next peer is still heard.
        """
        idle = [one for one in self.connections if one is not self and not one.busy()]
        oldest = min(idle, key=lambda one: one.began, default=self)
        oldest.transport.abort()
        self.connections.discard(oldest)


def add_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the flags that say where a server listens and for whom. port: the default."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=port, help="0 takes a free port")
    parser.add_argument("--port-file", type=Path, help="write the port here once it answers")
    add_token_arguments(parser)


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say for whom."""
    parser.add_argument(
        "--token-env",
        default="",
        metavar="VARIABLE",
        help="environment variable with the token that every request must bring",
    )
    parser.add_argument(
        "--trusted-network",
        action="store_true",
        help="listen for other machines without a token: whoever reaches the port may use it",
    )


def bind(args: argparse.Namespace) -> tuple[socket.socket, str | None]:
    """Take the port, and return it with the token to ask for; end the program where that fails.

    Nobody is answered yet: a server that cannot listen should say so before it loads its nets.
    """
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except OSError as error:
        sys.exit(f"cannot listen on --host={args.host} --port={args.port}: {error}")
    # Of the address and not of the name, which can stand for any.
    loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    try:
        return listener, door.token(args.token_env, args.host, loopback, args.trusted_network)
    except ValueError as error:
        sys.exit(str(error))


def announce(listener: socket.socket, args: argparse.Namespace) -> str:
    """Begin to listen, tell the port to whoever waits for the file, and return the address."""
    listener.listen()
    host, port = listener.getsockname()[:2]
    if args.port_file:  # renamed into place: a reader sees all of it or nothing
        part = args.port_file.with_name(args.port_file.name + ".part")
        part.write_text(f"{port}\n")
        part.replace(args.port_file)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{args.host}:{port}"


def server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of an app, with this module's limits."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",  # our apps have nothing to do before and after
        log_level="warning",
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    return uvicorn.Server(config)
