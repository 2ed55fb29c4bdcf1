"""The published checkpoints of preset `paper`: their names and shapes by formula, and random ones.

A tensor's random values follow from its name and shape, so that another program, in another
environment, makes the same ones: goldens were made so with the models' original code.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]


def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return float32 values that keep activations at about their size; whole numbers where due."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif len(shape) > 1:
        x /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):  # of a norm or a PReLU
        x = 1 + 0.1 * x
    else:
        x *= 0.1
    return torch.from_numpy(np.asarray(x, np.float32))


def randoms(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: random(name, shape) for name, shape in shapes.items()}


def write(folder: Path, shapes: Shapes, config: dict, shards: int = 1) -> Path:
    """Write a random checkpoint in Hugging Face's layout, of one file or of several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors, names = randoms(shapes), list(shapes)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
             for i, name in enumerate(names)}  # fmt: skip
    for file in sorted(set(where.values())):
        own = {name: tensors[name] for name in names if where[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def picture(height: int, width: int, shift: int = 0) -> np.ndarray:
    """Return a uint8 RGB picture with fine and coarse patterns, the same wherever it is made."""
    y, x = np.mgrid[:height, :width]
    planes = [(7 * x + 3 * y) % 256, (x * y // 9) % 256, (255 - 5 * x + 11 * y) % 256]
    return np.roll(np.stack(planes, -1).astype(np.uint8), shift, 1)


def shapes_of(net: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def count(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def linear(name: str, c_in: int, c_out: int, bias: bool = True) -> Shapes:
    shapes = {f"{name}.weight": (c_out, c_in)}
    return shapes | {f"{name}.bias": (c_out,)} if bias else shapes


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int, affine: bool = True) -> Shapes:
    shapes = norm(name, width) if affine else {}
    shapes |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return shapes | {f"{name}.num_batches_tracked": ()}


def ir101(units: tuple[int, ...] = (3, 13, 30, 3)) -> Shapes:
    """TFace's IR-101, as glint360k_curricular_face_r101_backbone.bin."""
    shapes = {"input_layer.0.weight": (64, 3, 3, 3)} | batch_norm("input_layer.1", 64)
    shapes |= {"input_layer.2.weight": (64,)}
    widths = [w for w, n in zip((64, 128, 256, 512), units, strict=True) for _ in range(n)]
    for i, (before, width) in enumerate(zip([64, *widths], widths, strict=False)):
        body = f"body.{i}.res_layer"
        shapes |= batch_norm(f"{body}.0", before)
        shapes |= {f"{body}.1.weight": (width, before, 3, 3)} | batch_norm(f"{body}.2", width)
        shapes |= {f"{body}.3.weight": (width,), f"{body}.4.weight": (width, width, 3, 3)}
        shapes |= batch_norm(f"{body}.5", width)
        if before != width:
            shortcut = f"body.{i}.shortcut_layer"
            shapes |= {f"{shortcut}.0.weight": (width, before, 1, 1)}
            shapes |= batch_norm(f"{shortcut}.1", width)
    shapes |= batch_norm("output_layer.0", 512) | linear("output_layer.3", 512 * 49, 512)
    return shapes | batch_norm("output_layer.4", 512, affine=False)


# one-align: what its config.json says, and a small one of the same kind.
ONE_ALIGN = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
    "visual_config": {
        "visual_model": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
        },
        "visual_abstractor": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 6,
            "num_attention_heads": 16,
            "num_learnable_queries": 64,
            "layer_norm_eps": 1e-6,
            "encoder_hidden_size": 1024,
            "grid_size": 32,
        },
    },
}
TINY_ONE_ALIGN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "visual_config": {
        "visual_model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 42,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
        },
        "visual_abstractor": {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_learnable_queries": 5,
            "layer_norm_eps": 1e-6,
            "encoder_hidden_size": 32,
            "grid_size": 3,
        },
    },
}


def one_align(config: dict) -> Shapes:
    """mPLUG-Owl2 as one-align's files have it."""
    visual = config["visual_config"]
    return (
        _eye("model.vision_model", visual["visual_model"])
        | _abstractor("model.visual_abstractor", visual["visual_abstractor"], config["hidden_size"])
        | _llama(config)
    )


def _eye(name: str, c: dict) -> Shapes:
    width, inner = c["hidden_size"], c["intermediate_size"]
    places = (c["image_size"] // c["patch_size"]) ** 2 + 1
    front = f"{name}.embeddings"
    shapes = {f"{front}.cls_token": (1, 1, width)}
    shapes |= {f"{front}.patch_embed.weight": (width, 3, c["patch_size"], c["patch_size"])}
    shapes |= {f"{front}.position_embedding": (1, places, width)}
    shapes |= norm(f"{front}.pre_layernorm", width) | norm(f"{name}.post_layernorm", width)
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{i}"
        shapes |= norm(f"{layer}.input_layernorm", width)
        shapes |= norm(f"{layer}.post_attention_layernorm", width)
        shapes |= linear(f"{layer}.self_attn.query_key_value", width, 3 * width)
        shapes |= linear(f"{layer}.self_attn.dense", width, width)
        shapes |= linear(f"{layer}.mlp.fc1", width, inner)
        shapes |= linear(f"{layer}.mlp.fc2", inner, width)
    return shapes


def _abstractor(name: str, c: dict, outer: int) -> Shapes:
    width, inner, queries = c["hidden_size"], c["intermediate_size"], c["num_learnable_queries"]
    shapes = {f"{name}.query_embeds": (1, queries, width), f"{name}.vit_eos": (1, 1, outer)}
    shapes |= linear(f"{name}.visual_fc", width, outer)
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{i}.crossattention"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.{part}", width, width)
        shapes |= {f"{layer}.attention.q_pos_embed": (queries, width)}
        shapes |= {f"{layer}.attention.k_pos_embed": (c["grid_size"] ** 2 + 1, width)}
        shapes |= norm(f"{layer}.norm1", width) | norm(f"{layer}.normk", width)
        out = f"{layer}.output"
        shapes |= linear(f"{out}.out_proj", width, width) | norm(f"{out}.norm2", width)
        shapes |= linear(f"{out}.mlp.w1", width, inner) | linear(f"{out}.mlp.w3", width, inner)
        shapes |= linear(f"{out}.mlp.w2", inner, width) | norm(f"{out}.mlp.ffn_ln", inner)
    return shapes


