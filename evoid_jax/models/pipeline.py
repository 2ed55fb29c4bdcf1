"""A pipeline on disk, in diffusers' layout or the original one: opened, checked, written.

Tensors are held by diffusers' names and are not in memory. Small files (configs, tokenizer, README)
are held by their paths in a diffusers folder; the original layout keeps those it has no place for
under `diffusers/`, so that the way back restores every byte.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from evoid_jax.models import native, pth, umt5, vae, wan, weights
from evoid_jax.models.weights import Rule, Tensor

PARTS = ("transformer", "vae", "text_encoder")
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
STEMS |= {"text_encoder": "model"}
KEPT = "diffusers"  # folder of an original layout for what only diffusers' layout holds
SMALL_FILES = (".json", ".md", ".txt", ".model", "")  # suffixes; none is LICENSE and the like
SHARD = 5 * 10**9  # bytes of a shard at most


class Part(NamedTuple):
    """One model, as its config describes it."""

    config: wan.WanConfig | vae.VAEConfig | umt5.UMT5Config
    rules: list[Rule]
    shapes: dict[tuple[str, ...], tuple[int, ...]]  # of our parameters, by path
    original: dict[str, str]  # diffusers key: original key


class Pipeline(NamedTuple):
    """Everything a folder holds."""

    parts: dict[str, Part]
    tensors: dict[str, dict[str, Tensor]]  # by part and diffusers key
    files: dict[str, bytes]  # by path in a diffusers folder


def part(name: str, config: dict) -> Part:
    """Describe one of PARTS from its diffusers config.json, already a dict.

    Raises:
      ValueError, KeyError: a model that is not implemented; the message names the setting.
    """
    key = jax.random.key(0)
    if name == "transformer":
        c = wan.WanConfig.from_json(config)
        shapes = weights.shapes(lambda: wan.init(key, wan.Wan(c)))
        return Part(c, wan.rules(c), shapes, native.transformer_names(c))
    if name == "vae":
        c = vae.VAEConfig.from_json(config)
        return Part(c, vae.rules(c), weights.shapes(lambda: vae.init(key, c)), native.vae_names(c))
    c = umt5.UMT5Config.from_json(config)
    return Part(c, umt5.rules(c), weights.shapes(lambda: umt5.init(key, c)), native.umt5_names(c))


# --- In.


def open_pipeline(folder: str | Path) -> Pipeline:
    """Open a pipeline's folder in either layout, check every name and shape, read no tensor.

    Raises:
      FileNotFoundError, ValueError, KeyError: something is missing, damaged or not implemented;
        the message names file and tensor.
      ImportError: .pth files need torch.
    """
    folder = Path(folder)
    if native.is_native(folder):
        return _open_native(folder)
    files = _diffusers_files(folder)
    parts, tensors = {}, {}
    for name in PARTS:
        parts[name] = part(name, weights.read_config(folder / name))
        tensors[name] = umt5.untie(weights.open_folder(folder / name))
        weights.check(tensors[name], wanted(parts[name]), str(folder / name))
    return Pipeline(parts, tensors, files)


def wanted(part: Part) -> dict[str, tuple[int, ...]]:
    """Return diffusers key: torch shape of every tensor of a part."""
    return weights.expected(part.rules, part.shapes)


def read_index(folder: Path, classes: tuple[str, ...]) -> dict:
    """Return model_index.json of a diffusers folder.

    Raises:
      FileNotFoundError: there is none; says how to make one from the original layout.
      ValueError: the pipeline is of none of the classes.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        hint = "expected the folder of a diffusers pipeline"
        if native.is_native(folder):
            hint = f"make one with python -m evoid_jax.convert {folder} NEW --to=diffusers"
        raise FileNotFoundError(f"{index} is missing; {hint}")
    named = json.loads(index.read_text())
    if named.get("_class_name") not in classes:
        raise ValueError(
            f"{index} is of a {named.get('_class_name')}; expected a {' or '.join(classes)}"
        )
    return named


def _diffusers_files(folder: Path) -> dict[str, bytes]:
    """Return the small files of a diffusers folder, by path."""
    named = read_index(folder, ("WanVACEPipeline", "WanPipeline"))
    inside = [name for name, about in named.items() if isinstance(about, list) and about[0]]
    if unknown := set(inside) - {*PARTS, "scheduler", "tokenizer"}:
        raise ValueError(f"{folder} has a part that is not supported: {min(unknown)}")
    return _small(folder) | {f"{a}/{b}": x for a in inside for b, x in _small(folder / a).items()}


