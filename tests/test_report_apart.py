"""What of several runs does not compare, and why: each number by what it hangs on."""

import json

import pytest
import two_runs
from report_page import Page

from evoid_jax import proof, triples
from evoid_jax.report import against, apart, compare, every, folder, rows, settings_table, shelf

DASH = "\N{EN DASH}"
BLANK = f"{DASH} the totals do not compare {DASH} {DASH}"


@pytest.fixture
def runs(finished_run, tmp_path):
    return two_runs.fill(tmp_path, finished_run, names="ab")


def words(html):
    return " ".join(Page(html).text.split())


def loaded(paths):
    return list(map(folder.load, paths))


def table(paths):
    """Return the words of the table of runs against each other."""
    return words(against.each_other(loaded(paths), ["a", "b"]))


def said(paths):
    return " ".join(against.cautions(loaded(paths), ["a", "b"]))


def change_start(run, **values):
    made = json.loads((run / "run.json").read_text())
    made["starts"][-1] |= values
    two_runs.change(run / "run.json", **made)


def change_reward(run, **values):
    made = json.loads((run / "run.json").read_text())
    made["starts"][-1]["rewards"][2] |= values
    two_runs.change(run / "run.json", **made)


def change_prior(run, **prior):
    """Change priors wherever a run has them."""
    for name in ("summary.json", triples.FILE):
        held = json.loads((run / name).read_text())
        two_runs.change(run / name, prior=held["prior"] | prior)


def test_with_other_priors_the_judge_and_the_monitors_still_compare(runs):
    whole = table(runs)
    change_prior(runs[1], gme=0.5)
    assert apart.why(*loaded(runs)) == (["other priors of gme"], [], [])
    assert "The totals of a and b do not compare: other priors of gme." in said(runs)
    blank = table(runs)
    assert f"b over a {BLANK}" in blank
    # from the judge's wins on, every cell is as before
    wins = every.rates(triples.between(*(triples.read(run) for run in runs)))["judge"]
    rest = f"{wins.rate:.0%} {wins.low:.0%} to {wins.high:.0%}"
    tail = whole.partition("wins by the judge")[2]
    assert tail.partition(rest)[1] and blank.endswith(rest + tail.rpartition(rest)[2])


def test_other_models_leave_the_judge_alone_to_compare(runs):
    change_reward(runs[1], sources=[{"preset": "open", "version": "v2", "sha256": "cd"}])
    told = "The totals and monitors of a and b do not compare: other models gave gme."
    assert told in said(runs)
    assert f"b over a {BLANK}" in table(runs) and table(runs).endswith(f"{DASH} {DASH} 64")


def test_a_reward_that_one_run_lacks_leaves_judge_and_monitors(runs):
    change_reward(runs[1], name="clip")
    summary = json.loads((runs[1] / "summary.json").read_text())
    prior = {("clip" if name == "gme" else name): x for name, x in summary["prior"].items()}
    two_runs.change(runs[1] / "summary.json", prior=prior)
    lines = (runs[1] / "metrics.jsonl").read_text().replace('"gme"', '"clip"')
    (runs[1] / "metrics.jsonl").write_text(lines)
    assert apart.why(*loaded(runs)) == (["one has no clip, gme"], [], [])
    assert f"b over a {BLANK}" in table(runs)


def test_what_weighs_in_neither_proof_keeps_nothing_from_comparing(runs):
    whole = table(runs)
    change_prior(runs[1], evoscore=0.0)  # a proof that measures it besides
    assert apart.why(*loaded(runs)) == ([], [], []) and table(runs) == whole
    for run in runs:
        change_prior(run, gme=0.0)
    change_reward(runs[1], sources=[{"preset": "open", "version": "v2", "sha256": "cd"}])
    assert apart.why(*loaded(runs)) == ([], [], []) and DASH not in table(runs)
    for run in runs:
        change_prior(run, vqscore=0.0)
    change_start(runs[1], judge={"model": "Qwen", "address": "x"})
    assert apart.why(*loaded(runs)) == ([], ["another judge"], [])
    assert "The judge's grades of a and b do not compare: another judge." in said(runs)
    change_prior(runs[0], evoscore=0.1)  # weighs in one of them
    change_prior(runs[0], gme=0.1)
    total, *_ = apart.why(*loaded(runs))
    assert total == ["other priors of gme, evoscore", "other models gave gme", "another judge"]


