"""The original Wan layout: its names for diffusers' tensors, its config.json, its files.

Every tensor has the same shape and values on both sides, so one table of names per model serves
both directions. Names come from wan/modules/{model,vace_model,vae,t5}.py of Wan-Video/Wan2.1 and
agree with diffusers' own converter.
"""

from __future__ import annotations

import re
from pathlib import Path

from evoid_jax import files
from evoid_jax.models import keys as known
from evoid_jax.models import umt5, vae, wan
from evoid_jax.models.weights import Rule, keys

# Files of a released folder, as wan/configs name them.
TRANSFORMER_FILE = "diffusion_pytorch_model"  # .safetensors, or shards with an index
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"

# diffusers module: original module, outside of the blocks.
TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
# The same inside of blocks.{i} and vace_blocks.{i}.
BLOCK = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",  # the affine one, before cross-attention
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
for _theirs, _original in (("attn1", "self_attn"), ("attn2", "cross_attn")):
    BLOCK |= {f"{_theirs}.to_{x}": f"{_original}.{x}" for x in "qkv"}
    BLOCK |= {f"{_theirs}.to_out.0": f"{_original}.o"}
    BLOCK |= {f"{_theirs}.norm_{x}": f"{_original}.norm_{x}" for x in "qk"}

RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3"}
RESIDUAL |= {"conv2": "residual.6", "conv_shortcut": "shortcut"}

