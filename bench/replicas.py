"""Score 200 large videos over three sidecars on this machine while one is killed and one hangs.

    python bench/replicas.py [--videos=200] [--encoding=raw] [--compare=40]

Videos of 49 x 240 x 416 pixels by preset tiny, in batches of 20, four at once, as the loop's parts
come. Each video has scores of its own, known from this process, so that a lost or a wrong one is
counted. Then the same videos over one sidecar and over two, in turn, a thread of nets each: prints
seconds and the ratio. Both sides share the machine with the client, which copies, hashes and sends
14.7 MB a video; the seconds of processor time of both sides are printed too.
"""

import argparse
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from evoid_jax.rewards import client, local
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars.tiny import rewards
from evoid_jax.world import portraits

BATCH, AT_ONCE = 20, 4
SHAPE = (49, 240, 416, 3)
NAMES = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "naturalness", "flow")


def enlarged(video_FHWC: np.ndarray) -> np.ndarray:
    """Stretch a drawn clip of 9 x 64 x 64 to SHAPE by repeating frames and pixels."""
    frames, height, width, _ = SHAPE
    f = np.arange(frames) * len(video_FHWC) // frames
    y, x = np.arange(height) * 64 // height, np.arange(width) * 64 // width
    return np.ascontiguousarray(video_FHWC[f][:, y][:, :, x])  # as it comes out of the loop


def clips() -> tuple[np.ndarray, list, list[str], np.ndarray]:
    """Draw BATCH videos: pixels, photos, prompts, and the scores that they must get."""
    scenes = [portraits.scene(i, 0) for i in list(portraits.SPLITS["validation"])[:BATCH]]
    video_BFHWC = np.stack([enlarged(portraits.render(scene)) for scene in scenes])
    photos = [[portraits.reference(scene.identity)] for scene in scenes]
    prompts = [portraits.prompt(scene, 0) for scene in scenes]
    loaded, rows = rewards.load(), []
    for b in range(BATCH):  # one by one: all at once would take gigabytes
        body = wire.encode(video_BFHWC[b : b + 1], photos[b : b + 1], prompts[b : b + 1])
        columns = preset.answer(loaded, wire.decode(body))["scores"]
        rows.append([columns[name]["score"][0] for name in NAMES])
    return video_BFHWC, photos, prompts, np.array(rows)


def scored(urls: list[str], made, batches: int, options: client.Options, after=lambda k: None):
    """Score the videos `batches` times over; return how many are lost and how many are wrong."""
    video_BFHWC, photos, prompts, want_BM = made

    def ask(k: int) -> tuple[int, int]:
        scores = client.score(
            urls, NAMES, video_BFHWC, photos, prompts, options=options, first=k * BATCH
        )
        after(k)
        got_BM = scores.table.score_BM
        lost_B = ~scores.table.valid_BM.all(axis=1)
        limit = 1e-4 if options.encoding != "h264" else 0.2
        wrong_B = ~lost_B & ~np.isclose(got_BM, want_BM, atol=limit).all(axis=1)
        return int(lost_B.sum()), int(wrong_B.sum())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(np.sum(list(pool.map(ask, range(batches))), axis=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--compare", type=int, default=40, help="videos of a timed round; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoding", default="raw", choices=["raw", "h264", "lossless"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = client.Options(timeout=600.0, fps=16, encoding=args.encoding)
    made = clips()
    with tempfile.TemporaryDirectory() as folder:
        servers = [local.start_sidecar("tiny", Path(folder) / str(k), 900.0) for k in range(3)]
        urls = [server.url for server in servers]
        try:
            if args.compare:
                compare(servers, urls, made, args.compare // BATCH, args.rounds, options)
            hurt(servers, urls, made, args.videos // BATCH, options)
        finally:
            for server in servers:
                if server.alive():
                    os.killpg(server.pid, signal.SIGCONT)
                server.stop()


def worked(pid: int) -> float:
    """Return the seconds of a core that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(servers, urls, made, batches: int, rounds: int, options: client.Options) -> None:
    """Time one replica and two in turn."""
    rows = []
    for _ in range(rounds):
        for count in (1, 2):
            clocks = lambda: np.array(
                [time.perf_counter(), time.process_time(), sum(worked(s.pid) for s in servers)]
            )
            began = clocks()
            lost, wrong = scored(urls[:count], made, batches, options)
            rows.append(clocks() - began)
            assert (lost, wrong) == (0, 0), (lost, wrong)
    one, two = (np.array(rows[k::2]) for k in (0, 1))
    print(f"{batches * BATCH} videos, {options.encoding}, medians of {rounds} rounds")
    print("replicas  seconds   seconds of a core: client  replicas")
    for count, times in ((1, one), (2, two)):
        took, client_took, replicas_took = np.median(times, axis=0)
        print(f"{count:8d}{took:9.1f}{client_took:28.1f}{replicas_took:10.1f}")
    print(f"two against one: {np.median(one[:, 0] / two[:, 0]):.2f}")
    # With enough cores: a replica takes half of the work, and the client has a core of its own.
    apart = np.median(one[:, 0]) / max(np.median(two[:, 2]) / 2, np.median(two[:, 1]))
    print(f"the same with a core for each process, by their own seconds: at most {apart:.2f}")


def hurt(servers, urls, made, batches: int, options: client.Options) -> None:
    """Kill one replica and stop another while videos are under way."""

    def after(k: int) -> None:
        if k == 1:
            os.killpg(servers[0].pid, signal.SIGKILL)
        if k == 3:
            os.killpg(servers[1].pid, signal.SIGSTOP)

    began = time.perf_counter()
    lost, wrong = scored(urls, made, batches, options, after)
    print(
        f"{batches * BATCH} videos over three replicas, one killed and one hung: {lost} lost, "
        f"{wrong} wrong, {time.perf_counter() - began:.1f} s"
    )


if __name__ == "__main__":
    main()
