"""The tiny world's (photo, prompt) pairs as a TensorFlow Datasets builder, without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from evoid_jax.world import portraits

PROMPTS_PER_IDENTITY = {"evolution": 4, "heldout": 1}


def _png(image_HW3: np.ndarray) -> io.BytesIO:
    """Encode as PNG; tfds would need TensorFlow to encode an array."""
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, format="PNG")
    file.seek(0)
    return file


class PortraitPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs a person's neutral photo with the prompt of a random scene of that person.

    Splits `evolution` (512 people, 4 prompts each) and `heldout` (256 others, 1 prompt each).
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
