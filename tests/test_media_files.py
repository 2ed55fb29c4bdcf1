"""media.py: which files are read, which are refused with what to do; what is written comes back."""

import io
import struct
import warnings

import av
import numpy as np
import pytest
from picture_files import GREY, chunk, encoded, photo, png
from PIL import Image, features

from evoid_jax import media

# --- formats


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encoded(photo(40, 64), kind, exif=exif, **options)
    stored = np.asarray(photo(40, 64)).astype(int)
    # EXIF: the first row and column of the file are at (top, left), (top, right), ...
    flips = {1: "", 2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "thv", 8: "tv"}[turn]
    for flip in flips:
        stored = {"t": stored.swapaxes(0, 1), "h": stored[:, ::-1], "v": stored[::-1]}[flip]
    got = media.read_image(data)
    assert got.shape == stored.shape
    assert np.abs(got - stored).mean() < 3
    assert media.check_image(data) == got.shape[:2]


def test_a_phones_jpeg_with_a_preview_is_its_photo():
    small = photo(8, 8)
    data = encoded(photo(), "MPO", save_all=True, append_images=[small], quality=100)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(media.read_image(data).astype(int) - np.asarray(photo())).mean() < 3
    assert media.check_image(data) == (48, 64)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_in_one_file_are_refused(kind):
    two = encoded(photo(), kind, save_all=True, append_images=[photo(seed=9)])
    one = encoded(photo(), kind)
    assert media.read_image(one).shape == (48, 64, 3)
    with pytest.raises(ValueError, match="holds 2 pictures; save one frame"):
        media.read_image(two)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif():
    got = media.read_image(encoded(photo(), "AVIF", quality=95))
    assert np.abs(got.astype(int) - np.asarray(photo())).mean() < 4
    data = encoded(photo(), "AVIF").replace(b"colrnclx\0\1\0\15", b"colrnclx\0\11\0\20")
    with pytest.raises(ValueError, match="HDR"):
        media.read_image(data)


def box(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0" + brand + b"mif1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file.*download it again"),
        (bytes(500), "a file of zeros.*download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        (box(b"heic"), "HEIC photo.*JPEG"),
        (box(b"mif1"), "HEIC photo"),
        (struct.pack(">I", 20) + b"ftypisom\0\0\0\0mp41", "a video.*one frame"),
        (b"\x1aE\xdf\xa3webm", "a video.*one frame"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b'<?xml version="1.0"?><svg width="9"/>', "an SVG drawing.*export it"),
        (b"<svg/>", "an SVG drawing"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page.*download the picture itself"),
        (b"%PDF-1.7", "a PDF.*export it"),
        (b"8BPS\0\1", "a Photoshop document.*export it"),
        (b"%!PS-Adobe EPSF", "PostScript"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera's raw file"),
        (b"FUJIFILMCCD-RAW ", "camera's raw file"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "macOS metadata file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"just some words", "is not a picture that can be read; expected one of JPEG, PNG"),
        (encoded(photo(), "ICO"), "is not a picture that can be read"),
        (encoded(photo(), "TIFF", tiffinfo={254: 1}), "raw file, or begins with a preview"),
        (encoded(photo(), "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "camera's raw file"),
    ],
)
def test_other_files_are_named_with_what_to_do(tmp_path, data, message):
    file = tmp_path / "anna.jpg"
    file.write_bytes(data)
    for read in (media.read_image, media.check_image):
        with pytest.raises(ValueError, match=rf"(?s)anna\.jpg .*{message}"):
            read(file)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_cut_off_file_is_refused_by_the_check_too(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert media.check_image(data) == (64, 64)
    for share in (0.1, 0.5, 0.95):
        for read in (media.read_image, media.check_image):
            with pytest.raises(ValueError, match="the image "):
                read(data[: int(share * len(data))])


def test_paths_that_are_no_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a folder; name the image in it"):
        media.read_image(tmp_path)
    with pytest.raises(ValueError, match="is a folder; name the video in it"):
        media.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"b\.png does not exist"):
        media.read_image(tmp_path / "b.png")
    with pytest.raises(ValueError, match="not a regular file"):
        media.read_image("/dev/null")
    photo().save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert media.read_image("~/a.png").shape == (48, 64, 3)

    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbid)  # the superuser may read everything
    with pytest.raises(PermissionError, match=r"a\.png cannot be opened: Permission denied; see"):
        media.read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("width", "height", "passes"),
    [(16384, 8192, True), (16385, 8192, False), (40000, 30000, False), (400000, 300000, False)],
)
def test_the_size_limit_is_ours_and_is_told_before_decoding(width, height, passes):
    # A PNG whose header promises much more than its one row of pixels holds.
    data = png([b"\0"], width, 8, GREY).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
    )
    message = "cannot be read" if passes else r"more than the limit of 134,217,728; scale it down"
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=message) as error:
            media.check_image(data)
    assert ("limit" in str(error.value)) != passes


# --- videos, and what is written


def gradient_video(frames=9, height=48, width=64) -> np.ndarray:
    """A smooth coloured ramp that moves, so 4:2:0 chroma loses little."""
    f, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([2 * x + 4 * f, 3 * y + f, x + y], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("fps", [8, 16, 23.976])
def test_mp4_keeps_frames_size_rate_and_colours(tmp_path, fps):
    video = gradient_video()
    media.write(tmp_path / "new" / "a.mp4", video, fps)
    back, rate = media.read(tmp_path / "new" / "a.mp4")
    assert back.shape == video.shape
    assert back.dtype == np.uint8
    assert rate == pytest.approx(fps, rel=1e-4)
    assert np.abs(back.astype(int) - video).mean() < 2.5


def test_bytes_are_the_file(tmp_path):
    video = gradient_video(5)
    media.write(tmp_path / "a.mp4", video, 8)
    data = (tmp_path / "a.mp4").read_bytes()
    junk = [np.full(1000 * (i + 1), i, np.uint8) for i in range(50)]  # whatever the heap held
    del junk[::2]
    assert {media.encode(video, 8) for _ in range(20)} == {data}
    np.testing.assert_array_equal(media.read(data)[0], media.read(tmp_path / "a.mp4")[0])


def test_png_is_exact(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    media.write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), image)


def test_unreadable_videos_are_named(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video"):
        media.read(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"b\.mp4 does not exist"):
        media.read(tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="the video is not a video"):
        media.read(b"nothing")


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), "ending in 3"),
        (np.zeros((4, 4, 3), np.uint8), "4 axes"),
        (np.zeros((2, 5, 4, 3), np.uint8), "even sizes, got 5x4"),
    ],
)
def test_bad_videos_are_refused(tmp_path, video, message):
    with pytest.raises(ValueError, match=message):
        media.write(tmp_path / "a.mp4", video, 8)


