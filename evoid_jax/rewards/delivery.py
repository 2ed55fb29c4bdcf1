"""A request on its way to one of several replicas, until one of them has answered it.

It goes to the replica that should be done with it first, by what is under way there and how fast it
was. It goes on to the next one when that fails, or is silent and does not even say what it is, or
has had half of the time; whoever answers first counts. A replica that failed is used again once it
answers GET /info as before, and one that was too late only where no other one is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from evoid_jax.rewards import background, threads
from evoid_jax.rewards.replica import Replica
from evoid_jax.rewards.transport import (
    ANY_REPLY,
    PER_VIDEO,
    Doubtful,
    Later,
    Options,
    SidecarError,
    Trouble,
    ask,
)
from evoid_jax.sidecars import wire

log = logging.getLogger(__name__)

TICK = 1.0  # seconds after which a delivery looks at the clock, whatever else happens


class Parcel(NamedTuple):
    """What is sent: `ids` name the videos; `pack` writes the body, in a thread.

    doubt: raises Doubtful for a reply that is to be asked for again; where no better one comes, the
    last of them is the reply.
    """

    ids: list[str]
    pack: Callable[[], wire.Pieces]
    doubt: Callable[[dict], None] = lambda reply: None


async def deliver(
    team: list[Replica], parcel: Parcel, options: Options, deadline: float
) -> dict | SidecarError:
    """Return the reply to POST /score, or why there is none; never raises.

    Args:
      team: replicas of each other, the one that is to be preferred among equals first.
      parcel: the request.
      options: attempts is how often each replica may fail with it.
      deadline: by `time.monotonic`, for all tries together.
    """
    errand = _Errand(team, parcel, options, deadline)
    for one in team:
        one.hold(options)
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await errand.run()
    except TimeoutError:
        last = f"; {errand.why}" if errand.why else ""
        late = SidecarError(f"no reply from {_addresses(team)} in {options.timeout:g} s{last}")
        return late if errand.doubtful is None else errand.doubtful
    except SidecarError as error:
        return error if errand.doubtful is None else errand.doubtful
    except Exception as error:  # no server's doing, and no reason to lose the scores of the others
        log.exception("a request could not be sent")
        return SidecarError(f"{_addresses(team)}: {type(error).__name__}: {error}")
    finally:
        for one in team:
            one.release()


class _Errand:
    """One request's tries. why: what went wrong last. doubtful: the last reply of that kind."""

    def __init__(self, team: list[Replica], parcel: Parcel, options: Options, deadline: float):
        self.why, self.doubtful = "", None
        self._team, self._parcel, self._options = team, parcel, options
        self._start = time.monotonic()
        self._half = (self._start + deadline) / 2
        self._tries: dict[asyncio.Task, Replica] = {}
        self._failed: Counter[str] = Counter()  # how often, by url
        self._body: asyncio.Future[tuple[wire.Pieces, str]] | None = None

    async def run(self) -> dict:
        """Try until a reply has come.

        Raises:
          SidecarError: every replica has failed often enough, or will not take the request.
        """
        with background.changed() as event:
            try:
                while True:
                    event.clear()
                    if free := self._next():
                        self._send(free)
                    elif not self._tries and all(map(self._hopeless, self._team)):
                        raise SidecarError(self.why or self._team[0].down)
                    reply = await self._heard(event)
                    if reply is not None:
                        return reply
            finally:
                for task in self._tries:
                    task.cancel()
                await asyncio.gather(*self._tries, return_exceptions=True)

    def _next(self) -> Replica | None:
        """Return the replica to send to now; None: wait for those that have it, or for one."""
        trusted = [r for r in self._tries.values() if not r.down]
        if trusted and (time.monotonic() < self._half or len(self._tries) > 1):
            return None
        count, busy = len(self._parcel.ids), set(self._tries.values())
        there = [r for r in self._team if not r.down and not self._spent(r)]
        # One that let requests wait in vain gets none while there is another one.
        there = [r for r in there if not r.slack()] or there
        free = [r for r in there if r not in busy and r.takes(count)]
        known = [r.pace for r in self._team if r.pace is not None]
        usual = sum(known) / len(known) if known else 1.0

        def until_done(one: Replica) -> float:
            pace = usual if one.pace is None else one.pace
            return (one.videos + count) * pace

        return min(free, key=until_done, default=None)  # the first of equals

    def _spent(self, one: Replica) -> bool:
        return self._failed[one.url] >= self._options.attempts

    def _hopeless(self, one: Replica) -> bool:
        """Tell whether to wait for a replica no longer: it was down for long, and still is."""
        gone = one.changed or one.away() >= self._options.patience
        return self._spent(one) or (bool(one.down) and gone and one.checked >= self._start)

    def _send(self, one: Replica) -> None:
        began = one.began(len(self._parcel.ids))
        self._tries[asyncio.create_task(self._try(one, began))] = one

    async def _try(self, one: Replica, began: float) -> dict:
        """Send the request to one replica, whose state learns how it went."""
        count, options = len(self._parcel.ids), self._options
        try:
            if self._body is None:  # packed when the first replica is free, and then kept
                self._body = asyncio.wrap_future(threads.start(self._pack))
            body, digest = await asyncio.shield(self._body)
            most = ANY_REPLY + PER_VIDEO * count
            reply = await ask("POST", f"{one.url}/score", options.timeout, body, most)
            _check_bound(one.url, reply, digest, self._parcel.ids)
            one.check_kind(reply)
            self._check(reply)
            one.served(count, began)
            return reply
        except Later as error:
            one.put_off(error.seconds, options)
            raise
        except Trouble as error:
            # Scores take long, and doubtful ones are mostly the same the next time.
            often = isinstance(error, Doubtful)
            self._failed[one.url] += max(1, options.attempts // 2) if often else 1
            one.failed(error, options)
            raise
        except SidecarError:  # it would not take this request the next time either
            self._failed[one.url] = options.attempts
            raise
        except asyncio.CancelledError:  # another one was faster, or the time is over
            if time.monotonic() - began >= options.timeout / 2:
                one.late(options)
            raise
        finally:
            one.ended(count)

    def _check(self, reply: dict) -> None:
        try:
            self._parcel.doubt(reply)
        except Doubtful:
            self.doubtful = reply
            raise

    def _pack(self) -> tuple[wire.Pieces, str]:
        body = self._parcel.pack()
        return body, wire.digest(*body)

    async def _heard(self, event: asyncio.Event) -> dict | None:
        """Wait until something happens; return a reply where that was one."""
        waiter = asyncio.create_task(event.wait())
        soon = [r.free_at - time.monotonic() for r in self._team]
        pause = min([TICK, *(s for s in soon if s > 0)])
        try:
            await asyncio.wait(
                {waiter, *self._tries}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiter.cancel()
        for task in [task for task in self._tries if task.done()]:
            del self._tries[task]
            try:
                return task.result()
            except SidecarError as error:
                self.why = str(error)
        return None


def _check_bound(url: str, reply: dict, digest: str, ids: list[str]) -> None:
    """Raise where a reply does not say that it belongs to this request, and to its videos.

    Raises:
      Trouble: it belongs to others.
      SidecarError: it says nothing of it, and would not the next time.
    """
    if lacking := [key for key in ("digest", "ids", "rewards") if key not in reply]:
        raise SidecarError(
            f"{url}: the reply does not repeat {', '.join(lacking)}: it might belong to another "
            "request, or to another version; see docs/sidecar_protocol.md"
        )
    said = reply["digest"]
    if not isinstance(said, str) or not said.isascii() or said.lower() != digest:
        raise Trouble(f"{url}: the reply belongs to another request (digest {said!r:.80})")
    if reply["ids"] != ids:
        raise Trouble(
            f"{url}: the reply is about other videos: expected ids {ids!r:.80}, got "
            f"{reply['ids']!r:.80}"
        )


def _addresses(team: list[Replica]) -> str:
    return " or ".join(one.url for one in team)
