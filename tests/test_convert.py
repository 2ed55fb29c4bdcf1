"""Checkpoints in every format, out and back: bytes, parity with diffusers and PEFT, and errors."""

import errno
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_pipeline
import torch
from absl import flags
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
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from transformers import UMT5EncoderModel

from configs import evoid
from evoid_jax import checkpoint, config, convert, evolve, rollout
from evoid_jax.models import lora, native, pipeline, pth, vae, wan, weights

RANK, ALPHA = 4, 6.0
MODEL = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline as diffusers writes it, its transformer in shards."""
    folder = tiny_pipeline.build(tmp_path_factory.mktemp("base") / "tiny-vace")
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    (folder / "transformer" / MODEL).unlink()
    model.save_pretrained(folder / "transformer", max_shard_size="400KB")
    (folder / "README.md").write_text("the base's own\n")
    return folder


def wan_config(folder) -> wan.WanConfig:
    return wan.WanConfig.from_json(weights.read_config(folder / "transformer"))


def trained(folder, targets="main", seed=0):
    """An adapter as training leaves it: b is not zero."""
    c = wan_config(folder)
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(c)))
    key = jax.random.key(seed)
    modules = (*lora.ATTENTION, "ffn_up", "ffn_down")
    fresh = lora.init(key, shapes, c, RANK, targets, modules)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), fresh)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """The file that a run leaves."""
    file = tmp_path_factory.mktemp("adapter") / "pytorch_lora_weights.safetensors"
    lora.save(file, trained(folder), ALPHA, {"base_model": "tiny-vace", "step": "7"})
    return file


def run(*arguments) -> Path:
    """Convert as the command line does, in this process."""
    values = flags.FlagValues()
    convert.define_flags(values)
    src, dst = values(["convert", *map(str, arguments)])[1:]
    return convert.convert(Path(src), Path(dst), values)


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def assert_same_files(a: Path, b: Path):
    assert files(a) == files(b)
    assert not filecmp.cmpfiles(a, b, files(a), shallow=False)[1]


def held(folder: Path) -> dict[str, np.ndarray]:
    return weights.read_tensors(folder)


# --- whole pipelines


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


# --- adapters


def load_adapter(folder: Path, file: Path):
    """Return diffusers' pipeline with the adapter on, and only it."""
    pipe = tiny_pipeline.load(folder)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe


