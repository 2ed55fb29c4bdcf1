"""Several runs on one page: tables, curves, rows of videos, and what does not compare."""

import json
import re
import shutil

import made_up
import numpy as np
import pytest
import two_runs
from report_page import Page

from evoid_jax import proof, triples
from evoid_jax.report import against, compare, folder, overlay, rows, settings_table, shelf

EVIL = """"><script>alert(1)</script><img src=x onerror='alert(2)'>"""


@pytest.fixture(scope="module")
def three(finished_run, tmp_path_factory):
    """Three runs and the page that compares them; nothing changes them."""
    folder = tmp_path_factory.mktemp("three")
    runs = two_runs.fill(folder, finished_run)
    return runs, written(runs, folder / "out")


@pytest.fixture
def runs(three, tmp_path):
    """Copies of the three runs, to be changed."""
    return [shutil.copytree(run, tmp_path / run.name) for run in three[0]]


def written(runs, place, **options):
    compare.write(runs, place, **options)
    return Page((place / "compare.html").read_text("utf-8"))


def words(page):
    return " ".join(page.text.split())


def test_every_run_has_its_headline_and_its_rewards(three):
    runs, page = three
    text = words(page)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        low, high = summary["delta_total_ci95"]
        shown = f"{run.name} {summary['base']['total']:.3f} {summary['evolved']['total']:.3f}"
        assert f"{shown} {summary['delta_total']:+.3f} {low:+.3f} to {high:+.3f}" in text
        row = summary["delta"]["gme"]
        assert f"{row['mean']:+.3f}" in text.split("gme")[1]
    assert "3 runs compared" in text and "do not compare" not in text


def test_run_against_run_is_the_paired_difference_of_the_evolved(three):
    runs, page = three
    text = words(page).split("Run against run")[1]
    one, other = (triples.read(run) for run in runs[:2])
    both = triples.between(one, other)
    people = [triple.identity for triple in both.triples]
    delta, low, high = proof.paired_bootstrap(*triples.totals(both), cluster_B=people)
    assert f"b over a {delta:+.3f} {low:+.3f} to {high:+.3f}" in text
    assert text.count("over") >= 3 and "64" in text
    assert 0.05 < delta < 0.11  # the second scores 0.1 more, up to the end of the range


