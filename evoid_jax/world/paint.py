"""Shapes on a canvas of the tiny world. NumPy only.

Every shape is a signed distance to its outline (negative inside) turned into coverage over one
pixel's width, so edges are antialiased without supersampling. x and y are arrays that broadcast to
(F, H, W), relative to the shape's centre; distances come in their unit. A canvas is float32 RGB in
[0, 1] with the colour planes first, and is painted in place. Letters: 3 planes, F H W frames.
"""

import numpy as np


def cover(distance, pixel):
    """Turn a signed distance into coverage 0..1 over one pixel's width, both in one unit."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def paint(canvas_3FHW, colour, alpha):
    """Blend a colour over the canvas, in place.

    Args:
      canvas_3FHW: float32.
      colour: three numbers in [0, 1].
      alpha: coverage 0..1 that broadcasts against (F, H, W).
    """
    # Plane by plane: a (3, F, H, W) temporary would be made and thrown away for every stroke.
    for plane_FHW, value in zip(canvas_3FHW, colour, strict=True):
        plane_FHW += alpha * (np.float32(value) - plane_FHW)


def ellipse(x, y, a, b):
    """Approximate the distance to an ellipse of half axes a, b, right at its edge."""
    # f = |(x/a, y/b)| - 1 is 0 on the outline; f / |grad f| is the distance to first order.
    x, y = x / a, y / b
    norm = np.sqrt(x * x + y * y)
    x, y = x / a, y / b
    return norm * (norm - 1) / np.sqrt(x * x + y * y + np.float32(1e-6))


def box(x, y, a, b, radius):
    """Return the distance to a box of half sizes a, b with rounded corners."""
    x, y = np.abs(x) - (a - radius), np.abs(y) - (b - radius)
    outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
    return outside + np.minimum(np.maximum(x, y), 0) - radius


def stroke(x, y, x0, y0, x1, y1, radius):
    """Return the distance to a line from (x0, y0) to (x1, y1) with round ends."""
    dx, dy = x1 - x0, y1 - y0
    # The nearest point of the line: a projection onto it, held between its ends.
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    x, y = x - x0 - t * dx, y - y0 - t * dy
    return np.sqrt(x * x + y * y) - radius


def gradient(canvas_3FHW, y_FH1, top, bottom, y0, y1):
    """Fill the canvas with a vertical gradient, in place.

    Args:
      canvas_3FHW: float32.
      y_FH1: each row's y.
      top, bottom: colours, reached at y0 and y1 and kept beyond.
      y0, y1: where it starts and ends, in the unit of y.
    """
    t_FH1 = np.clip((y_FH1 - y0) / (y1 - y0), 0, 1)
    for plane_FHW, first, last in zip(canvas_3FHW, top, bottom, strict=True):
        plane_FHW[:] = first + (last - first) * t_FH1