def fused(folder: Path, file: Path) -> dict[str, np.ndarray]:
    """Return what diffusers and PEFT make of a base with an adapter merged."""
    pipe = load_adapter(folder, file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return {key: x.numpy() for key, x in pipe.transformer.state_dict().items()}


def test_a_merged_folder_is_what_peft_merges_and_the_rest_keeps_its_bytes(
    folder, adapter, tmp_path
):
    merged = run(folder, tmp_path / "merged", f"--lora={adapter}")
    ours, base, want = held(merged / "transformer"), held(folder / "transformer"), None
    want = fused(folder, adapter)
    touched = {key for key in base if not np.array_equal(ours[key], base[key])}
    assert len(touched) == 3 * 10  # layers, of 8 attention kernels and 2 of the feed-forward
    for key, x in want.items():
        error = np.linalg.norm(ours[key] - x) / np.linalg.norm(x)
        assert error <= 1e-6 if key in touched else error == 0
    for name in ("vae", "text_encoder"):
        assert_same_files(folder / name, merged / name)
    with safe_open(next((merged / "transformer").glob("*.safetensors")), "numpy") as file:
        header = file.metadata()
    assert header["base_model"] == "tiny-vace" and header["step"] == "7"
    assert header["rank"] == "4" and header["alpha"] == "6" and header["format"] == "pt"
    text = (merged / "README.md").read_text()
    assert text.startswith('---\nbase_model: "tiny-vace"\n') and "| step | 7 |" in text
    assert isinstance(tiny_pipeline.load(merged), WanVACEPipeline)


def test_a_merge_is_rounded_once(folder, adapter, tmp_path):
    """Merge in float32, then one rounding; into a file that was bfloat16, and by --dtype."""
    base = run(folder, tmp_path / "half", "--dtype=bfloat16")
    own = held(run(base, tmp_path / "own", f"--lora={adapter}") / "transformer")
    asked = run(folder, tmp_path / "asked", f"--lora={adapter}", "--dtype=bfloat16")
    delta, _ = lora.read(adapter)
    key = "blocks.1.attn2.to_out.0"
    a, b = (delta[f"transformer.{key}.lora_{side}.weight"] for side in "AB")
    for source, got in ((base, own), (folder, held(asked / "transformer"))):
        kernel = held(source / "transformer")[f"{key}.weight"].astype(np.float32)
        want = (kernel + b @ a).astype("bfloat16")
        np.testing.assert_array_equal(got[f"{key}.weight"], want)


def test_a_native_merge_is_the_diffusers_merge(folder, adapter, tmp_path):
    merged = run(folder, tmp_path / "merged", f"--lora={adapter}")
    original = run(folder, tmp_path / "native", "--to=native")
    again = run(original, tmp_path / "again", "--to=native", f"--lora={adapter}")
    assert (again / "README.md").read_text().startswith("---")
    ours = held(run(again, tmp_path / "back") / "transformer")
    for key, x in held(merged / "transformer").items():
        np.testing.assert_array_equal(ours[key], x)


def test_comfyui_files_give_diffusers_the_same_adapter(folder, adapter, tmp_path):
    file = run(adapter, tmp_path / "comfy.safetensors", "--to=comfyui")
    tensors = load_file(file)
    assert tensors["diffusion_model.blocks.2.cross_attn.o.lora_A.weight"].shape == (RANK, 64)
    assert tensors["diffusion_model.blocks.0.ffn.2.alpha"] == RANK
    want = fused(folder, adapter)
    for key, x in fused(folder, file).items():
        np.testing.assert_array_equal(x, want[key])


def test_comfyui_and_back_is_the_same_file(adapter, tmp_path):
    comfy = run(adapter, tmp_path / "comfy", "--to=comfyui")
    assert comfy.name == "comfyui_lora.safetensors"
    back = run(comfy, tmp_path / "back.safetensors", "--to=lora")
    assert back.read_bytes() == adapter.read_bytes()


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_foreign_comfyui_files_are_read_as_diffusers_reads_them(
    folder, adapter, tmp_path, names, alpha
):
    tensors = {}
    for key, x in lora.to_comfyui(lora.read(adapter)[0]).items():
        if not key.endswith(".alpha"):
            tensors[key.replace("lora_A", names[0]).replace("lora_B", names[1])] = x
        elif alpha:
            tensors[key] = np.array(alpha, np.float32)
    file = tmp_path / "foreign.safetensors"
    weights.write_tensors(file, tensors)
    merged = run(folder, tmp_path / "merged", f"--lora={file}")
    ours = held(merged / "transformer")
    for key, x in fused(folder, file).items():
        assert np.linalg.norm(ours[key] - x) <= 1e-6 * np.linalg.norm(x)
    scale = alpha / RANK if alpha else 1.0
    b = "diffusion_model.blocks.0.self_attn.q." + names[1] + ".weight"
    read = lora.read(file)[0]["transformer.blocks.0.attn1.to_q.lora_B.weight"]
    np.testing.assert_array_equal(read, tensors[b] * np.float32(scale))


def test_half_precision_adapters_are_written_and_read(folder, adapter, tmp_path):
    file = run(adapter, tmp_path / "half.safetensors", "--dtype=bfloat16")
    exact, half = lora.read(adapter)[0], lora.read(file)[0]
    key = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    assert weights.read_header(file)[0][key].dtype == np.dtype("bfloat16")
    np.testing.assert_array_equal(half[key], exact[key].astype("bfloat16").astype(np.float32))
    load_adapter(folder, file)


# --- runs


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run's folder after 7 steps, evolving and stable apart."""
    workdir = tmp_path_factory.mktemp("run")
    values = evoid.get_config("tiny")
    values.update({"model": str(folder), "lora": {"rank": RANK, "alpha": ALPHA}})
    cfg = config.from_dict(values.to_dict())
    text = json.dumps(config.to_dict(cfg) | {"digest": config.digest(cfg)})
    (workdir / "config.json").write_text(text)
    c = wan_config(folder)
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(c)))
    state = evolve.init(cfg, shapes, c)
    move = lambda tree, by: jax.tree.map(lambda x: x + by, tree)
    state = state._replace(step=state.step + 7, evolving=move(state.evolving, 0.02))
    state = state._replace(stable=move(state.stable, 0.01))
    saved = checkpoint.open_folder(workdir / "checkpoints", 2)
    checkpoint.save(saved, 7, state, {})
    checkpoint.close(saved)
    return workdir, cfg, state


