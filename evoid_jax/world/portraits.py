"""Draw the tiny world's people: videos and reference photos. NumPy only.

Every shape is a signed distance to its outline (negative inside) turned into coverage over one
pixel's width, so edges are antialiased without supersampling. Letters: F H W as everywhere, 3 the
colour planes; head coordinates u, v are in face units around the head's centre.
"""

import math
from typing import NamedTuple

import numpy as np

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
    return np.array([np.interp(t, stops, plane) for plane in zip(*colours, strict=True)])


def look(person_A: np.ndarray) -> Look:
    """Translate attributes in [0, 1] into colours and shapes."""
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


def _cover(distance, pixel):
    """Turn a signed distance into coverage 0..1 over one pixel's width."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _paint(canvas_3FHW, colour, alpha):
    """Blend a colour over the canvas in place; alpha broadcasts against (F, H, W)."""
    for plane_FHW, value in zip(canvas_3FHW, colour, strict=True):
        plane_FHW += alpha * (np.float32(value) - plane_FHW)


def _ellipse(x, y, a, b):
    """Approximate the distance to an ellipse at the origin (exact to first order at its edge)."""
    x, y = x / a, y / b
    norm = np.sqrt(x * x + y * y)
    x, y = x / a, y / b
    return norm * (norm - 1) / np.sqrt(x * x + y * y + np.float32(1e-6))


def _box(x, y, a, b, radius):
    """Return the distance to a rounded box of half sizes a, b at the origin."""
    x, y = np.abs(x) - (a - radius), np.abs(y) - (b - radius)
    outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
    return outside + np.minimum(np.maximum(x, y), 0) - radius


def _stroke(x, y, x0, y0, x1, y1, radius):
    """Return the distance to a line from (x0, y0) to (x1, y1) with round ends."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    x, y = x - x0 - t * dx, y - y0 - t * dy
    return np.sqrt(x * x + y * y) - radius


def _sky(canvas_3FHW, y_FH1, top, bottom, y0, y1):
    """Fill with a vertical gradient that runs from y0 to y1."""
    t_FH1 = np.clip((y_FH1 - y0) / (y1 - y0), 0, 1)
    for plane_FHW, first, last in zip(canvas_3FHW, top, bottom, strict=True):
        plane_FHW[:] = first + (last - first) * t_FH1


def _outdoors(canvas_3FHW, name, x_F1W, y_FH1, pixel):
    def ground(colour, y):
        _paint(canvas_3FHW, colour, _cover(y - y_FH1, pixel))

    def disc(colour, x, y, a, b):
        _paint(canvas_3FHW, colour, _cover(_ellipse(x_F1W - x, y_FH1 - y, a, b), pixel))

    if name == "park":
        _sky(canvas_3FHW, y_FH1, (0.50, 0.75, 0.95), (0.82, 0.92, 0.98), -0.5, 0.1)
        disc((0.20, 0.48, 0.25), -0.42, -0.06, 0.20, 0.24)
        disc((0.26, 0.55, 0.28), 0.40, -0.02, 0.24, 0.20)
        ground((0.45, 0.72, 0.35), 0.12)
    elif name == "sunset":
        _sky(canvas_3FHW, y_FH1, (0.45, 0.32, 0.60), (0.98, 0.62, 0.35), -0.5, 0.15)
        disc((1.0, 0.87, 0.50), 0.30, 0.10, 0.15, 0.15)
        ground((0.28, 0.20, 0.33), 0.15)
    elif name == "beach":
        _sky(canvas_3FHW, y_FH1, (0.60, 0.83, 0.97), (0.86, 0.95, 1.0), -0.5, 0.0)
        disc((1.0, 0.93, 0.55), -0.34, -0.34, 0.10, 0.10)
        ground((0.20, 0.52, 0.72), 0.0)
        ground((0.94, 0.84, 0.62), 0.20)
    else:
        _sky(canvas_3FHW, y_FH1, (0.05, 0.07, 0.20), (0.18, 0.20, 0.42), -0.5, 0.3)
        disc((0.96, 0.95, 0.82), 0.33, -0.33, 0.10, 0.10)
        disc((0.10, 0.14, 0.20), -0.35, 0.45, 0.50, 0.25)
        disc((0.08, 0.11, 0.17), 0.45, 0.48, 0.45, 0.22)


