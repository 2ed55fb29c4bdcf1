"""Facts about the report page: what it shows, that nothing in a run can break out of it, it plays.

The page is read with html.parser as a browser would; the slow test opens it in headless Chromium.
"""

import base64
import hashlib
import html.parser
import json
import math
import shutil
import subprocess
import sys

import made_up
import pytest
from browser import Browser

from evoid_jax import metrics, proof
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
    assert report.digest(json.loads((run / "config.json").read_text())) in text


def test_digest_names_the_config_and_not_the_order_of_its_keys():
    assert report.digest({"a": 1, "b": 2}) == report.digest({"b": 2, "a": 1})
    assert report.digest({"a": 1, "b": 2}) != report.digest({"a": 1, "b": 3})


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
    expected += ["The judge's attention", "loss total", "loss policy", "drift stable"]
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
    assert [len(page.all(tag)) for tag in ("section", "article", "header")] == [5, 1, 1]
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
    assert "No held-out videos yet" in text and "2.1 minutes" in text
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
    for page, count in ((read(run), 6), (read(tmp_path), 3)):
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
    assert "The first 2 of the 6 held-out triples" in read(workdir).text


def test_page_says_what_the_proof_was_held_on(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    assert "held-out identities: 32" in read(workdir).text
    summary = json.loads((workdir / "summary.json").read_text())
    where = "training pairs, new seeds"
    proof.write_json(workdir / "summary.json", summary | {"heldout": where})
    report.write(workdir)
    assert f"on {where};" in read(workdir).text and f"{where}: 32" in read(workdir).text


def test_worse_run_is_called_worse(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    summary = json.loads((workdir / "summary.json").read_text())
    cases = {
        (-0.2, -0.1): "is worse",
        (-0.1, 0.1): "No clear difference",
        (None, None): "no interval",
    }
    for ci95, verdict in cases.items():
        proof.write_json(workdir / "summary.json", summary | {"delta_total_ci95": ci95})
        report.write(workdir)
        assert verdict in read(workdir).text


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"summary\.json: expected a JSON dict, got list"):
        report.write(tmp_path)


def test_command_line(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    (workdir / "report.html").unlink()
    command = [sys.executable, "-m", "evoid_jax.report", f"--workdir={workdir}", "--videos=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(workdir / "report.html")
    assert len(read(workdir).all("video")) == 2


def test_a_monitor_that_fell_is_named(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    summary = json.loads((workdir / "summary.json").read_text())
    for ci95, named in (([-0.2, -0.1], True), ([-0.1, 0.1], False)):
        summary["monitor_delta"]["identity"]["ci95"] = ci95
        summary["monitor_delta"]["motion"]["ci95"] = [0.0, 0.1]
        proof.write_json(workdir / "summary.json", summary)
        report.write(workdir)
        assert ("never rewarded, and lower: identity." in read(workdir).text) == named


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
        assert browser.problems() == []


SHORTEST_CURVE = """
  Math.min(...[...document.querySelectorAll("path.curve")].map((path) => path.getTotalLength()))
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
  return document.querySelector("#tip:not([hidden]) strong").textContent;
})()"""
