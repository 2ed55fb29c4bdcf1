"""Preset `tiny`: the paper's seven objective rewards as small stand-ins, and two monitors.

Each reward has the role and the name of the paper's, not its weights: nets of about 0.1 M
parameters trained by train.py on the portrait world of world/portraits.py, where they know
people, places and faults; on real footage their numbers mean little. `flow` alone is the real
thing (optical_flow.py).

A score is a clipped affine map of raw, (raw - low) / (high - low). low and high are measured on
people who are in no training set and stored in each file: for the encoders, low is a stranger's
or a wrong prompt's raw and high a true clip's; for the quality nets, low is the worst damage and
high a faultless clip. So mid-quality clips sit inside [0, 1], where the score still has a slope.
Monitors are never rewards: nets of their own that see the world's truth in training.
Letters: B videos, F frames, P photos, C H W, N = B*F, D features, A attributes, L landmarks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from evoid_jax.sidecars import photos as photos_of
from evoid_jax.sidecars import wire
from evoid_jax.sidecars.preset import Column, Preset, Scorer
from evoid_jax.sidecars.tiny import nets, optical_flow
from evoid_jax.world.people import ATTRIBUTES, BEARD_FROM, GLASSES_FROM

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "rewards"
VERSION = "tiny-1"
FRAMES = 9  # longer clips are read at this many evenly spaced frames (flow: every frame)
TOGETHER = 32  # videos in the nets at once, at most: a thousand would take 5 GB
LANDMARKS = 8
NETS = {
    "arcface": lambda: nets.ArcEncoder(),
    "curricularface": lambda: nets.CurricularEncoder(),
    "gme": lambda: nets.TextVideo(),
    "aesthetic": lambda: nets.FrameQuality(),
    "qalign": lambda: nets.TemporalQuality(),
    "naturalness": lambda: nets.Naturalness(),
    "identity": lambda: nets.Attributes(len(ATTRIBUTES)),
    "motion": lambda: nets.PoseNet(2 * LANDMARKS),
}
DESCRIPTIONS = {
    "arcface": "stand-in: residual encoder trained with the ArcFace loss on drawn people; mean "
    "over frames and photos of max(0, cosine), then affine",
    "curricularface": "stand-in: plain convolutional encoder trained with the CurricularFace loss "
    "on drawn people; mean over frames and photos of max(0, cosine), then affine",
    "gme": "stand-in: two towers (hashed words, frames) trained contrastively; cosine, then affine",
    "aesthetic": "stand-in: regression on graded blur, noise, cast, wash-out, blocks, ghosts; mean "
    "over frames",
    "qalign": "stand-in: regression on graded shuffles, freezes, jitter, flicker, boiling, morphs",
    "naturalness": "stand-in: regression on graded warps, displaced, wiped or doubled features",
    "flow": "OpenCV Farneback; raw is OpenS2V's |signed mean|, score the mean length m/(m+0.8 px)",
}
MONITORS = {
    "identity": "1 - attribute error / a stranger's error, by an independent regressor",
    "motion": "mean step of the fastest landmark, in half heads a frame, by a pose regressor",
}


class Clips(NamedTuple):
    """Prepared videos of equal length at 64x64; floats are in [-1, 1]."""

    x_BFCHW: torch.Tensor  # channels last in memory, as the camera wrote them
    all_frames: list[np.ndarray]  # uint8 FHWC, every frame, for optical flow
    photo_PCHW: torch.Tensor  # each photo once, however many videos share it
    photos: list[list[int]]  # which of them are of a video's person
    prompts: list[str]
    attributes: list[np.ndarray | None]


class Trained(NamedTuple):
    """A net in eval mode, its raw values at score 0 and 1, and its file's digest."""

    net: nn.Module
    low: float
    high: float
    extra: dict
    sha256: str


def load(folder: str | Path = FOLDER) -> Preset:
    """Load the nets of preset `tiny`.

    Raises:
      FileNotFoundError: a net's file is missing; the message tells how to train it.
    """
    nets_of = {name: read_net(Path(folder), name) for name in NETS}
    # Name -> (clips -> Column): the shape in which `preset.answer` calls every one of them.
    scorers = {
        "arcface": lambda c: face(nets_of["arcface"], c),
        "curricularface": lambda c: face(nets_of["curricularface"], c),
        "gme": lambda c: text(nets_of["gme"], c),
        "aesthetic": lambda c: picture(nets_of["aesthetic"], c),
        "qalign": lambda c: clip_quality(nets_of["qalign"], c, shortest=3),
        "naturalness": lambda c: clip_quality(nets_of["naturalness"], c, shortest=1),
        "flow": motion_flow,
    }
    digests = {name: trained.sha256 for name, trained in nets_of.items()}
    # Optical flow has no weights: its code is what its numbers depend on.
    digests["flow"] = hashlib.sha256(Path(optical_flow.__file__).read_bytes()).hexdigest()
    versions = dict.fromkeys(scorers, VERSION) | {"flow": f"opencv-{cv2.__version__}"}
    rewards = [
        Scorer(name, versions[name], digests[name], DESCRIPTIONS[name], score)
        for name, score in scorers.items()
    ]
    watchers = {
        "identity": lambda c: identity(nets_of["identity"], c),
        "motion": lambda c: motion(nets_of["motion"], c),
    }
    monitors = [
        Scorer(name, VERSION, digests[name], MONITORS[name], score)
        for name, score in watchers.items()
    ]
    return Preset("tiny", rewards=tuple(rewards), monitors=tuple(monitors), prepare=prepare)


