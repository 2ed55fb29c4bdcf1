"""Convert models and adapters between the formats that people's tools load.

    python -m evoid_jax.convert SRC DST [--to=FORMAT] [--lora=FILE] [--dtype=DTYPE] [--which=ROLE]
    python -m evoid_jax.convert --compare T2V VACE

SRC is a pipeline's folder (diffusers, or the original Wan layout), the name of one on the Hugging
Face hub in diffusers' layout, an adapter's file or folder
(diffusers, PEFT, ComfyUI, kohya, musubi, DiffSynth, finetrainers), or the workdir of a run, whose
newest checkpoint is meant. FORMAT is one of
    diffusers   a pipeline's folder; the adapter of a run or of --lora is merged into it
    native      the same in the original Wan layout (its .pth files need torch)
    lora        an adapter file for diffusers and PEFT, of scale 1: alpha is its rank
    comfyui     an adapter file for ComfyUI, of scale 1 too
and defaults to diffusers for a folder, else to lora. `--compare` tells for each tensor of a T2V
transformer whether the VACE one holds the same bytes, and exits with 1 where one does not.

A merge is computed in float32 and rounded once; tensors that the adapter does not touch keep their
bytes. Nothing is held in memory but the tensor at work, and DST appears only when it is complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from evoid_jax import (
    checkpoint,
    commandline,
    deployment,
    evolve,
    export,
    files,
    hub,
    provenance,
    rollout,
    settings,
    stopping,
    watch,
)
from evoid_jax.models import adapters, lora, pipeline, wan, weights
from evoid_jax.models.adapters import Adapter, Layer
from evoid_jax.models.pipeline import Pipeline
from evoid_jax.models.weights import Tensor

FILES = {"lora": adapters.DIFFUSERS_FILE, "comfyui": "comfyui_lora.safetensors"}
FOLDERS = {"diffusers": pipeline.write_diffusers, "native": pipeline.write_native}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
ROLES = ("evolving", "stable", "best")
SOURCES = "a model's folder or hub name, an adapter's file or folder, or a run's --workdir"
# Of an adapter, in headers: where it is from, and how it is meant to be deployed.
ORIGIN = ("base_model", "step", "config_digest", "role", *deployment.HEADER.values())
CARD = ("base_model", "rank", "alpha", *ORIGIN[1:])  # in the README of a merged model


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    choice = partial(flags.DEFINE_enum, flag_values=values)
    choice("to", None, [*FOLDERS, *FILES], "Format to write; see above for the default.")
    choice("dtype", "keep", ["keep", *DTYPES], "Of the weights; the VAE keeps its own.")
    choice("which", "evolving", ROLES, "Which adapter of a run; best is the watch's.")
    flags.DEFINE_string("lora", None, "Adapter for the folder SRC.", flag_values=values)
    flags.DEFINE_float(
        "shard_gb",
        5.0,
        "Largest shard, 1e9 bytes.",
        lower_bound=0,
        upper_bound=1e6,
        flag_values=values,
    )
    flags.DEFINE_bool("compare", False, "Compare the folders T2V and VACE.", flag_values=values)


def adapter_of_file(path: str | Path) -> Adapter:
    """Read an adapter's file or folder, and of its header where it is from.

    Raises: as `adapters.read`.
    """
    adapter = adapters.read(path)
    return adapter._replace(header={k: adapter.header[k] for k in ORIGIN if k in adapter.header})


def adapter_of_run(workdir: Path, role: str) -> tuple[Adapter, Path]:
    """Read an adapter of a run; returns it and the folder, or hub name, of its base.

    role: evolving or stable, of the newest checkpoint; or best, of those that the watch kept.

    Raises:
      FileNotFoundError: no config.json, no checkpoint, or the base is not where it was.
      ValueError: config.json is of another version, or was changed.
      OSError: no checkpoint is sound.
    """
    cfg = settings.read(workdir)
    base = Path(cfg.model)
    if not base.is_dir() and not hub.is_id(base):
        raise FileNotFoundError(
            f"{base}, the base of the run in {workdir}, is missing; convert from the folder where "
            "the run was started"
        )
    if role == "best":
        return best_of_run(workdir), base
    folder = (workdir / checkpoint.FOLDER).absolute()
    place = hub.folder(base, with_weights=False)
    model = wan.WanConfig.from_json(weights.read_config(place / "transformer"))
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(model)))
    saved = checkpoint.Checkpoints(_read_only(folder), folder)
    # The file that a run started from is in its checkpoints; only their shapes matter here.
    restored = checkpoint.restore(saved, evolve.init(cfg, shapes, model))
    checkpoint.close(saved)
    if restored is None:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: the run was stopped before its first one; the command "
            "that started it goes on with it"
        )
    state = restored.state
    tree = jax.device_get({"evolving": state.evolving, "stable": state.stable}[role])
    adapter = lora.to_adapter(tree, scale=cfg.lora.scale)
    header = export.header(cfg, step=int(state.step), role=role)
    return adapter._replace(header=header), base


def best_of_run(workdir: Path) -> Adapter:
    """Read the adapter with the best total of all that the watch kept; see `stopping.best`.

    Raises:
      FileNotFoundError: the watch kept none that is sound.
    """
    watched = watch.read(workdir)
    top = stopping.best(watched)
    if top is None:
        folder = workdir / watch.FOLDER
        why = "in all of them a reward was gamed" if watched else "none was due; see config.watch"
        raise FileNotFoundError(f"{folder} holds no sound comparison: {why}; take --which=evolving")
    logging.info("the best of %d comparisons is that after step %d", len(watched), top["steps"])
    return adapter_of_file(watch.sound_adapter(workdir, top))


def _read_only(folder: Path) -> ocp.CheckpointManager:
    """Open checkpoints without touching them: a run may be at work in there."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of being what it was asked to be
    options = ocp.CheckpointManagerOptions(read_only=True)
    manager = ocp.CheckpointManager(folder, options=options)
    logging.set_verbosity(level)
    return manager


