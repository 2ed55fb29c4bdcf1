"""media.py: what is written is read back, and what cannot be read is named."""

import numpy as np
import pytest
from PIL import Image

from evoid_jax import media


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


def test_images_are_upright_rgb(tmp_path):
    grey = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: rotate by 90 degrees
    grey.save(tmp_path / "a.png", exif=exif)
    image = media.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image[..., 0], [[3, 0], [4, 1], [5, 2]])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        media.read_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png does not exist"):
        media.read_image(tmp_path / "b.png")
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
