"""The original layout's names: a bijection, and the one that diffusers' converter knows."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from transformers import UMT5Config, UMT5EncoderModel

from evoid_jax.models import native, pipeline
from evoid_jax.models.umt5 import UMT5Config as OurUMT5Config
from evoid_jax.models.vae import VAEConfig
from evoid_jax.models.wan import WanConfig

VACE_1_3B = WanConfig(12, 128, 30, 8960, vace_layers=tuple(range(0, 30, 2)))
VACE_14B = WanConfig(40, 128, 40, 13824, vace_layers=tuple(range(0, 40, 5)))
MODELS = {
    "vace_1_3b": VACE_1_3B,
    "vace_14b": VACE_14B,
    "t2v_1_3b": dataclasses.replace(VACE_1_3B, vace_layers=()),
    "t2v_14b": dataclasses.replace(VACE_14B, vace_layers=()),
}


def assert_bijection(part, model):
    """Every tensor of the torch model is named once on both sides, and has our shape."""
    state = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    assert pipeline.wanted(part) == state
    assert part.original.keys() == state.keys()
    assert len(set(part.original.values())) == len(state)


@pytest.mark.parametrize("name", MODELS)
def test_transformer_names_are_diffusers_s_both_ways(name):
    config = MODELS[name]
    part = pipeline.part("transformer", config.to_json())
    kind = WanVACETransformer3DModel if config.vace_layers else WanTransformer3DModel
    with torch.device("meta"):
        model = kind.from_config(config.to_json())
    assert_bijection(part, model)
    original = {name: key for key, name in part.original.items()}
    back = convert_wan_transformer_to_diffusers(dict(original))
    assert back == {key: key for key in part.original}


def test_names_of_the_released_transformer():
    names = native.transformer_names(VACE_14B)
    assert names["blocks.39.attn2.to_out.0.bias"] == "blocks.39.cross_attn.o.bias"
    assert names["blocks.0.attn1.norm_q.weight"] == "blocks.0.self_attn.norm_q.weight"
    assert names["blocks.3.norm2.weight"] == "blocks.3.norm3.weight"
    assert names["blocks.3.ffn.net.0.proj.weight"] == "blocks.3.ffn.0.weight"
    assert names["blocks.3.scale_shift_table"] == "blocks.3.modulation"
    assert names["vace_blocks.0.proj_in.weight"] == "vace_blocks.0.before_proj.weight"
    assert names["vace_blocks.7.proj_out.bias"] == "vace_blocks.7.after_proj.bias"
    assert names["scale_shift_table"] == "head.modulation"
    assert names["proj_out.weight"] == "head.head.weight"
    assert names["condition_embedder.time_proj.bias"] == "time_projection.1.bias"
    assert names["condition_embedder.text_embedder.linear_2.weight"] == "text_embedding.2.weight"


def test_vae_names_are_diffusers_s_both_ways():
    part = pipeline.part("vae", VAEConfig().to_json())
    with torch.device("meta"):
        assert_bijection(part, AutoencoderKLWan())
    original = {name: key for key, name in part.original.items()}
    assert convert_wan_vae_to_diffusers(original) == {key: key for key in part.original}


@pytest.mark.parametrize("blocks", [1, 3])
def test_vae_of_other_depths_keeps_a_bijection(blocks):
    part = pipeline.part("vae", VAEConfig(base_dim=4, num_res_blocks=blocks).to_json())
    with torch.device("meta"):
        assert_bijection(part, AutoencoderKLWan(base_dim=4, num_res_blocks=blocks))
    # the original numbers a side's layers without a gap
    numbers = {int(n.split(".")[2]) for n in part.original.values() if ".upsamples." in n}
    assert numbers == set(range(4 * (blocks + 2) - 1))


def original_umt5_names(layers: int) -> dict[str, str]:
    """Return our key: name in wan/modules/t5.py, module by module, written out by hand."""
    names = {"shared.weight": "token_embedding.weight"}
    names |= {"encoder.final_layer_norm.weight": "norm.weight"}
    for i in range(layers):
        a, b = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        names |= {
            f"{a}.layer_norm.weight": f"blocks.{i}.norm1.weight",
            f"{a}.SelfAttention.q.weight": f"blocks.{i}.attn.q.weight",
            f"{a}.SelfAttention.k.weight": f"blocks.{i}.attn.k.weight",
            f"{a}.SelfAttention.v.weight": f"blocks.{i}.attn.v.weight",
            f"{a}.SelfAttention.o.weight": f"blocks.{i}.attn.o.weight",
            f"{a}.SelfAttention.relative_attention_bias.weight": (
                f"blocks.{i}.pos_embedding.embedding.weight"
            ),
            f"{b}.layer_norm.weight": f"blocks.{i}.norm2.weight",
            f"{b}.DenseReluDense.wi_0.weight": f"blocks.{i}.ffn.gate.0.weight",
            f"{b}.DenseReluDense.wi_1.weight": f"blocks.{i}.ffn.fc1.weight",
            f"{b}.DenseReluDense.wo.weight": f"blocks.{i}.ffn.fc2.weight",
        }
    return names


def test_umt5_names_are_those_of_the_original_code():
    part = pipeline.part("text_encoder", OurUMT5Config().to_json())
    assert part.original == original_umt5_names(24)
    c = part.config
    sizes = dict(
        vocab_size=c.vocab_size, d_model=c.d_model, d_kv=c.d_kv, d_ff=c.d_ff, num_heads=c.num_heads
    )
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(num_layers=c.num_layers, **sizes))
    state = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    assert pipeline.wanted(part) == state


RELEASED = {  # config.json of Wan2.1-T2V-14B
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 5120,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "in_dim": 16,
    "model_type": "t2v",
    "num_heads": 40,
    "num_layers": 40,
    "out_dim": 16,
    "text_len": 512,
}


def test_config_of_the_release_is_read_and_written():
    assert native.config_from_json(RELEASED) == MODELS["t2v_14b"]
    assert native.config_to_json(MODELS["t2v_14b"]) == RELEASED
    vace = {"_class_name": "VaceWanModel", "model_type": "vace", "vace_in_dim": 96}
    vace = RELEASED | vace | {"vace_layers": list(range(0, 40, 5))}
    assert native.config_from_json(vace) == VACE_14B
    assert native.config_to_json(VACE_14B) == vace
    assert native.config_from_json(vace | {"model_type": "t2v"}) == VACE_14B  # the first releases
    narrow = dataclasses.replace(VACE_1_3B, text_dim=32)
    assert native.config_from_json(native.config_to_json(narrow)) == narrow


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "i2v"}, "model_type 'i2v' is not supported"),
        ({"model_type": "vace"}, "lacks vace_layers, vace_in_dim"),
        ({"qk_norm": False}, "qk_norm False is not supported; expected True"),
        ({"window_size": [3, 3]}, r"window_size \[3, 3\] is not supported"),
        ({"vace_layers": [0]}, r"has vace_layers \[0\], which is not known here"),
        ({"add_ref_conv": True}, "config.json has add_ref_conv True, which is not known"),
        ({"dim": 5121}, "dim 5121 does not divide by num_heads 40"),
        ({"num_layers": "40"}, "num_layers is '40'; expected a whole number"),
        ({"freq_dim": 255}, "freq_dim 255: expected an even number"),
    ],
)
def test_other_models_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        native.config_from_json(RELEASED | change)


def test_files_of_a_release_are_what_diffusers_starts_from():
    files = native.released_files(VACE_14B, "bfloat16")
    assert WanConfig.from_json(files["transformer/config.json"]) == VACE_14B
    assert VAEConfig.from_json(files["vae/config.json"]) == VAEConfig()
    text = files["text_encoder/config.json"]
    assert OurUMT5Config.from_json(text) == OurUMT5Config() and text["dtype"] == "bfloat16"
    assert files["model_index.json"]["_class_name"] == "WanVACEPipeline"
    assert files["scheduler/scheduler_config.json"]["flow_shift"] == 3.0
