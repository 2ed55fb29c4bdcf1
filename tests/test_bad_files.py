"""Files that cannot be used: each reader's error is one line that names the file, and no other."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

from evoid_jax import (
    config,
    decoding,
    deployment,
    files,
    generate,
    media,
    metrics,
    provenance,
    settings,
    triples,
)
from evoid_jax.data import folder as data_folder
from evoid_jax.evaluate import cases, journal, upstream
from evoid_jax.evaluate import kept as earlier_scorers
from evoid_jax.fields import locate
from evoid_jax.models import adapter_scale, lora, scheduler, umt5, vae, weights
from evoid_jax.models.wan_config import WanConfig
from evoid_jax.prepare import job, prompts, proposals
from evoid_jax.prepare import photos as prepare_photos
from evoid_jax.pretrain import kept
from evoid_jax.report import choices
from evoid_jax.rewards import rubrics

TINY = Path(locate(config.TINY))
WAN = WanConfig(num_attention_heads=1, attention_head_dim=4, num_layers=2, ffn_dim=8)

# A reader, and the name that its file must have.
READERS = {
    "settings": (lambda file: settings.read(file.parent), settings.FILE),
    "metrics": (lambda file: metrics.read(file.parent), metrics.FILE),
    "run": (lambda file: provenance.read(file.parent), provenance.FILE),
    "scores": (lambda file: triples.read(file.parent), triples.FILE),
    "answers": (choices.read, "answers.json"),
    "pairs": (lambda file: data_folder.read(file.parent), data_folder.FILE),
    "prompts": (prompts.read, "prompts.txt"),
    "people": (lambda file: job.read_people(str(file)), "people.json"),
    "benchmark": (cases.read, "list.json"),
    "metric file": (lambda file: upstream.read(file.parent), "facesim.json"),
    "journal": (lambda file: journal.Journal(file.parent), journal.FILE),
    "model": (lambda file: weights.read_config(file.parent), "config.json"),
    "deployment": (lambda file: deployment.settings(file.parent, {}), "evoid.json"),
    "tokenizer": (lambda file: umt5.load_tokenizer(file.parent), "tokenizer.json"),
    "adapter": (lambda file: lora.load(file, WAN), "a.safetensors"),
    "rubric": (rubrics.questions, "rubric.toml"),
    "noise": (lambda file: generate.read_noise(file, (1, 2, 2, 4)), "noise.npy"),
    "image": (media.read_image, "a.png"),
    "look": (media.check_image, "a.png"),
    "video": (media.read, "a.mp4"),
    "sources": (lambda file: earlier_scorers.earlier(file.parent, {}), earlier_scorers.FILE),
    "stage": (lambda file: kept.read(file, {}), "vae.npz"),
}
CONTENTS = {
    "empty": b"",
    "zeros": bytes(64),
    "cut off": b'{"a": [1, ',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep enough to be parsed": b'{"steps": ' + b"[" * 800 + b"]" * 800 + b"}",
    "digits": b'{"steps": ' + b"9" * 5000 + b"}",
    "huge": b'{"steps": 1' + b"0" * 400 + b', "schema": 1e999}',
    "NaN": b'{"step": NaN}',
    "null": b"null",
    "list": b"[[], {}, 1]\n",
    "text": b'"x"',
    "half a character": b'{"\\ud800": "\\ud800"}',
    "twice": b'{"step": 0, "step": 1}',
    "not UTF-8": b'{"a": "\xff\xfe\xfa"}\n',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "zip": b"PK\x03\x04" + bytes(100),
    "header of another size": struct.pack("<Q", 2**63) + b"{}",
    "npy without end": b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, "
    b"'shape': (1, 4, 1, 2, 99999999999999), }" + b" " * 20 + b"\n",
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
}


def answered(read, file: Path) -> str:
    """Return what a reader says of a file; "" where it reads it."""
    try:
        read(file)
    except (ValueError, OSError) as error:
        text = str(error)
        assert file.name in text or str(file.parent) in text
        assert "\n" not in text.strip() or len(text) < 2000
        return text
    return ""


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_in_no_such_file_is_an_error_that_names_it(name, content, tmp_path):
    read, called = READERS[name]
    (tmp_path / called).write_bytes(CONTENTS[content])
    said = answered(read, tmp_path / called)
    lenient = name in ("metrics", "journal", "prompts", "metric file", "model", "run", "rubric")
    assert said or lenient  # a torn last line, any text, any object, no text of TOML


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_an_error_that_names_it(name, tmp_path):
    read, called = READERS[name]
    (tmp_path / "folder" / called).mkdir(parents=True)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / called).symlink_to(tmp_path / "loop" / called)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / called)  # opening it would wait for ever
    absent = name in ("metrics", "run", "scores", "deployment")  # may be missing
    for place in ("folder", "loop", "pipe"):
        said = answered(read, tmp_path / place / called)
        assert said or (absent and place == "loop"), place


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", READERS)
def test_a_file_without_permission_is_named(name, tmp_path):
    read, called = READERS[name]
    (tmp_path / called).write_bytes(b"{}")
    (tmp_path / called).chmod(0)
    assert "ermission" in answered(read, tmp_path / called)


def test_a_path_that_no_system_has_is_named(tmp_path):
    for read in (media.read_image, media.read, lambda file: lora.load(file, WAN), cases.read):
        for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000), tmp_path / "\ud800"):
            with pytest.raises((ValueError, OSError)):
                read(path)


def test_json_may_nest_as_deep_as_anybody_writes_and_no_deeper():
    nested = lambda depth: b'{"a":' * depth + b"[1]" + b"}" * depth
    assert files.parse_json(nested(99), "it")
    with pytest.raises(ValueError, match="^it is not JSON that can be read: it nests too deep"):
        files.parse_json(nested(100), "it")


# --- adapters and models


def safetensors(entries: dict, size: int = 64) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + np.ones(size // 4, np.float32).tobytes()


A, B = "transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B."
PAIR = {
    A: {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    f"{B}weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
}


def test_the_adapter_of_these_tests_is_one(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors(PAIR))
    lora.load(tmp_path / "a.safetensors", WAN)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"__metadata__": {"scale": 1}}, "scale in its header is no text"),
        ({"__metadata__": {"lora_config": {"r": 1}}}, "lora_config in its header is no text"),
        ({"__metadata__": {"lora_config": "[" * 10**5}}, "lora_config is not JSON that can"),
        ({A: PAIR[A] | {"dtype": ["F32"]}}, "is not a tensor's"),
        ({A: PAIR[A] | {"shape": [1] * 70 + [2, 4]}}, "is not a tensor's"),
        ({A: PAIR[A] | {"data_offsets": [16, 48]}}, "two tensors share bytes"),
    ],
)
def test_a_header_that_is_none_is_told_by_its_file(entries, message, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors(PAIR | entries))
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        lora.load(file, WAN)


@pytest.mark.parametrize(
    ("settled", "message"),
    [
        ({"lora_alpha": []}, "lora_alpha is"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": 1e39}, "holds NaN or infinity"),
        ({"lora_alpha": 1e-50}, "is nothing in float32"),
        ({"alpha_pattern": {"a{99999999999}": 1}}, "is no regular expression"),
        ({"alpha_pattern": {"(" * 5000 + ")" * 5000: 1}}, "is no regular expression"),
        ({"alpha_pattern": {"to_q": [], ".*": [1]}}, "alpha_patterns of different values"),
    ],
)
def test_a_scale_that_is_none_is_told_by_its_file(settled, message, tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(safetensors(PAIR))
    plain = {"r": 2, "lora_alpha": 2} | settled
    (tmp_path / adapter_scale.CONFIG).write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{message}"):
        lora.load(tmp_path, WAN)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "num_layers", 10**9),
        ("transformer", "ffn_dim", 10**400),
        ("transformer", "eps", 10**400),
        ("transformer", "attention_head_dim", 2**20),
        ("transformer", "vace_layers", list(range(5000))),
        ("vae", "dim_mult", [10**400] * 4),
        ("vae", "temperal_downsample", [False] * 5000),
        ("text_encoder", "num_layers", 10**9),
    ],
)
def test_a_model_of_absurd_sizes_is_refused_before_it_is_described(part, key, value):
    kinds = {"transformer": WanConfig, "vae": vae.VAEConfig, "text_encoder": umt5.UMT5Config}
    plain = json.loads((TINY / part / "config.json").read_text())
    kinds[part].from_json(plain, "its file")
    with pytest.raises(ValueError, match="^its file"):
        kinds[part].from_json(plain | {key: value}, "its file")


def test_a_schedulers_shift_may_not_be_beyond_all_floats():
    plain = json.loads((TINY / scheduler.FILE).read_text())
    with pytest.raises(ValueError, match="its file: flow_shift is 1000"):
        scheduler.solver_of(plain | {"flow_shift": 10**400}, "its file")


# --- pictures


def test_a_photo_of_too_many_pixels_is_refused_by_its_header_alone(tmp_path, monkeypatch):
    """169 megapixels in a file of a kilobyte: nothing of it may be decoded."""
    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    sums = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    parts = [
        struct.pack(">I", len(data)) + kind + data + crc
        for (kind, data), crc in zip(chunks, sums, strict=True)
    ]
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    for read in (media.read_image, media.check_image):
        with pytest.raises(
            ValueError, match=r"a\.png .* 13000 x 13000 pixels, more than the limit"
        ):
            read(file)


# --- videos


def film(frames: int, side: int = 16) -> bytes:
    return media.encode(np.zeros((frames, side, side, 3), np.uint8), 8)


def test_a_video_of_a_codec_that_nobody_knows_is_told_so():
    file = media.encode(np.zeros((2, 16, 16, 3), np.uint8), 8).replace(b"avc1", b"zzzz")
    with pytest.raises(ValueError, match="^the video is not .*: its codec is not known here$"):
        media.read(file)


def test_a_video_of_too_many_frames_or_pixels_is_refused_before_memory_is_taken(monkeypatch):
    assert media.read(film(4))[0].shape == (4, 16, 16, 3)
    monkeypatch.setattr(decoding, "MAX_FRAMES", 3)
    with pytest.raises(ValueError, match="^the video .* more than .* 3 frames; cut it"):
        media.read(film(4))
    monkeypatch.setattr(decoding, "MAX_FRAMES", 4)
    monkeypatch.setattr(decoding, "MAX_VIDEO", 3 * 16 * 16)
    with pytest.raises(ValueError, match="^the video .* more than 768 pixels"):
        media.read(film(4))
    monkeypatch.setattr(decoding, "MAX_VIDEO", 2**20)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 32 * 32)  # FFmpeg asks before it decodes a frame
    with pytest.raises(ValueError, match="^the video is not a video that can be decoded"):
        media.read(film(1, side=256))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{0}'\n",
    ],
)
def test_a_file_that_names_other_files_is_no_video(text, tmp_path):
    (tmp_path / "other.mp4").write_bytes(film(2))
    (tmp_path / "a.mp4").write_text(text.format(tmp_path / "other.mp4"))
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video"):
        media.read(tmp_path / "a.mp4")


# --- what earlier commands left


def test_lines_of_a_cache_that_are_none_are_passed_over(tmp_path):
    torn = b'[1]\n{"finder": 1}\n\xff\xfe\n' + b"[" * 10**5 + b'\n{"key": [], "prompts": 5}\n'
    (tmp_path / prepare_photos.LOOKS).write_bytes(torn)
    assert prepare_photos.recall(tmp_path, "open") == {}
    (tmp_path / proposals.FILE).write_bytes(torn + b'{"key": "a", "prompts": ["b"]}\n')
    assert proposals._recall(tmp_path) == {"a": ["b"]}


@pytest.mark.parametrize("line", [b"[1]", b"{}", b'{"key": 1, "of": "o", "name": "n", "by": "b"}'])
def test_a_line_of_the_journal_that_is_none_is_named(line, tmp_path):
    (tmp_path / journal.FILE).write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*, line 1: .*; remove it"):
        journal.Journal(tmp_path)
