"""Name a file by its first bytes where a picture was wanted, and say what to do about it."""

from __future__ import annotations

from PIL import features

EXPORT = "export it as PNG or JPEG"
FRAME = "save one frame of it as PNG"

# (offset, bytes there, what the file is, what to do)
KINDS = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture", "run `git lfs pull`"),
    (0, b"\x00\x05\x16\x07", "a macOS metadata file (._)", "name the picture beside it"),
    (0, b"8BPS", "a Photoshop document", EXPORT),
    (0, b"gimp xcf", "a GIMP document", EXPORT),
    (0, b"%PDF", "a PDF", EXPORT),
    (0, b"%!PS", "a PostScript document", EXPORT),
    (0, b"PK\x03\x04", "a zip archive", "unpack it and name a picture in it"),
    (0, b"\x93NUMPY", "a NumPy array", EXPORT),
    (0, b"\xff\x0a", "a JPEG XL picture", EXPORT),
    (4, b"JXL ", "a JPEG XL picture", EXPORT),
    (4, b"jP  ", "a JPEG 2000 picture", EXPORT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", EXPORT),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture", EXPORT),
    (0, b"#?RADIANCE", "a Radiance HDR picture", EXPORT),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file", EXPORT),
    (0, b"IIU\x00", "a camera's raw file", EXPORT),
    (0, b"IIRO", "a camera's raw file", EXPORT),
    (8, b"CR\x02\x00", "a camera's raw file", EXPORT),
    (8, b"crx ", "a camera's raw file", EXPORT),
    (0, b"\x1aE\xdf\xa3", "a video", FRAME),
    (8, b"AVI ", "a video", FRAME),
    (0, b"\x00\x00\x01\xba", "a video", FRAME),
    (0, b"OggS", "a video", FRAME),
    (0, b"FLV\x01", "a video", FRAME),
)
HEIC = "an iPhone's HEIC photo", "export it as JPEG (Settings, Camera, Formats: Most Compatible)"


def avif_is_read() -> bool:
    """Whether this Pillow reads AVIF; it began with 11.3."""
    return "avif" in features.modules and bool(features.check("avif"))


def no_picture(head: bytes) -> tuple[str, str] | None:
    """Return (what a file is, what to do) where it is no picture that `media` reads, else None.

    head: its first bytes; 4 KiB are enough.
    """
    if not head.strip(b"\x00"):
        return "an empty file" if not head else "a file of zeros", "copy or download it again"
    for offset, magic, kind, remedy in KINDS:
        if head[offset : offset + len(magic)] == magic:
            return kind, remedy
    if head[4:8] == b"ftyp":  # the ISO container: HEIC, AVIF, MP4, MOV
        # the major brand, the minor version, then the compatible brands, four bytes each
        brands = head[8 : int.from_bytes(head[:4], "big")]
        if b"avif" in brands or b"avis" in brands:
            return None if avif_is_read() else ("an AVIF picture", EXPORT)
        if any(brand in brands for brand in (b"mif1", b"heic", b"heix", b"hevc", b"msf1")):
            return HEIC
        return "a video", FRAME
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:4096].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the picture itself"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG drawing", EXPORT
    return None
