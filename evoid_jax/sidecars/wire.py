"""The bytes of POST /score: read by the server, written by clients and tests; numpy only.

A body is a 4-byte little-endian header length, that many bytes of JSON, then raw bytes:
format "raw": videos uint8 (B,F,H,W,3), then references uint8 (B,h,w,3);
format "mp4": B mp4 files end to end (their byte counts in "lengths"), then references as above.
Letters: B videos, F frames, H W height and width, A attributes.
"""

from __future__ import annotations

import json
import math
import struct
from typing import NamedTuple

import numpy as np

from evoid_jax import media

LARGEST_HEADER = 16 * 2**20


class ScoreRequest(NamedTuple):
    """A request to score B videos. One that could not be read is None and has a reason."""

    videos: list[np.ndarray | None]  # each uint8 FHWC
    reasons: list[str | None]
    references: np.ndarray  # uint8 BHWC, of another size than the videos if need be
    prompts: list[str]
    attributes: list[np.ndarray | None]  # the world's truth, for monitors only
    fps: float
    rewards: list[str] | None  # None: all
    monitors: bool


def encode(
    videos_BFHWC: np.ndarray,
    references_BHWC: np.ndarray,
    prompts: list[str],
    attributes: list | None = None,
    rewards: list[str] | None = None,
    monitors: bool = False,
    fps: float = 8,
) -> bytes:
    """Write a request body whose videos are raw pixels.

    Args:
      videos_BFHWC: uint8 RGB.
      references_BHWC: uint8 RGB, the photo of each video's person.
      prompts: B strings.
      attributes: of each video the drawn world's truth, a list of numbers or None; for monitors.
      rewards: names of those wanted; None is all.
      monitors: whether monitors are wanted too.
      fps: of the videos.
    """
    header = {
        "format": "raw",
        "shape": list(videos_BFHWC.shape),
        "fps": fps,
        "prompts": prompts,
        "reference_shape": list(references_BHWC.shape),
        "attributes": attributes,
        "rewards": rewards,
        "monitors": monitors,
    }
    return _frame(header, np.ascontiguousarray(videos_BFHWC).tobytes(), references_BHWC)


def encode_mp4(
    files: list[bytes],
    references_BHWC: np.ndarray,
    prompts: list[str],
    attributes: list | None = None,
    rewards: list[str] | None = None,
    monitors: bool = False,
    fps: float = 8,
) -> bytes:
    """Write a request body whose videos are whole mp4 files, of any lengths and sizes.

    Args:
      files: B mp4 files.
      references_BHWC, prompts, attributes, rewards, monitors, fps: as of `encode`.
    """
    header = {
        "format": "mp4",
        "lengths": [len(f) for f in files],
        "fps": fps,
        "prompts": prompts,
        "reference_shape": list(references_BHWC.shape),
        "attributes": attributes,
        "rewards": rewards,
        "monitors": monitors,
    }
    return _frame(header, b"".join(files), references_BHWC)


def _frame(header: dict, videos: bytes, references_BHWC: np.ndarray) -> bytes:
    head = json.dumps(header).encode()
    tail = np.ascontiguousarray(references_BHWC).tobytes()
    return struct.pack("<I", len(head)) + head + videos + tail


