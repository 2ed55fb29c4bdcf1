"""Preset `paper`: the seven rewards of the paper with the models that it names, each optional.

Raw values are OpenS2V-Eval's, with its preprocessing and its quirks; scores are raw mapped to
[0, 1]. Weights lie in one folder under their publishers' names (catalogue.py); `sidecars.check`
tells which are there. docs/rewards_paper.md tells what each reward measures, what it costs, and how
it can be gamed. Letters: B videos, T frames, H W C pixels, D features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from evoid_jax.sidecars.paper import catalogue, checkpoints, faces, monitors, smoothness
from evoid_jax.sidecars.paper import options as flags
from evoid_jax.sidecars.paper.clips import Clip, One, each, over_sample, prepare, sample, unit
from evoid_jax.sidecars.paper.options import Options
from evoid_jax.sidecars.preset import Preset, Scorer
from evoid_jax.sidecars.tiny import optical_flow

VERSION = "paper-1"
ASKED_AT_ONCE = 8  # videos that the judge is asked about
# The drawn world's clips, where optical_flow.HALF was measured: their side and frames per second.
FLOW_SIDE, FLOW_FPS = 64, 8
DESCRIPTIONS = {
    "arcface": "likeness to the photos by insightface's ArcFace ({pack}); raw is OpenS2V-Eval's "
    "arc_score, the score counts frames without a face as 0",
    "curricularface": "likeness to the photos by CurricularFace IR-101, faces by {pack}; raw is "
    "OpenS2V-Eval's FaceSim, the score counts frames without a face as 0",
    "gme": "fit to the prompt by {gme} ({dtype}); raw is OpenS2V-Eval's GmeScore, the score "
    "(raw - 0.4) / 0.4",
    "aesthetic": "LAION's aesthetic head on CLIP ViT-L/14; raw is OpenS2V-Eval's AestheticScore, "
    "the score (raw - 4) / 3",
    "qalign": "share of frames without a jump in one-align's grades ({dtype}); OpenS2V-Eval's "
    "MotionSmoothness{stride}",
    "naturalness": "how real it looks to {judge}, by our rubric, 1 to 5; as OpenS2V-Eval's "
    "NaturalScore, whose wording and model are others",
    "flow": "OpenCV Farneback; raw is OpenS2V-Eval's MotionAmplitude, the score m / (m + h) for a "
    "mean length m, h a tenth of the shorter side in a second",
}


class Setup:
    """What the rewards are built from."""

    def __init__(self, options: Options):
        self.options = options
        self.device, self.dtype = flags.device(options), flags.dtype(options)
        self.places = locate(options)

    @cached_property
    def finder(self) -> faces.Finder:
        """Return the finder of faces, loaded once for both face rewards."""
        return faces.load_finder(self.path("insightface pack"), self.device)

    def path(self, name: str) -> Path:
        """Return where a weight of the catalogue lies."""
        return self.places[name].path

    def digest(self, reward: str) -> str:
        """Return the digest of a reward's weights."""
        own = [self.places[weight.name] for weight in catalogue.of(reward)]
        return checkpoints.digest([file for place in own for file in place.files])


def locate(options: Options) -> dict[str, catalogue.Place]:
    """Return where the weights of the wanted rewards lie.

    Raises:
      FileNotFoundError: names all that are missing, with how to get each.
      ValueError: two of one kind are there and none was named, or naturalness has no judge.
    """
    if "naturalness" in options.rewards and not options.judge:
        raise ValueError(
            "naturalness asks a multimodal model: give its address with --judge=http://HOST/v1, or "
            "leave it out of --rewards. A run that starts this set itself gives no flags: start "
            "the server apart, and tell the run its address with config.reward.sidecars"
        )
    places, gone = {}, []
    for weight in catalogue.WEIGHTS:
        if not set(weight.rewards) & set(options.rewards):
            continue
        try:
            places[weight.name] = catalogue.find(weight, options)
        except FileNotFoundError as error:
            gone.append(str(error))
    if gone:
        gone.append("Or serve fewer rewards, such as --rewards=flow")
        raise FileNotFoundError("\n".join(gone))
    return places


