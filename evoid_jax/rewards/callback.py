"""Scores enter JAX: `submit` hands videos to the host, `collect` brings their scores back.

Both are small jitted functions of their own around `io_callback` under `shard_map`, so each process
sends and scores the videos on its own devices, and whatever is dispatched between the two calls
runs while the host scores. Keep them out of scan, remat, grad and the training step.

On the host: numpy only, no call into JAX (it may deadlock), and nothing is ever raised, because an
error in one process's callback leaves the other processes hanging in their next collective. What
goes wrong comes back as valid = False. B videos, F frames, H W C pixels, M metrics; a small b is
one shard's part of B.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from evoid_jax.rewards import threads

log = logging.getLogger(__name__)
# Bytes. JAX's CPU client copies up to 100 KiB at once, larger arrays in its threads: see `_pieces`.
INLINE = 2**16

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]  # raw_bM, score_bM, valid_bM
ScoreFn = Callable[[np.ndarray, np.ndarray], Tables]  # of (video_bFHWC, index_b), all numpy


class Callback(NamedTuple):
    """The pair, what comes between, and the end.

    submit(video_BFHWC, index_B int32) -> ticket_B int32, at once. index_B, or (B, any) of numbers,
    tells the score function what the rows are: which request they are of, and which of its rows.
    wait(ticket_B) returns once this process's scores are there, or too late. To be called before
    collect, which waits too, but where no signal reaches it: Ctrl-C would have no effect.
    collect(ticket_B) -> raw_BM, score_BM float32 and valid_BM bool, once they are there. Tickets
    are per video and may be sliced, joined and reordered in between (within a process); each can be
    collected once. raw and score are NaN where not valid.
    close() stops the threads; scores still out are not waited for.
    """

    submit: Callable[[jax.Array, jax.Array], jax.Array]
    wait: Callable[[jax.Array], None]
    collect: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    close: Callable[[], None]


def make(
    score_fn: ScoreFn,
    mesh: Mesh,
    axes: str | tuple[str, ...],
    metrics: int,
    timeout: float = 600.0,
    workers: int = 8,
) -> Callback:
    """Make the pair for videos whose first axis is sharded over `axes` of `mesh`.

    Args:
      score_fn: called once per shard and submit, in a thread, with that shard's videos.
      mesh: of Auto axes; over those not in `axes` the videos are replicated, scored only once.
      axes: the mesh axes of the batch.
      metrics: M, how many scores each video gets.
      timeout: seconds that collect waits; later scores are invalid.
      workers: shards scored at once by one process.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    desk = _Desk(score_fn, metrics, timeout, workers)
    submit, collect = _shard_functions(desk, mesh, axes)
    rows = P(axes)
    # check_vma is off: a callback's result says nothing of how it varies over the mesh.
    submit_all = jax.shard_map(
        submit, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )
    collect_all = jax.shard_map(
        collect, mesh=mesh, in_specs=rows, out_specs=(rows, rows, rows), check_vma=False
    )

    def checked(ticket_B):
        raw_BM, score_BM, valid_BM = collect_all(ticket_B)
        valid_BM = valid_BM > 0
        # NaN goes in last: until here invalid is zero, which a sum over replicas leaves alone.
        raw_BM, score_BM = (jnp.where(valid_BM, x, jnp.nan) for x in (raw_BM, score_BM))
        return raw_BM, score_BM, valid_BM

    # Stated shardings: a bare callback result is pinned to one device, which no other jit takes.
    out = NamedSharding(mesh, rows)
    return Callback(
        submit=jax.jit(submit_all, out_shardings=out),
        wait=lambda ticket_B: desk.wait(_own_numbers(ticket_B)),
        collect=jax.jit(checked, out_shardings=(out, out, out)),
        close=desk.close,
    )


def _own_numbers(ticket_B: jax.Array) -> list[int]:
    """Return the tickets that are on this process's devices."""
    return [number for shard in ticket_B.addressable_shards for number in shard.data.tolist()]


def _shard_functions(desk: _Desk, mesh: Mesh, axes: tuple[str, ...]) -> tuple[Callable, Callable]:
    """Return submit and collect as every device runs them, on its own rows."""
    others = tuple(name for name in mesh.axis_names if name not in axes)

    def leads() -> jax.Array:
        # Devices along the other axes hold copies of the same videos: the first one asks for all.
        return sum((jax.lax.axis_index(name) for name in others), jnp.int32(0)) == 0

    def share(x: jax.Array) -> jax.Array:
        # The copies got zeros from the desk, so the sum is what the first one got.
        return jax.lax.psum(x, others) if others else x

    def submit(video_bFHWC, index_b):
        ticket_b = jax.ShapeDtypeStruct(index_b.shape[:1], jnp.int32)
        hand_over = partial(desk.submit, video_bFHWC.shape)
        pieces = _pieces(video_bFHWC, mesh)
        return share(io_callback(hand_over, ticket_b, leads(), index_b, pieces))

    def collect(ticket_b):
        table_bM = jax.ShapeDtypeStruct((ticket_b.shape[0], desk.metrics), jnp.float32)
        return share(io_callback(desk.collect, (table_bM,) * 3, leads(), ticket_b))

    return submit, collect


