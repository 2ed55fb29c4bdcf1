"""What the heuristic judge measures in pictures: plain things, which are no opinion of a model.

Edges and colours against the reference photo, the reference's face looked for in every frame,
smoothness over time, and whether colours, motion and camera are what the prompt's words lead one to
expect. With several photos a grade is the mean over them.
"""

from __future__ import annotations

import re
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 48  # pictures are brought to this width and height before anything is measured
FACE = (slice(5, 35), slice(11, 38))  # where a portrait photo has its head, at SIDE
SCALES = (0.85, 1.0, 1.15, 1.35)  # sizes at which the face is looked for, of the photo's
GRADES = ("visual_realism", "text_consistency", "identity", "motion", "camera_movement")

# Words -> (hue from, hue to in degrees, least saturation, least and most value, all in [0, 1]).
COLOURS = {
    "red": (345, 15, 0.45, 0.3, 1),
    "orange|ginger|sunset": (15, 38, 0.45, 0.4, 1),
    "auburn|brown": (5, 35, 0.35, 0.1, 0.65),
    "yellow|sand|sandy|sunny": (40, 65, 0.3, 0.6, 1),
    "green|park|grass": (70, 160, 0.2, 0.2, 1),
    "teal": (160, 195, 0.25, 0.2, 1),
    "blue|sea|beach|sky": (195, 250, 0.25, 0.2, 1),
    "purple": (250, 300, 0.15, 0.2, 1),
    "pink": (300, 355, 0.15, 0.5, 1),
    "grey|gray": (0, 360, 0, 0.4, 0.85),
    "night|black|dark": (0, 360, 0, 0, 0.35),
    "white|blonde": (0, 360, 0, 0.75, 1),
}
# Words -> mean change from frame to frame that they lead one to expect, in shares of full white.
MOTION = {
    "walk|run|dance|jump|come": 0.05,
    "wave|lean|hand|turn|look|shake": 0.03,
    "nod|smile|talk|blink|eye|brow|laugh|speak": 0.015,
}
ACTIONS = ("waves a hand", "nods", "smiles", "walks slowly", "looks around", "talks")
PLACES = ("in a green park", "on a beach", "in a kitchen", "in a city street", "in a library")
CALM, LIVELY = "slight|little|gentl|calm|still", "strong|lot|energy|quick|wild"


class Statistics(NamedTuple):
    """What is measured of one picture."""

    edges: float  # mean of the strongest tenth of edges: falls with blur
    grain: float  # median edge: rises with noise
    contrast: float  # std of grey
    colour: float  # std of the opponent colours


class Track(NamedTuple):
    """The reference's face through a video, one value per frame."""

    likeness_F: np.ndarray  # correlation of colours, -1..1
    place_F2: np.ndarray  # x, y of its middle, in shares of the picture
    scale_F: np.ndarray


def grade(reference_HWC: np.ndarray, video_FHWC: np.ndarray, prompt: str) -> dict[str, float]:
    """Measure a video.

    Args:
      reference_HWC: float32 RGB in [0, 1], SIDE x SIDE.
      video_FHWC: frames of the same kind.
      prompt: in English.

    Returns:
      Five values in [0, 1], named by GRADES.
    """
    track = follow(reference_HWC, video_FHWC)
    amount, jerk = motion(video_FHWC)
    return {
        "visual_realism": realism(reference_HWC, video_FHWC),
        "text_consistency": 0.5 * colours(video_FHWC, prompt) + 0.5 * expected(amount, prompt),
        "identity": ramp(_upper(track.likeness_F), 0.35, 0.95),
        "motion": 0.7 * ramp(jerk, 1.6, 0.5) + 0.3 * ramp(amount, 0, 0.01),
        "camera_movement": camera(track, prompt),
    }


