"""A sidecar whose every score is known, and which fails when told to."""

import asyncio
import json

from fastapi import FastAPI, Request, Response

from evoid_jax import config
from evoid_jax.rewards import table
from evoid_jax.sidecars import wire

NAMES = table.names(config.METRICS)
SEVEN = NAMES[:7]  # all but the judge's


class Fake:
    """A sidecar that scores a video by its first pixel and does as told before that."""

    def __init__(self, names=SEVEN, before=(), change=lambda reply: reply, monitors=("truth",)):
        self.names, self.before, self.change = list(names), list(before), change
        self.batches, self.posts, self.monitors = [], 0, list(monitors)
        self.column = {name: column for column, name in enumerate(NAMES)}

    def app(self):
        api = FastAPI()

        @api.get("/info")
        def info():
            rewards = [{"name": n, "version": "1", "sha256": "", "about": ""} for n in self.names]
            return {"preset": "fake", "rewards": rewards, "monitors": self.monitors}

        @api.post("/score")
        async def score(request: Request):
            body = await request.body()
            self.posts += 1
            early = self.before.pop(0) if self.before else None
            if isinstance(early, float):
                await asyncio.sleep(early)
            elif early is not None:
                return Response(early[1], early[0])
            self.batches.append(wire.decode(body))
            return Response(json.dumps(self.change(self.reply(self.batches[-1]))))

        return api

    def reply(self, batch):
        values = [float(v[0, 0, 0, 0]) for v in batch.videos]
        column = lambda m: {
            "raw": [v + m for v in values],
            "score": [v / 255 for v in values],
            "reason": [None] * len(values),
        }
        monitor = {name: [v * 2 for v in values] for name in self.monitors if batch.monitors}
        scores = {n: column(self.column[n]) for n in batch.rewards}
        return {"scores": scores, "monitor": monitor, "seconds": 0.0}
