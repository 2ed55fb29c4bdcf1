"""Diffusers folders in and out: one table of rules per model, read in both directions.

A rule ties one torch key to one leaf of our parameter tree. Layers that we scan over are stacked on
a leading axis; their rule has `{i}` in the key. `to_params` and `to_tensors` are inverses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save_file


class Layout(NamedTuple):
    """How one tensor's axes map: torch -> ours, and back."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
CONV = Layout(  # (out, in, *kernel) <-> (*kernel, in, out)
    lambda x: np.moveaxis(x, (0, 1), (-1, -2)),
    lambda x: np.moveaxis(x, (-1, -2), (0, 1)),
)


class Rule(NamedTuple):
    """One torch key (with `{i}` for the layer of a stack) and its leaf in our tree."""

    key: str
    path: tuple[str, ...]
    layout: Layout = SAME
    layers: int = 0  # > 0: `layers` torch tensors stacked on a leading axis


def to_params(tensors: dict[str, np.ndarray], rules: list[Rule], dtype=None) -> dict:
    """Build our parameter tree from torch-named tensors.

    Raises:
      KeyError: a rule's tensor is missing, or a tensor has no rule; the message names it.
    """
    left = set(tensors)

    def take(key: str, layout: Layout) -> np.ndarray:
        if key not in tensors:
            raise KeyError(f"tensor {key} is missing; the file holds {len(tensors)} tensors")
        left.discard(key)
        x = np.ascontiguousarray(layout.to_jax(tensors[key]))
        return x if dtype is None else x.astype(dtype)

    flat = {}
    for rule in rules:
        if rule.layers:
            stack = [take(rule.key.format(i=i), rule.layout) for i in range(rule.layers)]
            flat[rule.path] = np.stack(stack)
        else:
            flat[rule.path] = take(rule.key, rule.layout)
    if left:
        raise KeyError(f"{len(left)} tensors belong to no weight of ours, such as {min(left)}")
    return traverse_util.unflatten_dict(flat)


def to_tensors(params: dict, rules: list[Rule]) -> dict[str, np.ndarray]:
    """Name our parameters as torch does; the inverse of `to_params`."""
    flat = traverse_util.flatten_dict(params)
    tensors = {}
    for rule in rules:
        leaf = np.asarray(flat[rule.path])
        for i in range(rule.layers or 1):
            x = leaf[i] if rule.layers else leaf
            tensors[rule.key.format(i=i)] = np.ascontiguousarray(rule.layout.to_torch(x))
    return tensors


def read_config(folder: str | Path) -> dict:
    """Return `config.json` of a model folder as a dict."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a diffusers model folder")
    return json.loads(path.read_text())


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a model folder, one file or shards with an index.

    Raises:
      FileNotFoundError: the folder has no safetensors, or the index names an absent shard.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(named - {f.name for f in files})
        if missing:
            raise FileNotFoundError(f"{index} names {missing[0]}, which is not in {folder}")
        files = [folder / name for name in sorted(named)]
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}")
    tensors = {}
    for file in files:
        with safe_open(file, framework="numpy") as reader:
            tensors |= {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
    return tensors


def write_tensors(file: str | Path, tensors: dict[str, np.ndarray], metadata: dict | None = None):
    """Write tensors as one safetensors file, beside its place first, then renamed into it."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(tensors, part, {"format": "pt"} | (metadata or {}))
    part.replace(file)
