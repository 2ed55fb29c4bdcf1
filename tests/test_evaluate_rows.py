"""What makes a row anew, and which rows are set against each other."""

import json
import re
from pathlib import Path

import pytest
from evaluations import KEYS, LEVELS, benchmark, clips, judge_of, read, run, sidecar
from servers import serve

from evoid_jax import media
from evoid_jax.evaluate import published, rows, upstream
from evoid_jax.world import portraits


@pytest.fixture
def data(tmp_path):
    return benchmark(tmp_path / "benchmark")


def test_the_leaderboards_totals_are_those_of_its_metrics():
    """All 20 rows, to the digits that are printed."""
    rows = [one for one in published.ROWS if one.source == published.LEADERBOARD]
    assert len(rows) == 20
    for one in rows:
        total = sum(metric.weight * one.metrics[metric.name] for metric in upstream.METRICS)
        assert total == pytest.approx(one.total, abs=0.0085), one.name


def test_a_judge_that_is_asked_otherwise_is_another_one(data, tmp_path):
    """Each is asked for all grades again, and the rows are not set against each other."""
    one, two = clips(tmp_path / "one", LEVELS), clips(tmp_path / "two", LEVELS)
    fake = judge_of()
    with serve(sidecar().app()) as url, serve(fake.app()) as judge_url:
        flags = [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1"]
        flags += ["--reward.judge_model=fake"]
        run(data, tmp_path / "out", f"--videos={one}", *flags)
        extra = '--reward.judge_extra={"top_k": 5}'
        run(data, tmp_path / "out", f"--videos={two}", *flags, extra)
        changes = read(tmp_path / "out", "table.json")["changes"]["two"]
        assert changes["natural_score"] == changes["evoscore"] == {"reason": "by other models"}
        assert changes["gme_score"]["videos"] == 3
        count = len(fake.asked)
        run(data, tmp_path / "out", f"--videos={one}", *flags, extra)
        assert len(fake.asked) == count + 3 * 4
        # How many frames EvoScore shows is nothing to naturalness, which has its own.
        run(data, tmp_path / "out", f"--videos={one}", *flags, extra, "--reward.judge_frames=4")
        assert len(fake.asked) == count + 3 * 5


def test_rows_of_other_lists_are_compared_where_they_ask_for_the_same(tmp_path):
    keys = [f"singleface_{k}" for k in range(10)]
    first, second = (benchmark(tmp_path / name, keys) for name in ("one", "two"))
    listed = read(second.parent, second.name)
    listed[keys[0]]["prompt"] = "Someone else waves."
    listed[keys[1]]["img_paths"] = listed[keys[2]]["img_paths"]
    second.write_text(json.dumps(listed))
    low, high = clips(tmp_path / "low", [50] * 10, keys), clips(tmp_path / "high", [100] * 10, keys)
    with serve(sidecar().app()) as url:
        run(first, tmp_path / "out", f"--videos={low}", f"--reward.sidecars={url}")
        text = run(second, tmp_path / "out", f"--videos={high}", f"--reward.sidecars={url}")
    change = read(tmp_path / "out", "table.json")["changes"]["high"]
    assert (change["facesim_cur"]["videos"], change["facesim_cur"]["people"]) == (8, 8)
    assert "- high: another photo or prompt than low's in 2 videos, which are not compared" in text


def two_folders(tmp_path, others):
    """Return two lists alike, whose photos of the first keys show others; and videos of each."""
    keys = [f"singleface_{k}" for k in range(10)]
    first, second = (benchmark(tmp_path / name, keys) for name in ("one", "two"))
    for k, key in enumerate(keys[:others]):
        another = portraits.reference(portraits.scene(500 + k, k).identity)
        media.write_image(second.parent / f"Images/{key}.png", another)
    low, high = clips(tmp_path / "low", [50] * 10, keys), clips(tmp_path / "high", [100] * 10, keys)
    return (first, f"--videos={low}"), (second, f"--videos={high}")


@pytest.mark.parametrize("others", [1, 10])
def test_photos_of_one_name_that_show_others_are_not_compared(others, tmp_path):
    (first, low), (second, high) = two_folders(tmp_path, others)
    out = tmp_path / "out"
    with serve(sidecar().app()) as url:
        run(first, out, low, f"--reward.sidecars={url}")
        text = run(second, out, high, f"--reward.sidecars={url}")
    change = read(out, "table.json")["changes"]["high"]
    for column in ("total_score", "facesim_cur"):
        if others == 10:
            assert change[column] == {"reason": "of other photos or prompts"}
        else:
            assert (change[column]["videos"], change[column]["people"]) == (9, 9)
    assert f"- high: photos of the same names as low's show something else in {others} v" in text
    assert ("of other photos or prompts |" in text) == (others == 10)


def test_rows_that_do_not_say_of_which_photos_they_are_are_compared_by_names_and_told(tmp_path):
    """An earlier version wrote no digests; of what it made itself system.json has them."""
    (first, low), (second, high) = two_folders(tmp_path, 10)
    out = tmp_path / "out"
    with serve(sidecar().app()) as url:
        run(first, out, low, f"--reward.sidecars={url}")
        file = out / "low/total.json"
        total = json.loads(file.read_text())
        known = total.pop(rows.OF)
        file.write_text(json.dumps(total))
        text = run(second, out, high, f"--reward.sidecars={url}")
        assert read(out, "table.json")["changes"]["high"]["facesim_cur"]["videos"] == 10
        assert "- high: whether its photos are those of low is not known in 10 videos" in text
        assert "show something else" not in text
        system = read(out, "low/system.json") | {rows.OF: known}
        (out / "low/system.json").write_text(json.dumps(system))
        text = run(second, out, high, f"--reward.sidecars={url}")
    assert "is not known" not in text and "show something else in 10 videos" in text


@pytest.fixture
def refuse(monkeypatch):
    """Let every read of a file of some name fail."""

    def failing(name, error):
        real = Path.read_bytes

        def read_bytes(file):
            if file.name == name:
                raise error
            return real(file)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)

    return failing


