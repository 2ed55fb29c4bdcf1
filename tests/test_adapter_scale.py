"""Facts about the scale of adapter files: every statement of alpha counts, or is refused."""

import json
import math

import ml_dtypes
import numpy as np
import peft
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
from peft.utils import get_peft_model_state_dict

from evoid_jax.models import adapter_names, adapters, lora


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
    ("PEFT", {}, "[1]", r"the file holds a list"),
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


@pytest.mark.parametrize(
    ("header", "config", "message"),
    [
        ({"scale": "2"}, None, "has scale 2 in its header"),
        ({"lora_scale": "0.5"}, None, "has lora_scale 0.5 in its header"),
        ({"scaling": "x"}, None, "has scaling x in its header"),
        ({}, {"r": 4, "lora_alpha": True}, "lora_alpha is True; expected a number"),
        ({}, {"r": 4, "lora_alpha": 4, "alpha_pattern": ["x"]}, "alpha_pattern is"),
        ({}, {"r": 4, "lora_alpha": 4, "rank_pattern": "x"}, "rank_pattern is 'x'; expected an"),
        ({}, {"r": "4", "lora_alpha": 4}, "has rank 4, the configuration says '4'"),
    ],
)
def test_what_is_no_statement_of_a_scale_is_refused(header, config, message, tmp_path):
    file = write(tmp_path / "x.safetensors", diffusers_names(drawn()), header)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        adapters.read(file)


def test_a_factor_of_one_is_none(tmp_path):
    header = {"scale": "1", "lora_scale": "1.0"}
    layers = drawn()
    assert_reads(write(tmp_path / "x.safetensors", diffusers_names(layers), header), layers)
