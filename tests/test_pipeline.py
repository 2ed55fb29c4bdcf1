"""Whole pipelines in both layouts: out and back, cast, compared, and every bad file named."""

import errno
import filecmp
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline
import torch
from conversions import MODEL, assert_same_files, base, held, run, wan_config
from diffusers import (
    AutoencoderKLWan,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from transformers import UMT5EncoderModel

from evoid_jax import rollout
from evoid_jax.models import native, pipeline, pth, vae, weights

KEY = "blocks.1.attn1.to_q.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "tiny-vace")


def test_diffusers_to_native_and_back_changes_no_byte(folder, tmp_path):
    run(folder, tmp_path / "native", "--to=native")
    run(tmp_path / "native", tmp_path / "back")
    assert_same_files(folder, tmp_path / "back")


def test_the_original_files_are_what_diffusers_converter_reads(folder, tmp_path):
    original = run(folder, tmp_path / "native", "--to=native", "--shard_gb=0.0003")
    index = json.loads((original / f"{MODEL}.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    state = {}
    for file in original.glob("*.safetensors"):
        state |= load_torch(file)
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    converted = convert_wan_transformer_to_diffusers(state)
    model.load_state_dict(converted, strict=True)
    theirs = held(folder / "transformer")
    assert all(np.array_equal(converted[key].numpy(), theirs[key]) for key in theirs)
    text = torch.load(original / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    ours = UMT5EncoderModel.from_pretrained(folder / "text_encoder").state_dict()
    assert torch.equal(text["token_embedding.weight"], ours["shared.weight"])
    wi_1 = "encoder.block.1.layer.1.DenseReluDense.wi_1.weight"
    assert torch.equal(text["blocks.1.ffn.fc1.weight"], ours[wi_1])
    assert (original / "google/umt5-xxl/tokenizer.json").is_file()
    assert json.loads((original / "config.json").read_text())["model_type"] == "vace"


def test_the_original_vae_of_the_released_depth_is_what_diffusers_converter_reads(tmp_path):
    model = AutoencoderKLWan(base_dim=4)
    tiny_pipeline.shake(model)
    model.save_pretrained(tmp_path)
    names = native.vae_names(vae.VAEConfig(base_dim=4))
    tensors = weights.open_folder(tmp_path)
    pth.write(tmp_path / "vae.pth", {name: tensors[key] for key, name in names.items()})
    state = torch.load(tmp_path / "vae.pth", weights_only=True, mmap=True)
    converted = convert_wan_vae_to_diffusers(state)
    for key, x in model.state_dict().items():
        assert torch.equal(converted.pop(key), x)
    assert not converted
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", MODEL, "vae.pth"]


def test_a_released_folder_without_our_extras_converts(folder, tmp_path, monkeypatch):
    original = run(folder, tmp_path / "native", "--to=native")
    shutil.rmtree(original / "diffusers")
    parts = {name: weights.read_config(folder / name) for name in ("vae", "text_encoder")}
    monkeypatch.setattr(vae.VAEConfig, "to_json", lambda self: parts["vae"])  # stand for Wan's own
    monkeypatch.setattr(native.umt5.UMT5Config, "to_json", lambda self: parts["text_encoder"])
    back = run(original, tmp_path / "back")
    for name in pipeline.PARTS:
        theirs = held(folder / name)
        assert all(np.array_equal(x, theirs[key]) for key, x in held(back / name).items())
    assert rollout.load(back).wan.config == wan_config(folder)
    assert isinstance(tiny_pipeline.load(back), WanVACEPipeline)


def test_bfloat16_passes_through_pth_files(folder, tmp_path):
    half = run(folder, tmp_path / "half", "--dtype=bfloat16")
    original = run(half, tmp_path / "native", "--to=native")
    text = torch.load(original / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    assert {x.dtype for x in text.values()} == {torch.bfloat16}
    run(original, tmp_path / "back")
    assert_same_files(half, tmp_path / "back")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_rounds_what_diffusers_rounds(folder, tmp_path, dtype):
    half = run(folder, tmp_path / "half", f"--dtype={dtype}")
    kind = getattr(torch, dtype)
    for source in (folder, half):  # rounded by diffusers, rounded by us
        model = WanVACETransformer3DModel.from_pretrained(
            source, subfolder="transformer", torch_dtype=kind
        )
        state = model.state_dict()
        for key, x in held(half / "transformer").items():
            assert str(x.dtype) == str(state[key].dtype).removeprefix("torch.")
            np.testing.assert_array_equal(x.astype(np.float32), state[key].float().numpy())
    assert {str(x.dtype) for x in held(half / "text_encoder").values()} == {dtype}
    assert filecmp.cmp(folder / "vae" / MODEL, half / "vae" / MODEL, shallow=False)


def test_a_value_that_float16_cannot_hold_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = {key: np.array(x) for key, x in held(copy / "text_encoder").items()}
    tensors["shared.weight"][0, 0] = 1e6
    weights.write_tensors(copy / "text_encoder" / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"shared\.weight of .* infinity \(as float16\)"):
        run(copy, tmp_path / "half", "--dtype=float16")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["copy"]


def test_compare_finds_what_differs(folder, tmp_path):
    vace = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    config = {k: v for k, v in vace.config.items() if not k.startswith(("vace", "_"))}
    t2v = WanTransformer3DModel.from_config(config)
    state = {key: x for key, x in vace.state_dict().items() if "vace" not in key}
    t2v.load_state_dict(state, strict=True)
    t2v.save_pretrained(tmp_path / "same")
    outcome = pipeline.compare(tmp_path / "same", folder)
    assert outcome.keys() == state.keys() and set(outcome.values()) == {"equal"}
    original = run(folder, tmp_path / "native", "--to=native")
    assert pipeline.compare(tmp_path / "same", original) == outcome
    with torch.no_grad():
        t2v.proj_out.bias[0] = torch.nextafter(t2v.proj_out.bias[0], torch.tensor(9.0))
    t2v.save_pretrained(tmp_path / "other")
    outcome = pipeline.compare(tmp_path / "other", folder)
    assert {k: v for k, v in outcome.items() if v != "equal"} == {"proj_out.bias": "values differ"}
    t2v.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert set(pipeline.compare(tmp_path / "half", folder).values()) == {"dtype bfloat16, float32"}


# --- what can go wrong


def test_an_original_folder_is_checked_as_a_diffusers_one(folder, tmp_path):
    original = run(folder, tmp_path / "native", "--to=native")
    kept = original / "diffusers" / "model_index.json"
    index = json.loads(kept.read_text())
    kept.write_text(json.dumps(index | {"transformer_2": ["diffusers", "X"]}))
    with pytest.raises(ValueError, match="not supported: transformer_2"):
        run(original, tmp_path / "out")
    kept.write_text(json.dumps(index))
    text = original / "diffusers" / "text_encoder" / "config.json"
    text.write_text(json.dumps(json.loads(text.read_text()) | {"eos_token_id": 7}))
    with pytest.raises(ValueError, match="eos token id 1, .* says 7"):
        run(original, tmp_path / "out")
    (original / "config.json").write_text('{"model_type": "vace"')
    with pytest.raises(ValueError, match=r"native/config\.json is not JSON"):
        run(original, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["native"]


def test_a_disk_without_room_is_refused_before_the_start(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"0\.0 GB are needed, 0\.0 are free") as raised:
        run(folder, tmp_path / "out", "--to=native")
    assert raised.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def broken(folder, tmp_path, change) -> Path:
    """A copy of the pipeline with one tensor of one shard changed."""
    copy = shutil.copytree(folder, tmp_path / "broken")
    file = next(f for f in (copy / "transformer").glob("*.safetensors") if KEY in load_file(f))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), f"places {KEY} in"),
        (lambda t: t.update({KEY: t[KEY][:, :8].copy()}), r"is \(64, 8\); expected \(64, 64\)"),
        (lambda t: t.update({"blocks.1.x": t[KEY]}), r"blocks\.1\.x of .* places it in no file"),
        (lambda t: t[KEY].fill(np.nan), f"{KEY} of .*safetensors holds NaN"),
    ],
)
def test_bad_tensors_are_named_and_nothing_is_left(folder, tmp_path, change, message):
    copy = broken(folder, tmp_path, change)
    for to in ("diffusers", "native"):
        with pytest.raises(ValueError, match=message):
            run(copy, tmp_path / "out", f"--to={to}")
    assert [f.name for f in tmp_path.iterdir()] == ["broken"]


def test_bad_pth_files_are_named(folder, tmp_path):
    original = run(folder, tmp_path / "native", "--to=native")
    file = original / "Wan2.1_VAE.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"encoder.conv1.bias": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"encoder\.conv1\.bias of .*VAE\.pth is \(3,\); expected"):
        run(original, tmp_path / "out")
    torch.save(state | {"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"tensor epoch of .*VAE\.pth is a int, not a tensor"):
        run(original, tmp_path / "out")
    os.truncate(file, 1000)
    with pytest.raises(ValueError, match=r"VAE\.pth could not be read, it may be cut off"):
        run(original, tmp_path / "out")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(ValueError, match=r"VAE\.pth is a Git LFS pointer"):
        run(original, tmp_path / "out")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"VAE\.pth is missing"):
        run(original, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["native"]


def test_pth_files_without_torch_say_what_to_install(folder, tmp_path, monkeypatch):
    original = run(folder, tmp_path / "native", "--to=native")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"Wan2\.1_VAE\.pth .* torch is not installed: pip ins"):
        run(original, tmp_path / "out")
    with pytest.raises(ImportError, match="torch is not installed"):
        run(folder, tmp_path / "out", "--to=native")
    assert [f.name for f in tmp_path.iterdir()] == ["native"]


def test_training_from_an_original_folder_says_how_to_convert_it(folder, tmp_path):
    original = run(folder, tmp_path / "native", "--to=native")
    with pytest.raises(FileNotFoundError, match=r"evoid_jax\.convert .*native NEW --to=diffusers"):
        rollout.load(original)
