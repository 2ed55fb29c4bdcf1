"""The bytes of POST /score and /photos: read by the server, written by clients; numpy only.

A body is a 4-byte little-endian header length, that many bytes of JSON, then raw bytes:
format "raw": videos uint8 (B,F,H,W,3), then the photos, each uint8 (h,w,3) of its own size;
format "mp4": B mp4 files end to end (their byte counts in "lengths"), then the photos as above.
Videos of one person share their photos: each is sent once, and every video says which are its own.
A body of POST /photos has the header's length, the header and the photos alone.
Letters: B videos, F frames, H W height and width, A attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import evoid_jax.sidecars.limits as limits
import evoid_jax.sidecars.mp4 as mp4
import evoid_jax.sidecars.photos as photos_of
from evoid_jax.sidecars.photos import Photos

PROTOCOL = 2  # 1 had one photo for each video, all of one size
FORMATS = ("raw", "mp4")  # that `decode` reads
LONGEST_ID = 100  # letters
LARGEST_NUMBER = 1e30  # of attributes, which are float32

Pieces = list[bytes | np.ndarray]  # of a body, in order; arrays are uint8, whole in memory


class ScoreRequest(NamedTuple):
    """A request to score B videos. One that could not be read is None and has a reason."""

    videos: list[np.ndarray | None]  # each uint8 FHWC
    reasons: list[str | None]
    references: list[list[np.ndarray]]  # of each video its photos, uint8 HWC; one array per photo
    prompts: list[str]
    attributes: list[np.ndarray | None]  # the world's truth, for monitors only
    fps: float
    rewards: list[str] | None  # None: all
    monitors: bool
    ids: list[str] | None = None  # the asker's names of the videos, to be repeated in the reply
    others: list[list[np.ndarray]] | None = None  # more photos of each person, for monitors only


def pieces(
    videos_BFHWC: np.ndarray,
    references: Photos,
    prompts: list[str],
    attributes: list | None = None,
    rewards: list[str] | None = None,
    monitors: bool = False,
    fps: float = 8,
    ids: list[str] | None = None,
    others: Photos | None = None,
) -> Pieces:
    """Write a request body whose videos are raw pixels, as pieces that follow each other.

    The videos are a piece as they lie in memory: a copy of gigabytes takes seconds.

    Args:
      videos_BFHWC: uint8 RGB.
      references: of each video the photos of its person, uint8 RGB (h, w, 3). An array that stands
        in several places is sent once.
      prompts: B strings.
      attributes: of each video the drawn world's truth, a list of numbers or None; for monitors.
      rewards: names of those wanted; None is all.
      monitors: whether monitors are wanted too.
      fps: of the videos.
      ids: a name of each video, all different, which the reply repeats; None sends none.
      others: of each video other photos of its person, or none, for monitors alone.
    """
    header = {"protocol": PROTOCOL, "format": "raw", "shape": list(videos_BFHWC.shape)}
    header |= _wanted(prompts, attributes, rewards, monitors, fps, ids)
    return _frame(header, [np.ascontiguousarray(videos_BFHWC)], references, others)


def pieces_mp4(
    files: list[bytes],
    references: Photos,
    prompts: list[str],
    attributes: list | None = None,
    rewards: list[str] | None = None,
    monitors: bool = False,
    fps: float = 8,
    ids: list[str] | None = None,
    others: Photos | None = None,
) -> Pieces:
    """Write a request body whose videos are whole mp4 files, of any lengths and sizes.

    Args:
      files: B mp4 files.
      references, prompts, attributes, rewards, monitors, fps, ids, others: as of `pieces`.
    """
    header = {"protocol": PROTOCOL, "format": "mp4", "lengths": [len(f) for f in files]}
    header |= _wanted(prompts, attributes, rewards, monitors, fps, ids)
    return _frame(header, files, references, others)


def encode(*arguments, **named) -> bytes:
    """Return what `pieces` gives, as one body. Arguments: as of `pieces`."""
    return b"".join(pieces(*arguments, **named))


def encode_mp4(*arguments, **named) -> bytes:
    """Return what `pieces_mp4` gives, as one body. Arguments: as of `pieces_mp4`."""
    return b"".join(pieces_mp4(*arguments, **named))


def _wanted(prompts, attributes, rewards, monitors: bool, fps: float, ids) -> dict:
    """Return the part of a header that does not depend on how the videos travel."""
    header = {"fps": fps, "prompts": prompts, "attributes": attributes}
    header |= {"rewards": rewards, "monitors": monitors}
    return header if ids is None else header | {"ids": ids}


def _frame(header: dict, videos: Pieces, references: Photos, others: Photos | None) -> Pieces:
    photos, indices = photos_of.shared([*references, *(others or [])])
    count = len(references)
    header = header | {"references": indices[:count]}
    if others:
        header["others"] = indices[count:]
    return _framed(header, videos, photos)


def _framed(header: dict, videos: Pieces, photos: Sequence[np.ndarray]) -> Pieces:
    head = json.dumps(header | {"photos": [list(photo.shape) for photo in photos]}).encode()
    pixels = [np.ascontiguousarray(photo) for photo in photos]
    return [struct.pack("<I", len(head)), head, *videos, *pixels]


def encode_photos(photos: Sequence[np.ndarray]) -> bytes:
    """Write the body of a request to look at photos, uint8 RGB (h, w, 3) of any sizes."""
    return b"".join(_framed({"protocol": PROTOCOL}, [], photos))


def decode_photos(body: bytes | bytearray) -> list[np.ndarray]:
    """Read what `encode_photos` wrote; the arrays share the body's memory. Raises: as `decode`."""
    header, payload = _header(body)
    shapes = photos_of.sizes(header)
    _check_size(payload, 0, sum(math.prod(shape) for shape in shapes))
    return photos_of.split(payload, shapes)


