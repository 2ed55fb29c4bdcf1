"""Reward sidecar: a process that answers /health, /info, /score, /photos and /metrics.

    python -m evoid_jax.sidecars.serve --preset tiny --host 127.0.0.1 --port 0 --port-file FILE

Prints one line with its URL once the nets are loaded; port 0 takes a free one. `app(preset)` is a
plain FastAPI app, so that uvicorn, Ray Serve or any ASGI server can run it. The protocol is in
wire.py and docs/sidecar_protocol.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import math
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import anyio
import cv2
import torch
from fastapi import FastAPI, HTTPException, Request, Response

from evoid_jax.sidecars import door, limits, listen, wire
from evoid_jax.sidecars import preset as presets
from evoid_jax.sidecars.paper import options as paper
from evoid_jax.sidecars.prometheus import CONTENT_TYPE, Figures
from evoid_jax.sidecars.queue import NoRoom, Queue, Room, Share
from evoid_jax.sidecars.tiny import rewards

QUEUE_GIB = 8.0  # of requests: 85 raw videos of 81 x 480 x 832
LONGEST_WAIT = 60  # seconds that a 429 asks for, at most
READERS = 2  # requests decoded at once, in threads of their own
GONE = 499  # the asker hung up; by convention, as nobody reads it


def load(
    name: str, weights: Path | None = None, options: paper.Options = paper.DEFAULT
) -> presets.Preset:
    """Load a preset's nets.

    weights: the folder that holds them; None is the preset's own. options: of preset paper.

    Raises:
      ValueError: no preset of that name, or weights or options that do not fit.
      FileNotFoundError: weights are missing.
    """
    if name == "tiny":
        return rewards.load(weights or rewards.FOLDER)
    if name == "open":
        # Here and not above: it needs the tokenizers package, which `tiny` does without.
        from evoid_jax.sidecars.open import rewards as open_rewards

        return open_rewards.load(weights)
    if name == "paper":
        # Here and not above: it needs packages of its own, requirements-paper.txt.
        from evoid_jax.sidecars.paper import rewards as paper_rewards

        return paper_rewards.load(weights, options)
    raise ValueError(f"no preset {name!r}; there are: tiny, open, paper")


class Desk:
    """Takes requests in, lets them wait for the nets, and answers them.

    Args:
      preset: what scores.
      room: bytes of requests that may be here at once; the next one gets 429 and Retry-After.
      most: bytes that one may take, with its videos decoded.
    """

    def __init__(self, preset: presets.Preset, room: int, most: int):
        self.room, self._most, self._preset = Room(room), most, preset
        self.figures = Figures(waiting=lambda: self.queue.waiting(), held=lambda: self.room.held)
        self.queue = Queue(preset, self.figures.scored)
        self._readers = anyio.CapacityLimiter(READERS)
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def answer(self, request: Request) -> dict:
        """Return the reply of POST /score.

        Raises:
          HTTPException: 400, the request breaks the protocol; 413, it is too large; 429, there is
            no room for it now; 500, scoring failed.
        """
        with self._refusing(), Share(self.room) as share:
            body = await door.body(request, share, self._most)
            reply = await self._scored(request, body, share)
        return reply

    async def problems(self, request: Request) -> dict:
        """Return the reply of POST /photos. Raises: as `answer`."""
        with self._refusing(), Share(self.room) as share:
            body = await door.body(request, share, limits.PHOTOS_BODY)
            photos = wire.decode_photos(body)
            found = []
            for photo in photos:  # one by one, so that who has gone is noticed
                if await request.is_disconnected():
                    raise HTTPException(GONE, "the asker hung up")
                look = functools.partial(presets.look, self._preset, [photo])
                reply = await anyio.to_thread.run_sync(look, limiter=self._one_at_a_time)
                found += reply["problems"]
        return {"problems": found}

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors into the statuses that they are answered with."""
        try:
            yield
        except limits.TooMuch as error:
            raise HTTPException(413, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        except NoRoom:
            raise self._full() from None

    async def _scored(self, request: Request, body: bytearray, share: Share) -> dict:
        """Decode a request, wait for its scores, and bind them to it."""

        def take(size: int) -> None:
            limits.check("bytes of a body and its videos, decoded", share.size + size, self._most)
            share.grow(size)

        read = lambda: (wire.decode(body, take), wire.digest(body))
        # In a thread: /health must answer meanwhile, or the sidecar counts as dead.
        asked, digest = await anyio.to_thread.run_sync(read, limiter=self._readers)
        if await request.is_disconnected():
            raise HTTPException(GONE, "the asker hung up")
        reply = await self._waited(request, self.queue.put(asked))
        bound = {"digest": digest} if asked.ids is None else {"digest": digest, "ids": asked.ids}
        return reply | bound

    async def _waited(self, request: Request, future: Future[dict]) -> dict:
        """Wait for the scores for as long as the asker does."""
        result = asyncio.wrap_future(future)
        while not result.done():
            await asyncio.wait([result], timeout=1.0)
            if not result.done() and await request.is_disconnected():
                future.cancel()
                raise HTTPException(GONE, "the asker hung up")
        try:
            return result.result()
        except ValueError:
            raise
        except Exception as error:
            raise HTTPException(500, f"{type(error).__name__}: {error}") from error

    def _full(self) -> HTTPException:
        """Return the refusal of what there is no room for; half of what waits makes some."""
        seconds = min(LONGEST_WAIT, max(1, math.ceil(self.queue.seconds() / 2)))
        words = (
            f"{self.queue.waiting()} videos wait here and requests hold {self.room.held} of "
            f"{self.room.most} bytes; come again in {seconds} s"
        )
        return HTTPException(429, words, headers={"Retry-After": str(seconds)})


def app(
    preset: str | presets.Preset = "tiny",
    queue_gib: float = QUEUE_GIB,
    replicas: int = 1,
    *,
    request_gib: float = limits.REQUEST_GIB,
    token: str | None = None,
) -> FastAPI:
    """Build the app of a preset, given by name or already loaded.

    Bad requests get 400 and why, those beyond `request_gib` GiB or another limit 413, those beyond
    `queue_gib` GiB together 429 and Retry-After. replicas: how many such apps stand behind its
    address, for /info. token: what all but /health ask for, see door.py.
    """
    loaded = load(preset) if isinstance(preset, str) else preset
    most = int(request_gib * 2**30)
    desk = Desk(loaded, int(queue_gib * 2**30), most)
    # No pages that describe it: they would load scripts from elsewhere.
    api = FastAPI(title=f"evoid_jax rewards: {loaded.name}", openapi_url=None)
    api.add_middleware(door.Door, most=most, token=token)
    api.state.desk = desk  # for whoever runs the app and asks how it is

    # All of them `async`: FastAPI runs plain functions in threads, of which none may be free.
    @api.get(door.OPEN)
    async def health() -> dict:
        if not desk.queue.alive():
            raise HTTPException(503, "the thread that scores has ended")
        return {"status": "ok"}

    @api.get("/info")
    async def info() -> dict:
        return presets.info(loaded) | {"replicas": replicas}

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.figures.page(), media_type=CONTENT_TYPE)

    @api.post("/score")
    async def post_score(request: Request) -> dict:
        try:
            reply = await desk.answer(request)
        except HTTPException as error:
            desk.figures.replied(error.status_code)
            raise
        desk.figures.replied(200)
        return reply

    @api.post("/photos")
    async def post_photos(request: Request) -> dict:
        return await desk.problems(request)

    return api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path, help="the folder that holds the preset's weights")
    listen.add_arguments(parser, port=8100)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the nets")
    add_queue_arguments(parser)
    paper.add_arguments(parser)
    args = parser.parse_args()
    listener, token = listen.bind(args)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    try:
        preset = load(args.preset, args.weights, paper.from_arguments(args))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"preset {args.preset}: {error}")
    except Exception as error:  # whatever a damaged file leads a loader into
        sys.exit(f"preset {args.preset}: {type(error).__name__}: {error}")
    made = app(preset, args.queue, request_gib=args.request, token=token)
    print(listen.announce(listener, args), flush=True)
    listen.server(made).run(sockets=[listener])


def add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how much memory requests may take."""
    parser.add_argument(
        "--queue", type=float, default=QUEUE_GIB, metavar="GIB", help="of requests that may wait"
    )
    parser.add_argument(
        "--request",
        type=float,
        default=limits.REQUEST_GIB,
        metavar="GIB",
        help="of one request, with its videos decoded",
    )


if __name__ == "__main__":
    main()
