"""Compressed videos from a stranger: counted while they are decoded, since a file only claims.

A file of 50 kB can hold gigabytes of pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np

import evoid_jax.sidecars.limits as limits

CODEC = "h264"  # the one that `media.encode` writes; each other would be more code to attack
PIXELS = {"max_pixels": str(limits.FRAME_PIXELS)}  # FFmpeg then allocates no larger frame


def read_all(
    payload: memoryview, lengths: list[int], take: Callable[[int], None]
) -> tuple[list[np.ndarray | None], list[str | None]]:
    """Decode the files at the beginning of `payload`, end to end; lengths: their bytes.

    A broken one costs its own video its scores, not the others: it is None and has a reason. take:
    as of `read`.

    Raises:
      TooMuch: the files hold more than a request may.
    """
    videos: list[np.ndarray | None] = []
    reasons: list[str | None] = []
    start, left = 0, limits.FRAMES_TOGETHER
    for length in lengths:
        file = bytes(payload[start : start + length])
        try:
            video = read(file, min(left, limits.FRAMES), take)
        except limits.TooMuch:  # costs the whole request: nobody sends such a file by mistake
            raise
        except ValueError as error:
            videos.append(None)
            reasons.append(str(error))
        else:
            videos.append(video)
            reasons.append(None)
            left -= len(video)
        start += length
    return videos, reasons


def read(file: bytes, frames: int, take: Callable[[int], None]) -> np.ndarray:
    """Decode an mp4 file: uint8 RGB (F, H, W, 3).

    Args:
      file: its bytes.
      frames: how many it may have.
      take: is told, before a frame is kept, how many bytes it takes; what it raises goes through.

    Raises:
      TooMuch: more frames or larger ones than may be.
      ValueError: no mp4 file, no H.264, or a broken one.
    """
    try:
        # The format is named. A guess could be a playlist, and those name other files to be read.
        with av.open(io.BytesIO(file), format="mp4", options=PIXELS) as container:
            if not container.streams.video:
                raise ValueError("the video is not a video: the file holds none")
            return _decoded(container, frames, take)
    except av.error.FFmpegError as error:
        raise ValueError(f"the video is not a video that can be decoded: {error}") from error


def claimed(stream: av.VideoStream) -> int:
    """Return how many frames a file says it has; 0 where it does not say."""
    return stream.frames


def _decoded(
    container: av.container.InputContainer, frames: int, take: Callable[[int], None]
) -> np.ndarray:
    stream = container.streams.video[0]
    codec = stream.codec_context  # None where FFmpeg knows no such codec
    name = codec and codec.name
    if name != CODEC:
        raise ValueError(f"the video is not a video in H.264: {name!r:.40}")
    # What the container says first, then what comes out.
    limits.check("frames in this file", claimed(stream), frames)
    limits.check("pixels of a frame", codec.width * codec.height, limits.FRAME_PIXELS)
    codec.options = PIXELS
    pixels, shape, count = bytearray(), None, 0
    for frame in container.decode(stream):
        size = (frame.height, frame.width)
        if size != (shape or size):
            raise ValueError(f"the video changes its size from {shape} to {size}; cut it there")
        shape, count = size, count + 1
        limits.check("frames in this file", count, frames)
        take(3 * frame.width * frame.height)
        pixels += frame.to_ndarray(format="rgb24").tobytes()
    if not count:
        raise ValueError("the video holds no frames")
    return np.frombuffer(pixels, np.uint8).reshape(count, *shape, 3)
