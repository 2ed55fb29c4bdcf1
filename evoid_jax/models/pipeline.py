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

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from evoid_jax import files, hub
from evoid_jax.models import folder as model_folder
from evoid_jax.models import native, pth, scheduler, umt5, wan, weights
from evoid_jax.models.parts import PARTS, Part, check_classes, check_fit, part, wanted
from evoid_jax.models.weights import Tensor

STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
STEMS |= {"text_encoder": "model"}
KEPT = "diffusers"  # folder of an original layout for what only diffusers' layout holds
PIPELINES = (model_folder.VACE, model_folder.T2V)
SHARD = 5 * 10**9  # bytes of a shard at most


class Pipeline(NamedTuple):
    """Everything a folder holds."""

    parts: dict[str, Part]
    tensors: dict[str, dict[str, Tensor]]  # by part and diffusers key
    files: dict[str, bytes]  # by path in a diffusers folder


class Opened(NamedTuple):
    """A pipeline, and what turns a prompt into ids and noise into video around it."""

    pipeline: Pipeline
    tokenizer: PreTrainedTokenizerFast
    scheduler: dict  # content of scheduler_config.json


# --- In.


def open_pipeline(folder: str | Path) -> Pipeline:
    """Open a pipeline in either layout, check all of it, read no tensor.

    Args:
      folder: where it is, or its name on the Hugging Face hub.

    Raises: as `open_diffusers`; and
      ImportError: .pth files need torch.
    """
    folder = files.user_path(folder)
    return _open_native(folder) if native.is_native(folder) else open_diffusers(folder).pipeline


def open_diffusers(folder: str | Path, classes: tuple[str, ...] = PIPELINES) -> Opened:
    """Open a diffusers folder: every part and setting of it is used, or refused here by name.

    Generating, training and converting all come through here; no tensor is read.

    Args:
      folder: where it is, or its name on the Hugging Face hub, from which it is then fetched.
      classes: the pipelines that will do, of PIPELINES.

    Raises:
      OSError: something is missing, or is no file or folder; the message names it.
      ValueError: something is damaged, not implemented or of another model; names file and key.
    """
    folder = hub.pinned(folder)  # all files are of one commit, and the hub is asked for it once
    # Of the hub's the small files first: gigabytes are fetched only where they will do.
    model_folder.read_index(hub.folder(folder, with_weights=False), classes)
    folder = hub.folder(folder)
    index = model_folder.read_index(folder, classes)
    small = model_folder.small_files(folder)
    for name in model_folder.CLASSES:
        inside = model_folder.small_files(_part_folder(folder, name))
        small |= {f"{name}/{path}": content for path, content in inside.items()}
    configs, parts, tensors = {}, {}, {}
    for name in PARTS:
        configs[name] = weights.read_config(folder / name)
        parts[name] = part(name, configs[name], str(folder / name / "config.json"))
        tensors[name] = _untied(weights.open_folder(folder / name))
        weights.check(tensors[name], wanted(parts[name]), str(folder / name))
    settings = files.read_json(folder / scheduler.FILE)
    scheduler.solver_of(settings, str(folder / scheduler.FILE))
    check_classes(index, configs | {"scheduler": settings}, str(folder / "model_index.json"))
    check_fit(parts, str(folder))
    tokenizer = umt5.load_tokenizer(folder / "tokenizer")
    model_folder.check_tokenizer(tokenizer, folder / "tokenizer", configs["text_encoder"])
    return Opened(Pipeline(parts, tensors, small), tokenizer, settings)


