"""The report's videos: best and worst, scores, files beside the page, samples over the steps."""

import json
import re
import shutil

import made_up
import numpy as np
import pytest
from report_page import Page, read

from evoid_jax import media, triples
from evoid_jax.report import every, folder, shelf, videos
from evoid_jax.report import page as report

STILL = r"media/[0-9a-f]{16}\.jpg"


@pytest.fixture
def workdir(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def rescore(workdir, rise):
    """Let the total of the k-th kept triple change by rise[k], and nothing else."""
    file = workdir / triples.FILE
    made = json.loads(file.read_text())
    for b, row in enumerate(made["triples"]):
        row["base"] = dict.fromkeys(row["base"], 0.5)
        row["evolved"] = dict.fromkeys(row["base"], 0.5 + rise.get(b // 2, 0.0))
    file.write_text(json.dumps(made))


def cards(workdir):
    """Return each card of the page as (tag or "", identity, change of the total)."""
    text = (workdir / "report.html").read_text()
    found = []
    for card in text.split("<article class='card triple")[1:]:
        tag = card.split("class='tag'>")[1].split("<")[0] if "class='tag'" in card else ""
        person = card.split("identity ")[1].split(",")[0]
        found.append((tag, person, card.split("total</dt>")[1].split("class='")[1][:2]))
    return found


def test_best_and_worst_stand_first_and_the_rest_in_its_order(workdir):
    rescore(workdir, {0: 0.1, 1: 0.0, 2: -0.2, 3: 0.3, 4: 0.1, 5: 0.1})
    report.write(workdir)
    assert [card[:2] for card in cards(workdir)] == [
        ("best of 6", "person 303"),
        ("worst of 6", "person 302"),
        *(("", f"person {k}") for k in (300, 301, 304, 305)),
    ]
    assert [kind for *_, kind in cards(workdir)][:2] == ["up", "do"]
    assert "those of these 6 whose total rose most and least" in read(workdir).text


def test_there_is_no_best_where_all_rose_alike_or_nothing_is_known(workdir):
    rescore(workdir, dict.fromkeys(range(6), 0.1))
    assert videos.ends(folder.load(workdir).samples) == {}
    (workdir / triples.FILE).unlink()
    run = folder.load(workdir)
    assert videos.ends(run.samples) == {} and every.section(run) == "" and every.tiles(run) == []
    report.write(workdir)
    assert "kept no scores of single videos" in read(workdir).text


def test_a_card_has_every_score_of_its_triple(workdir):
    run = folder.load(workdir)
    text = Page(videos.section(run, shelf.inside)).text
    text = " ".join(text.split())
    for sample in run.samples:
        for name in made_up.REWARDS:
            base, evolved = sample.scored.base[name], sample.scored.evolved[name]
            shown = "–" if evolved is None else f"{evolved:.3f}"
            assert f"{name} {base:.3f} → {shown}" in text
        base, evolved = sample.total
        assert f"total {base:.3f} → {evolved:.3f}" in text
        assert f"motion, monitor {sample.scored.monitor_base['motion']:.3f}" in text
    won, both = triples.rewards_won(run.samples[0].scored)
    assert both == 7 and f"ahead in {won} of 7 rewards" in text  # vqscore is missing there


def test_win_rates_stand_in_the_head_and_every_triple_below(finished_run):
    run, text = folder.load(finished_run), " ".join(read(finished_run).text.split())
    rates = every.rates(run.scores)
    for title, rate in (("total", rates["total"]), ("the judge", rates["judge"])):
        assert f"Win rate by {title} {rate.rate:.0%} {rate.low:.0%} to {rate.high:.0%}" in text
    assert rates["total"].pairs == 64 and rates["judge"].pairs == 62
    whole = (finished_run / "report.html").read_text()
    bars = whole.split("<svg class='bars'")[1].split("</svg>")[0]
    assert bars.count("<rect") == 64 and "64 triples" in bars
    assert whole.count("<th scope='row'>person ") == 64


def test_large_videos_stay_beside_the_page(workdir, monkeypatch):
    report.write(workdir, media="beside")
    page, text = read(workdir), (workdir / "report.html").read_text()
    assert len(page.all("video")) == 12
    for video in page.all("video"):
        assert (workdir / video["src"]).is_file() and video["src"].startswith("samples/heldout_")
        assert video["preload"] == "none" and re.fullmatch(STILL, video["poster"])
        assert (workdir / video["poster"]).read_bytes()[:3] == b"\xff\xd8\xff"  # a JPEG
    assert all((workdir / image["src"]).is_file() for image in page.all("img"))
    assert "media-src data: 'self' file:;" in text
    # by themselves, where all of them together are large
    monkeypatch.setattr(shelf, "INSIDE", 1000)
    report.write(workdir)
    assert (workdir / "report.html").read_text() == text
    report.write(workdir, media="inside")
    for video in read(workdir).all("video"):
        assert video["src"].startswith("data:video/mp4")
        assert video["poster"].startswith("data:image/jpeg")
    assert not (workdir / "media").exists()
    assert "media-src data:;" in (workdir / "report.html").read_text()


def test_a_page_beside_its_videos_is_light_whatever_they_weigh(workdir):
    """Pictures of noise: as large as still pictures get."""
    noise_FHWC = np.random.default_rng(0).integers(0, 256, (2, 480, 832, 3), np.uint8)
    report.write(workdir, media="beside", shown=0)
    empty = (workdir / "report.html").stat().st_size
    for k in range(6):
        for arm in ("base", "evolved"):
            noise_FHWC += 1
            media.write(workdir / f"samples/heldout_{k:02d}_{arm}.mp4", noise_FHWC, 8)
    report.write(workdir, media="beside")
    assert sum(file.stat().st_size for file in (workdir / "media").iterdir()) > 300_000
    assert (workdir / "report.html").stat().st_size - empty < 6 * 5_000


def test_still_pictures_of_videos_that_are_gone_go_too(workdir):
    report.write(workdir, media="beside")
    (workdir / "media/mine.jpg").touch()
    (workdir / "samples/heldout_01_base.mp4").write_bytes(made_up.mp4(30))
    report.write(workdir, media="beside")
    posters = {video["poster"].removeprefix("media/") for video in read(workdir).all("video")}
    assert {file.name for file in (workdir / "media").iterdir()} == posters | {"mine.jpg"}


def test_a_video_that_cannot_be_decoded_is_named_and_the_page_is_written(workdir):
    (workdir / "samples/heldout_02_base.mp4").write_bytes(b"no video")
    report.write(workdir)
    assert read(workdir).text.count("cannot be decoded") == 1
    assert len(read(workdir).all("video")) == 11


def test_a_playlist_is_no_video_and_shows_no_other_file(workdir):
    (workdir / "samples/secret.mp4").write_bytes(made_up.mp4(3))
    playlist = workdir / "samples/heldout_01_evolved.mp4"
    playlist.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    assert shelf.look(workdir / "samples/secret.mp4") and shelf.look(playlist) is None
    assert shelf.look(workdir / "samples/nowhere.mp4") is None


def test_scores_stand_beside_a_square_video_and_below_a_wide_one(workdir):
    # small ones are enlarged to whole pixels: 5 x 64 of at most 330
    assert videos.shape(workdir / "samples/heldout_00_base.mp4") == (1.0, 320)
    assert videos.shape(None)[0] == 1.0
    media.write(workdir / "samples/heldout_01_evolved.mp4", np.zeros((2, 240, 416, 3), np.uint8), 8)
    assert videos.shape(workdir / "samples/heldout_01_evolved.mp4") == (416 / 240, 572)
    text = videos.section(folder.load(workdir), shelf.inside)
    assert text.count("class='card triple wide'") == 1 and text.count("class='card triple'") == 5


def test_four_videos_stand_in_a_row_and_more_in_two(workdir):
    file = workdir / "samples/heldout_00_base.mp4"
    for count, shape in ((2, (2, 1)), (4, (4, 1)), (5, (3, 2)), (6, (3, 2)), (9, (5, 2))):
        assert "--n:{};--lines:{}'>".format(*shape) in videos.film(file, count)


def test_samples_over_the_steps_are_thinned(workdir):
    assert videos.thinned(3) == [0, 1, 2]
    assert videos.thinned(21) == [0, 5, 10, 15, 20]
    made_up.watch(workdir, steps=range(10, 100, 10))
    text = videos.over_steps(folder.load(workdir), shelf.inside)
    steps = [part.split("<")[0] for part in text.split("<figcaption>")[1:]]
    assert steps == ["start", "step 10", "step 30", "step 50", "step 70", "step 90"]
    assert "A man waves" in text and "person 200" in text