def write_adapter(adapter: Adapter, to: str, dst: str | Path, dtype: str) -> Path:
    """Write an adapter file; returns its path.

    dst: a .safetensors file, or a folder for a file of the usual name.

    Raises:
      FileExistsError: the file is there already.
      ValueError: the format cannot hold this adapter.
    """
    file = _target(Path(dst), to)
    if file.exists():
        raise FileExistsError(f"{file} exists already; nothing was written")
    name = adapters.to_comfyui if to == "comfyui" else adapters.to_diffusers
    tensors = name(adapter)
    if dtype != "keep":
        tensors = {key: x.astype(DTYPES[dtype]) for key, x in tensors.items()}
    adapters.write(file, tensors, adapter)
    return file


def _target(dst: Path, to: str) -> Path:
    """Return what is written: an adapter's file, or a model's folder."""
    return dst / FILES[to] if to in FILES and dst.suffix != ".safetensors" else dst


def merge(source: Pipeline, adapter: Adapter) -> Pipeline:
    """Return the pipeline with every part of the adapter added, in float32.

    Kernels get B A, and whatever else the adapter changes (biases, norms, embeddings, head) gets
    its difference. Nothing is computed before a tensor is read.

    Raises:
      ValueError: the adapter is of another base; names the layer.
    """
    check(source, adapter)
    tensors = dict(source.tensors["transformer"])
    for module, layer in adapter.layers.items():
        key = f"{module}.weight"
        tensors[key] = _changed(tensors[key], partial(_plus_layer, tensors[key], layer))
    for key, delta in adapter.deltas.items():
        if delta.any():  # a zero would still round, and turn -0 into 0
            tensors[key] = _changed(tensors[key], partial(_plus_delta, tensors[key], delta))
    return source._replace(tensors=source.tensors | {"transformer": tensors})


def check(source: Pipeline, adapter: Adapter) -> None:
    """Raise a ValueError that names the part of an adapter for which a base has no place."""
    tensors = source.tensors["transformer"]
    for module, layer in adapter.layers.items():
        kernel = tensors.get(f"{module}.weight")
        if kernel is None:
            raise ValueError(f"this base has no {module}")
        wide = len(layer.b_OR), layer.a_RI.size // layer.rank
        own = kernel.shape[0], math.prod(kernel.shape[1:])
        if wide != own:
            raise ValueError(
                f"{module} goes from width {wide[1]} to {wide[0]}, the base's from {own[1]} to "
                f"{own[0]}"
            )
    for key, delta in adapter.deltas.items():
        if key not in tensors:
            raise ValueError(f"this base has no {key}")
        if delta.shape != tensors[key].shape:
            raise ValueError(f"{key} has shape {delta.shape}, the base's {tensors[key].shape}")


def _changed(tensor: Tensor, read: Callable[[], np.ndarray]) -> Tensor:
    return tensor._replace(dtype=np.dtype(np.float32), read=read)


def _plus_layer(kernel: Tensor, layer: Layer) -> np.ndarray:
    """Return a kernel with B A added; a convolution's is a matrix with its taps side by side."""
    delta_OI = layer.b_OR.reshape(-1, layer.rank) @ layer.a_RI.reshape(layer.rank, -1)
    return kernel.read().astype(np.float32) + delta_OI.reshape(kernel.shape)


def _plus_delta(tensor: Tensor, delta: np.ndarray) -> np.ndarray:
    return tensor.read().astype(np.float32) + delta


def cast(made: Pipeline, source: Pipeline, dtype: str) -> Pipeline:
    """Round every tensor once to the dtype that its file shall have.

    made: the source, or its merge. dtype: "keep" is the source's own; else one of DTYPES, except
    for the VAE and for what diffusers loads in float32 at any dtype: they keep the source's.
    """
    tensors = {}
    for name, part in made.parts.items():
        tensors[name] = {}
        for rule in part.rules:
            for key in weights.keys(rule):
                have, wanted = made.tensors[name][key], source.tensors[name][key].dtype
                if dtype != "keep" and _follows(name, rule.path, dtype):
                    wanted = np.dtype(DTYPES[dtype])
                tensors[name][key] = have if have.dtype == wanted else _rounded(have, wanted)
    return made._replace(tensors=tensors)


