"""The bytes between a run and its sidecars: what goes in comes out, what is broken is refused."""

import json
import struct

import numpy as np
import pytest

from evoid_jax import media
from evoid_jax.sidecars import wire

PROMPTS = ["A person waves.", "A person nods.", "A person laughs."]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def drawn(seed: int) -> tuple[np.ndarray, list[list[np.ndarray]], list[str]]:
    """Return some videos and, for each, some photos of a common heap, of any sizes."""
    random = np.random.default_rng(seed)
    count, frames, height, width, kinds = random.integers(1, 6, 5)
    sizes = random.integers(1, 40, (kinds, 2))
    heap = [noise(seed + k, h, w, 3) for k, (h, w) in enumerate(sizes)]
    chosen = [random.integers(0, kinds, random.integers(1, 4)) for _ in range(count)]
    references = [[heap[k] for k in row] for row in chosen]
    return noise(seed, count, frames, height, width, 3), references, ["a"] * int(count)


@pytest.mark.parametrize("seed", range(20))
def test_every_video_gets_its_own_photos_back(seed):
    videos, references, prompts = drawn(seed)
    request = wire.decode(wire.encode(videos, references, prompts))
    np.testing.assert_array_equal(np.stack(request.videos), videos)
    assert [len(own) for own in request.references] == [len(own) for own in references]
    for got, want in zip(request.references, references, strict=True):
        for photo, sent in zip(got, want, strict=True):
            assert photo.dtype == np.uint8
            np.testing.assert_array_equal(photo, sent)


def test_photos_that_videos_share_travel_once():
    large, small = noise(0, 300, 200, 3), noise(1, 20, 30, 3)
    videos, prompts = noise(2, 32, 1, 4, 4, 3), ["a"] * 32
    body = wire.encode(videos, [[large, small]] * 31 + [[small]], prompts)
    header = 1000  # bytes, more than it has
    assert len(body) < videos.size + large.size + small.size + header
    request = wire.decode(body)
    # One array on the other side too: what is computed of it is computed once.
    assert len({id(photo) for own in request.references for photo in own}) == 2
    assert [len(own) for own in request.references] == [2] * 31 + [1]


def test_a_slice_of_a_photo_travels_as_it_looks():
    photo = noise(0, 9, 8, 3)[::2, ::-1]
    (own,) = wire.decode(wire.encode(noise(1, 1, 1, 2, 2, 3), [[photo]], ["a"])).references
    np.testing.assert_array_equal(own[0], photo)


@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (9, 64, 64, 3), (5, 33, 50, 3)])
def test_lossless_files_give_every_pixel_back(shape):
    """Noise, the extremes and a slope: whatever a codec rounds is in one of them."""
    slope_FHWC = np.broadcast_to(np.arange(shape[2], dtype=np.uint8)[:, None] * 5, shape)
    extremes_FHWC = noise(3, *shape) // 128 * 255
    videos = [noise(4, *shape), extremes_FHWC, slope_FHWC.copy()]
    files = [media.encode(video_FHWC, 8, lossless=True) for video_FHWC in videos]
    photo = noise(0, 3, 4, 3)
    request = wire.decode(wire.encode_mp4(files, [[photo]] * 3, PROMPTS, ids=["a", "b", "c"]))
    for got_FHWC, sent_FHWC in zip(request.videos, videos, strict=True):
        np.testing.assert_array_equal(got_FHWC, sent_FHWC)
    np.testing.assert_array_equal(request.references[2][0], photo)
    assert request.ids == ["a", "b", "c"]


def test_a_digest_is_of_every_byte():
    body = changed()
    assert wire.digest(b"abc").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    assert wire.digest(body) != wire.digest(body[:-1] + bytes([body[-1] ^ 1]))


def changed(**values) -> bytes:
    """Return a good body of three videos and two photos, with other values in its header."""
    one, two = noise(0, 3, 4, 3), noise(1, 5, 2, 3)
    body = wire.encode(noise(2, 3, 1, 2, 2, 3), [[one], [two], [one, two]], PROMPTS)
    (size,) = struct.unpack("<I", body[:4])
    header = {**json.loads(body[4 : 4 + size]), **values}
    head = json.dumps({k: v for k, v in header.items() if v is not ...}).encode()
    return struct.pack("<I", len(head)) + head + body[4 + size :]