def decode(body: bytes) -> ScoreRequest:
    """Read a request body. Arrays share the body's memory and cannot be written to.

    Raises:
      ValueError: the body breaks the protocol; the message says what was expected and what came.
    """
    header, payload = _header(body)
    kind = header.get("format", "raw")
    if kind not in ("raw", "mp4"):
        raise ValueError(f'format must be "raw" or "mp4"; got {kind!r}')
    prompts = _strings(header, "prompts")
    count = len(prompts)
    ref_shape = _shape(header, "reference_shape", 4)
    if ref_shape[0] != count:
        raise ValueError(f"reference_shape {ref_shape} has {ref_shape[0]} images, not {count}")
    # Sizes are checked against the body before anything is read from it: a header is a claim.
    ref_bytes = math.prod(ref_shape)
    if kind == "raw":
        shape = _shape(header, "shape", 5)
        if shape[0] != count:
            raise ValueError(f"shape {shape} has {shape[0]} videos, but there are {count} prompts")
        _check_size(payload, math.prod(shape), ref_bytes)
        videos = list(np.frombuffer(payload, np.uint8, math.prod(shape)).reshape(shape))
        reasons: list[str | None] = [None] * count
        used = math.prod(shape)
    else:
        lengths = _lengths(header, count)
        used = sum(lengths)
        _check_size(payload, used, ref_bytes)
        videos, reasons = _split_mp4(payload, lengths)
    references = np.frombuffer(payload, np.uint8, ref_bytes, offset=used).reshape(ref_shape)
    return ScoreRequest(
        videos=videos,
        reasons=reasons,
        references=references,
        prompts=prompts,
        attributes=_attributes(header, count),
        fps=_fps(header),
        rewards=None if header.get("rewards") is None else _strings(header, "rewards"),
        monitors=bool(header.get("monitors", False)),
    )


def _header(body: bytes) -> tuple[dict, memoryview]:
    """Split a body into its header and what follows, without copying the videos."""
    if len(body) < 4:
        raise ValueError(f"expected a 4-byte header length, got a body of {len(body)} bytes")
    (size,) = struct.unpack("<I", body[:4])
    if size > min(LARGEST_HEADER, len(body) - 4):
        raise ValueError(f"the header should be {size} bytes, but {len(body) - 4} bytes follow")
    try:
        header = json.loads(body[4 : 4 + size])
    except ValueError as error:
        raise ValueError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"the header must be a JSON object; got {type(header).__name__}")
    return header, memoryview(body)[4 + size :]


def _shape(header: dict, key: str, rank: int) -> tuple[int, ...]:
    shape = header.get(key)
    # type(n) is int: JSON's true is a bool, and a bool is an int to isinstance.
    good = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not good or len(shape) != rank or shape[-1] != 3:
        raise ValueError(f"{key} must be {rank} positive sizes ending in 3 (RGB); got {shape!r}")
    return tuple(shape)


def _strings(header: dict, key: str) -> list[str]:
    value = header.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(s, str) for s in value):
        raise ValueError(f"{key} must be a non-empty list of strings; got {value!r:.80}")
    return value


def _lengths(header: dict, count: int) -> list[int]:
    value = header.get("lengths")
    good = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    if not good or len(value) != count:
        raise ValueError(f"lengths must be {count} byte counts, one per prompt; got {value!r:.80}")
    return value


def _attributes(header: dict, count: int) -> list[np.ndarray | None]:
    value = header.get("attributes")
    if value is None:
        return [None] * count
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"attributes must be null or a list of {count}; got {value!r:.80}")
    try:
        rows = [None if row is None else np.asarray(row, np.float32) for row in value]
    except (TypeError, ValueError) as error:
        raise ValueError(f"attributes must hold lists of numbers or null: {error}") from error
    if any(row is not None and row.ndim != 1 for row in rows):
        raise ValueError("attributes must hold one flat list of numbers, or null, per video")
    return rows


def _fps(header: dict) -> float:
    fps = header.get("fps", 8)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1000:
        raise ValueError(f"fps must be a positive number; got {fps!r}")
    return float(fps)


def _check_size(payload: memoryview, videos: int, references: int) -> None:
    if len(payload) != videos + references:
        raise ValueError(
            f"expected {videos} bytes of video and {references} of references after the header; "
            f"got {len(payload)}"
        )


def _split_mp4(
    payload: memoryview, lengths: list[int]
) -> tuple[list[np.ndarray | None], list[str | None]]:
    """Read the files one by one: a broken one costs its own video its scores, not the others."""
    videos: list[np.ndarray | None] = []
    reasons: list[str | None] = []
    start = 0
    for length in lengths:
        try:
            videos.append(media.read(bytes(payload[start : start + length]))[0])
            reasons.append(None)
        except ValueError as error:
            videos.append(None)
            reasons.append(str(error))
        start += length
    return videos, reasons
