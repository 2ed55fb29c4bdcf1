"""What a request may hold at most: checked before memory is taken for it.

Generous beside what a run sends (32 videos of 81 x 480 x 832 with a few photos each), and small
beside what a few bytes can claim. A request beyond one of them is answered with 413 and says which.
"""

from __future__ import annotations

import numpy as np

REQUEST_GIB = 8.0  # a body, and its videos decoded: 32 videos of 81 x 720 x 1280 are 6.7
UNTOLD = 2**28  # bytes of a body that comes without its length, so that no room is kept for it
PHOTOS_BODY = 2**28  # bytes of POST /photos: four photos of 2048 x 2048 are 50 million
CHAT_BODY = 2**26  # bytes of a question to the heuristic judge: 40 pictures of 1280 x 720 are 37
HEADER = 2**22  # bytes of JSON; a thousand prompts of 4,000 letters
PARTS = 200_000  # lists, objects and commas of JSON: two bytes become a list of 56
NESTING = 8  # lists and objects in each other; the protocol needs three
VIDEOS = 1024
FRAMES = 2048  # of a video: more than a minute at 30 per second
FRAMES_TOGETHER = 2**13  # of all videos of a request; a small frame too is work for every net
FRAME_PIXELS = 2**23  # 3840 x 2160 is 99 % of it
SIDE = 2**16  # pixels of a width or a height
PHOTOS = 512  # of a request
PHOTOS_OF_A_VIDEO = 64
PHOTO_PIXELS = 2**27  # as many as a run reads, see media.py
PROMPT = 20_000  # letters
REWARDS = 256  # names
ATTRIBUTES = 1024  # numbers about a video
PICTURES = 64  # shown to the heuristic judge; a model is shown 40
PICTURE_PIXELS = 2**22  # of one of them, 2048 x 2048: clients send 512 or 768 a side


class TooMuch(ValueError):
    """A request that goes beyond a limit, and which."""


def check(what: str, count: int, most: int) -> None:
    """Raise a TooMuch where there is more of something than may be. what: in the plural."""
    if count > most:
        # A number of a thousand digits is no use to anybody, and Python refuses to write it out.
        shown = f"{count:,}" if count < 10**18 else "far more"
        raise TooMuch(f"expected at most {most:,} {what}, got {shown}")


def check_parts(text: bytes | bytearray) -> None:
    """Raise a TooMuch where JSON has more parts than may be, without reading it.

    A reader of millions of empty lists holds everybody up, for seconds.
    """
    check("lists, objects and commas", sum(text.count(sign) for sign in (b"[", b"{", b",")), PARTS)


def nesting(text: bytes) -> int:
    """Return how deep lists and objects of JSON lie in each other, without reading it.

    A reader that goes into every list has a stack, and text can be deeper than any.
    """
    # Of what is escaped, only quotes and backslashes matter: without them each quote is an end.
    plain = np.frombuffer(text.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    outside = np.cumsum(plain == ord('"'), dtype=np.int32) % 2 == 0
    opened = np.isin(plain, list(b"[{")).astype(np.int8)
    closed = np.isin(plain, list(b"]}")).astype(np.int8)
    depth = np.cumsum((opened - closed) * outside, dtype=np.int32)
    return int(depth.max(initial=0))
