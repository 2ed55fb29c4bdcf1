"""The same face in two runs: by its photo, as names and seeds may be the same for other people."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import two_runs
from PIL import Image
from report_page import Page

from evoid_jax import arms, config, heldout, media, triples
from evoid_jax.report import against, compare, faces, folder, rows, study


@pytest.fixture
def runs(finished_run, tmp_path):
    return two_runs.fill(tmp_path, finished_run, names="ab")


def common(paths):
    """Return how many rows, trials and triples two runs share, and what is said about it."""
    loaded = list(map(folder.load, paths))
    said = [words for words in against.cautions(loaded, ["a", "b"]) if "photos" in words]
    counts = len(rows.matched(loaded)), len(study.of_runs(loaded, ["a", "b"]))
    return *counts, len(faces.shared(*loaded).triples), said


def test_the_same_photos_meet(runs):
    assert common(runs) == (6, 5, 64, [])  # the first video is one and the same in both
    for k in range(6):  # the same pixels, in other bytes
        file = runs[1] / f"samples/heldout_{k:02d}_reference.png"
        before = file.read_bytes()
        Image.open(file).save(file, compress_level=0)
        assert file.read_bytes() != before
    assert common(runs) == (6, 5, 64, [])


def test_other_people_of_the_same_names_are_never_set_against_each_other(runs, tmp_path):
    two_runs.of_others(runs[1], people=32)
    *counts, (said,) = common(runs)
    assert counts == [0, 0, 0]
    assert said.startswith("64 of the triples that a and b call alike") and "older" not in said
    compare.write(runs, tmp_path / "out")
    text = " ".join(Page((tmp_path / "out/compare.html").read_text("utf-8")).text.split())
    assert "call alike (identity, prompt and seed) have different photos" in text
    assert "No two of these runs kept videos of the same face" in text
    assert "No two of these runs share scored triples" in text and "b over a" not in text
    assert not (tmp_path / "out/blind").exists()


def test_one_other_person_is_left_out_and_the_rest_stays(runs):
    two_runs.of_others(runs[1], people=1)
    shown = rows.matched(list(map(folder.load, runs)))
    assert [row.first.entry["k"] for row in shown] == [1, 2, 3, 4, 5]
    *counts, (said,) = common(runs)
    assert counts == [5, 5, 62] and said.startswith("2 of the triples")


@pytest.mark.parametrize("older", [[0], [1], [0, 1]])
def test_older_scores_go_by_the_photos_that_are_kept(runs, older):
    for which in older:
        two_runs.without_photos(runs[which])
    assert common(runs) == (6, 5, 64, [])
    two_runs.of_others(runs[1], people=1)
    for which in older:
        two_runs.without_photos(runs[which])
    *counts, (said,) = common(runs)
    # one is known to be another, and of the rest nobody knows
    assert counts == [5, 5, 0]
    named = " and ".join("ab"[which] for which in older)
    assert f"The scores of {named} do not say of which photos they are" in said


def test_a_photo_that_is_lost_or_broken_is_the_one_that_was_scored(runs):
    (runs[1] / "samples/heldout_01_reference.png").unlink()
    (runs[1] / "samples/heldout_02_reference.png").write_bytes(b"no picture")
    assert common(runs) == (6, 5, 64, [])
    two_runs.without_photos(runs[1])  # then nobody knows
    assert common(runs) == (4, 3, 64, [])


def test_entries_of_any_kind_are_compared(runs):
    for run in runs:
        entries = json.loads((run / "samples/heldout.json").read_text())
        entries[1]["prompt"] = ["no", "text"]
        (run / "samples/heldout.json").write_text(json.dumps(entries))
    assert common(runs)[:3] == (6, 5, 64)


def test_the_proof_keeps_with_each_score_the_photo_that_it_keeps_beside_the_videos(tmp_path):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (3, 8, 6, 3), np.uint8)
    chosen = [
        SimpleNamespace(images=[photo, photos[0]], prompt="nods", identity=f"picture {k}.png")
        for k, photo in enumerate(photos)
    ]
    trial = arms.Trial(chosen, 2, seed=heldout.SEED, shown=2, name="held-out")
    run = SimpleNamespace(workdir=tmp_path, cfg=config.from_dict({"data": {"source": "portraits"}}))
    arm = SimpleNamespace(score_BM=rng.random((6, len(run.cfg.reward.table))), monitor={})
    heldout.write_scores(run, trial, arm, arm, made_by="this one")
    heldout.write_samples(run, trial)
    scored = triples.read(tmp_path).triples
    assert triples.read(tmp_path).made_by == "this one"
    assert [triple.photo for triple in scored] == [media.digest(photos[b // 2]) for b in range(6)]
    for sample in folder.load(tmp_path).samples:
        assert media.digest(media.read_image(sample.reference)) == sample.scored.photo


def test_an_images_name_is_of_its_size_and_pixels():
    image_HWC = np.zeros((4, 6, 3), np.uint8)
    turned_HWC = np.zeros((6, 4, 3), np.uint8)
    names = {media.digest(image) for image in (image_HWC, turned_HWC, image_HWC + 1)}
    assert len(names) == 3 and media.digest(image_HWC[::-1]) in names
    with pytest.raises(ValueError, match="expected a uint8 array"):
        media.digest(image_HWC.astype(float))


def test_a_photo_that_changes_is_read_again(runs, tmp_path):
    shutil.copy(runs[0] / "samples/heldout_00_reference.png", tmp_path / "before.png")
    assert common(runs)[0] == 6
    two_runs.without_photos(runs[1])
    two_runs.of_others(runs[1], people=6)
    assert common(runs)[0] == 0