def load(folder: str | Path | None = None, options: Options = flags.DEFAULT) -> Preset:
    """Load the rewards that the options name.

    Args:
      folder: with the weights; None: the options', or the default one.

    Raises:
      FileNotFoundError: weights are missing; names all of them and where to get them.
      ValueError: options that cannot be, or a checkpoint of another model.
    """
    if folder is not None:
        options = options._replace(weights=Path(folder))
    flags.check(options)
    setup = Setup(options)
    build = {
        "arcface": arcface,
        "curricularface": curricularface,
        "gme": gme,
        "aesthetic": aesthetic,
        "qalign": qalign,
        "naturalness": judged,
        "flow": lambda setup: motion,
    }
    scorers = [
        scorer(name, build[name](setup), setup) for name in flags.REWARDS if name in options.rewards
    ]
    sees_faces = bool({"arcface", "curricularface"} & set(options.rewards))
    return Preset(
        "paper",
        rewards=tuple(scorers),
        monitors=monitors.of(partial(find_all_faces, setup.finder) if sees_faces else None),
        prepare=prepare,
        # A finder of its own: photos are looked at while videos are scored.
        check_photo=partial(without_face, Setup(options).finder) if sees_faces else None,
    )


def scorer(name: str, score: Callable[[Clip], One], setup: Setup) -> Scorer:
    """Return a reward as the server offers it."""
    o = setup.options
    version = VERSION
    if name == "flow":  # no weights: its code is what its numbers depend on
        digest = hashlib.sha256(Path(optical_flow.__file__).read_bytes()).hexdigest()
        version = f"opencv-{cv2.__version__}"
    elif name == "naturalness":  # nor has this one: the judge's model and our rubric are all
        from evoid_jax.rewards import rubrics

        digest = hashlib.sha256(rubrics.NATURALNESS.encode()).hexdigest()
        version = f"{VERSION} {o.judge_model}".strip()
    else:
        digest = setup.digest(name)
    if name == "qalign" and o.stride != 1:
        version = f"{VERSION} stride-{o.stride}"  # other numbers: two strides never share videos
    names = {weight: place.path.name for weight, place in setup.places.items()}
    words = DESCRIPTIONS[name].format(
        pack=names.get("insightface pack"),
        gme=names.get("GME-Qwen2-VL"),
        dtype=str(setup.dtype).removeprefix("torch."),
        judge=o.judge_model or "the judge",
        stride="" if o.stride == 1 else f" of every {o.stride}th frame, not the benchmark's number",
    )
    workers = ASKED_AT_ONCE if name == "naturalness" else 1
    return Scorer(name, version, digest, words, partial(each, name, score, workers=workers))


def without_face(finder: faces.Finder, photo_HWC: np.ndarray) -> str:
    """Say that a photo, uint8 RGB, shows no face; "" where it does."""
    return "" if finder.find(photo_HWC) else "no face"


def find_faces(finder: faces.Finder, clip: Clip) -> None:
    """Look for the faces of a clip's photos and sampled frames, unless that was done."""
    if clip.frame_faces is None:
        clip.photo_faces = [finder.find(photo) for photo in clip.photos]
        index, inverse = np.unique(sample(len(clip.video_THWC)), return_inverse=True)
        found = [finder.find(clip.video_THWC[i]) for i in index]
        clip.frame_faces = [found[i] for i in inverse]


def find_all_faces(finder: faces.Finder, clip: Clip) -> list[faces.Face | None]:
    """Do as `find_faces`; returns the faces of the clip's other photos."""
    find_faces(finder, clip)
    return [finder.find(photo) for photo in clip.others]


