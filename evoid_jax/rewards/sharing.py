"""Who is asked for what: the requests that a batch becomes.

Sidecars that offer the same rewards are a team: videos are spread over its members, and they stand
in for each other. Teams with different rewards are each asked for their own.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import NamedTuple

from evoid_jax.rewards import background, replica
from evoid_jax.rewards.transport import Encoding, Options, SidecarError


class Job(NamedTuple):
    """One request: these rewards of videos start..stop, from any of `urls`, best the first."""

    urls: tuple[str, ...]
    names: tuple[str, ...]
    start: int
    stop: int
    monitors: bool
    encoding: Encoding = "raw"


def plan(
    urls: tuple[str, ...],
    wanted: tuple[str, ...],
    rows: range,
    monitors: tuple[str, ...],
    options: Options,
    deadline: float,
) -> tuple[list[Job], dict[str, str], dict[str, str]]:
    """Return the requests to make, why some rewards cannot be had, and the dead sidecars.

    Args:
      urls: sidecars; those that have not answered yet are asked what they are.
      wanted: names of rewards.
      rows: of the videos, in the batch that they are a part of.
      monitors: sidecars that may be asked for those too; none: nobody is.
      deadline: of the batch, by `time.monotonic`.
    """
    # One that says nothing must not cost the scores of the others: half of the time is theirs.
    seconds = (deadline - time.monotonic()) / 2
    infos = background.run(_known(urls, options, seconds))
    alive = {url: reply for url, reply in infos.items() if isinstance(reply, dict)}
    dead = {url: str(reply) for url, reply in infos.items() if isinstance(reply, SidecarError)}
    jobs, taken, watched = [], set(), False
    for (offered, monitored, _), team in _teams(alive, wanted).items():
        # A reward that two teams offer is asked of the first alone, and so are the monitors.
        names = tuple(name for name in offered if name not in taken)
        watch = bool(monitored) and not watched and not {*team}.isdisjoint(monitors)
        if names or watch:
            infos_of_team = [alive[url] for url in team]
            # No larger than the smallest number of videos that one of them takes at once.
            most = min([options.batch, *filter(None, map(replica.together, infos_of_team))])
            encoding = options.encoding if not deaf(options.encoding, infos_of_team) else "raw"
            # An address with several servers behind it takes as many shares.
            places = [url for url in team for _ in range(replica.replicas(alive[url]))]
            parts = split(places, names, rows, watch, most)
            jobs += [job._replace(encoding=encoding) for job in parts]
        taken |= set(names)
        watched |= watch
    each = "; ".join(f"{url}: {why}" for url, why in dead.items())
    why = f"no sidecar answers for it ({each})" if dead else "no sidecar offers it"
    return jobs, {name: why for name in wanted if name not in taken}, dead


async def _known(
    urls: tuple[str, ...], options: Options, seconds: float
) -> dict[str, dict | SidecarError]:
    """Return what all sidecars are; those that have not answered yet are asked."""
    hasty = options._replace(patience=0.0)

    async def ask(url: str) -> dict | SidecarError:
        one = replica.named(url)
        try:
            # Only answers are kept: one that was not there is asked again the next time.
            async with asyncio.timeout(seconds):
                return one.info or await one.learn(hasty)
        except SidecarError as error:
            return error
        except TimeoutError:
            return SidecarError(f"{url}/info: no answer in {seconds:.3g} s")

    return dict(zip(urls, await asyncio.gather(*map(ask, urls)), strict=True))


def deaf(encoding: Encoding, infos: list[dict]) -> list[int]:
    """Return which sidecars do not say that they read videos in this encoding.

    infos: their replies to GET /info; one without `formats` reads raw alone.
    """
    wanted = "raw" if encoding == "raw" else "mp4"
    return [i for i, info in enumerate(infos) if wanted not in (info.get("formats") or ["raw"])]


def check_encoding(encoding: Encoding, urls: list[str], infos: list[dict]) -> None:
    """Raise a ValueError that names the sidecars which do not read videos in this encoding."""
    if some := deaf(encoding, infos):
        raise ValueError(
            f"config.reward.encoding is {encoding}, which travels as mp4 files, but "
            f"{', '.join(urls[i] for i in some)} reads raw videos alone; set "
            "--config.reward.encoding=raw"
        )


def unasked(urls: list[str], infos: list[dict], wanted: tuple[str, ...]) -> list[str]:
    """Return a sentence for each reward that some sidecars offer and will not be asked for.

    Args:
      urls, infos: sidecars and their replies to GET /info.
      wanted: names of rewards.
    """
    asked: dict[str, list[str]] = {}
    sentences = []
    for (offered, _, _), team in _teams(dict(zip(urls, infos, strict=True)), wanted).items():
        for name in offered:
            if name in asked:
                sentences.append(
                    f"{name} is asked of {', '.join(asked[name])} and not of {', '.join(team)}, "
                    "which stand in for them only with the same rewards, versions and monitors"
                )
            asked.setdefault(name, team)
    return sentences


def _teams(alive: dict[str, dict], wanted: tuple[str, ...]) -> dict[tuple, list[str]]:
    """Group the sidecars that stand in for each other.

    They offer the same of the wanted rewards, of the same versions and digests: two versions would
    give two videos of a pair different measures. And the same monitors; where these are all that is
    asked for, by services that are alike as a whole.
    """
    teams: dict[tuple, list[str]] = {}
    for url, reply in alive.items():
        kinds = {entry[0]: entry for entry in replica.kind(reply)}
        offered = tuple(name for name in wanted if name in kinds)
        versions = str([kinds[name] for name in offered or kinds])
        teams.setdefault((offered, tuple(reply["monitors"]), versions), []).append(url)
    return teams


def first_with_monitors(infos: list[dict]) -> dict | None:
    """Return what the first sidecar says that has monitors; None where none has."""
    return next((reply for reply in infos if reply["monitors"]), None)


def alike(urls: list[str], infos: list[dict], first: dict | None) -> tuple[str, ...]:
    """Return the sidecars whose monitors are those of `first`: replicas of it."""
    told = lambda reply: (replica.kind(reply), reply["monitors"])
    both = zip(urls, infos, strict=True)
    return tuple(url.rstrip("/") for url, reply in both if first and told(reply) == told(first))


def split(team: list[str], names: tuple, rows: range, watch: bool, most: int) -> list[Job]:
    """Cut a batch into requests; replicas take turns at being the best for one.

    team: addresses, each as often as it has servers.
    """
    count = len(rows)
    size = max(1, min(most, math.ceil(count / len(team))))
    jobs = []
    for i, start in enumerate(range(0, count, size)):
        # Counted from the batch's own first row: its other parts are requests of somebody else, who
        # counts in the same way, in this process or another.
        turn = (rows.start // size + i) % len(team)
        urls = dict.fromkeys((*team[turn:], *team[:turn]))
        jobs.append(Job(tuple(urls), names, start, min(start + size, count), watch))
    return jobs
