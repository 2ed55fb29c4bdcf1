"""Picture files made by hand, for what Pillow does not write: PNGs of any depth, with any chunk."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # PNG's colour types


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(rows: list[bytes], width: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """Make a PNG of packed rows; `chunks` stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def png16(values: list, colour: int, *chunks: bytes) -> bytes:
    """Make a PNG of one row of 16-bit pixels."""
    row = np.array(values, ">u2")
    return png([row.tobytes()], len(values), 16, colour, *chunks)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """Return the bytes that Pillow writes for an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """Return a smooth colour picture, which lossy formats keep nearly."""
    y, x = np.mgrid[:height, :width]
    planes = [2 * x + 7 * seed, 3 * y, x + y]
    return Image.fromarray(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8))
