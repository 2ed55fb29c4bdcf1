"""Photos of a folder: what is seen in them, what is kept of that, and which cannot serve."""

import json

import drawn_photos
import numpy as np
import pytest
from PIL import Image, ImageFilter

from evoid_jax.prepare import photos, refuse
from evoid_jax.prepare.photos import Look, Photo

ONE = (3, 100, 80, 120)  # who, x, y, side


@pytest.fixture
def folder(tmp_path):
    images = {"a": drawn_photos.photo(ONE), "b__c": drawn_photos.photo((5, 10, 20, 100), seed=1)}
    return drawn_photos.save(tmp_path / "photos", **images)


def seen(folder, watched=None):
    """Look at a folder's photos, with a cache beside it."""
    watched = watched or drawn_photos.Watched()
    return photos.look_at_all(folder, folder.parent / "cache", watched.finder)


def test_every_file_is_listed_but_for_the_systems_own(folder):
    for name in (".DS_Store", "b/Thumbs.db", "notes.txt"):
        (folder / name).write_text("x")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "old.png").write_text("x")
    assert photos.names(folder) == ["a.png", "b/c.png", "notes.txt"]


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match="holds no file; expected photos"):
        photos.names(tmp_path)


def test_a_look_has_what_the_finder_says(folder):
    (first, second), looked = seen(folder)
    assert looked == 2
    assert (first.name, second.name) == ("a.png", "b/c.png")
    assert (first.look.height, first.look.width) == (300, 400)
    assert first.look.boxes == ((100, 80, 220, 200),)
    assert np.linalg.norm(first.look.embedding) == pytest.approx(1, abs=1e-4)
    assert np.argmax(first.look.embedding) == 3 and np.argmax(second.look.embedding) == 5


def test_a_photo_is_looked_at_as_a_viewer_shows_it(tmp_path):
    """A phone's photo lies on its side in the file, and EXIF says so."""
    (tmp_path / "photos").mkdir()
    turned = drawn_photos.photo(ONE).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(tmp_path / "photos" / "turned.png", exif=exif)
    clear = drawn_photos.photo(ONE).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "photos" / "clear.png")
    (cleared, upright), _ = seen(tmp_path / "photos")
    assert (upright.look.height, upright.look.width) == (300, 400)
    assert upright.look.boxes == ((100, 80, 220, 200),)
    assert cleared.look.boxes == ()  # white, as a viewer shows it


def test_a_second_call_looks_at_nothing_and_does_not_open_the_nets(folder):
    before, _ = seen(folder)
    watched = drawn_photos.Watched()
    after, looked = seen(folder, watched)
    assert (looked, watched.opened, watched.asked) == (0, 0, 0)
    assert after == before


def test_only_new_bytes_are_looked_at(folder):
    seen(folder)
    (folder / "a.png").rename(folder / "renamed.png")
    drawn_photos.photo((1, 30, 30, 90)).save(folder / "b" / "c.png")  # another picture there now
    watched = drawn_photos.Watched()
    (changed, renamed), looked = seen(folder, watched)
    assert (looked, watched.asked) == (1, 1)
    assert changed.look.boxes == ((30, 30, 120, 120),)
    assert (renamed.name, renamed.look.boxes) == ("renamed.png", ((100, 80, 220, 200),))


def test_other_nets_look_again(folder):
    seen(folder)
    assert seen(folder, drawn_photos.Watched("others"))[1] == 2


def test_what_was_seen_before_an_interruption_is_kept(folder):
    class Stopped(drawn_photos.Watched):
        def _find(self, image_HWC):
            if self.asked == 1:
                raise KeyboardInterrupt
            return super()._find(image_HWC)

    with pytest.raises(KeyboardInterrupt, match="what was seen in 1 of the photos is kept"):
        seen(folder, Stopped())
    assert seen(folder)[1] == 1


def test_a_line_that_was_cut_off_costs_one_look(folder):
    before, _ = seen(folder)
    file = folder.parent / "cache" / photos.LOOKS
    file.write_text(file.read_text()[:-40])
    assert seen(folder) == (before, 1)
    assert seen(folder) == (before, 0)


def test_what_is_gone_is_forgotten(folder):
    seen(folder)
    (folder / "a.png").unlink()
    left, _ = seen(folder)
    cache = folder.parent / "cache"
    photos.forget_others(cache, "drawn", left)
    (line,) = (cache / photos.LOOKS).read_text().splitlines()
    assert json.loads(line)["digest"] == left[0].look.digest
    assert [file.stem for file in (cache / photos.THUMBS).iterdir()] == [left[0].look.digest]


def test_what_is_no_picture_says_why_and_is_tried_again(folder):
    (folder / "notes.txt").write_text("buy film")
    (folder / "scan.pdf").write_bytes(b"%PDF-1.7")
    for _ in range(2):
        found, _ = seen(folder)
        fault = {photo.name: photo.look.fault for photo in found}
        assert fault["notes.txt"].startswith("is not a picture that can be read; expected one of")
        assert fault["scan.pdf"].startswith("is a PDF, which cannot be read; export it as")


