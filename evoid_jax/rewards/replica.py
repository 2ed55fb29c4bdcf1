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
from evoid_jax.rewards.transport import Away, Options, SidecarError, Trouble, ask

log = logging.getLogger(__name__)

LONGEST_PAUSE = 10.0  # seconds between two looks at a replica that is down
REQUESTS = 4  # under way at one replica that does not say how many videos it takes at once
INTRODUCTIONS = 4  # tries to learn what a server is that answers, and not as a sidecar
PATIENCE = 30.0  # seconds for each of them
LONGEST_SLACK = 600.0  # seconds for which one that was too late is asked after the others
MEMORY = 0.7  # of the seconds per video: the share of what was known before


class Changed(Trouble):
    """A sidecar that is not what it was: its measures would not compare with what there is."""


class Replica:
    """One sidecar.

    url: its address. info: its reply to GET /info with `names`, once it has answered.
    down: why nothing is sent there; "" while it answers. failures: in a row, of requests and looks.
    checked: when it was last found to be down; 0.0: never. changed: because it is another one now.
    free_at: when it wants to be asked again, after a 429.
    requests, videos: of ours, under way there. pace: seconds per video of late, or None.
    """

    def __init__(self, url: str):
        self.url = url
        self.info: dict | None = None
        self.down, self.failures, self.checked, self.free_at = "", 0, 0.0, 0.0
        self.changed = False
        self.requests = self.videos = 0
        self.pace: float | None = None
        self._refusals = 0  # with 429, in a row
        self._down_since = 0.0
        self._lates, self._slack_until = 0, 0.0  # requests in a row that were waited for in vain
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
        self._lates, self._slack_until = 0, 0.0
        # Scores that were asked for before it failed say nothing of what it is now.
        if began > self.checked:
            self.down, self.failures = "", 0

    def failed(self, error: SidecarError, options: Options) -> None:
        """Learn from a failure: it is left alone until a look at it succeeds."""
        now = time.monotonic()
        if not self.down:
            log.info("sidecar %s is left alone: %s", self.url, error)
            self._down_since = now
        self._look_at(now + _pause(options, self.failures))
        self.down, self.failures, self.checked = str(error), self.failures + 1, now
        self.changed = isinstance(error, Changed)
        background.wake()

    def away(self) -> float:
        """Return for how many seconds it has been down."""
        return time.monotonic() - self._down_since if self.down else 0.0

    def late(self, options: Options) -> None:
        """Learn from a request that it kept until another one answered, or till the end.

        It may say what it is and still score nothing: for a while it is asked after the others.
        """
        self._lates += 1
        pause = min(LONGEST_SLACK, options.timeout * 2 ** min(self._lates - 1, 10))
        self._slack_until = time.monotonic() + pause

    def slack(self) -> bool:
        """Tell whether it was too late, not long ago."""
        return time.monotonic() < self._slack_until

    def check_kind(self, reply: dict) -> None:
        """Raise Changed where a reply names other rewards or versions than it had before."""
        if self.info is None:
            return
        was, now = set(kind(self.info)), set(kind(reply))
        if was != now:
            raise Changed(
                f"{self.url} has other rewards, or versions, than it had before: (name, version, "
                f"sha256) was {sorted(was - now)}, is {sorted(now - was)}; start it as it was"
            )

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
            self.check_kind(fresh)
        except SidecarError as error:
            self.failed(error, options)
            return
        if self.down:
            log.info("sidecar %s is back", self.url)
        self.down, self.changed, self._heard = "", False, time.monotonic()
        self._due = self._heard + options.probe
        background.wake()

    async def learn(self, options: Options) -> dict:
        """Ask it what it is, some times if need be; what was known of it before is forgotten.

        options: one that is not there is waited for, for `patience` seconds.

        Raises:
          SidecarError: it does not answer, or not as it should.
        """
        until, number = time.monotonic() + options.patience, 0
        while True:
            number += 1
            try:
                self.info = await fetch(self.url, min(PATIENCE, options.timeout))
            except Trouble as error:
                left = until - time.monotonic() if isinstance(error, Away) else 0.0
                if number >= min(INTRODUCTIONS, options.attempts) and left <= 0:
                    raise
                if number == INTRODUCTIONS:
                    log.warning("%s; it is waited for, %.0f s at most", error, left)
                await asyncio.sleep(_pause(options, number - 1))
            else:
                self.down, self.changed, self.failures, self.pace = "", False, 0, None
                return self.info


async def fetch(url: str, timeout: float) -> dict:
    """Return a sidecar's /info with the `names` of its rewards.

    Raises:
      SidecarError: it does not answer within `timeout` seconds, or not with such an object.
    """
    reply = await ask("GET", f"{url}/info", timeout)
    try:
        names = [name for name, _, _ in kind(reply)]
        monitors = [str(name) for name in reply.get("monitors") or []]
    except (TypeError, SidecarError) as error:
        raise Trouble(f"{url}/info: expected {{'rewards': [{{'name': ..}}]}}") from error
    return reply | {"names": names, "monitors": monitors}


@functools.cache
def named(url: str) -> Replica:
    """Return the one object of a sidecar in this process."""
    return Replica(url)


def kind(reply: dict) -> tuple[tuple[str, str, str], ...]:
    """Return what must not change while a run goes on: rewards with versions and digests.

    reply: to GET /info, or to a request for scores, which repeats it.

    Raises:
      Trouble: it holds no list of rewards.
    """
    rewards = reply.get("rewards")
    if not isinstance(rewards, list) or not all(isinstance(row, dict) for row in rewards):
        raise Trouble(f"expected rewards to be a list of objects, got {rewards!r:.80}")
    rows = [[str(row.get(key) or "") for key in ("name", "version", "sha256")] for row in rewards]
    if not all(name for name, _, _ in rows):
        raise Trouble(f"expected a name of every reward, got {rewards!r:.80}")
    return tuple((name, version, sha256) for name, version, sha256 in rows)


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