# --- damaged videos: FFmpeg shows what it can of them, without a word


def noisy(frames=40):
    """Return a video whose frames take many bytes each, so that a cut falls where it is told to."""
    return np.random.default_rng(1).integers(0, 256, (frames, 64, 64, 3), np.uint8)


def copied(data, file, early=0, **options):
    """Copy a video's packets to a file as FFmpeg writes it; the first `early` ones are hidden.

    Returns:
      The bytes, and where each packet ends in them.
    """
    with av.open(io.BytesIO(data)) as source, av.open(str(file), "w", options=options) as target:
        theirs = source.streams.video[0]
        step = int(1 / (theirs.average_rate * theirs.time_base))
        ours = target.add_stream_from_template(theirs)
        for packet in source.demux(theirs):
            if packet.dts is not None:
                packet.stream = ours
                packet.pts, packet.dts = packet.pts - early * step, packet.dts - early * step
                target.mux(packet)
    data = file.read_bytes()
    with av.open(io.BytesIO(data)) as written:
        ends = sorted(packet.pos + packet.size for packet in written.demux(video=0) if packet.size)
    return data, ends


def test_a_cut_off_mp4_is_refused_wherever_it_is_cut(tmp_path):
    """Its index comes first, as on the web: what is there of it decodes."""
    whole = media.encode(noisy(), 8)
    data, ends = copied(whole, tmp_path / "a.mp4", movflags="faststart")
    assert media.read(data)[0].shape == (40, 64, 64, 3)
    for frame in (1, 13, 39):
        with pytest.raises(ValueError, match=f"cut off after {frame} of 40 frames; make or copy"):
            media.read(data[: ends[frame - 1]])
    with pytest.raises(ValueError, match="^the video is not a video that can be decoded"):
        media.read(data[: ends[13] + 50])


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path):
    data, ends = copied(media.encode(noisy(), 8), tmp_path / "a.mp4", 10, movflags="faststart")
    assert len(media.read(data)[0]) == 30
    with pytest.raises(ValueError, match="cut off after 20 of 40 frames"):
        media.read(data[: ends[19]])


@pytest.mark.parametrize("kind", ["mov", "mkv", "ts"])
def test_other_files_of_the_same_frames_are_whole(kind, tmp_path):
    data, _ = copied(media.encode(noisy(), 8), tmp_path / f"a.{kind}")
    assert len(media.read(data)[0]) == 40


@pytest.mark.parametrize("count", [10, 100])
def test_a_damaged_video_is_refused(count):
    """One changed byte may pass, which leads to another valid picture: H.264 has no checksums."""
    data = media.encode(noisy(), 8)
    start = data.index(b"mdat") + 1000  # behind the text in which x264 names its settings
    rng = np.random.default_rng(count)
    for _ in range(5):
        broken = bytearray(data)
        for place in rng.integers(start, start + 60_000, count):
            broken[place] ^= 255
        with pytest.raises(ValueError, match=r"frame \d+ is damaged; make or copy|decoded: "):
            media.read(bytes(broken))
