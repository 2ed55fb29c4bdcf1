"""Diffusers folders in and out: one table of rules per model, read in both directions.

A rule ties one torch key to one leaf of our parameter tree. Layers that we scan over are stacked on
a leading axis; their rule has `{i}` in the key. `to_params` and `to_tensors` are inverses;
`loading.load` is `to_params` for models that do not fit in the host's memory.

A `Tensor` is read when it is used, as a memory map: a pass over a model holds one at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes  # noqa: F401  numpy learns the name "bfloat16" from it
import numpy as np
from flax import traverse_util

# safetensors' names, in the order in which it lays tensors out.
DTYPES = {"I64": "i8", "F64": "f8", "F32": "f4", "I32": "i4", "BF16": "bfloat16", "F16": "f2"}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# All of these bits are set in an infinity and in a NaN, and not all in any other number.
EXPONENTS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "bfloat16": 0xFF << 7}
EXPONENTS |= {"float16": 0x1F << 10}


class Layout(NamedTuple):
    """How one tensor's axes map: torch -> ours, and back."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
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


class Tensor(NamedTuple):
    """A tensor that is not in memory yet."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    where: str  # "tensor KEY of FILE", for messages

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def keys(rule: Rule) -> list[str]:
    """Return the torch keys of a rule, one per layer."""
    return [rule.key.format(i=i) for i in range(rule.layers or 1)]


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
        stack = [take(key, rule.layout) for key in keys(rule)]
        flat[rule.path] = np.stack(stack) if rule.layers else stack[0]
    if left:
        raise KeyError(f"{len(left)} tensors belong to no weight of ours, such as {min(left)}")
    return traverse_util.unflatten_dict(flat)


def to_tensors(params: dict, rules: list[Rule]) -> dict[str, np.ndarray]:
    """Name our parameters as torch does; the inverse of `to_params`."""
    flat = traverse_util.flatten_dict(params)
    tensors = {}
    for rule in rules:
        leaf = np.asarray(flat[rule.path])
        for i, key in enumerate(keys(rule)):
            x = leaf[i] if rule.layers else leaf
            tensors[key] = np.ascontiguousarray(rule.layout.to_torch(x))
    return tensors


# --- Checks, by names and shapes alone.


def shapes(init: Callable[[], dict]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return path: shape of the parameters that `init()` would make; nothing is computed."""
    return {k: x.shape for k, x in traverse_util.flatten_dict(jax.eval_shape(init)).items()}


def expected(rules: list[Rule], shapes: dict) -> dict[str, tuple[int, ...]]:
    """Return torch key: torch shape of every tensor that the rules name."""
    found = {}
    for rule in rules:
        ours = shapes[rule.path][1:] if rule.layers else shapes[rule.path]
        hollow = np.broadcast_to(np.float32(0), ours)  # a shape without the bytes
        found |= dict.fromkeys(keys(rule), rule.layout.to_torch(hollow).shape)
    return found


def check(tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raise a ValueError that names the tensor that is missing, unknown or of another shape."""
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{what}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(
            f"{tensors[unknown[0]].where} belongs to no weight of this model "
            f"({len(unknown)} such tensors)"
        )
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise ValueError(f"{tensors[key].where} is {tensors[key].shape}; expected {shape}")


def check_finite(x: np.ndarray, where: str) -> None:
    """Raise a ValueError that names the tensor if a value is NaN or infinite."""
    if x.dtype.name not in EXPONENTS:
        return
    bits = np.dtype(f"u{x.itemsize}")
    exponent, step = bits.type(EXPONENTS[x.dtype.name]), 2**18  # a step stays in the cache
    flat = np.ascontiguousarray(x).reshape(-1).view(bits)
    for i in range(0, flat.size, step):
        if (flat[i : i + step] & exponent).max() == exponent:
            raise ValueError(f"{where} holds NaN or infinity (as {x.dtype})")


# --- Files in.


def read_config(folder: str | Path) -> dict:
    """Return `config.json` of a model folder as a dict."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a diffusers model folder")
    return json.loads(path.read_text())


