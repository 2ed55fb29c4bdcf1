"""Draw the tiny world's people: videos and reference photos. NumPy only.

Letters: F H W frames, 3 colour planes, A attributes; F11 broadcasts over a frame. Head coordinates
u, v are in face units (half a head height) around the head's centre and turn with it; x, y are
around the resting head above the body. `pixel` is a pixel's width in face units. Everything paints
in place and from back to front: what comes later covers what came before.
"""

import math
from typing import NamedTuple

import numpy as np

from evoid_jax.world.paint import box, cover, ellipse, gradient, paint, stroke
from evoid_jax.world.people import (
    ACTIONS,
    ATTRIBUTES,
    BACKGROUNDS,
    BEARD_FROM,
    CAMERAS,
    FACE,
    GLASSES_FROM,
    HEAD_Y,
    NEUTRAL_SMILE,
    SPLITS,
    TINTS,
    Pose,
    Scene,
    identity,
    pose,
    scene,
    truth,
)
from evoid_jax.world.places import indoors, outdoors
from evoid_jax.world.prompts import prompt

__all__ = [
    "ACTIONS",
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CAMERAS",
    "SPLITS",
    "TINTS",
    "Scene",
    "identity",
    "prompt",
    "reference",
    "render",
    "scene",
    "truth",
]

SKIN = ((0.36, 0.22, 0.15), (0.55, 0.36, 0.24), (0.78, 0.57, 0.41), (0.95, 0.80, 0.69))
HAIR = (
    (0.09, 0.08, 0.10),
    (0.29, 0.17, 0.10),
    (0.50, 0.20, 0.10),
    (0.82, 0.42, 0.14),
    (0.93, 0.78, 0.42),
    (0.80, 0.80, 0.83),
)
EYES = ((0.24, 0.13, 0.07), (0.20, 0.42, 0.20), (0.16, 0.40, 0.72))
SHIRT = (
    (0.82, 0.20, 0.20),
    (0.90, 0.55, 0.15),
    (0.92, 0.82, 0.25),
    (0.25, 0.62, 0.30),
    (0.15, 0.60, 0.65),
    (0.20, 0.35, 0.75),
    (0.50, 0.28, 0.68),
    (0.85, 0.42, 0.62),
)


class Look(NamedTuple):
    """A person's colours (three floats in [0, 1]) and shapes (face units)."""

    skin: np.ndarray
    hair: np.ndarray
    eye: np.ndarray
    shirt: np.ndarray
    lips: np.ndarray
    width: float
    height: float
    length: float
    volume: float
    fringe: float
    brow: float
    mouth: float
    glasses: bool
    beard: bool


def _mix(colours: tuple, t: float) -> np.ndarray:
    """Interpolate a list of colours at t in [0, 1]."""
    stops = np.linspace(0, 1, len(colours))
    return np.array([np.interp(t, stops, plane) for plane in np.array(colours).T])


def look(person_A: np.ndarray) -> Look:
    """Translate a person's attributes, (A,) in [0, 1], into colours and shapes."""
    a = dict(zip(ATTRIBUTES, person_A.tolist(), strict=True))
    skin = _mix(SKIN, a["skin"])
    return Look(
        skin=skin,
        hair=np.clip(_mix(HAIR, a["hair_tone"]) * (0.8 + 0.4 * a["hair_light"]), 0, 1),
        eye=_mix(EYES, a["eye_colour"]),
        shirt=np.clip(_mix(SHIRT, a["shirt_hue"]) * (0.65 + 0.45 * a["shirt_light"]), 0, 1),
        lips=skin * (0.82, 0.55, 0.55),
        width=0.72 + 0.24 * a["face_width"],
        height=0.90 + 0.20 * a["face_height"],
        length=a["hair_length"],
        volume=0.08 + 0.24 * a["hair_volume"],
        fringe=a["fringe"],
        brow=0.04 + 0.08 * a["brows"],
        mouth=0.18 + 0.22 * a["mouth_width"],
        glasses=a["glasses"] > GLASSES_FROM,
        beard=a["beard"] > BEARD_FROM,
    )