@pytest.mark.parametrize("role", ["evolving", "stable"])
def test_a_run_gives_its_adapter(workdir, folder, tmp_path, role):
    path, cfg, state = workdir
    before = files(path)
    file = run(path, tmp_path, f"--which={role}")
    assert file == tmp_path / "pytorch_lora_weights.safetensors"
    lora.save(tmp_path / "want.safetensors", getattr(state, role), ALPHA)
    want = load_file(tmp_path / "want.safetensors")
    for key, x in load_file(file).items():
        np.testing.assert_array_equal(x, want.pop(key))
    assert not want
    header = weights.read_header(file)[1]
    assert header["step"] == "7" and header["config_digest"] == config.digest(cfg)
    assert header["role"] == role and header["base_model"] == folder.name
    assert files(path) == before  # a run may be at work in there


def test_a_run_is_merged_into_its_base(workdir, folder, tmp_path):
    file = run(workdir[0], tmp_path / "a.safetensors")
    straight = run(workdir[0], tmp_path / "straight", "--to=diffusers")
    by_hand = run(folder, tmp_path / "by_hand", f"--lora={file}")
    assert_same_files(straight, by_hand)


# --- the teacher


def test_compare_finds_what_differs(folder, tmp_path):
    vace = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    about = {k: v for k, v in vace.config.items() if not k.startswith(("vace", "_"))}
    t2v = WanTransformer3DModel.from_config(about)
    state = {key: x for key, x in vace.state_dict().items() if "vace" not in key}
    t2v.load_state_dict(state, strict=True)
    t2v.save_pretrained(tmp_path / "same")
    found = pipeline.compare(tmp_path / "same", folder)
    assert found.keys() == state.keys() and set(found.values()) == {"equal"}
    original = run(folder, tmp_path / "native", "--to=native")
    assert pipeline.compare(tmp_path / "same", original) == found
    with torch.no_grad():
        t2v.proj_out.bias[0] = torch.nextafter(t2v.proj_out.bias[0], torch.tensor(9.0))
    t2v.save_pretrained(tmp_path / "other")
    found = pipeline.compare(tmp_path / "other", folder)
    assert {k: v for k, v in found.items() if v != "equal"} == {"proj_out.bias": "values differ"}
    t2v.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert set(pipeline.compare(tmp_path / "half", folder).values()) == {"dtype bfloat16, float32"}


# --- the command line, and what can go wrong


def command(*arguments, before="true"):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    line = ["bash", "-c", f'{before}; exec "$@"', "--", sys.executable, "-m", "evoid_jax.convert"]
    line += map(str, arguments)
    return subprocess.run(line, capture_output=True, text=True, timeout=600, env=env)