def _upper(value_F: np.ndarray) -> float:
    """Return the mean without the least third: a turned head is not another person."""
    return np.sort(value_F)[len(value_F) // 3 :].mean()


def ramp(x: float, low: float, high: float) -> float:
    """Map low..high to 0..1, clipped; low may be the greater."""
    return float(np.clip((x - low) / (high - low), 0, 1))


def statistics(picture_HWC: np.ndarray) -> Statistics:
    """Measure one picture, float32 RGB in [0, 1]."""
    grey_HW = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY)
    edge = np.sort(np.abs(cv2.Laplacian(grey_HW, cv2.CV_32F)), axis=None)
    red, green, blue = picture_HWC.reshape(-1, 3).T
    # Hasler and Suesstrunk's colourfulness, without the mean: red-green and yellow-blue.
    colour = np.hypot((red - green).std(), ((red + green) / 2 - blue).std())
    tenth = len(edge) // 10
    return Statistics(
        edges=edge[-tenth:].mean(),
        grain=edge[len(edge) // 2],
        contrast=grey_HW.std(),
        colour=colour,
    )


def grade_all(photos: list[np.ndarray], video_FHWC: np.ndarray, prompt: str) -> dict[str, float]:
    """Return the mean over the reference photos of what `grade` returns."""
    graded = [grade(photo_HWC, video_FHWC, prompt) for photo_HWC in photos]
    return {name: float(np.mean([grades[name] for grades in graded])) for name in GRADES}


def realism(reference_HWC: np.ndarray, video_FHWC: np.ndarray) -> float:
    """Tell how near the frames' edges, grain, contrast and colour come to the photo's, in [0, 1].

    Args:
      reference_HWC, video_FHWC: as of `grade`.
    """
    photo = statistics(reference_HWC)
    frame = Statistics._make(np.mean([statistics(x) for x in video_FHWC], axis=0))
    # More than the photo has earns nothing, or sharpening would pay.
    sharp = ramp(frame.edges / max(photo.edges, 1e-3), 0.2, 0.9)
    clean = ramp(frame.grain - photo.grain, 0.08, 0.01)
    lively = ramp(min(frame.contrast / max(photo.contrast, 1e-3), 1.0), 0.2, 0.8)
    colourful = ramp(min(frame.colour / max(photo.colour, 1e-3), 1.0), 0.2, 0.8)
    return 0.45 * sharp + 0.35 * clean + 0.1 * lively + 0.1 * colourful


def follow(reference_HWC: np.ndarray, video_FHWC: np.ndarray) -> Track:
    """Find the reference's face in every frame, at a few sizes, by normalised correlation.

    Args:
      reference_HWC, video_FHWC: as of `grade`.

    Returns:
      The best match in each frame, at whatever place and size.
    """
    face = reference_HWC[FACE]
    rows = []
    faces = [cv2.resize(face, None, fx=s, fy=s, interpolation=cv2.INTER_AREA) for s in SCALES]
    for frame in video_FHWC:
        # Borders, so that a head at the edge still matches as a whole.
        padded = cv2.copyMakeBorder(frame, 6, 6, 10, 10, cv2.BORDER_REPLICATE)
        best = (-2.0, 0.0, 0.0, 0.0)
        for scale, part in zip(SCALES, faces, strict=True):
            match = cv2.matchTemplate(padded, part, cv2.TM_CCOEFF_NORMED)
            # Flat frames have no spread to divide by: their correlation counts as none.
            _, value, _, (x, y) = cv2.minMaxLoc(np.nan_to_num(match, posinf=0, neginf=0))
            if value > best[0]:
                x, y = x + part.shape[1] / 2, y + part.shape[0] / 2
                best = (value, x / SIDE, y / SIDE, scale)
        rows.append(best)
    table = np.array(rows)
    return Track(likeness_F=table[:, 0], place_F2=table[:, 1:3], scale_F=table[:, 3])


def motion(video_FHWC: np.ndarray) -> tuple[float, float]:
    """Return the mean change per frame, and how jerky it is (about .5 smooth, 1.7 pure flicker).

    Args:
      video_FHWC: as of `grade`.

    Returns:
      The amount in shares of full white, and the size of second differences over that of first.
    """
    if len(video_FHWC) < 3:
        return 0.0, 1.0
    # Jerk in a small blurred picture, where a smoothly moving edge changes smoothly.
    small = np.stack([cv2.resize(x, (12, 12), interpolation=cv2.INTER_AREA) for x in video_FHWC])
    first = np.abs(np.diff(small, axis=0)).mean()
    second = np.abs(np.diff(small, 2, axis=0)).mean()
    amount = np.abs(np.diff(video_FHWC, axis=0)).mean()
    return float(amount), float((second + 1e-4) / (first + 1e-4))


def colours(video_FHWC: np.ndarray, prompt: str) -> float:
    """Tell how well the colours that the prompt names are to be seen, in [0, 1].

    Args:
      video_FHWC: as of `grade`.
      prompt: if it names no colour the value is 1/2.
    """
    few_frames = video_FHWC[:: len(video_FHWC) // 3 or 1]  # about three of them
    hsv = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in few_frames])
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    seen = []
    for words, (start, end, least, dark, bright) in COLOURS.items():
        if re.search(rf"\b({words})\b", prompt, re.I):
            after, before = hue >= start, hue <= end
            inside = after & before if start <= end else after | before  # red goes over 360
            lit = (value >= dark) & (value <= bright)
            share = (inside & (saturation >= least) & lit).mean()
            seen.append(ramp(share, 0, 0.12))
    return float(np.mean(seen)) if seen else 0.5