def _eyes(canvas_3FHW, person, p, u, v, pixel):
    """Draw whites, irises and lids; u, v follow the turn of the head."""
    open_F11 = p.eyes[:, None, None] + 0.3 * p.brows[:, None, None]  # raised brows open them wider
    line = np.maximum(0.35 * person.skin, 0.05)  # lids and lashes
    x = np.abs(u) - 0.42 * person.width  # both eyes at once by symmetry
    y = v + 0.08
    white = ellipse(x, y, 0.21, 0.03 + 0.14 * open_F11)
    paint(canvas_3FHW, line, cover(white - 0.035, pixel))
    # The irises move sideways together, so they are not mirrored as the eyes are.
    gaze = u - np.sign(u) * np.float32(0.42 * person.width) - 0.06 * p.turn[:, None, None]
    seen = cover(white, pixel) * np.clip(open_F11 * 3 - 0.2, 0, 1)  # nothing of a closed eye
    paint(canvas_3FHW, (0.97, 0.97, 0.97), seen)
    iris = ellipse(gaze, y, 0.125, 0.145)
    paint(canvas_3FHW, person.eye, cover(iris, pixel) * seen)
    paint(canvas_3FHW, 0.2 * person.eye, cover(iris + 0.075, pixel) * seen)


def _brows(canvas_3FHW, person, p, u, v, pixel):
    """Draw both brows, which `p.brows` raises."""
    x, y = np.abs(u) - 0.42 * person.width, v + 0.38 + 0.3 * p.brows[:, None, None]
    brow = stroke(x, y, -0.17, 0.03, 0.2, 0.0, person.brow)
    paint(canvas_3FHW, 0.6 * person.hair, cover(brow, pixel))


def _mouth(canvas_3FHW, person, p, u, v, pixel):
    """Draw the lips as the band between two parabolas, filled when open."""
    smile_F11, open_F11 = p.smile[:, None, None], p.mouth[:, None, None]
    half_F11 = person.mouth * (1 + 0.45 * smile_F11 - 0.2 * open_F11)  # a smile is wider
    # 1 in the middle, 0 at the corners: a smile pulls these up, opening parts the lips between.
    arch = np.clip(1 - (u / half_F11) ** 2, -1, 1)
    top = 0.50 - 0.06 * open_F11 + smile_F11 * (0.2 * arch - 0.1)
    gap = (0.38 * open_F11 + 0.2 * np.maximum(smile_F11 - 0.35, 0)) * arch
    inside = np.maximum(np.maximum(top - v, v - top - gap), np.abs(u) - half_F11)
    paint(canvas_3FHW, person.lips, cover(inside - 0.065, pixel))
    teeth_F11 = np.clip(2 * (smile_F11 - 0.35), 0, 1)  # a broad smile shows them
    # A colour per frame, from the dark of an open mouth to teeth: `paint` takes one for all.
    for plane_FHW, dark in zip(canvas_3FHW, (0.25, 0.06, 0.08), strict=True):
        colour = dark + (0.97 - dark) * teeth_F11
        plane_FHW += cover(inside, pixel) * np.clip(gap * 12, 0, 1) * (colour - plane_FHW)


def _front_hair(canvas_3FHW, person, u, v, pixel):
    """Draw the hair above the hairline, which the fringe lowers and parts to one side."""
    a, b = person.width + 0.06, person.height + 0.06 + 0.4 * person.volume
    cap = ellipse(u, v + 0.02, a, b)
    bend, part = 0.9 * (1 - person.fringe), 0.35 * math.sin(2 * math.pi * person.fringe)
    line = -0.74 + 0.34 * person.fringe + bend * u * u + part * u
    edge = v - line
    # Twice: a darker rim under the hair gives the hairline a shadow.
    paint(canvas_3FHW, 0.65 * person.hair, cover(np.maximum(cap, edge - 0.08), pixel))
    paint(canvas_3FHW, person.hair, cover(np.maximum(cap, edge), pixel))


def _beard(canvas_3FHW, person, u, v, pixel):
    """Draw a beard: the part of the jaw below the cheeks."""
    jaw = ellipse(u, v, person.width + 0.03, person.height + 0.05)
    line = 0.42 - 0.55 * u * u
    paint(canvas_3FHW, 0.85 * person.hair, cover(np.maximum(jaw, line - v), pixel))


def _glasses(canvas_3FHW, person, u, v, pixel):
    """Draw tinted lenses, rims and a bridge."""
    x, y = np.abs(u) - 0.42 * person.width, v + 0.06
    lens = box(x, y, 0.30, 0.26, 0.12)
    paint(canvas_3FHW, (0.85, 0.93, 1.0), 0.18 * cover(lens, pixel))
    rim = np.abs(lens) - 0.04
    bridge = box(u, v + 0.10, 0.14, 0.035, 0.03)
    paint(canvas_3FHW, (0.08, 0.08, 0.12), cover(np.minimum(rim, bridge), pixel))


