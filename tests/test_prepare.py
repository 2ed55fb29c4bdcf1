"""From photos to a folder that training reads: the whole of evoid_jax.prepare, with drawn faces."""

import html
import json
import re
import shutil

import drawn_photos
import numpy as np
import pytest
from absl import flags
from fake_judge import FakeJudge
from programs import python
from servers import serve

from evoid_jax import media
from evoid_jax.data import pairs
from evoid_jax.prepare import __main__ as program
from evoid_jax.prepare import crop, finder, job, proposals, summary, write


@pytest.fixture
def photos(tmp_path):
    """Six people, two of them with two photos, and one photo of every kind that is refused."""
    draw, near = drawn_photos.photo, (100, 60, 120)
    images = {f"p{who}": draw((who, *near), seed=who) for who in range(6)}
    images |= {f"more__p{who}": draw((who, 50, 90, 150), seed=10 + who) for who in (0, 3)}
    images["empty"] = draw()
    images["two"] = draw((1, 10, 10, 100), (2, 200, 100, 90), seed=20)
    images["small"] = draw((4, 10, 10, 60), seed=21)
    images["smooth"] = draw((4, 10, 10, 150), seed=22, sharp=False)
    folder = drawn_photos.save(tmp_path / "photos", **images)
    shutil.copy(folder / "p5.png", folder / "p5_again.png")
    images["p5"].resize((360, 270)).save(folder / "p5_near.png")
    (folder / "list.txt").write_text("who is who")
    return folder


def options(photos, *words: str, out="out") -> job.Options:
    values = flags.FlagValues()
    program.define_flags(values)
    values(["prepare", f"--photos={photos}", f"--out={photos.parent / out}", *words])
    return program.options(values)


def run(photos, *words: str, out="out", watched=None) -> job.Result:
    return job.run(options(photos, *words, out=out), (watched or drawn_photos.Watched()).finder)


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]


def contents(folder) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_photos_become_pairs_that_training_reads(photos):
    result = run(photos)
    out = photos.parent / "out"
    splits = pairs.open_splits(folder=str(out))
    opened = {name: set(getattr(splits, name).identities) for name in splits._fields}
    assert opened == {
        name: {person.name for person in result.people if person.split == name}
        for name in splits._fields
    }
    assert all(opened.values()) and sum(map(len, opened.values())) == 6
    assert len(lines(out)) == result.lines == 8 * 5
    by_picture = {line["image"]: line["identity"] for line in lines(out)}
    assert len(by_picture) == 8 and len(set(by_picture.values())) == 6
    for picture, identity in by_picture.items():  # whoever is named is seen
        image_HWC = media.read_image(out / picture)
        (face,) = drawn_photos.find(image_HWC)
        who = int(np.argmax(drawn_photos.embed(image_HWC, face)))
        (person,) = [person for person in result.people if person.name == identity]
        assert f"p{who}.png" in {photo.name.split("/")[-1] for photo in person.photos}


def test_every_refused_photo_has_its_reason(photos):
    refused = {one.photo.name: (one.kind, one.why) for one in run(photos).refused}
    assert {name: kind for name, (kind, _) in refused.items()} == {
        "empty.png": "no face",
        "list.txt": "unreadable",
        "p5_again.png": "duplicate",
        "p5_near.png": "duplicate",
        "small.png": "too small",
        "smooth.png": "blurred",
        "two.png": "several faces",
    }
    assert refused["p5_again.png"][1] == "the same file as p5.png"
    assert refused["p5_near.png"][1] == "nearly the same picture as p5.png"
    held = json.loads((photos.parent / "out" / write.PREPARED).read_text())
    assert held["refused"]["small.png"] == (
        "too small: the face is 60 pixels wide; expected at least 80 (--min_face)"
    )


