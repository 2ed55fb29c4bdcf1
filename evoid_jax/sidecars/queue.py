"""Requests wait here until the nets are free: in order, and as many videos at once as they take.

A preset's `together` says how many videos that is. A larger request is scored in pieces; requests
that wait and ask for the same are put together, which a GPU needs to be busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

from evoid_jax.sidecars import preset as presets
from evoid_jax.sidecars.wire import ScoreRequest

MEMORY = 0.7  # of the seconds per video: the share of what was known before


class Room:
    """Bytes that requests may take; a request that would take more must come again later.

    One is let in whatever its size when there is no other, or it could never be served.
    """

    def __init__(self, most: int):
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    def take(self, size: int, held: int = 0) -> bool:
        """Take `size` more bytes and return True, or False where there is no room.

        held: what the same request has taken already.
        """
        with self._lock:
            others = self.held - held
            if others > 0 and self.held + size > self.most:
                return False
            self.held += size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self.held -= size


class NoRoom(Exception):
    """There is no room for more of a request now."""


class Share:
    """What one request has taken of a room: `size` bytes, which grow as more of it is there.

    Use: `with Share(room) as share`; what it took is given back at the end.
    """

    def __init__(self, room: Room):
        self._room, self.size = room, 0

    def grow(self, more: int) -> None:
        """Take that many bytes more.

        Raises:
          NoRoom: they are not there; nothing is taken.
        """
        if not self._room.take(more, held=self.size):
            raise NoRoom
        self.size += more

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_) -> None:
        self._room.give(self.size)


class _Ticket:
    """A request in the queue: how many of its videos were taken, and what came of them."""

    def __init__(self, request: ScoreRequest):
        self.request, self.count = request, len(request.videos)
        self.future: Future[dict] = Future()
        self.taken, self.replies = 0, []


class _Piece(NamedTuple):
    """Some videos of a request, start..stop."""

    ticket: _Ticket
    start: int
    stop: int


class Queue:
    """Scores requests one after the other, in a thread of its own.

    Args:
      preset: what scores.
      told: is told what every scorer's work took; see preset.py.
    """

    def __init__(self, preset: presets.Preset, told: presets.Told = lambda *_: None):
        self._preset, self._told = preset, told
        self._waiting: deque[_Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._pace = 0.0  # seconds per video, of late
        self._thread = threading.Thread(target=self._work, name="nets", daemon=True)
        self._thread.start()

    def put(self, request: ScoreRequest) -> Future[dict]:
        """Queue a request; the future's result is the reply of `preset.answer`, or its error.

        Cancel the future of a request whose asker has gone: what was not begun is left out then.

        Raises:
          ValueError: the request names a reward that the preset lacks.
        """
        presets.chosen(self._preset, request.rewards)
        ticket = _Ticket(request)
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket.future

    def waiting(self) -> int:
        """Return how many videos the nets have not begun with."""
        with self._changed:
            return sum(t.count - t.taken for t in self._waiting if not t.future.cancelled())

    def seconds(self) -> float:
        """Return how long what waits will take, by what scoring took of late."""
        return self.waiting() * self._pace

    def alive(self) -> bool:
        """Tell whether requests are still being scored."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread after what it is at; requests that wait are cancelled."""
        with self._changed:
            self._closed = True
            for ticket in self._waiting:
                ticket.future.cancel()
            self._waiting.clear()
            self._changed.notify()

    def _work(self) -> None:
        while pieces := self._next():
            began = time.monotonic()
            self._score(pieces)
            each = (time.monotonic() - began) / sum(p.stop - p.start for p in pieces)
            self._pace = MEMORY * self._pace + (1 - MEMORY) * each if self._pace else each

    def _next(self) -> list[_Piece]:
        """Wait for work and take as much as the nets take at once; nothing means the end."""
        with self._changed:
            while not self._closed:
                while self._waiting and self._waiting[0].future.done():  # its asker has gone
                    self._waiting.popleft()
                if self._waiting:
                    return self._take()
                self._changed.wait()
        return []

    def _take(self) -> list[_Piece]:
        """Take from the first request, and from those behind it that ask for the same."""
        most, pieces = self._preset.together, []
        room = most or self._waiting[0].count
        while room and self._waiting:
            ticket = self._waiting[0]
            if ticket.future.done():  # given up, or one of its videos cannot be scored
                self._waiting.popleft()
                continue
            if pieces and not _alike(ticket.request, pieces[0].ticket.request):
                break
            stop = min(ticket.taken + room, ticket.count)
            pieces.append(_Piece(ticket, ticket.taken, stop))
            room -= stop - ticket.taken
            ticket.taken = stop
            if stop == ticket.count:
                self._waiting.popleft()
        return pieces

    def _score(self, pieces: list[_Piece]) -> None:
        """Score pieces together, and complete the requests whose last videos these were."""
        try:
            reply = presets.answer(self._preset, _joined(pieces), self._told)
        except Exception as error:  # whatever it is, the asker is told and the others go on
            self._failed(pieces, error)
            return
        start, whole = 0, sum(piece.stop - piece.start for piece in pieces)
        for ticket, first, last in pieces:
            count = last - first
            ticket.replies.append(_cut(reply, start, start + count, share=count / whole))
            start += count
            if last == ticket.count:
                # Cancelled meanwhile: nobody waits for it.
                with contextlib.suppress(InvalidStateError):
                    ticket.future.set_result(_strung(ticket.replies))

    def _failed(self, pieces: list[_Piece], error: Exception) -> None:
        """Tell who asked; of several requests, only the one that cannot be scored."""
        if len(pieces) > 1:
            for piece in pieces:
                self._score([piece])
            return
        with contextlib.suppress(InvalidStateError):
            pieces[0].ticket.future.set_exception(error)


def _alike(one: ScoreRequest, other: ScoreRequest) -> bool:
    """Tell whether two requests ask for the same, so that their videos can be scored together."""
    asked = lambda request: (request.rewards, request.monitors, request.fps)
    return asked(one) == asked(other)


def _joined(pieces: list[_Piece]) -> ScoreRequest:
    """Return one request for all videos of the pieces."""
    rows = [(p.ticket.request, i) for p in pieces for i in range(p.start, p.stop)]
    return pieces[0].ticket.request._replace(
        videos=[request.videos[i] for request, i in rows],
        reasons=[request.reasons[i] for request, i in rows],
        references=[request.references[i] for request, i in rows],
        prompts=[request.prompts[i] for request, i in rows],
        attributes=[request.attributes[i] for request, i in rows],
        ids=None,  # names of several askers; each gets its own back
        others=[request.others[i] if request.others else [] for request, i in rows],
    )


def _cut(reply: dict, start: int, stop: int, share: float) -> dict:
    """Return the part of a reply that tells of some videos. share: of its seconds."""
    scores = {
        name: {key: values[start:stop] for key, values in column.items()}
        for name, column in reply["scores"].items()
    }
    monitor = {name: values[start:stop] for name, values in reply["monitor"].items()}
    return {"scores": scores, "monitor": monitor, "seconds": share * reply["seconds"]}


def _strung(replies: list[dict]) -> dict:
    """Return the parts of a request's reply as one."""
    first = replies[0]
    scores = {
        name: {key: [x for r in replies for x in r["scores"][name][key]] for key in column}
        for name, column in first["scores"].items()
    }
    monitor = {name: [x for r in replies for x in r["monitor"][name]] for name in first["monitor"]}
    return {
        "scores": scores,
        "monitor": monitor,
        "seconds": round(sum(r["seconds"] for r in replies), 4),
    }
