"""A result of fewer steps than the run has made: it is shown as what it is, and of what it is."""

import json
import shutil

import made_up
import numpy as np
import pytest
import two_runs
from report_page import Page, read

from evoid_jax import arms, heldout, metrics, triples
from evoid_jax.report import compare, current, folder, terminal
from evoid_jax.report import page as report

GONE_ON = "This result is of 24 steps; the run has gone on to step 40 of 72."
BEGUN = "A later proof has begun and not ended"


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def log(run, until: int) -> None:
    """Let a run that was proved after step 24 go on."""
    two_runs.change(run / "config.json", steps=72)
    with open(run / metrics.FILE, "a") as file:
        for step in range(24, until):
            record = made_up.record(step / 72, np.random.default_rng(step))
            file.write(json.dumps({"step": step} | metrics.plain(record)) + "\n")


def begin(run, made_by: str) -> None:
    """Begin a proof of another adapter, which has made one video so far."""
    (run / triples.BEGUN).write_text(json.dumps({"made_by": made_by}))
    (run / "samples/heldout_01_evolved.mp4").write_bytes(made_up.mp4(40))


def test_a_run_that_went_on_says_of_which_steps_its_result_is(run):
    assert current.notice(folder.load(run)) == []
    log(run, until=40)
    report.write(run)
    page = read(run)
    assert GONE_ON in page.text and "result of 24 steps, 40 are made" in page.text
    assert "not been compared with its base" in page.text
    assert GONE_ON in terminal.terminal_summary(folder.load(run))
    assert BEGUN not in page.text and folder.load(run).samples[1].scored


def test_the_compare_page_says_it_of_each_run(finished_run, tmp_path):
    runs = two_runs.fill(tmp_path, finished_run, "ab")
    log(runs[1], until=40)
    compare.write(runs, tmp_path / "out")
    text = Page((tmp_path / "out/compare.html").read_text("utf-8")).text
    assert f"b: {GONE_ON}" in text and text.count("This result is of") == 1


def test_the_best_of_a_watch_is_of_an_earlier_step_and_of_all_of_the_run(run):
    log(run, until=40)
    two_runs.change(run / "summary.json", reached=40)
    assert current.gone_on(folder.load(run)) is None
    two_runs.change(run / "summary.json", reached=39)
    assert current.gone_on(folder.load(run)) == 40
    summary = json.loads((run / "summary.json").read_text())
    del summary["reached"]  # an older version's
    (run / "summary.json").write_text(json.dumps(summary))
    two_runs.change(run / "config.json", watch={"export": "best"})
    assert current.gone_on(folder.load(run)) is None


@pytest.mark.parametrize("before", ["the first", None])  # None: scored by an older version
def test_videos_of_a_later_proof_have_no_scores_of_the_earlier_one(run, before):
    if before:
        two_runs.change(run / triples.FILE, made_by=before)
        begin(run, made_by=before)  # it is made again, to the same videos
        assert folder.load(run).samples[1].scored and not current.notice(folder.load(run))
    begin(run, made_by="the second")
    held = folder.load(run)
    assert held.scores and not any(one.scored or one.total for one in held.samples)
    report.write(run)
    text = read(run).text
    assert BEGUN in text and "evolved is ahead in" not in text
    assert "The numbers here may be of an earlier one." in text
    assert BEGUN in terminal.terminal_summary(held)
    two_runs.change(run / triples.FILE, made_by="the second")  # it has ended
    assert folder.load(run).samples[1].scored


def test_a_proof_says_that_it_has_begun_before_it_makes_a_video(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def play(*_):
        assert json.loads((tmp_path / triples.BEGUN).read_text()) == {"made_by": "this one"}
        raise Stopped

    monkeypatch.setattr(arms, "play", play)
    monkeypatch.setattr(arms, "start", lambda *_: None)
    monkeypatch.setattr(heldout, "Parts", lambda *_: None)
    monkeypatch.setattr(heldout, "key", lambda *_: "this one")
    with pytest.raises(Stopped):
        heldout.prove(Empty(tmp_path), Empty(tmp_path), began=0.0)


class Empty:
    """A run, its settings, its data and its state, all without content."""

    def __init__(self, workdir):
        self.workdir, self.heldout_seeds, self.heldout_identities = workdir, 1, 1
        self.cfg = self.data = self.heldout = self
        self.identities, self.initial, self.evolving = [], None, {}
