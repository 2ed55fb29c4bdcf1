"""Which weights preset `paper` needs, where they lie, where one gets them, under which licence.

The names in the folder are those of the files' own publishers, so nothing need be renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evoid_jax.sidecars.paper import checkpoints
from evoid_jax.sidecars.paper.options import Options, folder

OPENS2V = "hf download BestWishYsh/OpenS2V-Weight --local-dir FOLDER --include"


class Weight(NamedTuple):
    """One thing to download."""

    name: str
    rewards: tuple[str, ...]  # that need it
    places: tuple[str, ...]  # in the folder, any one of them; * stands for anything
    needs: tuple[str, ...]  # files that must be in a place that is a folder, * as above
    gigabytes: float  # about, of the download
    source: str  # a command, FOLDER stands for the folder
    licence: str


WEIGHTS = (
    Weight(
        name="insightface pack",
        rewards=("arcface", "curricularface"),
        places=("face_extractor/models/*", "face_extractor/*", "models/*"),
        needs=("*.onnx",),
        gigabytes=0.4,
        source=f"{OPENS2V} 'face_extractor/*'; or a pack of insightface, such as antelopev2 or "
        "buffalo_l, unpacked into FOLDER/models/PACK",
        licence="non-commercial research only (insightface)",
    ),
    Weight(
        name="CurricularFace IR-101",
        rewards=("curricularface",),
        places=("glint360k_curricular_face_r101_backbone.bin",),
        needs=(),
        gigabytes=0.26,
        source=f"{OPENS2V} glint360k_curricular_face_r101_backbone.bin",
        licence="none stated; its training data, Glint360K, is for non-commercial research",
    ),
    Weight(
        name="CLIP ViT-L/14",
        rewards=("aesthetic",),
        places=("clip-vit-large-patch14",),
        needs=("config.json", "model.safetensors|pytorch_model.bin"),
        gigabytes=1.7,
        source="hf download openai/clip-vit-large-patch14 --local-dir "
        "FOLDER/clip-vit-large-patch14 --include config.json model.safetensors",
        licence="MIT (OpenAI's CLIP)",
    ),
    Weight(
        name="LAION aesthetic head",
        rewards=("aesthetic",),
        places=("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth"),
        needs=(),
        gigabytes=0.004,
        source=f"{OPENS2V} aesthetic-model.pth",
        licence="Apache-2.0 (improved-aesthetic-predictor)",
    ),
    Weight(
        name="GME-Qwen2-VL",
        rewards=("gme",),
        places=("gme-Qwen2-VL-*-Instruct",),
        needs=("config.json", "tokenizer.json", "*.safetensors"),
        gigabytes=16.6,
        source="hf download Alibaba-NLP/gme-Qwen2-VL-7B-Instruct --local-dir "
        "FOLDER/gme-Qwen2-VL-7B-Instruct; the benchmark's is 7B, 2B takes 4.4 GB",
        licence="Apache-2.0 (model card)",
    ),
    Weight(
        name="one-align",
        rewards=("qalign",),
        places=("one-align",),
        needs=("config.json", "tokenizer.model", "*.safetensors|pytorch_model*.bin"),
        gigabytes=16.4,
        source="hf download q-future/one-align --local-dir FOLDER/one-align",
        licence="MIT on the model card, but S-Lab 1.0, non-commercial, in its code's repository",
    ),
)


class Place(NamedTuple):
    """A weight that is there: its file, or its folder with the files that count."""

    path: Path
    files: list[Path]


def root(options: Options) -> Path:
    """Return the folder with all weights."""
    return options.weights or folder()


def find(weight: Weight, options: Options) -> Place:
    """Return where a weight lies.

    Raises:
      FileNotFoundError: it is not there, or a file in it; says how to get it and its licence.
      ValueError: several are there, and none was named.
    """
    base, wanted = root(options), _wanted(weight, options)
    paths = sorted({p for pattern in weight.places for p in base.glob(pattern) if _fits(p, weight)})
    if wanted:
        paths = [path for path in paths if path.name == wanted]
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        flag = "--pack" if weight.name == "insightface pack" else "--gme"
        raise ValueError(f"{weight.name}: {names} are all there; say which with {flag}=NAME")
    if not paths:
        raise FileNotFoundError(missing(weight, base, wanted))
    (path,) = paths
    return Place(path, [path] if path.is_file() else _files(path, weight))


def missing(weight: Weight, base: Path, wanted: str = "") -> str:
    """Say what is missing and how to get it."""
    places = " or ".join(f"{base}/{place}" for place in weight.places)
    named = f" named {wanted}" if wanted else ""
    needs = f" with {', '.join(weight.needs).replace('|', ' or ')}" if weight.needs else ""
    return (
        f"{weight.name}{named} is missing; expected {places}{needs}. Get it "
        f"({weight.gigabytes:g} GB, licence: {weight.licence}): "
        f"{weight.source.replace('FOLDER', str(base))}"
    )


def of(reward: str) -> list[Weight]:
    """Return the weights that a reward needs."""
    return [weight for weight in WEIGHTS if reward in weight.rewards]


def digest(place: Place) -> str:
    """Return the sha256 of a weight's files that count."""
    return checkpoints.digest(place.files)


def _wanted(weight: Weight, options: Options) -> str:
    return {"insightface pack": options.pack, "GME-Qwen2-VL": options.gme}.get(weight.name, "")


def _fits(path: Path, weight: Weight) -> bool:
    """Tell whether a path is the weight: a file where files are meant, else a folder with all."""
    if not weight.needs:
        return path.is_file()
    return path.is_dir() and all(
        any(next(path.glob(form), None) for form in need.split("|")) for need in weight.needs
    )


def _files(path: Path, weight: Weight) -> list[Path]:
    forms = [form for need in weight.needs for form in need.split("|")]
    return sorted({file for form in forms for file in path.glob(form) if file.is_file()})
