"""A sidecar as this process knows it: whether it is up, how busy it is, how fast it was.

Everything here happens on the event loop of background.py, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time

from evoid_jax.rewards import background
from evoid_jax.rewards.transport import Options, SidecarError, Trouble, ask

log = logging.getLogger(__name__)

LONGEST_PAUSE = 10.0  # seconds between two looks at a replica that is down
REQUESTS = 4  # under way at one replica that does not say how many videos it takes at once
INTRODUCTIONS = 4  # tries to learn what a sidecar is; mostly its address is wrong
PATIENCE = 30.0  # seconds for each of them
MEMORY = 0.7  # of the seconds per video: the share of what was known before


class Replica:
    """One sidecar.

    url: its address. info: its reply to GET /info with `names`, once it has answered.
    down: why nothing is sent there; "" while it answers. failures: in a row, of requests and looks.
    checked: when it was last found to be down; 0.0: never.
    free_at: when it wants to be asked again, after a 429.
    requests, videos: of ours, under way there. pace: seconds per video of late, or None.
    """

    def __init__(self, url: str):
        self.url = url
        self.info: dict | None = None
        self.down, self.failures, self.checked, self.free_at = "", 0, 0.0, 0.0
        self.requests = self.videos = 0
        self.pace: float | None = None
        self._refusals = 0  # with 429, in a row
        self._holders = 0  # deliveries that may go there
        self._heard = 0.0  # when it last answered anything
        self._replied = 0.0  # when it last sent scores
        self._due = 0.0  # when to look at it
        self._nudge = asyncio.Event()  # `_due` has changed, or nobody holds it any more
        self._keeper: asyncio.Task | None = None

    def takes(self, videos: int) -> bool:
        """Tell whether these many videos can be sent there now."""
        if self.down or self.free_at > time.monotonic():
            return False
        if not self.requests:
            return True
        # So many that it never waits for us. The others wait here, for whoever is free first.
        most, behind = together(self.info), replicas(self.info)
        if most:
            return self.videos + videos <= 2 * most * behind
        return self.requests < REQUESTS * behind

    def began(self, videos: int) -> float:
        """Count a request that is on its way there; return the time."""
        now = time.monotonic()
        if not self.requests:  # it was silent because nobody asked
            self._heard = now
        self.requests, self.videos = self.requests + 1, self.videos + videos
        return now

    def ended(self, videos: int) -> None:
        """Count a request that is over, however it ended."""
        self.requests, self.videos = self.requests - 1, self.videos - videos
        background.wake()

    def served(self, videos: int, began: float) -> None:
        """Learn from scores that came: it answers, and this is how fast."""
        now = time.monotonic()
        # Requests that are there at once wait for each other: what came before is not its own time.
        each = (now - max(began, self._replied)) / videos
        self.pace = each if self.pace is None else MEMORY * self.pace + (1 - MEMORY) * each
        self._refusals, self._heard, self._replied = 0, now, now
        # Scores that were asked for before it failed say nothing of what it is now.
        if began > self.checked:
            self.down, self.failures = "", 0

    def failed(self, why: str, options: Options) -> None:
        """Learn from a failure: it is left alone until a look at it succeeds."""
        if not self.down:
            log.info("sidecar %s is left alone: %s", self.url, why)
        now = time.monotonic()
        self._look_at(now + _pause(options, self.failures))
        self.down, self.failures, self.checked = why, self.failures + 1, now
        background.wake()

    def put_off(self, seconds: float | None, options: Options) -> None:
        """Learn from a 429: nothing is sent there before it wants to be asked again."""
        pause = _pause(options, self._refusals) if seconds is None else seconds
        self.free_at, self._refusals = time.monotonic() + pause, self._refusals + 1

    def hold(self, options: Options) -> None:
        """Look after it from now on, for a delivery that may go there; until `release`."""
        self._holders += 1
        if self._holders == 1:
            now = time.monotonic()
            self._look_at(now if self.down else now + options.probe)
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(options))

    def release(self) -> None:
        """End what `hold` began."""
        self._holders -= 1
        self._nudge.set()

    def _look_at(self, due: float) -> None:
        self._due = due
        self._nudge.set()

    async def _keep(self, options: Options) -> None:
        """Look at it while it is down, and when it has our videos and says nothing."""
        while self._holders:
            self._nudge.clear()
            pause = self._due - time.monotonic()
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._nudge.wait(), pause)
            elif self.down or (self.requests and time.monotonic() >= self._heard + options.probe):
                await self._look(options)
            else:
                since = self._heard if self.requests else time.monotonic()
                self._due = since + options.probe

    async def _look(self, options: Options) -> None:
        """Ask it what it is: a request that every sidecar answers at once."""
        try:
            fresh = await fetch(self.url, min(options.probe, options.timeout))
            if self.info is not None and kind(fresh) != kind(self.info):
                raise SidecarError(f"{self.url} has other rewards, or versions, than it had before")
        except SidecarError as error:
            self.failed(str(error), options)
            return
        if self.down:
            log.info("sidecar %s is back", self.url)
        self.down, self._heard = "", time.monotonic()
        self._due = self._heard + options.probe
        background.wake()

    async def learn(self, options: Options) -> dict:
        """Ask it what it is, some times if need be; what was known of it before is forgotten.

        Raises:
          SidecarError: it does not answer, or not as it should.
        """
        tries = min(INTRODUCTIONS, options.attempts)
        for number in range(1, tries + 1):
            try:
                self.info = await fetch(self.url, min(PATIENCE, options.timeout))
            except Trouble:
                if number == tries:
                    raise
                await asyncio.sleep(_pause(options, number - 1))
            else:
                self.down, self.failures, self.pace = "", 0, None
                return self.info
        raise AssertionError("the last try either returns or raises")


async def fetch(url: str, timeout: float) -> dict:
    """Return a sidecar's /info with the `names` of its rewards.

    Raises:
      SidecarError: it does not answer within `timeout` seconds, or not with such an object.
    """
    try:
        async with asyncio.timeout(timeout):
            reply = await ask("GET", f"{url}/info", timeout)
    except TimeoutError:
        raise Trouble(f"{url}/info: no answer in {timeout:g} s") from None
    try:
        names = [str(entry["name"]) for entry in reply["rewards"]]
        return reply | {"names": names, "monitors": list(reply.get("monitors") or [])}
    except (TypeError, KeyError, AttributeError) as error:
        raise SidecarError(f"{url}/info: expected {{'rewards': [{{'name': ..}}]}}") from error


@functools.cache
def named(url: str) -> Replica:
    """Return the one object of a sidecar in this process."""
    return Replica(url)


def kind(info: dict) -> tuple:
    """Return what must not change while a run goes on: rewards with versions and digests."""
    return tuple((r["name"], r.get("version"), r.get("sha256")) for r in info["rewards"])


def _pause(options: Options, failures: int) -> float:
    """Return how many seconds to wait after so many earlier failures."""
    return min(LONGEST_PAUSE, options.backoff * 2 ** min(failures, 10))


def together(info: dict | None) -> int | None:
    """Return how many videos a sidecar takes at once, where it says so."""
    return _count(info, "together")


def replicas(info: dict | None) -> int:
    """Return how many servers stand behind a sidecar's address; one where it says nothing."""
    return _count(info, "replicas") or 1


def _count(info: dict | None, key: str) -> int | None:
    value = (info or {}).get(key)
    return value if type(value) is int and value > 0 else None
