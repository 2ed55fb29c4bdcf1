"""Images and videos in and out: files or bytes on one side, uint8 RGB arrays on the other.

`read_image` shows the picture that a viewer shows: upright, in sRGB, on white where it is clear, in
8 bits however many the file has. What cannot be shown so is refused, with a word on what to do.

Shape letters: F frames, H height, W width, C channels (3, RGB).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from evoid_jax import decoding, files
from evoid_jax.kinds import EXPORT, FRAME, avif_is_read, no_picture

CRF = 12  # x264 quality: visually lossless, so that an mp4 can be scored like its frames
# 134 million: more than a phone's 108. Reading as many takes 1.3 GB of memory for a JPEG, and twice
# that where there is transparency too.
MAX_PIXELS = 2**27
HEAD = 2**16  # bytes at the beginning of a file that tell what it is

# The formats that Pillow reads as viewers show them. Its other readers ignore a colour profile
# (JPEG 2000), see a stale or empty preview (PSD), or start another program (EPS).
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"]
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits
# Tags of TIFF files
SUBFILE, PHOTOMETRIC, SAMPLE_FORMAT, DNG_VERSION = 254, 262, 339, 50706
NO_WHITE = "its values are 32-bit or signed, which leaves open how bright white is"
# ITU-T H.273: primaries and transfer curves that sRGB screens show as they are
PLAIN_PRIMARIES, PLAIN_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13, 14, 15)


def read_image(source: str | Path | bytes) -> np.ndarray:
    """Read an image file, or its bytes, as a viewer shows it.

    Turned as its EXIF data says, converted to sRGB from an embedded colour profile (ignored where
    it is broken or of another kind than the pixels, as browsers do), laid on white where it is
    transparent, 16-bit values cut to their upper byte as Pillow does with 16-bit colour.

    Args:
      source: a path, or the bytes of a file.

    Returns:
      uint8 RGB (H, W, 3).

    Raises:
      OSError: there is no such file, or it may not be read.
      ValueError: no picture, a broken one, several in one file, more than MAX_PIXELS, or pixels
        without a defined white; the message names the file and what to do.
    """
    picture, _ = _read(source, draft=False)
    return np.asarray(picture)


def check_image(source: str | Path | bytes) -> tuple[int, int]:
    """Return the (height, width) that `read_image` would give; raise exactly what it would raise.

    Goes the same way, but decodes a JPEG at an eighth of its size: a whole pass over its bytes
    that finds a cut-off file, at a fraction of the time.
    """
    _, size = _read(source, draft=True)
    return size


def _read(source: str | Path | bytes, draft: bool) -> tuple[Image.Image, tuple[int, int]]:
    """Return an RGB picture, and its full (height, width) in case it is a draft."""
    name = "the image" if isinstance(source, bytes) else str(source)
    with _opened(source, "image") as stream:
        head = stream.read(HEAD)
        if kind := no_picture(head):
            raise ValueError(f"{name} is {kind[0]}, which cannot be read; {kind[1]}")
        stream.seek(0)
        try:
            return _decode(stream, head, draft)
        except Image.DecompressionBombError:
            raise ValueError(_too_large(name, "several hundred million")) from None
        except UnidentifiedImageError:
            formats = ", ".join(FORMATS)
            text = f"{name} is not a picture that can be read; expected one of {formats}"
            raise ValueError(f"{text}, intact") from None
        # Pillow's decoders raise whatever a broken file leads them into, a KeyError for example.
        except Exception as error:
            raise ValueError(f"{name} cannot be read as a picture: {error}") from error


@contextlib.contextmanager
def _opened(source: str | Path | bytes, kind: str) -> Iterator[BinaryIO]:
    """Open a file, or bytes as one; `kind` is what an error calls it."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    file = files.user_path(source)
    if file.is_dir():
        raise ValueError(f"{source} is a folder; name the {kind} in it")
    if not file.exists():
        raise FileNotFoundError(f"{kind} {source} does not exist; correct the name or add the file")
    if not file.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{source} is not a regular file; name the {kind}")
    try:
        stream = file.open("rb")
    except OSError as error:
        reason = f"{kind} {source} cannot be opened: {error.strerror}"
        raise type(error)(f"{reason}; see to its permissions or copy it") from None
    with stream:
        yield stream


def _decode(stream: BinaryIO, head: bytes, draft: bool) -> tuple[Image.Image, tuple[int, int]]:
    with warnings.catch_warnings():
        # Pillow warns from 89 million pixels on; the limit that counts here is ours.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(stream, formats=[f for f in FORMATS if f != "AVIF" or avif_is_read()])
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large("it", f"{width} x {height}"))
    _refuse(image, head)
    if draft and image.format in ("JPEG", "MPO"):
        image.draft(None, (64, 64))
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # lies on its side
            width, height = height, width
        return _as_rgb(image), (height, width)
    picture = _as_rgb(image)
    return picture, (picture.height, picture.width)


