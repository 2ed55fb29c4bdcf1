"""Tell what encodings cost on the way to sidecars: bytes, seconds, and what scores change by.

    python bench/encoding.py [--video=FILE ..] [--people=32]

Of each file (any that PyAV reads, such as a generated video) prints bytes against raw pixels, the
seconds of a core to encode and to decode, and the largest difference of a pixel. Then, for drawn
people as they are and with noise, scored by preset tiny, what H.264 changes of each reward's score.
"""

import argparse
import time

import numpy as np
import torch

from evoid_jax import media
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars.tiny import rewards
from evoid_jax.world import portraits

LOSSLESS = {"h264": False, "lossless": True}


def cost(name: str, video_FHWC: np.ndarray) -> None:
    """Print what each encoding of a video costs."""
    for encoding, lossless in LOSSLESS.items():
        began = time.process_time()
        file = media.encode(video_FHWC, 16, lossless)
        written = time.process_time()
        back_FHWC = media.read(file)[0]
        read = time.process_time()
        apart = np.abs(back_FHWC.astype(np.int16) - video_FHWC).max()
        print(
            f"{name} {video_FHWC.shape} {encoding}: {len(file) / 1e6:.2f} MB, 1/"
            f"{video_FHWC.nbytes / len(file):.1f} of raw; encoded in {written - began:.2f} s, "
            f"decoded in {read - written:.2f} s; a pixel differs by at most {apart}"
        )


def changes(people: int) -> None:
    """Print how H.264 moves the scores of true and of damaged clips."""
    scenes = [portraits.scene(i, 0) for i in list(portraits.SPLITS["validation"])[:people]]
    random = np.random.default_rng(0)
    clean = [portraits.render(scene) for scene in scenes]
    noisy = [np.clip(v + random.normal(0, 12, v.shape), 0, 255).astype(np.uint8) for v in clean]
    photos = [[portraits.reference(scene.identity)] for scene in scenes] * 2
    prompts = [portraits.prompt(scene, 0) for scene in scenes] * 2
    videos, loaded = clean + noisy, rewards.load()
    files = [media.encode(video, 8) for video in videos]
    raw, h264 = (
        preset.answer(loaded, wire.decode(body))["scores"]
        for body in (
            wire.encode(np.stack(videos), photos, prompts),
            wire.encode_mp4(files, photos, prompts),
        )
    )
    print("reward           mean change  mean |change|  largest   spread of the scores")
    for name in raw:
        before, after = (np.array(scores[name]["score"], float) for scores in (raw, h264))
        moved = after - before
        print(
            f"{name:15}{moved.mean():13.4f}{np.abs(moved).mean():15.4f}{np.abs(moved).max():9.4f}"
            f"{before.std():12.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--people", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for file in args.video:
        cost(file.rsplit("/", 1)[-1], media.read(file)[0])
    if args.people:
        changes(args.people)


if __name__ == "__main__":
    main()
