"""A copied photo is told from a likeness, by angles of known size."""

from types import SimpleNamespace

import numpy as np
import pytest

from evoid_jax.sidecars import copying
from evoid_jax.sidecars.open import rewards as open_rewards

RIGHT, UP, AWAY = np.eye(3)
BETWEEN = (RIGHT + UP) / 2  # 45 degrees from both
NEAR = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6), 0])  # 30 degrees from RIGHT, 60 from UP


@pytest.mark.parametrize(
    ("faces", "copied"),
    [
        ([RIGHT], 1.0),
        ([UP], 1.0),
        ([BETWEEN], 0.0),
        ([AWAY], 0.0),
        ([NEAR], 1 / 3),
        ([NEAR, BETWEEN], 1 / 6),
        ([RIGHT, UP], 0.0),
    ],
)
def test_a_face_copies_a_photo_as_far_as_it_is_nearer_to_it_than_to_another(faces, copied):
    photos = np.stack([RIGHT, UP])
    for scale in (1, 7.5):  # norms say nothing
        got = copying.copy_paste(scale * np.stack(faces), photos * scale)
        assert got == pytest.approx(copied, abs=1e-9)
        assert copying.uncopied(np.stack(faces), photos) == pytest.approx(1 - copied, abs=1e-9)


def test_of_three_photos_the_copied_one_is_found():
    photos = np.stack([RIGHT, UP, AWAY])
    assert copying.copy_paste(AWAY[None], photos) == pytest.approx(1)
    assert copying.copy_paste(photos.mean(0)[None], photos) == pytest.approx(0, abs=1e-9)


def test_it_stays_in_the_unit_interval_whatever_the_faces():
    random = np.random.default_rng(0)
    for photos in (2, 3, 5):
        for _ in range(50):
            face_FD, photo_PD = random.normal(size=(4, 8)), random.normal(size=(photos, 8))
            assert 0 <= copying.copy_paste(face_FD, photo_PD) <= 1


def test_without_two_different_photos_or_a_face_nothing_is_known():
    nothing = np.zeros((0, 3))
    for faces, photos in (
        (RIGHT[None], RIGHT[None]),
        (RIGHT[None], np.stack([RIGHT, RIGHT])),
        (RIGHT[None], nothing),
        (nothing, np.stack([RIGHT, UP])),
    ):
        assert np.isnan(copying.copy_paste(faces, photos))
        assert np.isnan(copying.uncopied(faces, photos))


def test_preset_open_watches_for_copies():
    def clip(faces, photos, others=()):
        shown, beside = (
            [SimpleNamespace(face=face, sface_D=photo) for face, photo in some]
            for some in (photos, others)
        )
        return SimpleNamespace(
            photos=shown, others=beside, faces=faces, sface=np.stack(faces or [AWAY])
        )

    seen, unseen = "a face", None
    column = open_rewards.uncopied(clip([NEAR], [(seen, RIGHT), (seen, UP), (unseen, AWAY)]))
    assert column.score_B.tolist() == [pytest.approx(2 / 3)] and column.reasons == [None]
    beside = open_rewards.uncopied(clip([NEAR], [(seen, RIGHT)], [(seen, UP), (unseen, AWAY)]))
    assert beside.score_B == column.score_B  # where the other photo comes from is all one
    for faces, photos in (([], [(seen, RIGHT), (seen, UP)]), ([NEAR], [(seen, RIGHT)])):
        column = open_rewards.uncopied(clip(faces, photos))
        assert np.isnan(column.score_B[0]) and column.excused == [True]
        assert "two photos" in column.reasons[0]


def test_preset_open_says_which_photos_show_no_face():
    finder = SimpleNamespace(find=lambda photo: ["a face"] if photo.max() > 9 else [])
    assert open_rewards.without_face(finder, np.full((4, 4, 3), 200, np.uint8)) == ""
    assert open_rewards.without_face(finder, np.zeros((4, 4, 3), np.uint8)) == "no face"