def test_a_second_call_computes_nothing_and_writes_the_same(photos, monkeypatch):
    run(photos)
    before = contents(photos.parent / "out")
    watched = drawn_photos.Watched()
    monkeypatch.setattr(crop, "cut", None)
    result = run(photos, watched=watched)
    assert (result.looked, watched.opened) == (0, 0)
    assert contents(photos.parent / "out") == before


def test_a_fresh_folder_gets_the_same(photos):
    run(photos)
    run(photos, out="other")
    assert contents(photos.parent / "out") == contents(photos.parent / "other")


def test_more_photos_move_nobody(photos):
    before = {person.name: person for person in run(photos).people}
    more = {f"p{who}": drawn_photos.photo((who, 30, 30, 140), seed=50 + who) for who in range(12)}
    drawn_photos.save(photos / "new", **more)
    after = {person.name: person for person in run(photos).people}
    assert len(after) == 12 and before.keys() < after.keys()
    for name, person in before.items():
        assert after[name].split == person.split
        assert len(after[name].photos) == len(person.photos) + 1


def test_a_person_who_is_gone_is_gone_everywhere(photos):
    run(photos)
    out = photos.parent / "out"
    many = len(list((out / write.PICTURES).iterdir()))
    gone = json.loads((out / write.PREPARED).read_text())["people"]
    (name,) = [name for name, person in gone.items() if "p1.png" in person["photos"]]
    digest = gone[name]["photos"]["p1.png"]
    (out / write.PICTURES / "mine.png").write_bytes(b"not ours")
    (photos / "p1.png").unlink()
    run(photos)
    left = contents(out)
    assert not any(digest in path or digest.encode() in content for path, content in left.items())
    assert not any(name.encode() in content for content in left.values())
    assert len(list((out / write.PICTURES).iterdir())) == many  # one less, and mine
    assert left["pictures/mine.png"] == b"not ours"


def test_other_settings_need_no_second_look(photos):
    run(photos)
    watched = drawn_photos.Watched()
    result = run(photos, "--min_face=50", "--per_face=3", "--crop=1.5", watched=watched)
    assert watched.asked == 0 and "small.png" not in {one.photo.name for one in result.refused}
    assert result.lines == len(lines(photos.parent / "out")) == 9 * 3


def test_other_shares_draw_the_splits_anew(photos):
    run(photos)
    assert {person.split for person in run(photos, "--heldout=0", "--validation=0").people} == {
        "evolution"
    }
    result = run(photos, "--heldout=0.6")
    told = summary.notes(options(photos), result)
    assert any(
        "now of another split" in note and " from evolution to heldout" in note for note in told
    )
    assert run(photos, "--heldout=0.6").moved == []


def test_names_of_folders_and_of_a_file(photos, tmp_path):
    names = tmp_path / "people.json"
    names.write_text('{"p0.png": "Anna", "p1.png": "Anna", "p2.png": "Ben"}')
    found = {
        photo.name: person.name
        for person in run(photos, f"--people={names}").people
        for photo in person.photos
    }
    assert found["p0.png"] == found["p1.png"] == found["more/p0.png"] == "Anna"
    assert found["p2.png"] == "Ben" and found["p3.png"].startswith("person-")
    (photos / "more").rename(photos / "Cleo")
    names.write_text('{"Cleo/p0.png": "Anna"}')
    found = {
        photo.name: person.name
        for person in run(photos, f"--people={names}", "--folders", out="other").people
        for photo in person.photos
    }
    assert found["p0.png"] == found["Cleo/p0.png"] == "Anna"
    assert found["p3.png"] == found["Cleo/p3.png"] == "Cleo"


def test_names_are_found_however_accents_are_written(photos, tmp_path):
    (photos / "p1.png").rename(photos / "Zoe\u0308 1.png")
    (tmp_path / "people.json").write_text('{"Zo\\u00eb 1.png": "Zoe\\u0308"}')
    found = run(photos, f"--people={tmp_path / 'people.json'}").people
    assert [one.photos[0].name for one in found if one.name == "Zo\u00eb"] == ["Zoe\u0308 1.png"]


