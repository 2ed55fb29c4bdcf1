"""Reward sidecar: a process that answers /health, /info, /score, /photos and /metrics.

    python -m evoid_jax.sidecars.serve --preset tiny --host 127.0.0.1 --port 0 --port-file FILE

Prints one line with its URL once the nets are loaded; port 0 takes a free one. `app(preset)` is a
plain FastAPI app, so that uvicorn, Ray Serve or any ASGI server can run it. The protocol is in
wire.py and docs/sidecar_protocol.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import socket
import sys
from concurrent.futures import Future
from pathlib import Path

import anyio
import cv2
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from evoid_jax.sidecars import preset as presets
from evoid_jax.sidecars import wire
from evoid_jax.sidecars.paper import options as paper
from evoid_jax.sidecars.prometheus import CONTENT_TYPE, Figures
from evoid_jax.sidecars.queue import Queue, Room
from evoid_jax.sidecars.tiny import rewards

QUEUE_GIB = 8.0  # of requests: 85 raw videos of 81 x 480 x 832
LONGEST_WAIT = 60  # seconds that a 429 asks for, at most
READERS = 2  # requests decoded at once: a compressed one takes 100 times its size
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
      most: bytes of requests that may be here at once; the next one gets 429 and Retry-After.
    """

    def __init__(self, preset: presets.Preset, most: int):
        self.room = Room(most)
        self.figures = Figures(waiting=lambda: self.queue.waiting(), held=lambda: self.room.held)
        self.queue = Queue(preset, self.figures.scored)
        self._readers = anyio.CapacityLimiter(READERS)
        self._rewards = presets.info(preset)["rewards"]

    async def answer(self, request: Request) -> dict:
        """Return the reply of POST /score.

        Raises:
          HTTPException: 400, the request breaks the protocol; 429, there is no room for it now;
            500, scoring failed.
        """
        size = int(request.headers.get("content-length") or 0)
        if not self.room.take(size):
            # Read and thrown away: a connection that is closed on its sender loses the reply too.
            async for _ in request.stream():
                pass
            raise self._full()
        try:
            return await self._scored(request, size)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            self.room.give(size)

    async def _scored(self, request: Request, size: int) -> dict:
        """Read a request, wait for its scores, and bind them to it. size: bytes taken for it."""
        body = await request.body()
        read = lambda: (wire.decode(body), wire.digest(body))
        # In a thread: /health must answer meanwhile, or the sidecar counts as dead.
        asked, digest = await anyio.to_thread.run_sync(read, limiter=self._readers)
        # A body may have come without its length; and compressed videos take more than their files.
        decoded = sum(video.nbytes for video in asked.videos if video is not None)
        more = max(len(body), decoded) - size
        if not self.room.take(more, held=size):
            raise self._full()
        try:
            reply = await self._waited(request, self.queue.put(asked))
        finally:
            self.room.give(more)
        bound = {"digest": digest, "rewards": self._rewards}
        return reply | bound | ({} if asked.ids is None else {"ids": asked.ids})

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
    preset: str | presets.Preset = "tiny", queue_gib: float = QUEUE_GIB, replicas: int = 1
) -> FastAPI:
    """Build the app of a preset, given by name or already loaded.

    Bad requests get 400 and why; requests beyond `queue_gib` GiB get 429 and Retry-After.
    replicas: how many such apps stand behind its address, for /info.
    """
    loaded = load(preset) if isinstance(preset, str) else preset
    desk = Desk(loaded, int(queue_gib * 2**30))
    api = FastAPI(title=f"evoid_jax rewards: {loaded.name}")
    one_at_a_time = anyio.CapacityLimiter(1)
    api.state.desk = desk  # for whoever runs the app and asks how it is

    @api.get("/health")
    def health() -> dict:
        if not desk.queue.alive():
            raise HTTPException(503, "the thread that scores has ended")
        return {"status": "ok"}

    @api.get("/info")
    def info() -> dict:
        return presets.info(loaded) | {"replicas": replicas}

    @api.get("/metrics")
    def metrics() -> Response:
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
        body = await request.body()
        try:
            look = lambda: presets.look(loaded, wire.decode_photos(body))
            return await anyio.to_thread.run_sync(look, limiter=one_at_a_time)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    return api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path, help="the folder that holds the preset's weights")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100, help="0 takes a free port")
    parser.add_argument("--port-file", type=Path, help="write the port here once loaded")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the nets")
    parser.add_argument(
        "--queue", type=float, default=QUEUE_GIB, metavar="GIB", help="of requests that may wait"
    )
    paper.add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    try:
        preset = load(args.preset, args.weights, paper.from_arguments(args))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"preset {args.preset}: {error}")
    # Bound here and not by uvicorn, so that the port is known where 0 lets the system choose.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((args.host, args.port))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app(preset, args.queue), log_level="warning"))
    listener.listen()
    if args.port_file:  # renamed into place: a reader sees all of it or nothing
        part = args.port_file.with_name(args.port_file.name + ".part")
        part.write_text(f"{port}\n")
        part.replace(args.port_file)
    print(f"http://{args.host}:{port}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