def _too_large(name: str, pixels: str) -> str:
    return (
        f"{name} has {pixels} pixels, more than the limit of {MAX_PIXELS:,}; scale it down (a "
        "video frame has about 400,000)"
    )


def _refuse(image: Image.Image, head: bytes) -> None:
    """Raise a ValueError where a viewer shows another picture than the decoder would give."""
    # An MPO is a phone's JPEG with a preview or a depth map behind it: its first picture counts.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it holds {frames} pictures; {FRAME}")
    if image.format == "TIFF":
        tags = image.tag_v2
        # Raw files are TIFFs whose first picture is a small preview.
        if DNG_VERSION in tags or tags.get(SUBFILE, 0) & 1:
            raise ValueError(f"it is a camera's raw file, or begins with a preview; {EXPORT}")
        if 2 in tags.get(SAMPLE_FORMAT, ()):  # of 8 bits, Pillow would take -1 for the brightest
            raise ValueError(f"{NO_WHITE}; save it with 8 or 16 bits, unsigned")
    primaries, transfer = _code_points(image.format, head)
    if image.format == "AVIF" and "icc_profile" in image.info:
        return  # the profile says it all
    if primaries not in PLAIN_PRIMARIES or transfer not in PLAIN_TRANSFERS:
        raise ValueError(f"it is an HDR or wide-gamut picture without an ICC profile; {EXPORT}")


def _code_points(kind: str, head: bytes) -> tuple[int, int]:
    """Return ITU-T H.273's numbers for (primaries, transfer curve) of a file; 2 is unspecified."""
    if kind == "AVIF" and (at := head.find(b"colrnclx")) >= 0:
        return int.from_bytes(head[at + 8 : at + 10]), int.from_bytes(head[at + 10 : at + 12])
    if kind == "PNG" and (at := head.partition(b"IDAT")[0].find(b"cICP")) >= 0:
        return head[at + 4], head[at + 5]
    return 2, 2


def _as_rgb(image: Image.Image) -> Image.Image:
    """Make of an opened image what a viewer shows: upright, 8 bits, sRGB, on white."""
    layout = _layout(image)  # gone once the pixels are there
    profile = image.info.get("icc_profile")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in DEEP:
        colour, alpha = _deep(image, layout)
    else:
        colour, alpha = _parts(image, layout)
    if image.mode == "LAB":  # converted already
        profile = None
    if image.format == "PNG" and not profile and "srgb" not in image.info:
        colour = _undo_gamma(colour, image.info.get("gamma", 1 / 2.2))
    picture = _to_srgb(colour, profile)
    if alpha is None:
        return picture
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=alpha)
    return paper


def _layout(image: Image.Image) -> str:
    """Return Pillow's name for how the file packs its pixels, such as RGB;16B."""
    if not image.tile:
        return ""
    layout = image.tile[0].args
    return str(layout[0] if isinstance(layout, tuple) else layout)


def _deep(image: Image.Image, layout: str) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey of more than 8 bits: the grey (L) and its alpha (L, or None)."""
    # Mode I is 32 bits wide. Pillow puts the 16 bits of a PGM, and once of a PNG, into it.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"{NO_WHITE}; save it with 8 or 16 bits, unsigned")
    grey_HW = np.asarray(image).astype(np.int32)
    bits = 12 if layout == "I;12" else 16
    shown_HW = (grey_HW >> (bits - 8)).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0:  # 0 is white
        shown_HW = 255 - shown_HW
    clear = image.info.get("transparency")
    alpha_HW = None if clear is None else np.where(grey_HW == clear, 0, 255).astype(np.uint8)
    alpha = None if alpha_HW is None else Image.fromarray(alpha_HW)
    return Image.fromarray(shown_HW), alpha


def _parts(image: Image.Image, layout: str) -> tuple[Image.Image, Image.Image | None]:
    """Split an 8-bit image into its colours (L, RGB or CMYK) and its alpha (L, or None)."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif "transparency" in image.info and image.mode in ("1", "L", "RGB"):
        image = _keyed(image, layout)
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    if image.mode in ("1", "RGBX", "YCbCr", "LAB", "HSV"):
        return image.convert("L" if image.mode == "1" else "RGB"), None
    raise ValueError(f"its pixels are of a kind that is not supported ({image.mode}); {EXPORT}")


