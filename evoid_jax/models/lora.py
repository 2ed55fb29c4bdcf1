"""LoRA adapters of the transformer: made, started from a file, merged, saved.

An adapter is a tree beside the base's: where the base has a `kernel` (layer, out, in), the adapter
has `a` (layer, in, R) and `b` (layer, R, out). `Wan` adds x @ a @ b * lora_scale.

The scale has one owner, `Wan.lora_scale`: alpha / rank of config.lora for a run's adapter, and 1
for what `load` reads. Files are of scale 1 (see `adapters`): `start` divides by the run's scale on
the way in, `save` multiplies by it on the way out.

Letters: L layers of a stack, I and O width in and out, R rank.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from evoid_jax.models import adapter_names, adapters
from evoid_jax.models.adapters import Adapter, Layer
from evoid_jax.models.wan_config import WanConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out")
MODULES = (*ATTENTION, "ffn_up", "ffn_down")  # what config.lora.modules may name
STACKS = {"main": ("blocks",), "main+vace": ("blocks", "vace_blocks")}
TORCH_NAMES = {"to_out": "to_out.0", "ffn_up": "ffn.net.0.proj", "ffn_down": "ffn.net.2"}
OUR_NAMES = {torch: ours for ours, torch in TORCH_NAMES.items()}
MODULE = re.compile(
    r"(?P<stack>blocks|vace_blocks)\.(?P<layer>\d+)\.((?P<attn>attn[12])\.)?"
    r"(?P<name>to_[qkv]|to_out\.0|ffn\.net\.0\.proj|ffn\.net\.2)"
)


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
      tree of float32 arrays, a (L, I, R) and b (L, R, O).

    Raises:
      ValueError: unknown targets or module, or no VACE block to adapt.
    """
    if targets not in STACKS:
        raise ValueError(f"lora targets {targets!r}: expected one of {', '.join(STACKS)}")
    if targets == "main+vace" and not config.vace_layers:
        raise ValueError("lora targets 'main+vace', but this base has no VACE blocks")
    if not modules or set(modules) - set(MODULES):
        raise ValueError(f"lora modules {tuple(modules)}: expected some of {', '.join(MODULES)}")
    kernels = {  # (L, O, I) by module
        path[:-1]: leaf.shape
        for path, leaf in traverse_util.flatten_dict(base_params).items()
        if path[0] in STACKS[targets] and path[-2] in modules and path[-1] == "kernel"
    }
    flat = {}
    keys = jax.random.split(key, len(kernels))
    for k, (path, (layers, width_out, width_in)) in zip(keys, sorted(kernels.items()), strict=True):
        shape_LIR, bound = (layers, width_in, rank), width_in**-0.5
        flat[(*path, "a")] = jax.random.uniform(k, shape_LIR, minval=-bound, maxval=bound)
        flat[(*path, "b")] = jnp.zeros((layers, rank, width_out))
    return traverse_util.unflatten_dict(flat)


def merge(base_params, lora, scale=1.0):
    """Add an adapter into the base: kernel + (a @ b)^T * scale, in the kernel's dtype.

    For float32 bases; in bfloat16 a small change is rounded away. Differentiable in `lora`. It
    saves the adapter's thin matmuls, which at small widths are a fifth of a forward pass.

    Args:
      base_params: the base's tree, kernels (L, O, I).
      lora: leaves a (L, I, R) and b (L, R, O).
      scale: `Wan.lora_scale` of the adapter.

    Returns:
      tree of the base's shapes; what the adapter does not touch is the same array.
    """
    base = traverse_util.flatten_dict(base_params)
    flat = traverse_util.flatten_dict(lora)
    for path in (path[:-1] for path in flat if path[-1] == "a"):
        kernel_LOI = base[(*path, "kernel")]
        a_LIR, b_LRO = flat[(*path, "a")], flat[(*path, "b")]
        delta_LOI = jnp.einsum("lir,lro->loi", a_LIR, b_LRO) * scale
        base[(*path, "kernel")] = kernel_LOI + delta_LOI.astype(kernel_LOI.dtype)
    return traverse_util.unflatten_dict(base)


