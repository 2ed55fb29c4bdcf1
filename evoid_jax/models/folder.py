"""What a model's folder is made of: every part and setting of it is used, or refused by name.

Reads the small files of a diffusers folder; the tensors are `pipeline`'s.
"""

from __future__ import annotations

from pathlib import Path

from evoid_jax import files, hub
from evoid_jax.models import native, umt5
from evoid_jax.models.keys import BOOKKEEPING

VACE, T2V = "WanVACEPipeline", "WanPipeline"
# The parts of a pipeline, and those of diffusers' and transformers' classes that are implemented.
CLASSES = {
    "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": umt5.TOKENIZERS,
    "transformer": ("WanVACETransformer3DModel", "WanTransformer3DModel"),
    "vae": ("AutoencoderKLWan",),
}
TRANSFORMER = {VACE: "WanVACETransformer3DModel", T2V: "WanTransformer3DModel"}
# Settings of other pipelines of the family: the value at which they are off, and whose they are.
OFF = {
    "boundary_ratio": (None, "a model of two experts, as Wan2.2 is"),
    "expand_timesteps": (False, "Wan2.2-TI2V-5B"),
}
# Parts that are not supported: what they tell of the model.
OTHERS = {
    "transformer_2": "a model of two experts, as Wan2.2 is",
    "image_encoder": "a model that starts from an image (I2V)",
    "image_processor": "a model that starts from an image (I2V)",
}
EXPECTED = "expected the folder of a Wan2.1-VACE pipeline in diffusers' layout"
SMALL_FILES = (".json", ".md", ".txt", ".model", "")  # suffixes; none is LICENSE and the like
SPARE = 1024  # rows of a text encoder's embedding that no token uses, at most; umt5-xxl has 84


def read_index(folder: Path, classes: tuple[str, ...]) -> dict:
    """Return model_index.json of a diffusers folder, every entry of which is known here.

    Raises:
      FileNotFoundError, NotADirectoryError: there is none; says what is there instead.
      ValueError: the pipeline is of none of the classes, or has parts or settings of another.
    """
    index = folder / "model_index.json"
    if not index.exists() and not index.is_symlink():
        raise _no_pipeline(folder)
    named = files.read_json(index)
    kind = named.get("_class_name")
    if kind not in classes:
        raise ValueError(f"{index} is of a {kind}; expected a {' or '.join(classes)}")
    for name, entry in named.items():
        _check_entry(index, name, entry)
    for name in CLASSES:
        library_class = named.get(name) or [None, None]
        wanted = (TRANSFORMER[kind],) if name == "transformer" else CLASSES[name]
        if library_class[1] not in wanted:
            raise ValueError(
                f"{index}: {name} is of class {library_class[1]}; expected {' or '.join(wanted)}"
            )
    _check_unnamed(folder, named)
    return named


def _check_entry(index: Path, name: str, entry) -> None:
    """Raise a ValueError for an entry of model_index.json that asks for what is not here."""
    absent = entry is None or entry == [None, None]
    if name in BOOKKEEPING or absent:
        return
    if name in OFF:
        off, whose = OFF[name]
        if entry != off:
            raise ValueError(
                f"{index} sets {name} to {entry!r}: {whose}, which is not supported; {EXPECTED}"
            )
    elif not (isinstance(entry, list) and len(entry) == 2):
        raise ValueError(f"{index} has {name} {entry!r}, which is not known here; {EXPECTED}")
    elif name not in CLASSES:
        whose = f" ({OTHERS[name]})" if name in OTHERS else ""
        raise ValueError(
            f"{index} has a part that is not supported: {name}{whose}; without it this would be "
            f"another model; {EXPECTED}"
        )


def _check_unnamed(folder: Path, named: dict) -> None:
    """Raise a ValueError for a model in the folder that model_index.json leaves out."""
    for inside in sorted(folder.iterdir()):
        used = isinstance(named.get(inside.name), list) and named[inside.name][1]
        if used or files.hidden(inside) or not (inside / "config.json").is_file():
            continue
        if any(inside.glob("*.safetensors")):
            raise ValueError(
                f"{inside} is a model that model_index.json does not name, so nothing would use "
                "it; move it out of the folder, or name it there"
            )


