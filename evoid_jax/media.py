"""Images and videos in and out: files or bytes on one side, uint8 RGB arrays on the other.

Shape letters: F frames, H height, W width, C channels (3, RGB).
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CRF = 12  # x264 quality: visually lossless, so that an mp4 can be scored like its frames


def read_image(file: str | Path) -> np.ndarray:
    """Read an image upright and as RGB: uint8 (H, W, 3).

    Raises:
      FileNotFoundError, ValueError: no such file, or not an image; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"image {file} does not exist")
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not an image that can be read: {error}") from error


def write_image(file: str | Path, image_HWC: np.ndarray):
    """Write a uint8 (H, W, 3) image; the file's ending names the format."""
    Image.fromarray(_checked(image_HWC, 3)).save(_in_folder(file))


def read(source: str | Path | bytes) -> tuple[np.ndarray, float]:
    """Decode a video file, or its bytes: uint8 (F, H, W, 3) and frames per second.

    Raises:
      FileNotFoundError, ValueError: no such file, or nothing in it decodes as video.
    """
    name = "the video" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"video {source} does not exist")
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else name) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{name} is not a video that can be decoded: {error}") from error
    if not frames:
        raise ValueError(f"{name} holds no frames")
    return np.stack(frames), rate


def write(file: str | Path, video_FHWC: np.ndarray, fps: float):
    """Write a uint8 (F, H, W, 3) video as H.264 mp4, playable in browsers; H and W are even."""
    _in_folder(file).write_bytes(encode(video_FHWC, fps))


def encode(video_FHWC: np.ndarray, fps: float) -> bytes:
    """Encode as `write` does, into bytes. The same video always gives the same bytes."""
    video_FHWC = _checked(video_FHWC, 4)
    height, width = video_FHWC.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs even sizes, got {height}x{width}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        # x264's macroblock tree and its threads give other bytes from run to run.
        options = {"crf": str(CRF), "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in video_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _checked(array: np.ndarray, rank: int) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != rank or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"expected a uint8 array of {rank} axes ending in 3, got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def _in_folder(file: str | Path) -> Path:
    """Make the folder that a file goes to."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    return Path(file)
