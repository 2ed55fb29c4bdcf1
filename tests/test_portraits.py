"""The tiny world: who, what and where are fixed by integers, and the pixels say what truth says."""

import dataclasses

import numpy as np
import pytest
from programs import python

from evoid_jax.world import portraits
from evoid_jax.world.people import ATTRIBUTES, pose, wording
from evoid_jax.world.prompts import AMOUNTS, describe

INDOORS = ("plain", "gradient", "stripes", "room")


def make(index=3, **changes):
    """A still scene of one person before a plain wall, with changes."""
    still = dict(action="smile", amplitude=0.0, background="plain", camera="static", side=1, tint=4)
    return dataclasses.replace(portraits.scene(index, 0), **(still | changes))


def where_red(video_FHWC):
    """Centroids (x, y) in 0..1 of pixels that are red and nothing else, frame by frame."""
    red, green, blue = np.moveaxis(video_FHWC.astype(int), -1, 0)
    mask_FHW = (red > 240) & (green < 60) & (blue < 60)  # leaves out neck, ears and locks
    ticks = (np.arange(video_FHWC.shape[1]) + 0.5) / video_FHWC.shape[1]
    counts = mask_FHW.sum((1, 2))
    return (mask_FHW.sum(1) @ ticks) / counts, (mask_FHW.sum(2) @ ticks) / counts


def test_only_numpy_is_needed():
    python("tests/imports_of_world.py")


def test_the_same_integers_give_the_same_world():
    np.testing.assert_array_equal(portraits.identity(7), portraits.identity(7))
    first, second = portraits.scene(7, 5), portraits.scene(7, 5)
    np.testing.assert_array_equal(portraits.render(first), portraits.render(second))
    assert portraits.prompt(first) == portraits.prompt(second)
    assert portraits.prompt(first, 1) == portraits.prompt(second, wording(1))
    assert (portraits.render(first) != portraits.render(portraits.scene(7, 6))).any()


def test_identity_is_a_literal():
    person_A = portraits.identity(0)
    assert person_A.shape == (len(ATTRIBUTES),) == (15,)
    assert person_A.dtype == np.float32
    np.testing.assert_allclose(person_A[:3], [0.1356229, 0.0140670, 0.9377324], atol=1e-6)


def test_attributes_are_uniform_and_independent():
    people_PA = np.stack([portraits.identity(i) for i in range(2000)])
    np.testing.assert_allclose(people_PA.mean(0), 0.5, atol=0.03)
    correlation_AA = np.corrcoef(people_PA.T) - np.eye(len(ATTRIBUTES))
    assert np.abs(correlation_AA).max() < 0.1


def test_splits_share_nobody():
    counts = {name: len(split) for name, split in portraits.SPLITS.items()}
    people = {"pretrain": 20000, "pairs": 80000}
    assert counts == people | {"evolution": 512, "validation": 256, "heldout": 256}
    splits = portraits.SPLITS.values()
    assert len(set().union(*splits)) == sum(map(len, splits))


def test_shapes_and_sizes():
    scene = portraits.scene(1, 2)
    assert portraits.render(scene, 5, 32).shape == (5, 32, 32, 3)
    assert portraits.render(scene).shape == (9, 64, 64, 3)
    assert portraits.render(scene).dtype == np.uint8
    assert portraits.reference(scene.identity, 48).shape == (48, 48, 3)


def test_a_larger_picture_shows_the_same():
    scene = portraits.scene(11, 3)
    small, large = portraits.render(scene, 3, 64), portraits.render(scene, 3, 128)
    pooled = large.reshape(3, 64, 2, 64, 2, 3).astype(float).mean((2, 4))
    assert np.abs(pooled - small).mean() < 2


