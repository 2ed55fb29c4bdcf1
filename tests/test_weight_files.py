"""Weight files as people have them: variants, pointers, indexes; read or named with what to do."""

import json
from pathlib import Path

import numpy as np
import pytest

from evoid_jax.models import weights

ONE = {"a": np.arange(4, dtype=np.float32)}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def index(folder: Path, name: str, placed: dict[str, str]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_the_plain_files_are_read_where_a_variant_and_a_mac_s_copies_lie_beside(tmp_path):
    half = {"a": np.zeros(4, np.float16), "b": np.zeros(4, np.float16)}
    weights.write_tensors(tmp_path / "model.safetensors", ONE)
    weights.write_tensors(tmp_path / "model.fp16.safetensors", half)
    weights.write_tensors(tmp_path / "model.bf16-00001-of-00002.safetensors", half)
    index(tmp_path, "model.safetensors.index.fp16.json", {"a": "model.fp16.safetensors"})
    for name in ("._model.safetensors", ".DS_Store", "._model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    tensors = weights.read_tensors(tmp_path)
    assert tensors.keys() == {"a"} and tensors["a"].dtype == np.float32


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_variants_are_told_from_plain_names(stem):
    for plain in (f"{stem}.safetensors", f"{stem}-00001-of-00002.safetensors", "a.b.safetensors"):
        assert weights.variant(plain) == ""
    assert weights.variant(f"{stem}.fp16.safetensors") == "fp16"
    assert weights.variant(f"{stem}.fp16-00001-of-00002.safetensors") == "fp16"
    assert weights.variant(f"{stem}-00001-of-00002.fp16.safetensors") == "fp16"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.fp16.safetensors", "only as the variant fp16: .* rename model.fp16.* to model.saf"),
        ("model.bin", "model.bin is PyTorch's format, which can run code: save the model with saf"),
        ("wan.ckpt", "wan.ckpt is PyTorch's format"),
        ("wan-Q4_K_M.gguf", "wan-Q4_K_M.gguf is GGUF, and quantised weights are not supported"),
        ("._model.safetensors", "no safetensors files in"),
    ],
)
def test_what_a_folder_has_instead_of_weights_is_named(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=message):
        weights.open_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER.encode(), "is a Git LFS pointer, .* run `git lfs pull`"),
        (b"", "is an empty file; its download or copy was cut off"),
        (b"GGUF\x03\x00\x00\x00" * 4, "is a GGUF file; quantised weights are not supported"),
        (b"PK\x03\x04" * 4, "is a zip archive, as PyTorch's .pt"),
        (b"<!DOCTYPE html><html></html>", "is a web page; .* download it again"),
        ((2).to_bytes(8, "little") + b"[]", "its header holds a list"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "tensor a of .* is not a tensor's"),
        ((13).to_bytes(8, "little") + b'{"a":1,"a":2}', "header has the key 'a' twice"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{message}|{message}"):
        weights.open_folder(tmp_path)


def test_bytes_that_the_header_does_not_describe_are_named(tmp_path):
    weights.write_tensors(tmp_path / "model.safetensors", ONE)
    with open(tmp_path / "model.safetensors", "ab") as f:
        f.write(b"more")
    with pytest.raises(ValueError, match=r"has \d+ bytes; its header describes \d+. It is damaged"):
        weights.open_folder(tmp_path)


@pytest.mark.parametrize(
    ("placed", "error", "message"),
    [
        ({"a": "../model.safetensors"}, ValueError, "names ../model.safetensors, which is outside"),
        ({"a": "/etc/passwd"}, ValueError, "names /etc/passwd, which is outside of its folder"),
        ({"a": "b/model.safetensors"}, ValueError, "which is outside of its folder"),
        ({"a": 3}, ValueError, "has no weight_map of tensors to file names"),
        ([], ValueError, "has no weight_map of tensors to file names"),
        ({"a": "other.safetensors"}, ValueError, "does not name model.safetensors, which is in"),
        ({"b": "model.safetensors"}, ValueError, "tensor a of .* places it in no file"),
    ],
)
def test_a_bad_index_is_named(tmp_path, placed, error, message):
    weights.write_tensors(tmp_path / "model.safetensors", ONE)
    index(tmp_path, "model.safetensors.index.json", placed)
    with pytest.raises(error, match=message):
        weights.open_folder(tmp_path)


def test_two_indexes_and_a_tensor_in_the_wrong_shard_are_named(tmp_path):
    for name, key in (("x", "a"), ("y", "b")):
        weights.write_tensors(tmp_path / f"{name}.safetensors", {key: ONE["a"]})
    index(tmp_path, "m.safetensors.index.json", {"a": "y.safetensors", "b": "x.safetensors"})
    with pytest.raises(ValueError, match=r"tensor a of .*x\.safetensors is not there by .* places"):
        weights.open_folder(tmp_path)
    index(tmp_path, "n.safetensors.index.json", {"a": "x.safetensors", "b": "y.safetensors"})
    with pytest.raises(ValueError, match="has two indexes, m.saf.* and n.saf"):
        weights.open_folder(tmp_path)


def test_whole_numbers_are_no_weights(tmp_path):
    weights.write_tensors(tmp_path / "model.safetensors", {"a": np.arange(4)})
    with pytest.raises(ValueError, match="tensor a of .* is int64; expected floats"):
        weights.check(weights.open_folder(tmp_path), {"a": (4,)}, "model")


def test_a_file_for_a_folder_and_none_at_all_are_named(tmp_path):
    (tmp_path / "vae").write_text("x")
    with pytest.raises(NotADirectoryError, match="vae is a file; expected a folder"):
        weights.open_folder(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="unet is missing; expected a folder"):
        weights.open_folder(tmp_path / "unet")
