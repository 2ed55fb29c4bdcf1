"""The tiny world: who the people are, what a scene is, how it moves. NumPy only.

Letters: A identity attributes, F pixel frames. Lengths are in picture heights, y points down and
the origin is the middle of the picture, unless a name says face units (half a head height).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ATTRIBUTES = (
    "skin",
    "hair_tone",
    "hair_light",
    "hair_length",
    "hair_volume",
    "fringe",
    "face_width",
    "face_height",
    "eye_colour",
    "brows",
    "mouth_width",
    "glasses",
    "beard",
    "shirt_hue",
    "shirt_light",
)
ACTIONS = (
    "nod",
    "turn",
    "shake",
    "smile",
    "blink",
    "wave",
    "walk",
    "lean",
    "brows",
    "talk",
)
BACKGROUNDS = ("plain", "gradient", "stripes", "park", "room", "sunset", "beach", "night")
CAMERAS = ("static", "pan_left", "pan_right", "zoom_in", "zoom_out")
TINTS = {  # colours of walls and stripes, by the name that prompts give them
    "pink": (0.93, 0.66, 0.72),
    "orange": (0.95, 0.66, 0.38),
    "yellow": (0.94, 0.85, 0.45),
    "green": (0.55, 0.76, 0.52),
    "teal": (0.38, 0.70, 0.70),
    "blue": (0.47, 0.64, 0.88),
    "purple": (0.66, 0.55, 0.82),
    "grey": (0.70, 0.71, 0.73),
}
SPLITS = {
    "pretrain": range(0, 20000),
    "pairs": range(20000, 100000),  # photos with clips as found beside them
    "evolution": range(100000, 100512),
    # Settings are tuned and runs are watched on these; the proof's people decide nothing before it.
    "validation": range(200000, 200256),
    "heldout": range(300000, 300256),
}
GLASSES_FROM = 0.55  # `glasses` above this wears glasses
BEARD_FROM = 0.75  # `beard` above this has a beard
FACE = 0.23  # half a head height at scale 1
HEAD_Y = -0.045  # of a resting head
NEUTRAL_SMILE = 0.15

_IDENTITY_STREAM, _SCENE_STREAM, _PLACE_STREAM, _PROMPT_STREAM = range(4)


@dataclass(frozen=True, eq=False)
class Scene:
    """One video's content: a person, an action, a place and a camera move.

    Attributes:
      identity: (A,) float32 in [0, 1], in the order of ATTRIBUTES.
      action: one of ACTIONS. amplitude: 0 (nothing moves) to 1.
      background: one of BACKGROUNDS. tint: index into TINTS (ignored by outdoor backgrounds).
      camera: one of CAMERAS.
      side: -1 (left of the picture) or +1; the direction of turn, lean, walk and the waving hand.
      seed: keys the person's place and size in the picture and the prompt's wording.
    """

    identity: np.ndarray
    action: str
    amplitude: float
    background: str
    tint: int
    camera: str
    side: int
    seed: int


class Pose(NamedTuple):
    """Where everything is: (F,) float32 each, except the scalar unit."""

    head_x: np.ndarray
    head_y: np.ndarray
    body_x: np.ndarray
    angle: np.ndarray  # of the head, radians, clockwise in the picture
    turn: np.ndarray  # -1 left of the picture, 1 right
    pitch: np.ndarray  # -1 up, 1 down
    eyes: np.ndarray  # openness 0..1
    smile: np.ndarray  # 0..1
    mouth: np.ndarray  # openness 0..1
    brows: np.ndarray  # raise 0..1
    hand_x: np.ndarray
    hand_y: np.ndarray  # below the picture when the hand is down
    zoom: np.ndarray
    pan: np.ndarray  # x of the camera
    unit: float  # one face unit in picture heights


def generator(*key: int) -> np.random.Generator:
    """Make a generator that depends on the integers of `key` only, whatever was drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def identity(index: int) -> np.ndarray:
    """Draw the attributes of person `index` (>= 0): (A,) float32 in [0, 1], always the same."""
    return generator(_IDENTITY_STREAM, index).random(len(ATTRIBUTES), dtype=np.float32)


def trait(person_A: np.ndarray, name: str) -> float:
    """Return one attribute of a person by its name in ATTRIBUTES."""
    return float(person_A[ATTRIBUTES.index(name)])


def scene(identity_index: int, seed: int) -> Scene:
    """Draw a random scene of one person; the same (identity_index, seed) gives the same scene."""
    random = generator(_SCENE_STREAM, identity_index, seed)
    return Scene(
        identity=identity(identity_index),
        action=ACTIONS[random.integers(len(ACTIONS))],
        amplitude=float(random.uniform(0.25, 1.0)),
        background=BACKGROUNDS[random.integers(len(BACKGROUNDS))],
        tint=int(random.integers(len(TINTS))),
        camera=CAMERAS[random.integers(len(CAMERAS))],
        side=int(random.choice((-1, 1))),
        seed=int(random.integers(2**31)),
    )


def wording(seed: int) -> np.random.Generator:
    """Make the generator that picks a prompt's words."""
    return generator(_PROMPT_STREAM, seed)


def _smooth(t_F: np.ndarray) -> np.ndarray:
    """Ease from 0 to 1, at rest at both ends."""
    t_F = np.clip(t_F, 0, 1)
    return t_F * t_F * (3 - 2 * t_F)