TEXT = {"shared": "token_embedding", "encoder.final_layer_norm": "norm"}
TEXT_BLOCK = {f"layer.0.SelfAttention.{x}": f"attn.{x}" for x in "qkvo"} | {
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


# Keys of the original config.json; what is fixed are options of the code that no release uses.
SIZES = ("dim", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim")
T2V_KEYS = known.Keys(
    whole=(*SIZES, "text_len", "text_dim"),
    real=("eps",),
    lists={},
    fixed={
        "model_type": ("t2v",),
        "patch_size": ([1, 2, 2],),
        "window_size": ([-1, -1],),
        "qk_norm": (True,),
        "cross_attn_norm": (True,),
    },
    ignored=(),
)
VACE_KEYS = T2V_KEYS._replace(
    whole=(*T2V_KEYS.whole, "vace_in_dim"),
    lists={"vace_layers": int},
    fixed=T2V_KEYS.fixed | {"model_type": ("vace", "t2v")},
)


def block_module(name: str, table: dict[str, str]) -> str | None:
    """Rename `blocks.{i}.X` or `vace_blocks.{i}.X` by a table of X, or return None."""
    match = re.fullmatch(r"((?:vace_)?blocks\.\d+)\.(.+)", name)
    if not match or match[2] not in table:
        return None
    return f"{match[1]}.{table[match[2]]}"


def transformer_names(config: wan.WanConfig) -> dict[str, str]:
    """Return diffusers key: original key of every tensor of the transformer."""
    return _named(
        wan.rules(config), lambda name: TRANSFORMER.get(name) or block_module(name, BLOCK)
    )


def vae_names(config: vae.VAEConfig) -> dict[str, str]:
    """Return diffusers key: original key of every tensor of the autoencoder.

    diffusers groups the decoder's layers by level; the original numbers them through.
    """
    n, levels = config.num_res_blocks, len(config.dim_mult)
    down, up = {}, {}
    for i in range(levels * (n + 1) - 1):
        down |= _residual(f"down_blocks.{i}", f"downsamples.{i}")
        down |= _resampling(f"down_blocks.{i}", f"downsamples.{i}")
    for level in range(levels):
        ours, first = f"up_blocks.{level}", level * (n + 2)
        for j in range(n + 1):
            up |= _residual(f"{ours}.resnets.{j}", f"upsamples.{first + j}")
        up |= _resampling(f"{ours}.upsamplers.0", f"upsamples.{first + n + 1}")
    ends = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    ends |= {f"mid_block.attentions.0.{x}": f"middle.1.{x}" for x in ("norm", "to_qkv", "proj")}
    ends |= _residual("mid_block.resnets.0", "middle.0") | _residual(
        "mid_block.resnets.1", "middle.2"
    )
    modules = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    modules |= {f"encoder.{ours}": f"encoder.{name}" for ours, name in (ends | down).items()}
    modules |= {f"decoder.{ours}": f"decoder.{name}" for ours, name in (ends | up).items()}
    return _named(vae.rules(config), modules.get)


def umt5_names(config: umt5.UMT5Config) -> dict[str, str]:
    """Return transformers' key: original key of every tensor of the text encoder."""

    def rename(name: str) -> str | None:
        return TEXT.get(name) or block_module(name.replace("encoder.block.", "blocks."), TEXT_BLOCK)

    return _named(umt5.rules(config), rename)


def _residual(ours: str, original: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{original}.{b}" for a, b in RESIDUAL.items()}


def _resampling(ours: str, original: str) -> dict[str, str]:
    return {f"{ours}.{x}": f"{original}.{x}" for x in ("resample.1", "time_conv")}


def _named(rules: list[Rule], rename) -> dict[str, str]:
    """Rename every key of the rules, by module; what follows a module's name stays."""
    names = {}
    for key in (key for rule in rules for key in keys(rule)):
        leaf = re.search(r"(\.(weight|bias|gamma))?$", key)[0]
        names[key] = rename(key.removesuffix(leaf)) + leaf
    return names


# --- config.json


def is_native(folder: str | Path) -> bool:
    """Tell whether a folder is of the original layout: config.json has a `model_type`."""
    file = Path(folder) / "config.json"
    if not file.is_file() or (Path(folder) / "model_index.json").exists():
        return False
    return "model_type" in files.read_json(file)


def config_from_json(config: dict, file: str = "config.json") -> wan.WanConfig:
    """Read an original config.json, already a dict.

    Args:
      file: its name, for messages.

    Raises:
      ValueError: a model other than T2V and VACE, a key that is not known, or an absent size; the
        message names file and key.
    """
    kind = config.get("model_type")
    if kind not in ("t2v", "vace"):
        raise ValueError(
            f"{file}: model_type {kind!r} is not supported; expected 't2v' or 'vace' of Wan2.1"
        )
    # VACE's first releases call their type t2v, and only their class tells what they are
    kind = "vace" if config.get("_class_name") == "VaceWanModel" else kind
    known.check(config, VACE_KEYS if kind == "vace" else T2V_KEYS, file)
    needed = ("dim", "num_heads", "num_layers", "ffn_dim")
    needed += ("vace_layers", "vace_in_dim") if kind == "vace" else ()
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"{file} of a {kind} model lacks {', '.join(missing)}")
    if config["dim"] % config["num_heads"]:
        raise ValueError(
            f"{file}: dim {config['dim']} does not divide by num_heads {config['num_heads']}"
        )
    same = ("num_layers", "ffn_dim", "text_dim", "freq_dim", "eps", "text_len")
    values = {name: config[name] for name in same if name in config}
    values |= {"num_attention_heads": config["num_heads"]}
    values |= {"attention_head_dim": config["dim"] // config["num_heads"]}
    values |= {"in_channels": config.get("in_dim", 16), "out_channels": config.get("out_dim", 16)}
    if kind == "vace":
        values |= {"vace_layers": tuple(config["vace_layers"])}
        values |= {"vace_in_channels": config["vace_in_dim"]}
    try:
        return wan.WanConfig(**values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def config_to_json(config: wan.WanConfig) -> dict:
    """Return the original config.json; the inverse of `config_from_json`.

    `text_dim` is there only where it is not 4096, which the original code takes for granted.
    """
    values = {"_class_name": "VaceWanModel" if config.vace_layers else "WanModel"}
    values |= {"_diffusers_version": "0.30.0", "dim": config.dim, "eps": config.eps}
    values |= {"ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim, "in_dim": config.in_channels}
    values |= {"model_type": "vace" if config.vace_layers else "t2v"}
    values |= {"num_heads": config.num_attention_heads, "num_layers": config.num_layers}
    values |= {"out_dim": config.out_channels, "text_len": config.text_len}
    if config.text_dim != 4096:
        values["text_dim"] = config.text_dim
    if config.vace_layers:
        values |= {"vace_in_dim": config.vace_in_channels, "vace_layers": list(config.vace_layers)}
    return values


def released_files(config: wan.WanConfig, text_dtype: str) -> dict[str, dict]:
    """Return path: content of the JSON files of a diffusers folder for a released checkpoint.

    The original folder holds no configs of the VAE, text encoder and scheduler: they are in its
    code. The scheduler is what diffusers' converter writes (flow_shift 3).
    """
    vace = bool(config.vace_layers)
    index = {
        "_class_name": "WanVACEPipeline" if vace else "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", f"Wan{'VACE' if vace else ''}Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
    }
    return {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler,
        "transformer/config.json": config.to_json(),
        "vae/config.json": vae.VAEConfig().to_json(),
        "text_encoder/config.json": umt5.UMT5Config().to_json() | {"dtype": text_dtype},
    }