def distance(base_params, lora, other, *, scale: float):
    """Return how far apart two adapters put the kernels that they change, relative to these.

    |a b - a' b'| * scale / |kernel|, with the norm over all elements of all kernels together. It is
    exactly 0 for equal adapters, and no kernel is made.

    Args:
      base_params: the base's tree, kernels (L, O, I).
      lora, other: trees of the same leaves, a (L, I, R) and b (L, R, O).
      scale: `Wan.lora_scale` of both.

    Returns:
      float32 scalar.
    """
    base = traverse_util.flatten_dict(base_params)
    one, two = traverse_util.flatten_dict(lora), traverse_util.flatten_dict(other)
    square = lambda x: jnp.square(x.astype(jnp.float32)).sum()
    product = partial(jnp.einsum, precision="highest")
    apart = whole = jnp.zeros(())
    for path in (path[:-1] for path in one if path[-1] == "a"):
        a_LIR, b_LRO = one[(*path, "a")], one[(*path, "b")]
        a2_LIR, b2_LRO = two[(*path, "a")], two[(*path, "b")]
        # a b - a' b' = (a - a') b + a' (b - b'), as one product of rank 2 R = Q: the two adapters
        # are close, and the difference of their squares would be noise.
        left_LIQ = jnp.concatenate([a_LIR - a2_LIR, a2_LIR], axis=2)
        right_LQO = jnp.concatenate([b_LRO, b_LRO - b2_LRO], axis=1)
        # |left right|^2 is the sum of (left^T left) * (right right^T), two small squares.
        left_LQQ = product("liq,lip->lqp", left_LIQ, left_LIQ)
        right_LQQ = product("lqo,lpo->lqp", right_LQO, right_LQO)
        apart += (left_LQQ * right_LQQ).sum()
        whole += square(base[(*path, "kernel")])
    return scale * jnp.sqrt(jnp.maximum(apart, 0) / whole)


class Slot(NamedTuple):
    """The place of a module's layer in a tree."""

    path: tuple[str, ...]  # such as (blocks, attn1, to_q)
    layer: int


def to_adapter(tree, *, scale: float) -> Adapter:
    """Return a tree's layers by diffusers' names, at scale 1.

    Args:
      tree: leaves a (L, I, R) and b (L, R, O).
      scale: that of the `Wan` which the tree is used with. It goes into B.
    """
    layers = {}
    flat = traverse_util.flatten_dict(tree)
    for stack, *inner, side in flat:
        if side != "a":
            continue
        a_LIR = np.asarray(flat[(stack, *inner, "a")], np.float32)
        b_LRO = np.asarray(flat[(stack, *inner, "b")], np.float32) * np.float32(scale)
        module = ".".join(TORCH_NAMES.get(name, name) for name in inner)
        for i, (a_IR, b_RO) in enumerate(zip(a_LIR, b_LRO, strict=True)):
            a_RI, b_OR = np.ascontiguousarray(a_IR.T), np.ascontiguousarray(b_RO.T)
            layers[f"{stack}.{i}.{module}"] = Layer(a_RI, b_OR)
    return Adapter(layers, {}, {})


def save(file: str | Path, tree, *, scale: float, metadata: dict[str, str] | None = None) -> None:
    """Write `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights` reads.

    Args:
      tree: leaves a (L, I, R) and b (L, R, O).
      scale: that of the `Wan` which the tree is used with: alpha / rank of a run, 1 after `load`.
      metadata: strings for the header, beside its rank, alpha and scale; diffusers ignores them.
    """
    adapter = to_adapter(tree, scale=scale)._replace(header=metadata or {})
    adapters.write(file, adapters.to_diffusers(adapter), adapter)


def load(path: str | Path, config: WanConfig) -> dict:
    """Read an adapter's file or folder for a base; use the tree at lora_scale 1.

    Modules and layers that the file lacks, and ranks below its highest, are zero.

    Returns:
      tree of float32 arrays, a (L, I, R) and b (L, R, O).

    Raises:
      FileNotFoundError, ValueError: see `adapters.read`; or it is of another base, or changes more
        than a tree can hold.
    """
    adapter, slots = _read_for(path, config)
    rank = max(adapter.layers[module].rank for module in slots)
    flat = {}
    for path_in_tree in {slot.path for slot in slots.values()}:
        width_in, width_out = _widths(path_in_tree, config)
        layers = _layers(path_in_tree[0], config)
        flat[(*path_in_tree, "a")] = np.zeros((layers, width_in, rank), np.float32)
        flat[(*path_in_tree, "b")] = np.zeros((layers, rank, width_out), np.float32)
    _place(adapter, slots, flat, scale=1.0)
    return traverse_util.unflatten_dict(flat)


