"""media.py: the pixels of a picture are those that a viewer shows, or it is refused by name.

Pictures are one row of pixels where that says it all.
"""

import struct

import numpy as np
import pytest
from picture_files import (
    COLOUR,
    COLOUR_ALPHA,
    GREY,
    GREY_ALPHA,
    chunk,
    encoded,
    photo,
    png,
    png16,
)
from PIL import Image, ImageCms

from evoid_jax import media


def row(source) -> list:
    """Read a picture of one row: its pixels, as one number where all three are equal."""
    image = media.read_image(source)
    assert image.dtype == np.uint8
    assert image.shape[0] == 1 and image.shape[2] == 3
    pixels = [tuple(map(int, pixel)) for pixel in image[0]]
    return [pixel[0] if len(set(pixel)) == 1 else pixel for pixel in pixels]


def grey(values: list, kind) -> Image.Image:
    return Image.fromarray(np.array([values]).astype(kind))


# --- depth

DEEP = [0, 255, 256, 32767, 32768, 65535]
SHOWN = [0, 0, 1, 127, 128, 255]


@pytest.mark.parametrize(
    "data",
    [
        png16(DEEP, GREY),
        png16([[v] * 3 for v in DEEP], COLOUR),
        png16([[v, 65535] for v in DEEP], GREY_ALPHA),
        png16([[v, v, v, 65535] for v in DEEP], COLOUR_ALPHA),
        encoded(grey(DEEP, "<u2"), "TIFF"),
        encoded(grey(DEEP, ">u2"), "TIFF"),
        encoded(grey([65535 - v for v in DEEP], "<u2"), "TIFF", tiffinfo={262: 0}),
        b"P5 6 1 65535\n" + np.array(DEEP, ">u2").tobytes(),
        b"P2 6 1 65535\n" + " ".join(map(str, DEEP)).encode(),
    ],
    ids=["grey", "colour", "grey+alpha", "colour+alpha", "II", "MM", "0 is white", "pgm", "plain"],
)
def test_16_bits_become_8_alike_in_every_format(data):
    assert row(data) == SHOWN


def test_an_8_bit_picture_saved_with_16_bits_is_itself():
    levels = np.arange(256)
    for factor in (257, 256):  # both ways to stretch are in use
        assert row(png16((levels * factor).tolist(), GREY)) == levels.tolist()


def test_few_bits_are_stretched():
    assert row(png([bytes([0b01000000])], 2, 1, GREY)) == [0, 255]
    assert row(png([bytes([0b00011011])], 4, 2, GREY)) == [0, 85, 170, 255]
    assert row(png([bytes([0x0F])], 2, 4, GREY)) == [0, 255]
    assert row(encoded(Image.new("1", (2, 1), 1), "PNG")) == [255, 255]


@pytest.mark.parametrize(
    "data",
    [
        encoded(grey([0, 1, 2], "<i4"), "TIFF"),
        encoded(grey([0, 1, 2], "<f4"), "TIFF"),
        encoded(grey([0, 1, 255], "u1"), "TIFF", tiffinfo={339: 2}),
    ],
    ids=["32 bits", "floats", "signed"],
)
def test_grey_without_a_white_is_refused(data):
    with pytest.raises(ValueError, match="how bright white is; save it with 8 or 16 bits"):
        media.read_image(data)


# --- transparency

KEY16, KEY = struct.pack(">H", 1000), struct.pack(">H", 1)
HIDDEN = Image.fromarray(np.uint8([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]]))  # RGBA
PALETTE = Image.fromarray(np.uint8([[0, 1, 2]]), "L").convert("P")
PALETTE.putpalette([255, 0, 0, 10, 10, 10, 20, 20, 20])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(HIDDEN, "PNG"), [255, 0, 204]),
        (encoded(HIDDEN, "WEBP", lossless=True, exact=True), [255, 0, 204]),
        (encoded(HIDDEN.convert("LA"), "PNG"), [255, 0, 204]),
        (encoded(PALETTE, "PNG", transparency=0), [255, 10, 20]),
        (encoded(PALETTE, "PNG", transparency=bytes([255, 0, 51])), [(255, 0, 0), 255, 208]),
        (encoded(PALETTE, "GIF", transparency=1), [(255, 0, 0), 255, 20]),
        (encoded(photo(1, 2), "PNG", transparency=(0, 0, 0)), [255, (2, 0, 1)]),
        (png16([0, 1000, 1001], GREY, chunk(b"tRNS", KEY16)), [0, 255, 3]),
        (png([bytes([0b00011011])], 4, 2, GREY, chunk(b"tRNS", KEY)), [0, 255, 170, 255]),
        (png([bytes([0x01])], 2, 4, GREY, chunk(b"tRNS", KEY)), [0, 255]),
        (png([bytes([0b01000000])], 2, 1, GREY, chunk(b"tRNS", struct.pack(">H", 0))), [255, 255]),
        (encoded(grey([0, 9, 30], "u1"), "PNG", transparency=9), [0, 255, 30]),
    ],
    ids=[
        "RGBA",
        "webp",
        "LA",
        "palette: one clear",
        "palette: alphas",
        "gif",
        "RGB key",
        "16-bit key",
        "2-bit key",
        "4-bit key",
        "1-bit key",
        "8-bit key",
    ],
)
def test_clear_pixels_are_white_whatever_colour_they_hide(data, expected):
    assert row(data) == expected


