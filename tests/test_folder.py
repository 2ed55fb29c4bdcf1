"""A model's folder: each part and setting is used or refused by name, whoever opens it."""

import json
import shutil
from pathlib import Path

import conversions
import numpy as np
import pytest
from absl import flags

from evoid_jax import generate, media, rollout
from evoid_jax.models import folder, pipeline, scheduler, umt5, weights

TINY = generate.TINY
TWO = {"transformer_2": ["diffusers", "WanVACETransformer3DModel"], "boundary_ratio": 0.875}
INDEX, WAN = "model_index.json", "transformer/config.json"
VAE, TEXT, SCHEDULER = "vae/config.json", "text_encoder/config.json", scheduler.FILE


@pytest.fixture
def model(tmp_path) -> Path:
    return shutil.copytree(TINY, tmp_path / "tiny-vace")


def change(file: Path, **entries) -> None:
    """Set keys of a JSON file; ... removes one."""
    content = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: x for key, x in content.items() if x is not ...}))


def vocabulary(folder: Path, size: int) -> None:
    """Give the folder a tokenizer of about so many ids, as another model has."""
    content = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    pieces = content["model"]["vocab"]
    pieces += [[f"piece {i}", -20.0] for i in range(len(pieces), size)]
    content["model"]["vocab"] = pieces[:size]
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))


def opened_by_generate(model: Path):
    media.write_image(model.parent / "face.png", np.full((16, 16, 3), 128, np.uint8))
    values = flags.FlagValues()
    generate.define_flags(values)
    photo, video = f"--image={model.parent}/face.png", f"--output={model.parent}/out.mp4"
    values(["generate", f"--model={model}", photo, video, "--prompt=a woman nods"])
    return generate.run(values)


def converted(model: Path):
    return conversions.run(model, model.parent / "out")


def compared(model: Path):
    return pipeline.open_transformer(model / "transformer")


@pytest.mark.parametrize("opened", [opened_by_generate, rollout.load, converted, compared])
def test_two_experts_are_refused_whoever_opens_the_folder(model, opened):
    change(model / INDEX, **TWO)
    with pytest.raises(ValueError, match=r"part that is not supported: transformer_2 \(a model of"):
        opened(model)
    change(model / INDEX, transformer_2=[None, None])
    with pytest.raises(ValueError, match=r"index\.json sets boundary_ratio to 0\.875: a model of"):
        opened(model)