def read_header(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, not read yet, and its metadata.

    Read here because the library's numpy reader knows no bfloat16 and copies every tensor.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a safetensors file, cut off, or of a type that weights do not have.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 + length:
            raise ValueError(f"{file} is cut off within its header, or is no safetensors file")
        try:
            header = json.loads(f.read(length))
        except ValueError:
            raise ValueError(f"{file} is no safetensors file: its header is not JSON") from None
    metadata = header.pop("__metadata__", {})
    return {k: _stored(file, size, 8 + length, k, v) for k, v in header.items()}, metadata


def _stored(file: Path, size: int, start: int, key: str, about: dict) -> Tensor:
    where = f"tensor {key} of {file}"
    if about["dtype"] not in DTYPES:
        raise ValueError(f"{where} is {about['dtype']}; expected one of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[about["dtype"]], tuple(about["shape"])
    first, last = (start + offset for offset in about["data_offsets"])
    if last > size:
        raise ValueError(f"{where} ends at byte {last}, but the file is cut off at {size}")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where}: {last - first} bytes do not hold {about['dtype']} {shape}")
    return Tensor(dtype, shape, partial(_map, file, dtype, shape, first), where)


def _map(file: Path, dtype: np.dtype, shape: tuple[int, ...], start: int) -> np.ndarray:
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape or 1).reshape(shape)


def open_folder(folder: str | Path, pattern: str = "*") -> dict[str, Tensor]:
    """Return the tensors of a folder's PATTERN.safetensors or shards with an index; reads none.

    Raises:
      FileNotFoundError: the folder has no such safetensors, or the index names an absent shard.
      ValueError: as `read_header`; or index and shards disagree.
    """
    folder, tensors = Path(folder), {}
    index = next(iter(sorted(folder.glob(f"{pattern}.safetensors.index.json"))), None)
    placed = json.loads(index.read_text())["weight_map"] if index else {}
    for name in sorted(set(placed.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not in {folder}")
    files = {folder / name for name in placed.values()} or folder.glob(f"{pattern}.safetensors")
    for file in sorted(files):
        held = read_header(file)[0]
        if twice := sorted(tensors.keys() & held.keys()):
            raise ValueError(f"{held[twice[0]].where} is in another file of the folder too")
        tensors |= held
    if absent := sorted(placed.keys() - tensors.keys()):
        raise ValueError(f"{index} places {absent[0]} in {placed[absent[0]]}, which has no such")
    if not tensors:
        raise FileNotFoundError(f"no {pattern}.safetensors in {folder}")
    return tensors


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Return every tensor of a model folder, memory-mapped. Raises as `open_folder`."""
    return {key: tensor.read() for key, tensor in open_folder(folder).items()}


# --- Files out.


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a place to write, which becomes `path` at the end and vanishes on any error."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(part)
    try:
        yield part
        part.replace(path)
    except BaseException:
        remove(part)
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_tensors(
    file: str | Path, tensors: dict[str, np.ndarray | Tensor], metadata: dict | None = None
) -> None:
    """Write one safetensors file, tensor by tensor, byte for byte as the library would.

    Raises ValueError (NaN or infinity) or OSError (a full disk), and leaves no file behind.
    """
    held = {k: x if isinstance(x, Tensor) else _held(k, x) for k, x in tensors.items()}
    order = sorted(held, key=lambda key: (list(NAMES).index(held[key].dtype), key))
    header, end = {"__metadata__": {"format": "pt"} | dict(sorted((metadata or {}).items()))}, 0
    for key in order:
        offsets = [end, end := end + held[key].nbytes]
        about = {"dtype": NAMES[held[key].dtype], "shape": list(held[key].shape)}
        header[key] = about | {"data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with beside(Path(file)) as part, open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            try:
                _write(f, held[key])
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}: tensor {key}", str(file)) from error


def _held(key: str, x: np.ndarray) -> Tensor:
    return Tensor(x.dtype, x.shape, lambda: x, f"tensor {key}")


def _write(f, tensor: Tensor) -> None:
    x = np.ascontiguousarray(tensor.read())
    check_finite(x, tensor.where)
    f.write(x.reshape(-1).view(np.uint8).data)
    f.flush()  # a full disk is noticed here, with the tensor's name at hand
