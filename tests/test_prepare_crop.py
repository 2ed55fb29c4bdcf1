"""What is cut out of a photo: the canvas of the videos takes every pixel of it as it is."""

import drawn_photos
import numpy as np
import pytest

from evoid_jax import canvas
from evoid_jax.prepare import crop


@pytest.mark.parametrize("size", [(300, 400), (1501, 1003), (4000, 3000), (120, 900), (97, 101)])
@pytest.mark.parametrize("times", [0, 1.0, 2.6])
@pytest.mark.parametrize("place", [(480, 832), (64, 64), (832, 480)])
def test_the_canvas_takes_a_cut_as_it_is(size, times, place):
    """Never scaled up, both sides multiples of 8, and the canvas then scales down nothing."""
    height, width = size
    face = (width * 0.4, height * 0.3, width * 0.4 + 80, height * 0.3 + 88)
    planned = crop.plan(face, size, place, times)
    x0, y0, x1, y1 = planned.box
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert planned.height % 8 == planned.width % 8 == 0
    assert planned.height <= place[0] and planned.width <= place[1]
    zoom_y, zoom_x = planned.height / (y1 - y0), planned.width / (x1 - x0)
    assert zoom_y == pytest.approx(zoom_x, rel=1e-6) and zoom_y <= 1
    fitted = canvas.fitted((planned.height, planned.width), place)
    assert fitted[0] >= planned.height and fitted[1] >= planned.width


def test_on_the_canvas_every_pixel_of_a_cut_is_where_it_was():
    image_HWC = np.asarray(drawn_photos.photo((1, 700, 500, 600), size=(2000, 3000)))
    planned = crop.plan((700, 500, 1300, 1100), (2000, 3000), (480, 832), 2.6)
    assert (planned.height, planned.width) == (480, 480)
    cut_HWC = crop.cut(image_HWC, planned)
    seen_HWC = canvas.seen(cut_HWC, 480, 832)
    np.testing.assert_array_equal(seen_HWC[:, 176:656], cut_HWC)
    assert (seen_HWC[:, :176] == 255).all() and (seen_HWC[:, 656:] == 255).all()


def test_a_cut_by_hand():
    """A face of 100 in the middle: 260 across; 45 % of it, 117, above the face's middle."""
    planned = crop.plan((450, 450, 550, 550), (1000, 1000), (480, 832), 2.6)
    assert planned == crop.Cut((372.0, 385.0, 628.0, 641.0), 256, 256)
    # In a corner the square is shifted; larger than the photo, it is clipped.
    assert crop.plan((0, 0, 100, 100), (1000, 1000), (480, 832), 2.6).box == (2, 2, 258, 258)
    assert crop.plan((0, 0, 100, 100), (120, 1000), (480, 832), 2.6).box == (2, 0, 258, 120)
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop.cut(pixels_HWC, planned), pixels_HWC[385:641, 372:628])