def test_a_change_without_a_reward_shows_nothing_and_says_so(runs, tmp_path):
    """A tenth of the triples may lack one; more make another total."""
    held = json.loads((runs[1] / "scores.json").read_text())
    count = len(held["triples"])
    for lost, told in ((count // 10, False), (count // 2, True)):
        for triple in held["triples"][:lost]:
            triple["evolved"]["gme"] = None
        two_runs.change(runs[1] / "scores.json", **held)
        text = words(written(runs[:2], tmp_path / f"out{lost}"))
        assert (f"gme is missing in {lost / count:.0%}" in text) == told
        table = against.each_other(list(map(folder.load, runs[:2])), ["a", "b"])
        kind = re.search(r"<b class='(\w+)'>", table).group(1)
        assert kind == ("flat" if told else "up")


def test_an_older_run_is_read_and_what_it_lacks_is_said(runs, tmp_path):
    two_runs.without_scores(runs[2])
    (runs[2] / "run.json").unlink()
    text = words(written(runs, tmp_path / "out"))
    assert "No scores of single videos are kept in c" in text
    assert "b over a" in text and "c over a" not in text.split("The same face")[0]


def test_an_unfinished_run_is_there_with_dashes(runs, tmp_path):
    (runs[1] / "summary.json").unlink()
    text = words(written(runs, tmp_path / "out"))
    assert "Not finished, so base and evolved were not compared: b." in text
    assert "b – – – –" in text


def test_the_same_triple_stands_in_a_row(three, runs, tmp_path):
    page = three[1]
    kept = rows.matched([folder.load(run) for run in runs])
    assert len(kept) == 6
    # base is equal in all runs and shown once: four videos a row
    assert len(page.all("video")) == 6 * 4
    labels = [video["aria-label"].split(",")[0] for video in page.all("video")]
    assert labels[:4] == ["base", "a", "b", "c"]
    (runs[1] / "samples/heldout_00_base.mp4").write_bytes(
        (runs[1] / "samples/heldout_01_base.mp4").read_bytes()
    )
    page = written(runs, tmp_path / "out", shown=1)
    labels = [video["aria-label"].split(",")[0] for video in page.all("video")]
    assert labels == ["base of a", "base of b", "base of c", "a", "b", "c"]


def test_triples_of_one_run_alone_are_left_out(runs):
    entries = json.loads((runs[1] / "samples/heldout.json").read_text())
    entries[0]["seed"], entries[1]["prompt"] = 5, ["no", "text"]
    (runs[1] / "samples/heldout.json").write_text(json.dumps(entries))
    kept = rows.matched([folder.load(run) for run in runs[:2]])
    assert [row.first.entry["k"] for row in kept] == [2, 3, 4, 5]


def test_large_videos_are_copied_once_beside_the_page(runs, tmp_path):
    out = tmp_path / "out"
    page = written(runs, out, media="beside")
    sources = {video["src"] for video in page.all("video")}
    # bases 0..5 (k = 5 is as 0), evolved: of a 0..5, of b and c five others each; some are alike
    assert all((out / source).is_file() for source in sources)
    contents = [file.read_bytes() for file in (out / "media").iterdir()]
    assert len(set(contents)) == len(contents)
    assert not any(name in source for source in sources for name in ("base", "evolved", "heldout"))


def test_settings_that_differ_are_listed_and_others_are_not():
    configs = [{"lr": 1e-4, "data": {"pairs": 4}, "digest": "a"}]
    configs += [{"lr": 1e-3, "data": {"pairs": 4, "seeds": 8}, "digest": "b"}]
    assert settings_table.differing(configs) == {
        "lr": ["0.0001", "0.001"],
        "data.seeds": ["not there", "8"],
    }
    assert settings_table.differing([configs[0]] * 2) == {}
    judges = [{"judge": f"http://me:{word}@host"} for word in ("hunter2", "hunter3")]
    assert settings_table.differing(judges) == {}  # passwords are cut out


def drawn(section, title):
    """Return what a chart shows under the pointer, by curve, and the curves' paths."""
    panel = next(p for p in section.split("<div class='panel'>") if f"<h3>{title}</h3>" in p)
    (svg,) = (svg for svg in Page(panel).all("svg") if "data-chart" in svg)
    data = json.loads(svg["data-chart"])
    values = {one["name"]: one["values"] for one in data["series"]}
    return data["steps"], values, [path["d"] for path in Page(panel).all("path")]


def test_curves_of_runs_with_other_steps_have_no_gaps_and_no_invented_values():
    hues = {"a": "red", "b": "blue", "c": "green"}
    columns = [{0: 1.0, 2: 3.0, 4: 2.0}, {1: 1.0, 2: None, 3: 2.0}, {3: 5.0}]
    section = overlay._panel("x", "", columns, [*hues], hues)
    steps, values, paths = drawn(section, "x")
    assert steps == [0, 1, 2, 3, 4]
    assert values["a"] == ["1", "–", "3", "–", "2"]  # a dash where the run has no such step
    assert values["b"] == ["–", "1", "–", "2", "–"]
    assert [path.count("M") for path in paths] == [1, 2, 1]  # a gap where a value is missing
    assert section.count("<circle") == 1  # a curve of one point is seen


def test_the_watch_is_drawn_as_it_measured(runs):
    """Nine comparisons with one peak: smoothed, the peak would be a third of itself."""
    for run, every in zip(runs[:2], (10, 15), strict=True):
        made_up.watch(run, steps=range(every, 10 * every, every))
        for file in (run / "watch").glob("step_*.json"):
            two_runs.change(file, delta_total=0.9 if file.stem == "step_000030" else 0.0)
    names = ["a", "b"]
    hues = dict(zip(names, ("red", "blue"), strict=True))
    section = overlay.section([folder.load(run) for run in runs[:2]], names, hues)
    steps, values, _ = drawn(section, "Change of the total, by the watch")
    shown = dict(zip(steps, values["a"], strict=True))
    assert (shown[20], shown[30], shown[40]) == ("0", "0.9", "0")
    assert shown[15] == shown[45] == "–"
    assert dict(zip(steps, values["b"], strict=True))[20] == "–"


def test_videos_that_are_kept_and_not_shown_are_not_called_missing(runs, tmp_path):
    text = words(written(runs, tmp_path / "out", shown=0))
    assert "6 are kept by two runs or more, none is shown (--videos)" in text
    assert "No two of these runs kept videos" not in text
    text = words(written(runs, tmp_path / "out", shown=2))
    assert "The first 2 of 6 that two runs or more kept." in text
    assert "The first" not in words(written(runs, tmp_path / "out"))


def test_what_an_earlier_comparison_wrote_is_removed_and_nothing_else(runs, tmp_path):
    out = tmp_path / "out"
    written(runs, out, media="beside")
    other = "0123456789abcdef.mp4"  # named as ours are, and none of them
    for folder_ in (out / "media", out / "blind/media"):
        assert len(list(folder_.iterdir())) > 10
        (folder_ / "mine.png").touch()
        (folder_ / other).touch()
    (out / "blind/kept.json").touch()
    shutil.rmtree(runs[1] / "samples")
    compare.write(runs[:2], out, media="beside")
    left = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    mine = {f"{name}/{file}" for name in ("media", "blind/media") for file in ("mine.png", other)}
    assert left == {"compare.html", "blind/kept.json"} | mine
    assert "blind/blind.html" not in (out / "compare.html").read_text()


def test_a_page_with_its_videos_inside_leaves_none_beside_it(runs, tmp_path):
    out = tmp_path / "out"
    written(runs, out, media="beside")
    written(runs, out, media="inside")
    left = {file.relative_to(out).as_posix() for file in out.rglob("*")}
    assert left == {"compare.html", "blind", "blind/blind.html"}


def test_hostile_text_stays_text(runs, tmp_path):
    for run in runs[:2]:
        two_runs.change(run / "config.json", **{EVIL: run.name})
        entries = json.loads((run / "samples/heldout.json").read_text())
        for entry in entries:
            entry["prompt"] = EVIL
        (run / "samples/heldout.json").write_text(json.dumps(entries))
        summary = (run / "summary.json").read_text().replace('"gme"', json.dumps(EVIL))
        (run / "summary.json").write_text(summary)
    hostile = runs[0].rename(tmp_path / "<b onclick='x'>&amp;")
    page = written([hostile, runs[1]], tmp_path / "out")
    assert len(page.all("script")) == 1 and not page.all("b onclick")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [t for t, attributes in page.tags if any(key.startswith("on") for key in attributes)]
    assert page.text.count("<script>alert(1)</script>") >= 8
    for tag, attributes in page.tags:
        for key in ("src", "href", "poster"):
            value = attributes.get(key, "data:")
            assert value.startswith(("data:", "#")) or value == "blind/blind.html", (tag, value)


def test_what_is_wrong_with_the_command_is_said(runs, tmp_path):
    with pytest.raises(ValueError, match="is given twice"):
        compare.write([runs[0], tmp_path / "." / "a"], tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").touch()
    with pytest.raises(ValueError, match=r"is not empty and holds no compare\.html"):
        compare.write(runs, tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        compare.write([runs[0], tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_go_by_their_paths(runs, tmp_path):
    (tmp_path / "x").mkdir()
    other = runs[1].rename(tmp_path / "x" / "a")
    assert str(other) in words(written([runs[0], other], tmp_path / "out"))


def test_runs_that_share_nothing_give_a_page(runs, tmp_path):
    for file in (runs[1] / "samples").iterdir():
        file.unlink()
    scores = triples.read(runs[1])
    keys = [(f"other {t.identity}", t.prompt, t.seed) for t in scores.triples]
    nothing = np.full((64, 8), np.nan)
    empty = {name: [None] * 64 for name in ("identity", "motion")}
    names, prior = list(scores.prior), list(scores.prior.values())
    triples.write(runs[1], names, prior, keys, (nothing, nothing), (empty, empty))
    text = words(written(runs[:2], tmp_path / "out"))
    assert "kept videos of the same face" in text and "No two of these runs share" in text
    assert not (tmp_path / "out/blind").exists()
    assert shelf.choose("auto", [], shelf.beside(tmp_path)) is shelf.inside
