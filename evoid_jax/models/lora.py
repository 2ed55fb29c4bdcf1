"""LoRA adapters of the transformer: made, saved and loaded as diffusers, PEFT and ComfyUI do.

An adapter is a tree beside the base's: where the base has a `kernel` (layer, out, in), the adapter
has `a` (layer, in, R) and `b` (layer, R, out). `Wan` adds x @ a @ b * lora_scale.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from evoid_jax.models import native
from evoid_jax.models.wan import WanConfig
from evoid_jax.models.weights import check_finite, read_header, write_tensors

ATTENTION = ("to_q", "to_k", "to_v", "to_out")
STACKS = {"main": ("blocks",), "main+vace": ("blocks", "vace_blocks")}
TORCH_NAMES = {"to_out": "to_out.0", "ffn_up": "ffn.net.0.proj", "ffn_down": "ffn.net.2"}
OUR_NAMES = {torch: ours for ours, torch in TORCH_NAMES.items()}
KEY = re.compile(
    r"(transformer\.)?(?P<stack>blocks|vace_blocks)\.(?P<layer>\d+)\."
    r"(?P<attn>attn[12]\.)?(?P<name>to_[qkv]|to_out\.0|ffn\.net\.0\.proj|ffn\.net\.2)"
    r"\.lora_(?P<side>[AB])(\.\w+)?\.weight"  # PEFT puts the adapter's name before `weight`
)
COMFYUI_KEY = re.compile(
    r"diffusion_model\.(?P<module>.+)\.(lora_(?P<side>A|B|down|up)\.weight|alpha)"
)
SIDES = {"A": "A", "down": "A", "B": "B", "up": "B", None: "alpha"}
FROM_NATIVE = {original: ours for ours, original in native.BLOCK.items()}
PREFIX = "transformer."  # the part of a pipeline that an adapter belongs to
METADATA = "lora_adapter_metadata"  # diffusers' key in the safetensors header


def init(key, base_params, config: WanConfig, rank=32, targets="main", modules=ATTENTION):
    """Make a fresh adapter, which changes nothing: `b` is zero.

    Args:
      key: of `a`, uniform in +-1/sqrt(in) as PEFT draws it (kaiming_uniform with a=sqrt(5)).
      base_params: the base's tree; only its shapes are read.
      config: the base's.
      rank: R.
      targets: "main" (hints stay shared between roles) or "main+vace".
      modules: layer names, of to_q, to_k, to_v, to_out (both attentions), ffn_up and ffn_down.

    Returns:
      tree of float32 arrays.

    Raises:
      ValueError: unknown targets or module, or no VACE block to adapt.
    """
    if targets not in STACKS:
        raise ValueError(f"lora targets {targets!r}: expected one of {', '.join(STACKS)}")
    if targets == "main+vace" and not config.vace_layers:
        raise ValueError("lora targets 'main+vace', but this base has no VACE blocks")
    known = (*ATTENTION, "ffn_up", "ffn_down")
    if not modules or set(modules) - set(known):
        raise ValueError(f"lora modules {tuple(modules)}: expected some of {', '.join(known)}")
    kernels = {
        path[:-1]: leaf.shape
        for path, leaf in traverse_util.flatten_dict(base_params).items()
        if path[0] in STACKS[targets] and path[-2] in modules and path[-1] == "kernel"
    }
    flat = {}
    keys = jax.random.split(key, len(kernels))
    for k, (path, (layers, out, width)) in zip(keys, sorted(kernels.items()), strict=True):
        bound = width**-0.5
        flat[(*path, "a")] = jax.random.uniform(
            k, (layers, width, rank), minval=-bound, maxval=bound
        )
        flat[(*path, "b")] = jnp.zeros((layers, rank, out))
    return traverse_util.unflatten_dict(flat)


def merge(base_params, lora, scale=1.0):
    """Add an adapter into the base: kernel + (a @ b)^T * scale, in the kernel's dtype.

    For float32 bases; in bfloat16 a small change is rounded away. Differentiable in `lora`. It
    saves the adapter's thin matmuls, which at small widths are a fifth of a forward pass.
    """
    base = traverse_util.flatten_dict(base_params)
    flat = traverse_util.flatten_dict(lora)
    for path in (path[:-1] for path in flat if path[-1] == "a"):
        kernel = base[(*path, "kernel")]
        a, b = flat[(*path, "a")], flat[(*path, "b")]
        delta = jnp.einsum("lir,lro->loi", a, b) * scale
        base[(*path, "kernel")] = kernel + delta.astype(kernel.dtype)
    return traverse_util.unflatten_dict(base)


def to_peft(lora, alpha, rank) -> dict[str, np.ndarray]:
    """Name an adapter's tensors as diffusers pipelines do, `transformer.blocks.0.attn1.to_q...`.

    alpha / rank goes into B: a reader that knows no alpha takes alpha = rank, scale 1.
    """
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(lora).items():
        stack, *inner, side = path
        module = ".".join(TORCH_NAMES.get(name, name) for name in inner)
        scale = alpha / rank if side == "b" else 1.0
        for i, x in enumerate(np.asarray(leaf, np.float32) * np.float32(scale)):
            key = f"{PREFIX}{stack}.{i}.{module}.lora_{side.upper()}.weight"
            tensors[key] = np.ascontiguousarray(x.T)
    return tensors


def from_peft(tensors: dict[str, np.ndarray], config: WanConfig) -> dict:
    """Stack an adapter's tensors over layers; the inverse of `to_peft` at alpha = rank.

    Raises:
      ValueError: a key of another format, a layer without its pair, or shapes that do not fit;
        the message names the tensor.
    """
    if not tensors:
        raise ValueError("the adapter holds no tensor")
    stacks = {"blocks": config.num_layers, "vace_blocks": len(config.vace_layers)}
    found: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    for key, x in tensors.items():
        match = _match(key)
        name = OUR_NAMES.get(match["name"], match["name"])
        attn = (match["attn"][:-1],) if match["attn"] else ()
        path = (match["stack"], *attn, name, match["side"].lower())
        found.setdefault(path, {})[int(match["layer"])] = np.asarray(x, np.float32).T
    flat = {}
    for path, layers in found.items():
        _check(path, layers, found, stacks[path[0]], config)
        flat[path] = np.stack([layers[i] for i in sorted(layers)])
    return traverse_util.unflatten_dict(flat)


def from_comfyui(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name as diffusers does what ComfyUI and the original code name `diffusion_model.blocks...`.

    alpha / rank of each layer goes into B; a layer without `.alpha` has scale 1.

    Raises:
      ValueError: a key of another format, or a layer without its pair; names the tensor.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, x in tensors.items():
        match = COMFYUI_KEY.fullmatch(key)
        module = match and native.block_module(match["module"], FROM_NATIVE)
        if not module:
            raise ValueError(
                f"adapter tensor {key}: expected names like "
                "diffusion_model.blocks.0.self_attn.q.lora_A.weight (ComfyUI)"
            )
        layers.setdefault(module, {})[SIDES[match["side"]]] = x
    found = {}
    for module, parts in layers.items():
        for side in {"A", "B"} - parts.keys():
            raise ValueError(f"adapter {module}: its other half (lora_{side}) is missing")
        scale = float(parts.get("alpha", len(parts["A"]))) / len(parts["A"])
        found[f"{PREFIX}{module}.lora_A.weight"] = parts["A"]
        found[f"{PREFIX}{module}.lora_B.weight"] = parts["B"] * np.float32(scale)
    return found


def to_comfyui(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename an adapter of `to_peft` or `read` for ComfyUI, with `.alpha` = rank: scale 1.

    Raises:
      ValueError: the adapter has layers on VACE blocks; names one.
    """
    found = {}
    for key, x in tensors.items():
        module, side = key.removeprefix(PREFIX).split(".lora_")
        if module.startswith("vace_blocks"):
            raise ValueError(
                f"adapter tensor {key}: ComfyUI's format cannot hold an adapter of VACE blocks, "
                "diffusers refuses such a file; write --to=lora instead"
            )
        name = f"diffusion_model.{native.block_module(module, native.BLOCK)}"
        found[f"{name}.lora_{side}"] = x
        if side == "A.weight":
            found[f"{name}.alpha"] = np.array(len(x), np.float32)
    return found