def expected(amount: float, prompt: str) -> float:
    """Tell how near the amount of motion comes to what the prompt's verbs and adverbs ask."""
    hits = [value for words, value in MOTION.items() if re.search(rf"\b({words})", prompt, re.I)]
    want = max(hits, default=0.02)
    want *= 0.6 if re.search(rf"\b({CALM})", prompt, re.I) else 1
    want *= 1.5 if re.search(rf"\b({LIVELY})", prompt, re.I) else 1
    # By ratio, not by difference: twice as much is as far off as half as much.
    return 1 - ramp(abs(np.log((amount + 1e-3) / (want + 1e-3))), 0.2, 2.5)


def camera(track: Track, prompt: str) -> float:
    """Tell whether the face drifts and grows as the camera that the prompt names would have it."""
    steps_F2 = np.diff(track.place_F2, axis=0)
    jitter = np.abs(np.diff(steps_F2, axis=0)).mean() if len(steps_F2) > 1 else 0.0
    shift = abs(track.place_F2[-1, 0] - track.place_F2[0, 0])
    growth = np.log(track.scale_F[-1] / track.scale_F[0])
    if re.search(r"\bpan", prompt, re.I):
        right = ramp(shift, 0, 0.2)
    elif re.search(r"\bzoom", prompt, re.I):
        inward = re.search(r"\bzoom\w* in\b", prompt, re.I)
        right = ramp(growth if inward else -growth, 0, 0.25)
    else:
        right = 1 - 0.5 * ramp(abs(growth), 0, 0.3) - 0.5 * ramp(shift, 0.05, 0.5)
    return 0.5 * right + 0.5 * ramp(jitter, 0.06, 0.005)


def naturalness(video_FHWC: np.ndarray) -> int:
    """Grade 1..5 how little frames change in sharpness and grain and jump. As of `grade`."""
    jerk = motion(video_FHWC)[1]
    return 1 + round(2 * realism(video_FHWC[0], video_FHWC) + 2 * ramp(jerk, 1.6, 0.5))


def proposed(photo_HWC: np.ndarray, count: int) -> list[str]:
    """Return prompts for a photo out of a few words, at most 30; others for other photos."""
    number = int(photo_HWC.sum())
    texts = [f"A person {action} {place}." for action, place in product(ACTIONS, PLACES)]
    return [texts[(number + 7 * k) % len(texts)] for k in range(min(count, len(texts)))]
