"""The report's command: it prints the page's path, and a user's mistake is one line."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import two_runs
from report_page import Page, read

from evoid_jax.report import compare, folder, study, terminal
from evoid_jax.report import page as report


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"summary\.json holds a list .*; expected an object"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("summary.json", "{}", "'base'"),
        ("summary.json", '{"base": 3, "evolved": {}}', "base"),
        ("summary.json", '{"base": {"a": "x"}, "evolved": {}}', "base/a"),
        ("summary.json", '{"base": {}, "evolved": {}, "delta_total_ci95": [1]}', "two numbers"),
        ("summary.json", '{"base": {}, "evolved": {}, "delta": {"a": 1}}', "delta/a"),
        ("summary.json", '{"base": {}, "evolved": {}, "monitor": 1}', "monitor"),
        ("summary.json", '{"base": {}, "evolved": {}, "identities": "8"}', "identities"),
        ("metrics.jsonl", '{"step": 0, "loss": 3}', "step 0: expected loss"),
        ("metrics.jsonl", '{"step": 0, "reward": {"score": {"a": "x"}}}', "reward/score/a"),
        ("metrics.jsonl", "x\n{}", ":1"),
        ("config.json", "\ufffe", "config"),
        ("run.json", "[]", "expected an object"),
        ("run.json", "{}", "starts"),
        ("samples/heldout.json", '[{"k": "0"}]', "number k"),
        ("samples/heldout.json", "[", "not JSON"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(tmp_path, name, text, part):
    (tmp_path / "samples").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        report.write(tmp_path)
    assert part in str(caught.value)


def test_user_errors_end_without_a_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    (tmp_path / "locked/report.html").mkdir(parents=True)  # as good as no permission, for root too
    for name, words in (
        ("nowhere", "is not a folder: give the --workdir"),
        ("broken", "config.json is not JSON"),
        ("locked", "cannot write"),
    ):
        message = leave(monkeypatch, f"--workdir={tmp_path / name}")
        assert message.startswith("error: ") and "\n" not in message
        assert words in message and str(tmp_path / name) in message
    assert leave(monkeypatch, f"--workdir={tmp_path}", "--videos=-1") == 2
    assert leave(monkeypatch, "--help") == 0
    assert leave(monkeypatch) == ("error: name the folder of a run, or of several to compare them")
    said = capsys.readouterr()
    assert "--videos" in said.out and "whole number" in said.err


def leave(monkeypatch, *words):
    """Run the command in this process; return what it leaves with: a message or a status."""
    monkeypatch.setattr(sys, "argv", ["report", *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("evoid_jax.report", run_name="__main__")
    return left.value.code


def test_command_line(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    (workdir / "report.html").unlink()
    command = [sys.executable, "-m", "evoid_jax.report", f"--workdir={workdir}", "--videos=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (str(workdir / "report.html"), 0)
    assert len(read(workdir).all("video")) == 2


def test_a_folder_whose_name_is_no_utf8_has_pages(finished_run, tmp_path):
    names = [os.fsdecode(b"run\xff"), os.fsdecode(b"run\xfe")]
    runs = two_runs.fill(tmp_path, finished_run, names)
    command = [sys.executable, "-m", "evoid_jax.report"]
    for words in ([runs[0], "--media=beside"], [*runs, f"--out={runs[0]}/out"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{tmp_path}/run\\xff/" in done.stdout
    assert "run\\xff" in read(runs[0]).text
    compared = Page((runs[0] / "out/compare.html").read_text("utf-8")).text
    assert "run\\xff" in compared and "run\\xfe" in compared
    assert "run\\xff/export" in terminal.terminal_summary(folder.load(runs[0]))


def test_several_folders_are_compared(finished_run, tmp_path, monkeypatch, capsys):
    runs = two_runs.fill(tmp_path, finished_run, "ab")
    monkeypatch.setattr(sys, "argv", ["report", *map(str, runs), f"--out={tmp_path / 'out'}"])
    runpy.run_module("evoid_jax.report", run_name="__main__")
    written = [tmp_path / "out" / name for name in ("compare.html", "blind/blind.html")]
    assert capsys.readouterr().out.split() == list(map(str, written))
    assert all(file.is_file() for file in written)


def test_a_run_may_have_a_blind_page(finished_run, tmp_path, monkeypatch, capsys):
    (run,) = two_runs.fill(tmp_path, finished_run, "a")
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--blind", "--media=beside"])
    runpy.run_module("evoid_jax.report", run_name="__main__")
    assert capsys.readouterr().out.split() == [f"{run}/report.html", f"{run}/blind/blind.html"]
    # evolved of the first triple is the same video as base of the second, and lies there once
    assert len(list((run / "blind/media").glob("*.mp4"))) == 11


def test_a_run_may_be_reported_on_elsewhere(finished_run, tmp_path, monkeypatch, capsys):
    """Nothing is written to its folder, which may be somebody else's."""
    (run,) = two_runs.fill(tmp_path, finished_run, "a")
    state = lambda: {file: file.stat().st_mtime_ns for file in (run, *run.rglob("*"))}
    before, out = state(), tmp_path / "new/out"
    for mode in ("beside", "inside", "beside"):  # an earlier page is written again
        options = ["--blind", f"--media={mode}", f"--out={out}"]
        monkeypatch.setattr(sys, "argv", ["report", str(run), *options])
        runpy.run_module("evoid_jax.report", run_name="__main__")
        assert capsys.readouterr().out.split() == [f"{out}/report.html", f"{out}/blind/blind.html"]
    assert state() == before
    page = Page((out / "report.html").read_text("utf-8"))
    sources = {video[key] for video in page.all("video") for key in ("src", "poster")}
    sources |= {image["src"] for image in page.all("img")}
    assert {f"media/{file.name}" for file in (out / "media").iterdir()} == sources