def test_a_16_bit_colour_key_is_refused_as_half_of_its_bits_are_lost():
    key = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    with pytest.raises(ValueError, match="save it with an alpha channel"):
        media.read_image(png16([[1000, 2000, 3000]], COLOUR, key))


@pytest.mark.parametrize(("pixel", "shown"), [([51, 0, 0, 51], (255, 204, 204)), ([51, 51], 255)])
def test_premultiplied_colours_are_not_darkened_twice(pixel, shown):
    data = encoded(Image.fromarray(np.uint8([[pixel]])), "TIFF")
    extra = struct.pack("<HHIH", 338, 3, 1, 2)  # ExtraSamples: 2 is a plain alpha, 1 premultiplied
    assert extra in data
    assert row(data.replace(extra, struct.pack("<HHIH", 338, 3, 1, 1))) == [shown]


# --- colours


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def matrix_profile(primaries: list[float], gamma: float) -> bytes:
    """Make an RGB profile from its matrix to XYZ (D50, by column) and one gamma for all curves."""

    def s15(x):
        return struct.pack(">i", round(x * 65536))

    tags = {}
    for k, letter in enumerate(b"rgb"):
        column = b"".join(s15(x) for x in primaries[3 * k : 3 * k + 3])
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + column
        curve = struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
        tags[bytes([letter]) + b"TRC"] = b"curv\0\0\0\0" + curve
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + s15(0.9642) + s15(1.0) + s15(0.8249)
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = 132 + 12 * len(tags) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02200000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1.0) + s15(0.8249)
    return head.ljust(128, b"\0") + table + body


# Display P3 and sRGB, adapted to D50 (ICC registry); P3's red is (1.225, -0.042, -0.0196) in sRGB
P3 = [0.5151, 0.2412, -0.0011, 0.2920, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841]
SRGB = [0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141]


def test_an_embedded_profile_is_applied():
    image = Image.new("RGB", (1, 1), (200, 100, 100))
    p3 = matrix_profile(P3, 2.2)
    # By hand: linear = (v / 255) ** 2.2; through P3's matrix to XYZ and sRGB's back; sRGB's curve.
    linear = (np.array([200, 100, 100]) / 255) ** 2.2
    matrix = np.linalg.inv(np.reshape(SRGB, (3, 3)).T) @ np.reshape(P3, (3, 3)).T
    x = matrix @ linear
    expected = 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    for kind in ("PNG", "TIFF"):
        got = media.read_image(encoded(image, kind, icc_profile=p3))[0, 0]
        np.testing.assert_allclose(got, expected, atol=1.5)
    assert abs(expected[0] - 200) > 10  # ignoring the profile would be far off
    clear = encoded(image.convert("RGBA"), "PNG", icc_profile=p3)
    np.testing.assert_allclose(media.read_image(clear)[0, 0], expected, atol=1.5)


def test_an_srgb_profile_changes_no_pixel():
    image = photo()
    for icc in (profile("sRGB"), b"broken", profile("LAB"), None):
        got = media.read_image(encoded(image, "PNG", icc_profile=icc))
        np.testing.assert_array_equal(got, image)


def test_grey_pixels_of_a_colour_profile_take_it_too():
    linear = matrix_profile(SRGB, 1.0)
    got = media.read_image(encoded(Image.new("L", (1, 1), 55), "TIFF", icc_profile=linear))[0, 0]
    np.testing.assert_allclose(got, 128, atol=1.5)  # 55 / 255 of the light is sRGB's 128


def test_print_colours(tmp_path):
    ink = Image.fromarray(np.uint8([[[0] * 4, [0, 0, 0, 255], [0, 255, 255, 0]]]), "CMYK")
    assert row(encoded(ink, "TIFF")) == [255, 0, (255, 0, 0)]
    large = ink.resize((48, 16), Image.Resampling.NEAREST)  # JPEG keeps inks inverted, as Adobe
    got = media.read_image(encoded(large, "JPEG", quality=100, subsampling=0))
    np.testing.assert_allclose(got[8, [4, 20, 44]], [[255] * 3, [0] * 3, [255, 0, 0]], atol=3)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_are_converted(mode):
    image = photo().convert("RGB")
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab[1], lab[0], outputMode="LAB")
    else:
        image = image.convert(mode)
    got = media.read_image(encoded(image, "TIFF")).astype(int)
    assert np.abs(got - np.asarray(photo()).astype(int)).mean() < 2


def test_a_png_of_another_gamma_is_shown_for_the_screen():
    half = [bytes([0, 55, 255])]
    linear = png(half, 3, 8, GREY, chunk(b"gAMA", struct.pack(">I", 100000)))
    assert row(linear) == [0, 127, 255]  # 255 (55 / 255) ** (1 / 2.2)
    usual = png(half, 3, 8, GREY, chunk(b"gAMA", struct.pack(">I", 45455)))
    assert row(usual) == [0, 55, 255]


def test_hdr_is_refused():
    cicp = {"pq": bytes([9, 16, 0, 1]), "p3": bytes([12, 13, 0, 1]), "srgb": bytes([1, 13, 0, 1])}
    files = {name: png([b"\x09"], 1, 8, GREY, chunk(b"cICP", x)) for name, x in cicp.items()}
    assert row(files["srgb"]) == [9]
    for name in ("pq", "p3"):
        with pytest.raises(ValueError, match="HDR or wide-gamut picture without an ICC profile"):
            media.read_image(files[name])
