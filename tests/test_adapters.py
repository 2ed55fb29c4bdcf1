"""Facts about adapter files: every tool's names and scales are read, or refused by name."""

import itertools
import json
import math

import ml_dtypes
import numpy as np
import peft
import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from safetensors.torch import save_file

from evoid_jax.models import adapter_names, adapters, lora, native, wan, weights
from evoid_jax.models.wan import WanConfig

TINY = WanConfig(2, 16, num_layers=2, ffn_dim=48, text_dim=12, freq_dim=16, vace_layers=(0, 1))
SOME = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.0.ffn.net.0.proj")
SOME += ("blocks.1.ffn.net.2", "vace_blocks.1.attn1.to_v")
EVERY = [
    f"blocks.{i}.{module}"
    for i in range(2)
    for module in native.BLOCK
    if ".to_" in module or module.startswith("ffn")
]


def sizes(module: str) -> tuple[int, int]:
    """Return widths in and out of a module of TINY."""
    return 48 if module.endswith("net.2") else 32, 48 if module.endswith("net.0.proj") else 32


def drawn(modules=SOME, rank=4, seed=0) -> dict[str, adapters.Layer]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    ends = {module: sizes(module) for module in modules}
    return {m: adapters.Layer(draw(rank, i), draw(o, rank)) for m, (i, o) in ends.items()}


def write(file, tensors: dict, header=None):
    """Write any tensors, NaN and empty ones included, which our own writer refuses."""
    held = {}
    for key, x in tensors.items():
        x = np.asarray(x)
        half = x.dtype == ml_dtypes.bfloat16
        value = torch.from_numpy(x.astype(np.float32) if half else np.array(x))
        held[key] = value.to(torch.bfloat16) if half else value
    save_file(held, file, header)
    return file


def diffusers_names(layers) -> dict[str, np.ndarray]:
    return adapters.to_diffusers(adapters.Adapter(layers, {}, {}))


def original_names(layers, prefix="diffusion_model.", halves=("lora_A", "lora_B")):
    tensors = {}
    for module, layer in layers.items():
        name = f"{prefix}{adapter_names.original(module)}"
        tensors |= {
            f"{name}.{halves[0]}.weight": layer.a_RI,
            f"{name}.{halves[1]}.weight": layer.b_OR,
        }
    return tensors


def assert_reads(file, layers, scale=1.0):
    """Compare what is read with layers at a scale, a number or one by module."""
    got = adapters.read(file)
    assert got.layers.keys() == layers.keys()
    for module, layer in layers.items():
        factor = scale[module] if isinstance(scale, dict) else scale
        np.testing.assert_array_equal(got.layers[module].a_RI, layer.a_RI)
        np.testing.assert_allclose(got.layers[module].b_OR, layer.b_OR * factor, rtol=1e-6)
    return got


# --- names


PREFIXES = ["", "transformer.", "transformer.transformer.", "base_model.model."]
PREFIXES += ["base_model.model.transformer.", "diffusion_model.", "model.diffusion_model."]
PREFIXES += [
    "module.",
    "_orig_mod.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "transformer._orig_mod.",
]
PREFIXES += ["pipe.dit."]
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


def musubi(layers, alpha) -> dict[str, np.ndarray]:
    tensors = {}
    for module, layer in layers.items():
        name = f"lora_unet_{adapter_names.original(module).replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": layer.a_RI, f"{name}.lora_up.weight": layer.b_OR}
        tensors[f"{name}.alpha"] = np.float32(alpha)
    return tensors


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


# --- scales


def holder():
    """A transformer in a module of its own, as in a pipeline that is trained as a whole."""
    outer = torch.nn.Module()
    outer.transformer = WanVACETransformer3DModel.from_config(TINY.to_json())
    return outer


PATTERNS = {
    "alpha": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"to_q": 2, r"blocks\.1\.attn2\.to_v": 16},
        "alpha_pattern": {"attn1.to_q": 7, "1.attn2.to_[qv]": 3, r"^blocks\.0\.attn2\.to_q": 5},
    },
    "rslora and patterns": {
        "use_rslora": True,
        "rank_pattern": {r"blocks\.0\..*": 2},
        "alpha_pattern": {"to_v": 9},
    },
}


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_peft_do_what_peft_does(tmp_path, kind, nested):
    torch.manual_seed(0)
    model = holder() if nested else WanVACETransformer3DModel.from_config(TINY.to_json())
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    targets = ["to_q", "to_v", "ffn.net.2"]
    settings = peft.LoraConfig(
        r=8, lora_alpha=24, target_modules=targets, init_lora_weights=False, **PATTERNS[kind]
    )
    wrapped = peft.get_peft_model(model, settings)
    wrapped.save_pretrained(tmp_path)
    after = wrapped.merge_and_unload().state_dict()
    layers = adapters.read(tmp_path).layers
    assert len(layers) == 2 * 2 * (2 * 2 + 1)  # stacks, layers, modules
    for module, layer in layers.items():
        key = f"transformer.{module}.weight" if nested else f"{module}.weight"
        delta = after[key].numpy() - before[key]
        np.testing.assert_allclose(layer.b_OR @ layer.a_RI, delta, atol=2e-5)
        assert np.abs(delta).max() > 1e-2


