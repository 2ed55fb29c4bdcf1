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
    """A sidecar that scores a video by its first pixel and does as told before that.

    before: of each request, first to last: seconds to sleep, or (status, text[, headers]) to answer
    with instead, or None. hung: nothing is answered while it is true. info: more of /info.
    bound: replies repeat digest, ids and rewards, as they must. lengths: of each request, what it
    said of its body's bytes, and how many they were.
    """

    def __init__(self, names=SEVEN, before=(), change=lambda reply: reply, monitors=("truth",)):
        self.names, self.before, self.change = list(names), list(before), change
        self.batches, self.posts, self.monitors = [], 0, list(monitors)
        self.lengths = []
        self.column = {name: column for column, name in enumerate(NAMES)}
        self.hung, self.bound, self.info, self.version = False, True, {}, "1"

    def app(self):
        api = FastAPI()

        @api.get("/info")
        async def info():
            await self.answers()
            about = {"preset": "fake", "rewards": self.rewards(), "monitors": self.monitors}
            return about | self.info

        @api.post("/score")
        async def score(request: Request):
            body = await request.body()
            self.posts += 1
            self.lengths.append((request.headers.get("content-length"), str(len(body))))
            await self.answers()
            early = self.before.pop(0) if self.before else None
            if isinstance(early, float):
                await asyncio.sleep(early)
            elif early is not None:
                return Response(early[1], early[0], dict(*early[2:]))
            self.batches.append(wire.decode(body))
            reply = self.reply(self.batches[-1])
            if self.bound:
                ids = self.batches[-1].ids
                reply |= {"digest": wire.digest(body), "ids": ids, "rewards": self.rewards()}
            return Response(json.dumps(self.change(reply)))

        return api

    async def answers(self):
        """Return when it answers again."""
        while self.hung:
            await asyncio.sleep(0.01)

    def rewards(self):
        about = {"version": self.version, "sha256": "", "about": ""}
        return [{"name": name} | about for name in self.names]

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