def test_monitors_hang_on_the_service_that_measured_them_alone(runs):
    by = {"identity": "tiny, tiny-1", "motion": "tiny, tiny-1"}
    for run in runs:
        two_runs.change(run / "summary.json", monitored_by=by)
    change_reward(runs[1], sources=[{"preset": "open", "version": "v2", "sha256": "cd"}])
    assert apart.why(*loaded(runs)) == (["other models gave gme"], [], [])
    change_reward(
        runs[1], **json.loads((runs[0] / "run.json").read_text())["starts"][-1]["rewards"][2]
    )
    two_runs.change(runs[1] / "summary.json", monitored_by=by | {"motion": "open, open-1"})
    assert apart.why(*loaded(runs)) == ([], [], ["other services measured motion"])
    assert "The monitors of a and b do not compare: other services measured motion." in said(runs)
    assert table(runs).endswith(f"{DASH} {DASH} 64")


def test_another_judge_is_told_and_the_monitors_still_compare(runs):
    before = table(runs)
    change_start(runs[1], judge={"model": "Qwen", "address": "x"})
    one, other = loaded(runs)
    assert apart.why(one, other) == (["another judge"], ["another judge"], [])
    assert apart.why(one, one) == ([], [], [])
    assert "The totals and judge's grades of a and b do not compare: another judge." in said(runs)
    assert f"b over a {BLANK} {DASH} +" in table(runs)
    assert table(runs).split()[-7:] == before.split()[-7:]  # a monitor and the count
    (runs[1] / "run.json").unlink()  # an older run: who scored is not recorded
    assert apart.why(one, folder.load(runs[1])) == ([], [], [])


def test_a_judge_that_is_asked_otherwise_is_told(finished_run, tmp_path):
    three = two_runs.fill(tmp_path, finished_run)
    changed = {"judge_rubric": "mine.toml", "judge_frames": 4}
    reward = {"judge_frames": 8, "judge_rubric": "", "judge_side": 512}
    for run, more in zip(three, ({}, changed, {}), strict=True):
        two_runs.change(run / "config.json", reward=reward | more)
    one, other, like = loaded(three)
    why = ["the judge was asked otherwise (judge_frames, judge_rubric)"]
    assert apart.why(one, other) == (why, why, [])
    assert apart.why(one, like) == ([], [], [])


def test_where_nothing_compares_nothing_is_shown(runs):
    change_reward(runs[1], sources=[{"preset": "open", "version": "v2", "sha256": "cd"}])
    change_start(runs[1], judge={"model": "Qwen", "address": "x"})
    assert "No two of these runs share scored triples that compare" in table(runs)


@pytest.mark.parametrize(
    ("more", "told", "noise"),
    [
        ({"model": "Wan"}, "started from different models (model)", False),
        ({"lora": {"init": "old"}}, "started from different models (lora.init)", True),
        ({"video": {"width": 96}}, "made their videos in different ways (video.width)", False),
        ({"video": {"fps": 16}}, "made their videos in different ways (video.fps)", True),
        ({"rollout": {"steps": 9}}, "made their videos in different ways (rollout.steps)", True),
        ({"guidance": {"proof": 5.0}}, "in different ways (guidance.proof)", True),
        ({"data": {"source": "", "dir": "x"}}, "different data (data.source, data.dir)", True),
        ({"data": {"pairs": 9}}, "", True),
        ({"rollout": {"videos_per_device": 2}}, "", True),  # how much at once changes nothing
        ({"rollout": {"split": True}}, "", True),
    ],
)
def test_runs_that_differ_in_more_than_training_are_told(runs, tmp_path, more, told, noise):
    plain = {
        "video": {"frames": 9, "height": 64, "width": 64, "fps": 8},
        "rollout": {"steps": 20, "videos_per_device": 1, "split": False},
        "guidance": {"proof": 1.0},
        "lora": {"init": ""},
        "data": {"source": "portraits", "dir": "", "pairs": 4},
    }
    for run in runs:
        two_runs.change(run / "config.json", **plain)
    assert "The runs" not in said(runs) and apart.same_noise(loaded(runs))
    held = {name: plain.get(name, {}) | part for name, part in more.items() if name != "model"}
    two_runs.change(runs[1] / "config.json", **(held or more))
    caution = said(runs)
    assert (told in caution) if told else ("The runs" not in caution)
    compare.write(runs, tmp_path / "out")
    text = words((tmp_path / "out/compare.html").read_text("utf-8"))
    assert ("same face, prompt and noise" in text) == noise
    assert ("same face, prompt and seed (other settings" in text) != noise


def test_settings_that_an_older_run_does_not_have_are_taken_as_equal(runs):
    two_runs.change(runs[1] / "config.json", video={"width": 64}, rollout={"steps": 20})
    assert settings_table.differing([run.config for run in loaded(runs)])
    assert "The runs" not in said(runs)
    (runs[0] / "config.json").unlink()
    assert "The runs" not in said(runs) and apart.same_noise(loaded(runs))