@pytest.mark.parametrize("opened", [opened_by_generate, rollout.load, converted])
def test_a_tokenizer_of_another_model_is_refused_whoever_opens_the_folder(model, opened):
    vocabulary(model, 700)
    with pytest.raises(ValueError, match="700 token ids, the text encoder's vocab_size is 663"):
        opened(model)
    assert not (model.parent / "out").exists() and not (model.parent / "out.mp4").exists()


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        (INDEX, {"expand_timesteps": True}, "sets expand_timesteps to True: Wan2.2-TI2V-5B"),
        (INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, r"image_encoder \(a model"),
        (INDEX, {"controlnet": ["diffusers", "X"]}, "not supported: controlnet;"),
        (INDEX, {"force_zeros": True}, "has force_zeros True, which is not known here"),
        (INDEX, {"vae": [None, None]}, "vae is of class None; expected AutoencoderKLWan"),
        (INDEX, {"vae": ...}, "vae is of class None; expected AutoencoderKLWan"),
        (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "vae is of class AutoencoderKL;"),
        (INDEX, {"tokenizer": ["transformers", "CLIPTokenizer"]}, "tokenizer is of class CLIP"),
        (INDEX, {"transformer": ["diffusers", "WanTransformer3DModel"]}, "expected WanVACETrans"),
        (INDEX, {"_class_name": "WanImageToVideoPipeline"}, "is of a WanImageToVideoPipeline;"),
        (INDEX, {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "two models"),
        (WAN, {"qk_norm": "rms_norm"}, "config.json: qk_norm 'rms_norm' is not supported"),
        (WAN, {"qk_norm": None}, "config.json: qk_norm None is not supported"),
        (WAN, {"added_kv_proj_dim": 5120}, "added_kv_proj_dim 5120 is not supported"),
        (WAN, {"image_dim": 1280}, "image_dim 1280 is not supported; expected None"),
        (WAN, {"pos_embed_seq_len": 514}, "pos_embed_seq_len 514 is not supported"),
        (WAN, {"cross_attn_norm": False}, "cross_attn_norm False is not supported"),
        (
            WAN,
            {"use_moe": False},
            r"transformer/config\.json has use_moe False, which is not known",
        ),
        (WAN, {"quantization_config": {}}, "quantised weights are not supported"),
        (WAN, {"_class_name": "WanAnimateTransformer3DModel"}, "of a WanAnimateTransformer3DModel"),
        (WAN, {"num_layers": "6"}, "num_layers is '6'; expected a whole number from 1"),
        (WAN, {"num_layers": True}, "num_layers is True; expected a whole number from 1"),
        (WAN, {"eps": float("nan")}, "eps is nan; expected a number above 0"),
        (WAN, {"vace_layers": 3}, "vace_layers is 3; expected a list of whole numbers"),
        (WAN, {"patch_size": [1, 2, 4]}, "expected square patches"),
        (VAE, {"is_residual": True}, r"vae/config\.json: is_residual True is not supported"),
        (VAE, {"patch_size": 2}, "patch_size 2 is not supported; expected None or 1"),
        (VAE, {"scale_factor_spatial": 16}, "scale_factor_spatial is 16, but temperal_downsample"),
        (VAE, {"_class_name": "AutoencoderKLQwenImage"}, "of class AutoencoderKLQwenImage"),
        (VAE, {"latents_std": [0.0] * 16}, "latents_std holds 0.0; expected all above 0"),
        (VAE, {"latents_mean": [0.0] * 48}, "latents_mean and latents_std have 48 and 16 entries"),
        (TEXT, {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu' is not supported"),
        (TEXT, {"model_type": "t5"}, r"text_encoder/config\.json: model_type 't5'"),
        (TEXT, {"architectures": ["UMT5Model"]}, r"architectures \['UMT5Model'\]"),
        (TEXT, {"is_gated_act": False}, "is_gated_act False is not supported"),
        (TEXT, {"d_ff": ...}, r"text_encoder/config\.json lacks d_ff"),
        (TEXT, {"layer_scale": 0.1}, "has layer_scale 0.1, which is not known"),
        (SCHEDULER, {"use_karras_sigmas": True}, "has use_karras_sigmas True; only False"),
        (SCHEDULER, {"flow_shift": 0}, "flow_shift is 0; expected a number above 0"),
        (SCHEDULER, {"flow_shift": "3"}, "flow_shift is '3'; expected a number above 0"),
        (SCHEDULER, {"afs": True}, r"scheduler_config\.json has afs True, which is not known"),
    ],
)
def test_what_is_not_here_is_refused_by_file_and_key(model, file, entries, message):
    change(model / file, **entries)
    with pytest.raises(ValueError, match=message):
        pipeline.open_diffusers(model)


def test_what_changes_nothing_is_passed_over(model):
    """Files as diffusers, transformers and the hub write them, Wan2.1's own text encoder among
    them, say more than we read."""
    change(model / INDEX, _diffusers_version="0.34.0.dev0", _name_or_path="x", boundary_ratio=None)
    change(model / INDEX, transformer_2=[None, None], expand_timesteps=False)
    change(model / WAN, _commit_hash="ab", _diffusers_version="9", new_option=None)
    change(model / VAE, _name_or_path="/home/x", clip_output=False, dropout=0.1)
    released = {"scalable_attention": True, "tie_word_embeddings": False, "output_past": True}
    released |= {"dense_act_fn": "gelu_new", "is_gated_act": True, "torch_dtype": "bfloat16"}
    released |= {"_name_or_path": "x", "tokenizer_class": "T5Tokenizer", "initializer_factor": 1.0}
    change(model / TEXT, **released, transformers_version="4.48.0", classifier_dropout=0.0)
    change(model / SCHEDULER, beta_start=0.0001, timestep_spacing="linspace", sigma_max=None)
    for name in (".DS_Store", "._config.json", "._diffusion_pytorch_model.safetensors"):
        (model / "transformer" / name).write_bytes(b"\x00\x05\x16\x07")
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / VAE).with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    opened = pipeline.open_diffusers(model)
    plain = pipeline.open_diffusers(TINY).pipeline.parts
    assert all(part.config == plain[name].config for name, part in opened.pipeline.parts.items())
    assert not [
        name for name in opened.pipeline.files if "._" in name or "DS_S" in name or "fp16" in name
    ]


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (WAN, "in_channels", 48, "in_channels is 48, but the vae's z_dim is 16"),
        (WAN, "out_channels", 32, "out_channels is 32, but the vae's z_dim is 16"),
        (WAN, "text_dim", 4096, "text_dim is 4096, but the text_encoder's d_model is 64"),
        (WAN, "vace_in_channels", 100, "vace_in_channels is 100, but the control .* has 96"),
    ],
)
def test_parts_of_two_models_are_named(file, key, value, message):
    parts = dict(pipeline.open_diffusers(TINY).pipeline.parts)
    config = json.loads((TINY / file).read_text()) | {key: value}
    parts["transformer"] = pipeline.part("transformer", config)
    with pytest.raises(ValueError, match=message):
        pipeline.check_fit(parts, "folder")


