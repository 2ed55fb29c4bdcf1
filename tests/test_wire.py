"""The bytes between a run and its sidecars: what goes in comes out, what is broken is refused."""

import io
import json
import math
import re
import struct

import av
import numpy as np
import pytest

from evoid_jax import media
from evoid_jax.sidecars import limits, mp4, wire

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


def test_other_photos_travel_beside_and_none_are_said_of_older_bodies():
    one, two, three = (noise(k, 3 + k, 4, 3) for k in range(3))
    videos, references = noise(4, 3, 1, 2, 2, 3), [[one], [two], [one]]
    others = [[two, three], [], [three]]
    request = wire.decode(wire.encode(videos, references, PROMPTS, others=others))
    assert [len(own) for own in request.references] == [1, 1, 1]
    for got, want in zip(request.others, others, strict=True):
        assert len(got) == len(want)
        for photo, sent in zip(got, want, strict=True):
            np.testing.assert_array_equal(photo, sent)
    assert request.others[0][0] is request.references[1][0]  # sent once, and one array again
    assert wire.decode(wire.encode(videos, references, PROMPTS)).others is None


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
        ({"photos": [[3, 4, 3], [9999, 9999, 3]]}, "of photos after the header"),
        ({"references": ...}, "references must be 3 lists of photos, one per prompt; got None"),
        ({"references": [[0], [1]]}, "references must be 3 lists"),
        ({"references": [[0], [1], []]}, r"one or more numbers .*\(there are 2 photos\); got \[\]"),
        ({"references": [[0], [1], [2]]}, r"numbers from 0 to 1 .*got \[2\]"),
        ({"references": [[0], [1], [-1]]}, r"numbers from 0 to 1 .*got \[-1\]"),
        ({"references": [[0], [1], [True]]}, r"numbers from 0 to 1 .*got \[True\]"),
        ({"references": [[0], [1], 0]}, r"numbers from 0 to 1 .*got 0"),
        ({"references": [[0], [1], ["0"]]}, "numbers from 0 to 1"),
        ({"photos": [], "references": [[], [], []]}, r"there are 0 photos"),
        ({"others": [[0], [1]]}, "others must be 3 lists of numbers from 0 to 1"),
        ({"others": [[0], [1], [2]]}, "others must be 3 lists"),
        ({"others": [[0], [1], [True]]}, "others must be 3 lists"),
        ({"others": {}}, "others must be 3 lists"),
        ({"others": [[0] * 65, [], []]}, "at most 64 photos of a video, got 65"),
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


# --- what a few bytes can claim


