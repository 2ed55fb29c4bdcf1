"""`qalign`: OpenS2V-Eval's MotionSmoothness, one-align's grades of windows of three frames.

A frame whose window is graded much better or worse than its neighbour's is an artefact; raw is the
share of frames that are none. So a jumpy clip loses, however good it looks; a frozen one gets 1.
Letters: T frames, N frames of a batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evoid_jax import files
from evoid_jax.sidecars.paper import batching, onealign

# What the checkpoint was trained to be asked, word by word; the frames stand between the halves.
BEFORE = "USER: How would you rate the quality of this video?\n"
AFTER = "\nASSISTANT: The quality of the video is"
GRADES = {"excellent": 1.0, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0.0}
THRESHOLD = 0.025  # a larger step between neighbouring windows is an artefact
WINDOW = 3
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as one-align's
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
GREY = tuple(int(255 * x) for x in MEAN)  # what squares are padded with


class Scorer:
    """one-align with its tokenizer.

    Args:
      net: of `onealign.load`.
      encode: text -> tokens, without a token for the beginning.
      memory: GiB of a batch.
    """

    def __init__(
        self, net: onealign.OneAlign, encode: Callable[[str], list[int]], begin: int, memory: float
    ):
        self.net, self.memory = net, memory
        self.before, self.after = [begin, *encode(BEFORE)], encode(AFTER)
        self.words = [encode(word)[0] for word in GRADES]

    def grades(self, video_THWC: np.ndarray) -> np.ndarray:
        """Return each frame's grade, that of the window around it, (T,) float64 in [0, 1].

        video_THWC: uint8 RGB, three frames or more.
        """
        c, item = self.net.config, self.net.lm_head.weight.element_size()
        places, tokens = (c.image // c.patch) ** 2 + 1, c.queries + 1
        frame = batching.transformer_bytes(places, c.vision.width, c.vision.inner, item)
        length = len(self.before) + WINDOW * tokens + len(self.after)
        window = batching.transformer_bytes(length, c.llama.width, c.llama.inner, item)
        # Each frame is seen once and read three times.
        seen_TLD = batching.run(self._see, video_THWC, batching.most(frame, self.memory))
        read = lambda index_N3: self._read(seen_TLD[index_N3].flatten(1, 2))
        rows = batching.run(read, windows(len(video_THWC)), batching.most(window, self.memory))
        return rows.double().cpu().numpy()

    @torch.inference_mode()
    def _see(self, frames_NHWC: np.ndarray) -> torch.Tensor:
        weight = self.net.lm_head.weight
        pixels = np.stack([pixels_of(frame, self.net.config.image) for frame in frames_NHWC])
        return self.net.see(torch.from_numpy(pixels).to(weight.device, weight.dtype))

    @torch.inference_mode()
    def _read(self, seen_NLD: torch.Tensor) -> torch.Tensor:
        logits = self.net.read(self.before, seen_NLD, self.after, self.words)
        worth = torch.tensor(list(GRADES.values()), device=logits.device)
        return logits.softmax(-1) @ worth


def load(folder: Path, device: torch.device, dtype: torch.dtype, memory: float) -> Scorer:
    """Load one-align's checkpoint and its tokenizer."""
    encode, begin = tokenizer(folder)
    return Scorer(onealign.load(folder, device, dtype), encode, begin, memory)


def tokenizer(folder: Path) -> tuple[Callable[[str], list[int]], int]:
    """Return what turns text into tokens, by tokenizer.model, and the token of a beginning."""
    import sentencepiece

    file = files.require_file(folder / "tokenizer.model", "it is part of one-align's repository")
    words = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return words.encode, words.bos_id()


def pixels_of(frame_HWC: np.ndarray, side: int) -> np.ndarray:
    """Pad a frame to a square, resize and normalise it, as CLIP's image processor does.

    Returns:
      (3, side, side) float32.
    """
    picture = Image.fromarray(np.asarray(frame_HWC))
    width, height = picture.size
    longer = max(width, height)
    square = Image.new("RGB", (longer, longer), GREY)
    square.paste(picture, ((longer - width) // 2, (longer - height) // 2))
    small = square.resize((side, side), Image.Resampling.BICUBIC)
    x_HWC = np.asarray(small, np.float32) / 255
    x_HWC = (x_HWC - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(x_HWC.transpose(2, 0, 1))


def windows(count: int) -> np.ndarray:
    """Return the three frames of each frame's window, (T, 3) ints.

    The first window shows frame 0 three times, the last one the frame before the last twice.

    Raises:
      ValueError: fewer than three frames.
    """
    if count < WINDOW:
        raise ValueError(f"needs {WINDOW} frames or more; got {count}")
    middle = np.arange(count)
    index_T3 = np.stack([middle - 1, middle, middle + 1], 1)
    index_T3[0] = 0
    index_T3[-1] = (count - 2, count - 2, count - 1)
    return index_T3


def smoothness(grade_T: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Return the share of frames that are no artefacts, 0 to 1.

    A step of more than `threshold` makes both frames beside it artefacts: either may be at fault.
    """
    jump = np.abs(np.diff(grade_T)) > threshold
    fault = np.zeros(len(grade_T), bool)
    fault[:-1] |= jump
    fault[1:] |= jump
    return 1 - int(fault.sum()) / len(grade_T)