def _body(canvas_3FHW, person, x, y, pixel):
    """Draw neck and shirt; x, y in face units around the resting head above the body."""
    paint(canvas_3FHW, 0.88 * person.skin, cover(box(x, y - 1.1, 0.30, 0.6, 0.1), pixel))
    paint(canvas_3FHW, person.shirt, cover(box(x, y - 2.9, 1.42, 1.65, 0.75), pixel))
    paint(canvas_3FHW, 0.88 * person.skin, cover(ellipse(x, y - 1.25, 0.36, 0.24), pixel))


def _hand(canvas_3FHW, person, x, y, scene, pixel, p):
    """Draw arm and open hand; x, y in face units around the resting head above the body."""
    hand_x_F11 = ((p.hand_x - p.body_x) / p.unit)[:, None, None]
    hand_y_F11 = ((p.hand_y - HEAD_Y) / p.unit)[:, None, None]
    arm = stroke(x, y, scene.side * 1.25, 3.2, hand_x_F11, hand_y_F11 + 0.45, 0.24)
    paint(canvas_3FHW, 0.85 * person.shirt, cover(arm, pixel))
    x, y = x - hand_x_F11, y - hand_y_F11
    thumb = stroke(x, y, 0.0, 0.1, -scene.side * 0.36, -0.08, 0.09)
    hand = np.minimum(ellipse(x, y, 0.27, 0.34), thumb)  # the least distance: a union of shapes
    for finger in (-0.18, 0.0, 0.18):
        hand = np.minimum(hand, stroke(x, y, finger, 0.0, 1.35 * finger, -0.46, 0.085))
    paint(canvas_3FHW, person.skin, cover(hand, pixel))


def _head(canvas_3FHW, person, p, u, v, pixel):
    """Draw the face; u, v turn with the head's angle."""
    turn_F11, pitch_F11 = p.turn[:, None, None], p.pitch[:, None, None]
    ears = ellipse(np.abs(u) - person.width, v, 0.12, 0.2)
    face = ellipse(u, v, person.width, person.height)
    paint(canvas_3FHW, 0.92 * person.skin, cover(ears, pixel))
    paint(canvas_3FHW, person.skin, cover(face, pixel))
    # Turning and nodding slide the features over the head and make the turned ones narrower.
    uf = (u - 0.25 * turn_F11) / (1 - 0.15 * np.abs(turn_F11))
    vf = v - 0.2 * pitch_F11
    if person.beard:
        _beard(canvas_3FHW, person, u, vf, pixel)
    nose = ellipse(uf - 0.1 * turn_F11, vf - 0.2, 0.09, 0.13)
    paint(canvas_3FHW, 0.8 * person.skin, cover(nose, 1.5 * pixel))
    _mouth(canvas_3FHW, person, p, uf, vf, pixel)
    _eyes(canvas_3FHW, person, p, uf, vf, pixel)
    _front_hair(canvas_3FHW, person, u - 0.1 * turn_F11, v - 0.1 * pitch_F11, pixel)
    _brows(canvas_3FHW, person, p, uf, vf, pixel)
    if person.glasses:
        _glasses(canvas_3FHW, person, uf, vf, pixel)


def _window(centre_F, half_F, size):
    """Return the pixel range that holds centre +- half (in pictures) in every frame."""
    first = int(np.floor((centre_F - half_F).min() * size))
    last = int(np.ceil((centre_F + half_F).max() * size))
    return slice(max(first, 0), max(min(last, size), 0))