@pytest.mark.parametrize("kind", PATTERNS)
def test_files_of_diffusers_with_a_configuration_do_what_peft_does(tmp_path, kind):
    torch.manual_seed(0)
    model = WanVACETransformer3DModel.from_config(TINY.to_json())
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    more = PATTERNS[kind] | ({"alpha_pattern": {"1.attn2.to_q": 3}} if kind == "patterns" else {})
    targets = ["to_q", "to_v", "ffn.net.2"]
    model.add_adapter(
        peft.LoraConfig(r=8, lora_alpha=24, target_modules=targets, init_lora_weights=False, **more)
    )
    WanVACEPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    model.fuse_lora()
    model.unload_lora()
    after = model.state_dict()
    layers = adapters.read(tmp_path).layers
    assert len(layers) == 20
    for module, layer in layers.items():
        delta = after[f"{module}.weight"].numpy() - before[f"{module}.weight"]
        np.testing.assert_allclose(layer.b_OR @ layer.a_RI, delta, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 8 LoRA tensor")
def test_the_bias_of_lora_b_is_scaled_as_peft_scales_it(tmp_path):
    torch.manual_seed(0)
    model = WanVACETransformer3DModel.from_config(TINY.to_json())
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    settings = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["to_k"], lora_bias=True, init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, settings)
    for name, x in wrapped.named_parameters():
        if name.endswith("lora_B.default.bias"):
            torch.nn.init.normal_(x)
    wrapped.save_pretrained(tmp_path)
    after = wrapped.merge_and_unload().state_dict()
    deltas = adapters.read(tmp_path).deltas
    assert len(deltas) == 8
    for key, delta in deltas.items():
        np.testing.assert_allclose(delta, after[key].numpy() - before[key], atol=1e-6)


ALPHAS = [np.float32(6), np.float16(6), np.full(1, 6.0, ml_dtypes.bfloat16), np.int64(6)]
ALPHAS += [np.full((1, 1), 6.0, np.float64), np.array(6.0, ml_dtypes.bfloat16)]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_alpha_tensors_of_every_shape_and_type(tmp_path, alpha):
    layers = drawn(SOME[:2])
    name = f"diffusion_model.{adapter_names.original(SOME[0])}.alpha"
    file = write(tmp_path / "x.safetensors", original_names(layers) | {name: alpha})
    assert_reads(file, layers, {SOME[0]: 1.5, SOME[1]: 1.0})


def settings(**changes) -> dict:
    return {"r": 4, "lora_alpha": 6, "peft_type": "LORA"} | changes


NAMES = {"diffusers": diffusers_names, "ComfyUI": original_names}
HEADERS = {
    "diffusers": {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings().items()})
    },
    "PEFT": {"lora_adapter_metadata": json.dumps(settings())},
    "finetrainers": {"lora_config": json.dumps(settings())},
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("names", NAMES)
def test_alpha_in_the_header_counts_for_every_naming(tmp_path, names, header):
    layers = drawn()
    file = write(tmp_path / "x.safetensors", NAMES[names](layers), HEADERS[header])
    assert_reads(file, layers, 1.5)


def test_a_configuration_beside_counts_for_its_own_file(tmp_path):
    layers, beside = drawn(), tmp_path / "adapter_config.json"
    beside.write_text("\ufeff" + json.dumps(settings(use_rslora=True)))
    renamed = write(tmp_path / "renamed.safetensors", diffusers_names(layers))
    assert_reads(renamed, layers, 6 / math.sqrt(4))
    adapters.write(renamed, diffusers_names(layers), adapters.Adapter(layers, {}, {}))
    assert_reads(renamed, layers)  # ours says itself that it is of scale 1
    write(tmp_path / "adapter_model.safetensors", diffusers_names(drawn(seed=1)))
    write(renamed, diffusers_names(layers))
    assert_reads(renamed, layers)  # the configuration is the other file's
    assert_reads(tmp_path, drawn(seed=1), 3.0)