def test_a_photo_that_is_gone_costs_its_video_alone(data, tmp_path, refuse):
    """While the row is scored, that is; before, the list is refused."""
    folder = clips(tmp_path / "mine", LEVELS)
    refuse(f"{KEYS[1]}.png", FileNotFoundError(2, "No such file or directory"))
    with serve(sidecar().app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    assert "No such file or directory" in text and "| 2 of 3" in text
    of = read(tmp_path / "out/mine", "total.json")[rows.OF]
    assert [key for key, digest in of.items() if digest is None] == [KEYS[1]]


def test_a_video_that_cannot_be_read_costs_no_other(data, tmp_path, refuse):
    folder = clips(tmp_path / "mine", LEVELS)
    refuse(f"{KEYS[1]}.mp4", PermissionError(13, "Permission denied"))
    with serve(sidecar().app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    assert "Permission denied" in text and "| 2 of 3" in text


def test_what_a_kill_finds_written_is_not_asked_for_again(data, tmp_path):
    """The judge dies at the first video, when the sidecar has answered."""
    folder, fake, dying = clips(tmp_path / "mine", LEVELS), sidecar(), judge_of()

    def die(video, who, number):
        raise KeyboardInterrupt

    flags = [f"--videos={folder}", "--workers=1", "--reward.judge_model=fake"]
    with serve(fake.app()) as url, serve(dying.app()) as judge_url:
        flags += [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evoid_jax.evaluate.scoring._natural", die)
            with pytest.raises(KeyboardInterrupt):
                run(data, tmp_path / "out", *flags)
        assert fake.batches
        run(data, tmp_path / "out", *flags)
    assert len(fake.batches) == 3  # one for each video, over both


def test_metric_files_that_are_gone_are_gone_from_the_row(data, tmp_path):
    theirs, others = tmp_path / "theirs", tmp_path / "others"
    parts = {
        metric.file: {key: {metric.entry: 0.5} for key in KEYS} for metric in upstream.METRICS[:-1]
    }
    parts |= {f"naturalscore_{k}": dict.fromkeys(KEYS, "3") for k in (1, 2, 3)}
    for folder in (theirs, others):
        upstream.write(folder, parts)
    for photo in (data.parent / "Images").iterdir():
        photo.unlink()  # nobody looks at them
    text = run(data, tmp_path / "out", f"--metrics={theirs},{others}")
    assert "| 3 of 3" in text
    assert "- others: whether the models that measured it are those of theirs is not known" in text
    assert "- others: whether its photos are those of theirs is not known in 3 videos" in text
    (theirs / "gmescore.json").unlink()
    (theirs / "naturalscore_2.json").unlink()
    text = run(data, tmp_path / "out", f"--metrics={theirs},{others}")
    assert "- theirs: no total, since no video has GME" in text
    assert not (tmp_path / "out/theirs/metrics/gmescore.json").exists()
    changes = read(tmp_path / "out", "table.json")["changes"]["others"]
    assert changes["gme_score"]["videos"] == changes["total_score"]["videos"] == 0


def test_few_people_are_warned_of_where_there_is_no_total(data, tmp_path):
    one, two = clips(tmp_path / "one", LEVELS), clips(tmp_path / "two", LEVELS)
    with serve(sidecar(names=["gme"]).app()) as url:
        text = run(data, tmp_path / "out", f"--videos={one},{two}", f"--reward.sidecars={url}")
    assert "- fewer than 8 people (two)" in text and re.search(r"\| 3, 3 +\|", text)