def _indoors(canvas_3FHW, name, tint, x_F1W, y_FH1, pixel):
    colour = np.array(tint)
    if name == "gradient":
        _sky(canvas_3FHW, y_FH1, colour, 0.3 * colour + 0.7, -0.5, 0.5)
        return
    _sky(canvas_3FHW, y_FH1, colour, colour, -0.5, 0.5)
    if name == "stripes":
        edge = 0.06 - np.abs((x_F1W + 0.06) % 0.24 - 0.12)  # bars 0.12 wide, 0.24 apart
        _paint(canvas_3FHW, 0.25 * colour + 0.75, _cover(edge, pixel))
    elif name == "room":
        _paint(canvas_3FHW, (0.58, 0.42, 0.30), _cover(0.25 - y_FH1, pixel))
        window = _box(x_F1W + 0.34, y_FH1 + 0.26, 0.15, 0.16, 0.02)
        _paint(canvas_3FHW, (0.97, 0.96, 0.93), _cover(window, pixel))
        _paint(canvas_3FHW, (0.62, 0.83, 0.96), _cover(window + 0.03, pixel))
        lamp = _box(x_F1W - 0.38, y_FH1 + 0.10, 0.07, 0.09, 0.03)
        _paint(canvas_3FHW, (0.99, 0.93, 0.70), _cover(lamp, pixel))


def _eyes(canvas_3FHW, person, p, u, v, pixel):
    """Draw whites, irises and lids; u, v follow the turn of the head."""
    open_F11 = p.eyes[:, None, None] + 0.3 * p.brows[:, None, None]
    line = np.maximum(0.35 * person.skin, 0.05)
    x = np.abs(u) - 0.42 * person.width  # both eyes at once by symmetry
    y = v + 0.08
    white = _ellipse(x, y, 0.21, 0.03 + 0.14 * open_F11)
    _paint(canvas_3FHW, line, _cover(white - 0.035, pixel))
    gaze = u - np.sign(u) * np.float32(0.42 * person.width) - 0.06 * p.turn[:, None, None]
    seen = _cover(white, pixel) * np.clip(open_F11 * 3 - 0.2, 0, 1)
    _paint(canvas_3FHW, (0.97, 0.97, 0.97), seen)
    iris = _ellipse(gaze, y, 0.125, 0.145)
    _paint(canvas_3FHW, person.eye, _cover(iris, pixel) * seen)
    _paint(canvas_3FHW, 0.2 * person.eye, _cover(iris + 0.075, pixel) * seen)


def _brows(canvas_3FHW, person, p, u, v, pixel):
    x, y = np.abs(u) - 0.42 * person.width, v + 0.38 + 0.3 * p.brows[:, None, None]
    brow = _stroke(x, y, -0.17, 0.03, 0.2, 0.0, person.brow)
    _paint(canvas_3FHW, 0.6 * person.hair, _cover(brow, pixel))


def _mouth(canvas_3FHW, person, p, u, v, pixel):
    """Draw the lips as the band between two parabolas, filled when open."""
    smile_F11, open_F11 = p.smile[:, None, None], p.mouth[:, None, None]
    half_F11 = person.mouth * (1 + 0.45 * smile_F11 - 0.2 * open_F11)
    arch = np.clip(1 - (u / half_F11) ** 2, -1, 1)
    top = 0.50 - 0.06 * open_F11 + smile_F11 * (0.2 * arch - 0.1)
    gap = (0.38 * open_F11 + 0.2 * np.maximum(smile_F11 - 0.35, 0)) * arch
    inside = np.maximum(np.maximum(top - v, v - top - gap), np.abs(u) - half_F11)
    _paint(canvas_3FHW, person.lips, _cover(inside - 0.065, pixel))
    teeth_F11 = np.clip(2 * (smile_F11 - 0.35), 0, 1)
    for plane_FHW, dark in zip(canvas_3FHW, (0.25, 0.06, 0.08), strict=True):
        colour = dark + (0.97 - dark) * teeth_F11
        plane_FHW += _cover(inside, pixel) * np.clip(gap * 12, 0, 1) * (colour - plane_FHW)