def _keyed(image: Image.Image, layout: str) -> Image.Image:
    """Turn a PNG's one transparent colour into an alpha channel: LA or RGBA."""
    if layout == "RGB;16B":  # half of the bits are gone that tell this colour from its neighbours
        raise ValueError("it has 16 bits and one transparent colour; save it with an alpha channel")
    # Pillow stretches 2-bit and 4-bit greys to 0..255, but leaves the transparent one as it was.
    stretch = {"L;2": 85, "L;4": 17}.get(layout)
    if stretch:
        image.info["transparency"] *= stretch
    return image.convert("RGBA" if image.mode == "RGB" else "LA")


def _undo_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Show a PNG's values at the 1/2.2 of screens; within 5 % they are left, as libpng does."""
    exponent = 1 / (2.2 * gamma) if gamma > 0 else 1.0
    if abs(exponent - 1) <= 0.05:
        return image
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(int).tolist()
    return image.point(table * len(image.getbands()))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an L, RGB or CMYK image to RGB, from its colour profile where that fits."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        space = source.profile.xcolor_space
        if (image.mode, space) == ("L", "RGB "):  # grey pixels of a colour profile
            image = image.convert("RGB")
        if {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}[image.mode] != space:
            return image.convert("RGB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError):  # none, or a broken one
        return image.convert("RGB")
    if _changes_nothing(transform, image.mode):
        return image.convert("RGB")
    return ImageCms.applyTransform(image, transform)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform only rounds: then the profile is sRGB, and the pixels stay exact."""
    if mode == "CMYK":
        return False
    level = np.linspace(0, 255, 9).astype(np.uint8)
    cube_HW3 = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(9, 81, 3)
    probe = Image.fromarray(cube_HW3[..., 0] if mode == "L" else cube_HW3)
    shown = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    return bool(np.abs(shown - np.asarray(probe.convert("RGB"))).max() <= 2)


def digest(image_HWC: np.ndarray) -> str:
    """Return a short name for a uint8 (H, W, 3) image: 16 hexadecimal digits of size and pixels.

    Files may differ and show the same: an image has one name in memory and as any lossless file.
    """
    image_HWC = _checked(image_HWC, 3)
    named = hashlib.sha256(str(image_HWC.shape).encode())
    named.update(image_HWC)
    return named.hexdigest()[:16]


def write_image(file: str | Path, image_HWC: np.ndarray):
    """Write a uint8 (H, W, 3) image; the file's ending names the format."""
    Image.fromarray(_checked(image_HWC, 3)).save(_in_folder(file))


def read(source: str | Path | bytes) -> tuple[np.ndarray, float]:
    """Decode a video file, or its bytes: uint8 (F, H, W, 3) and frames per second.

    Raises:
      FileNotFoundError, ValueError: no such file, nothing in it decodes as video, a frame is
        damaged, an mp4 is cut off, or there is more than `decoding.py` gives memory for.
    """
    name = "the video" if isinstance(source, bytes) else str(source)
    with _opened(source, "video") as file:
        try:
            frames, rate = decoding.frames(file)
        except Exception as error:  # whatever a broken file leads the decoders into
            raise ValueError(f"{name} is not a video that can be decoded: {error}") from error
    if not frames:
        raise ValueError(f"{name} holds no frames")
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise ValueError(f"{name} changes its size, {sizes}; cut it where it does")
    video_FHWC = np.empty((len(frames), *frames[0].shape), np.uint8)
    for i, _ in enumerate(video_FHWC):
        video_FHWC[i], frames[i] = frames[i], None  # let go one by one: a stack holds all twice
    return video_FHWC, rate


def write(file: str | Path, video_FHWC: np.ndarray, fps: float):
    """Write a uint8 (F, H, W, 3) video as H.264 mp4, playable in browsers; H and W are even."""
    _in_folder(file).write_bytes(encode(video_FHWC, fps))


def encode(video_FHWC: np.ndarray, fps: float, lossless: bool = False) -> bytes:
    """Encode as `write` does, into bytes. The same video always gives the same bytes.

    lossless: as RGB and of any size, so that `read` gives every pixel back; some 20 times as large,
    and browsers do not play it.
    """
    video_FHWC = _checked(video_FHWC, 4)
    height, width = video_FHWC.shape[1:3]
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"H.264 needs even sizes, got {height}x{width}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        # x264's macroblock tree and its threads give other bytes from run to run.
        options = {"crf": str(CRF), "x264-params": "mbtree=0"}
        codec, pixels = "libx264", "yuv420p"
        if lossless:
            codec, pixels, options = "libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast"}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
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
