"""ConSE (Norouzi et al. 2014): how a picture fits a sentence, without a net that learned both.

A classifier's ten likeliest classes name what is seen; the mean of those names' sentence vectors,
weighed by the probabilities, is compared with the prompt's. It knows ImageNet's 1000 things, of
which a person is none: clothes, places and objects tell the prompts apart, actions do not.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from evoid_jax.sidecars.open import catalogue
from evoid_jax.sidecars.open.minilm import Sentences

CLASSES = 10


def labels(folder: Path | None = None) -> list[str]:
    """Read the names of ImageNet's classes in their order.

    folder: None is `catalogue.folder()`.

    Raises:
      FileNotFoundError, ValueError: the file is not there, or is not the right one.
    """
    return json.loads(catalogue.find(catalogue.LABELS, folder).read_text())


def similarities(
    sentences: Sentences, names: list[str], chance_FK: np.ndarray, prompt: str
) -> np.ndarray:
    """Compare pictures with a prompt.

    Args:
      sentences: embeds.
      names: of the K classes.
      chance_FK: of each picture the classes' probabilities.
      prompt: one or more sentences.

    Returns:
      (F,) cosines.
    """
    order_FK = np.argsort(-chance_FK, axis=1)[:, :CLASSES]
    prompt_D = sentences.embed([prompt])[0]
    cosines = []
    for chance_K, order_K in zip(chance_FK, order_FK, strict=True):
        vector_KD = sentences.embed([f"a photo of a {names[k]}" for k in order_K])
        seen_D = (chance_K[order_K, None] * vector_KD).sum(0)
        cosines.append(seen_D @ prompt_D / np.linalg.norm(seen_D))
    return np.array(cosines)
