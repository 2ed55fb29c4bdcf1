"""`arcface` and `curricularface`: likeness of the video's face to the photos, as OpenS2V-Eval does.

insightface finds the largest face of a picture and embeds it (ArcFace); IR-101 embeds the same face
for CurricularFace. Raw is the benchmark's FaceSim with all its quirks; the score counts a frame
without a face as 0, where the benchmark skips it: hiding the face must not pay.
Letters: T frames, H W C pixels, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from evoid_jax.sidecars.paper import batching, checkpoints, ir101

log = logging.getLogger(__name__)

DETECTION = (320, 320)  # the benchmark's; insightface's own default would be another
CROP = 224  # the aligned face; IR-101 sees it at half the size
MARGIN, GREY = 0.25, (128, 128, 128)  # the border of a second try, where no face was found


class Face(NamedTuple):
    """The largest face of a picture."""

    embedding_D: np.ndarray  # ArcFace's, not of unit length
    crop_HWC: np.ndarray  # uint8 RGB, aligned


class Finder:
    """Finds faces.

    Args:
      analysis: of `load_analysis`, or whatever has its `get(picture_BGR)`.
      align: insightface's `norm_crop`: (picture, five points, size) -> crop.
    """

    def __init__(self, analysis: Any, align: Callable):
        self.analysis, self.align = analysis, align

    def find(self, picture_HWC: np.ndarray) -> Face | None:
        """Return the largest face of an RGB picture, or None."""
        bgr = cv2.cvtColor(np.ascontiguousarray(picture_HWC), cv2.COLOR_RGB2BGR)
        face, shift = self._largest(bgr), (0, 0)
        if face is None:  # a face that fills the picture is found once there is air around it
            top, left = (int(size * MARGIN) for size in bgr.shape[:2])
            border = (top, top, left, left, cv2.BORDER_CONSTANT)
            face, shift = self._largest(cv2.copyMakeBorder(bgr, *border, value=GREY)), (left, top)
        if face is None:
            return None
        points = np.asarray(face["kps"]) - np.asarray(shift)
        crop = self.align(bgr, landmark=points, image_size=CROP)
        return Face(np.asarray(face["embedding"]), cv2.cvtColor(crop, cv2.COLOR_BGR2RGB))

    def _largest(self, bgr: np.ndarray) -> dict | None:
        def area(face) -> float:
            x0, y0, x1, y1 = face["bbox"][:4]
            return (x1 - x0) * (y1 - y0)

        return max(self.analysis.get(bgr), key=area, default=None)


class Encoder:
    """CurricularFace's IR-101 over aligned faces."""

    def __init__(self, net: ir101.IR101, device: torch.device, memory: float):
        self.net, self.device = net, device
        self.size = batching.most(ir101.FACE_BYTES, memory)

    def embed(self, faces: list[Face]) -> np.ndarray:
        """Return (N, 512) float32."""
        return batching.run(self._embed, faces, self.size).cpu().numpy()

    @torch.inference_mode()
    def _embed(self, faces: list[Face]) -> torch.Tensor:
        small = [cv2.resize(face.crop_HWC, (ir101.SIDE, ir101.SIDE)) for face in faces]
        x_NHWC = torch.from_numpy(np.stack(small)).to(self.device).float()
        x_NCHW = x_NHWC.permute(0, 3, 1, 2).div(255).sub(0.5).div(0.5)
        return self.net(x_NCHW)


def load_analysis(pack: Path, device: torch.device) -> Any:
    """Load detection and recognition of an insightface pack; nothing is ever downloaded.

    Raises:
      ValueError: the folder has no ONNX file for one of the two.
    """
    from insightface.app import FaceAnalysis

    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers = [("CUDAExecutionProvider", {"device_id": device.index or 0}), *providers]
    # By its folder, not by name: a name that is not there would be downloaded.
    wanted = ["detection", "recognition"]
    try:
        analysis = FaceAnalysis(name=str(pack), allowed_modules=wanted, providers=providers)
    except AssertionError:  # insightface's word for a pack without a detector
        raise ValueError(f"{pack} has no ONNX file that detects faces; is it a pack?") from None
    if set(analysis.models) != set(wanted):
        raise ValueError(f"{pack} has no ONNX file that recognises faces; is it a whole pack?")
    analysis.prepare(ctx_id=0 if device.type == "cuda" else -1, det_size=DETECTION)
    for name, model in analysis.models.items():
        used = model.session.get_providers()[0]
        if device.type == "cuda" and used != "CUDAExecutionProvider":
            log.warning("%s of %s runs on the CPU; install onnxruntime-gpu instead of onnxruntime "
                        "to have it on %s", name, pack.name, device)  # fmt: skip
    return analysis


def load_finder(pack: Path, device: torch.device) -> Finder:
    """Load a pack and the alignment that goes with it."""
    from insightface.utils import face_align

    return Finder(load_analysis(pack, device), face_align.norm_crop)


def load_encoder(file: Path, device: torch.device, memory: float) -> Encoder:
    """Load CurricularFace's weights, float32 as in the benchmark."""
    with torch.device("meta"):
        net = ir101.IR101()
    return Encoder(checkpoints.fill(net, [file], device, torch.float32), device, memory)


def likeness(
    photo_D: np.ndarray, frames: list[np.ndarray | None], drop_zeros: bool
) -> tuple[float, float]:
    """Compare a photo's face with those of a video's frames.

    Args:
      photo_D: its embedding.
      frames: embeddings, None where no face was found.
      drop_zeros: leave frames that are exactly 0 out of raw: the benchmark does so for
        CurricularFace, and means to, but does not, for ArcFace.

    Returns:
      raw, the benchmark's mean of max(0, cosine) over the frames with a face, 0 without any; and
      the mean over all frames, 0 for those without a face.
    """
    faces = [max(0.0, cosine(photo_D, face_D)) for face_D in frames if face_D is not None]
    counted = [x for x in faces if x != 0.0] if drop_zeros else faces
    raw = float(np.mean(counted)) if counted else 0.0
    return raw, sum(faces) / len(frames)


def cosine(a_D: np.ndarray, b_D: np.ndarray) -> float:
    """Return the cosine between two vectors."""
    return float(a_D @ b_D / (np.linalg.norm(a_D) * np.linalg.norm(b_D)))