def test_channels_out_are_those_in_where_null():
    config = json.loads((TINY / WAN).read_text()) | {"out_channels": None}
    assert pipeline.part("transformer", config).config.out_channels == 16


@pytest.mark.parametrize(
    ("change_text", "message"),
    [
        ({"vocab_size": 600}, "663 token ids, the text encoder's vocab_size is 600"),
        ({"vocab_size": 256384}, "663 token ids, the text encoder's vocab_size is 256384"),
        ({"eos_token_id": 2}, "eos token id 1, text_encoder/config.json says 2"),
        ({"pad_token_id": 5}, "pad token id 0, text_encoder/config.json says 5"),
    ],
)
def test_tokenizers_of_other_models_are_told_by_their_ids(change_text, message):
    tokenizer = umt5.load_tokenizer(TINY / "tokenizer")
    config = json.loads((TINY / TEXT).read_text())
    folder.check_tokenizer(tokenizer, TINY, config)
    with pytest.raises(ValueError, match=message):
        folder.check_tokenizer(tokenizer, TINY, config | change_text)


def test_a_tokenizer_that_ends_no_prompt_is_refused(model):
    change(model / "tokenizer/tokenizer.json", post_processor=None)
    with pytest.raises(ValueError, match=r"empty prompt into ids \[\]; expected .* \[1\]"):
        pipeline.open_diffusers(model)


def test_two_embeddings_that_differ_are_refused(model):
    tensors = {key: np.array(x) for key, x in conversions.held(model / "text_encoder").items()}
    file, copy = model / "text_encoder" / "model.safetensors", tensors["shared.weight"].copy()
    weights.write_tensors(file, tensors | {"encoder.embed_tokens.weight": copy})
    assert pipeline.open_diffusers(model)
    copy[3, 5] += 1
    weights.write_tensors(file, tensors | {"encoder.embed_tokens.weight": copy})
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens\.weight of .* here they are two"):
        pipeline.open_diffusers(model)


def test_a_model_beside_the_named_parts_is_not_passed_over(model):
    shutil.copytree(model / "transformer", model / "transformer_2")
    with pytest.raises(ValueError, match=r"transformer_2 is a model that model_index\.json does"):
        pipeline.open_diffusers(model)


# --- What people give in place of a folder.


def headed(length: int, rest: bytes) -> bytes:
    return length.to_bytes(8, "little") + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (headed(2, b"{}"), "is a single file, as ComfyUI uses them; expected the folder"),
        (b"GGUF\x03\x00", "is a GGUF file; quantised weights are not supported"),
        (b"PK\x03\x04", "is a zip archive, as PyTorch's"),
        (b"\x80\x02}q", "is a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"x", "is a file; expected the folder"),
    ],
)
def test_a_single_file_is_no_model(tmp_path, content, message):
    file = tmp_path / "wan2.1_vace_14B_fp16.safetensors"
    file.write_bytes(content)
    with pytest.raises(NotADirectoryError, match=message):
        rollout.load(file)


