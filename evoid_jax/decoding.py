"""The frames of a video file: all of them as they were written, or an error.

FFmpeg shows what it can of a damaged file, without a word: frames that it lacks are filled from
others, and what is cut off is not missed. A video that is scored must be the one that was made.

F frames, H W C pixels.
"""

from __future__ import annotations

from typing import BinaryIO

import av
import numpy as np

MAX_PIXELS = 2**27  # of a frame
MAX_FRAMES = 2**14  # eleven minutes at 24 a second
MAX_VIDEO = 2**29  # pixels of all frames: 1.6 GB of memory
# FFmpeg's names of files that hold a video. It knows others that name further files or addresses,
# which it would open: playlists, lists of parts, descriptions of streams.
CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf,gif"
AGAIN = "make or copy the file again"


def frames(file: BinaryIO) -> tuple[list[np.ndarray], float]:
    """Decode the first video of a file, open for reading at its start.

    Returns:
      uint8 RGB (H, W, 3) of each frame, and frames per second, 0 where the file names none.

    Raises:
      ValueError: the codec is not known, there is more than memory is given for (MAX_FRAMES,
        MAX_VIDEO), a frame is damaged, or an mp4 is cut off.
      Exception: whatever a broken file leads FFmpeg into.
    """
    with av.open(file, options={"format_whitelist": CONTAINERS}) as container:
        decoded = _decoded(container)
        rate = float(container.streams.video[0].average_rate or 0)
    _check_whole(file)
    return decoded, rate


def _decoded(container: av.container.InputContainer) -> list[np.ndarray]:
    """Decode the first video of a file; stop where it holds more than memory is given for."""
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("its codec is not known here")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # of a frame, before it is made
    decoded, pixels = [], 0
    for frame in container.decode(stream):
        pixels += frame.width * frame.height
        if pixels > MAX_VIDEO or len(decoded) == MAX_FRAMES:
            raise ValueError(
                f"it has more than {MAX_VIDEO:,} pixels or {MAX_FRAMES:,} frames; cut it, or scale "
                "it down"
            )
        if frame.is_corrupt:  # FFmpeg fills what it lacks from other frames, and goes on
            raise ValueError(f"frame {len(decoded) + 1} is damaged; {AGAIN}")
        decoded.append(frame.to_ndarray(format="rgb24"))
    return decoded


def _check_whole(file: BinaryIO) -> None:
    """Raise a ValueError for an mp4 that ends before its last frame, which decodes without a word.

    Its index says how many frames there are. All of them are counted, those too that an edit list
    hides from viewers.
    """
    file.seek(0)
    options = {"format_whitelist": CONTAINERS, "ignore_editlist": "1"}
    with av.open(file, options=options) as container:
        stream = container.streams.video[0]
        count = sum(packet.size > 0 for packet in container.demux(stream))
        if count < stream.frames and "mp4" in container.format.name:
            raise ValueError(f"it is cut off after {count} of {stream.frames} frames; {AGAIN}")
