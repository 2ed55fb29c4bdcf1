"""The footage as the transformer sees it: latents and text embeddings, encoded once.

Letters: B videos, F pixel frames, T H W C latents, S text tokens, E text width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from evoid_jax.models import umt5
from evoid_jax.pretrain import footage, kept, stages
from evoid_jax.pretrain.coder import Coder, unit
from evoid_jax.pretrain.coder_torch import encoder_of
from evoid_jax.world import faults, found


class TextEncoder(NamedTuple):
    """A frozen text encoder."""

    params: dict
    config: umt5.UMT5Config
    tokenizer: object


def of_videos(cfg, place_of, text: TextEncoder, coder: Coder) -> stages.Latents:
    """Encode what the main blocks learn from: clips that show what their prompts say.

    Args:
      place_of: name -> `kept.Place`.

    Returns:
      float32 on the host. T = 1 + (F - 1) / 4, H and W an eighth of the pixels'.
    """
    asked = footage.scenes(cfg, cfg.videos)
    return _encoded(cfg, place_of, "latents", text, coder, asked, shown=asked)


def of_pairs(cfg, place_of, text: TextEncoder, coder: Coder) -> stages.Latents:
    """Encode what the VACE blocks learn from: clips as they are found beside photos.

    Of other people than the main blocks saw, and of more: each is seen a few times, so that a photo
    has to be looked at and cannot be recalled.

    Args and returns: as of `of_videos`.
    """
    asked = footage.scenes(cfg, cfg.pairs, "pairs")
    shown = [
        found.found(scene, cfg.posed, cfg.drift, np.random.default_rng((cfg.seed, 1, i)))
        for i, scene in enumerate(asked)
    ]
    return _encoded(cfg, place_of, "pairs", text, coder, asked, shown)


def _encoded(
    cfg, place_of, stage: str, text: TextEncoder, coder: Coder, asked: list, shown: list
) -> stages.Latents:
    """Return the latents of scenes, each part rendered and encoded once.

    Args:
      place_of: name -> `kept.Place`.
      stage: under whose name parts are kept.
      asked: what photos and prompts say.
      shown: what the clips show.
    """
    encode = encoder_of(coder.params, coder.config)

    def one(part: range) -> dict[str, np.ndarray]:
        clips_BFHWC = _clips(cfg, [shown[i] for i in part], part)
        stills_B1HWC = footage.photos(cfg, [asked[i] for i in part])[:, None]  # of one frame
        return {"video": _encode(clips_BFHWC, encode), "reference": _encode(stills_B1HWC, encode)}

    made = [
        kept.stage(place_of(footage.name(stage, part)), functools.partial(one, part))
        for part in footage.parts(len(asked))
    ]
    grey = np.zeros((1, cfg.frames, cfg.size, cfg.size, 3), np.float32)
    text_BSE, null_SE = encode_prompts(stages.script(asked).prompts, text)
    return stages.Latents(
        video_BTHWC=np.concatenate([part["video"] for part in made]),
        reference_BTHWC=np.concatenate([part["reference"] for part in made]),
        blank_THWC=encode(grey)[0],
        text_BSE=text_BSE,
        null_SE=null_SE,
    )


def _clips(cfg, shown: list, part: range) -> np.ndarray:
    """Render clips, uint8.

    A share `cfg.faulty` of them gets a fault, as footage that is found has: the base that imitates
    them leaves something to evolve.
    """
    clips = [
        faults.as_found(clip, cfg.faulty, np.random.default_rng((cfg.seed, i)))
        for i, clip in zip(part, footage.clips(cfg, shown), strict=True)
    ]
    return np.stack(clips)


def _encode(pixels_BFHWC: np.ndarray, encode) -> np.ndarray:
    """Encode uint8 videos, a few at a time."""
    return np.concatenate([encode(unit(x)) for x in batches(pixels_BFHWC)])


def encode_prompts(prompts: list[str], text: TextEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Return (text_BSE, null_SE) of the prompts and of the empty one, all padded to one S."""
    embed = jax.jit(lambda ids, mask: umt5.encode(text.params, text.config, ids, mask))
    ids_BS, mask_BS = umt5.tokenize(text.tokenizer, prompts)
    null_ids_1S, null_mask_1S = umt5.tokenize(text.tokenizer, [""])
    rows = ids_BS.shape[1]
    null_SE = np.zeros((rows, text.config.d_model), np.float32)
    null_SE[: null_ids_1S.shape[1]] = np.asarray(embed(null_ids_1S, null_mask_1S))[0][:rows]
    pairs = zip(batches(ids_BS, 500, "text"), batches(mask_BS, 500, "mask"), strict=True)
    return np.concatenate([np.asarray(embed(ids, mask)) for ids, mask in pairs]), null_SE


def batches(rows: np.ndarray, size: int = 50, name: str = "latents") -> Iterator[np.ndarray]:
    """Yield an array's rows, `size` at a time, with a progress bar."""
    for i in tqdm(range(0, len(rows), size), desc=name, mininterval=5):
        yield rows[i : i + size]