def test_other_places_of_a_model_say_where_it_is(model):
    with pytest.raises(FileNotFoundError, match="transformer is one part of the pipeline .*vace;"):
        rollout.load(model / "transformer")
    with pytest.raises(FileNotFoundError, match="/no/such/folder does not exist; expected the"):
        rollout.load("/no/such/folder")
    cache = model.parent / "models--Org--Name"
    (cache / "snapshots" / "0a1b").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="the model is in .*snapshots/0a1b"):
        rollout.load(cache)
    (model.parent / "a").mkdir()
    (model.parent / "a" / "wan_vace.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"wan_vace\.safetensors alone is no pipeline"):
        rollout.load(model.parent / "a")
    (model.parent / "b" / "high_noise_model").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="a model of two experts, as Wan2.2 is, which is"):
        rollout.load(model.parent / "b")


@pytest.mark.parametrize(
    ("name", "spoil", "error", "message"),
    [
        ("vae", shutil.rmtree, FileNotFoundError, "vae is no folder, but model_index"),
        ("tokenizer/tokenizer.json", Path.unlink, FileNotFoundError, "expected a fast tokenizer"),
        (SCHEDULER, Path.unlink, FileNotFoundError, r"scheduler_config\.json is missing"),
        (WAN, lambda f: f.write_text("[]"), ValueError, r"config\.json holds a list"),
        (VAE, lambda f: f.write_text("{"), ValueError, r"vae/config\.json is not JSON: .* line 1"),
        (
            INDEX,
            lambda f: f.write_bytes(b"\xef\xbb\xbf{}"),
            ValueError,
            "index.json is text with a",
        ),
        (
            "tokenizer/tokenizer.json",
            lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
            ValueError,
            r"tokenizer\.json is a Git LFS pointer, .* run `git lfs pull`",
        ),
        ("tokenizer/tokenizer.json", lambda f: f.write_text("{}"), ValueError, "no tokenizer that"),
    ],
)
def test_damaged_small_files_are_named(model, name, spoil, error, message):
    spoil(model / name)
    with pytest.raises(error, match=message):
        pipeline.open_diffusers(model)


def test_a_snapshot_of_the_hub_opens_and_is_called_by_its_name(model):
    """The cache's layout: files are links into blobs; the folder's own name is a commit."""
    cache = model.parent / "models--Wan-AI--Wan2.1-VACE-14B-diffusers"
    snapshot = cache / "snapshots" / "90b8c4e4bf2e2e6d3e9a6a46b8b33e2a3b6f4d2c"
    for i, file in enumerate(sorted(f for f in model.rglob("*") if f.is_file())):
        link, blob = snapshot / file.relative_to(model), cache / "blobs" / f"{i:040x}"
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    assert pipeline.open_diffusers(snapshot).pipeline.parts
    assert pipeline.model_name(snapshot) == "Wan-AI/Wan2.1-VACE-14B-diffusers"
    (model.parent / "link").symlink_to(snapshot)
    assert pipeline.model_name(model.parent / "link") == "Wan-AI/Wan2.1-VACE-14B-diffusers"
    (cache / "blobs" / f"{0:040x}").unlink()
    with pytest.raises(FileNotFoundError, match="is a link to .*blobs/0*, which is not there"):
        pipeline.open_diffusers(snapshot)


def test_other_folders_are_called_by_their_own_name(model, monkeypatch):
    assert pipeline.model_name(model) == "tiny-vace"
    monkeypatch.chdir(model)
    assert pipeline.model_name(".") == "tiny-vace"
    assert pipeline.model_name("/x/Wan-AI/Wan2___1-VACE-14B") == "Wan2.1-VACE-14B"


def test_a_scheduler_without_a_class_is_refused(model):
    change(model / SCHEDULER, _class_name=["UniPCMultistepScheduler"])
    with pytest.raises(ValueError, match="scheduler_config.json: scheduler .* is not implemented"):
        pipeline.open_diffusers(model)