def test_answers_beside_a_run_count_on_a_page_elsewhere(finished_run, tmp_path):
    (run,) = two_runs.fill(tmp_path, finished_run, "a")
    trials = study.of_run(folder.load(run))
    left, right = trials[0].videos
    answer = {"trial": trials[0].name, "question": "motion", "left": left, "right": right}
    for place, rater in ((run, "one"), (tmp_path / "out", "two")):
        report.write_blind(run, out=place)
        made = {"schema": 1, "study": study.name(trials), "rater": rater}
        made["answers"] = [answer | {"choice": left, "seconds": 1.0}]
        (place / "blind/answers_x.json").write_text(json.dumps(made))
    report.write(run, out=tmp_path / "out")
    assert "2 answers of 2 people" in Page((tmp_path / "out/report.html").read_text()).text


def test_a_page_does_not_go_to_a_folder_of_something_else(finished_run, tmp_path):
    one, other, third = two_runs.fill(tmp_path, finished_run)
    report.write(other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").touch()
    compare.write([one, other], tmp_path / "both")
    for place, why in (
        (other, "is the folder of a run; give another one with --out"),
        (third, r"is not empty and holds no report\.html; give a new folder with --out"),
        (tmp_path / "mine", r"is not empty and holds no report\.html"),
        (tmp_path / "both", r"is not empty and holds no report\.html"),
    ):
        with pytest.raises(ValueError, match=f"{place.name} {why}"):
            report.write(one, out=place)
        with pytest.raises(ValueError, match=f"{place.name} {why}"):
            report.write_blind(one, out=place)
    assert report.write(one, out=one) == one / "report.html"


def test_a_folder_of_something_else_gets_no_page(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor anything else of a run"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_number_beyond_all_floats_is_named(tmp_path):
    text = '{"step": 0, "loss": {"total": 1' + "0" * 400 + "}}\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, step 0: expected loss/total to be"):
        report.write(tmp_path)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert report.write("~/run") == tmp_path / "run" / "report.html"
