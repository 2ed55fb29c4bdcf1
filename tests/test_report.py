"""Facts about the report page: what it shows, that nothing in a run can break out of it, it plays.

The page is read with html.parser as a browser would; the slow test opens it in headless Chromium.
"""

import base64
import hashlib
import html.parser
import io
import json
import math
import shutil
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from browser import Browser

from evoid_jax import metrics, proof, report
from evoid_jax import report_charts as charts
from evoid_jax import report_text as fmt
from evoid_jax.report_charts import Series

REWARDS = {
    "arcface": (0.125, 0.41, 0.14),
    "curricularface": (0.125, 0.38, 0.12),
    "gme": (0.15, 0.55, 0.05),
    "aesthetic": (0.18, 0.48, 0.06),
    "qalign": (0.09, 0.52, 0.03),
    "naturalness": (0.30, 0.44, 0.09),
    "flow": (0.03, 0.36, -0.01),
    "vqscore": (0.30, 0.50, 0.07),
}
EVIL = """"><script>alert(1)</script><img src=x onerror='alert(2)'> @@BODY@@ & </article>"""


def mp4(shift):
    """Encode 9 frames of a face-like blob that moves, 64x64 at 8 fps, H.264."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for t in range(9):
            frame = av.VideoFrame.from_ndarray(portrait(shift, t), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def portrait(shift, t):
    image = np.full((64, 64, 3), (120, 160 + 10 * shift, 200), np.uint8)
    x = 32 + int(6 * math.sin(t / 9 * 2 * math.pi))
    cv2.ellipse(image, (x, 70), (24, 20), 0, 0, 360, (60 + 40 * shift, 60, 110), -1)
    cv2.ellipse(image, (x, 32), (13, 17), 0, 0, 360, (226, 180 - 12 * shift, 150), -1)
    cv2.ellipse(image, (x, 22), (14, 10), 0, 180, 360, (70, 40 + 15 * shift, 30), -1)
    for side in (-5, 5):
        cv2.circle(image, (x + side, 32), 2, (30, 30, 40), -1)
    cv2.ellipse(image, (x, 41), (5, 2), 0, 0, 180, (160, 60, 70), 2)
    return image


def fill(workdir, steps=24, finished=True, samples=6, prompt="A woman with red hair nods slowly"):
    """Write a run folder with plausible numbers."""
    rng = np.random.default_rng(0)
    config = {
        "steps": 24,
        "lr": 1e-4,
        "data": {"pairs": 4, "seeds": 8},
        "model": {"folder": "tiny"},
    }
    proof.write_json(workdir / "config.json", config)
    with metrics.Writer(workdir, verbose=False) as writer:
        for step in range(steps):
            writer.write(step, record(step / 24, rng))
    (workdir / "samples").mkdir()
    entries = []
    for k in range(samples):
        entries.append({"k": k, "prompt": prompt, "identity": f"person {300 + k}", "seed": k % 2})
        for arm, shift in (("base", 0), ("evolved", 1)):
            (workdir / f"samples/heldout_{k:02d}_{arm}.mp4").write_bytes(mp4(k % 5 + shift))
        cv2.imwrite(f"{workdir}/samples/heldout_{k:02d}_reference.png", portrait(k, 0)[..., ::-1])
    proof.write_json(workdir / "samples/heldout.json", entries)
    if finished:
        proof.write_json(workdir / "summary.json", made_up_summary(rng))
    return workdir


def record(share, rng):
    rise = 1 - math.exp(-3 * share)
    score = {n: at + gain * rise + rng.normal(0, 0.03) for n, (_, at, gain) in REWARDS.items()}
    attention = {
        "identity": 7 - 3 * share,
        "text": 4 + rng.normal(0, 0.7),
        "quality": 3 + 4 * share,
    }
    weight = {n: p * (1 + rng.random() * 0.6) for n, (p, *_) in REWARDS.items()}
    mass = sum(weight.values())
    policy, t2v, anchor = 0.031 * math.exp(-share), 0.02 + 0.01 * share, 0.0004 * share
    return {
        "loss": {"total": policy + t2v / 100, "policy": policy, "t2v": t2v, "self": anchor},
        "reward": {"unified": 0.5 + rng.normal(0, 0.02), "raw": score, "score": score},
        "weights": {name: value / mass for name, value in weight.items()},
        "attention": attention,
        "drift": {"evo_stb": 0.002 * rise, "evo_init": 0.02 * rise, "evo_t2v": 0.3 + 0.01 * rise},
        "grad_norm": 0.2 + rng.random() * 0.1,
        "valid_fraction": 1 - (rng.random() < 0.2) / 32,
        "seconds": {
            "rollout": 11 + rng.random(),
            "decode": 1.4,
            "score": 3 + rng.random(),
            "train": 9.1,
        }
        | {"total": 25.0},
    }


def made_up_summary(rng):
    gain_M = [gain for *_, gain in REWARDS.values()]
    base_BM = np.array([[at for _, at, _ in REWARDS.values()]]) + rng.normal(0, 0.05, (64, 8))
    evolved_BM = base_BM + np.array([gain_M]) + rng.normal(0, 0.06, (64, 8))
    evolved_BM[:2, 7] = np.nan
    base = {"identity": rng.normal(0.5, 0.1, 64), "motion": rng.normal(0.4, 0.1, 64)}
    evolved = {
        "identity": base["identity"] + 0.05,
        "motion": base["motion"] + rng.normal(0, 0.1, 64),
    }
    prior_M = [prior for prior, *_ in REWARDS.values()]
    seconds = {"train": 600.0, "heldout": 120.0, "total": 724.0}
    return proof.summary(
        tuple(REWARDS), prior_M, base_BM, evolved_BM, np.arange(64) // 2, base, evolved, 24, seconds
    )


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
    workdir = fill(tmp_path_factory.mktemp("tiny-seed0"))
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
    for name in (*REWARDS, "total"):
        delta = f"{summary['delta'][name]['mean']:+.3f}".replace("-", "\N{MINUS SIGN}")
        numbers = f"{summary['base'][name]:.3f} {summary['evolved'][name]:.3f} {delta}"
        assert numbers in text, name
    assert "0 / 2" in text  # vqscore: two evolved videos without a score


def test_curves_are_drawn_for_every_reward_weight_and_loss(run):
    labels = [svg["aria-label"] for svg in read(run).all("svg") if "chart" in svg["class"]]
    starts = [label.split(".")[0] for label in labels]
    expected = [*REWARDS, "Mean score of the rollouts", "Unified reward", "Final weights"]
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
    workdir = fill(tmp_path, steps=2, samples=1, prompt=EVIL)
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
    report.write(fill(tmp_path, steps=5, finished=False, samples=0))
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
    workdir = fill(tmp_path, steps=1, samples=2)
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


def test_ticks_are_round_and_inside():
    assert charts.ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.31, 0.58) == pytest.approx([0.35, 0.4, 0.45, 0.5, 0.55])
    assert charts.ticks(0, 23, 6) == pytest.approx([0, 5, 10, 15, 20])


def test_running_mean_skips_what_is_missing():
    assert charts.running_mean([1, 2, None, 4, 6], 3) == [1.5, 1.5, None, 5.0, 5.0]
    assert charts.running_mean([1, None], 1) == [1, None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "\N{EN DASH}"),
        (0, "0"),
        (0.5, "0.5"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (-0.25, "-0.25"),
        (0.9999, "1"),
        (1500.0, "1500"),
        (1234567, "1.23e6"),
        (0.000123, "1.23e-4"),
        (0.0004, "4e-4"),
    ],
)
def test_number_is_readable(value, expected):
    assert fmt.number(value) == expected


def test_a_monitor_that_fell_is_named(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "copy")
    summary = json.loads((workdir / "summary.json").read_text())
    for ci95, named in (([-0.2, -0.1], True), ([-0.1, 0.1], False)):
        summary["monitor_delta"]["identity"]["ci95"] = ci95
        summary["monitor_delta"]["motion"]["ci95"] = [0.0, 0.1]
        proof.write_json(workdir / "summary.json", summary)
        report.write(workdir)
        assert ("never rewarded, and lower: identity." in read(workdir).text) == named


def test_missing_value_breaks_the_curve():
    svg = charts.lines("x", [0, 1, 2, 3], [Series("a", "red", [0.0, None, 1.0, 1.0])])
    path = svg.split(' d="')[1].split('"')[0]
    assert path.count("M") == 2 and path.count("L") == 1


def test_areas_stack_to_the_top():
    svg = charts.areas(
        "x", [0, 1], [Series("a", "red", [0.25, 0.5]), Series("b", "blue", [0.75, 0.5])], high=1
    )
    first, second = (part.split('"')[0].split() for part in svg.split('points="')[1:])
    assert second[:2] == [f"{charts.LEFT},{charts.TOP}", f"{560 - charts.RIGHT},{charts.TOP}"]
    assert second[2:] == first[:2][::-1]  # the second area stands on the first


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