def _small(folder: Path) -> dict[str, bytes]:
    found = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    return {f.name: f.read_bytes() for f in found if f.suffix in SMALL_FILES}


def _open_native(folder: Path) -> Pipeline:
    config = native.config_from_json(weights.read_config(folder))
    held = {
        "transformer": weights.open_folder(folder, native.TRANSFORMER_FILE),
        "vae": pth.read(folder / native.VAE_FILE),
        "text_encoder": pth.read(folder / native.TEXT_FILE),
    }
    tokenizer = folder / native.TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        raise FileNotFoundError(f"{tokenizer} is missing; expected the tokenizer's files")
    files = {f"tokenizer/{name}": x for name, x in _small(tokenizer).items()}
    kept = folder / KEPT
    if kept.is_dir():
        files |= {str(f.relative_to(kept)): f.read_bytes() for f in kept.rglob("*") if f.is_file()}
    else:
        dtype = str(next(iter(held["text_encoder"].values())).dtype)
        released = native.released_files(config, dtype)
        files |= {path: dumps(content) for path, content in released.items()}
    parts = {name: part(name, json.loads(files[f"{name}/config.json"])) for name in PARTS}
    return Pipeline(
        parts, {name: _renamed(held[name], parts[name], folder) for name in PARTS}, files
    )


def _renamed(tensors: dict[str, Tensor], part: Part, folder: Path) -> dict[str, Tensor]:
    """Check tensors of original names and give them diffusers'."""
    shapes = wanted(part)
    weights.check(
        tensors, {part.original[key]: shape for key, shape in shapes.items()}, str(folder)
    )
    return {key: tensors[original] for key, original in part.original.items()}


def open_transformer(folder: str | Path) -> tuple[Part, dict[str, Tensor]]:
    """Return a transformer and its tensors by diffusers' names, checked but not read.

    folder: a pipeline in either layout, or the transformer's folder of a diffusers pipeline.
    Raises: as `open_pipeline`.
    """
    folder = Path(folder)
    if native.is_native(folder):
        config = native.config_from_json(weights.read_config(folder))
        tensors = weights.open_folder(folder, native.TRANSFORMER_FILE)
        about = part("transformer", config.to_json())
        return about, _renamed(tensors, about, folder)
    if (folder / "model_index.json").is_file():
        folder = folder / "transformer"
    about = part("transformer", weights.read_config(folder))
    tensors = weights.open_folder(folder)
    weights.check(tensors, wanted(about), str(folder))
    return about, tensors


def compare(t2v: str | Path, vace: str | Path) -> dict[str, str]:
    """Tell for each tensor of a T2V transformer how the same tensor of a VACE one compares.

    VACE training is said to have changed no weight of T2V; where all are "equal", the VACE model
    without hints is the T2V teacher and needs no weights of its own.

    Returns:
      diffusers key: "equal" (byte for byte), or what differs.

    Raises: as `open_pipeline`.
    """
    (_, teacher), (_, student) = open_transformer(t2v), open_transformer(vace)
    main = sorted(key for key in teacher if "vace" not in key)
    pairs = ((key, teacher[key], student.get(key)) for key in main)
    return {key: _difference(a, b) for key, a, b in tqdm(pairs, total=len(main), delay=1)}


def _difference(a: Tensor, b: Tensor | None) -> str:
    if b is None:
        return "missing"
    if a.shape != b.shape:
        return f"shape {a.shape}, {b.shape}"
    if a.dtype != b.dtype:
        return f"dtype {a.dtype}, {b.dtype}"
    x, y = (np.ascontiguousarray(t.read()).reshape(-1).view(np.uint8) for t in (a, b))
    step = 2**26  # bounds the temporary
    same = (np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, x.size, step))
    return "equal" if all(same) else "values differ"


# --- Out.


def write_diffusers(
    pipeline: Pipeline,
    folder: str | Path,
    limit: int = SHARD,
    metadata: dict[str, dict[str, str]] | None = None,
) -> None:
    """Write a diffusers folder; on any error nothing is left behind.

    Args:
      limit: bytes of a shard at most; shards of the source that keep to it stay as they are.
      metadata: part -> strings for the headers of its files.

    Raises:
      FileExistsError: the folder is there already.
      OSError: the disk is full, or would be.
      ValueError: a tensor holds NaN or infinity; names it.
    """
    with _new_folder(folder, pipeline) as (out, tensors):
        for path, content in pipeline.files.items():
            if not path.endswith(".index.json"):
                _write_file(out / path, content)
        for name in PARTS:
            stem = STEMS[name]
            index = pipeline.files.get(f"{name}/{stem}.safetensors.index.json")
            about = (metadata or {}).get(name)
            write_shards(out / name, stem, tensors[name], limit, about, index)