def _front_hair(canvas_3FHW, person, u, v, pixel):
    """Draw the hair above the hairline, and a beard below the cheeks if there is one."""
    a, b = person.width + 0.06, person.height + 0.06 + 0.4 * person.volume
    cap = _ellipse(u, v + 0.02, a, b)
    bend, part = 0.9 * (1 - person.fringe), 0.35 * math.sin(2 * math.pi * person.fringe)
    line = -0.74 + 0.34 * person.fringe + bend * u * u + part * u
    edge = v - line
    _paint(canvas_3FHW, 0.65 * person.hair, _cover(np.maximum(cap, edge - 0.08), pixel))
    _paint(canvas_3FHW, person.hair, _cover(np.maximum(cap, edge), pixel))


def _beard(canvas_3FHW, person, u, v, pixel):
    jaw = _ellipse(u, v, person.width + 0.03, person.height + 0.05)
    line = 0.42 - 0.55 * u * u
    _paint(canvas_3FHW, 0.85 * person.hair, _cover(np.maximum(jaw, line - v), pixel))


def _glasses(canvas_3FHW, person, u, v, pixel):
    x, y = np.abs(u) - 0.42 * person.width, v + 0.06
    lens = _box(x, y, 0.30, 0.26, 0.12)
    _paint(canvas_3FHW, (0.85, 0.93, 1.0), 0.18 * _cover(lens, pixel))
    rim = np.abs(lens) - 0.04
    bridge = _box(u, v + 0.10, 0.14, 0.035, 0.03)
    _paint(canvas_3FHW, (0.08, 0.08, 0.12), _cover(np.minimum(rim, bridge), pixel))


def _body(canvas_3FHW, person, x, y, pixel):
    """Draw neck and shirt; x, y in face units around the resting head above the body."""
    _paint(canvas_3FHW, 0.88 * person.skin, _cover(_box(x, y - 1.1, 0.30, 0.6, 0.1), pixel))
    _paint(canvas_3FHW, person.shirt, _cover(_box(x, y - 2.9, 1.42, 1.65, 0.75), pixel))
    _paint(canvas_3FHW, 0.88 * person.skin, _cover(_ellipse(x, y - 1.25, 0.36, 0.24), pixel))


def _hand(canvas_3FHW, person, x, y, scene, pixel, p):
    """Draw arm and open hand; x, y in face units around the resting head above the body."""
    hand_x_F11 = ((p.hand_x - p.body_x) / p.unit)[:, None, None]
    hand_y_F11 = ((p.hand_y - HEAD_Y) / p.unit)[:, None, None]
    arm = _stroke(x, y, scene.side * 1.25, 3.2, hand_x_F11, hand_y_F11 + 0.45, 0.24)
    _paint(canvas_3FHW, 0.85 * person.shirt, _cover(arm, pixel))
    x, y = x - hand_x_F11, y - hand_y_F11
    thumb = _stroke(x, y, 0.0, 0.1, -scene.side * 0.36, -0.08, 0.09)
    hand = np.minimum(_ellipse(x, y, 0.27, 0.34), thumb)
    for finger in (-0.18, 0.0, 0.18):
        hand = np.minimum(hand, _stroke(x, y, finger, 0.0, 1.35 * finger, -0.46, 0.085))
    _paint(canvas_3FHW, person.skin, _cover(hand, pixel))