def save(file: str | Path, lora, alpha, metadata: dict[str, str] | None = None):
    """Write `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights` reads.

    `metadata` (strings) goes into the header with rank and alpha; diffusers ignores it.
    """
    rank = jax.tree.leaves(lora)[0].shape[-1]  # leaves come by name: the first is an `a`
    write_tensors(file, to_peft(lora, alpha, rank), about(rank, alpha) | (metadata or {}))


def about(rank: int, alpha: float) -> dict[str, str]:
    """Return what the header of an adapter file says of its scale."""
    scale = "1: alpha / rank is already in lora_B"
    return {"rank": str(rank), "alpha": f"{alpha:g}", "scale": scale}


def read(file: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read an adapter file of ours, diffusers', PEFT's or ComfyUI's.

    Returns:
      (tensors, metadata): float32 tensors named as `to_peft` names them, for scale 1; and the
      strings of the file's header.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, a key of another format, a tensor that is not finite, or a
        header that asks for a variant other than plain LoRA; names file and tensor.
    """
    stored, header = read_header(file)
    tensors = {}
    for key, tensor in stored.items():
        tensors[key] = np.asarray(tensor.read(), np.float32)
        check_finite(tensors[key], tensor.where)
    settings = json.loads(header.pop(METADATA, "{}"))
    try:
        if any(key.startswith("diffusion_model.") for key in tensors):
            return from_comfyui(tensors), header
        scale, named = np.float32(_header_scale(settings)), {}
        for key, x in tensors.items():
            match = _match(key)
            module = f"{match['stack']}.{match['layer']}.{match['attn'] or ''}{match['name']}"
            x = x * scale if match["side"] == "B" else x
            named[f"{PREFIX}{module}.lora_{match['side']}.weight"] = x
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return named, header


def load(file: str | Path, config: WanConfig) -> dict:
    """Read an adapter file for a base; use it at lora_scale 1.

    Raises:
      FileNotFoundError, ValueError: see `read` and `from_peft`.
    """
    tensors, _ = read(file)
    try:
        return from_peft(tensors, config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _match(key: str) -> re.Match:
    match = KEY.fullmatch(key)
    if not match:
        raise ValueError(
            f"adapter tensor {key}: expected names like "
            "transformer.blocks.0.attn1.to_q.lora_A.weight (diffusers, PEFT)"
        )
    return match


def _header_scale(header: dict) -> float:
    """Return alpha / rank of diffusers' `lora_adapter_metadata`, 1 where there is none."""
    settings = {key.removeprefix(PREFIX): value for key, value in header.items()}
    for key in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "lora_bias"):
        if settings.get(key):
            raise ValueError(f"adapter with {key} {settings[key]!r} is not supported")
    return settings["lora_alpha"] / settings["r"] if "lora_alpha" in settings else 1.0


def _check(path, layers, found, expected: int, config: WanConfig):
    """Raise unless a leaf has every layer, its partner, one rank and the base's width."""
    name = ".".join(path)
    if sorted(layers) != list(range(expected)):
        raise ValueError(
            f"adapter {name}: has layers {sorted(layers)}, expected all {expected} of the base"
        )
    partner = found.get((*path[:-1], "b" if path[-1] == "a" else "a"))
    if partner is None:
        raise ValueError(f"adapter {name}: its other half (lora_A or lora_B) is missing")
    wide = config.ffn_dim if path[-2:] in (("ffn_up", "b"), ("ffn_down", "a")) else config.dim
    rank_axis, wide_axis = (1, 0) if path[-1] == "a" else (0, 1)
    ranks = {x.shape[rank_axis] for x in layers.values()}
    ranks |= {x.shape[1 - rank_axis] for x in partner.values()}
    widths = {x.shape[wide_axis] for x in layers.values()}
    if len(ranks) > 1 or widths != {wide}:
        raise ValueError(
            f"adapter {name}: ranks {sorted(ranks)} and widths {sorted(widths)}, "
            f"expected one rank and width {wide}"
        )
