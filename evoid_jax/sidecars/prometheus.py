"""What GET /metrics tells: how much waits, and what each reward takes, in Prometheus's text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Summary,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Figures:
    """Counters of one server. `page` gives them as Prometheus reads them.

    Args:
      waiting: returns how many videos wait for the nets.
      held: returns how many bytes requests take.
    """

    def __init__(self, waiting: Callable[[], float], held: Callable[[], float]):
        self._registry = CollectorRegistry()  # of its own: a process may hold several servers
        here = {"registry": self._registry}
        queue = Gauge("evoid_queue_videos", "Videos that wait for the nets.", **here)
        queue.set_function(waiting)
        memory = Gauge("evoid_queue_bytes", "Bytes of the requests that are in the server.", **here)
        memory.set_function(held)
        self._replies = Counter(
            "evoid_replies", "Replies to POST /score by their HTTP status.", ["status"], **here
        )
        self._seconds = Summary(
            "evoid_reward_seconds",
            "Seconds of a reward's or monitor's work, and how often it worked.",
            ["reward"],
            **here,
        )
        self._videos = Counter(
            "evoid_reward_videos", "Videos that a reward or monitor looked at.", ["reward"], **here
        )

    def scored(self, reward: str, seconds: float, videos: int) -> None:
        """Count a scorer's work on some videos."""
        self._seconds.labels(reward).observe(seconds)
        self._videos.labels(reward).inc(videos)

    def replied(self, status: int) -> None:
        """Count a reply."""
        self._replies.labels(str(status)).inc()

    def page(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)
