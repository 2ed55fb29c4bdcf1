"""A row that several commands fill: what stays of those that measured it before."""

import json

import pytest
from evaluations import (
    KEYS,
    LEVELS,
    NAMES,
    asked,
    benchmark,
    clips,
    graded,
    judge_of,
    read,
    run,
    sidecar,
)
from servers import serve

from evoid_jax.evaluate import kept, rows, scorers, upstream
from evoid_jax.evaluate.scorers import Source

FACES, OTHERS = NAMES[:4], NAMES[4:]
NATURAL = tuple(f"naturalscore_{k}.json" for k in (1, 2, 3))


@pytest.fixture
def data(tmp_path):
    return benchmark(tmp_path / "benchmark")


@pytest.fixture
def videos(tmp_path):
    return clips(tmp_path / "low", LEVELS)


def scored(data, videos, *parts, more=(), names=NAMES, **changes):
    """Score a folder's row, in out/ beside it, by a sidecar with these names, and flags."""
    with serve(sidecar(names=names, **changes).app()) as url:
        flags = f"--videos={videos}", f"--reward.sidecars={url}"
        return run(data, videos.parent / "out", *flags, *parts, *more)


def total_of(videos):
    return read(videos.parent / "out" / videos.name, rows.TOTAL)


def files_of(videos, folder="metrics"):
    place = videos.parent / "out" / videos.name / folder
    return {file.name: file.read_text() for file in place.glob("*.json")}


@pytest.fixture
def whole(data, videos):
    """Return a row that a sidecar and a judge have measured, as `total.json` holds it."""
    with serve(judge_of().app()) as judge:
        flags = f"--reward.judge={judge}/v1", "--reward.judge_model=fake"
        scored(data, videos, *flags, names=NAMES[:6])
    return total_of(videos)


def test_a_command_with_fewer_scorers_takes_nothing_from_a_row(data, videos, whole, tmp_path):
    """The judge is off when another system comes to the table."""
    graded_before, high = files_of(videos), clips(tmp_path / "high", LEVELS)
    evoscore = (tmp_path / "out/low/evoscore.json").read_text()
    fake = sidecar(names=NAMES[:6])
    with serve(fake.app()) as url:
        text = run(data, tmp_path / "out", f"--videos={videos},{high}", f"--reward.sidecars={url}")
    now = total_of(videos)
    assert whole["total_score"] is not None and now.pop("kept") == ["naturalness", "evoscore"]
    assert now == {key: value for key, value in whole.items() if key != "kept"}
    assert files_of(videos) == graded_before and set(NATURAL) < set(graded_before)
    assert (tmp_path / "out/low/evoscore.json").read_text() == evoscore
    assert "- low: kept from an earlier command, as nobody measured it in the last one: " in text
    assert "naturalness by fake, EvoScore by fake" in text
    assert "naturalness: graded by fake, asked in our words" in text
    assert total_of(high)["total_score"] is None and total_of(high)["kept"] == []
    assert "- high: kept" not in text and len(fake.batches) == 3


def test_a_row_is_filled_by_several_commands(data, videos, tmp_path, capsys):
    """Some scorers up in each; it is then as one command would have made it."""
    text = scored(data, videos, names=FACES)
    assert "- low: no total" in text and total_of(videos)["kept"] == []
    capsys.readouterr()
    text = scored(data, videos, names=OTHERS)
    said = capsys.readouterr().out
    assert "low: kept from an earlier command: arcface, curricularface, gme, aesthetic" in said
    assert "nobody measures" not in said
    assert "FaceSim by the set paper, GME by the set paper" in text and "arcface by the" in text
    high = clips(tmp_path / "high", LEVELS)
    text = scored(data, high)
    one, two = total_of(videos), total_of(high)
    assert one["total_score"] == pytest.approx(two["total_score"])
    assert one["measured_by"] == two["measured_by"] and one["sources"] == two["sources"]
    assert files_of(videos) == files_of(high)
    assert read(tmp_path / "out", "table.json")["changes"]["high"]["total_score"]["videos"] == 3