def write_native(
    pipeline: Pipeline,
    folder: str | Path,
    limit: int = SHARD,
    metadata: dict[str, dict[str, str]] | None = None,
) -> None:
    """Write a folder of the original layout. Args and errors: as `write_diffusers`."""
    with _new_folder(folder, pipeline, staged="text_encoder") as (out, tensors):
        for path, content in pipeline.files.items():
            top, _, name = path.partition("/")
            to = f"{native.TOKENIZER_FOLDER}/{name}" if top == "tokenizer" else f"{KEPT}/{path}"
            _write_file(out / to, content)
        config = pipeline.parts["transformer"].config
        _write_file(out / "config.json", dumps(native.config_to_json(config)))
        if "README.md" in pipeline.files:
            _write_file(out / "README.md", pipeline.files["README.md"])
        named = {
            name: {pipeline.parts[name].original[key]: x for key, x in tensors[name].items()}
            for name in PARTS
        }
        about = (metadata or {}).get("transformer")
        write_shards(out, native.TRANSFORMER_FILE, named["transformer"], limit, about)
        pth.write(out / native.VAE_FILE, named["vae"])
        pth.write(out / native.TEXT_FILE, named["text_encoder"])


@contextmanager
def _new_folder(folder: str | Path, pipeline: Pipeline, staged: str = "") -> Iterator:
    """Give (folder beside the new one, tensors that count into a progress bar).

    staged: a part that the disk holds twice for a while.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; nothing was written")
    sizes = {name: sum(x.nbytes for x in of.values()) for name, of in pipeline.tensors.items()}
    total = sum(sizes.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder.parent).free, total + sizes.get(staged, 0)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free",
            str(folder),
        )
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=folder.name, delay=1) as bar,
        weights.beside(folder) as out,
    ):
        out.mkdir()
        yield out, {name: _counted(of, bar) for name, of in pipeline.tensors.items()}


def _counted(tensors: dict[str, Tensor], bar) -> dict[str, Tensor]:
    def counted(tensor: Tensor) -> Tensor:
        def read():
            bar.update(tensor.nbytes)
            return tensor.read()

        return tensor._replace(read=read)

    return {key: counted(tensor) for key, tensor in tensors.items()}


def _write_file(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def dumps(content: dict) -> bytes:
    """Return JSON as diffusers and transformers write it."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def write_shards(
    folder: Path,
    stem: str,
    tensors: dict[str, Tensor],
    limit: int,
    metadata: dict[str, str] | None,
    index: bytes | None = None,
) -> None:
    """Write a model's tensors as one file, or as shards of at most `limit` bytes with an index.

    index: of the source; its shards are kept where they hold these tensors and keep to the limit.
    """
    kept = json.loads(index) if index else {"weight_map": {}}
    placed = kept["weight_map"]
    if placed.keys() != tensors.keys() or max(_sizes(placed, tensors).values()) > limit:
        placed, kept = _placed(tensors, stem, limit), {}
    for name in sorted(set(placed.values())):
        shard = {key: tensors[key] for key, file in placed.items() if file == name}
        weights.write_tensors(folder / name, shard, metadata)
    if kept or len(set(placed.values())) > 1:
        total = {"total_size": sum(x.nbytes for x in tensors.values())}
        content = {"metadata": kept.get("metadata", {}) | total, "weight_map": placed}
        _write_file(folder / f"{stem}.safetensors.index.json", dumps(content))


def _sizes(placed: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, int]:
    sizes = dict.fromkeys(placed.values(), 0)
    for key, name in placed.items():
        sizes[name] += tensors[key].nbytes
    return sizes


def _placed(tensors: dict[str, Tensor], stem: str, limit: int) -> dict[str, str]:
    """Return key: file name, filling one shard after the other."""
    number, size, numbers = 1, 0, {}
    for key, tensor in tensors.items():
        if size and size + tensor.nbytes > limit:
            number, size = number + 1, 0
        numbers[key], size = number, size + tensor.nbytes
    one = f"{stem}.safetensors"
    name = lambda i: one if number == 1 else f"{stem}-{i:05d}-of-{number:05d}.safetensors"
    return {key: name(i) for key, i in numbers.items()}
