"""Let sidecars and judges fail in every way of bench/faulty.py, and see what comes of their scores.

    python bench/faults.py [--each=14] [--timeout=15] [--at-once=12] [--every=1]

Every kind meets the real client `each` times in three ways: a sidecar that fails and is sound
again, one that fails for ever beside a sound replica, and a judge. Each video has scores of its
own, so that a wrong one is seen. Prints a table by kind: faults met, scores that were had, masked
and wrong, videos lost though a sound replica was there, and the longest call. Ends with a status of
1 where a call outlived its deadline, a score was wrong, or such a video was lost.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from faulty import FAULTS, NAMES, OF_BOTH, OF_JUDGES, OF_SIDECARS, Faulty, true_grade, true_raw

from evoid_jax.rewards import client
from evoid_jax.rewards.judge import Judge
from evoid_jax.rewards.judge_chat import Chat
from evoid_jax.rewards.judge_server import Server

VIDEOS = 3
MORE = 15.0  # seconds beyond its deadline that a call may take on a busy machine
PASSES = ("alone", "beside a sound one", "judge")
DIES = "dies and comes back"
REFUSES = "refuses connections"


class Outcome(NamedTuple):
    """What came of one call. lost: videos without a score though a sound replica was there."""

    faults: int
    had: int
    masked: int
    wrong: int
    lost: int
    seconds: float


def videos(seed: int) -> dict:
    """Return `client.score`'s arguments for videos of grey levels of their own."""
    levels = [28 * band + 14 for band in random.Random(seed).sample(range(9), VIDEOS)]
    level_B = np.array(levels, np.uint8).reshape(-1, 1, 1, 1, 1)
    photo = np.full((8, 8, 3), 7, np.uint8)
    return {
        "video_BFHWC": np.broadcast_to(level_B, (VIDEOS, 3, 32, 32, 3)).copy(),
        "references": [[photo]] * VIDEOS,
        "prompts": [f"video {seed} {b}" for b in range(VIDEOS)],
    }


def patient(timeout: float) -> client.Options:
    return client.Options(
        timeout=timeout, attempts=4, backoff=0.02, batch=2, probe=2.0, patience=timeout
    )


def broken(server: Faulty, kind: str, seed: int) -> None:
    """Let a server fail from now on."""
    if kind in (DIES, REFUSES):
        server.met += 1
        server.shut(0.1 + random.Random(seed).random() if kind == DIES else None)
    else:
        server.fault = kind


def alone(kind: str, seed: int, timeout: float) -> Outcome:
    """One sidecar fails some times and is sound again."""
    with Faulty() as server:
        client.info(server.url)
        server.left = 1 + seed % 2
        broken(server, kind, seed)
        return scored([server], kind, seed, timeout)


def beside(kind: str, seed: int, timeout: float) -> Outcome:
    """One replica fails for ever, another one is sound."""
    with Faulty() as server, Faulty() as sound:
        for one in (server, sound):
            client.info(one.url)
        broken(server, kind, seed)
        return scored([server, sound], kind, seed, timeout)


def scored(servers: list[Faulty], kind: str, seed: int, timeout: float) -> Outcome:
    """Score videos with sidecars of which the first one fails."""
    asked, began = videos(seed), time.monotonic()
    urls = [server.url for server in servers]
    scores = client.score(urls, NAMES, **asked, options=patient(timeout))
    seconds = time.monotonic() - began
    levels = asked["video_BFHWC"][:, 0, 0, 0, 0].tolist()
    valid_BM = scores.table.valid_BM
    true_BM = np.array([true_raw(level) for level in levels], np.float32)
    share_BM = np.repeat(np.array(levels, np.float32)[:, None] / 255, len(NAMES), axis=1)
    wrong_BM = (scores.table.raw_BM != true_BM) | ~np.isclose(scores.table.score_BM, share_BM)
    lost = VIDEOS - int(valid_BM.all(axis=1).sum()) if len(servers) > 1 else 0
    return Outcome(
        faults=servers[0].met,
        had=int(valid_BM.sum()),
        masked=int((~valid_BM).sum()),
        wrong=int((valid_BM & wrong_BM).sum()),
        lost=lost,
        seconds=seconds,
    )


def judged(kind: str, seed: int, timeout: float) -> Outcome:
    """A judge fails some times and is sound again; there is no other one."""
    asked = videos(seed)
    with Faulty() as server:
        address = Server(f"{server.url}/v1", timeout=timeout, workers=2, patience=timeout / 2)
        judge = Judge(Chat(address), frames=2, side=32)
        judge.chat.check()
        server.left = 1 + seed % 2
        broken(server, f"judge: {kind}" if kind in OF_JUDGES else kind, seed)
        began = time.monotonic()
        options = patient(timeout)
        scores = client.score([], ("vqscore",), **asked, options=options, judge=judge)
        seconds = time.monotonic() - began
        judge.chat.close()
    valid_B, raw_B = scores.table.valid_BM[:, 0], scores.table.raw_BM[:, 0]
    grade_B = [true_grade(level) for level in asked["video_BFHWC"][:, 0, 0, 0, 0].tolist()]
    return Outcome(
        faults=server.met,
        had=int(valid_B.sum()),
        masked=int((~valid_B).sum()),
        wrong=int((valid_B & (raw_B != grade_B)).sum()),
        lost=0,
        seconds=seconds,
    )


def trials(each: int) -> Iterator[tuple[str, str, int]]:
    """Yield (way, kind, seed) of all calls."""
    of_all = (DIES, *OF_BOTH)
    kinds = {
        "alone": (*of_all, *OF_SIDECARS),
        "beside a sound one": (*of_all, REFUSES, *OF_SIDECARS),
        "judge": (*of_all, REFUSES, *OF_JUDGES),
    }
    for seed in range(each):
        for way in PASSES:
            for kind in kinds[way]:
                yield way, kind, seed


def summed(outcomes: list[Outcome]) -> Outcome:
    sums = Outcome(*(sum(values) for values in zip(*outcomes, strict=True)))
    return sums._replace(seconds=max(outcome.seconds for outcome in outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=14, help="calls of each kind and way")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds of a call")
    parser.add_argument("--at-once", type=int, default=12, help="calls under way")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth call alone")
    args = parser.parse_args()
    ways = dict(zip(PASSES, (alone, beside, judged), strict=True))
    table: dict[tuple[str, str], list[Outcome]] = {}
    with ThreadPoolExecutor(args.at_once) as pool:
        asked = list(trials(args.each))[:: args.every]
        call = lambda trial: ways[trial[0]](trial[1], trial[2], args.timeout)
        for (way, kind, _), outcome in zip(asked, pool.map(call, asked), strict=True):
            table.setdefault((way, kind), []).append(outcome)
    print(f"{'':42} faults   had masked wrong  lost  longest")
    line = "{:20} {:21} {:6d} {:5d} {:6d} {:5d} {:5d} {:7.1f} s"
    for (way, kind), outcomes in sorted(table.items(), key=lambda row: PASSES.index(row[0][0])):
        print(line.format(way, kind, *summed(outcomes)))
    total = summed([outcome for outcomes in table.values() for outcome in outcomes])
    print(line.format("all", f"{len(FAULTS) + 2} kinds", *total))
    hung = total.seconds > args.timeout + MORE
    if hung or total.wrong or total.lost:
        sys.exit(f"a call took {total.seconds:.1f} s, {total.wrong} wrong, {total.lost} lost")


if __name__ == "__main__":
    main()