@pytest.mark.parametrize("action", portraits.ACTIONS)
def test_an_action_moves_as_much_as_its_amplitude(action):
    amounts = []
    for amplitude in (0.0, 0.3, 1.0):
        scene = make(action=action, amplitude=amplitude)
        video = portraits.render(scene).astype(float)
        amounts.append((np.abs(np.diff(video, axis=0)).mean(), portraits.truth(scene)))
    changes, truths = zip(*amounts, strict=True)
    motions = [truth["motion_amplitude"] for truth in truths]
    assert changes[0] == motions[0] == 0
    assert 0 < changes[1] < changes[2]
    assert 0 < motions[1] < motions[2]


def test_motion_amplitude_of_a_straight_walk():
    scene = make(action="walk", amplitude=1.0)
    truth, unit = portraits.truth(scene), pose(scene, 9).unit
    sideways = np.abs(np.diff(truth["head_x"])).mean() / unit
    assert sideways == pytest.approx(2.8 / 8, rel=1e-5)
    assert sideways < truth["motion_amplitude"] < 1.3 * sideways


@pytest.mark.parametrize("camera", portraits.CAMERAS)
def test_the_camera_is_not_counted_as_motion_but_seen(camera):
    scene = make(camera=camera, background="stripes")
    moved = (portraits.render(scene)[0] != portraits.render(scene)[-1]).any()
    assert portraits.truth(scene)["motion_amplitude"] == 0
    assert moved == (camera != "static")


def test_pan_and_zoom_go_the_way_they_are_named():
    at = {camera: portraits.truth(make(camera=camera)) for camera in portraits.CAMERAS}
    assert at["pan_left"]["head_x"][0] < at["pan_left"]["head_x"][-1]  # the scene goes right
    assert at["pan_right"]["head_x"][0] > at["pan_right"]["head_x"][-1]
    assert at["zoom_in"]["zoom"][0] < at["zoom_in"]["zoom"][-1]
    assert at["zoom_out"]["zoom"][0] > at["zoom_out"]["zoom"][-1]


@pytest.mark.parametrize("action", ["walk", "lean", "nod"])
@pytest.mark.parametrize("camera", ["static", "pan_left", "zoom_out"])
def test_the_head_in_the_pixels_is_where_truth_says(action, camera, monkeypatch):
    """With face and front hair red and all else not, the red centroid is the head's centre."""
    scene = make(action=action, amplitude=0.5, camera=camera, background="plain")
    look = portraits.look(scene.identity)
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    colours = dict(skin=red, lips=red, hair=red, eye=blue, shirt=blue)
    plain = look._replace(**colours, volume=0.0, glasses=False, beard=False)
    monkeypatch.setattr(portraits, "look", lambda identity: plain)
    x_F, y_F = where_red(portraits.render(scene, size=128))
    truth = portraits.truth(scene)
    seen = (truth["head_x"] > 0.3) & (truth["head_x"] < 0.7)  # whole head in the picture
    assert seen.sum() >= 3
    for centroid_F, true_F in ((x_F, truth["head_x"]), (y_F, truth["head_y"])):
        gap_F = (centroid_F - true_F)[seen]
        assert np.abs(gap_F).max() < 0.025


def test_the_hand_in_the_pixels_is_where_truth_says():
    scene = make(action="wave", amplitude=0.9)
    truth = portraits.truth(scene)
    still_HW3, last_HW3 = portraits.render(make())[0].astype(int), portraits.render(scene)[-1]
    changed_HW = np.abs(last_HW3 - still_HW3).sum(-1) > 30
    rows, columns = np.nonzero(changed_HW[:36])  # above the arm
    assert columns.mean() / 64 == pytest.approx(truth["hand_x"][-1], abs=0.05)
    assert rows.min() / 64 == pytest.approx(truth["hand_y"][-1], abs=0.15)  # fingertips
    assert truth["hand_y"][0] > 1  # down and out of sight at first


def test_blink_closes_the_eyes():
    truth = portraits.truth(make(action="blink", amplitude=1.0))
    np.testing.assert_allclose(truth["eyes"], [1, 0.5, 0, 0.5, 1, 0.5, 0, 0.5, 1], atol=0.25)
    assert truth["eyes"].min() == 0


