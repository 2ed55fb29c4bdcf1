"""The places of the tiny world, painted behind its people. NumPy only.

Letters: 3 colour planes, F H W frames. x_F1W and y_FH1 are each pixel's place in the world, in
picture heights from its middle; `pixel` is a pixel's width there.
"""

import numpy as np

from evoid_jax.world.paint import box, cover, ellipse, gradient, paint


def outdoors(canvas_3FHW, name, x_F1W, y_FH1, pixel):
    """Paint a place outdoors, from the sky to what is in front, in place.

    Args:
      canvas_3FHW: float32 RGB in [0, 1].
      name: "park", "sunset", "beach" or "night".
      x_F1W, y_FH1: places of the pixels.
      pixel: width of a pixel, broadcasting against both.
    """

    def ground(colour, y):
        paint(canvas_3FHW, colour, cover(y - y_FH1, pixel))

    def disc(colour, x, y, a, b):
        paint(canvas_3FHW, colour, cover(ellipse(x_F1W - x, y_FH1 - y, a, b), pixel))

    if name == "park":
        gradient(canvas_3FHW, y_FH1, (0.50, 0.75, 0.95), (0.82, 0.92, 0.98), -0.5, 0.1)
        disc((0.20, 0.48, 0.25), -0.42, -0.06, 0.20, 0.24)
        disc((0.26, 0.55, 0.28), 0.40, -0.02, 0.24, 0.20)
        ground((0.45, 0.72, 0.35), 0.12)
    elif name == "sunset":
        gradient(canvas_3FHW, y_FH1, (0.45, 0.32, 0.60), (0.98, 0.62, 0.35), -0.5, 0.15)
        disc((1.0, 0.87, 0.50), 0.30, 0.10, 0.15, 0.15)
        ground((0.28, 0.20, 0.33), 0.15)
    elif name == "beach":
        gradient(canvas_3FHW, y_FH1, (0.60, 0.83, 0.97), (0.86, 0.95, 1.0), -0.5, 0.0)
        disc((1.0, 0.93, 0.55), -0.34, -0.34, 0.10, 0.10)
        ground((0.20, 0.52, 0.72), 0.0)
        ground((0.94, 0.84, 0.62), 0.20)
    else:
        gradient(canvas_3FHW, y_FH1, (0.05, 0.07, 0.20), (0.18, 0.20, 0.42), -0.5, 0.3)
        disc((0.96, 0.95, 0.82), 0.33, -0.33, 0.10, 0.10)
        disc((0.10, 0.14, 0.20), -0.35, 0.45, 0.50, 0.25)
        disc((0.08, 0.11, 0.17), 0.45, 0.48, 0.45, 0.22)


def indoors(canvas_3FHW, name, tint, x_F1W, y_FH1, pixel):
    """Paint a wall or a room, in place.

    Args:
      canvas_3FHW: float32 RGB in [0, 1].
      name: "plain", "gradient", "stripes" or "room".
      tint: RGB in [0, 1] of the wall.
      x_F1W, y_FH1: places of the pixels.
      pixel: width of a pixel, broadcasting against both.
    """
    colour = np.array(tint)
    if name == "gradient":
        gradient(canvas_3FHW, y_FH1, colour, 0.3 * colour + 0.7, -0.5, 0.5)
        return
    gradient(canvas_3FHW, y_FH1, colour, colour, -0.5, 0.5)
    if name == "stripes":
        edge = 0.06 - np.abs((x_F1W + 0.06) % 0.24 - 0.12)  # bars 0.12 wide, 0.24 apart
        paint(canvas_3FHW, 0.25 * colour + 0.75, cover(edge, pixel))
    elif name == "room":
        paint(canvas_3FHW, (0.58, 0.42, 0.30), cover(0.25 - y_FH1, pixel))
        window = box(x_F1W + 0.34, y_FH1 + 0.26, 0.15, 0.16, 0.02)
        paint(canvas_3FHW, (0.97, 0.96, 0.93), cover(window, pixel))
        paint(canvas_3FHW, (0.62, 0.83, 0.96), cover(window + 0.03, pixel))
        lamp = box(x_F1W - 0.38, y_FH1 + 0.10, 0.07, 0.09, 0.03)
        paint(canvas_3FHW, (0.99, 0.93, 0.70), cover(lamp, pixel))
