"""Folders of videos into rows of a table: what is written, what is missing, what is asked again."""

import hashlib
import json
import re

import numpy as np
import pytest
from evaluations import KEYS, LEVELS, NAMES, benchmark, clips, graded, judge_of, read, run, sidecar
from servers import serve

from evoid_jax.evaluate import cases, published, upstream
from evoid_jax.rewards import rubrics


@pytest.fixture
def data(tmp_path):
    return benchmark(tmp_path / "benchmark")


def test_a_folder_becomes_the_benchmarks_files_and_its_total(data, tmp_path):
    fake, folder = sidecar(), clips(tmp_path / "mine", LEVELS)
    with serve(fake.app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    row = tmp_path / "out/mine"
    assert read(row, "metrics/facesim.json") == {
        key: {"cur_score": pytest.approx(share), "arc_score": pytest.approx(share)}
        for key, share in zip(KEYS, (0.2, 0.4, 0.6), strict=True)
    }
    assert read(row, "metrics/naturalscore_1.json") == dict(
        zip(KEYS, ("1.8", "2.6", "3.4"), strict=True)
    )
    assert read(row, "metrics/motion_amplitude.json")[KEYS[2]] == {"motion_fb": pytest.approx(0.06)}
    assert read(row, "metrics/naturalscore_3.json") == read(row, "metrics/naturalscore_1.json")
    written = sorted(file.name for file in (row / "metrics").iterdir())
    assert written == sorted(upstream.file_names())
    total = read(row, "total.json")
    # all parts are .4 in the mean, but for the motion's .04
    assert total["total_score"] == pytest.approx(0.97 * 0.4 + 0.03 * 0.04, abs=1e-6)
    assert total["missing"] == [] and total["videos"] == 3
    assert re.search(r"\| mine \(not comparable\) +\| 38.92 +\| 40.00 ", text)
    assert (tmp_path / "out/table.md").read_text() == text
    for one in published.ROWS:
        digits = 2 if one.source == published.LEADERBOARD else 1
        total, facesim = (f"{x:.{digits}f}" for x in (one.total, one.metrics["facesim_cur"]))
        line = rf"\| {one.name} +\| {total} .*\| {facesim} .*{re.escape(one.source)}"
        assert re.search(line, text)


def test_a_second_time_nothing_is_asked_and_afterwards_only_what_is_missing(data, tmp_path):
    """What was not had is asked for again, and of that video alone; a changed video is anew."""
    fake, folder = sidecar(lost={("gme", 100)}), clips(tmp_path / "mine", LEVELS)
    with serve(fake.app()) as url:
        again = lambda: run(
            data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}"
        )
        text = again()
        lines = (tmp_path / "out/mine/scores.jsonl").read_text().splitlines()
        assert len(fake.batches) == 3 and len(lines) == 3 * len(NAMES)
        assert "- mine: GME is missing in 1 video: out of memory" in text
        assert read(tmp_path / "out/mine", "total.json")["videos_with_metric"]["gme_score"] == 2
        fake.change = graded()
        assert "missing" not in again()
        assert [batch.rewards for batch in fake.batches[3:]] == [["gme"]]
        again()
        assert len(fake.batches) == 4
        clips(folder, (150,), keys=KEYS[:1])
        again()
        assert [batch.rewards for batch in fake.batches[4:]] == [list(NAMES)]


