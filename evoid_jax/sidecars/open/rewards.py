"""Preset `open`: seven rewards for real faces, of free weights, and two monitors.

Each has the name of a reward of the paper's and stands in for it; its description says what it is
instead. No number of this preset compares with the benchmark's. docs/rewards_open.md tells of each
what it measures, what it costs and how it can be gamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from evoid_jax import files
from evoid_jax.sidecars import copying, wire
from evoid_jax.sidecars.open import brisque, catalogue, conse, looks, steadiness
from evoid_jax.sidecars.open.catalogue import File
from evoid_jax.sidecars.open.clip import Clip, Nets, Photo
from evoid_jax.sidecars.open.dlib_resnet import DlibFace
from evoid_jax.sidecars.open.efficientnet import Backbone
from evoid_jax.sidecars.open.faces import Finder
from evoid_jax.sidecars.open.minilm import Sentences
from evoid_jax.sidecars.open.sface import SFace
from evoid_jax.sidecars.open.transnet import Cuts
from evoid_jax.sidecars.preset import Column, Preset, Scorer
from evoid_jax.sidecars.tiny import optical_flow

VERSION = "open-1"  # of all numbers here; the measure's own name follows it
# Each score is a clipped affine map of raw; where 0 and 1 lie was set on photographs and clips.
FAR = 0.9  # dlib's distance of faces that have nothing in common; .6 is its usual threshold
STRANGER, SAME = 0.05, 0.95  # SFace's cosine of strangers, and of frames that are nearly one
FITTING = 0.6  # ConSE's cosine of a picture that is all that its prompt says
RUINED = 80  # BRISQUE of a picture that is only noise or blur

NO_FACE = "no photo of the person shows a face that can be found"
DESCRIPTIONS = {
    "arcface": "stand-in for ArcFace: dlib's face encoder behind YuNet; mean over frames and "
    "photos of 1 - distance / 0.9; a frame without a face counts 0",
    "curricularface": "stand-in for CurricularFace: SFace behind YuNet; mean over frames and "
    "photos of max(0, cosine), then affine; a frame without a face counts 0",
    "gme": "stand-in for GME: conse, the sentence vectors of EfficientNet-Lite0's classes against "
    "the prompt's (MiniLM); cosine / 0.6",
    "aesthetic": "stand-in for the LAION aesthetic score: no taste, but BRISQUE (clean), "
    "sharpness, grain, contrast, light and colour",
    "qalign": "stand-in for Q-Align's smoothness: DIS flow's warp error, likeness of neighbouring "
    "frames, cuts by TransNetV2",
    "naturalness": "stand-in for a rubric by an MLLM: clean frames (BRISQUE) x steadiness (as "
    "qalign) x share of frames with a face; sees no anatomy and no physics",
    "flow": "OpenCV Farneback; raw is OpenS2V's |signed mean|, score the mean speed v/(v + 0.1 "
    "shorter sides a second)",
}
MONITORS = {
    "motion": steadiness.SPEED,
    "sharpness": looks.SHARPNESS,
    "uncopied": f"{copying.UNCOPIED}; angles are SFace's",
}
STEADY_FILES = (catalogue.EFFICIENTNET, catalogue.TRANSNET)
LOOK_FILES = (catalogue.BRISQUE_MODEL, catalogue.BRISQUE_RANGE)
MEASURES = {
    "arcface": "dlib",
    "curricularface": "sface",
    "gme": "conse",
    "aesthetic": "brisque and craft",
    "qalign": "steadiness",
    "naturalness": "brisque x steadiness x faces",
    "flow": f"opencv {cv2.__version__}",
    "motion": "dis flow",
    "sharpness": "laplacian",
    "uncopied": "sface, one photo against the others",
}
# What has no weights is told by its code.
CODE = {"flow": optical_flow, "motion": steadiness, "sharpness": looks}
FILES: dict[str, tuple[File, ...]] = {
    "arcface": (catalogue.YUNET, catalogue.DLIB, catalogue.DLIB_MANIFEST),
    "curricularface": (catalogue.YUNET, catalogue.SFACE),
    "gme": (catalogue.EFFICIENTNET, catalogue.LABELS, catalogue.MINILM, catalogue.TOKENIZER),
    "aesthetic": LOOK_FILES,
    "qalign": STEADY_FILES,
    "naturalness": (catalogue.YUNET, *LOOK_FILES, *STEADY_FILES),
    "uncopied": (catalogue.YUNET, catalogue.SFACE),
}


def load(folder: str | Path | None = None, device: str | None = None) -> Preset:
    """Load the nets of preset `open`.

    Args:
      folder: of the weights; None is `catalogue.folder()`.
      device: of torch; None takes a GPU where there is one.

    Raises:
      FileNotFoundError: a file is missing; the message tells how to bring it.
      ValueError: a file is not the right one.
    """
    folder = None if folder is None else Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    nets = Nets(
        finder=Finder(folder),
        dlib=DlibFace(folder, device),
        sface=SFace(folder, device),
        backbone=Backbone(folder, device),
        sentences=Sentences(folder, device),
        labels=conse.labels(folder),
        regression=brisque.load(folder),
        cuts=Cuts(folder, device),
    )
    # A finder of its own: photos are looked at while videos are scored.
    return preset(nets)._replace(check_photo=partial(without_face, Finder(folder)))


def preset(nets: Nets) -> Preset:
    """Make the preset of nets that are loaded."""
    scorers = {
        "arcface": dlib_likeness,
        "curricularface": sface_likeness,
        "gme": text,
        "aesthetic": aesthetic,
        "qalign": qalign,
        "naturalness": naturalness,
        "flow": flow,
    }
    watchers = {"motion": motion, "sharpness": sharpness, "uncopied": uncopied}
    rewards = [_scorer(name, DESCRIPTIONS[name], score) for name, score in scorers.items()]
    monitors = [_scorer(name, MONITORS[name], score) for name, score in watchers.items()]
    return Preset(
        "open",
        rewards=tuple(rewards),
        monitors=tuple(monitors),
        prepare=lambda request: prepare(nets, request),
    )


def _scorer(name: str, description: str, score: Callable[[Clip], Column]) -> Scorer:
    if name in CODE:
        digest = files.sha256(Path(CODE[name].__file__))
    else:
        digests = "".join(file.sha256 for file in FILES[name])
        digest = hashlib.sha256(digests.encode()).hexdigest()
    return Scorer(name, f"{VERSION} {MEASURES[name]}", digest, description, score)


def prepare(nets: Nets, request: wire.ScoreRequest) -> Iterable[tuple[list[int], Clip]]:
    """Yield the videos one by one: what is measured of one is let go before the next."""
    photos: dict[int, Photo] = {}  # by the array's id: the videos of a person share its photos
    for i, video in enumerate(request.videos):
        if video is None:
            continue
        own, others = request.references[i], request.others[i] if request.others else []
        for image in (*own, *others):
            photos.setdefault(id(image), Photo(nets, image))
        own, others = ([photos[id(image)] for image in images] for images in (own, others))
        yield [i], Clip(nets, video, own, request.prompts[i], request.fps, others)


def without_face(finder: Finder, photo_HWC: np.ndarray) -> str:
    """Say that a photo, uint8 RGB, shows no face; "" where it does."""
    return "" if finder.find(photo_HWC) else "no face"


def one(raw: float, score: float) -> Column:
    """Return the column of one video."""
    return Column(np.array([raw]), np.clip(np.array([score]), 0, 1), [None])


def excuse(reason: str) -> Column:
    """Return the column of one video that cannot help its missing score."""
    return Column(np.array([np.nan]), np.array([np.nan]), [reason], [True])


def dlib_likeness(clip: Clip) -> Column:
    """Score the likeness to the photos by dlib's encoder."""
    shown = [photo for photo in clip.photos if photo.face]
    if not shown:
        return excuse(f"arcface: {NO_FACE}")
    if not clip.faces:
        return one(0.0, 0.0)
    photo_PD = np.stack([photo.dlib_D for photo in shown])
    distance_SP = np.linalg.norm(clip.dlib[:, None] - photo_PD[None], axis=2)
    raw = _over_frames(np.maximum(1 - distance_SP / FAR, 0), clip)
    return one(raw, raw)