def _part_folder(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        kind = NotADirectoryError if (folder / name).exists() else FileNotFoundError
        raise kind(f"{folder / name} is no folder, but model_index.json names this part")
    return folder / name


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep one copy of a text encoder's embedding; a second one must hold the same."""
    a, b = (tensors.get(key) for key in ("shared.weight", "encoder.embed_tokens.weight"))
    if a and b and (what := _difference(a, b)) != "equal":
        raise ValueError(
            f"{b.label} and shared.weight are one array in UMT5, but here they are two: {what}"
        )
    return umt5.untie(tensors)


def _open_native(folder: Path) -> Pipeline:
    file = str(folder / "config.json")
    config = native.config_from_json(weights.read_config(folder), file)
    held = {
        "transformer": weights.open_folder(folder, native.TRANSFORMER_FILE),
        "vae": pth.read(folder / native.VAE_FILE),
        "text_encoder": pth.read(folder / native.TEXT_FILE),
    }
    small = _native_files(folder, config, str(next(iter(held["text_encoder"].values())).dtype))
    contents = {
        name: files.parse_json(small[f"{name}/config.json"], f"{name}/config.json")
        for name in PARTS
    }
    parts = {name: part(name, contents[name]) for name in PARTS}
    if parts["transformer"].config != config:
        raise ValueError(f"{file} and {folder / KEPT}/transformer/config.json are of two models")
    tokenizer = umt5.load_tokenizer(folder / native.TOKENIZER_FOLDER)
    model_folder.check_tokenizer(
        tokenizer, folder / native.TOKENIZER_FOLDER, contents["text_encoder"]
    )
    tensors = {name: _renamed(held[name], parts[name], folder) for name in PARTS}
    return Pipeline(parts, tensors, small)


def _native_files(folder: Path, config: wan.WanConfig, text_dtype: str) -> dict[str, bytes]:
    """Return the small files of an original folder, by their paths in a diffusers one."""
    tokenizer = folder / native.TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        raise FileNotFoundError(f"{tokenizer} is missing; expected the tokenizer's files")
    small = {f"tokenizer/{name}": x for name, x in model_folder.small_files(tokenizer).items()}
    kept = folder / KEPT
    if kept.is_dir():
        model_folder.read_index(kept, PIPELINES)
        scheduler.solver_of(files.read_json(kept / scheduler.FILE), str(kept / scheduler.FILE))
        inside = [f for f in kept.rglob("*") if f.is_file() and not files.hidden(f)]
        return small | {str(f.relative_to(kept)): f.read_bytes() for f in inside}
    released = native.released_files(config, text_dtype)
    return small | {path: dumps(content) for path, content in released.items()}


def _renamed(tensors: dict[str, Tensor], part: Part, folder: Path) -> dict[str, Tensor]:
    """Check tensors of original names and give them diffusers'."""
    shapes = {part.original[key]: shape for key, shape in wanted(part).items()}
    weights.check(tensors, shapes, str(folder))
    return {key: tensors[original] for key, original in part.original.items()}


def open_transformer(folder: str | Path) -> tuple[Part, dict[str, Tensor]]:
    """Return a transformer and its tensors by diffusers' names, checked but not read.

    folder: a pipeline in either layout, or the transformer's folder of a diffusers pipeline; or a
    name on the Hugging Face hub.
    Raises: as `open_pipeline`.
    """
    folder = hub.folder(folder, parts=("transformer",))
    if native.is_native(folder):
        file = str(folder / "config.json")
        config = native.config_from_json(weights.read_config(folder), file)
        tensors = weights.open_folder(folder, native.TRANSFORMER_FILE)
        described = part("transformer", config.to_json(), file)
        return described, _renamed(tensors, described, folder)
    if (folder / "model_index.json").is_file():
        model_folder.read_index(folder, PIPELINES)
        folder = folder / "transformer"
    elif (folder.parent / "model_index.json").is_file():  # the part of one, which may have two
        model_folder.read_index(folder.parent, PIPELINES)
    described = part("transformer", weights.read_config(folder), str(folder / "config.json"))
    tensors = weights.open_folder(folder)
    weights.check(tensors, wanted(described), str(folder))
    return described, tensors


def model_name(folder: str | Path) -> str:
    """Return the name by which people know the model in a folder; see `folder.name_of`."""
    return model_folder.name_of(folder)


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
            header = (metadata or {}).get(name)
            write_shards(out / name, stem, tensors[name], limit, header, index)


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
        header = (metadata or {}).get("transformer")
        write_shards(out, native.TRANSFORMER_FILE, named["transformer"], limit, header)
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