def test_names_of_files_that_are_no_text_stay_readable(photos):
    (photos / "p1.png").rename(photos / "p\udcff.png")
    run(photos)
    run(photos)
    held = json.loads((photos.parent / "out" / write.PREPARED).read_text())["people"].values()
    assert "p\udcff.png" in {name for person in held for name in person["photos"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"p9.png": "Anna"}', "names 'p9.png', which is no photo there; did you mean 'p"),
        ('{"p1.png": "Anna", "p2.png": "anna"}', "two names are one but for their spelling"),
        ('{"p1.png": ""}', "people.json, p1.png: '' is no name of a person"),
        ('["p1.png"]', "holds a list"),
        ('{"p1.png": "A", "p1.png": "B"}', "has the key 'p1.png' twice"),
    ],
)
def test_faults_of_the_file_of_names(photos, tmp_path, content, message):
    (tmp_path / "people.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        run(photos, f"--people={tmp_path / 'people.json'}")


def test_prompts_of_a_file_are_used(photos, tmp_path):
    (tmp_path / "mine.txt").write_text("A person sings.\nA person dances.\nA person nods.\n")
    run(photos, f"--prompts={tmp_path / 'mine.txt'}", "--per_face=2")
    used = [line["prompt"] for line in lines(photos.parent / "out")]
    assert set(used) <= {"A person sings.", "A person dances.", "A person nods."}
    assert len(used) == 16


def test_a_judge_proposes_prompts_for_what_is_cut_out(photos):
    shown = []

    def propose(photo_HWC, count):
        shown.append(photo_HWC.shape)
        return [f"A person waves {len(shown)}-{k}." for k in range(count)]

    asked = options(photos)._replace(judge=proposals.Asked("judge", lambda: propose))
    result = job.run(asked, drawn_photos.Watched().finder)
    assert sorted(shown) == [(296, 312, 3)] * 6 + [(296, 384, 3)] * 2
    assert result.filled == 0
    assert all("waves" in line["prompt"] for line in lines(photos.parent / "out"))


def test_a_judge_behind_an_address_is_asked_once_for_each_photo(photos):
    fake = FakeJudge({"prompts": ["A person nods.", "A person waves."]})
    with serve(fake.app()) as url:
        flags = [f"--judge={url}/v1", "--per_face=2", "--judge_key_env="]
        result = run(photos, *flags)
        assert len(fake.asked) == 8 and result.filled == 0
        assert {len(fake.pictures(i)) for i in range(8)} == {1}
        assert {line["prompt"] for line in lines(photos.parent / "out")} == {
            "A person nods.",
            "A person waves.",
        }
        run(photos, *flags)
        assert len(fake.asked) == 8
    run(photos, *flags)  # nothing is asked: the server may be gone
    drawn_photos.photo((9, 30, 30, 140), seed=99).save(photos / "p9.png")
    with pytest.raises(ConnectionError, match="--judge: "):
        run(photos, *flags)


def test_an_unusable_answer_leaves_a_photo_to_the_bank(photos):
    with serve(FakeJudge("I cannot help with that.").app()) as url:
        flags = [f"--judge={url}/v1", "--per_face=2", "--judge_key_env="]
        with pytest.raises(ValueError, match="gave no usable prompt; leave --judge out"):
            run(photos, *flags)


# --- what is refused before anything is written


def test_a_folder_that_is_not_ours_is_left_alone(photos):
    out = photos.parent / "out"
    out.mkdir()
    (out / "prompts.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is not from this program, which would replace it"):
        run(photos)
    assert contents(out) == {"prompts.jsonl": b"mine"}


def test_lines_that_were_changed_by_hand_are_not_replaced(photos):
    run(photos)
    file = photos.parent / "out" / "prompts.jsonl"
    file.write_text(file.read_text().replace("A person", "Somebody"))
    with pytest.raises(ValueError, match="was changed since it was written"):
        run(photos)
    file.unlink()
    run(photos)
    assert "Somebody" not in file.read_text()


def test_nothing_that_can_be_used_is_an_error_with_counts(photos):
    with pytest.raises(
        ValueError, match=r"none of 15 photos can be used, 1 unreadable, 1 no face, "
    ):
        run(photos, "--min_face=400")
    assert (photos.parent / "out" / write.SHEET).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--photos=nowhere"], "--photos: there is no folder"),
        (["--per_face=145"], "--per_face is 145, but there are 144 prompts"),
        (["--height=470"], "--height must be a multiple of 16, got 470"),
        (["--heldout=0.6", "--validation=0.5"], "leave nobody to train on"),
        (["--prompts=x", "--judge=http://x"], "both give prompts; use one"),
    ],
)
def test_flags_that_cannot_be(photos, words, message):
    with pytest.raises((ValueError, OSError), match=message):
        options(photos, *words)


