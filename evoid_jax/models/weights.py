"""Diffusers folders in and out: one table of rules per model, read in both directions.

A rule ties one torch key to one leaf of our parameter tree. Layers that we scan over are stacked on
a leading axis; their rule has `{i}` in the key. `to_params` and `to_tensors` are inverses;
`loading.load` is `to_params` for models that do not fit in the host's memory.

A `Tensor` is read when it is used, as a memory map: a pass over a model holds one at a time.
"""

from __future__ import annotations

import itertools
import json
import math
import re
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

from evoid_jax import files

# safetensors' names, in the order in which it lays tensors out.
DTYPES = {"I64": "i8", "F64": "f8", "F32": "f4", "I32": "i4", "BF16": "bfloat16", "F16": "f2"}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}
AXES = 32  # of a tensor, at most
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD = r"(?:-\d{5}-of-\d{5})?"
VARIANT = re.compile(rf"(?:diffusion_pytorch_model|model){SHARD}\.(.+?){SHARD}\.safetensors")
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
    label: str  # "tensor KEY of FILE", for messages

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def keys(rule: Rule) -> list[str]:
    """Return the torch keys of a rule, one per layer."""
    return [rule.key.format(i=i) for i in range(rule.layers or 1)]


def to_params(tensors: dict[str, np.ndarray], rules: list[Rule], dtype=None) -> dict:
    """Build our parameter tree from torch-named tensors.

    Raises:
      ValueError: a rule's tensor is missing, or a tensor has no rule; the message names it.
    """
    left = set(tensors)

    def take(key: str, layout: Layout) -> np.ndarray:
        if key not in tensors:
            raise ValueError(f"tensor {key} is missing; the file holds {len(tensors)} tensors")
        left.discard(key)
        x = np.ascontiguousarray(layout.to_jax(tensors[key]))
        return x if dtype is None else x.astype(dtype)

    flat = {}
    for rule in rules:
        stack = [take(key, rule.layout) for key in keys(rule)]
        flat[rule.path] = np.stack(stack) if rule.layers else stack[0]
    if left:
        raise ValueError(f"{len(left)} tensors belong to no weight of ours, such as {min(left)}")
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
    torch_shapes = {}
    for rule in rules:
        ours = shapes[rule.path][1:] if rule.layers else shapes[rule.path]
        hollow = np.broadcast_to(np.float32(0), ours)  # a shape without the bytes
        torch_shapes |= dict.fromkeys(keys(rule), rule.layout.to_torch(hollow).shape)
    return torch_shapes


def check(tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raise a ValueError naming a tensor that is missing, unknown, misshapen or not of floats."""
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{what}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(
            f"{tensors[unknown[0]].label} belongs to no weight of this model "
            f"({len(unknown)} such tensors)"
        )
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise ValueError(f"{tensors[key].label} is {tensors[key].shape}; expected {shape}")
        if tensors[key].dtype.name not in EXPONENTS:
            raise ValueError(f"{tensors[key].label} is {tensors[key].dtype}; expected floats")


def check_finite(x: np.ndarray, label: str) -> None:
    """Raise a ValueError that names the tensor if a value is NaN or infinite."""
    if x.dtype.name not in EXPONENTS:
        return
    bits = np.dtype(f"u{x.itemsize}")
    exponent, step = bits.type(EXPONENTS[x.dtype.name]), 2**18  # a step stays in the cache
    flat = np.ascontiguousarray(x).reshape(-1).view(bits)
    for i in range(0, flat.size, step):
        if (flat[i : i + step] & exponent).max() == exponent:
            raise ValueError(f"{label} holds NaN or infinity (as {x.dtype})")


# --- Files in.


def read_config(folder: str | Path) -> dict:
    """Return `config.json` of a model folder as a dict. Raises: as `files.read_json`."""
    return files.read_json(Path(folder) / "config.json", hint="expected a diffusers model folder")


def read_header(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, not read yet, and its metadata.

    Read here because the library's numpy reader knows no bfloat16 and copies every tensor.

    Raises:
      FileNotFoundError, IsADirectoryError: no such file.
      ValueError: not a safetensors file, cut off, or of a type that weights do not have.
    """
    file = files.require_file(file)
    size, kind = file.stat().st_size, files.kind_of(file)
    if kind and kind != files.SAFETENSORS:
        raise ValueError(f"{file} is {kind}; expected a safetensors file")
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 + length:
            raise ValueError(f"{file} is cut off within its header, or is no safetensors file")
        header = files.parse_json(f.read(length), f"{file} is no safetensors file: its header")
    metadata, start = header.pop("__metadata__", {}), 8 + length
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} is no safetensors file: its __metadata__ is not an object")
    if wrong := [key for key, text in metadata.items() if not isinstance(text, str)]:
        raise ValueError(f"{file} is no safetensors file: {wrong[0]} in its header is no text")
    tensors = {key: _stored(file, size, start, key, entry) for key, entry in header.items()}
    end = start + sum(tensor.nbytes for tensor in tensors.values())
    if end != size:
        raise ValueError(
            f"{file} has {size} bytes; its header describes {end}. It is damaged, download it again"
        )
    spans = sorted(entry["data_offsets"] for entry in header.values())
    if any(before[1] != after[0] for before, after in itertools.pairwise(spans)):
        raise ValueError(f"{file}: two tensors share bytes, it is damaged; download it again")
    return tensors, metadata