def compared(clip: Clip, embed: Callable[[list[faces.Face]], np.ndarray], drop_zeros: bool) -> One:
    """Compare a clip's faces with those of the photos; the mean over the photos with a face."""
    photos = [face for face in clip.photo_faces if face is not None]
    if not photos:
        why = "no face was found in the person's photos"
        return One(math.nan, math.nan, why, excused=True)
    shown = [face for face in clip.frame_faces if face is not None]
    vector_ND = embed(photos + shown)
    photo_PD, rest = vector_ND[: len(photos)], iter(vector_ND[len(photos) :])
    frames = [None if face is None else next(rest) for face in clip.frame_faces]
    both = [faces.likeness(photo_D, frames, drop_zeros) for photo_D in photo_PD]
    raw, score = np.mean(both, axis=0)
    return One(float(raw), float(score))


def arcface(setup: Setup) -> Callable[[Clip], One]:
    """Build `arcface`."""
    finder = setup.finder

    def score(clip: Clip) -> One:
        find_faces(finder, clip)
        embed = lambda shown: np.stack([face.embedding_D for face in shown])
        return compared(clip, embed, drop_zeros=False)

    return score


def curricularface(setup: Setup) -> Callable[[Clip], One]:
    """Build `curricularface`."""
    finder, memory = setup.finder, setup.options.memory
    encoder = faces.load_encoder(setup.path("CurricularFace IR-101"), setup.device, memory)

    def score(clip: Clip) -> One:
        find_faces(finder, clip)
        return compared(clip, encoder.embed, drop_zeros=True)

    return score


def gme(setup: Setup) -> Callable[[Clip], One]:
    """Build `gme`."""
    from evoid_jax.sidecars.paper import gme as model

    memory = setup.options.memory
    embedder = model.load(setup.path("GME-Qwen2-VL"), setup.device, setup.dtype, memory)

    def score(clip: Clip) -> One:
        if not clip.prompt.strip():
            return One(math.nan, math.nan, "gme: the prompt has no words", excused=True)
        prompt_D = embedder.texts([clip.prompt])[0]
        raw = float((over_sample(embedder.frames, clip.video_THWC) @ prompt_D).mean())
        return One(raw, unit(raw, 0.4, 0.8))

    return score


def aesthetic(setup: Setup) -> Callable[[Clip], One]:
    """Build `aesthetic`."""
    from evoid_jax.sidecars.paper import aesthetic as model

    clip_folder, head = setup.path("CLIP ViT-L/14"), setup.path("LAION aesthetic head")
    grader = model.load(clip_folder, head, setup.device, setup.options.memory)

    def score(clip: Clip) -> One:
        raw = float(over_sample(grader.grades, clip.video_THWC).mean())
        return One(raw, unit(raw, 4, 7))

    return score


def qalign(setup: Setup) -> Callable[[Clip], One]:
    """Build `qalign`."""
    stride, memory = setup.options.stride, setup.options.memory
    grader = smoothness.load(setup.path("one-align"), setup.device, setup.dtype, memory)

    def score(clip: Clip) -> One:
        raw = smoothness.smoothness(grader.grades(clip.video_THWC[::stride]))
        return One(raw, raw)

    return score


def judged(setup: Setup) -> Callable[[Clip], One]:
    """Build `naturalness`."""
    from evoid_jax.sidecars.paper import naturalness as model

    o = setup.options
    chat = model.load(o.judge, o.judge_model, o.judge_key_env)

    def score(clip: Clip) -> One:
        raw = model.grade(chat, clip.video_THWC, clip.fps)
        return One(raw, unit(raw, model.LEAST, model.MOST))

    return score


def motion(clip: Clip) -> One:
    """Score `flow`: how much moves, over every frame."""
    flows_THWC = optical_flow.farneback(clip.video_THWC)
    # A speed on the screen has one score, whatever the video's size and frame rate.
    side = min(clip.video_THWC.shape[1:3]) / FLOW_SIDE
    half = optical_flow.HALF * side * FLOW_FPS / clip.fps
    return One(optical_flow.amplitude(flows_THWC), optical_flow.score(flows_THWC, half))
