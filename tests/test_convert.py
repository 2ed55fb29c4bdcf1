"""Adapters in every format, merged or not, as diffusers and PEFT have them; the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import conversions
import jax
import numpy as np
import pytest
import tiny_pipeline
from conversions import ALPHA, RANK, assert_same_files, files, held, run, trained, wan_config
from diffusers import WanVACEPipeline
from safetensors import safe_open
from safetensors.numpy import load_file

from configs import evoid
from evoid_jax import checkpoint, config, evolve
from evoid_jax.models import adapters, lora, wan, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return conversions.base(tmp_path_factory.mktemp("base") / "tiny-vace")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("adapter") / "pytorch_lora_weights.safetensors"
    return conversions.adapter(folder, file)


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
    assert header["rank"] == header["alpha"] == "4" and header["format"] == "pt"
    text = (merged / "README.md").read_text()
    assert text.startswith('---\nbase_model: "tiny-vace"\n') and "| step | 7 |" in text
    assert isinstance(tiny_pipeline.load(merged), WanVACEPipeline)


def test_a_merge_is_rounded_once(folder, adapter, tmp_path):
    """Merge in float32, then one rounding; into a file that was bfloat16, and by --dtype."""
    base = run(folder, tmp_path / "half", "--dtype=bfloat16")
    own = held(run(base, tmp_path / "own", f"--lora={adapter}") / "transformer")
    asked = run(folder, tmp_path / "asked", f"--lora={adapter}", "--dtype=bfloat16")
    key = "blocks.1.attn2.to_out.0"
    layer = adapters.read(adapter).layers[key]
    for source, got in ((base, own), (folder, held(asked / "transformer"))):
        kernel = held(source / "transformer")[f"{key}.weight"].astype(np.float32)
        want = (kernel + layer.b_OR @ layer.a_RI).astype("bfloat16")
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
    for key, x in adapters.to_comfyui(adapters.read(adapter)).items():
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
    b_OR = adapters.read(file).layers["blocks.0.attn1.to_q"].b_OR
    np.testing.assert_array_equal(b_OR, tensors[b] * np.float32(scale))


def test_half_precision_adapters_are_written_and_read(folder, adapter, tmp_path):
    file = run(adapter, tmp_path / "half.safetensors", "--dtype=bfloat16")
    exact, half = load_file(adapter), adapters.to_diffusers(adapters.read(file))
    key = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    assert weights.read_header(file)[0][key].dtype == np.dtype("bfloat16")
    np.testing.assert_array_equal(half[key], exact[key].astype("bfloat16").astype(np.float32))
    load_adapter(folder, file)


def test_folders_of_peft_and_diffusers_are_adapters_too(folder, adapter, tmp_path):
    """Alpha is in adapter_config.json there, and twice the rank."""
    theirs = tmp_path / "peft"
    tensors = {
        key.replace("transformer.", "base_model.model."): x for key, x in load_file(adapter).items()
    }
    weights.write_tensors(theirs / "adapter_model.safetensors", tensors)
    (theirs / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * RANK}))
    ours, half = load_file(run(theirs, tmp_path / "x", "--to=lora")), load_file(adapter)
    for key, x in ours.items():
        np.testing.assert_array_equal(x, half[key] * (2 if ".lora_B." in key else 1))
    assert (
        run(tmp_path / "x", tmp_path / "y").read_bytes()
        == (tmp_path / "x" / "pytorch_lora_weights.safetensors").read_bytes()
    )
    merged = run(folder, tmp_path / "merged", f"--lora={theirs}")
    assert_same_files(merged, run(folder, tmp_path / "again", f"--lora={tmp_path / 'x'}"))


def test_all_parts_of_a_distilled_adapter_are_merged(folder, tmp_path):
    """Kernels, a convolution, the head, biases, norms and the modulation; nothing else moves."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    theirs = "diffusion_model."
    parts = {
        "head.head.lora_down.weight": draw(RANK, 64),
        "head.head.lora_up.weight": draw(64, RANK),
        "head.head.alpha": np.array(2.0, np.float32),
        "patch_embedding.lora_down.weight": draw(RANK, 16, 1, 2, 2),
        "patch_embedding.lora_up.weight": draw(64, RANK, 1, 1, 1),
        "time_embedding.0.diff_b": draw(64),
        "blocks.1.self_attn.q.diff_b": draw(64),
        "blocks.1.norm3.diff": draw(64),
        "blocks.2.cross_attn.norm_k.diff": draw(64),
        "blocks.0.diff_m": draw(1, 6, 64),
        "blocks.0.norm3.diff": np.zeros(64, np.float32),
    }
    file = tmp_path / "distilled.safetensors"
    weights.write_tensors(file, {theirs + key: x for key, x in parts.items()})
    ours = held(run(folder, tmp_path / "merged", f"--lora={file}") / "transformer")
    base = held(folder / "transformer")
    head = parts["head.head.lora_up.weight"] @ parts["head.head.lora_down.weight"] * (2 / RANK)
    up = parts["patch_embedding.lora_up.weight"].reshape(64, RANK)
    changes = {
        "proj_out.weight": head,
        "patch_embedding.weight": np.einsum(
            "or,rcthw->octhw", up, parts["patch_embedding.lora_down.weight"]
        ),
        "condition_embedder.time_embedder.linear_1.bias": parts["time_embedding.0.diff_b"],
        "blocks.1.attn1.to_q.bias": parts["blocks.1.self_attn.q.diff_b"],
        "blocks.1.norm2.weight": parts["blocks.1.norm3.diff"],
        "blocks.2.attn2.norm_k.weight": parts["blocks.2.cross_attn.norm_k.diff"],
        "blocks.0.scale_shift_table": parts["blocks.0.diff_m"],
    }
    for key, x in base.items():
        if key in changes:
            np.testing.assert_allclose(ours[key], x + changes[key], atol=1e-5)
            assert np.abs(changes[key]).max() > 0.1
        else:
            np.testing.assert_array_equal(ours[key], x)
    with pytest.raises(ValueError, match=r"cannot hold .*norm2\.weight.*write --to=comfyui"):
        run(file, tmp_path / "x.safetensors", "--to=lora")
    back = run(file, tmp_path / "comfy.safetensors", "--to=comfyui")
    assert_same_files(tmp_path / "merged", run(folder, tmp_path / "again", f"--lora={back}"))