def test_a_changed_video_keeps_no_number(data, videos, whole):
    clips(videos, (200,), keys=KEYS[:1])
    text = scored(data, videos, names=NAMES[:6])
    now = total_of(videos)
    assert now["videos_with_metric"]["natural_score"] == now["evoscore"]["videos"] == 2
    assert KEYS[0] not in read(videos.parent / "out/low", "evoscore.json")
    assert (
        "- low: naturalness is missing in 1 video: nobody measures it any more, and no number of "
        "this video is kept" in text
    )
    clips(videos, (200,) * 3)
    scored(data, videos, names=NAMES[:6])
    now = total_of(videos)
    assert now["total_score"] is None and now["evoscore"] is None and now["kept"] == []
    assert not set(NATURAL) & set(files_of(videos))
    clips(videos, LEVELS)
    scored(data, videos, names=NAMES[:6])
    assert total_of(videos)["total_score"] == whole["total_score"]


def test_another_version_that_is_there_takes_the_place_of_the_first_in_all_videos(data, videos):
    """What it has no number of stays missing; what it does not measure is kept."""
    scored(data, videos)
    first = total_of(videos)
    fake = sidecar(names=["gme"], lost={("gme", 100)})
    fake.version = "2"
    with serve(fake.app()) as url:
        run(data, videos.parent / "out", f"--videos={videos}", f"--reward.sidecars={url}")
    now = total_of(videos)
    assert now["videos_with_metric"]["gme_score"] == 2 and "gme" not in now["kept"]
    assert now["sources"]["gme"]["model"] == "2" and now["sources"]["flow"]["model"] == "1"
    assert now["measured_by"]["gme_score"] != first["measured_by"]["gme_score"]
    fake.change = graded()
    scored(data, videos, names=["flow"])  # no gme today: the newer one's are kept, not the whole
    now = total_of(videos)
    assert now["videos_with_metric"]["gme_score"] == 2 and now["sources"]["gme"]["model"] == "2"


def test_reward_sets_do_not_meet_in_a_row(data, videos):
    """Of `open` is kept what `open` measured, when that comes again."""
    scored(data, videos, preset="open")
    scored(data, videos, preset="paper", names=FACES)
    now = total_of(videos)
    assert now["total_score"] is None and now["kept"] == []
    assert {source["preset"] for source in now["sources"].values()} == {"paper"}
    assert set(files_of(videos)) == {"aesthetic_score.json", "facesim.json", "gmescore.json"}
    scored(data, videos, preset="open", names=OTHERS)
    now = total_of(videos)
    assert {source["preset"] for source in now["sources"].values()} == {"open"}
    assert now["kept"] == list(FACES) and now["total_score"] is not None
    assert set(files_of(videos, rows.APART)) == set(upstream.file_names())
    assert not files_of(videos)


def test_what_a_command_measured_that_was_killed_is_kept(data, videos):
    scored(data, videos, names=FACES)
    (videos.parent / "out/low" / rows.TOTAL).unlink()
    scored(data, videos, names=OTHERS)
    assert total_of(videos)["kept"] == list(FACES) and total_of(videos)["total_score"] is not None


@pytest.mark.parametrize("compared", [True, False])
def test_a_row_of_an_earlier_version_is_kept(data, videos, whole, compared):
    """It has no list of who was asked, and did not say in whose words a judge was."""
    row = videos.parent / "out/low"
    (row / kept.FILE).unlink()
    for source in whole["sources"].values():
        del source["why"]
    del whole["kept"]
    whole["comparable_with_the_leaderboard"] = compared
    (row / rows.TOTAL).write_text(json.dumps(whole))
    scored(data, videos, names=NAMES[:6])
    now = total_of(videos)
    assert now["total_score"] == whole["total_score"]
    assert now["kept"] == ["naturalness", "evoscore"]
    unknown = "naturalness: graded by fake; in whose words it was asked is not known any more"
    assert (unknown in now["not_comparable_because"]) is not compared