def test_kohya_s_header_counts_where_no_alpha_tensors_stand(tmp_path):
    layers = drawn()
    tensors = musubi(layers, 6)
    bare = {key: x for key, x in tensors.items() if not key.endswith(".alpha")}
    header = {"ss_network_alpha": "6.0", "ss_network_dim": "4"}
    assert_reads(write(tmp_path / "x.safetensors", bare, header), layers, 1.5)
    header["ss_network_alpha"] = "1"  # the tensors are what every reader applies
    assert_reads(write(tmp_path / "x.safetensors", tensors, header), layers, 1.5)


def test_ranks_that_differ_by_layer(tmp_path):
    """Each layer's scale is by its own rank; a tree pads the lower ones with zeros."""
    layers = drawn(SOME[:1], rank=2) | drawn(SOME[1:2], rank=8, seed=1)
    tensors = original_names(layers)
    for module in layers:
        tensors[f"diffusion_model.{adapter_names.original(module)}.alpha"] = np.float32(4)
    file = write(tmp_path / "x.safetensors", tensors)
    read = assert_reads(file, layers, {SOME[0]: 2.0, SOME[1]: 0.5})
    assert adapters.scale_of_file(read)["rank"] == "2, 8"
    tree = lora.load(file, TINY)
    q, out = tree["blocks"]["attn1"]["to_q"], tree["blocks"]["attn2"]["to_out"]
    assert q["a"].shape == (2, 32, 8) and not q["a"][0, :, 2:].any() and not q["b"][0, 2:].any()
    np.testing.assert_allclose(
        (q["a"][0] @ q["b"][0]).T,
        2 * layers[SOME[0]].b_OR @ layers[SOME[0]].a_RI,
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_array_equal(out["a"][1].T, layers[SOME[1]].a_RI)


AMBIGUOUS = [
    # names, header, adapter_config.json, message
    ("ComfyUI", {"ss_network_alpha": "16"}, None, r"ss_network_alpha 16 in its header, which not"),
    (
        "diffusers",
        {"alpha": "8", "rank": "4"},
        None,
        r"alpha 8 in its header, which not every tool",
    ),
    (
        "diffusers",
        {"lora_alpha": "nan"},
        None,
        r"lora_alpha of the header is 'nan'; expected a pos",
    ),
    ("PEFT", {}, None, r"is a file of PEFT without its adapter_config\.json"),
    ("PEFT", {}, settings(r=8), r"has rank 4, the configuration says 8"),
    ("PEFT", {}, settings(lora_alpha=0), r"lora_alpha is 0; expected a positive number"),
    ("PEFT", {}, {"r": 4}, r"adapter_config\.json: lora_alpha is missing"),
    ("PEFT", {}, settings(alpha_pattern={"q": 1, "[qv]": 2}), r"fits alpha_patterns of diff.*1, 2"),
    ("ComfyUI", {}, settings(alpha_pattern={"to_q": 1}), r"alpha_pattern 'to_q' fits no layer"),
    ("PEFT", {}, settings(rank_pattern={"to_(": 4}), r"pattern 'to_\(' is no regular expression"),
    ("PEFT", {}, settings(use_dora=True), r"adapter_config\.json: is DoRA"),
    ("PEFT", {}, settings(peft_type="LOKR"), r"peft_type LOKR; only plain LoRA"),
    ("PEFT", {}, settings(init_lora_weights="pissa_niter_4"), r"init_lora_weights 'pissa_niter_4'"),
    ("PEFT", {}, "[1]", r"is list; expected a JSON object"),
    ("PEFT", {}, "{", r"adapter_config\.json: the file is not JSON"),
    ("PEFT", {"lora_config": json.dumps(settings(lora_alpha=4))}, settings(), "has scale 1.5 by"),
    (
        "alphas",
        {"lora_config": json.dumps(settings())},
        None,
        r"1\.5 by lora_config.* 2\.5 by its al",
    ),
    ("diffusers", {"lora_adapter_metadata": "{"}, None, r"lora_adapter_metadata is not JSON"),
]


@pytest.mark.parametrize(("names", "header", "beside", "message"), AMBIGUOUS)
def test_a_scale_that_is_not_clear_is_refused(tmp_path, names, header, beside, message):
    layers = drawn()
    tensors = {
        "diffusers": diffusers_names(layers),
        "ComfyUI": original_names(layers),
        "PEFT": original_names(layers, "base_model.model."),
        "alphas": musubi(layers, 10),
    }[names]
    write(tmp_path / "adapter_model.safetensors", tensors, header)
    if beside is not None:
        text = beside if isinstance(beside, str) else json.dumps(beside)
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*" + message):
        adapters.read(tmp_path)


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