def sface_likeness(clip: Clip) -> Column:
    """Score the likeness to the photos by SFace."""
    shown = [photo for photo in clip.photos if photo.face]
    if not shown:
        return excuse(f"curricularface: {NO_FACE}")
    if not clip.faces:
        return one(0.0, 0.0)
    photo_PD = np.stack([photo.sface_D for photo in shown])
    cosine_SP = np.maximum(clip.sface @ photo_PD.T, 0)
    score_SP = np.clip((cosine_SP - STRANGER) / (SAME - STRANGER), 0, 1)
    return one(_over_frames(cosine_SP, clip), _over_frames(score_SP, clip))


def _over_frames(value_SP: np.ndarray, clip: Clip) -> float:
    """Return the mean over photos and all sampled frames; one without a face counts 0."""
    return float(value_SP.mean(1).sum() / len(clip.frames))


def text(clip: Clip) -> Column:
    """Score how the video fits its prompt. No words, no score."""
    if not any(letter.isalnum() for letter in clip.prompt):
        return excuse("gme: the prompt has no words")
    return one(clip.text, clip.text / FITTING)


def aesthetic(clip: Clip) -> Column:
    """Score the frames' looks, each alone: their mean."""
    value = looks.look(clip.looks)
    return one(value, value)


def qalign(clip: Clip) -> Column:
    """Score how the video holds together."""
    return one(clip.steadiness, clip.steadiness)


def naturalness(clip: Clip) -> Column:
    """Score clean frames, steadiness and the presence of a face together."""
    distortion = 100 * (1 - clip.looks["clean"])
    clean = max(1 - distortion / RUINED, 0)
    value = clean * clip.steadiness * len(clip.faces) / len(clip.frames)
    return one(value, value)


def flow(clip: Clip) -> Column:
    """Score the amount of motion."""
    flows_FHWC = optical_flow.farneback(clip.video_FHWC)
    # A speed on the screen has one score, whatever the video's size and frame rate.
    half = steadiness.MOVING * min(flows_FHWC.shape[1:3]) / clip.fps
    score = optical_flow.score(flows_FHWC, half)
    return one(optical_flow.amplitude(flows_FHWC), score)


def motion(clip: Clip) -> Column:
    """Measure the amount of motion by another flow than the reward's."""
    return one(*steadiness.speed(clip.motion.length_F, clip.fps))


def sharpness(clip: Clip) -> Column:
    """Measure how sharp the frames are."""
    return one(*looks.sharpness(clip.frames))


def uncopied(clip: Clip) -> Column:
    """Measure how far the face is from being a copy of one of the photos."""
    shown = [photo for photo in (*clip.photos, *clip.others) if photo.face]
    if len(shown) < 2 or not clip.faces:
        return excuse("uncopied: needs a face in the video and in two photos")
    value = copying.uncopied(clip.sface, np.stack([photo.sface_D for photo in shown]))
    return one(value, value)
