"""Convert models and adapters between the formats that people's tools load.

    python -m evoid_jax.convert SRC DST [--to=FORMAT] [--lora=FILE] [--dtype=DTYPE] [--which=ROLE]
    python -m evoid_jax.convert --compare T2V VACE

SRC is a pipeline's folder (diffusers, or the original Wan layout), an adapter file (diffusers,
PEFT, ComfyUI), or the workdir of a run, whose newest checkpoint is meant. FORMAT is one of
    diffusers   a pipeline's folder; the adapter of a run or of --lora is merged into it
    native      the same in the original Wan layout (its .pth files need torch)
    lora        an adapter file for diffusers and PEFT
    comfyui     an adapter file for ComfyUI; of main blocks only
and defaults to diffusers for a folder, else to lora. `--compare` tells for each tensor of a T2V
transformer whether the VACE one holds the same bytes, and exits with 1 where one does not.

A merge is computed in float32 and rounded once; tensors that the adapter does not touch keep their
bytes. Nothing is held in memory but the tensor at work, and DST appears only when it is complete.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from evoid_jax import checkpoint, config, evolve, rollout
from evoid_jax.models import lora, pipeline, wan, weights
from evoid_jax.models.pipeline import Pipeline
from evoid_jax.models.weights import Tensor

FILES = {"lora": "pytorch_lora_weights.safetensors", "comfyui": "comfyui_lora.safetensors"}
FOLDERS = {"diffusers": pipeline.write_diffusers, "native": pipeline.write_native}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
ROLES = ("evolving", "stable")
ABOUT = ("base_model", "rank", "alpha", "scale", "step", "config_digest", "role")  # in headers


def define_flags(values: flags.FlagValues):
    """Define the command line in `values`."""
    choice = partial(flags.DEFINE_enum, flag_values=values)
    choice("to", None, [*FOLDERS, *FILES], "Format to write; see above for the default.")
    choice("dtype", "keep", ["keep", *DTYPES], "Of the weights; the VAE keeps its own.")
    choice("which", "evolving", ROLES, "Which adapter of a run.")
    flags.DEFINE_string("lora", None, "Adapter file for the folder SRC.", flag_values=values)
    flags.DEFINE_float(
        "shard_gb", 5.0, "Largest shard, 1e9 bytes.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("compare", False, "Compare the folders T2V and VACE.", flag_values=values)


class Adapter(NamedTuple):
    """An adapter by diffusers' names, for scale 1, and what its file's header says of it."""

    tensors: dict[str, np.ndarray]
    about: dict[str, str]


def adapter_of_file(file: str | Path) -> Adapter:
    """Read an adapter file. Raises: as `lora.read`."""
    tensors, header = lora.read(file)
    rank = next(len(x) for key, x in tensors.items() if ".lora_A." in key)
    return Adapter(tensors, {"rank": str(rank)} | {k: header[k] for k in ABOUT if k in header})


def adapter_of_run(workdir: Path, role: str) -> tuple[Adapter, Path]:
    """Read the newest checkpoint of a run; returns its adapter and the folder of its base.

    Raises:
      FileNotFoundError: no config.json, no checkpoint, or the base is not where it was.
      OSError: no checkpoint is sound.
    """
    settings = json.loads((workdir / "config.json").read_text())
    settings.pop("digest", None)
    cfg = config.from_dict(settings)
    base = Path(cfg.model)
    if not base.is_dir():
        raise FileNotFoundError(
            f"{base}, the base of the run in {workdir}, is missing; convert from the folder where "
            "the run was started"
        )
    model = wan.WanConfig.from_json(weights.read_config(base / "transformer"))
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(model)))
    start = lora.load(cfg.lora.init, model) if cfg.lora.init else None
    folder = (workdir / "checkpoints").absolute()
    saved = checkpoint.Checkpoints(_read_only(folder), folder)
    found = checkpoint.restore(saved, evolve.init(cfg, shapes, model, start))
    checkpoint.close(saved)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    state = found[0]
    tree = jax.device_get({"evolving": state.evolving, "stable": state.stable}[role])
    about = lora.about(cfg.lora.rank, cfg.lora.alpha)
    about |= {"base_model": base.name, "step": str(int(state.step)), "role": role}
    about |= {"config_digest": config.digest(cfg)}
    return Adapter(lora.to_peft(tree, cfg.lora.alpha, cfg.lora.rank), about), base


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
    dst = Path(dst)
    file = dst if dst.suffix == ".safetensors" else dst / FILES[to]
    if file.exists():
        raise FileExistsError(f"{file} exists already; nothing was written")
    tensors = lora.to_comfyui(adapter.tensors) if to == "comfyui" else adapter.tensors
    if dtype != "keep":
        tensors = {key: x.astype(DTYPES[dtype]) for key, x in tensors.items()}
    weights.write_tensors(file, tensors, adapter.about)
    return file


def merge(source: Pipeline, adapter: Adapter) -> Pipeline:
    """Return the pipeline with kernel + B A in float32 wherever the adapter has a layer.

    Raises:
      ValueError: the adapter is of another base; names the layer.
    """
    lora.from_peft(adapter.tensors, source.parts["transformer"].config)
    tensors = dict(source.tensors["transformer"])

    def merged(kernel: Tensor, a_RI: np.ndarray, b_OR: np.ndarray) -> Tensor:
        make = lambda: kernel.read().astype(np.float32) + b_OR @ a_RI
        return kernel._replace(dtype=np.dtype(np.float32), read=make)

    for key, a_RI in adapter.tensors.items():
        module, side = key.removeprefix(lora.PREFIX).split(".lora_")
        if side == "A.weight":
            b_OR, name = adapter.tensors[key.replace("lora_A", "lora_B")], f"{module}.weight"
            tensors[name] = merged(tensors[name], a_RI, b_OR)
    return source._replace(tensors=source.tensors | {"transformer": tensors})


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


def card(about: dict[str, str], base: str) -> bytes:
    """Return the README.md of a merged model."""
    rows = "".join(f"| {key} | {about[key]} |\n" for key in ABOUT if key in about)
    return f"""---
