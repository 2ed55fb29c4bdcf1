"""The blind study: what its page may tell, and what is made of the answers."""

import base64
import hashlib
import json
import os
import shutil

import made_up
import pytest
import two_runs
from report_page import Page

from evoid_jax.report import choices, compare, folder, page, shelf, study

EVIL = """"><script>alert(1)</script><img src=x onerror='alert(2)'>"""


@pytest.fixture
def workdir(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def answers(trials, pick, rater="one", questions=tuple(study.QUESTIONS)):
    """Answer every question of every trial; pick(trial) names the chosen video, or None."""
    rows = []
    for trial in trials:
        left, right = trial.videos
        rows += [
            {"trial": trial.name, "question": question, "left": left, "right": right}
            | {"choice": pick(trial), "seconds": 1.5}
            for question in questions
        ]
    return {"schema": 1, "study": study.name(trials), "rater": rater, "answers": rows}


def of(arm):
    """Return a choice of one arm's video."""
    return lambda trial: next(mark for mark, name in trial.arms[0].items() if name == arm)


def held(place):
    return Page((place / "blind/blind.html").read_text("utf-8"))


def test_a_run_asks_about_base_and_evolved_of_every_kept_triple(workdir):
    trials = study.of_run(folder.load(workdir))
    assert len(trials) == 6
    for trial in trials:
        assert list(trial.videos) == sorted(trial.videos) and len(trial.videos) == 2
        assert list(trial.arms[0].values()) == ["base", "evolved"]
        for mark, file in trial.videos.items():
            assert shelf.fingerprint(file) == mark and trial.arms[0][mark] in file.name


def test_equal_videos_leave_nothing_to_choose(workdir):
    shutil.copy(workdir / "samples/heldout_00_base.mp4", workdir / "samples/heldout_00_evolved.mp4")
    assert len(study.of_run(folder.load(workdir))) == 5
    for k in range(6):
        (workdir / f"samples/heldout_{k:02d}_base.mp4").unlink()
    with pytest.raises(ValueError, match="nothing|no blind page to write"):
        page.write_blind(workdir)


def test_runs_are_asked_about_two_by_two(finished_run, tmp_path):
    runs = [folder.load(run) for run in two_runs.fill(tmp_path, finished_run)]
    trials = study.of_runs(runs, ["a", "b", "c"])
    pairs = [tuple(arms.values()) for trial in trials for arms in trial.arms]
    # the first sample is one and the same video in all three
    assert {pair: pairs.count(pair) for pair in pairs} == {
        ("a", "b"): 5,
        ("a", "c"): 5,
        ("b", "c"): 5,
    }
    again = study.of_runs(runs[::-1], ["c", "b", "a"])
    assert study.name(again) == study.name(trials)


def test_a_trial_of_equal_arms_counts_for_both(finished_run, tmp_path):
    paths = two_runs.fill(tmp_path, finished_run)
    shutil.copy(paths[1] / "samples/heldout_01_evolved.mp4", paths[2] / "samples")
    trials = study.of_runs(list(map(folder.load, paths)), ["a", "b", "c"])
    (double,) = (trial for trial in trials if len(trial.arms) == 2)
    assert [tuple(arms.values()) for arms in double.arms] == [("a", "b"), ("a", "c")]


@pytest.mark.parametrize("mode", ["inside", "beside"])
def test_the_page_does_not_tell_which_is_which(workdir, mode):
    page.write_blind(workdir, mode)
    whole = (workdir / "blind/blind.html").read_text("utf-8")
    text = whole.split("</style>")[1].lower()
    data = json.loads(held(workdir).all("main")[0]["data-study"])
    for word in ("evolved", "heldout", "samples/", str(workdir), "person 300"):
        assert word not in text
    assert '"base"' not in text and "base video" not in text
    assert len(data["trials"]) == 6 and len(data["questions"]) == 3
    assert list(data["files"]) == sorted(data["files"])
    for trial in data["trials"]:
        assert trial.keys() == {"name", "prompt", "photo", "videos"}
        # the order of fingerprints, not that of the arms
        assert trial["videos"] == sorted(trial["videos"]) and trial["photo"] in data["files"]
        for mark in trial["videos"]:
            if mode == "beside":
                assert data["files"][mark] == f"media/{mark}.mp4"
                assert (workdir / "blind" / data["files"][mark]).is_file()
            else:
                assert data["files"][mark].startswith("data:video/mp4;base64,")
    assert page.write_blind(workdir, mode).read_text("utf-8") == whole  # twice the same


def test_the_page_holds_each_file_once_however_many_trials_show_it(finished_run, tmp_path):
    """With four runs each evolved video stands in three trials, each photo in six."""
    runs = [folder.load(run) for run in two_runs.fill(tmp_path, finished_run, "abcd")]
    trials = study.of_runs(runs, "abcd")
    study.write(tmp_path, trials, "inside")
    data = json.loads(held(tmp_path).all("main")[0]["data-study"])
    named = {mark for trial in trials for mark in trial.videos}
    named |= {shelf.fingerprint(trial.photo) for trial in trials}
    assert data["files"].keys() == named and len(set(data["files"].values())) == len(named)
    bodies = [base64.b64decode(src.partition(",")[2]) for src in data["files"].values()]
    assert {hashlib.sha256(body).hexdigest()[:16] for body in bodies} == named
    text = (tmp_path / "blind/blind.html").read_text("utf-8")
    assert all(text.count(src) == 1 for src in data["files"].values())


def test_the_first_video_of_a_trial_is_of_either_arm(finished_run, tmp_path):
    trials = study.of_runs(
        list(map(folder.load, two_runs.fill(tmp_path, finished_run))), ["a", "b", "c"]
    )
    firsts = [next(iter(trial.videos)) == next(iter(trial.arms[0])) for trial in trials]
    assert 0 < sum(firsts) < len(firsts)


def test_hostile_prompts_are_data(workdir):
    entries = json.loads((workdir / "samples/heldout.json").read_text())
    for entry in entries:
        entry["prompt"] = EVIL
    (workdir / "samples/heldout.json").write_text(json.dumps(entries))
    page.write_blind(workdir)
    blind = held(workdir)
    assert [len(blind.all(tag)) for tag in ("script", "img", "main")] == [1, 0, 1]
    data = json.loads(blind.all("main")[0]["data-study"])
    assert data["trials"][0]["prompt"] == EVIL
    assert "default-src 'none'" in blind.all("meta")[1]["content"]


def test_answers_become_shares_with_exact_intervals(workdir):
    trials = study.of_run(folder.load(workdir))
    told = [answers(trials, of("evolved"), "one"), answers(trials, of("base"), "two")]
    told[0]["answers"][3]["choice"] = None  # skipped
    (workdir / "blind").mkdir()
    for i, made in enumerate(told):
        (workdir / f"blind/answers_{i}.json").write_text(json.dumps(made))
    counted = choices.counted(workdir, trials, ())
    assert (counted.answers, counted.skipped, counted.foreign, counted.raters) == (35, 1, 0, 2)
    assert {p.question: (p.wins, p.answers) for p in counted.preferences} == {
        "identity": (5, 11),
        "motion": (6, 12),
        "quality": (6, 12),
    }
    assert {(p.first, p.second) for p in counted.preferences} == {("base", "evolved")}
    page.write(workdir)
    text = " ".join(Page((workdir / "report.html").read_text()).text.split())
    low, high = choices.interval(6, 12)
    assert f"evolved over base motion 50% {low:.0%} to {high:.0%} 12 2" in text
    assert "35 answers of 2 people, 1 skipped" in text


def test_what_was_saved_last_counts_whatever_its_file_is_called(workdir):
    """Browsers call a second file "answers_one (1).json", which comes before the first by name."""
    trials = study.of_run(folder.load(workdir))
    early, late = (answers(trials, of(arm), "one") for arm in ("base", "evolved"))
    early["saved"], late["saved"] = "2026-01-31T12:00:00.000Z", "2026-01-31T12:30:00.000Z"
    (workdir / "blind").mkdir()
    wins = lambda: {p.wins for p in choices.counted(workdir, trials, ()).preferences}
    names = "answers_one.json", "answers_one (1).json"
    for first, second in (names, names[::-1]):
        (workdir / "blind" / first).write_text(json.dumps(early))
        (workdir / "blind" / second).write_text(json.dumps(late))
        assert wins() == {6}
    del early["saved"], late["saved"]  # of an older page: the files' own dates say it
    for name, made, date in ((names[0], late, 2e9), (names[1], early, 1e9)):
        (workdir / "blind" / name).write_text(json.dumps(made))
        os.utime(workdir / "blind" / name, (date, date))
    assert wins() == {6}


def test_answers_that_were_taken_back_do_not_count(workdir):
    """One saves after 15 answers, goes back ten, and saves again: five are left."""
    trials = study.of_run(folder.load(workdir))
    early, late = (answers(trials, of("base"), "one") for _ in range(2))
    early |= {"saved": "2026-01-31T12:00:00.000Z", "answers": early["answers"][:15]}
    late |= {"saved": "2026-01-31T12:30:00.000Z", "answers": late["answers"][:5]}
    other = answers(trials, of("base"), "two")
    (workdir / "blind").mkdir()
    for name, made in (("one", early), ("one (1)", late), ("two", other)):
        (workdir / f"blind/answers_{name}.json").write_text(json.dumps(made))
    counted = choices.counted(workdir, trials, ())
    assert (counted.answers, counted.raters) == (5 + 18, 2)
    # the same person's answers of another study are no earlier state of this one
    late["study"] = "another"
    (workdir / "blind/answers_one (1).json").write_text(json.dumps(late))
    assert choices.counted(workdir, trials, ()).answers == 15 + 18


def test_an_answer_to_a_question_that_nobody_asks_is_left_out(workdir):
    trials = study.of_run(folder.load(workdir))
    (workdir / "blind").mkdir()
    made = answers(trials, of("base"), questions=("identity", "colour"))
    (workdir / "blind/answers_x.json").write_text(json.dumps(made))
    counted = choices.counted(workdir, trials, ())
    assert (counted.answers, counted.foreign) == (6, 6)


def test_the_interval_is_clopper_and_pearsons():
    # Clopper and Pearson 1934: with no success of n the upper end is 1 - 0.025^(1/n)
    assert choices.interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)), rel=1e-12)
    assert choices.interval(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0), rel=1e-12)
    # 8 of 10, as in the tables: 0.4439 to 0.9748
    assert choices.interval(8, 10) == pytest.approx((0.4439, 0.9748), abs=5e-5)
    low, high = choices.interval(3, 17)
    assert choices.interval(14, 17) == pytest.approx((1 - high, 1 - low), rel=1e-9)


