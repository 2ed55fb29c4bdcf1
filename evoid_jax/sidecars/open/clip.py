"""One video with its photos and prompt, and what is measured of it, each thing at most once.

Several rewards look at the same faces, features and flows: whoever asks first has them measured.
Letters: F all frames, S sampled frames, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from evoid_jax.sidecars.open import brisque, conse, looks, steadiness
from evoid_jax.sidecars.open.dlib_resnet import DlibFace
from evoid_jax.sidecars.open.efficientnet import Backbone
from evoid_jax.sidecars.open.faces import Face, Finder
from evoid_jax.sidecars.open.minilm import Sentences
from evoid_jax.sidecars.open.sface import SFace
from evoid_jax.sidecars.open.transnet import Cuts

SAMPLED = 32  # frames, evenly spaced, as the benchmark takes them; all, where there are fewer


class Nets(NamedTuple):
    """All that looks at videos."""

    finder: Finder
    dlib: DlibFace
    sface: SFace
    backbone: Backbone
    sentences: Sentences
    labels: list[str]
    regression: brisque.Regression
    cuts: Cuts


class Photo:
    """A reference photo, uint8 RGB HWC; the videos of its person share it."""

    def __init__(self, nets: Nets, image_HWC: np.ndarray):
        self._nets, self._image_HWC = nets, image_HWC

    @cached_property
    def face(self) -> Face | None:
        """The largest face, None where there is none."""
        return next(iter(self._nets.finder.find(self._image_HWC)), None)

    @cached_property
    def dlib_D(self) -> np.ndarray:
        """dlib's embedding of the face."""
        return self._nets.dlib.embed(self._image_HWC, self.face)

    @cached_property
    def sface_D(self) -> np.ndarray:
        """SFace's embedding of the face."""
        return self._nets.sface.embed(self._image_HWC, self.face)


class Clip:
    """A video, uint8 RGB FHWC, its person's photos, its prompt and its frames per second.

    others: more photos of the person, for the monitor of copies alone.
    """

    def __init__(
        self,
        nets: Nets,
        video_FHWC: np.ndarray,
        photos: list[Photo],
        prompt: str,
        fps: float,
        others: Sequence[Photo] = (),
    ):
        self._nets, self.video_FHWC = nets, video_FHWC
        self.photos, self.prompt, self.fps, self.others = photos, prompt, fps, others

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """The sampled frames."""
        count = min(len(self.video_FHWC), SAMPLED)
        index_S = np.linspace(0, len(self.video_FHWC) - 1, count, dtype=int)
        return [np.ascontiguousarray(self.video_FHWC[i]) for i in index_S]

    @cached_property
    def faces(self) -> list[tuple[np.ndarray, Face]]:
        """The sampled frames that show a face, each with its largest one."""
        seen = [(frame, self._nets.finder.find(frame)) for frame in self.frames]
        return [(frame, faces[0]) for frame, faces in seen if faces]

    @cached_property
    def dlib(self) -> np.ndarray:
        """dlib's embeddings of `faces`."""
        crops = [self._nets.dlib.crop(frame, face) for frame, face in self.faces]
        return self._nets.dlib.embed_crops(np.stack(crops))

    @cached_property
    def sface(self) -> np.ndarray:
        """SFace's embeddings of `faces`."""
        crops = [self._nets.sface.crop(frame, face) for frame, face in self.faces]
        return self._nets.sface.embed_crops(np.stack(crops))

    @cached_property
    def looked(self) -> tuple[np.ndarray, np.ndarray]:
        """The sampled frames' features (S, 1280) and class probabilities (S, 1000)."""
        return self._nets.backbone.look(np.stack(self.frames))

    @cached_property
    def text(self) -> float:
        """The mean cosine of the sampled frames and the prompt."""
        chance_SK = self.looked[1]
        return float(
            conse.similarities(
                self._nets.sentences, self._nets.labels, chance_SK, self.prompt
            ).mean()
        )

    @cached_property
    def looks(self) -> dict[str, float]:
        """Each of `looks.measures`, the mean over the sampled frames."""
        each = [looks.measures(self._nets.regression, frame) for frame in self.frames]
        return {name: float(np.mean([parts[name] for parts in each])) for name in each[0]}

    @cached_property
    def motion(self) -> steadiness.Motion:
        """The steps between all frames."""
        return steadiness.motion(self.video_FHWC)

    @cached_property
    def steadiness(self) -> float:
        """How the video holds together, in [0, 1]."""
        cut_F = self._nets.cuts.probabilities(self.video_FHWC)
        return steadiness.steadiness(self.motion.error_F, self.looked[0], cut_F)