def _no_pipeline(folder: Path) -> OSError:
    """Say what is where the folder of a pipeline should be, and what to do."""
    missing = f"{folder / 'model_index.json'} is missing"
    if folder.is_file():
        kind = files.kind_of(folder) or "a file"
        if kind == files.SAFETENSORS:
            kind = "a single file, as ComfyUI uses them"
        return NotADirectoryError(f"{folder} is {kind}; {EXPECTED}")
    if not folder.exists():
        return FileNotFoundError(f"{folder} does not exist; {EXPECTED}")
    if native.is_native(folder):
        hint = f"make one with python -m evoid_jax.convert {folder} NEW --to=diffusers"
        return FileNotFoundError(f"{missing}; {hint}")
    if snapshots := sorted((folder / "snapshots").glob("*")):
        return FileNotFoundError(f"{missing}; the model is in {snapshots[-1]}")
    if (folder.parent / "model_index.json").is_file():
        hint = f"{folder} is one part of the pipeline {folder.parent}; give that folder"
        return FileNotFoundError(f"{missing}; {hint}")
    if (folder / "high_noise_model").is_dir():
        hint = f"{folder} is {OTHERS['transformer_2']}, which is not supported; {EXPECTED}"
        return FileNotFoundError(f"{missing}; {hint}")
    single = [f for f in folder.iterdir() if f.suffix in (".safetensors", ".gguf", ".ckpt", ".pth")]
    if single:
        return FileNotFoundError(f"{missing}: {single[0].name} alone is no pipeline; {EXPECTED}")
    return FileNotFoundError(f"{missing}; {EXPECTED}")


def check_tokenizer(tokenizer, folder: Path, text_config: dict) -> None:
    """Raise a ValueError unless a tokenizer is the text encoder's own, as far as ids tell.

    Args:
      folder: of the tokenizer, for messages.
      text_config: content of text_encoder/config.json.
    """
    rows, ids = text_config["vocab_size"], max(tokenizer.get_vocab().values(), default=-1) + 1
    if not rows - SPARE < ids <= rows:
        raise ValueError(
            f"{folder} has {ids} token ids, the text encoder's vocab_size is {rows}: this "
            "tokenizer is of another model"
        )
    for key, held in (("pad", tokenizer.pad_token_id), ("eos", tokenizer.eos_token_id)):
        if held is None or text_config.get(f"{key}_token_id", held) not in (held, None):
            raise ValueError(
                f"{folder} has {key} token id {held}, text_encoder/config.json says "
                f"{text_config.get(f'{key}_token_id')}: this tokenizer is of another model"
            )
    if (ids_of_nothing := tokenizer("")["input_ids"]) != [tokenizer.eos_token_id]:
        raise ValueError(
            f"{folder} turns the empty prompt into ids {ids_of_nothing}; expected the end of "
            f"sequence alone, [{tokenizer.eos_token_id}], as UMT5's tokenizer does"
        )


def small_files(folder: Path) -> dict[str, bytes]:
    """Return name: content of a folder's configs, tokenizer files, README and licence."""
    held = sorted(f for f in folder.iterdir() if not f.is_dir() and not files.hidden(f))
    small = [files.require_file(f) for f in held if f.suffix in SMALL_FILES]  # no dead link
    # an index of a variant (model.safetensors.index.fp16.json) says nothing of what is read here
    of_variant = lambda name: ".safetensors.index." in name and not name.endswith(".index.json")
    return {f.name: f.read_bytes() for f in small if not of_variant(f.name)}


def name_of(folder: str | Path) -> str:
    """Return the name by which people know the model in a folder.

    A name on the Hugging Face hub is without its revision, a snapshot in the hub's cache
    (models--Org--Name/snapshots/COMMIT) is Org/Name, a folder of ModelScope's cache is without its
    ___ for dots, any other is the folder's own name.
    """
    if hub.is_id(folder):
        return hub.repository(folder)
    path = files.user_path(folder).resolve()
    for parent in (path, *path.parents):
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/")
    return path.name.replace("___", ".") or str(path)
