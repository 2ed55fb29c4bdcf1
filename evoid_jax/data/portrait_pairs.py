"""The tiny world's (photo, prompt) pairs as a TensorFlow Datasets builder, without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from evoid_jax import files
from evoid_jax.data.rows import Picture, Row
from evoid_jax.world import paint, people, places, portraits, prompts

SUMS = "sums.json"  # of a prepared folder's files; it is damaged, or half-made, without
PROMPTS_PER_IDENTITY = {"evolution": 4, "validation": 1, "heldout": 1}


def _png(image_HW3: np.ndarray) -> io.BytesIO:
    """Encode as PNG; tfds would need TensorFlow to encode an array."""
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, format="PNG")
    file.seek(0)
    return file


class PortraitPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs a person's neutral photo with the prompt of a random scene of that person.

    Splits `evolution` (512 people, 4 prompts each), `validation` and `heldout` (256 others in each,
    1 prompt each).
    Prepare with file_format="array_record": the default format needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no checksum file to look for; finding it would need importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "prompt": tfds.features.Text(),
            "identity": np.int64,
            "scene": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # everything is drawn, nothing is downloaded
        return {split: self._generate_examples(split) for split in PROMPTS_PER_IDENTITY}

    def _generate_examples(self, split):
        for index in portraits.SPLITS[split]:
            photo = portraits.reference(portraits.identity(index))
            for scene in range(PROMPTS_PER_IDENTITY[split]):
                yield (
                    f"{index}-{scene}",
                    {
                        "image": _png(photo),
                        "prompt": portraits.prompt(portraits.scene(index, scene)),
                        "identity": index,
                        "scene": scene,
                    },
                )


def open_split(
    split: str, cache_dir: Path
) -> tuple[list[Row], Callable[[int], tuple[list[np.ndarray], np.ndarray]]]:
    """Prepare the pairs in `cache_dir` unless they are there; open one split.

    Returns:
      The rows, and a function of their index that decodes: ([the photo, (H, W, 3) uint8], (A,)
      attributes of the person in it).
    """
    builder = _prepared(cache_dir / _world_digest())
    undecoded = {"image": tfds.decode.SkipDecoding()}
    rows = [_row(values) for values in builder.as_data_source(split=split, decoders=undecoded)]
    source = builder.as_data_source(split=split)

    def look(index: int) -> tuple[list[np.ndarray], np.ndarray]:
        values = source[index]
        return [values["image"]], people.identity(int(values["identity"]))

    return rows, look


def _prepared(folder: Path) -> PortraitPairs:
    """Return the builder of the pairs in a folder, which are drawn where they are not as they were.

    One process draws at a time, whoever else waits for it.
    """
    tfds.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        sums = folder / SUMS
        if not sums.is_file() or sums.read_bytes() != _sums(folder):
            shutil.rmtree(folder)
        builder = PortraitPairs(data_dir=folder, file_format="array_record")
        if not sums.is_file():
            # It prints that nothing is downloaded.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
            with files.replacing(sums) as part:  # last: all of it is there
                part.write_bytes(_sums(folder))
    return builder


def _sums(folder: Path) -> bytes:
    """Return the SHA-256 of every file below a folder, as JSON."""
    held = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()
    sums = {str(file.relative_to(folder)): digest(file) for file in held}
    return json.dumps(sums, indent=1).encode()


def clip(origin: str, frames: int, size: int) -> np.ndarray:
    """Draw the clip that a pair's prompt tells of.

    Args:
      origin: the pair's name, as `Pairs.origins` has it.
      frames: F. size: height and width in pixels.

    Returns:
      (F, size, size, 3) uint8.
    """
    identity, scene = origin.split("-")
    return portraits.render(portraits.scene(int(identity), int(scene)), frames, size)


def _row(values: dict) -> Row:
    name = f"{values['identity']}-{values['scene']}"
    width, height = Image.open(io.BytesIO(values["image"])).size
    photo = Picture(name, file="", height=height, width=width, digest="")
    return Row(values["prompt"].decode(), name, (photo,), identity=str(values["identity"]))


def _world_digest() -> str:
    """Identify the world's source code, so that a changed world never reads old pairs."""
    modules = (people, portraits, paint, places, prompts)
    files = [module.__file__ for module in modules]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:12]