# --- runs


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run's folder after 7 steps, evolving and stable apart."""
    workdir = tmp_path_factory.mktemp("run")
    values = evoid.get_config("tiny")
    start = {"init": "gone.safetensors"}  # what it held is in the checkpoints
    values.update({"model": str(folder), "lora": {"rank": RANK, "alpha": ALPHA} | start})
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
    tree = {"evolving": state.evolving, "stable": state.stable}[role]
    lora.save(tmp_path / "want.safetensors", tree, scale=ALPHA / RANK)  # as the run exports it
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


def test_an_adapter_for_another_size_is_named(folder, tmp_path):
    small = wan.WanConfig(2, 16, 3, 96, text_dim=32, freq_dim=64, vace_layers=(0, 2))
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(small)))
    file = tmp_path / "small.safetensors"
    lora.save(file, lora.init(jax.random.key(0), shapes, small, RANK), scale=1.0)
    for to in ("diffusers", "native", "lora", "comfyui"):
        with pytest.raises(ValueError, match=r"small\.safetensors.*attn1\.to_.* from 64 to 64"):
            run(folder, tmp_path / "out", f"--lora={file}", f"--to={to}")
    assert [f.name for f in tmp_path.iterdir()] == ["small.safetensors"]


def test_vace_blocks_go_to_comfyui_by_its_own_names(folder, tmp_path):
    file = tmp_path / "vace.safetensors"
    lora.save(file, trained(folder, "main+vace"), scale=ALPHA / RANK)
    comfy = run(file, tmp_path / "comfy.safetensors", "--to=comfyui")
    held_there = load_file(comfy)
    for name in ("self_attn.q", "cross_attn.o", "ffn.0"):
        assert held_there[f"diffusion_model.vace_blocks.1.{name}.alpha"] == RANK
    back = run(comfy, tmp_path / "back.safetensors", "--to=lora")
    assert back.read_bytes() == file.read_bytes()
    straight = run(folder, tmp_path / "straight", f"--lora={file}")
    assert_same_files(straight, run(folder, tmp_path / "by_comfyui", f"--lora={comfy}"))


def test_wrong_requests_are_refused(folder, adapter, workdir, tmp_path):
    cases = [
        ([folder, folder], FileExistsError, "exists already"),
        ([tmp_path / "none", tmp_path / "x"], FileNotFoundError, "none does not exist; expected a"),
        (
            [__file__, tmp_path / "x"],
            ValueError,
            "is no .safetensors file; expected a model's fold",
        ),
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


def test_what_cannot_come_of_it_is_told_before_anything_is_read(folder, tmp_path):
    (tmp_path / "file").touch()
    for dst in (tmp_path / "file" / "new", tmp_path / "file" / "new.safetensors"):
        with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
            run(folder, dst)
    with pytest.raises(FileExistsError, match="file exists already"):
        run(folder, tmp_path / "file")
    with pytest.raises(ValueError, match="--which=stable goes with a run"):
        run(folder, tmp_path / "new", "--which=stable")
    stopped = tmp_path / "stopped"  # before its first checkpoint
    stopped.mkdir()
    (stopped / "run.json").write_text('{"starts": []}')
    cfg = evoid.get_config("tiny")
    (stopped / "config.json").write_text(config.dumps(config.from_dict(cfg.to_dict())))
    with pytest.raises(FileNotFoundError, match="stopped before its first"):
        run(stopped, tmp_path / "new")