def decode(
    body: bytes | bytearray, take: Callable[[int], None] = lambda size: None
) -> ScoreRequest:
    """Read a request body. Arrays share the body's memory and cannot be written to.

    take: is told of every decoded frame, before it is kept, how many bytes it takes.

    Raises:
      ValueError: the body breaks the protocol; the message says what was expected and what came.
      limits.TooMuch: a ValueError too; it holds more than a request may.
    """
    header, payload = _header(body)
    kind = header.get("format", "raw")
    if kind not in FORMATS:
        raise ValueError(f'format must be "raw" or "mp4"; got {kind!r:.80}')
    prompts = _prompts(header)
    count = len(prompts)
    shapes = photos_of.sizes(header)
    attributes, fps = _attributes(header, count), _fps(header)
    rewards, ids = _rewards(header), _ids(header, count)
    indices = photos_of.references(header, count, len(shapes))
    beside = photos_of.others(header, count, len(shapes))
    # Sizes are checked against the body before anything is read from it: a header is a claim.
    photo_bytes = sum(math.prod(shape) for shape in shapes)
    if kind == "raw":
        shape = _video_shape(header, count)
        used = math.prod(shape)
        _check_size(payload, used, photo_bytes)
        videos = list(np.frombuffer(payload, np.uint8, used).reshape(shape))
        reasons: list[str | None] = [None] * count
    else:
        lengths = _lengths(header, count)
        used = sum(lengths)
        _check_size(payload, used, photo_bytes)
        videos, reasons = mp4.read_all(payload, lengths, take)
    photos = photos_of.split(payload[used:], shapes)
    pick = lambda indices: [[photos[i] for i in own] for own in indices]
    return ScoreRequest(
        videos=videos,
        reasons=reasons,
        references=pick(indices),
        prompts=prompts,
        attributes=attributes,
        fps=fps,
        rewards=rewards,
        monitors=bool(header.get("monitors", False)),
        ids=ids,
        others=None if beside is None else pick(beside),
    )


def digest(*body: bytes | np.ndarray) -> str:
    """Return what binds a reply to its request: the SHA-256 of the whole body, in hexadecimal.

    body: its pieces, in order; or the whole.
    """
    whole = hashlib.sha256()
    for piece in body:
        whole.update(piece)
    return whole.hexdigest()