def _pieces(video_bFHWC: jax.Array, mesh: Mesh) -> list[jax.Array]:
    """Cut videos for the way to the host, where that way may be blocked.

    JAX copies a callback's arguments to the CPU client. Where the devices are that client's own,
    their callbacks hold its threads, and a copy that waits for one of these waits for ever.
    """
    devices = mesh.local_devices
    if devices[0].platform != "cpu" or len(devices) == 1:
        return [video_bFHWC]
    flat = video_bFHWC.reshape(-1)
    size = INLINE // flat.dtype.itemsize
    return jnp.split(flat, list(range(size, flat.size, size)))


class _Desk:
    """The host's side: takes videos in, gives tickets for them, and hands out scores for tickets.

    JAX calls `submit` and `collect` from threads of its own, several at once.
    """

    def __init__(self, score_fn: ScoreFn, metrics: int, timeout: float, workers: int):
        self.metrics = metrics
        self._score_fn, self._timeout = score_fn, timeout
        self._room = threading.Semaphore(workers)
        self._closed = False
        self._late: set[Future] = set()  # those that `wait` gave up
        self._places: dict[int, tuple[Future, int]] = {}  # of a ticket: whose scores, which row
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def submit(self, shape, lead, index_b, pieces: list) -> np.ndarray:
        """Start scoring; return a ticket per row, or zeros, for which there are no scores.

        Args:
          shape: bFHWC of the videos.
          lead: whether this device asks; the others hold copies.
          index_b: for the score function.
          pieces: the videos' bytes, in order, of `_pieces`.
        """
        count = len(index_b)
        try:
            if not bool(np.asarray(lead)):
                return np.zeros(count, np.int32)
            # A copy: JAX takes the memory behind a callback's arguments back when it returns.
            flat = np.concatenate([np.asarray(piece).reshape(-1) for piece in pieces])
            future = threads.start(self._in_turn, flat.reshape(shape), np.array(index_b))
            with self._lock:
                tickets = [next(self._numbers) % 2**31 for _ in range(count)]
                self._places |= {ticket: (future, row) for row, ticket in enumerate(tickets)}
            return np.array(tickets, np.int32)
        except Exception:
            log.exception("videos could not be handed over for scoring")
            return np.zeros(count, np.int32)

    def wait(self, tickets: list[int]) -> None:
        """Return once the scores of these tickets are there, or too late."""
        with self._lock:
            futures = {self._places[ticket][0] for ticket in tickets if ticket in self._places}
        self._late |= wait(futures, self._timeout).not_done

    def collect(self, lead, ticket_b) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wait for the scores of these tickets; raw, score, valid as float32, 0 where invalid."""
        shape = (len(ticket_b), self.metrics)
        try:
            tables = tuple(np.zeros(shape, np.float32) for _ in range(3))
            tickets = np.array(ticket_b).tolist() if bool(np.asarray(lead)) else []
            with self._lock:
                places = [self._places.pop(ticket, None) for ticket in tickets]
            # One wait for each submit, however many of its videos are asked for.
            futures = {place[0] for place in places if place}
            scores = {future: self._result(future) for future in futures}
            self._late -= futures
            lost = 0
            for b, place in enumerate(places):
                tables_of_submit = scores[place[0]] if place else None
                if tables_of_submit is None:
                    lost += 1
                    continue
                for table_bM, part_bM in zip(tables, tables_of_submit, strict=True):
                    table_bM[b] = part_bM[place[1]]
            if lost:
                log.warning("%d of %d videos have no scores", lost, len(places))
            return tables
        except Exception:
            log.exception("scores could not be collected")
            nothing = np.zeros(shape, np.float32)
            return nothing, nothing, nothing

    def close(self) -> None:
        """Take no more work; what has begun runs on in its thread and is forgotten."""
        self._closed = True

    def _in_turn(self, video_bFHWC: np.ndarray, index_b: np.ndarray):
        """Score once there is room for it."""
        with self._room:
            if self._closed:
                raise RuntimeError("closed before these videos were scored")
            return self._score(video_bFHWC, index_b)

    def _result(self, future: Future):
        try:
            return future.result(0 if future in self._late else self._timeout)
        except Exception as error:  # scoring failed (logged there), or it takes too long
            log.warning("scoring: %r", error)
            return None

    def _score(self, video_bFHWC: np.ndarray, index_b: np.ndarray):
        """Call the score function and bring its answer into form: zeros where invalid."""
        try:
            raw, score, valid = (np.asarray(x) for x in self._score_fn(video_bFHWC, index_b))
            shape = (len(index_b), self.metrics)
            if not raw.shape == score.shape == valid.shape == shape:
                raise ValueError(
                    f"expected three arrays of {shape} from the score function, got {raw.shape}, "
                    f"{score.shape}, {valid.shape}"
                )
            valid = valid.astype(bool) & np.isfinite(raw) & np.isfinite(score)
            return tuple(np.where(valid, x, 0).astype(np.float32) for x in (raw, score, valid))
        except Exception:
            log.exception("scoring %d videos failed", len(index_b))
            raise