def _stored(file: Path, size: int, start: int, key: str, entry: dict) -> Tensor:
    """Describe one tensor; `entry` is what the header says of it, offsets counted from `start`."""
    label = f"tensor {key} of {file}"
    try:
        name, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
        whole = whole and isinstance(name, str) and len(shape) <= AXES
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{label}: its entry in the header is not a tensor's; it is damaged")
    if name not in DTYPES:
        raise ValueError(
            f"{label} is {name}; expected one of {', '.join(DTYPES)}: quantised weights are not "
            "supported"
        )
    dtype = DTYPES[name]
    first, last = start + first, start + last
    if last > size:
        raise ValueError(f"{label} ends at byte {last}, but the file is cut off at {size}")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{label}: {last - first} bytes do not hold {name} {shape}")
    return Tensor(dtype, shape, partial(_map, file, dtype, shape, first), label)


def _map(file: Path, dtype: np.dtype, shape: tuple[int, ...], start: int) -> np.ndarray:
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape or 1).reshape(shape)


def open_folder(folder: str | Path, stem: str = "") -> dict[str, Tensor]:
    """Return the tensors of a folder's safetensors file, or of its shards; reads none.

    Files of a variant (`model.fp16.safetensors`) are left alone where the plain ones are there.

    Args:
      stem: what the names of its files start with; other files are left alone.

    Raises:
      FileNotFoundError, NotADirectoryError: no such folder, no safetensors in it, or the index
        names an absent shard.
      ValueError: as `read_header`; only a variant; index and files disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"{folder} is {'a file' if folder.exists() else 'missing'}; expected a folder")
    held = sorted(f for f in folder.iterdir() if f.name.startswith(stem) and not files.hidden(f))
    plain = [f for f in held if f.name.endswith(".safetensors") and not variant(f.name)]
    indexes = [f for f in held if f.name.endswith(".safetensors.index.json")]
    if len(indexes) > 1:
        raise ValueError(f"{folder} has two indexes, {indexes[0].name} and {indexes[1].name}")
    if indexes:
        return _open_shards(indexes[0], plain)
    if not plain:
        raise FileNotFoundError(_no_weights(folder, held))
    tensors = {}
    for file in plain:
        of_file = read_header(file)[0]
        if twice := sorted(tensors.keys() & of_file.keys()):
            raise ValueError(
                f"{of_file[twice[0]].label} is in another file of the folder too; keep one"
            )
        tensors |= of_file
    return tensors


def variant(name: str) -> str:
    """Return the variant that a weight file's name tells, such as fp16; "" for the plain one.

    diffusers writes `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, and wrote
    `model-00001-of-00002.fp16.safetensors`.
    """
    match = VARIANT.fullmatch(name)
    return match[1] if match else ""


def _open_shards(index: Path, plain: list[Path]) -> dict[str, Tensor]:
    """Return the tensors of the shards that an index names, each from the shard it names."""
    placed = files.read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(x, str) for x in placed.values()):
        raise ValueError(f"{index} has no weight_map of tensors to file names")
    names = sorted(set(placed.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names {outside[0]}, which is outside of its folder")
    if beside := sorted({f.name for f in plain} - set(names)):
        raise ValueError(
            f"{index} does not name {beside[0]}, which is in its folder too: which of them is the "
            "model? Remove the other"
        )
    tensors = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index} names {name}, which is not in {index.parent}; download it again"
            )
        of_file = read_header(index.parent / name)[0]
        for key in of_file:
            if placed.get(key) != name:
                raise ValueError(
                    f"{of_file[key].label} is not there by {index}, which places it in "
                    f"{placed.get(key, 'no file')}"
                )
        tensors |= of_file
    if absent := sorted(placed.keys() - tensors.keys()):
        raise ValueError(f"{index} places {absent[0]} in {placed[absent[0]]}, which has no such")
    return tensors


def _no_weights(folder: Path, held: list[Path]) -> str:
    """Say what a folder without plain safetensors has instead, and what to do."""
    message = f"no safetensors files in {folder}"
    for file in held:
        if file.name.endswith(".safetensors"):
            plain = file.name.replace(f".{variant(file.name)}", "", 1)
            return (
                f"{folder} has its weights only as the variant {variant(file.name)}: to use them, "
                f"rename {file.name} to {plain}, and an index and what it names in the same way"
            )
        if file.suffix in (".bin", ".ckpt", ".pt", ".pth"):
            return (
                f"{message}; {file.name} is PyTorch's format, which can run code: save the model "
                "with safe_serialization=True, or download its safetensors"
            )
        if file.suffix == ".gguf":
            return f"{message}; {file.name} is GGUF, and quantised weights are not supported"
    return message


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
        entry = {"dtype": NAMES[held[key].dtype], "shape": list(held[key].shape)}
        header[key] = entry | {"data_offsets": offsets}
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
    check_finite(x, tensor.label)
    f.write(x.reshape(-1).view(np.uint8).data)
    f.flush()  # a full disk is noticed here, with the tensor's name at hand