def _camera(camera: str, t_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return zoom_F and pan_F of a camera move over times 0..1."""
    ramp_F = _smooth(t_F)
    still_F = np.zeros_like(t_F)
    if camera == "static":
        return still_F + 1, still_F
    if camera == "zoom_in":
        return 0.9 + 0.35 * ramp_F, still_F
    if camera == "zoom_out":
        return 1.25 - 0.35 * ramp_F, still_F
    sign = {"pan_left": -1, "pan_right": 1}[camera]
    return still_F + 1, sign * 0.26 * (ramp_F - 0.5)


def pose(scene: Scene, frames: int) -> Pose:
    """Compute where everything is in each frame of a scene, in world units (see Pose)."""
    t_F = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    random = generator(_PLACE_STREAM, scene.seed)
    offset, scale = random.uniform(-0.05, 0.05), random.uniform(0.93, 1.07)
    unit = FACE * scale
    a, side, action = scene.amplitude, scene.side, scene.action
    zero_F, ramp_F, wave_F = np.zeros_like(t_F), _smooth(t_F), np.sin(2 * np.pi * t_F)

    def when(name: str, value_F: np.ndarray) -> np.ndarray:
        return value_F if action == name else zero_F

    pitch_F = when("nod", a * wave_F)
    turn_F = when("turn", side * a * ramp_F) + when("shake", side * a * np.sin(3 * np.pi * t_F))
    lean_F = when("lean", side * a * ramp_F)
    walk_F = when("walk", side * a * (1 - ramp_F))
    step_F = when("walk", a * np.sin(3 * np.pi * t_F) ** 2 * (1 - t_F))
    lift_F = when("wave", np.sqrt(a) * _smooth(3 * t_F))
    swing_F = when("wave", a * _smooth(3 * t_F) * np.sin(3 * np.pi * t_F))
    body_x_F = offset + unit * (0.35 * lean_F + 2.8 * walk_F)
    zoom_F, pan_F = _camera(scene.camera, t_F)
    per_frame = {
        "head_x": body_x_F + unit * (0.55 * lean_F),
        "head_y": HEAD_Y + unit * (0.14 * pitch_F + 0.2 * np.abs(lean_F) - 0.2 * step_F),
        "body_x": body_x_F,
        "angle": 0.45 * lean_F,
        "turn": turn_F,
        "pitch": pitch_F,
        "eyes": 1 - when("blink", min(1.0, 1.4 * a) * wave_F**2),
        "smile": NEUTRAL_SMILE + when("smile", (1 - NEUTRAL_SMILE) * a * ramp_F),
        "mouth": when("talk", a * wave_F**2 * (0.7 + 0.3 * np.cos(np.pi * t_F))),
        "brows": when("brows", a * np.sin(np.pi * t_F) ** 2),
        "hand_x": body_x_F + unit * (side * 1.55 + 0.4 * swing_F),
        "hand_y": HEAD_Y + unit * (3.1 - 3.0 * lift_F),
        "zoom": zoom_F,
        "pan": pan_F,
    }
    # Computed in float64 and rounded once.
    return Pose(unit=unit, **{name: x_F.astype(np.float32) for name, x_F in per_frame.items()})


def _motion(pose: Pose) -> float:
    """Average over steps the largest displacement of any landmark, in face units."""
    head_x_F, head_y_F = pose.head_x / pose.unit, pose.head_y / pose.unit
    landmarks = (
        (head_x_F, head_y_F),
        (head_x_F + np.sin(pose.angle), head_y_F - np.cos(pose.angle)),  # crown
        (head_x_F + 0.25 * pose.turn, head_y_F + 0.2 * pose.pitch),  # nose
        (pose.hand_x / pose.unit, pose.hand_y / pose.unit),
        (0.16 * pose.smile, 0.2 * pose.smile),  # corner of the mouth
        (0 * pose.mouth, 0.3 * pose.mouth),  # lower lip
        (0 * pose.eyes, 0.26 * pose.eyes),  # eyelid
        (0 * pose.brows, 0.3 * pose.brows),
    )
    steps = [np.hypot(np.diff(x_F), np.diff(y_F)) for x_F, y_F in landmarks]
    return float(np.max(steps, axis=0).mean()) if len(pose.zoom) > 1 else 0.0


def truth(scene: Scene, frames: int = 9) -> dict:
    """Tell what `render` draws.

    Args:
      scene: what is shown.
      frames: number of frames F.

    Returns:
      (F,) float32 arrays: head_x, head_y, hand_x, hand_y (centres in the picture, 0..1 from the
      left and the top; outside when out of sight), hand_height (1 - hand_y), head_angle (radians),
      turn, pitch (-1..1), eyes, smile, mouth, brows (0..1), zoom, pan; and the float
      motion_amplitude: mean per-frame displacement of the fastest of head, hand and features,
      in face units, without the camera's own motion.
    """
    p = pose(scene, frames)
    hand_y_F = p.hand_y * p.zoom + 0.5
    return {
        "head_x": (p.head_x - p.pan) * p.zoom + 0.5,
        "head_y": p.head_y * p.zoom + 0.5,
        "head_angle": p.angle,
        "turn": p.turn,
        "pitch": p.pitch,
        "eyes": p.eyes,
        "smile": p.smile,
        "mouth": p.mouth,
        "brows": p.brows,
        "hand_x": (p.hand_x - p.pan) * p.zoom + 0.5,
        "hand_y": hand_y_F,
        "hand_height": 1 - hand_y_F,
        "zoom": p.zoom,
        "pan": p.pan,
        "motion_amplitude": _motion(p),
    }