# --- measures


def face(who=3, seed=0, **changes) -> tuple[np.ndarray, tuple]:
    image = drawn_photos.photo((who, 100, 80, 160), seed=seed, **changes)
    return np.asarray(image), (100, 80, 260, 240)


def test_sharpness_by_hand():
    """A checkerboard of pixels: every Laplacian is 8 times the deviation from the mean."""
    y, x = np.mgrid[: photos.PLAIN, : photos.PLAIN]
    board = np.where((x + y) % 2, 200, 100).astype(np.uint8)
    image_HWC = np.stack([board] * 3, axis=-1)
    assert photos.sharpness(image_HWC, (0, 0, 112, 112)) == pytest.approx(8, rel=1e-4)
    assert photos.sharpness(np.full_like(image_HWC, 90), (0, 0, 112, 112)) == 0


def test_sharpness_falls_with_blur_and_cares_for_nothing_else():
    image_HWC, box = face()
    image = Image.fromarray(image_HWC)
    blurred = [image.filter(ImageFilter.GaussianBlur(sigma)) for sigma in (0, 1, 2, 4)]
    measured = [photos.sharpness(np.asarray(one), box) for one in blurred]
    assert measured == sorted(measured, reverse=True) and measured[-1] < measured[0] / 4
    darker_HWC = (image_HWC * 0.4).astype(np.uint8)
    assert photos.sharpness(darker_HWC, box) == pytest.approx(measured[0], rel=0.05)


def bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_a_mark_stays_when_a_photo_is_scaled_and_differs_between_photos():
    image_HWC, box = face()
    own = photos.mark(image_HWC, box)
    assert len(own) == 64
    half_HWC = np.asarray(Image.fromarray(image_HWC).resize((200, 150)))
    assert bits(own, photos.mark(half_HWC, tuple(x / 2 for x in box))) <= refuse.COPY_BITS
    assert bits(own, photos.mark(*face(seed=1))) > refuse.COPY_BITS + 20


def test_a_box_that_reaches_over_the_edge_is_cut_there():
    assert photos.around((-10, -20, 30, 40), 1.0, (30, 20)) == (0, 0, 20, 30)
    assert photos.around((50, 50, 60, 60), 1.0, (30, 20)) == (19, 29, 20, 30)
    assert photos.around((10, 10, 20, 30), 2.0, (100, 100)) == (5, 0, 25, 40)


# --- refusals


def looked(name="p", boxes=((0, 0, 100, 100),), **changes) -> Photo:
    look = Look(name, 300, 300, boxes, sharpness=0.5, mark="0" * 64, embedding=(1.0, 0.0))
    return Photo(f"{name}.jpg", look._replace(**changes))


def wide(*sides: float) -> tuple:
    return tuple((0, 0, side, side + 10) for side in sides)


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({"fault": "is a PDF"}, refuse.UNREADABLE, "is a PDF"),
        ({"boxes": ()}, refuse.NONE, "no face was found in it"),
        ({"boxes": wide(200, 100, 80, 10)}, refuse.SEVERAL, "3 faces of like size; cut out one"),
        ({"boxes": wide(79)}, refuse.SMALL, "79 pixels wide; expected at least 80"),
        ({"sharpness": 0.0123}, refuse.BLURRED, "sharpness is 0.012; expected at least"),
    ],
)
def test_what_cannot_serve_says_why(changes, kind, why):
    used, (refused,) = refuse.sift([looked(**changes)], refuse.Limits())
    assert not used and refused.kind == kind and why in refused.why


def test_somebody_small_in_the_background_does_not_count():
    used, refused = refuse.sift([looked(boxes=wide(200, 60))], refuse.Limits())
    assert len(used) == 1 and not refused


def test_of_one_file_the_first_name_stays():
    photos_ = [looked()._replace(name=name) for name in ("b.jpg", "a.jpg", "c.jpg")]
    used, refused = refuse.sift(photos_, refuse.Limits())
    assert [photo.name for photo in used] == ["a.jpg"]
    assert {one.why for one in refused} == {"the same file as a.jpg"}


def test_of_nearly_one_picture_the_largest_face_stays():
    near = "0" * 62 + "ff"  # 8 of 256 bits differ
    large = looked("large", boxes=wide(200), mark=near)
    used, (refused,) = refuse.sift([looked("small"), large], refuse.Limits())
    assert used == [large]
    assert (refused.kind, refused.why) == (refuse.DUPLICATE, "nearly the same picture as large.jpg")


@pytest.mark.parametrize("changes", [{"mark": "f" * 64}, {"embedding": (0.8, 0.6)}])
def test_two_pictures_of_one_person_are_no_copies(changes):
    used, refused = refuse.sift([looked("one"), looked("two", **changes)], refuse.Limits())
    assert len(used) == 2 and not refused
