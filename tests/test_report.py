"""Facts about the report page: what it shows, and that nothing in a run can break out of it.

The page is read with html.parser as a browser would; test_report_browser.py opens it in one.
"""

import base64
import hashlib
import json
import math
import shutil

import made_up
import numpy as np
from report_page import read

from evoid_jax import config, metrics, proof
from evoid_jax.report import curves, folder
from evoid_jax.report import page as report
from evoid_jax.report import text as fmt

EVIL = """"><script>alert(1)</script><img src=x onerror='alert(2)'> @@BODY@@ & </article>"""


def test_headline_is_the_summary(finished_run):
    summary, text = json.loads((finished_run / "summary.json").read_text()), read(finished_run).text
    low, high = summary["delta_total_ci95"]
    assert f"{summary['delta_total']:+.3f}" in text
    assert f"{low:+.3f} to {high:+.3f}" in text
    assert "the interval lies above zero" in text
    assert "24 steps" in text and "12.1 minutes" in text and finished_run.name in text
    assert json.loads((finished_run / "config.json").read_text())["digest"] in text


def test_digest_is_the_one_that_training_wrote(finished_run, tmp_path):
    """A digest over config.json as it stands would be another: the file holds the digest too."""
    cfg = config.from_dict({"steps": 24})
    settings = config.to_dict(cfg) | {"digest": config.digest(cfg)}
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    proof.write_json(workdir / "config.json", settings)
    report.write(workdir)
    assert f"config {config.digest(cfg)}" in read(workdir).text
    del settings["digest"]
    proof.write_json(workdir / "config.json", settings)
    report.write(workdir)
    assert "config without digest" in read(workdir).text


def test_table_has_each_reward_with_its_numbers(finished_run):
    summary, text = json.loads((finished_run / "summary.json").read_text()), read(finished_run).text
    for name in (*made_up.REWARDS, "total"):
        delta = f"{summary['delta'][name]['mean']:+.3f}".replace("-", "\N{MINUS SIGN}")
        numbers = f"{summary['base'][name]:.3f} {summary['evolved'][name]:.3f} {delta}"
        assert numbers in text, name
    assert "0 / 2" in text  # vqscore: two evolved videos without a score


def test_curves_are_drawn_for_every_reward_weight_and_loss(finished_run):
    labels = [svg["aria-label"] for svg in read(finished_run).all("svg") if "chart" in svg["class"]]
    starts = [label.split(".")[0] for label in labels]
    expected = [*made_up.REWARDS, "Mean score of the rollouts", "Unified reward", "Final weights"]
    expected += ["The judge's attention", "loss total", "loss policy", "drift evo_stb"]
    assert set(expected) <= set(starts)
    first, *_, last = (record["weights"]["gme"] for record in metrics.read(finished_run))
    spoken = f"gme: {fmt.number(first)} at step 0, {fmt.number(last)} at step 23"
    assert spoken in labels[starts.index("Final weights")]


def test_the_ratio_of_grpo_is_drawn_and_explained(finished_run):
    steps = metrics.read(finished_run)
    assert "ratio" not in curves.health(steps).lower()
    shown = curves.health([step | {"ratio": {"off": 0.1, "clipped": 0.5}} for step in steps])
    assert "ratio off" in shown and "ratio clipped" in shown and "beyond the clip" in shown


def test_media_are_inside_the_page_bit_for_bit(finished_run):
    page = read(finished_run)
    content = lambda tags: sorted(base64.b64decode(tag["src"].split(",")[1]) for tag in tags)
    bytes_of = lambda names: sorted(
        (finished_run / f"samples/heldout_{k:02d}_{name}").read_bytes()
        for k in range(6)
        for name in names
    )
    assert content(page.all("video")) == bytes_of(["base.mp4", "evolved.mp4"])
    assert content(page.all("img")) == bytes_of(["reference.png"])
    for video in page.all("video"):
        assert {"loop", "muted", "playsinline", "controls", "aria-label"} <= set(video)
        assert "autoplay" not in video  # nothing starts before the page's script says so
        assert (video["width"], video["height"], video["class"]) == ("64", "64", "tiny")
    assert all(image["alt"] for image in page.all("img"))


def test_page_loads_nothing(finished_run):
    page = read(finished_run)
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
    assert [len(page.all(tag)) for tag in ("section", "article", "header")] == [9, 1, 1]
    assert (
        page.text.count("<script>alert(1)</script>") >= 5
    )  # as text: prompt, identity, config ...
    assert EVIL in page.all("video")[0]["aria-label"]


def test_policy_allows_exactly_the_script_of_the_page(finished_run):
    text = (finished_run / "report.html").read_text("utf-8")
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


def test_links_lead_somewhere(finished_run, tmp_path):
    report.write(tmp_path)
    for page, count in ((read(finished_run), 10), (read(tmp_path), 4)):
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


def test_number_of_videos_is_capped_and_said(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    report.write(workdir, shown=2)
    assert len(read(workdir).all("video")) == 4
    assert "The first 2 of the 6 pairs that this run kept (unseen identities)" in read(workdir).text
    report.write(workdir, shown=0)
    assert "6 are kept, none is shown" in read(workdir).text


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


def test_passwords_do_not_reach_the_page(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "copy")
    judge = {"reward": {"judge": "http://me:hunter2@host/v1"}, "model": "http://a:hunter2@b/c"}
    proof.write_json(workdir / "config.json", judge)
    report.write(workdir)
    assert "hunter2" not in (workdir / "report.html").read_text()
    assert "http://host/v1" in read(workdir).text