@pytest.mark.parametrize("inner", ["photos", "photos/out"])
def test_the_output_cannot_lie_among_the_photos(photos, inner):
    with pytest.raises(ValueError, match="is in --photos"):
        options(photos, out=inner)


def test_missing_weights_say_what_to_do(tmp_path):
    nets = finder.of_folder(str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"evoid_jax\.sidecars\.fetch --preset=open, or name"
    ):
        nets.open()


def test_a_missing_package_says_what_to_do():
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from evoid_jax.prepare import finder\n"
        "try: finder.of_folder(None).open()\n"
        "except ValueError as error: print(error)"
    )
    assert python("-c", code).strip() == (
        "finding faces needs the package cv2, which is not installed: "
        "pip install -r requirements-sidecars.txt"
    )


# --- what a user sees


def test_the_contact_sheet_shows_everybody_and_loads_nothing(photos):
    nasty = "<img src=x onerror=alert(1)>.png"
    (photos / "p4.png").rename(photos / nasty)
    result = run(photos)
    page = result.sheet.read_text()
    assert nasty not in page and html.escape(nasty) in page
    for name in ["p1.png", "two.png", "list.txt", *(person.name for person in result.people)]:
        assert name in page
    for why in ("2 faces of like size", "nearly the same picture as p5.png", "no picture"):
        assert why in page
    assert page.count("<figure>") == 15 and page.count("class='cut'") == 8
    assert "default-src 'none'" in page and "@@" not in page
    assert not re.search(r"(src|href)='?(?!'?data:)http", page)


def test_the_summary_says_what_was_made_and_what_to_know(photos, tmp_path):
    asked = options(photos)
    told = summary.lines(asked, job.run(asked, drawn_photos.Watched().finder))
    assert told[0] == "photos   15, 13 of them looked at now"
    assert told[1] == (
        "refused  7: 1 unreadable, 1 no face, 1 several faces, 1 too small, 1 blurred, 2 duplicate"
    )
    assert told[2].startswith("people   6 in 8 photos: evolution ")
    assert told[3] == f"pairs    40 in {asked.out / 'prompts.jsonl'}, 5 prompts a photo"
    assert f"--config.data.dir={asked.out} --config.reward.judge=http" in told[5]
    assert any("the proof gives no verdict under 8: add people" in line for line in told[6:])
    names = tmp_path / "people.json"
    names.write_text('{"p0.png": "Anna", "more/p0.png": "Anne", "p1.png": "Ben", "p2.png": "Ben"}')
    asked = options(photos, f"--people={names}")
    told = summary.lines(asked, job.run(asked, drawn_photos.Watched().finder))
    assert any("1 pair of people look alike: Anna and Anne (1.00)" in line for line in told)
    assert any("2 photos are unlike the others of their person" in line for line in told)


def test_help_names_every_flag():
    told = python("-m", "evoid_jax.prepare", "--help")
    for flag in ("photos", "out", "prompts", "judge", "per_face", "weights", "people", "heldout"):
        assert f"  --{flag}" in told