base_model: {json.dumps(base)}
library_name: diffusers
tags: [wan, evoid]
---
# {base}, evolved

{base} with an adapter of evoid_jax merged into its transformer (kernel + B A, computed in float32
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
      OSError, ValueError, KeyError, ImportError: a file or a flag is wrong; the message names it.
    """
    if not src.exists():
        raise FileNotFoundError(f"{src} does not exist")
    is_file, is_run = src.is_file(), (src / "checkpoints").is_dir()
    to = args.to or ("lora" if is_file or is_run else "diffusers")
    if args.lora and (is_file or is_run):
        raise ValueError(f"--lora goes with a model's folder; {src} holds an adapter of its own")
    base, adapter = src, None
    if is_run:
        adapter, base = adapter_of_run(src, args.which)
    elif is_file or args.lora:
        adapter = adapter_of_file(args.lora or src)
    if to in FILES:
        if adapter is None:
            raise ValueError(f"{src} is a model and --to={to} writes an adapter; give --lora=FILE")
        if args.lora:
            tensors = pipeline.open_pipeline(src)
            lora.load(args.lora, tensors.parts["transformer"].config)  # or it is of another model
        return write_adapter(adapter, to, dst, args.dtype)
    if is_file:
        raise ValueError(f"{src} is an adapter; merge it with: convert MODEL {dst} --lora={src}")
    return write_model(base, adapter, to, dst, args)


def write_model(base: Path, adapter: Adapter | None, to: str, dst: Path, args) -> Path:
    """Write a pipeline's folder, with the adapter merged if there is one."""
    made = source = pipeline.open_pipeline(base)
    about = None
    if adapter:
        try:
            made = merge(source, adapter)
        except ValueError as error:
            raise ValueError(f"{args.lora or 'the adapter'} does not fit {base}: {error}") from None
        about = {"transformer": adapter.about | {"base_model": base.resolve().name}}
        readme = {"README.md": card(about["transformer"], base.resolve().name)}
        made = made._replace(files=made.files | readme)
    FOLDERS[to](cast(made, source, args.dtype), dst, int(args.shard_gb * 1e9), about)
    return dst


def compare(t2v: str, vace: str) -> bool:
    """Print which main tensors of two transformers differ; returns whether all are equal."""
    found = pipeline.compare(t2v, vace)
    for key, what in found.items():
        if what != "equal":
            print(f"{key}: {what}")
    equal = sum(what == "equal" for what in found.values())
    print(f"{equal} of {len(found)} tensors of {t2v} are byte-equal in {vace}")
    return equal == len(found)


def main(argv: list[str]):
    if len(argv) != 3:
        raise app.UsageError("expected two paths: SRC DST, or --compare T2V VACE")
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator
    try:
        if flags.FLAGS.compare:
            raise SystemExit(0 if compare(*argv[1:]) else 1)
        path = convert(Path(argv[1]), Path(argv[2]), flags.FLAGS)
    except KeyError as error:  # its str() is the repr of the message
        raise SystemExit(f"error: {error.args[0]}") from error
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"wrote {path}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
