"""The report's section on the watch: every comparison, the best one, gamed ones, the videos."""

import json
import shutil

import made_up
import pytest

from evoid_jax.report import folder, page, shelf, watched


def section(workdir):
    return watched.section(folder.load(workdir), shelf.inside)


def rewrite(workdir, step, **changes):
    file = workdir / f"watch/step_{step:06d}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def workdir(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run")
    made_up.watch(copy)
    return copy


def test_every_comparison_has_a_line_and_a_video(workdir):
    text = section(workdir)
    assert text.count("<th scope='row'>step ") == 2
    assert text.count("<video") == 3  # the start, and after 10 and 20 steps
    for words in ("Change of the total", "Change of the monitors", "--which=best", "A man waves"):
        assert words in text
    whole = page.page(folder.load(workdir))
    assert " id='watch'" in whole and "href='#watch'" in whole


def test_a_lost_video_gives_nobody_another_ones_photo_and_prompt(workdir):
    place = workdir / "watch"
    people = [{"k": k, "prompt": f"prompt {k}", "identity": f"person {k}"} for k in range(3)]
    (place / "pairs.json").write_text(json.dumps(people))
    for k in range(3):
        for name in ("start", "step_000010", "step_000020"):
            (place / f"{name}_{k:02d}.mp4").write_bytes(made_up.mp4(k))
        shutil.copy(
            workdir / "samples/heldout_00_reference.png", place / f"pair_{k:02d}_reference.png"
        )
    (place / "start_00.mp4").unlink()
    pairs = folder.load(workdir).watched_pairs
    assert [pair.entry["identity"] for pair in pairs] == ["person 1", "person 2"]
    for k, pair in enumerate(pairs, start=1):
        files = [pair.start, pair.reference, *pair.videos]
        assert [file.stem.split("_")[-1] for file in (files[0], *files[2:])] == [f"{k:02d}"] * 3
        assert pair.reference.name == f"pair_{k:02d}_reference.png"
    # entries in another order, one that is no object, and a number that is none
    (place / "pairs.json").write_text(json.dumps([people[2], None, people[1] | {"k": [1]}]))
    assert [pair.entry.get("identity") for pair in folder.load(workdir).watched_pairs] == [
        None,
        "person 1",
    ]


def test_the_best_is_marked_and_a_gamed_one_is_named(workdir):
    rewrite(workdir, 10, delta_total=0.5)
    head = "<th scope='row'>step {}</th>"
    line_of = lambda text, step: text.split(head.format(step))[1].split("</tr>")[0]
    text = section(workdir)
    assert ">best<" in line_of(text, 10) and ">best<" not in line_of(text, 20)
    fell = {"motion": {"mean": -0.1, "ci95": [-0.2, -0.05], "pairs": 64, "identities": 32}}
    rewrite(workdir, 10, delta_total=0.5, monitor_delta=fell)
    text = section(workdir)
    assert "possible reward hacking: " in line_of(text, 10)
    assert "motion, not rewarded, fell" in line_of(text, 10)
    assert ">best<" in line_of(text, 20)


def test_a_run_without_a_watch_has_no_such_section(workdir):
    shutil.rmtree(workdir / "watch")
    assert section(workdir) == ""
    assert "id='watch'" not in page.page(folder.load(workdir))


def test_a_broken_comparison_is_named(workdir):
    (workdir / "watch/step_000010.json").write_text("{}")
    with pytest.raises(ValueError, match=r"step_000010\.json has no 'base'"):
        folder.load(workdir)
