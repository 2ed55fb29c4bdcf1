"""Facts about the report page: what it shows, that nothing in a run can break out of it, it plays.

The page is read with html.parser as a browser would; the slow test opens it in headless Chromium.
"""

import base64
import hashlib
import html.parser
import json
import math
import re
import runpy
import shutil
import subprocess
import sys

import made_up
import numpy as np
import pytest
from browser import Browser

from evoid_jax import config, metrics, proof
from evoid_jax.report import curves, folder, origin
from evoid_jax.report import page as report
from evoid_jax.report import text as fmt

EVIL = """"><script>alert(1)</script><img src=x onerror='alert(2)'> @@BODY@@ & </article>"""


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], ""
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data.strip())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read(workdir):
    return Page((workdir / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = made_up.fill(tmp_path_factory.mktemp("tiny-seed0"))
    assert report.write(workdir) == workdir / "report.html"
    return workdir


def test_headline_is_the_summary(run):
    summary, text = json.loads((run / "summary.json").read_text()), read(run).text
    low, high = summary["delta_total_ci95"]
    assert f"{summary['delta_total']:+.3f}" in text
    assert f"{low:+.3f} to {high:+.3f}" in text
    assert "the interval lies above zero" in text
    assert "24 steps" in text and "12.1 minutes" in text and run.name in text
    assert json.loads((run / "config.json").read_text())["digest"] in text


def test_digest_is_the_one_that_training_wrote(run, tmp_path):
    """A digest over config.json as it stands would be another: the file holds the digest too."""
    cfg = config.from_dict({"steps": 24})
    settings = config.to_dict(cfg) | {"digest": config.digest(cfg)}
    workdir = shutil.copytree(run, tmp_path / "copy")
    proof.write_json(workdir / "config.json", settings)
    report.write(workdir)
    assert f"config {config.digest(cfg)}" in read(workdir).text
    del settings["digest"]
    proof.write_json(workdir / "config.json", settings)
    report.write(workdir)
    assert "config without digest" in read(workdir).text


def test_table_has_each_reward_with_its_numbers(run):
    summary, text = json.loads((run / "summary.json").read_text()), read(run).text
    for name in (*made_up.REWARDS, "total"):
        delta = f"{summary['delta'][name]['mean']:+.3f}".replace("-", "\N{MINUS SIGN}")
        numbers = f"{summary['base'][name]:.3f} {summary['evolved'][name]:.3f} {delta}"
        assert numbers in text, name
    assert "0 / 2" in text  # vqscore: two evolved videos without a score


def test_curves_are_drawn_for_every_reward_weight_and_loss(run):
    labels = [svg["aria-label"] for svg in read(run).all("svg") if "chart" in svg["class"]]
    starts = [label.split(".")[0] for label in labels]
    expected = [*made_up.REWARDS, "Mean score of the rollouts", "Unified reward", "Final weights"]
    expected += ["The judge's attention", "loss total", "loss policy", "drift evo_stb"]
    assert set(expected) <= set(starts)
    first, last = metrics.read(run)[0]["weights"]["gme"], metrics.read(run)[-1]["weights"]["gme"]
    spoken = f"gme: {fmt.number(first)} at step 0, {fmt.number(last)} at step 23"
    assert spoken in labels[starts.index("Final weights")]


def test_media_are_inside_the_page_bit_for_bit(run):
    page = read(run)
    videos = [base64.b64decode(video["src"].split(",")[1]) for video in page.all("video")]
    files = [
        (run / f"samples/heldout_{k:02d}_{arm}.mp4").read_bytes()
        for k in range(6)
        for arm in ("base", "evolved")
    ]
    assert videos == files
    for video in page.all("video"):
        assert {"autoplay", "loop", "muted", "playsinline", "controls", "aria-label"} <= set(video)
    images = [base64.b64decode(image["src"].split(",")[1]) for image in page.all("img")]
    assert images == [
        (run / f"samples/heldout_{k:02d}_reference.png").read_bytes() for k in range(6)
    ]
    assert all(image["alt"] for image in page.all("img"))


def test_page_loads_nothing(run):
    page = read(run)
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "poster", "data"):
            assert attributes.get(key, "data:").startswith(("data:", "#")), (tag, key)
    assert "http://" not in page.text and "https://" not in page.text
    assert not page.all("link") and not page.all("iframe")
    assert len(page.all("script")) == 1
    assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_user_text_cannot_break_out(tmp_path):
    workdir = made_up.fill(tmp_path, steps=2, samples=1, prompt=EVIL)
    proof.write_json(workdir / "config.json", {"steps": 2, "data": {EVIL: EVIL}})
    lines = (workdir / metrics.FILE).read_text().replace('"arcface"', json.dumps(EVIL))
    (workdir / metrics.FILE).write_text(lines)
    summary = (workdir / "summary.json").read_text().replace('"gme"', json.dumps(EVIL))
    (workdir / "summary.json").write_text(summary)
    entries = [{"k": 0, "prompt": EVIL, "identity": EVIL, "seed": EVIL}]
    proof.write_json(workdir / "samples/heldout.json", entries)
    report.write(workdir)
    page = read(workdir)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert not [
        tag for tag, attributes in page.tags if any(key.startswith("on") for key in attributes)
    ]
    assert [len(page.all(tag)) for tag in ("section", "article", "header")] == [7, 1, 1]
    assert (
        page.text.count("<script>alert(1)</script>") >= 5
    )  # as text: prompt, identity, config ...
    assert EVIL in page.all("video")[0]["aria-label"]


def test_policy_allows_exactly_the_script_of_the_page(run):
    text = (run / "report.html").read_text("utf-8")
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_unfinished_run_says_so(tmp_path):
    report.write(made_up.fill(tmp_path, steps=5, finished=False, samples=0))
    text = read(tmp_path).text
    assert "has not finished" in text and "5 of 24 steps are logged" in text
    assert "No videos yet" in text and "2.1 minutes" in text
    assert "Mean score of the rollouts" in text


def test_empty_folder_gives_a_page(tmp_path):
    report.write(tmp_path)
    text = read(tmp_path).text
    assert (
        "has not finished" in text and "No step is logged yet" in text and "no config.json" in text
    )


def test_one_step_and_missing_values_give_a_page(tmp_path):
    with metrics.Writer(tmp_path, verbose=False) as writer:
        weights = {"arcface": 0.5, "gme": 0.5}
        writer.write(
            0, {"reward": {"score": {"arcface": math.nan, "gme": 0.5}}, "weights": weights}
        )
    report.write(tmp_path)
    labels = [svg["aria-label"] for svg in read(tmp_path).all("svg")]
    assert "gme. gme: 0.5 at step 0, 0.5 at step 0" in labels
    assert "Mean score of the rollouts. score: 0.5 at step 0, 0.5 at step 0" in labels


def test_links_lead_somewhere(run, tmp_path):
    report.write(tmp_path)
    for page, count in ((read(run), 8), (read(tmp_path), 4)):
        ids = {attributes.get("id") for _, attributes in page.tags}
        targets = [link["href"] for link in page.all("a")]
        assert len(targets) == count
        assert all(target[1:] in ids for target in targets)


def test_missing_video_leaves_a_hole(tmp_path):
    workdir = made_up.fill(tmp_path, steps=1, samples=2)
    (workdir / "samples/heldout_01_evolved.mp4").unlink()
    report.write(workdir)
    assert len(read(workdir).all("video")) == 3
    assert read(workdir).text.count("no video") == 1


def test_number_of_videos_is_capped_and_said(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    report.write(workdir, videos=2)
    assert len(read(workdir).all("video")) == 4
    assert "The first 2 of the 6 pairs that this run kept (unseen identities)" in read(workdir).text
    report.write(workdir, videos=0)
    assert "6 are kept, none is shown" in read(workdir).text


def with_summary(workdir, **changes):
    """Change parts of a run's summary and write its page again."""
    summary = json.loads((workdir / "summary.json").read_text())
    proof.write_json(workdir / "summary.json", summary | changes)
    report.write(workdir)
    return read(workdir)


def test_page_says_what_was_measured(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    assert "identities: 32 (unseen identities)" in read(workdir).text
    page = with_summary(workdir, heldout=proof.TRAINED)
    assert f"change of the total on {proof.TRAINED}" in page.text
    assert f"identities: 32 ({proof.TRAINED})" in page.text
    assert "better on training pairs, new seeds" in page.text
    assert "held-out" not in page.text.lower() and "unseen" not in page.text


def test_worse_run_is_called_worse(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    cases = {
        (-0.2, -0.1): ("is worse", "down"),
        (-0.1, 0.1): ("No clear difference", "flat"),
        (None, None): ("no interval", "flat"),
    }
    for ci95, (verdict, kind) in cases.items():
        page = with_summary(workdir, delta_total_ci95=ci95)
        assert verdict in page.text and headline_kind(page) == kind


def headline_kind(page):
    (kind,) = [div["class"] for div in page.all("div") if div.get("class", "").startswith("big ")]
    return kind.removeprefix("big ")


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


def test_page_says_what_the_rewards_are(run):
    text = read(run).text
    assert "The rewards are small stand-ins" in text and "no language model" in text
    for words in (
        "preset tiny, version tiny-1, sha256 abababababab",
        "stand-in: small gme",
        "identity",
    ):
        assert words in text
    assert "quality" in text and "unknown" not in text


def test_a_reward_that_is_no_stand_in_is_not_called_one(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    made = json.loads((workdir / "run.json").read_text())
    (flow,) = (row for row in made["starts"][0]["rewards"] if row["name"] == "flow")
    flow["sources"][0]["about"] = "OpenCV Farneback"
    proof.write_json(workdir / "run.json", made)
    assert origin.stand_ins(folder.load(workdir)) == list(made_up.REWARDS)[:6]
    report.write(workdir)
    assert "Some rewards are small stand-ins" in read(workdir).text


def test_page_says_how_the_run_was_made(run):
    text = read(run).text
    assert "python -m evoid_jax.train --config=configs/evoid.py:tiny" in text
    assert "4 x TPU v6 lite, 2 processes" in text and "0.00 hours" in text
    assert f"jax {made_up.start()['versions']['jax']}" in text
    assert "commit" in text or "in no git repository" in text
    assert "no score had a say" in text
    assert f"--lora={run}/export/pytorch_lora_weights.safetensors" in text


def test_models_that_are_no_stand_ins_get_no_such_note(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
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


def test_an_older_run_folder_gives_a_page_that_says_unknown(run, tmp_path):
    """Without run.json, digest, and what summary.json did not hold then."""
    workdir = shutil.copytree(run, tmp_path / "copy")
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


def test_rewards_may_have_any_names(tmp_path):
    """Names, groups and priors are those of the run; colours differ as long as there are enough."""
    names = ["clip/vit", "face similarity", "total variation", "<b>", "motion"]
    scores = dict.fromkeys(names, 0.5)
    table = {name: {"group": "new group", "prior": 0.2, "floor": 0.0} for name in names}
    proof.write_json(tmp_path / "config.json", {"reward": {"table": table}})
    with metrics.Writer(tmp_path, verbose=False) as writer:
        weights = dict.fromkeys(names, 0.2)
        for step in range(2):
            writer.write(
                step, {"reward": {"score": scores}, "weights": weights, "loss": {"kl": 0.25}}
            )
    base_BM = np.full((20, 5), 0.4)
    identities = [str(b) for b in range(20)]
    summary = proof.summary(names, [0.2] * 5, base_BM, base_BM, identities, {}, {}, 2, {})
    proof.write_json(tmp_path / "summary.json", summary)
    report.write(tmp_path)
    page = read(tmp_path)
    starts = [svg["aria-label"] for svg in page.all("svg") if "chart" in svg["class"]]
    for name in names:
        assert f"{name}. {name}: 0.5 at step 0, 0.5 at step 1" in starts
        assert f"{name} prior 20% 0.400 0.400 +0.000" in " ".join(page.text.split())
    assert any(label.startswith("loss kl") for label in starts)
    assert page.text.count("new group") == 2 * 5  # what the rewards are, and the config
    run = folder.load(tmp_path)
    assert [(row.name, row.group, row.prior) for row in run.rewards] == [
        (name, "new group", 0.2) for name in names
    ]
    hues = curves.palette(names)
    assert len(set(hues.values())) == 5
    assert len(set(curves.palette([*map(str, range(20))]).values())) == len(curves.HUES)


def test_passwords_do_not_reach_the_page(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    judge = {"reward": {"judge": "http://me:hunter2@host/v1"}, "model": "http://a:hunter2@b/c"}
    proof.write_json(workdir / "config.json", judge)
    report.write(workdir)
    assert "hunter2" not in (workdir / "report.html").read_text()
    assert "http://host/v1" in read(workdir).text


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"summary\.json: expected a JSON dict, got list"):
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
        ("run.json", "[]", "starts"),
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
    assert leave(monkeypatch) == 2
    said = capsys.readouterr()
    assert "--videos" in said.out and "whole number" in said.err


def leave(monkeypatch, *words):
    """Run the command in this process; return what it leaves with: a message or a status."""
    monkeypatch.setattr(sys, "argv", ["report", *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("evoid_jax.report", run_name="__main__")
    return left.value.code


def test_command_line(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    (workdir / "report.html").unlink()
    command = [sys.executable, "-m", "evoid_jax.report", f"--workdir={workdir}", "--videos=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (str(workdir / "report.html"), 0)
    assert len(read(workdir).all("video")) == 2


def test_a_monitor_that_fell_is_named(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    rows = json.loads((workdir / "summary.json").read_text())["monitor_delta"]
    for ci95, named in (([-0.2, -0.1], True), ([-0.1, 0.1], False)):
        rows["identity"]["ci95"] = ci95
        rows["motion"]["ci95"] = [0.0, 0.1]
        page = with_summary(workdir, monitor_delta=rows)
        assert ("never rewarded, and lower: identity." in page.text) == named


@pytest.mark.slow
def test_chromium_shows_curves_and_plays_the_videos(run):
    with Browser(run / "report.html") as browser:
        assert browser.value("document.querySelectorAll('svg.chart path.curve').length") >= 18
        assert browser.value(SHORTEST_CURVE) > 50
        for _ in range(2):  # down the page and, after all have been out of sight, once more
            played = browser.value(PLAYED)
            assert len(played) == 12
            for video in played:
                assert video["error"] is None
                assert (video["width"], video["height"]) == (64, 64)
                assert video["playing"] and video["times"] > 3, video
        assert browser.value("document.querySelectorAll('video.tiny, img.tiny').length") == 18
        assert browser.value(HOVERED) == "step 23"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.ask("Emulation.setDeviceMetricsOverride", **phone)
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value(LEFT_OUT) == 0  # no column of the table is off the screen
        assert browser.problems() == []


SHORTEST_CURVE = """
  Math.min(...[...document.querySelectorAll("path.curve")].map((path) => path.getTotalLength()))
"""
LEFT_OUT = """
  [...document.querySelectorAll("#numbers td")].filter((cell) => {
    const box = cell.getBoundingClientRect();
    return cell.textContent && (box.width < 20 || box.left < 0 || box.right > innerWidth);
  }).length
"""
PLAYED = """(async () => {
  const out = [];
  for (const video of document.querySelectorAll("video")) {
    video.scrollIntoView({behavior: "instant"});
    const times = new Set(), end = Date.now() + 20000;
    let playing = false;  // at the moment a loop starts again, readyState is low for a while
    while (Date.now() < end && !(playing && times.size > 3)) {
      await new Promise((done) => setTimeout(done, 50));
      playing = video.readyState >= 2 && !video.paused;
      times.add(video.currentTime);
    }
    out.push({playing, times: times.size, width: video.videoWidth, height: video.videoHeight,
              error: video.error && video.error.message});
  }
  return out;
})()"""
HOVERED = """(() => {
  const chart = document.querySelector("svg.chart"), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right, clientY: box.top + 9}));
  const text = document.querySelector("#tip:not([hidden]) strong").textContent;
  chart.dispatchEvent(new PointerEvent("pointerleave"));
  return text;
})()"""