def _head(canvas_3FHW, person, p, u, v, pixel):
    """Draw the face; u, v turn with the head's angle."""
    turn_F11, pitch_F11 = p.turn[:, None, None], p.pitch[:, None, None]
    ears = _ellipse(np.abs(u) - person.width, v, 0.12, 0.2)
    face = _ellipse(u, v, person.width, person.height)
    _paint(canvas_3FHW, 0.92 * person.skin, _cover(ears, pixel))
    _paint(canvas_3FHW, person.skin, _cover(face, pixel))
    uf = (u - 0.25 * turn_F11) / (1 - 0.15 * np.abs(turn_F11))
    vf = v - 0.2 * pitch_F11
    if person.beard:
        _beard(canvas_3FHW, person, u, vf, pixel)
    nose = _ellipse(uf - 0.1 * turn_F11, vf - 0.2, 0.09, 0.13)
    _paint(canvas_3FHW, 0.8 * person.skin, _cover(nose, 1.5 * pixel))
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
    person = look(scene.identity)
    size = canvas_3FHW.shape[-1]
    pixel_F11 = (1 / (size * p.zoom * p.unit))[:, None, None].astype(np.float32)
    unit = np.float32(p.unit)
    x_F1W_, y_FH1_ = (x_F1W - p.body_x[:, None, None]) / unit, (y_FH1 - np.float32(HEAD_Y)) / unit

    reach_F = p.unit * p.zoom
    half_F = reach_F * (1.3 + np.abs(np.sin(p.angle)))
    columns = _window((p.head_x - p.pan) * p.zoom + 0.5, half_F, size)
    rows = _window(p.head_y * p.zoom + 0.5, half_F + 0.2 * reach_F, size)
    long_rows = slice(rows.start, min(size, rows.stop + int(reach_F.max() * size)))
    dx = (x_F1W[:, :, columns] - p.head_x[:, None, None]) / unit
    dy = (y_FH1[:, long_rows] - p.head_y[:, None, None]) / unit
    cos_F11, sin_F11 = np.cos(p.angle)[:, None, None], np.sin(p.angle)[:, None, None]
    u, v = dx * cos_F11 + dy * sin_F11, dy * cos_F11 - dx * sin_F11

    back_3FHW = canvas_3FHW[:, :, long_rows, columns]
    half, bottom = person.width + person.volume, 0.1 + 1.6 * person.length
    crown = person.height + 0.08 + person.volume * 0.6
    locks = _box(u, v - 0.5 * (bottom - crown), half, 0.5 * (bottom + crown), 0.9 * half)
    locks = np.minimum(locks, _ellipse(u, v + 0.1, half, crown - 0.1))
    _paint(back_3FHW, 0.8 * person.hair, _cover(locks, pixel_F11))
    _body(canvas_3FHW, person, x_F1W_, y_FH1_, pixel_F11)
    height = rows.stop - rows.start
    _head(back_3FHW[:, :, :height], person, p, u[:, :height], v[:, :height], pixel_F11)
    if scene.action == "wave":
        _hand(canvas_3FHW, person, x_F1W_, y_FH1_, scene, pixel_F11, p)


def _draw(scene: Scene, p: Pose, size: int, backdrop=None) -> np.ndarray:
    frames = len(p.zoom)
    ticks = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    zoom_F11 = p.zoom[:, None, None]
    x_F1W = ticks[None, None, :] / zoom_F11 + p.pan[:, None, None]
    y_FH1 = ticks[None, :, None] / zoom_F11
    canvas_3FHW = np.empty((3, frames, size, size), np.float32)
    pixel_F11 = 1 / (size * zoom_F11)
    if backdrop is not None:
        _sky(canvas_3FHW, y_FH1, backdrop, backdrop, -0.5, 0.5)
    elif scene.background in ("plain", "gradient", "stripes", "room"):
        tint = list(TINTS.values())[scene.tint]
        _indoors(canvas_3FHW, scene.background, tint, x_F1W, y_FH1, pixel_F11)
    else:
        _outdoors(canvas_3FHW, scene.background, x_F1W, y_FH1, pixel_F11)
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
    p = Pose(*([still] * 14), 1.12 * FACE)._replace(
        head_y=still + HEAD_Y, eyes=still + 1, smile=still + NEUTRAL_SMILE, zoom=still + 1
    )
    photo = Scene(identity, "smile", 0.0, "plain", 0, "static", 1, 0)
    return _draw(photo, p, size, backdrop=(0.90, 0.91, 0.92))[0]