def test_the_command_line_converts_and_compares(folder, tmp_path):
    done = command(folder, tmp_path / "native", "--to=native")
    assert done.returncode == 0 and done.stdout == f"wrote {tmp_path / 'native'}\n", done.stderr
    done = command("--compare", folder, tmp_path / "native")
    count = len([key for key in held(folder / "transformer") if "vace" not in key])
    assert done.returncode == 0
    assert done.stdout.startswith(f"{count} of {count} tensors of ")


def test_a_disk_that_fills_up_leaves_nothing(folder, tmp_path):
    """The kernel refuses every file past 64 KB."""
    for to in ("diffusers", "native"):
        done = command(folder, tmp_path / "out", f"--to={to}", before="ulimit -f 64")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "File too large: tensor " in done.stderr and ".safetensors" in done.stderr
        assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_the_start(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"0\.0 GB are needed, 0\.0 are free") as found:
        run(folder, tmp_path / "out", "--to=native")
    assert found.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_an_adapter_for_another_size_is_named(folder, tmp_path):
    small = wan.WanConfig(2, 16, 3, 96, text_dim=32, freq_dim=64, vace_layers=(0, 2))
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(small)))
    file = tmp_path / "small.safetensors"
    lora.save(file, lora.init(jax.random.key(0), shapes, small, RANK), RANK)
    for to in ("diffusers", "native", "lora", "comfyui"):
        with pytest.raises(ValueError, match=r"small\.safetensors.*attn1\.to_.*width 64"):
            run(folder, tmp_path / "out", f"--lora={file}", f"--to={to}")
    assert [f.name for f in tmp_path.iterdir()] == ["small.safetensors"]


def test_vace_blocks_cannot_go_to_comfyui(folder, tmp_path):
    file = tmp_path / "vace.safetensors"
    lora.save(file, trained(folder, "main+vace"), ALPHA)
    with pytest.raises(ValueError, match=r"transformer\.vace_blocks\..* cannot hold an adapter"):
        run(file, tmp_path / "out.safetensors", "--to=comfyui")
    run(folder, tmp_path / "merged", f"--lora={file}")  # and merge all the same
    assert sorted(f.name for f in tmp_path.iterdir()) == ["merged", "vace.safetensors"]


def broken(folder, tmp_path, change) -> Path:
    """A copy of the pipeline with one tensor of one shard changed."""
    copy = shutil.copytree(folder, tmp_path / "broken")
    file = next(f for f in (copy / "transformer").glob("*.safetensors") if KEY in load_file(f))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return copy


KEY = "blocks.1.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), f"places {KEY} in"),
        (lambda t: t.update({KEY: t[KEY][:, :8].copy()}), r"is \(64, 8\); expected \(64, 64\)"),
        (lambda t: t.update({"blocks.1.x": t[KEY]}), r"blocks\.1\.x of .* belongs to no weight"),
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


def test_wrong_requests_are_refused(folder, adapter, workdir, tmp_path):
    cases = [
        ([folder, folder], FileExistsError, "exists already"),
        ([tmp_path / "none", tmp_path / "x"], FileNotFoundError, "none does not exist"),
        ([folder, tmp_path / "x", "--to=lora"], ValueError, "give --lora=FILE"),
        ([adapter, tmp_path / "x", "--to=diffusers"], ValueError, "is an adapter; merge it with"),
        ([workdir[0], tmp_path / "x", f"--lora={adapter}"], ValueError, "an adapter of its own"),
        ([adapter, adapter], FileExistsError, "exists already"),
        ([tmp_path, tmp_path / "x"], FileNotFoundError, r"model_index\.json is missing"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            run(*arguments)
    assert not list(tmp_path.iterdir())


def test_training_from_an_original_folder_says_how_to_convert_it(folder, tmp_path):
    original = run(folder, tmp_path / "native", "--to=native")
    with pytest.raises(FileNotFoundError, match=r"evoid_jax\.convert .*native NEW --to=diffusers"):
        rollout.load(original)