def _header(body: bytes | bytearray) -> tuple[dict, memoryview]:
    """Split a body into its header and what follows, without copying the videos."""
    if len(body) < 4:
        raise ValueError(f"expected a 4-byte header length, got a body of {len(body)} bytes")
    (size,) = struct.unpack("<I", body[:4])
    if size > len(body) - 4:
        raise ValueError(f"the header should be {size} bytes, but {len(body) - 4} bytes follow")
    limits.check("bytes of a header", size, limits.HEADER)
    text = bytes(body[4 : 4 + size])
    limits.check_parts(text)
    limits.check("lists in each other", limits.nesting(text), limits.NESTING)
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise ValueError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"the header must be a JSON object; got {type(header).__name__}")
    if header.get("protocol") != PROTOCOL:
        raise ValueError(
            f"protocol must be {PROTOCOL}, the one spoken here (docs/sidecar_protocol.md); got "
            f"{header.get('protocol')!r:.80}"
        )
    return header, memoryview(body).toreadonly()[4 + size :]


def _no_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")  # though Python writes and reads it


def _video_shape(header: dict, count: int) -> tuple[int, ...]:
    """Return (B, F, H, W, 3) of raw videos."""
    shape = photos_of.rgb_shape(header.get("shape"), "shape", 5)
    if shape[0] != count:
        raise ValueError(f"shape {shape} has {shape[0]} videos, but there are {count} prompts")
    _, frames, height, width, _ = shape
    limits.check("frames of a video", frames, limits.FRAMES)
    limits.check("frames of all videos", count * frames, limits.FRAMES_TOGETHER)
    limits.check("pixels of a frame", height * width, limits.FRAME_PIXELS)
    return shape


def _prompts(header: dict) -> list[str]:
    prompts = _strings(header, "prompts")
    limits.check("prompts, one per video", len(prompts), limits.VIDEOS)
    limits.check("letters of a prompt", max(map(len, prompts)), limits.PROMPT)
    return prompts


def _rewards(header: dict) -> list[str] | None:
    if header.get("rewards") is None:
        return None
    if header["rewards"] == [] and header.get("monitors"):
        return []  # monitors alone
    names = _strings(header, "rewards")
    limits.check("rewards", len(names), limits.REWARDS)
    return names


def _strings(header: dict, key: str) -> list[str]:
    value = header.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(s, str) for s in value):
        raise ValueError(f"{key} must be a non-empty list of strings; got {value!r:.80}")
    return _sendable(value, key)


def _sendable(texts: list[str], key: str) -> list[str]:
    """Raise where a text is half a character, which JSON can say and UTF-8 cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} must be whole characters; {error.reason}") from error
    return texts


def _ids(header: dict, count: int) -> list[str] | None:
    value = header.get("ids")
    if value is None:
        return None
    good = isinstance(value, list) and all(
        isinstance(name, str) and len(name) <= LONGEST_ID for name in value
    )
    if not good or len(value) != count or len(set(value)) != count:
        raise ValueError(
            f"ids must be {count} different strings of at most {LONGEST_ID} letters, one per "
            f"prompt, or be left out; got {value!r:.80}"
        )
    return _sendable(value, "ids")


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
    return [None if row is None else _numbers(row) for row in value]


def _numbers(row) -> np.ndarray:
    """Read a flat list of numbers about a video."""
    # type(x): a string of digits would be read as a number, and true as 1.
    if not isinstance(row, list) or not all(type(x) in (int, float) for x in row):
        raise ValueError(
            f"attributes must hold one flat list of numbers, or null, per video; got {row!r:.80}"
        )
    limits.check("attributes of a video", len(row), limits.ATTRIBUTES)
    if not all(abs(x) <= LARGEST_NUMBER for x in row):
        raise ValueError(f"attributes must be numbers up to {LARGEST_NUMBER:g}; got {row!r:.80}")
    return np.asarray(row, np.float32)


def _fps(header: dict) -> float:
    fps = header.get("fps", 8)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1000:
        raise ValueError(f"fps must be a positive number below 1000; got {fps!r:.80}")
    return float(fps)


def _check_size(payload: memoryview, videos: int, photos: int) -> None:
    if len(payload) != videos + photos:
        raise ValueError(
            f"expected {videos} bytes of video and {photos} of photos after the header; "
            f"got {len(payload)}"
        )