def _person(canvas_3FHW, scene, p: Pose, x_F1W, y_FH1):
    """Draw the scene's person; x, y are each pixel's place in the world."""
    person = look(scene.identity)
    size = canvas_3FHW.shape[-1]
    pixel_F11 = (1 / (size * p.zoom * p.unit))[:, None, None].astype(np.float32)
    unit = np.float32(p.unit)
    body_x_F1W = (x_F1W - p.body_x[:, None, None]) / unit
    body_y_FH1 = (y_FH1 - np.float32(HEAD_Y)) / unit

    # Only the pixels around the head are computed for it, in any frame: this is what takes time.
    reach_F = p.unit * p.zoom
    half_F = reach_F * (1.3 + np.abs(np.sin(p.angle)))
    columns = _window((p.head_x - p.pan) * p.zoom + 0.5, half_F, size)
    rows = _window(p.head_y * p.zoom + 0.5, half_F + 0.2 * reach_F, size)
    # Long hair hangs lower than the face.
    long_rows = slice(rows.start, min(size, rows.stop + int(reach_F.max() * size)))
    dx = (x_F1W[:, :, columns] - p.head_x[:, None, None]) / unit
    dy = (y_FH1[:, long_rows] - p.head_y[:, None, None]) / unit
    cos_F11, sin_F11 = np.cos(p.angle)[:, None, None], np.sin(p.angle)[:, None, None]
    u, v = dx * cos_F11 + dy * sin_F11, dy * cos_F11 - dx * sin_F11

    # Back to front: hair behind the head, body, face with the hair before it, hand.
    back_3FHW = canvas_3FHW[:, :, long_rows, columns]
    half, bottom = person.width + person.volume, 0.1 + 1.6 * person.length
    crown = person.height + 0.08 + person.volume * 0.6
    locks = box(u, v - 0.5 * (bottom - crown), half, 0.5 * (bottom + crown), 0.9 * half)
    locks = np.minimum(locks, ellipse(u, v + 0.1, half, crown - 0.1))
    paint(back_3FHW, 0.8 * person.hair, cover(locks, pixel_F11))
    _body(canvas_3FHW, person, body_x_F1W, body_y_FH1, pixel_F11)
    height = rows.stop - rows.start
    _head(back_3FHW[:, :, :height], person, p, u[:, :height], v[:, :height], pixel_F11)
    if scene.action == "wave":
        _hand(canvas_3FHW, person, body_x_F1W, body_y_FH1, scene, pixel_F11, p)


def _draw(scene: Scene, p: Pose, size: int, backdrop=None) -> np.ndarray:
    """Draw a scene in the pose p, before its place or one colour: FHWC uint8."""
    frames = len(p.zoom)
    ticks = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    zoom_F11 = p.zoom[:, None, None]
    # The camera: a picture's middle is the world at `pan`, and zoom enlarges around it.
    x_F1W = ticks[None, None, :] / zoom_F11 + p.pan[:, None, None]
    y_FH1 = ticks[None, :, None] / zoom_F11
    canvas_3FHW = np.empty((3, frames, size, size), np.float32)
    pixel_F11 = 1 / (size * zoom_F11)
    if backdrop is not None:
        gradient(canvas_3FHW, y_FH1, backdrop, backdrop, -0.5, 0.5)
    elif scene.background in ("plain", "gradient", "stripes", "room"):
        tint = list(TINTS.values())[scene.tint]
        indoors(canvas_3FHW, scene.background, tint, x_F1W, y_FH1, pixel_F11)
    else:
        outdoors(canvas_3FHW, scene.background, x_F1W, y_FH1, pixel_F11)
    _person(canvas_3FHW, scene, p, x_F1W, y_FH1)
    return np.ascontiguousarray((canvas_3FHW * 255 + 0.5).astype(np.uint8).transpose(1, 2, 3, 0))


def render(scene: Scene, frames: int = 9, size: int = 64) -> np.ndarray:
    """Draw a scene as a video.

    Args:
      scene: what to show.
      frames: number of frames F; the action always fills the clip.
      size: height and width in pixels.

    Returns:
      (F, size, size, 3) uint8.
    """
    return _draw(scene, pose(scene, frames), size)


def reference(identity: np.ndarray, size: int = 64) -> np.ndarray:
    """Draw a person's neutral frontal photo on a light wall.

    Args:
      identity: (A,) attributes in [0, 1].
      size: height and width in pixels.

    Returns:
      (size, size, 3) uint8.
    """
    still = np.zeros(1, np.float32)
    p = Pose(
        head_x=still,
        head_y=still + HEAD_Y,
        body_x=still,
        angle=still,
        turn=still,
        pitch=still,
        eyes=still + 1,
        smile=still + NEUTRAL_SMILE,
        mouth=still,
        brows=still,
        hand_x=still,
        hand_y=still,  # not drawn: nobody waves
        zoom=still + 1,
        pan=still,
        unit=1.12 * FACE,  # nearer than in any video
    )
    photo = Scene(
        identity=identity,
        action="smile",
        amplitude=0.0,
        background="plain",
        tint=0,
        camera="static",
        side=1,
        seed=0,
    )
    return _draw(photo, p, size, backdrop=(0.90, 0.91, 0.92))[0]