def test_a_video_that_is_not_there_and_one_that_is_none_are_told_of(data, tmp_path):
    folder = clips(tmp_path / "mine", LEVELS[:1], keys=KEYS[:1])
    (folder / f"{KEYS[1]}.mp4").write_bytes(b"no video")
    with serve(sidecar().app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    total = read(tmp_path / "out/mine", "total.json")
    reasons = {fault["key"]: fault["reason"] for fault in total["missing"]}
    assert reasons[KEYS[2]] == f"there is no {KEYS[2]}.mp4"
    assert "is not a video that can be decoded" in reasons[KEYS[1]]
    assert len(total["missing"]) == 2 * len(upstream.METRICS)
    assert "*" in text and f"there is no {KEYS[2]}.mp4" in text and "| 1 of 3" in text


def test_a_photo_without_a_face_leaves_its_video_out_and_is_told_of(data, tmp_path):
    """The benchmark leaves the key out of facesim.json, and says nothing."""
    why = "no face was found in the person's photos"
    lost = {("curricularface", 50), ("arcface", 50)}
    folder = clips(tmp_path / "mine", LEVELS)
    with serve(sidecar(lost=lost, blame=why).app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    row = tmp_path / "out/mine"
    assert list(read(row, "metrics/facesim.json")) == list(KEYS[1:])
    total = read(row, "total.json")
    assert total["missing"] == [{"key": KEYS[0], "metric": "facesim_cur", "reason": why}]
    assert (
        total["facesim_cur"] == pytest.approx(0.5)
        and f"FaceSim is missing in 1 video: {why}" in text
    )


def test_a_metric_that_nobody_measures_gives_no_total(data, tmp_path, capsys):
    folder = clips(tmp_path / "mine", LEVELS)
    names = [name for name in NAMES if name not in ("gme", "naturalness")]
    with serve(sidecar(names=names).app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    total = read(tmp_path / "out/mine", "total.json")
    assert total["total_score"] is None and total["gme_score"] is None
    assert total["aes_score"] == pytest.approx(0.4)
    assert "- mine: no total, since no video has GME, naturalness" in text
    assert "no total: nobody measures gme_score" in capsys.readouterr().out
    assert not (tmp_path / "out/mine/metrics/gmescore.json").exists()


def test_another_preset_is_labelled_everywhere(data, tmp_path, capsys):
    """Its scores are put on the benchmark's scales: an `aesthetic` of .4 is no grade below 4."""
    folder, fake = clips(tmp_path / "mine", LEVELS), sidecar("open")
    numbers = fake.change

    def of_another_unit(reply):
        for name, column in numbers(reply)["scores"].items():
            if name != "flow":  # which is the benchmark's own in every preset
                column["raw"] = [0.001]
        return reply

    fake.change = of_another_unit
    with serve(fake.app()) as url:
        text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    row = tmp_path / "out/mine"
    assert not (row / "metrics").exists()
    aesthetic = read(row, "metrics_not_comparable/aesthetic_score.json")
    assert aesthetic[KEYS[1]] == {"aes_score": pytest.approx(4 + 3 * 0.4)}
    total = read(row, "total.json")
    assert total["total_score"] == pytest.approx(0.97 * 0.4 + 0.03 * 0.04, abs=1e-6)
    assert total["comparable_with_the_leaderboard"] is False
    assert total["not_comparable_because"][0].startswith("preset open: stand-ins")
    assert (
        "mine (not comparable)" in text
        and "not comparable with the leaderboard: preset open" in text
    )
    assert "NOT COMPARABLE with the leaderboard: preset open" in capsys.readouterr().out
    assert read(tmp_path / "out", "table.json")["rows"][0] == total
    with serve(sidecar().app()) as url:  # the same row by the benchmark's own models
        run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    assert len(list((row / "metrics").iterdir())) == len(upstream.file_names())
    assert not list((row / "metrics_not_comparable").iterdir())


def test_the_judge_grades_naturalness_three_times_and_evoscore(data, tmp_path):
    folder, fake = (
        clips(tmp_path / "mine", LEVELS),
        judge_of(natural=(3, 4, "no", "no") * 3 + (5,) * 3),
    )
    flags = [f"--videos={folder}", "--workers=1", "--reward.judge_model=fake"]
    with serve(sidecar().app()) as url, serve(fake.app()) as judge_url:
        flags += [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1"]
        text = run(data, tmp_path / "out", *flags)
        count = len(fake.asked)
        # of each video two grades, one that failed, which is asked for twice, and EvoScore
        assert count == 3 * 5
        run(data, tmp_path / "out", *flags)
        assert len(fake.asked) == count + 3 * 1  # the third grades are had now
    row = tmp_path / "out/mine"
    assert read(row, "metrics/naturalscore_1.json") == dict.fromkeys(KEYS, "3")
    assert read(row, "metrics/naturalscore_2.json") == dict.fromkeys(KEYS, "4")
    total = read(row, "total.json")
    assert total["evoscore"]["evoscore"] == pytest.approx(3 / 5.5)
    aspects = {"identity": 1, "prompt": 6 / 9, "technical": 3 / 9}
    assert {name: total["evoscore"][name] for name in aspects} == pytest.approx(aspects)
    assert read(row, "evoscore.json")[KEYS[0]]["technical"] == pytest.approx(3 / 9)
    assert sorted(file.name for file in (row / "metrics").iterdir()) == sorted(
        upstream.file_names()
    )
    assert (
        "a grade of naturalness is missing in 3 videos: the judge: " in text and "| 0.545 " in text
    )
    assert "naturalness: graded by fake, asked in our words; the leaderboard's is gpt-4o" in text
    shown = fake.texts(0)  # all five frames, with the times of the file's own rate
    assert shown[:2] == ["frame 1/5, t=0.00s", "frame 2/5, t=0.12s"]
    assert "reference photo of the person" not in shown and fake.asked[0]["temperature"] == 1


def test_the_benchmarks_question_to_its_own_model_compares(data, tmp_path, monkeypatch):
    """Of the benchmark's list, that is; here three drawn people stand for it."""
    monkeypatch.setattr(cases, "WHOLE", cases.asked(cases.read(data)))
    folder, fake = clips(tmp_path / "mine", LEVELS), judge_of(bare=True)
    fake.models = ("gpt-4o-2024-11-20",)
    own = "How real is it? Only return the score."
    monkeypatch.setattr(rubrics, "BENCHMARKS", hashlib.sha256(own.encode()).hexdigest())
    (tmp_path / "rubric.toml").write_text(f"naturalness = '{own}'")
    (tmp_path / "another.toml").write_text("naturalness = 'How real are the cats?'")
    flags = [f"--videos={folder}", "--reward.judge_model=gpt-4o-2024-11-20", "--noevoscore"]
    about = {"version": "1", "about": "fit to the prompt by gme-Qwen2-VL-7B-Instruct"}
    with serve(sidecar().app()) as url, serve(fake.app()) as judge_url:
        flags += [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1"]
        run(data, tmp_path / "out", *flags)
        (gme, why) = read(tmp_path / "out/mine", "total.json")["not_comparable_because"]
        assert "asked in our words" in why and "7B" in gme
        run(data, tmp_path / "out", *flags, f"--reward.judge_rubric={tmp_path}/another.toml")
        (_, why) = read(tmp_path / "out/mine", "total.json")["not_comparable_because"]
        assert "asked in the user's words" in why
        asked = len(fake.asked)
    seven = sidecar()
    with serve(seven.app()) as url, serve(fake.app()) as judge_url:
        seven.info["rewards"] = [{"name": name} | about for name in NAMES]
        flags[-2:] = [f"--reward.sidecars={url}", f"--reward.judge={judge_url}/v1"]
        flags.append(f"--reward.judge_rubric={tmp_path}/rubric.toml")
        text = run(data, tmp_path / "out", *flags)
        assert read(tmp_path / "out/mine", "total.json")["comparable_with_the_leaderboard"] is True
        assert "not comparable" not in text
        assert len(fake.asked) == asked + 9 and "response_format" not in fake.asked[-1]
        assert fake.texts(-1) == [own]  # no frame has a label
        run(data, tmp_path / "out", *flags, '--reward.judge_extra={"top_p": 0.5}')
        (why,) = read(tmp_path / "out/mine", "total.json")["not_comparable_because"]
        assert "asked with judge_extra or judge_expected" in why
        (folder / f"{KEYS[0]}.mp4").unlink()
        run(data, tmp_path / "out", *flags)
        assert read(tmp_path / "out/mine", "total.json")["not_comparable_because"] == [
            "missing: 1 of 3 videos lack a metric"
        ]
        clips(folder, LEVELS[:1], KEYS[:1])
        listed = read(data.parent, data.name)
        listed[KEYS[0]]["prompt"] += " Slowly."
        data.write_text(json.dumps(listed))
        run(data, tmp_path / "out", *flags)
    (why,) = read(tmp_path / "out/mine", "total.json")["not_comparable_because"]
    assert why == "the list: not the benchmark's own 60 keys, prompts and names of photos"


def test_several_folders_are_compared_in_pairs(tmp_path):
    """Twelve people; the second system is better by .2 in everything that is graded."""
    keys = [f"singleface_{k}" for k in range(12)]
    data = benchmark(tmp_path / "benchmark", keys)
    low = clips(tmp_path / "base", [50 + 50 * (k % 3) for k in range(12)], keys)
    high = clips(tmp_path / "better", [100 + 50 * (k % 3) for k in range(12)], keys)
    (high / f"{keys[0]}.mp4").unlink()
    with serve(sidecar().app()) as url:
        text = run(data, tmp_path / "out", f"--videos={low},{high}", f"--reward.sidecars={url}")
        changes = read(tmp_path / "out", "table.json")["changes"]["better"]
        turned = run(
            data,
            tmp_path / "out",
            f"--videos={low}",
            f"--reward.sidecars={url}",
            "--against=better",
        )
    assert changes["facesim_cur"]["mean"] == pytest.approx(0.2)
    assert changes["facesim_cur"]["ci95"] == pytest.approx([0.2, 0.2])
    assert changes["total_score"]["mean"] == pytest.approx(0.97 * 0.2 + 0.03 * 0.02, abs=1e-6)
    assert (changes["total_score"]["videos"], changes["total_score"]["people"]) == (11, 11)
    assert changes["evoscore"] == {"reason": "not measured"}
    assert (
        "## Change from base" in text and "+20.00 [+20.00, +20.00]" in text and "| 11, 11" in text
    )
    assert "## Change from better" in turned and "-20.00 [-20.00, -20.00]" in turned
    with pytest.raises(ValueError, match="--against=x is no row of .*; there are base, better"):
        run(data, tmp_path / "out", f"--metrics={tmp_path}/out/base/metrics", "--against=x")


def test_rows_of_other_models_are_not_compared_and_few_people_are_warned_of(data, tmp_path):
    one, two = clips(tmp_path / "one", LEVELS), clips(tmp_path / "two", LEVELS)
    three = clips(tmp_path / "three", (100, 150, 200))
    for folder, preset in ((one, "paper"), (two, "open"), (three, "paper")):
        with serve(sidecar(preset).app()) as url:
            text = run(data, tmp_path / "out", f"--videos={folder}", f"--reward.sidecars={url}")
    changes = read(tmp_path / "out", "table.json")["changes"]
    assert changes["two"]["total_score"] == {"reason": "by other models"}
    assert changes["three"]["total_score"]["people"] == 3
    assert "- fewer than 8 people (three)" in text and "two)" not in text


def test_metric_files_of_another_program_are_a_row(data, tmp_path):
    theirs = tmp_path / "theirs"
    held = {key: {"aes_score": 5.5} for key in (*KEYS, "faceobj_9")}
    parts = {"aesthetic_score": held, "gmescore": {key: {"gme_score": 0.5} for key in KEYS}}
    parts["facesim"] = {key: {"cur_score": 0.5, "arc_score": 0.4} for key in KEYS[:2]}
    parts["motion_smoothness"] = {key: {"motion_smoothness": 0.5} for key in KEYS}
    parts["motion_amplitude"] = {key: {"motion_fb": -0.5, "motion_lk": 1} for key in KEYS}
    parts["naturalscore_1"] = dict.fromkeys(KEYS, "3") | {KEYS[2]: "error"}
    upstream.write(theirs, parts)
    (theirs / "total_score.json").write_text('{"total_score": 1}')
    text = run(data, tmp_path / "out", f"--metrics={theirs}", "--name=vendor")
    total = read(tmp_path / "out/vendor", "total.json")
    assert total["total_score"] == pytest.approx(0.5)
    missing = {(fault["key"], fault["metric"]) for fault in total["missing"]}
    # of every video two of three grades
    assert missing == {(KEYS[2], "facesim_cur"), *((key, "natural_score") for key in KEYS)}
    assert "naturalscore_1.json has 'error'" in text
    assert "not merged: total_score.json" in text and "not merged: faceobj_9" in text
    assert "what measured them is not known here" in text
    again = run(data, tmp_path / "out", f"--metrics={theirs}", "--name=vendor")
    assert again == text


def test_two_videos_of_a_person_are_one_observation(tmp_path):
    """The interval is over people: with two of them it is wide though there are 16 videos."""
    keys = [f"singleface_{k}" for k in range(16)]
    data = benchmark(tmp_path / "benchmark", keys)
    listed = read(tmp_path / "benchmark", "list.json")
    for k, key in enumerate(keys):
        listed[key]["img_paths"] = [f"Images/{keys[k % 2]}.png"]
    data.write_text(json.dumps(listed))
    low = clips(tmp_path / "base", [50] * 16, keys)
    high = clips(tmp_path / "better", [50 + 50 * (k % 2) for k in range(16)], keys)
    with serve(sidecar().app()) as url:
        run(data, tmp_path / "out", f"--videos={low},{high}", f"--reward.sidecars={url}")
    change = read(tmp_path / "out", "table.json")["changes"]["better"]["facesim_cur"]
    assert change["mean"] == pytest.approx(0.1) and change["people"] == 2
    np.testing.assert_allclose(change["ci95"], [0, 0.2], atol=1e-6)