def _follows(part: str, path: tuple[str, ...], dtype: str) -> bool:
    if part == "transformer":
        return rollout.wan_dtype(DTYPES[dtype], path) == DTYPES[dtype]
    return part == "text_encoder"


def _rounded(tensor: Tensor, dtype: np.dtype) -> Tensor:
    def read():
        with np.errstate(over="ignore"):  # what overflows is found, and named, when it is written
            return tensor.read().astype(dtype)

    return tensor._replace(dtype=dtype, read=read)


def card(header: dict[str, str], base: str) -> bytes:
    """Return the README.md of a merged model."""
    rows = "".join(f"| {key} | {header[key]} |\n" for key in CARD if key in header)
    return f"""---
base_model: {json.dumps(base)}
library_name: diffusers
tags: [wan, evoid]
---
# {base}, evolved

{base} with an adapter merged into its transformer by evoid_jax (kernel + B A, computed in float32
and rounded once). Every other tensor is the base's, byte for byte unless it was cast.

| adapter | |
|---|---|
{rows}
```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH OF THIS FOLDER")
```

The base's licence applies.
""".encode()


def convert(src: Path, dst: Path, args) -> Path:
    """Do what the flags say; returns what was written.

    Raises:
      OSError, ValueError, ImportError: a file or a flag is wrong; the message names it.
    """
    if not src.exists() and not hub.is_id(src):
        raise FileNotFoundError(f"{src} does not exist; expected {SOURCES}")
    if src.is_file() and src.suffix not in (".safetensors", *adapters.PICKLES):
        raise ValueError(f"{src} is no .safetensors file; expected {SOURCES}")
    is_adapter = src.is_file() or adapters.is_folder(src)
    # by run.json, where a run was stopped before its first checkpoint
    is_run = (src / checkpoint.FOLDER).is_dir() or (src / provenance.FILE).is_file()
    to = args.to or ("lora" if is_adapter or is_run else "diffusers")
    if args.lora and (is_adapter or is_run):
        raise ValueError(f"--lora goes with a model's folder; {src} holds an adapter of its own")
    if args.which != ROLES[0] and not is_run:
        raise ValueError(f"--which={args.which} goes with a run; {src} is none")
    target = _target(dst, to)
    if target.exists():
        raise FileExistsError(f"{target} exists already; nothing was written")
    files.check_writable(target)
    base, adapter = src, None
    if is_run:
        adapter, base = adapter_of_run(src, args.which)
    elif is_adapter or args.lora:
        adapter = adapter_of_file(args.lora or src)
    if to in FILES:
        if adapter is None:
            raise ValueError(f"{src} is a model and --to={to} writes an adapter; give --lora=FILE")
        if args.lora:
            _check_fits(pipeline.open_pipeline(src), adapter, args.lora)
        return write_adapter(adapter, to, dst, args.dtype)
    if is_adapter:
        raise ValueError(f"{src} is an adapter; merge it with: convert MODEL {dst} --lora={src}")
    return write_model(base, adapter, to, dst, args)


def _check_fits(source: Pipeline, adapter: Adapter, name: str) -> None:
    try:
        check(source, adapter)
    except ValueError as error:
        raise ValueError(f"{name} is of another model: {error}") from None


def write_model(base: Path, adapter: Adapter | None, to: str, dst: Path, args) -> Path:
    """Write a pipeline's folder, with the adapter merged if there is one."""
    made = source = pipeline.open_pipeline(base)
    headers = None
    if adapter:
        _check_fits(source, adapter, args.lora or "the run's adapter")
        name = pipeline.model_name(base)
        header = adapter.header | adapters.scale_of_file(adapter) | {"base_model": name}
        headers = {"transformer": header}
        made = merge(source, adapter)
        made = made._replace(files=made.files | {"README.md": card(header, name)})
    FOLDERS[to](cast(made, source, args.dtype), dst, int(args.shard_gb * 1e9), headers)
    return dst


def compare(t2v: Path, vace: Path) -> bool:
    """Print which main tensors of two transformers differ; returns whether all are equal."""
    verdicts = pipeline.compare(t2v, vace)
    for key, verdict in verdicts.items():
        if verdict != "equal":
            print(f"{key}: {verdict}")
    equal = sum(verdict == "equal" for verdict in verdicts.values())
    print(f"{equal} of {len(verdicts)} tensors of {t2v} are byte-equal in {vace}")
    return equal == len(verdicts)


def main(argv: list[str]):
    if len(argv) != 3:
        raise app.UsageError("expected two paths: SRC DST, or --compare T2V VACE")
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator
    src, dst = (files.user_path(name) for name in argv[1:])
    if flags.FLAGS.compare:
        raise SystemExit(0 if compare(src, dst) else 1)
    print(f"wrote {convert(src, dst, flags.FLAGS)}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    commandline.run(main, expected=(OSError, ValueError, ImportError))
