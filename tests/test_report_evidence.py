"""What the page says its numbers rest on: people, rewards, judge, how the run was made."""

import json
import shutil
from collections import defaultdict

import made_up
import numpy as np
import pytest
from report_page import headline_kind, read, with_summary

from evoid_jax import proof
from evoid_jax.report import folder, origin
from evoid_jax.report import page as report
from evoid_jax.rewards import judge_record


def test_page_says_what_was_measured(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    assert "identities: 32 (unseen identities)" in read(workdir).text
    page = with_summary(workdir, heldout=proof.TRAINED)
    assert f"change of the total on {proof.TRAINED}" in page.text
    assert f"identities: 32 ({proof.TRAINED})" in page.text
    assert "better on training pairs, new seeds" in page.text
    assert "held-out" not in page.text.lower() and "unseen" not in page.text


def test_worse_run_is_called_worse(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    cases = {
        (-0.2, -0.1): ("is worse", "down"),
        (-0.1, 0.1): ("No clear difference", "flat"),
        (None, None): ("no interval", "flat"),
    }
    for ci95, (verdict, kind) in cases.items():
        page = with_summary(workdir, delta_total_ci95=ci95)
        assert verdict in page.text and headline_kind(page) == kind


def test_two_faces_give_no_green(tmp_path):
    workdir = made_up.fill(tmp_path, steps=2, samples=0)
    rng = np.random.default_rng(0)
    base_BM = rng.uniform(0.3, 0.5, (4, 2))
    few = proof.summary(
        names=("arcface", "gme"),
        prior_M=[1, 1],
        base_BM=base_BM,
        evolved_BM=base_BM + 0.1,
        cluster_B=["anna", "anna", "ben", "ben"],
        monitor_base={"motion": [0.5] * 4},
        monitor_evolved={"motion": [0.4] * 4},
        steps=2,
        seconds={},
        heldout=proof.TRAINED,
    )
    proof.write_json(workdir / "summary.json", few)
    report.write(workdir)
    page = read(workdir)
    assert headline_kind(page) == "flat"
    assert "No verdict: there were 2 identities" in page.text and "8 are needed" in page.text
    classes = {shape.get("class") for tag in ("circle", "line") for shape in page.all(tag)}
    assert "flat" in classes and not classes & {"up", "down", "range up", "range down"}
    assert "lower" not in page.text


def test_a_monitor_that_fell_is_named(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    summary = json.loads((workdir / "summary.json").read_text())
    rows, rewards = summary["monitor_delta"], summary["delta"]
    for ci95, named in (([-0.2, -0.1], True), ([-0.1, 0.1], False)):
        rows["identity"]["ci95"] = ci95
        rows["motion"]["ci95"] = [0.0, 0.1]
        page = with_summary(workdir, monitor_delta=rows)
        assert ("Possible reward hacking: arcface, " in page.text) == named
        assert ("and identity, not rewarded, fell." in page.text) == named
        # Where no reward rose, nothing was hacked; that the monitor fell is still to be known.
        still = {name: row | {"ci95": [-0.1, 0.1]} for name, row in rewards.items()}
        page = with_summary(workdir, monitor_delta=rows, delta=still)
        assert ("never rewarded, and lower: identity." in page.text) == named
        assert "hacking" not in page.text
        with_summary(workdir, delta=rewards)


def test_page_says_what_the_rewards_are(finished_run):
    text = read(finished_run).text
    assert "The rewards are small stand-ins" in text and "no language model" in text
    for words in (
        "preset tiny, version tiny-1, sha256 abababababab",
        "stand-in: small gme",
        "identity",
    ):
        assert words in text
    assert "quality" in text and "unknown" not in text


def test_a_reward_that_is_no_stand_in_is_not_called_one(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    made = json.loads((workdir / "run.json").read_text())
    (flow,) = (row for row in made["starts"][0]["rewards"] if row["name"] == "flow")
    flow["sources"][0]["about"] = "OpenCV Farneback"
    proof.write_json(workdir / "run.json", made)
    assert origin.stand_ins(folder.load(workdir)) == list(made_up.REWARDS)[:6]
    report.write(workdir)
    text = read(workdir).text
    assert "Some rewards are small stand-ins" in text and "outside of drawn portraits" in text


def test_stand_ins_for_real_faces_are_not_said_to_know_drawn_ones(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    made = json.loads((workdir / "run.json").read_text())
    for row in made["starts"][0]["rewards"]:
        for source in row["sources"]:
            source["preset"] = "open"
    proof.write_json(workdir / "run.json", made)
    report.write(workdir)
    text = read(workdir).text
    assert "None of their numbers compares with" in text and "drawn portraits" not in text


def test_models_that_are_no_stand_ins_get_no_such_note(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    made = json.loads((workdir / "run.json").read_text())
    for row in made["starts"][0]["rewards"]:
        row["sources"] = [{"preset": "open", "version": "v2", "about": "the published weights"}]
    made["starts"][0]["judge"] = {"model": "Qwen/Qwen3-VL-30B-A3B-Instruct", "address": "http://x"}
    made["starts"].append(made["starts"][0] | {"step": 5, "processes": 8})
    proof.write_json(workdir / "run.json", made)
    report.write(workdir)
    text = read(workdir).text
    assert "stand-in" not in text and "no language model" not in text
    assert "Judge: Qwen/Qwen3-VL-30B-A3B-Instruct" in text
    assert "2 (from step 0, 5), not the same each time: processes" in text


def test_page_says_what_asking_the_judge_took(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    assert "requests" not in origin.rewards(folder.load(workdir), defaultdict(str))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    took = dict.fromkeys(judge_record.COUNTS, 600)
    lines[3]["judge"], lines[4]["judge"] = took, took | {"failures": 2, "answer_tokens": None}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    shown = origin.rewards(folder.load(workdir), defaultdict(str))
    assert "in 2 steps 1,200 requests with 1,200 tokens and unknown answered" in shown
    assert "602 questions without an answer" in shown
    lines[3]["judge"] = {"calls": "many"}
    (workdir / "metrics.jsonl").write_text(json.dumps(lines[3]) + "\n")
    with pytest.raises(ValueError, match="expected judge/calls to be a number or null"):
        folder.load(workdir)


def test_page_says_how_the_run_was_made(finished_run):
    text = read(finished_run).text
    assert "python -m evoid_jax.train --config=configs/evoid.py:tiny" in text
    assert "4 x TPU v6 lite, 2 processes" in text and "0.00 hours" in text
    assert f"jax {made_up.start()['versions']['jax']}" in text
    assert "commit" in text or "in no git repository" in text
    assert "no score had a say" in text
    assert f"--lora={finished_run}/export/pytorch_lora_weights.safetensors" in text


def test_the_hours_of_a_start_that_was_killed_are_not_made_up(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    made = json.loads((workdir / "run.json").read_text())
    (only,) = made["starts"]
    whole = only | {"start": "2026-01-31T12:00:00Z", "end": "2026-01-31T13:30:00Z"}
    for ends, words in (
        ([whole, whole], "3.00 hours"),
        ([whole, whole | {"end": None}], "1.50 hours and those of 1 start whose end is not"),
    ):
        (workdir / "run.json").write_text(json.dumps(made | {"starts": ends}))
        assert words in origin.times(folder.load(workdir))


def test_an_older_run_folder_gives_a_page_that_says_unknown(finished_run, tmp_path):
    """Without run.json, digest, and what summary.json did not hold then."""
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    (workdir / "run.json").unlink()
    shutil.rmtree(workdir / "export")
    proof.write_json(
        workdir / "config.json",
        {"steps": 24, "reward": {"sidecars": ["local"], "preset": "tiny", "judge": ""}},
    )
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["heldout"]
    for row in (*summary["delta"].values(), *summary["monitor_delta"].values()):
        del row["identities"]
    proof.write_json(workdir / "summary.json", summary)
    report.write(workdir)
    page = read(workdir)
    assert page.text.count("unknown") > 10 and "not recorded" in page.text
    assert "The rewards are small stand-ins" in page.text and "Judge: none" in page.text
    assert headline_kind(page) == "up" and "none is written yet" in page.text