def _llama(c: dict) -> Shapes:
    width, inner = c["hidden_size"], c["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], width)}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (c["vocab_size"], width)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part in ("q_proj", "k_proj.multiway.0", "k_proj.multiway.1", "v_proj.multiway.0",
                     "v_proj.multiway.1", "o_proj"):  # fmt: skip
            shapes |= {f"{layer}.self_attn.{part}.weight": (width, width)}
        for part, size in (("gate", (inner, width)), ("up", (inner, width)),
                           ("down", (width, inner))):  # fmt: skip
            shapes |= {f"{layer}.mlp.{part}_proj.weight": size}
        for part in ("input_layernorm", "post_attention_layernorm"):
            for way in (0, 1):
                shapes |= {f"{layer}.{part}.multiway.{way}.weight": (width,)}
    return shapes


# CLIP ViT-L/14's eye, as the vision half of openai/clip-vit-large-patch14.
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def clip(c: dict) -> Shapes:
    """CLIP's vision tower with its projection."""
    width, inner, eye = c["hidden_size"], c["intermediate_size"], "vision_model"
    places = (c["image_size"] // c["patch_size"]) ** 2 + 1
    shapes = {f"{eye}.embeddings.class_embedding": (width,)}
    shapes |= {f"{eye}.embeddings.patch_embedding.weight": (width, 3, *2 * (c["patch_size"],))}
    shapes |= {f"{eye}.embeddings.position_embedding.weight": (places, width)}
    shapes |= norm(f"{eye}.pre_layrnorm", width) | norm(f"{eye}.post_layernorm", width)
    for i in range(c["num_hidden_layers"]):
        layer = f"{eye}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        shapes |= linear(f"{layer}.mlp.fc1", width, inner)
        shapes |= linear(f"{layer}.mlp.fc2", inner, width)
    return shapes | {"visual_projection.weight": (c["projection_dim"], width)}


# GME-Qwen2-VL, as its config.json says; the names are those of transformers 4.
GME = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "image_token_id": 151655,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
GME_2B = GME | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": GME["vision_config"] | {"hidden_size": 1536},
}
TINY_GME = GME | {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 96,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vision_config": GME["vision_config"]
    | {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 4},
}


def gme(c: dict) -> Shapes:
    """Qwen2-VL as published checkpoints have it."""
    eye, width, inner = c["vision_config"], c["hidden_size"], c["intermediate_size"]
    seen, wide = eye["embed_dim"], eye["embed_dim"] * eye["mlp_ratio"]
    shapes = {"visual.patch_embed.proj.weight": (seen, 3, 2, eye["patch_size"], eye["patch_size"])}
    for i in range(eye["depth"]):
        block = f"visual.blocks.{i}"
        shapes |= norm(f"{block}.norm1", seen) | norm(f"{block}.norm2", seen)
        shapes |= linear(f"{block}.attn.qkv", seen, 3 * seen)
        shapes |= linear(f"{block}.attn.proj", seen, seen)
        shapes |= linear(f"{block}.mlp.fc1", seen, wide) | linear(f"{block}.mlp.fc2", wide, seen)
    shapes |= norm("visual.merger.ln_q", seen) | linear("visual.merger.mlp.0", 4 * seen, 4 * seen)
    shapes |= linear("visual.merger.mlp.2", 4 * seen, width)
    shapes |= {"model.embed_tokens.weight": (c["vocab_size"], width), "model.norm.weight": (width,)}
    keys = width // c["num_attention_heads"] * c["num_key_value_heads"]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part, size in (("q_proj", width), ("k_proj", keys), ("v_proj", keys)):
            shapes |= linear(f"{layer}.self_attn.{part}", width, size)
        shapes |= linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for part in ("gate_proj", "up_proj"):
            shapes |= linear(f"{layer}.mlp.{part}", width, inner, bias=False)
        shapes |= linear(f"{layer}.mlp.down_proj", inner, width, bias=False)
        shapes |= {f"{layer}.input_layernorm.weight": (width,)}
        shapes |= {f"{layer}.post_attention_layernorm.weight": (width,)}
    return shapes if c["tie_word_embeddings"] else shapes | {
        "lm_head.weight": (c["vocab_size"], width)
    }  # fmt: skip
