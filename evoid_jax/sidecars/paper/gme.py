"""`gme`: OpenS2V-Eval's GmeScore, how well frames fit the prompt by GME-Qwen2-VL.

Text and picture are each a conversation without an answer; the last token's state is their
embedding. As in GME's own code, tokens of a picture are numbered one after the other like words:
Qwen2-VL's numbering by rows and columns would give other embeddings.
Letters: N texts or frames, L tokens, D width, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from evoid_jax.sidecars.paper import batching, checkpoints

TEMPLATE = (
    "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>"
)
FIND = "Find an image that matches the given text."  # the benchmark's, with each prompt
HELP = "You are a helpful assistant."  # with each frame
TOKEN = 28  # pixels of a token's side: 14 of a patch, two by two merged
FEWEST, MOST, LONGEST = 256, 1280, 1800  # tokens of a picture; of a whole conversation
# A frame is first brought to whole tokens, within Qwen2-VL's own widest bounds.
WHOLE = {"factor": TOKEN, "min_pixels": 4 * TOKEN**2, "max_pixels": 16384 * TOKEN**2}


class Embedder:
    """GME: texts and frames to unit vectors.

    Args:
      net: Qwen2-VL.
      tokens: its tokenizer, padding on the right.
      memory: GiB of a batch.
    """

    def __init__(self, net: Qwen2VLForConditionalGeneration, tokens, memory: float):
        self.net, self.tokens, self.memory = net.model, tokens, memory
        self.pixels = Qwen2VLImageProcessorPil(
            size={"shortest_edge": FEWEST * TOKEN**2, "longest_edge": MOST * TOKEN**2}
        )

    def texts(self, prompts: list[str]) -> np.ndarray:
        """Return the prompts' embeddings, (N, D) float64 of length 1."""
        whole = [TEMPLATE.format(instruction=FIND, content=prompt) for prompt in prompts]
        return batching.run(self._texts, whole, self._most(LONGEST)).double().cpu().numpy()

    def frames(self, frames_NHWC: Sequence[np.ndarray]) -> np.ndarray:
        """Return the frames' embeddings, (N, D) float64 of length 1. frames_NHWC: uint8 RGB."""
        height, width = smart_resize(*frames_NHWC[0].shape[:2], **WHOLE)
        tokens = min(MOST, max(FEWEST, height * width // TOKEN**2))
        size = self._most(tokens)
        return batching.run(self._frames, frames_NHWC, size).double().cpu().numpy()

    def _most(self, tokens: int) -> int:
        text, eye = self.net.config.text_config, self.net.config.vision_config
        item = self.net.dtype.itemsize
        read = batching.transformer_bytes(tokens, text.hidden_size, text.intermediate_size, item)
        inner = int(eye.embed_dim * eye.mlp_ratio)
        seen = batching.transformer_bytes(4 * tokens, eye.embed_dim, inner, item)
        return batching.most(max(read, seen), self.memory)

    @torch.inference_mode()
    def _texts(self, whole: list[str]) -> torch.Tensor:
        return embed(self.net, **self._tokens(whole))

    @torch.inference_mode()
    def _frames(self, frames_NHWC: Sequence[np.ndarray]) -> torch.Tensor:
        inputs = self.pixels(images=[resized(f) for f in frames_NHWC], return_tensors="pt")
        grid_N3 = inputs["image_grid_thw"]
        # One token for each two by two patches stands where the picture is.
        counts = (grid_N3.prod(1) // self.pixels.merge_size**2).tolist()
        whole = [
            TEMPLATE.format(
                instruction=HELP,
                content="<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>",
            )
            for count in counts
        ]
        eye = {"pixel_values": inputs["pixel_values"], "image_grid_thw": grid_N3}
        return embed(self.net, **self._tokens(whole), **eye)

    def _tokens(self, whole: list[str]) -> dict[str, torch.Tensor]:
        limit = {"truncation": True, "max_length": LONGEST, "padding": True}
        tokens = self.tokens(whole, return_tensors="pt", **limit)
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def embed(
    net: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the last tokens' states, (N, D) float32 of length 1.

    Args:
      net: Qwen2-VL without its head.
      input_ids, attention_mask: (N, L), padded on the right.
      pixel_values, image_grid_thw: as Qwen2-VL's image processor makes them.
    """
    place, dtype = net.device, net.dtype
    ids_NL, mask_NL = input_ids.to(place), attention_mask.to(place)
    number_3NL = torch.arange(ids_NL.shape[1], device=place).expand(3, *ids_NL.shape)
    eye = {}
    if pixel_values is not None:
        eye["pixel_values"] = pixel_values.to(place, dtype)
        eye["image_grid_thw"] = image_grid_thw.to(place)
    state_NLD = net(
        input_ids=ids_NL, attention_mask=mask_NL, position_ids=number_3NL, use_cache=False, **eye
    ).last_hidden_state
    last_N = mask_NL.sum(1) - 1
    rows_N = torch.arange(len(ids_NL), device=place)
    return nn.functional.normalize(state_NLD[rows_N, last_N].float(), dim=1)


def resized(frame_HWC: np.ndarray) -> Image.Image:
    """Return a frame whose sides are whole tokens; Pillow's bicubic, as in GME's own code."""
    height, width = smart_resize(*frame_HWC.shape[:2], **WHOLE)
    return Image.fromarray(np.asarray(frame_HWC)).resize((width, height))


def load(folder: Path, device: torch.device, dtype: torch.dtype, memory: float) -> Embedder:
    """Load a checkpoint of GME-Qwen2-VL, of 2B or 7B.

    Raises:
      ValueError: a tensor is missing, too many, or of another shape.
    """
    net, info = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    checkpoints.strictly(info, folder)
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    return Embedder(net.eval().requires_grad_(False).to(device), tokens, memory)