def test_an_answer_given_twice_counts_once_and_the_later_one(workdir):
    trials = study.of_run(folder.load(workdir))
    first, second = (answers(trials, of(arm), "one") for arm in ("base", "evolved"))
    read = [choices.Answer("one", r["trial"], r["question"], r["left"], r["choice"])
            for made in (first, second) for r in made["answers"]]  # fmt: skip
    counted = choices.tally(trials, read)
    assert counted.answers == 18 and all(p.wins == 6 for p in counted.preferences)


def test_answers_about_other_videos_are_left_out_and_told(workdir, tmp_path):
    trials = study.of_run(folder.load(workdir))
    read = lambda made: [
        choices.Answer(made["rater"], r["trial"], r["question"], r["left"], r["choice"])
        for r in made["answers"]
    ]
    told = read(answers(trials, of("evolved")))
    counted = choices.tally(trials[:4], told)
    assert (counted.answers, counted.foreign) == (12, 6)
    assert "6 about other videos left out" in choices.section(counted)
    strange = choices.tally(trials, [one._replace(choice="0123456789abcdef") for one in told])
    assert (strange.answers, strange.foreign, strange.preferences) == (0, 18, [])
    assert "0 answers of 0 people, 18 about other videos" in choices.section(strange)


def test_answers_that_lie_there_do_not_stop_a_page_and_those_given_must_fit(workdir, tmp_path):
    """A run that is proved again makes other videos."""
    made = answers(study.of_run(folder.load(workdir)), of("base"))
    for k in range(6):
        (workdir / f"samples/heldout_{k:02d}_evolved.mp4").write_bytes(made_up.mp4(12 + k))
    (workdir / "blind").mkdir()
    (workdir / "blind/answers_x.json").write_text(json.dumps(made))
    page.write(workdir)
    assert "18 about other videos left out" in Page((workdir / "report.html").read_text()).text
    with pytest.raises(
        ValueError, match=r"no answer in .*answers_x\.json is about videos of these"
    ):
        page.write(workdir, answers=[workdir / "blind/answers_x.json"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        page.write(workdir, answers=[tmp_path / "nowhere.json"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 9}, "has schema 9, expected 1"),
        ({"rater": 3}, "a rater's name"),
        ({"study": None}, "a study's name"),
        ({"answers": {}}, "a list of answers"),
        ({"answers": [{"trial": "x"}]}, "answer 0 does not name"),
        ({"answers": ["<script>"]}, "answer 0 does not name"),
        (
            {
                "answers": [
                    {"trial": "t", "question": "q", "left": "l", "right": "r", "choice": "x"}
                ]
            },
            "one of them",
        ),
        (
            {"answers": [{"trial": "t", "question": "q", "left": [], "right": "r", "choice": []}]},
            "one of them",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(workdir, tmp_path, change, words):
    made = answers(study.of_run(folder.load(workdir)), of("base")) | change
    (tmp_path / "mine.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"mine\.json") as caught:
        choices.read(tmp_path / "mine.json")
    assert words in str(caught.value)


def test_a_comparison_reads_answers_that_are_given(finished_run, tmp_path):
    paths = two_runs.fill(tmp_path, finished_run, "ab")
    trials = study.of_runs(list(map(folder.load, paths)), ["a", "b"])
    (tmp_path / "mine.json").write_text(json.dumps(answers(trials, of("b"))))
    compare.write(paths, tmp_path / "out", answers=[tmp_path / "mine.json"])
    text = " ".join(Page((tmp_path / "out/compare.html").read_text()).text.split())
    low, _ = choices.interval(5, 5)
    assert f"b over a identity 100% {low:.0%} to 100% 5 1" in text
