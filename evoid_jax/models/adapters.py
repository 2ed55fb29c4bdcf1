"""Adapter files: read from every tool's format, written for diffusers, PEFT and ComfyUI.

Reading folds whatever scale a file states into B. After it an adapter's effect is kernel + B A and
nothing else, so that no later step asks about alpha again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from evoid_jax import files
from evoid_jax.models import adapter_names, adapter_scale, weights
from evoid_jax.models.adapter_names import COMFYUI, KOHYA, PEFT, PREFIX
from evoid_jax.models.weights import Tensor

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
FILES = (adapter_scale.PEFT_FILE, DIFFUSERS_FILE)  # by which a folder is known
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NEEDS = {"A": "B", "B": "A", "alpha": "A", "B bias": "B"}
HALVES = {"A": "lora_A (lora_down)", "B": "lora_B (lora_up)"}
MERGE = "python -m evoid_jax.convert MODEL NEW --lora=FILE"


class Layer(NamedTuple):
    """The low-rank part of one module: what is added to its kernel is b @ a."""

    a_RI: np.ndarray  # of a convolution (R, in, *kernel)
    b_OR: np.ndarray  # of a convolution (out, R, 1, 1, 1)

    @property
    def rank(self) -> int:
        return len(self.a_RI)

    @property
    def acts(self) -> bool:
        return bool(self.a_RI.any() and self.b_OR.any())


class Adapter(NamedTuple):
    """Everything an adapter file holds, in float32, at scale 1."""

    layers: dict[str, Layer]  # by diffusers' name of the module, such as blocks.0.attn1.to_q
    deltas: dict[str, np.ndarray]  # by diffusers' key of a tensor: what is added to it
    header: dict[str, str]


# --- In.


def is_folder(path: str | Path) -> bool:
    """Tell whether a folder is an adapter's: of PEFT's or diffusers' save functions."""
    names = (*FILES, adapter_scale.CONFIG, "adapter_model.bin")
    return Path(path).is_dir() and any((Path(path) / name).is_file() for name in names)


def locate(path: str | Path) -> Path:
    """Return the adapter file of a path, which may be a folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a folder with two.
    """
    path = files.user_path(path)
    if not path.is_dir():
        return path
    # A dead link is present, too: `read` says what is wrong with it.
    present = [path / name for name in FILES if os.path.lexists(path / name)]
    if len(present) > 1:
        raise ValueError(f"{path} holds {' and '.join(FILES)}; give the path of one of them")
    if not present:
        pickles = [file for file in sorted(path.iterdir()) if file.suffix in PICKLES]
        if pickles:
            return pickles[0]  # `read` says what to do with it
        # A run keeps its adapter in export/, other trainers theirs in a folder for each save.
        inside = sorted(path.glob("*.safetensors")) or sorted(path.glob("*/*.safetensors"))
        others = ", ".join(str(file.relative_to(path)) for file in inside)
        hint = f"; give the path of one of {others}" if others else ""
        raise FileNotFoundError(f"{path} holds no {' and no '.join(FILES)}{hint}")
    return present[0]


def read(path: str | Path) -> Adapter:
    """Read an adapter of any tool from a file, or from a folder that holds one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a pickle, a variant other than plain LoRA, a tensor that fits no module, is not
        finite, of a wrong type or shape, or without its other half, or statements of alpha that
        contradict each other; names file and tensor.
    """
    file = locate(path)
    _check_file(file)
    stored, header = weights.read_header(file)
    if not stored:
        raise ValueError(f"{file} holds no tensor")
    modules, written = _by_module(stored)
    halves = {module: _halves(parts) for module, parts in modules.items() if "A" in parts}
    stated = {
        module: adapter_scale.Stated(written[module], layer.rank, _alpha(modules[module]))
        for module, layer in halves.items()
    }
    kohya = all(key.startswith(KOHYA) for key in stored)
    peft = any(key.startswith(PEFT) for key in stored)
    try:
        scales = adapter_scale.scales(file, header, stated, kohya, peft) if stated else {}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    layers = {
        module: layer._replace(b_OR=_scaled(layer.b_OR, scales[module], modules[module]["B"]))
        for module, layer in halves.items()
    }
    return Adapter(layers, _deltas(modules, scales), header)


