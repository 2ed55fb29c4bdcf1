"""Draw README's picture from a run folder: its first held-out people, base above evolved.

    python docs/picture.py RUN docs/base_and_evolved.webp

The people are the first ones of the run's list of held-out pairs, each with its first seed, as in
the report; nobody is chosen. Every second frame is shown.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evoid_jax import media

PEOPLE, BESIDE = 6, 2  # how many in all, and next to each other
CELL, GAP, NAMES = 96, 12, 64  # pixels: a frame's side, between people, for the rows' names
ARMS = ("base", "evolved")


def person(samples: Path, k: int) -> Image.Image:
    """Return one person: the photo, then frames of the base above those of the evolved model."""
    arms = [media.read(samples / f"heldout_{k:02d}_{arm}.mp4")[0][::2] for arm in ARMS]
    columns = len(arms[0])
    block = Image.new("RGB", (NAMES + (2 + columns) * CELL, 2 * CELL), "white")
    photo = Image.fromarray(media.read_image(samples / f"heldout_{k:02d}_reference.png"))
    block.paste(photo.resize((2 * CELL, 2 * CELL), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(block)
    for row, video_FHWC in enumerate(arms):
        name = (2 * CELL + NAMES / 2, (row + 0.5) * CELL)
        draw.text(name, ARMS[row], "black", ImageFont.load_default(14), anchor="mm")
        for column, frame_HWC in enumerate(video_FHWC):
            frame = Image.fromarray(np.asarray(frame_HWC))
            frame = frame.resize((CELL, CELL), Image.Resampling.LANCZOS)
            block.paste(frame, (NAMES + (2 + column) * CELL, row * CELL))
    return block


def main() -> None:
    run, file = sys.argv[1:]
    blocks = [person(Path(run) / "samples", k) for k in range(PEOPLE)]
    width, height = blocks[0].size
    rows = PEOPLE // BESIDE
    size = (BESIDE * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    for k, block in enumerate(blocks):
        picture.paste(block, (k % BESIDE * (width + GAP), k // BESIDE * (height + GAP)))
    picture.save(file, quality=85, method=6)


if __name__ == "__main__":
    main()
