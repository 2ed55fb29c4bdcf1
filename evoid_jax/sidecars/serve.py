"""Reward sidecar: a process of its own that answers /health, /info and /score (see wire.py).

    python -m evoid_jax.sidecars.serve --preset tiny --host 127.0.0.1 --port 0 --port-file FILE

Prints one line with its URL once the nets are loaded; port 0 takes a free one. `app(preset)` is a
plain FastAPI app, so that uvicorn, Ray Serve or any ASGI server can run it.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from pathlib import Path

import cv2
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from evoid_jax.sidecars import preset as presets
from evoid_jax.sidecars import wire
from evoid_jax.sidecars.tiny import rewards


def load(name: str, weights: Path | None = None) -> presets.Preset:
    """Load a preset's nets.

    weights: the folder that holds them; None is the preset's own.

    Raises:
      ValueError: no preset of that name, or weights that do not fit.
      FileNotFoundError: weights are missing.
    """
    if name == "tiny":
        return rewards.load(weights or rewards.FOLDER)
    if name == "open":
        # Here and not above: it needs the tokenizers package, which `tiny` does without.
        from evoid_jax.sidecars.open import rewards as open_rewards

        return open_rewards.load(weights)
    raise ValueError(f"no preset {name!r}; there are: tiny, open")


def app(preset: str | presets.Preset = "tiny") -> FastAPI:
    """Build the app of a preset, given by name or already loaded. Bad requests get 400 and why."""
    loaded = load(preset) if isinstance(preset, str) else preset
    one_at_a_time = threading.Lock()
    api = FastAPI(title=f"evoid_jax rewards: {loaded.name}")

    def score(body: bytes) -> dict:
        request = wire.decode(body)
        with one_at_a_time:  # the nets already use every thread that they may
            return presets.answer(loaded, request)

    @api.get("/health")
    def health() -> dict:
        return {"status": "ok"}

    @api.get("/info")
    def info() -> dict:
        return presets.info(loaded)

    @api.post("/score")
    async def post_score(request: Request) -> dict:
        body = await request.body()
        # In a thread: /health must answer while the nets work, or the sidecar counts as dead.
        try:
            return await run_in_threadpool(score, body)
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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    try:
        preset = load(args.preset, args.weights)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"preset {args.preset}: {error}")
    # Bound here and not by uvicorn, so that the port is known where 0 lets the system choose.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((args.host, args.port))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app(preset), log_level="warning"))
    listener.listen()
    if args.port_file:  # renamed into place: a reader sees all of it or nothing
        part = args.port_file.with_name(args.port_file.name + ".part")
        part.write_text(f"{port}\n")
        part.replace(args.port_file)
    print(f"http://{args.host}:{port}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