def compressed(frames: int, side: int, codec: str = "libx264") -> bytes:
    """Return a small mp4 file of black frames, side x side."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=8, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for time in range(frames):
            frame = av.VideoFrame(side, side, "yuv420p")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def framed(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<I", len(header)) + header + payload


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"photos": [[1, 1, 3]] * 513}, "at most 512 photos, got 513"),
        ({"photos": [[3, 4, 3], [2**14, 2**14, 3]]}, "at most 134,217,728 pixels of a photo"),
        ({"photos": [[3, 4, 3], [10**400, 2, 3]]}, "any size of photo 1 of photos, got far more"),
        ({"references": [[0], [1], [1] * 65]}, "at most 64 photos of a video, got 65"),
        ({"shape": [3, 5000, 2, 2, 3]}, "at most 2,048 frames of a video, got 5,000"),
        ({"shape": [3, 1, 4096, 4096, 3]}, "at most 8,388,608 pixels of a frame, got 16,777,216"),
        ({"shape": [3, 10**400, 2, 2, 3]}, "any size of shape, got far more"),
        ({"prompts": ["a" * 20_001, "b", "c"]}, "at most 20,000 letters of a prompt"),
        ({"prompts": ["a"] * 1025}, "at most 1,024 prompts, one per video, got 1,025"),
        ({"rewards": ["a"] * 257}, "at most 256 rewards"),
        ({"attributes": [[0.0] * 1025, None, None]}, "at most 1,024 attributes of a video"),
        ({"more": [[[[[[[[[]]]]]]]]]}, "at most 8 lists in each other, got 10"),
        ({"more": [[]] * 100_000}, "at most 200,000 lists, objects and commas"),
        ({"more": "x" * 2**22}, "at most 4,194,304 bytes of a header"),
    ],
)
def test_a_header_that_claims_too_much_is_refused(values, said):
    with pytest.raises(limits.TooMuch, match=re.escape(said)):
        wire.decode(changed(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fps": 10**400}, "fps must be a positive number below 1000; got 1000"),
        ({"fps": float("nan")}, "NaN is no number of JSON"),
        ({"fps": float("inf")}, "Infinity is no number of JSON"),
        ({"attributes": [[float("nan")], None, None]}, "NaN is no number of JSON"),
        ({"attributes": [[10**400], None, None]}, "attributes must be numbers up to 1e+30"),
        ({"attributes": [[-1e39], None, None]}, "attributes must be numbers up to 1e+30"),
        ({"attributes": [["1.5"], None, None]}, "one flat list of numbers"),
        ({"attributes": [[True], None, None]}, "one flat list of numbers"),
        ({"attributes": [[[1.0]], None, None]}, "one flat list of numbers"),
        ({"attributes": ["12", None, None]}, "one flat list of numbers"),
        ({"prompts": ["a", "b", "\ud800"]}, "prompts must be whole characters"),
        ({"ids": ["a", "b", "\udfff"]}, "ids must be whole characters"),
        ({"rewards": ["\ud800"]}, "rewards must be whole characters"),
        ({"format": "x" * 10**6}, 'must be "raw" or "mp4"; got '),
        ({"protocol": "x" * 10**6}, "protocol must be 2"),
    ],
)
def test_numbers_and_words_that_are_none_are_refused_in_a_line(values, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        wire.decode(changed(**values))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"protocol": 2, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"protocol": 2, "fps": ' + b"9" * 5000 + b"}",
        b'{"protocol": 2, "fps": 1e999}',
        b'"' + b'\\"' * 10**6,
        b"\xff\xfe",
    ],
)
def test_text_that_no_reader_likes_is_refused_in_a_line(text):
    with pytest.raises(ValueError, match=r"\w") as caught:
        wire.decode(framed(text))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "depth"),
    [(b"", 0), (b"3", 0), (b"[]", 1), (b'{"a": [1, [2]]}', 3), (b"[[], [], [[]]]", 3)],
)
def test_nesting_by_hand(text, depth):
    assert limits.nesting(text) == depth


@pytest.mark.parametrize("word", ["[[[[", '"[[', '\\"[', "\\\\", '\\\\"[[', "]]]]", "é[", ""])
def test_brackets_within_words_do_not_nest(word):
    assert limits.nesting(json.dumps({"a": [word, word], word: 1}).encode()) == 2


def mp4_body(*files: bytes) -> bytes:
    photo = noise(0, 3, 4, 3)
    return wire.encode_mp4(list(files), [[photo]] * len(files), ["a"] * len(files))


def test_a_small_file_of_large_frames_is_refused_before_one_is_decoded():
    taken = []
    with pytest.raises(limits.TooMuch, match="at most 8,388,608 pixels of a frame, got 9,437,184"):
        wire.decode(mp4_body(compressed(2, 3072)), taken.append)
    assert not taken


@pytest.mark.parametrize("lying", [False, True])
def test_a_file_of_too_many_frames_is_refused_whatever_it_says(monkeypatch, lying):
    """The container's own number is checked first, and what comes out of the decoder too."""
    file, taken = compressed(9, 16), []
    if lying:
        monkeypatch.setattr(mp4, "claimed", lambda stream: 0)
    monkeypatch.setattr(limits, "FRAMES", 8)
    with pytest.raises(limits.TooMuch, match="at most 8 frames .* got 9"):
        wire.decode(mp4_body(file), taken.append)
    assert len(taken) == (8 if lying else 0)


def test_frames_of_all_files_count_together_and_each_is_told_before_it_is_kept(monkeypatch):
    file, taken = compressed(5, 16), []
    wire.decode(mp4_body(file, file), taken.append)
    assert taken == [16 * 16 * 3] * 10
    monkeypatch.setattr(limits, "FRAMES_TOGETHER", 9)
    with pytest.raises(limits.TooMuch, match="at most 4 frames"):
        wire.decode(mp4_body(file, file))

    def full(size: int):
        raise MemoryError

    with pytest.raises(MemoryError):
        wire.decode(mp4_body(file), full)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "not a video that can be decoded"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not a video that can be decoded"),
        (compressed(2, 16, codec="mpeg4"), "not a video in H.264: 'mpeg4'"),
        (compressed(2, 16).replace(b"avc1", b"zzzz"), "not a video in H.264: None"),
        (b"", "not a video that can be decoded"),
    ],
)
def test_a_file_that_names_others_or_has_another_codec_is_not_read(file, said):
    """FFmpeg reads playlists, whose lines it opens: only the one format is offered to it."""
    request = wire.decode(mp4_body(file, compressed(2, 16)))
    assert request.videos[0] is None and said in request.reasons[0]
    assert request.videos[1].shape == (2, 16, 16, 3)


def test_a_usual_batch_is_far_from_every_limit():
    """32 videos of 81 x 480 x 832 with two photos of 12 megapixels each, all different."""
    videos = (32, 81, 480, 832, 3)
    header = {"protocol": 2, "shape": list(videos), "prompts": ["a" * 2000] * 32}
    header |= {"photos": [[4000, 3000, 3]] * 64, "references": [[k, 32 + k] for k in range(32)]}
    text = json.dumps(header).encode()
    size = math.prod(videos) + 64 * 36_000_000
    with pytest.raises(ValueError, match=f"expected {math.prod(videos)} bytes of video"):
        wire.decode(framed(text))
    assert len(text) < limits.HEADER / 2 and size < 0.7 * limits.REQUEST_GIB * 2**30