def source(preset, digest):
    return Source(preset, model="1", about="", digest=digest)


def test_of_several_the_one_whose_numbers_stand_is_kept(tmp_path):
    """A command that was killed while it measured anew has not taken its place."""
    old, new, judge = source("paper", "old"), source("paper", "new"), source("", "judge")
    kept.note(tmp_path, {"gme": old, "naturalness": judge})
    assert kept.earlier(tmp_path, {}) == {"gme": old, "naturalness": judge}
    (tmp_path / rows.TOTAL).write_text(json.dumps({"sources": {"gme": old._asdict()}}))
    kept.note(tmp_path, {"gme": new, "flow": new})
    now = {"aesthetic": new}
    assert kept.earlier(tmp_path, now) == {"gme": old, "flow": new, "naturalness": judge}
    assert kept.earlier(tmp_path, {"gme": new}) == {"flow": new, "naturalness": judge}
    assert kept.earlier(tmp_path, {"gme": source("open", "x")}) == {"naturalness": judge}
    (tmp_path / rows.TOTAL).write_text("{}")  # none of ours, and written again soon
    assert kept.earlier(tmp_path, now)["gme"] == new
    kept.note(tmp_path, {"gme": old})
    assert kept.earlier(tmp_path, now)["gme"] == old
    held = read(tmp_path, kept.FILE)
    assert [(one["name"], one["digest"]) for one in held] == [
        ("naturalness", "judge"),
        ("gme", "new"),
        ("flow", "new"),
        ("gme", "old"),
    ]


def test_without_sidecars_the_set_of_the_row_is_kept_alone(tmp_path):
    stranger, own, judge = source("open", "1"), source("paper", "2"), source("", "3")
    kept.note(tmp_path, {"gme": own, "aesthetic": own})
    kept.note(tmp_path, {"gme": stranger, "flow": stranger})
    kept.note(tmp_path, {"naturalness": judge})
    assert kept.earlier(tmp_path, {"naturalness": judge}) == {"gme": stranger, "flow": stranger}
    (tmp_path / rows.TOTAL).write_text(json.dumps({"sources": {"gme": own._asdict()}}))
    assert kept.earlier(tmp_path, {"naturalness": judge}) == {"gme": own, "aesthetic": own}


@pytest.mark.parametrize(
    "held", [[1], [{"name": "gme"}], [{"name": 1} | source("", "x")._asdict()]]
)
def test_a_list_of_who_was_asked_that_is_none_is_named(held, tmp_path):
    (tmp_path / kept.FILE).write_text(json.dumps(held))
    with pytest.raises(ValueError, match="sources.json is not as this program writes it .*remove"):
        kept.earlier(tmp_path, {})


def test_it_is_named_before_any_scorer_starts(data, videos):
    row = videos.parent / "out/low"
    row.mkdir(parents=True)
    (row / kept.FILE).write_text("[1]")
    with pytest.raises(ValueError, match="low/sources.json is not as this program writes it"):
        asked(data, videos.parent / "out", f"--videos={videos}")


def test_what_keeps_a_sidecars_numbers_from_the_leaderboard():
    assert scorers.objections("flow", "paper", "raft") == ()
    assert scorers.objections("gme", "paper", "of 7B") == ()
    (why,) = scorers.objections("gme", "paper", "of 2B")
    assert why == "gme: the leaderboard's model is the 7B one, here: of 2B"
    stand_ins, once = scorers.objections("naturalness", "open", "")
    assert stand_ins.startswith("preset open: stand-ins") and "one grade of the sidecar's" in once
    sources = {name: Source("open", "1", "", name, (stand_ins,)) for name in ("gme", "flow")}
    assert scorers.not_comparable(sources) == [stand_ins]