@pytest.mark.parametrize("side", [-1, 1])
def test_sides_are_sides_of_the_picture(side):
    ends = {
        name: portraits.truth(make(action=name, amplitude=1.0, side=side))
        for name in ("turn", "lean", "walk", "wave")
    }
    assert np.sign(ends["turn"]["turn"][-1]) == side
    assert np.sign(ends["lean"]["head_x"][-1] - ends["lean"]["head_x"][0]) == side
    assert np.sign(ends["walk"]["head_x"][0] - ends["walk"]["head_x"][-1]) == side
    assert np.sign(ends["wave"]["hand_x"][-1] - 0.5) == side


def test_people_look_different():
    photos = np.stack([portraits.reference(portraits.identity(i)) for i in range(64)]).astype(float)
    gaps = [np.abs(photos[i] - photos[j]).mean() for i in range(64) for j in range(i)]
    assert min(gaps) > 2
    assert np.mean(gaps) > 15


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_shows(name):
    low, high = (np.full(len(ATTRIBUTES), 0.45, np.float32) for _ in range(2))
    low[ATTRIBUTES.index("beard")] = high[ATTRIBUTES.index("beard")] = 0.0
    low[ATTRIBUTES.index(name)], high[ATTRIBUTES.index(name)] = 0.05, 0.95
    first, second = portraits.reference(low), portraits.reference(high)
    assert (np.abs(first.astype(int) - second).max(-1) > 25).sum() >= 12


def test_a_person_keeps_the_colours_in_every_scene():
    """The middle of the chest has the shirt's colour, in the photo and in every still scene."""
    photo = portraits.reference(portraits.identity(5))
    shirt = photo[61, 24].astype(int)
    for background in portraits.BACKGROUNDS:
        frame = portraits.render(make(5, background=background))[0]
        np.testing.assert_array_equal(frame[61, 24], shirt)


def test_backgrounds_and_tints_look_different():
    frames = [portraits.render(make(background=name), 1) for name in portraits.BACKGROUNDS]
    frames += [portraits.render(make(tint=tint), 1) for tint in range(len(portraits.TINTS))]
    frames.pop(len(portraits.BACKGROUNDS) + 4)  # make() itself has tint 4
    gaps = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(frames) for b in frames[:i]]
    assert min(gaps) > 4


DEED_WORDS = {
    "nod": ("nods",),
    "turn": ("turns the head", "looks"),
    "shake": ("shakes the head",),
    "smile": ("smile",),
    "blink": ("blinks",),
    "wave": ("wave",),
    "walk": ("walk",),
    "lean": ("leans",),
    "brows": ("eyebrows",),
    "talk": ("talks",),
}
PLACE_WORDS = {"plain": "wall", "room": "room", "night": "night"}


@pytest.mark.parametrize("index", range(40))
def test_prompts_name_action_amount_background_and_camera(index):
    scene = portraits.scene(index, index)
    texts = [portraits.prompt(scene, seed) for seed in range(20)]
    amounts = next(words for limit, words in AMOUNTS if scene.amplitude < limit)
    for text in texts:
        assert any(word in text for word in DEED_WORDS[scene.action])
        assert any(amount in text for amount in amounts)
        assert PLACE_WORDS.get(scene.background, scene.background) in text
        assert ("static" if scene.camera == "static" else scene.camera.split("_")[1]) in text
        if scene.background in INDOORS:
            assert list(portraits.TINTS)[scene.tint] in text
        if scene.action in ("turn", "walk", "lean"):
            assert {-1: "left", 1: "right"}[scene.side] in text
        assert text[0].isupper()
        assert text.endswith(".")
        assert "{" not in text
    assert len(set(texts)) > 10


def test_descriptions_follow_the_attributes():
    person_A = np.zeros(len(ATTRIBUTES), np.float32)
    assert describe(person_A) == {"hair": "short black hair", "shirt": "a red shirt"}
    person_A[:] = 1
    assert describe(person_A) == {
        "hair": "long grey hair",
        "shirt": "a pink shirt",
        "glasses": "glasses",
        "beard": "a beard",
    }
