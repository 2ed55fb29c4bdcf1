"""Memory of a server over many requests, good ones and bad ones: it should not grow.

    python bench/steady.py                                   10,000 requests to made-up rewards
    python bench/steady.py --preset=tiny --requests=1000     the nets of the tiny world
    python bench/steady.py --preset=judge                    the heuristic judge

Requests come from a few threads, over connections that are kept and over new ones. Prints the
resident memory (VmRSS of /proc, Linux) as it goes, and ends with status 1 where the second half
grew by more than 3 % or a request was answered with another status than it should be.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx2
import numpy as np

from evoid_jax import media
from evoid_jax.rewards import judge, local, rubrics
from evoid_jax.sidecars import limits, wire

THREADS = 4
LOOKS = 10  # at the memory
GROWTH = 0.03


class Case(NamedTuple):
    """A request, and the status that it should be answered with."""

    path: str
    body: bytes
    status: int


def stub(sender) -> None:
    """Serve a preset of made-up rewards, and send its port. Runs in a process of its own."""
    import socket

    from evoid_jax.sidecars import listen, preset, serve

    def level(videos: list) -> preset.Column:
        mean_B = np.array([video.mean() for video in videos])
        return preset.Column(mean_B, mean_B / 255, [None] * len(videos))

    def prepare(request: wire.ScoreRequest):
        there = [i for i, video in enumerate(request.videos) if video is not None]
        yield there, [request.videos[i] for i in there]

    reward = preset.Scorer("level", "1", "", "mean of all pixels", level)
    made = preset.Preset("made up", (reward,), (), prepare, 8, lambda photo: "")
    listener = socket.create_server(("127.0.0.1", 0))
    sender.send(listener.getsockname()[1])
    listen.server(serve.app(made)).run(sockets=[listener])


def score_cases(photos: int) -> list[Case]:
    """Return requests to a sidecar. photos: the status of /photos."""
    video_BFHWC = np.zeros((2, 9, 64, 64, 3), np.uint8)
    video_BFHWC[1, :, 16:48, 16:48] = 200
    shared = [np.full((64, 64, 3), 90, np.uint8)]
    of_two = {"references": [shared] * 2, "prompts": ["a man", "a woman"], "ids": ["a", "b"]}
    file = media.encode(video_BFHWC[1], 8)
    raw = wire.encode(video_BFHWC, **of_two)
    framed = lambda header: len(header).to_bytes(4, "little") + header
    return [
        Case("/score", raw, 200),
        Case("/score", wire.encode_mp4([file, b"no video"], **of_two), 200),
        Case("/score", raw[:-1], 400),
        Case("/score", framed(b"[" * 10_000), 413),
        Case("/score", wire.encode(np.zeros((2, 5000, 1, 1, 3), np.uint8), **of_two), 413),
        Case("/photos", wire.encode_photos(shared), photos),
        Case("/info", b"", 200),
        Case("/metrics", b"", 200),
    ]


def chat_cases() -> list[Case]:
    """Return requests to the judge."""
    picture = judge.picture(np.zeros((64, 64, 3), np.uint8), 64)
    parts = [{"type": "text", "text": "reference"}, picture]
    parts += [{"type": "text", "text": "frame"}, picture]
    asked = {"messages": [{"content": parts}], "response_format": rubrics.questions().vqscore.form}
    path = "/v1/chat/completions"
    return [
        Case(path, json.dumps(asked).encode(), 200),
        Case(path, json.dumps(asked | {"messages": []}).encode(), 400),
        Case(path, b"[" * 2 * limits.PARTS, 413),
        Case("/v1/models", b"", 200),
    ]


def ask(http: httpx2.Client, url: str, case: Case) -> tuple[int, int]:
    """Send a request; return the status that should come and the one that came."""
    method = "POST" if case.body else "GET"
    reply = http.request(method, url + case.path, content=case.body or None)
    return case.status, reply.status_code


def resident(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def measure(url: str, pid: int, cases: list[Case], requests: int) -> bool:
    """Send the requests and print what it takes; return whether all is as it should be."""
    taken, statuses = [resident(pid)], Counter()
    print(f"{'requests':>9} {'MiB':>8} {'per second':>11}\n{0:>9} {taken[0]:>8.1f}", flush=True)
    began = time.monotonic()

    def some(first: int, last: int) -> list[tuple[int, int]]:
        with httpx2.Client(trust_env=False, timeout=300) as http:  # of new connections
            return [ask(http, url, cases[k % len(cases)]) for k in range(first, last)]

    with ThreadPoolExecutor(THREADS) as pool:
        for look in range(LOOKS):
            marks = np.linspace(look, look + 1, THREADS * 5 + 1) * requests / LOOKS
            edges = marks.round().astype(int).tolist()
            for pairs in pool.map(some, edges[:-1], edges[1:]):
                statuses.update(pairs)
            taken.append(resident(pid))
            pace = edges[-1] / (time.monotonic() - began)
            print(f"{edges[-1]:>9} {taken[-1]:>8.1f} {pace:>11.0f}", flush=True)
    wrong = {pair: count for pair, count in statuses.items() if pair[0] != pair[1]}
    half = taken[LOOKS // 2]
    growth = (taken[-1] - half) / half
    print(
        f"growth in the second half: {growth:+.2%}; of statuses other than due: {wrong or 'none'}"
    )
    return growth <= GROWTH and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="stub", choices=["stub", "tiny", "judge"])
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    if args.preset == "stub":
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=stub, args=(there,), daemon=True)
        process.start()
        url = f"http://127.0.0.1:{here.recv()}"
        good = measure(url, process.pid, score_cases(photos=200), args.requests)
        process.terminate()
    else:
        with tempfile.TemporaryDirectory() as folder:
            start = local.start_judge if args.preset == "judge" else local.start_sidecar
            names = [] if args.preset == "judge" else [args.preset]
            cases = chat_cases() if args.preset == "judge" else score_cases(photos=400)
            with start(*names, folder, 900.0) as server:
                good = measure(server.url, server.pid, cases, args.requests)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