def start(path: str | Path, fresh, config: WanConfig, *, scale: float) -> dict:
    """Return a run's fresh adapter with an adapter file placed in it, to go on from.

    Its effect at the run's scale is the file's. What the file lacks (modules, layers, ranks below
    the run's) keeps the fresh draw in `a` and zero in `b`: no effect yet, and trainable.

    Args:
      path: an adapter's file or folder.
      fresh: tree of `init`, a (L, I, R) and b (L, R, O); of its shapes is the result.
      config: the base's.
      scale: the run's, alpha / rank of config.lora.

    Raises:
      FileNotFoundError, ValueError: see `adapters.read`; or it is of another base, or the run's
        settings leave no room for it: the message names those that would.
    """
    adapter, slots = _read_for(path, config)
    flat = {key: np.array(x) for key, x in traverse_util.flatten_dict(fresh).items()}
    rank = jax.tree.leaves(fresh)[0].shape[-1]  # leaves come by name: the first is an `a`
    homeless = {module: slot for module, slot in slots.items() if (*slot.path, "a") not in flat}
    acting = {module: s for module, s in homeless.items() if adapter.layers[module].acts}
    if idle := homeless.keys() - acting.keys():
        names = adapter_names.grouped(sorted(idle))
        logging.warning("%s: left out, they are zero and not trained: %s", path, names)
    slots = {module: slot for module, slot in slots.items() if module not in idle}
    _check_room(path, adapter, slots, flat, rank=rank, scale=scale)
    _place(adapter, slots, flat, scale=scale)
    return traverse_util.unflatten_dict({key: jnp.asarray(x) for key, x in flat.items()})


def _read_for(path: str | Path, config: WanConfig) -> tuple[Adapter, dict[str, Slot]]:
    """Read an adapter; returns it and the slots of its layers in a tree of this base."""
    adapter = adapters.read(path)
    slots = {module: slot for module in adapter.layers if (slot := _slot(module)) is not None}
    if rest := adapters.drop_idle(adapter, set(slots), "an adapter beside its model"):
        raise ValueError(
            f"{path} changes more than an adapter beside its model can: "
            f"{adapter_names.grouped(rest)}. Merge it into the model, and use that: "
            f"{adapters.MERGE}"
        )
    if not slots:
        raise ValueError(f"{path} adapts no attention or feed-forward layer")
    for module, slot in slots.items():
        _check_base(path, module, slot, adapter.layers[module], config)
    return adapter, slots


def _slot(module: str) -> Slot | None:
    match = MODULE.fullmatch(module)
    if match is None:
        return None
    attn = (match["attn"],) if match["attn"] else ()
    name = OUR_NAMES.get(match["name"], match["name"])
    return Slot((match["stack"], *attn, name), int(match["layer"]))


def _layers(stack: str, config: WanConfig) -> int:
    return config.num_layers if stack == "blocks" else len(config.vace_layers)


def _widths(path: tuple[str, ...], config: WanConfig) -> tuple[int, int]:
    """Return the widths in and out of a module."""
    return (
        config.ffn_dim if path[-1] == "ffn_down" else config.dim,
        config.ffn_dim if path[-1] == "ffn_up" else config.dim,
    )


def _check_base(path, module: str, slot: Slot, layer: Layer, config: WanConfig) -> None:
    layers = _layers(slot.path[0], config)
    if slot.layer >= layers:
        raise ValueError(
            f"{path}: {module} is beyond this base, which has {layers} {slot.path[0]}; the adapter "
            "is of another model"
        )
    expected, ranks = _widths(slot.path, config), (layer.rank, layer.rank)
    shapes = layer.a_RI.shape, layer.b_OR.shape
    if shapes != ((ranks[0], expected[0]), (expected[1], ranks[1])):
        raise ValueError(
            f"{path}: {module} goes from width {shapes[0][1]} to {shapes[1][0]}, this base's from "
            f"{expected[0]} to {expected[1]}; the adapter is of another model"
        )


def _check_room(path, adapter: Adapter, slots, flat, *, rank: int, scale: float) -> None:
    """Raise unless a run's tree has room for every layer; name all settings that make it."""
    needed = []
    highest = max((adapter.layers[module].rank for module in slots), default=0)
    if highest > rank:
        alpha = f"{scale * highest:g}"  # keeps alpha / rank
        needed.append(f"config.lora.rank={highest} (with config.lora.alpha={alpha})")
    stacks = {slot.path[0] for slot in slots.values()} | {key[0] for key in flat}
    if stacks - {key[0] for key in flat}:
        needed.append("config.lora.targets=main+vace")
    modules = {key[-2] for key in flat}
    wanted = modules | {slot.path[-1] for slot in slots.values()}
    if wanted - modules:
        names = ",".join(f"'{name}'" for name in MODULES if name in wanted)
        needed.append(f'config.lora.modules="({names})"')
    if needed:
        raise ValueError(f"{path} holds more than this run trains; set {' and '.join(needed)}")


def _place(adapter: Adapter, slots: dict[str, Slot], flat, *, scale: float) -> None:
    """Put layers of scale 1 into the leaves of a tree of `scale`, in place."""
    for module, slot in slots.items():
        layer = adapter.layers[module]
        flat[(*slot.path, "a")][slot.layer, :, : layer.rank] = layer.a_RI.T
        # Rows of `b` past the layer's rank are zero already, in a fresh tree as in an empty one.
        flat[(*slot.path, "b")][slot.layer, : layer.rank] = layer.b_OR.T / np.float32(scale)