def write_net(folder: Path, name: str, net: nn.Module, low: float, high: float, extra: dict):
    """Write a net as fp16 safetensors with the raw values at score 0 and 1, or other numbers."""
    # The counters of batch norms are read by training alone.
    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    meta = {"format": "pt", "name": name, "version": VERSION}
    # A safetensors header holds strings; repr of a float reads back as the same float.
    meta |= {"low": repr(float(low)), "high": repr(float(high)), "extra": json.dumps(extra)}
    save_file(tensors, folder / f"{name}.safetensors", meta)


def read_net(folder: Path, name: str) -> Trained:
    """Read a net that `write_net` wrote.

    Raises:
      FileNotFoundError: there is no file of this name; the message tells how to train it.
      ValueError: the file's tensors are not those of the net.
    """
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; python -m evoid_jax.sidecars.tiny.train")
    with safe_open(file, framework="pt") as reader:
        tensors = {key: reader.get_tensor(key).float() for key in reader.keys()}  # noqa: SIM118
        meta = reader.metadata()
    net = NETS[name]()
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    wrong = [k for k in missing if not k.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise ValueError(f"{file} does not fit its net: {wrong[0]}")
    net = net.eval().to(memory_format=torch.channels_last)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    extra = json.loads(meta["extra"])
    return Trained(net, float(meta["low"]), float(meta["high"]), extra, digest)


def prepare(request: wire.ScoreRequest) -> Iterable[tuple[list[int], Clips]]:
    """Crop to squares of 64x64, thin to 9 frames, and group the videos by frame count."""
    # mp4 files may differ in length and size; a net wants one array.
    groups: dict[int, list[int]] = {}
    for i, video in enumerate(request.videos):
        if video is not None:
            groups.setdefault(min(len(video), FRAMES), []).append(i)
    parts = [
        (count, indices[start : start + TOGETHER])
        for count, indices in groups.items()
        for start in range(0, len(indices), TOGETHER)
    ]
    for count, indices in parts:
        small = [to_square(request.videos[i]) for i in indices]
        thin = [v[np.linspace(0, len(v) - 1, count).round().astype(int)] for v in small]
        photos, owned = photos_of.shared([request.references[i] for i in indices])
        square_PHWC = np.concatenate([to_square(photo[None]) for photo in photos])
        clips = Clips(
            x_BFCHW=to_float(np.stack(thin)),
            all_frames=small,
            photo_PCHW=to_float(square_PHWC[None])[0],
            photos=owned,
            prompts=[request.prompts[i] for i in indices],
            attributes=[request.attributes[i] for i in indices],
        )
        yield indices, clips


def to_square(frames_FHWC: np.ndarray, size: int = nets.SIZE) -> np.ndarray:
    """Cut the middle square and resize it.

    Args:
      frames_FHWC: uint8 RGB, or several photos.
      size: in pixels.

    Returns:
      (F, size, size, 3) uint8; the input itself where it has that size.
    """
    height, width = frames_FHWC.shape[1:3]
    if (height, width) == (size, size):
        return frames_FHWC
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = frames_FHWC[:, top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR  # area: shrinking must not alias
    return np.stack(
        [cv2.resize(np.ascontiguousarray(f), (size, size), None, 0, 0, how) for f in cut]
    )


def to_float(video_BFHWC: np.ndarray) -> torch.Tensor:
    """Turn uint8 BFHWC into float BFCHW in [-1, 1], a view with channels last in memory."""
    x_BFHWC = torch.from_numpy(np.array(video_BFHWC)).float() / 127.5 - 1
    return x_BFHWC.permute(0, 1, 4, 2, 3)


@torch.inference_mode()
def face(trained: Trained, c: Clips) -> Column:
    """Score the likeness to the photos: the mean over frames and photos of max(0, cosine).

    The mean over photos is DreamBooth's (section 4.1: the average pairwise similarity of generated
    and real images). The best photo alone would reward a copy of one of them.
    """
    photo_PD = trained.net(c.photo_PCHW)
    frame_BFD = nets.over_frames(trained.net, c.x_BFCHW)
    like_BP = (frame_BFD @ photo_PD.T).clamp(min=0).mean(1)
    return column(trained, of_own(like_BP, c.photos))


def of_own(value_BP: torch.Tensor, photos: list[list[int]]) -> torch.Tensor:
    """Return (B,) of each video the mean of its row over the photos of its own person."""
    return torch.stack([row_P[own].mean() for row_P, own in zip(value_BP, photos, strict=True)])


@torch.inference_mode()
def text(trained: Trained, c: Clips) -> Column:
    """Score how the video fits its prompt: the cosine of both. No words, no score."""
    ids_BS = torch.tensor([nets.hash_tokens(p) for p in c.prompts])
    cos_B = (trained.net.video(c.x_BFCHW) * trained.net.text(ids_BS)).sum(1)
    empty_B = (ids_BS > 0).sum(1) == 0
    reasons = ["gme: the prompt has no words" if e else None for e in empty_B.tolist()]
    scored = column(trained, torch.where(empty_B, torch.nan, cos_B), reasons)
    return scored._replace(excused=empty_B.tolist())


@torch.inference_mode()
def picture(trained: Trained, c: Clips) -> Column:
    """Score the frames' looks, each alone: their mean."""
    return column(trained, nets.over_frames(trained.net, c.x_BFCHW).mean(1))


@torch.inference_mode()
def clip_quality(trained: Trained, c: Clips, shortest: int) -> Column:
    """Score whole clips.

    Raises:
      ValueError: the clips have fewer than `shortest` frames.
    """
    if c.x_BFCHW.shape[1] < shortest:
        raise ValueError(f"needs {shortest} frames or more; got {c.x_BFCHW.shape[1]}")
    return column(trained, trained.net(c.x_BFCHW))


def motion_flow(c: Clips) -> Column:
    """Score how much moves, by optical flow over every frame of the video."""
    flows = [optical_flow.farneback(v) for v in c.all_frames]
    raw_B, score_B = (
        np.array([f(v) for v in flows]) for f in (optical_flow.amplitude, optical_flow.score)
    )
    return Column(raw_B, score_B, [None] * len(flows))


@torch.inference_mode()
def identity(trained: Trained, c: Clips) -> Column:
    """Tell how well the person is kept: 1 - weighted attribute error over a stranger's.

    The truth is that of the drawn world where the request has it, else what the net sees on the
    reference photos, in the mean.
    """
    # The median: a few frames with closed eyes or a hand before the face do not count.
    seen_BA = nets.over_frames(trained.net, c.x_BFCHW).median(1).values
    photo_PA = trained.net(c.photo_PCHW)
    guess_BA = [photo_PA[own].mean(0) for own in c.photos]
    true_BA = torch.stack(
        [
            guess_A if truth is None else visible(torch.tensor(truth))
            for truth, guess_A in zip(c.attributes, guess_BA, strict=True)
        ]
    )
    # Weights: how well the net sees each attribute at all, measured on people it never met.
    weight_A = torch.tensor(trained.extra["weights"])
    stranger_A = torch.tensor(trained.extra["stranger"])
    error_BA = (seen_BA - true_BA).abs() / stranger_A[None]
    error_B = (error_BA * weight_A[None]).sum(1)
    raw_B = (1 - error_B / weight_A.sum()).clamp(0, 1).double().numpy()
    return Column(raw_B, raw_B, [None] * len(raw_B))


@torch.inference_mode()
def motion(trained: Trained, c: Clips) -> Column:
    """Measure the motion amplitude, in half heads a frame; see `amplitude`.

    Raises:
      ValueError: the clips have one frame.
    """
    if c.x_BFCHW.shape[1] < 2:
        raise ValueError(f"needs 2 frames or more; got {c.x_BFCHW.shape[1]}")
    raw_B = amplitude(trained.net(c.x_BFCHW)).double().numpy()
    return Column(raw_B, raw_B, [None] * len(raw_B))


def amplitude(landmarks_BFL: torch.Tensor) -> torch.Tensor:
    """Return the mean over steps of the largest displacement of any landmark.

    Args:
      landmarks_BFL: x, y of each landmark in turn, in half heads.

    Returns:
      (B,) in half heads a frame.
    """
    steps_BFL2 = landmarks_BFL.diff(dim=1).unflatten(2, (LANDMARKS, 2))
    return steps_BFL2.norm(dim=3).amax(2).mean(1)


def visible(attributes_XA: torch.Tensor) -> torch.Tensor:
    """Return what can be seen of attributes: glasses and a beard are worn or not.

    Args:
      attributes_XA: in [0, 1], with any leading axes.

    Returns:
      The same float array with 0 or 1 for those two.
    """
    planes = list(attributes_XA.float().unbind(-1))
    for name, threshold in (("glasses", GLASSES_FROM), ("beard", BEARD_FROM)):
        i = ATTRIBUTES.index(name)
        planes[i] = (planes[i] > threshold).float()
    return torch.stack(planes, -1)


def column(trained: Trained, raw_B: torch.Tensor, reasons: list | None = None) -> Column:
    """Map raw_B to scores in [0, 1] by the file's low and high."""
    raw_B = raw_B.double().numpy()
    score_B = np.clip((raw_B - trained.low) / (trained.high - trained.low), 0, 1)
    return Column(raw_B, score_B, reasons or [None] * len(raw_B))
