"""Time what scoring adds to a step of the loop while it takes less time than generation.

    python bench/overlap.py [--parts=32] [--rounds=4] [--shares=0,0.3,0.6,0.9,1.5]

The tiny preset's own loop; its 32 videos are generated in `parts`, each scored while the next is
generated. The sidecar is one that sleeps, one request after the other, for a share of what the
step's generation takes, so that it takes no core from the loop, as one on another machine. Shares
alternate from step to step, so that a machine that slows down slows all of them. Prints for each
share the medians of a step's seconds, what it adds to the step without scoring of the same round
(median and quartiles), and what it must add at least: the last part is scored when nothing is
generated any more.
"""

import argparse
import asyncio
import contextlib
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request

from evoid_jax import commandline, config, metrics, run_lock, session, train
from evoid_jax.reward_groups import JUDGE, METRICS
from evoid_jax.sidecars import wire

NAMES = [row.name for row in METRICS if row.name != JUDGE]


class Sleeper:
    """A sidecar that takes `seconds[step]` for all videos of a step, and scores at random."""

    def __init__(self, videos: int):
        self.videos, self.seconds, self.seen = videos, [0.0], 0
        self.random = np.random.default_rng(0)

    def app(self) -> FastAPI:
        api, nets, rewards = FastAPI(), asyncio.Lock(), [{"name": name} for name in NAMES]

        @api.get("/info")
        async def info() -> dict:
            return {"rewards": rewards}

        @api.post("/score")
        async def score(request: Request) -> dict:
            body = await request.body()
            asked = wire.decode(body)
            async with nets:
                step = min(self.seen // self.videos, len(self.seconds) - 1)
                self.seen += len(asked.videos)
                await asyncio.sleep(self.seconds[step] * len(asked.videos) / self.videos)
            values = self.random.random(len(asked.videos)).tolist()
            scores = {name: {"raw": values, "score": values} for name in asked.rewards}
            bound = {"digest": wire.digest(body), "ids": asked.ids, "rewards": rewards}
            return {"scores": scores} | bound

        return api


@contextlib.contextmanager
def serving(app: FastAPI):
    """Serve an app on a free port from a thread; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        work = {"target": server.run, "kwargs": {"sockets": [listener]}, "daemon": True}
        thread = threading.Thread(**work)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def settings(parts: int, steps: int, url: str) -> config.Config:
    """Return the tiny preset without judge, watch and checkpoints."""
    values = commandline.load("configs/evoid.py:tiny")
    videos = values.data.pairs * values.data.seeds
    values.update({"steps": steps, "save_every": 10**6, "watch": {"every": 0}})
    values.update({"rollout": {"videos_per_device": videos // parts}})
    reward = {"sidecars": (url,), "judge": "", "preference": False, "dynamic": False}
    values.update({"reward": reward})
    return config.from_dict(values.to_dict())


def steps_of(cfg: config.Config) -> list[dict[str, float]]:
    """Run a config's steps and return the seconds of each, without the first, which compiles."""
    with tempfile.TemporaryDirectory() as name, run_lock.held(folder := Path(name)):
        with session.open_run(cfg, folder) as run:
            train.evolved(run)
        return [line["seconds"] for line in metrics.read(folder)][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--shares", default="0,0.3,0.6,0.9,1.5")
    args = parser.parse_args()
    shares = [float(share) for share in args.shares.split(",")]
    sleeper = Sleeper(videos=32)
    with serving(sleeper.app()) as url:
        alone = steps_of(settings(args.parts, 4, url))
        generation = float(np.median([s["rollout"] + s["decode"] for s in alone]))
        sleeper.seen = 0
        # Every other round runs backwards: a machine that slows down favours no share.
        rounds = [shares[:: 1 - 2 * (k % 2)] for k in range(args.rounds)]
        plan = [0.0, *[share for order in rounds for share in order]]
        sleeper.seconds = [share * generation for share in plan]
        took = steps_of(settings(args.parts, len(plan), url))
    report(shares, plan[1:], took, generation, args.parts)


def report(shares, plan, took, generation: float, parts: int) -> None:
    """Print a line for each share."""
    of = lambda share, key: np.array(
        [s[key] for p, s in zip(plan, took, strict=True) if p == share]
    )
    plain = of(0.0, "total")
    print(
        f"{parts} parts; generation {generation:.2f} s, a step without scoring "
        f"{np.median(plain):.2f} s"
    )
    print("scoring / generation  scoring s  step s  waited s  adds, quartiles   at least")
    for share in shares:
        scoring = share * generation
        # All but the last part's scoring can pass while others are generated.
        least = max(scoring / parts, scoring - generation * (parts - 1) / parts)
        total, waited = of(share, "total"), of(share, "score")
        low, middle, high = np.percentile(total / plain - 1, [25, 50, 75])
        print(
            f"{share:20.2f}{scoring:11.2f}{np.median(total):8.2f}{np.median(waited):10.2f}"
            f"{middle:7.1%} [{low:6.1%}, {high:6.1%}]{least / np.median(plain):7.1%}"
        )


if __name__ == "__main__":
    main()