def _scaled(x: np.ndarray, scale: float, tensor: Tensor) -> np.ndarray:
    """Return an array times a scale; raise where float32 makes nothing or infinity of them."""
    with np.errstate(over="ignore"):
        times = np.float32(scale)
        scaled = x * times
    label = f"{tensor.label}, times its scale {scale:g},"
    if not times:
        raise ValueError(f"{label} is nothing in float32")
    weights.check_finite(scaled, label)
    return scaled


def _check_file(file: Path) -> None:
    """Raise where no file is, or a pickle, which is not opened."""
    files.require_file(file, "expected an adapter's file or folder")
    with open(file, "rb") as f:
        start = f.read(9)
    # A safetensors file starts with 8 bytes of length, which may be any, and then with a brace.
    is_pickle = start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{"
    if file.suffix in PICKLES or is_pickle:
        raise ValueError(
            f"{file} is a pickle of PyTorch, which can run any code; save it as safetensors: "
            "import torch, safetensors.torch as st; "
            f'st.save_file(torch.load("{file.name}", weights_only=True), "{file.stem}.safetensors")'
        )


def _by_module(stored: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Group tensors by module and part; returns each module's name as it is written, too."""
    modules: dict[str, dict[str, Tensor]] = {}
    written: dict[str, str] = {}
    for key, tensor in stored.items():
        name = _parse(key, tensor)
        parts = modules.setdefault(name.module, {})
        if name.part in parts:
            raise ValueError(f"{tensor.label} and {parts[name.part].label} are the same part")
        parts[name.part], written[name.module] = tensor, name.written
    for parts in modules.values():
        _check_complete(parts)
    return modules, written


def _parse(key: str, tensor: Tensor) -> adapter_names.Name:
    try:
        return adapter_names.parse(key)
    except ValueError as error:
        raise ValueError(f"{tensor.label} {error}") from None


def _check_complete(parts: dict[str, Tensor]) -> None:
    """Raise where a part of a module lacks another that it needs, or is there in two forms."""
    for part, needed in NEEDS.items():
        if part in parts and needed not in parts:
            raise ValueError(
                f"{parts[part].label} stands alone: the module's {HALVES[needed]} is missing"
            )
    if "B bias" in parts and "bias" in parts:
        raise ValueError(f"{parts['bias'].label} and {parts['B bias'].label} are of the same bias")


def _halves(parts: dict[str, Tensor]) -> Layer:
    """Read a module's two halves, not scaled yet."""
    a, b = _floats(parts["A"]), _floats(parts["B"])
    for x, tensor in ((a, parts["A"]), (b, parts["B"])):
        if x.ndim < 2:
            raise ValueError(f"{tensor.label} has shape {x.shape}; expected a matrix")
    if b.shape[1] != len(a) or b.size != b.shape[0] * b.shape[1]:
        raise ValueError(
            f"{parts['A'].label} has shape {a.shape} and lora_B {b.shape}; expected (rank, in) and "
            "(out, rank)"
        )
    return Layer(a, b)


def _alpha(parts: dict[str, Tensor]) -> float | None:
    if "alpha" not in parts:
        return None
    tensor = parts["alpha"]
    if np.prod(tensor.shape) != 1:
        raise ValueError(f"{tensor.label} has shape {tensor.shape}; expected one number")
    return adapter_scale.number(np.asarray(tensor.read()).item(), tensor.label)


def _deltas(modules: dict[str, dict[str, Tensor]], scales: dict[str, float]):
    """Read what is added to whole tensors; lora_B's bias is scaled as its layer is."""
    deltas = {}
    for module, parts in modules.items():
        for part in ("weight", "bias"):
            if part in parts:
                deltas[adapter_names.tensor_key(module, part)] = _floats(parts[part])
        if "B bias" in parts:
            bias = _scaled(_floats(parts["B bias"]), scales[module], parts["B bias"])
            deltas[adapter_names.tensor_key(module, "bias")] = bias
    return deltas


def _floats(tensor: Tensor) -> np.ndarray:
    """Return a tensor as float32.

    Raises:
      ValueError: it is empty, of integers, or not finite; names it.
    """
    if tensor.dtype.kind == "i":
        raise ValueError(f"{tensor.label} is {tensor.dtype}; expected floating-point numbers")
    if not np.prod(tensor.shape):
        raise ValueError(
            f"{tensor.label} has shape {tensor.shape}, it is empty; was it saved from a part of a "
            "sharded model (ZeRO-3, FSDP)?"
        )
    x = np.asarray(tensor.read(), np.float32)
    weights.check_finite(x, tensor.label)
    return x


# --- Out.


def scale_of_file(adapter: Adapter) -> dict[str, str]:
    """Return what the header of an adapter file says of its scale: alpha is rank, always."""
    ranks = ", ".join(map(str, sorted({layer.rank for layer in adapter.layers.values()})))
    return ({"rank": ranks, "alpha": ranks} if ranks else {}) | {"scale": "1"}


def write(file: str | Path, tensors: dict[str, np.ndarray], adapter: Adapter) -> None:
    """Write an adapter's tensors, named by `to_diffusers` or `to_comfyui`, under its header.

    Raises:
      ValueError: a tensor is not finite.
      OSError: the file cannot be written.
    """
    weights.write_tensors(file, tensors, adapter.header | scale_of_file(adapter))


def to_diffusers(adapter: Adapter) -> dict[str, np.ndarray]:
    """Name an adapter's tensors as diffusers and PEFT do, `transformer.blocks.0.attn1.to_q...`.

    Raises:
      ValueError: it holds changes of whole tensors, which diffusers would drop in silence.
    """
    rest = drop_idle(adapter, set(adapter.layers), "a file for diffusers")
    if rest:
        raise ValueError(
            f"a file for diffusers cannot hold {adapter_names.grouped(rest)}; write --to=comfyui, "
            f"or merge the adapter into its model: {MERGE}"
        )
    tensors = {}
    for module, layer in adapter.layers.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(layer.a_RI)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(layer.b_OR)
    return tensors


def to_comfyui(adapter: Adapter) -> dict[str, np.ndarray]:
    """Name an adapter's tensors as ComfyUI does, with an alpha of each layer's rank: scale 1.

    VACE blocks are diffusion_model.vace_blocks..., as in ComfyUI's own VACE model; diffusers reads
    such a file only where it has main blocks alone.
    """
    tensors = {}
    for module, layer in adapter.layers.items():
        name = f"{COMFYUI}{adapter_names.original(module)}"
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(layer.a_RI)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(layer.b_OR)
        tensors[f"{name}.alpha"] = np.array(layer.rank, np.float32)
    for key, delta in adapter.deltas.items():
        part = ".diff_b" if key.endswith(".bias") else ".diff"
        module = key.removesuffix(".bias").removesuffix(".weight")
        tensors[f"{COMFYUI}{adapter_names.original(module)}{part}"] = delta
    return tensors


def drop_idle(adapter: Adapter, held: set[str], holder: str) -> list[str]:
    """Return the parts outside of `held` that do something; name those that do nothing in a log.

    held: modules whose layers have a place. holder: what has no place for the rest.
    """
    acts = {name: layer.acts for name, layer in adapter.layers.items() if name not in held}
    acts |= {key: bool(delta.any()) for key, delta in adapter.deltas.items()}
    if idle := [name for name, does in acts.items() if not does]:
        logging.warning(
            "left out, %s has no place for them and they are zero: %s",
            holder,
            adapter_names.grouped(idle),
        )
    return [name for name, does in acts.items() if does]