def test_the_unchanged_body_is_good():
    assert len(wire.decode(changed()).references) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"protocol": ...}, "protocol must be 2.* got None"),
        ({"protocol": 1}, "protocol must be 2.* got 1"),
        ({"photos": ...}, "photos must be a list of sizes, one per photo; got None"),
        ({"photos": {}}, "photos must be a list of sizes"),
        ({"photos": [[3, 4, 3], [5, 2]]}, r"photo 1 of photos must be 3 positive sizes .*\[5, 2\]"),
        ({"photos": [[3, 4, 3], [5, 2, 4]]}, r"ending in 3 \(RGB\); got \[5, 2, 4\]"),
        ({"photos": [[3, 4, 3], [5, 0, 3]]}, "3 positive sizes"),
        ({"photos": [[3, 4, 3], [5, -2, 3]]}, "3 positive sizes"),
        ({"photos": [[3, 4, 3], [5, True, 3]]}, "3 positive sizes"),
        ({"photos": [[3, 4, 3], "5x2"]}, "3 positive sizes"),
        ({"photos": [[3, 4, 3], [5, 3, 3]]}, "and 81 of photos after the header; got 102"),
        ({"photos": [[3, 4, 3], [10**9, 10**9, 3]]}, "of photos after the header"),
        ({"references": ...}, "references must be 3 lists of photos, one per prompt; got None"),
        ({"references": [[0], [1]]}, "references must be 3 lists"),
        ({"references": [[0], [1], []]}, r"one or more numbers .*\(there are 2 photos\); got \[\]"),
        ({"references": [[0], [1], [2]]}, r"numbers from 0 to 1 .*got \[2\]"),
        ({"references": [[0], [1], [-1]]}, r"numbers from 0 to 1 .*got \[-1\]"),
        ({"references": [[0], [1], [True]]}, r"numbers from 0 to 1 .*got \[True\]"),
        ({"references": [[0], [1], 0]}, r"numbers from 0 to 1 .*got 0"),
        ({"references": [[0], [1], ["0"]]}, "numbers from 0 to 1"),
        ({"photos": [], "references": [[], [], []]}, r"there are 0 photos"),
        ({"ids": ["a", "b"]}, r"ids must be 3 different strings .*got \['a', 'b'\]"),
        ({"ids": ["a", "b", "a"]}, "ids must be 3 different strings"),
        ({"ids": ["a", "b", 3]}, "ids must be 3 different strings"),
        ({"ids": ["a", "b", "c" * 101]}, "of at most 100 letters"),
    ],
)
def test_a_header_that_lies_about_photos_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        wire.decode(changed(**values))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_body_is_refused_in_words_or_read(seed):
    """Whatever a byte becomes, nothing but a ValueError comes out."""
    random = np.random.default_rng(seed)
    body = bytearray(changed())
    for place in random.integers(0, len(body), 3):
        body[place] = random.integers(0, 256)
    try:
        request = wire.decode(bytes(body[: len(body) - seed % 3]))
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        assert all(photo.ndim == 3 for own in request.references for photo in own)


def test_photos_alone_come_back_pixel_by_pixel_and_a_cut_body_is_named():
    photos = [np.full((4, 6, 3), 9, np.uint8), np.arange(36, dtype=np.uint8).reshape(3, 4, 3)]
    body = wire.encode_photos(photos)
    for sent, got in zip(photos, wire.decode_photos(body), strict=True):
        np.testing.assert_array_equal(sent, got)
    with pytest.raises(ValueError, match="108 of photos after the header; got 107"):
        wire.decode_photos(body[:-1])
    with pytest.raises(ValueError, match="protocol must be 2"):
        wire.decode_photos(body.replace(b'"protocol": 2', b'"protocol": 1'))
