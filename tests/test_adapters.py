"""Facts about adapter files: every tool's names are read; what is not LoRA is refused by name."""

import itertools

import numpy as np
import pytest
import torch
from adapter_files import (
    SOME,
    TINY,
    assert_reads,
    diffusers_names,
    drawn,
    musubi,
    original_names,
    write,
)
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from safetensors.numpy import load_file

from evoid_jax.models import adapter_names, adapters, lora, native, wan, weights

EVERY = [
    f"blocks.{i}.{module}"
    for i in range(2)
    for module in native.BLOCK
    if ".to_" in module or module.startswith("ffn")
]


# --- names


PREFIXES = ("", "transformer.", "transformer.transformer.", "base_model.model.", "module.")
PREFIXES += ("base_model.model.transformer.", "diffusion_model.", "model.diffusion_model.")
PREFIXES += ("_orig_mod.", "transformer._orig_mod.", "pipe.dit.", *adapter_names.KOHYA)
HALVES = [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")]
HALVES += [("lora_A.my-name", "lora_B.my-name"), ("lora.down", "lora.up")]


def test_every_mixture_of_names_means_the_same():
    flat = lambda prefix, name: name.replace(".", "_") if prefix in adapter_names.KOHYA else name
    for prefix, halves in itertools.product(PREFIXES, HALVES):
        for module in SOME:
            for name in (module, adapter_names.original(module)):
                for half, part in zip(halves, "AB", strict=True):
                    key = f"{prefix}{flat(prefix, name)}.{half}.weight"
                    assert adapter_names.parse(key)[:2] == (module, part), key
                key = f"{prefix}{flat(prefix, name)}.alpha"
                assert adapter_names.parse(key)[:2] == (module, "alpha"), key


def test_vace_blocks_are_no_main_blocks():
    for prefix in ("pipe.vace.", "lora_unet_", "vace."):
        key = f"{prefix}vace_blocks.1.self_attn.q.lora_A.weight"
        assert adapter_names.parse(key).module == "vace_blocks.1.attn1.to_q"


def test_no_two_modules_have_one_name():
    """Joined by underscores the names of both tables stay apart, but for those that are equal."""
    for table in (native.BLOCK, native.TRANSFORMER):
        flat = [{n.replace(".", "_") for n in names} for names in table.items()]
        for one, other in itertools.combinations(flat, 2):
            assert not one & other


def test_every_tensor_of_the_base_has_a_place():
    """Differences by ComfyUI's names lead to the base's own keys, with and without a module."""
    keys = {key for rule in wan.rules(TINY) for key in weights.keys(rule)}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        if key.endswith(adapter_names.TABLE):
            module, leaf = key, "weight"
        part = {"weight": "diff", "bias": "diff_b"}[leaf]
        name = adapter_names.parse(f"diffusion_model.{adapter_names.original(module)}.{part}")
        assert adapter_names.tensor_key(name.module, name.part) == key


WHOLE_FILES = {
    "PEFT in DiffSynth": lambda x: original_names(x, "", ("lora_A.default", "lora_B.default")),
    "finetrainers": lambda x: {
        key.replace("transformer.", "diffusion_model."): tensor
        for key, tensor in diffusers_names(x).items()
    },
    "a pipeline in a pipeline": lambda x: {
        f"transformer.{key}": tensor for key, tensor in diffusers_names(x).items()
    },
    "ComfyUI": lambda x: original_names(x, "diffusion_model.", ("lora_down", "lora_up")),
}


@pytest.mark.parametrize("tool", WHOLE_FILES)
def test_files_of_other_tools_are_read(tmp_path, tool):
    layers = drawn()
    file = write(tmp_path / "x.safetensors", WHOLE_FILES[tool](layers))
    assert_reads(file, layers)
    tree = lora.load(file, TINY)
    np.testing.assert_array_equal(tree["blocks"]["attn1"]["to_q"]["a"][0], layers[SOME[0]].a_RI.T)
    assert not tree["blocks"]["attn1"]["to_q"]["a"][1].any()  # a layer that the file lacks


def test_musubi_and_comfyui_files_do_what_they_do_in_diffusers(tmp_path):
    """All of a file's layers are merged by PEFT; the difference to the base is ours."""
    layers = drawn(EVERY)
    comfy = original_names(layers) | {
        f"diffusion_model.{adapter_names.original(module)}.alpha": np.float32(10)
        for module in layers
    }
    for k, tensors in enumerate((musubi(layers, 10.0), comfy)):
        file = write(tmp_path / f"{k}.safetensors", tensors)
        model = WanVACETransformer3DModel.from_config(TINY.to_json())
        names = ["vae", "text_encoder", "tokenizer", "scheduler"]
        pipe = WanVACEPipeline(transformer=model, **dict.fromkeys(names))
        before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
        pipe.load_lora_weights(tmp_path, weight_name=file.name)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        after = model.state_dict()
        for module, layer in assert_reads(file, layers, 10 / 4).layers.items():
            delta = after[f"{module}.weight"].numpy() - before[f"{module}.weight"]
            np.testing.assert_allclose(layer.b_OR @ layer.a_RI, delta, atol=1e-4)


# --- whole tensors, as distilled adapters change them


def distilled(amount: float) -> dict[str, np.ndarray]:
    """Biases, norms, modulation, head and embeddings beside layers, as lightx2v writes them."""
    change = lambda *shape: np.full(shape, amount, np.float32)
    return original_names(drawn()) | {
        "diffusion_model.head.head.lora_down.weight": np.ones((4, 32), np.float32),
        "diffusion_model.head.head.lora_up.weight": change(64, 4),  # 16 channels of 2x2 patches
        "diffusion_model.head.head.diff_b": change(64),
        "diffusion_model.blocks.0.self_attn.q.diff_b": change(32),
        "diffusion_model.blocks.1.self_attn.norm_k.diff": change(32),
        "diffusion_model.blocks.1.norm3.diff": change(32),
        "diffusion_model.blocks.1.norm3.diff_b": change(32),
        "diffusion_model.blocks.0.diff_m": change(1, 6, 32),
        "diffusion_model.patch_embedding.diff": change(32, 16, 1, 2, 2),
        "diffusion_model.patch_embedding.diff_b": change(32),
        "diffusion_model.time_embedding.0.diff_b": change(32),
    }


def test_distilled_parts_are_left_out_by_name_when_zero(tmp_path, caplog):
    file = write(tmp_path / "x.safetensors", distilled(0.0))
    with caplog.at_level("WARNING"):
        tree = lora.load(file, TINY)
    assert len(caplog.records) == 1
    for name in ("proj_out", "blocks.*.attn1.to_q.bias", "blocks.*.scale_shift_table"):
        assert name in caplog.text
    down = tree["blocks"]["ffn_down"]["b"][1]
    np.testing.assert_array_equal(down.T, drawn()["blocks.1.ffn.net.2"].b_OR)


def test_distilled_parts_are_refused_by_name_when_not(tmp_path):
    file = write(tmp_path / "x.safetensors", distilled(0.5))
    message = (
        r"x\.safetensors changes more.*proj_out.*blocks\.\*\.attn1\.to_q\.bias.*evoid_jax\.conv"
    )
    with pytest.raises(ValueError, match=message):
        lora.load(file, TINY)
    with pytest.raises(ValueError, match=r"cannot hold .*norm2\.weight.* write --to=comfyui"):
        adapters.to_diffusers(adapters.read(file))


def test_distilled_parts_survive_the_way_to_comfyui_and_back(tmp_path):
    file = write(tmp_path / "x.safetensors", distilled(0.5))
    read = adapters.read(file)
    adapters.write(tmp_path / "y.safetensors", adapters.to_comfyui(read), read)
    again = adapters.read(tmp_path / "y.safetensors")
    assert again.layers.keys() == read.layers.keys() and again.deltas.keys() == read.deltas.keys()
    for key, delta in read.deltas.items():
        np.testing.assert_array_equal(again.deltas[key], delta)


# --- what is refused


A, B = (
    "transformer.blocks.0.attn1.to_q.lora_A.weight",
    "transformer.blocks.0.attn1.to_q.lora_B.weight",
)
NAN = np.full((4, 32), np.nan, np.float32)
BAD = [
    (
        {A: np.zeros(4, np.float32)},
        r"to_q\.lora_A\.weight of .* has shape \(4,\); expected a matrix",
    ),
    ({A: np.float32(1)}, r"lora_A\.weight of .* has shape \(\); expected a matrix"),
    ({A: np.zeros((0, 32), np.float32), B: np.zeros((32, 0), np.float32)}, r"lora_A.* is empty"),
    ({A: NAN}, r"lora_A\.weight of .* holds NaN"),
    ({B: np.zeros((32, 4), np.int64)}, r"lora_B\.weight of .* is int64; expected floating"),
    ({A: np.zeros((5, 32), np.float32)}, r"shape \(5, 32\) and lora_B \(32, 4\); expected \(rank"),
    ({A: None}, r"lora_B\.weight of .* stands alone: .*lora_A \(lora_down\) is missing"),
    ({B: None}, r"lora_A\.weight of .* stands alone: .*lora_B \(lora_up\) is missing"),
    ({A.replace("lora_A", "lora_A.two"): np.zeros((4, 32), np.float32)}, r"are the same part"),
    ({A.replace("lora_A.weight", "alpha"): np.zeros(2, np.float32)}, r"alpha.*expected one number"),
    ({A.replace("lora_A.weight", "alpha"): np.float32("nan")}, r"alpha .*is nan; expected a pos"),
    ({A.replace("lora_A.weight", "alpha"): np.float32(0)}, r"alpha .*is 0\.0; expected a positive"),
    ({A.replace("to_q.lora_A.weight", "to_k.alpha"): np.float32(4)}, r"to_k\.alpha .*stands alone"),
    ({A.replace("to_q", "to_qkv"): np.zeros((4, 32), np.float32)}, r"fits no module.*names like"),
    ({"transformer.proj_out.weight": np.zeros((4, 32), np.float32)}, r"is of no adapter"),
    ({A.replace("former.", "former_2."): NAN}, r"of the second expert of Wan2\.2"),
    ({"lora_te_text_model.lora_A.weight": NAN}, r"it is of a text encoder"),
    ({"diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": NAN}, r"image-to-video model"),
    ({"lora_unet_blocks_0_self_attn_q.lokr_w1": NAN}, r"lokr_w1 of .* is of a LoKr adapter"),
    ({"lora_unet_blocks_0_self_attn_q.hada_w1_a": NAN}, r"is of a LoHa adapter"),
    ({"diffusion_model.blocks.0.self_attn.q.dora_scale": NAN}, r"is of a DoRA adapter"),
    ({A.replace("lora_A", "lora_magnitude_vector"): NAN}, r"is of a DoRA adapter"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_tensors_are_named_with_their_file(tmp_path, changes, message):
    tensors = diffusers_names(drawn(SOME[:1])) | changes
    file = tmp_path / "bad.safetensors"
    write(file, {key: x for key, x in tensors.items() if x is not None})
    with pytest.raises(ValueError, match=message) as raised:
        adapters.read(file)
    assert "bad.safetensors" in str(raised.value)


def test_other_files_and_folders_are_named(tmp_path):
    layers = drawn()
    for name in ("adapter_model.bin", "weights.safetensors"):  # the second lies
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        torch.save({"x": torch.zeros(1)}, folder / name)
        with pytest.raises(ValueError, match=rf"{name} is a pickle of PyTorch.*save_file"):
            adapters.read(folder / name)
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle"):
        adapters.read(tmp_path / "adapter_model")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors is missing"):
        adapters.read(tmp_path / "absent.safetensors")
    both = tmp_path / "both"
    both.mkdir()
    write(both / "other.safetensors", diffusers_names(layers))
    with pytest.raises(FileNotFoundError, match=r"give the path of one of other\.safetensors"):
        adapters.read(both)
    write(both / "pytorch_lora_weights.safetensors", diffusers_names(layers))
    assert_reads(both, layers)
    write(both / "adapter_model.safetensors", diffusers_names(layers))
    with pytest.raises(ValueError, match=r"both holds .* give the path of one of them"):
        adapters.read(both)
    write(both / "none.safetensors", {})
    with pytest.raises(ValueError, match=r"none\.safetensors holds no tensor"):
        adapters.read(both / "none.safetensors")


def test_what_is_written_for_diffusers_keeps_every_bit(tmp_path):
    layers = drawn()
    adapter = adapters.Adapter(layers, {}, {"step": "3"})
    file = tmp_path / "x.safetensors"
    adapters.write(file, adapters.to_diffusers(adapter), adapter)
    assert load_file(file).keys() == adapters.to_diffusers(adapter).keys()
    assert assert_reads(file, layers).header["step"] == "3"


def test_a_folder_that_is_not_quite_an_adapter_names_what_is_there(tmp_path):
    file = tmp_path / "run" / "export" / adapters.DIFFUSERS_FILE
    file.parent.mkdir(parents=True)
    write(file, diffusers_names(drawn()))
    assert adapters.locate(file.parent) == file
    with pytest.raises(FileNotFoundError, match=f"give the path of one of export/{file.name}"):
        adapters.locate(tmp_path / "run")
    file.unlink()
    file.symlink_to("elsewhere")
    with pytest.raises(FileNotFoundError, match="is a link to elsewhere, which is not there"):
        adapters.read(file.parent)
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file"):
        adapters.read(file.parent)
    with pytest.raises(ValueError, match="no such home folder"):
        adapters.read("~nobody-of-that-name/x.safetensors")