def cards(paths):
    held = loaded(paths)
    same = rows.matched(held)
    return Page(rows.section(same, held, ["a", "b"], shelf.inside, kept=len(same))).text


def test_a_base_that_all_runs_have_shows_the_total_that_all_agree_on(runs):
    (sample,) = (one for one in folder.load(runs[0]).samples if one.entry["k"] == 2)
    base, evolved = sample.total
    text = " ".join(cards(runs).split())
    assert f"base {base:.3f} a {evolved:.3f} ({evolved - base:+.3f})" in text
    assert rows.APART not in text
    change_prior(runs[1], gme=2.0)
    text = " ".join(cards(runs).split())
    assert text.count(f"base {rows.APART}") == 6 and f"base {base:.3f}" not in text
    # every run then has its own: what stands on the card adds up
    assert f"a {base:.3f} → {evolved:.3f} ({evolved - base:+.3f})" in text
    (other,) = (one for one in folder.load(runs[1]).samples if one.entry["k"] == 2)
    start, end = other.total
    assert f"b {start:.3f} → {end:.3f} ({end - start:+.3f})" in text and start != base


def test_a_base_shows_the_total_of_whichever_run_has_one(runs):
    base, _ = folder.load(runs[1]).samples[2].total
    two_runs.without_scores(runs[0])
    assert f"base {base:.3f} a b " in " ".join(cards(runs).split())


def test_a_base_without_any_total_shows_none(runs):
    for run in runs:
        two_runs.without_scores(run)
    text = " ".join(cards(runs).split())
    assert "base a b" in text and rows.APART not in text


def heads(paths):
    colours = {"a": "x", "b": "y"}
    return words(against.runs(loaded(paths), ["a", "b"], colours))


def test_the_judge_is_called_a_reward_only_of_the_runs_that_learned_from_it(runs):
    sentence = "The judge's grade is one of the rewards"
    assert f"{sentence}." in heads(runs) and sentence in every.section(folder.load(runs[0]))
    summary = json.loads((runs[1] / "summary.json").read_text())
    others = [name for name in summary["rewarded"] if name != "vqscore"]
    two_runs.change(runs[1] / "summary.json", rewarded=others)
    assert f"{sentence} of a." in heads(runs)
    assert sentence not in every.section(folder.load(runs[1]))
    two_runs.change(runs[0] / "summary.json", rewarded=others)
    assert sentence not in heads(runs)


def test_without_a_judge_nothing_is_said_of_its_grade(runs):
    for run in runs:
        held = json.loads((run / triples.FILE).read_text())
        for triple in held["triples"]:
            triple["base"]["vqscore"] = triple["evolved"]["vqscore"] = None
        two_runs.change(run / triples.FILE, **held)
    assert "one of the rewards" not in heads(runs)
    assert "one of the rewards" not in every.section(folder.load(runs[0]))


def keep_people(run, count):
    """Keep the scores of some people, who are not the first: that one lacks the judge's grade."""
    held = json.loads((run / triples.FILE).read_text())
    two_runs.change(run / triples.FILE, triples=held["triples"][2 : 2 + 2 * count])


@pytest.mark.parametrize(("people", "colour"), [(8, "up"), (7, "flat"), (2, "flat")])
def test_win_rates_have_a_colour_from_eight_people_on(runs, people, colour):
    assert proof.ENOUGH == 8
    for run in runs:
        keep_people(run, people)
    rate = every.rates(folder.load(runs[0]).scores)["total"]
    assert rate.rate == 1 and rate.low > 0 and rate.identities == people
    cell = f"<b class='{colour}'>100%</b>"
    assert cell in against.runs(loaded(runs), ["a", "b"], {"a": "x", "b": "y"})


@pytest.mark.parametrize("lost", ["gme", "vqscore"])
def test_win_rates_have_no_colour_where_what_they_count_is_missing(runs, lost):
    held = json.loads((runs[1] / triples.FILE).read_text())
    for triple in held["triples"]:
        triple["evolved"]["vqscore"] = 0.9  # the judge has a winner
    for triple in held["triples"][:30]:
        triple["evolved"][lost] = None
    two_runs.change(runs[1] / triples.FILE, **held)
    for html, place in (
        (against.each_other(loaded(runs), ["a", "b"]), 0),
        (against.runs(loaded(runs), ["a", "b"], {"a": "x", "b": "y"}), 1),
    ):
        line = html.split("<tr>")[-1] if place else html
        kind = lambda column, html=line: html.split(f"data-head='{column}'><b class='")[1][:4]
        assert kind("wins by total") == "flat"
        assert kind("wins by the judge").startswith("flat" if lost == "vqscore" else "up")
