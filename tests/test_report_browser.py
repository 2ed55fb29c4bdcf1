"""What a reader sees of the pages, in headless Chromium."""

import json
import shutil
import time

import numpy as np
import pytest
import two_runs
from browser import Browser

from evoid_jax import media
from evoid_jax.report import choices, compare, folder, page, study

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
    video.scrollIntoView({behavior: "instant", block: "center"});
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
PLAYING = """
  [...document.querySelectorAll("video")].filter((video) => !video.paused).map((video) =>
    video.closest("article").querySelector(".facts").textContent)
"""
PLAYED_FIRST = """(async () => {
  const end = Date.now() + 20000, there = () => [...document.querySelectorAll("video")].slice(0, 2);
  while (Date.now() < end && !there().every((one) => one.readyState >= 2 && one.currentTime > 0)) {
    await new Promise((done) => setTimeout(done, 50));
  }
  return there().every((one) => one.readyState >= 2 && !one.paused);
})()"""
SIDES = """[document.querySelector(".sides").dataset.trial,
  document.querySelector(".sides video").src.slice(-2000)]"""
SLIDER = """(() => {
  const card = document.querySelector(".triple");
  [...card.querySelectorAll("button")].find((one) => one.textContent === "Slider").focus();
  return card.querySelector(".over") === null;
})()"""
CUT = """(() => {
  const duo = document.querySelector(".duo.over");
  const handle = duo.parentElement.querySelector("label input");
  handle.focus();
  const boxes = [...duo.querySelectorAll("video")].map((one) => one.getBoundingClientRect());
  const [base, evolved] = boxes;
  return {same: base.left === evolved.left && base.top === evolved.top, at: handle.value,
          clip: getComputedStyle(duo.querySelector(".evolved .lens")).clipPath};
})()"""
HOVERED = """(() => {
  const chart = document.querySelector("svg.chart"), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right, clientY: box.top + 9}));
  const text = document.querySelector("#tip:not([hidden]) strong").textContent;
  chart.dispatchEvent(new PointerEvent("pointerleave"));
  return text;
})()"""


WIDTHS = """(selector) => [...document.querySelector(selector).querySelectorAll("video")].map(
  (video) => Math.round(video.getBoundingClientRect().width))"""
ROWS = """(selector) => new Set([...document.querySelector(selector).querySelectorAll("video")].map(
  (video) => Math.round(video.getBoundingClientRect().top))).size"""
FULL = """[...document.querySelector("article").querySelectorAll("button")]
  .find((one) => one.textContent === "Full screen").click()"""
SMALLEST_TEXT = """
  Math.min(...[...document.querySelectorAll(".tick, .sorted span")].filter((one) => one.textContent)
    .map((one) => one.getBoundingClientRect().height))
"""
TIP_ENDS = """(() => {
  const ends = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const box = chart.getBoundingClientRect();
    for (const share of [0.15, 0.5, 1]) {
      const at = {clientX: box.left + share * box.width, clientY: box.top + 9};
      chart.dispatchEvent(new PointerEvent("pointermove", at));
      const tip = document.getElementById("tip").getBoundingClientRect();
      ends.push(tip.left, tip.right);
      chart.dispatchEvent(new PointerEvent("pointerleave"));
    }
  }
  return [Math.min(...ends), Math.max(...ends)];
})()"""
STORED = """Object.fromEntries(Object.entries(localStorage).map(([name, text]) =>
  [name.endsWith("-before") ? "before" : "now", JSON.parse(text)]))"""

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
LAPTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
SCREEN = {"width": 1920, "height": 1080, "deviceScaleFactor": 1, "mobile": False}
KEYS = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Backspace": 8, " ": 32, "s": 83, "n": 78}
KEYS |= {"r": 82, "b": 66}


def press(browser, *keys):
    """Press keys one after another, as a person without a pointer does."""
    for key in keys:
        sort = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        sort |= {"text": {"Enter": "\r"}.get(key, key)} if len(key) == 1 or key == "Enter" else {}
        browser.ask("Input.dispatchKeyEvent", type="keyDown", **sort)
        browser.ask("Input.dispatchKeyEvent", type="keyUp", **sort)


@pytest.mark.slow
def test_chromium_shows_curves_and_plays_the_videos(finished_run):
    with Browser(finished_run / "report.html") as browser:
        assert browser.value("document.querySelectorAll('svg.chart path.curve').length") >= 18
        assert browser.value(SHORTEST_CURVE) > 50
        for _ in range(2):  # down the page and, after all have been out of sight, once more
            played = browser.value(PLAYED)
            assert len(played) == 12
            for video in played:
                assert video["error"] is None
                assert (video["width"], video["height"]) == (64, 64)
                assert video["playing"] and video["times"] > 3, video
            playing = browser.value(PLAYING)
            assert len(playing) == 2 and len(set(playing)) == 1  # one pair, and no others
        assert browser.value("document.querySelectorAll('video.tiny, img.tiny').length") == 18
        assert browser.value(HOVERED) == "step 23"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value(LEFT_OUT) == 0  # no column of the table is off the screen
        assert browser.problems() == []


@pytest.mark.slow
def test_slider_works_by_keyboard_and_reduced_motion_starts_nothing(finished_run):
    with Browser(finished_run / "report.html", "--force-prefers-reduced-motion") as browser:
        browser.value("document.querySelector('.triple').scrollIntoView()")
        assert browser.value(PLAYING) == []
        assert browser.value(SLIDER)
        press(browser, " ")
        before = browser.value(CUT)
        assert before == {"same": True, "at": "50", "clip": "inset(0px 0px 0px 50%)"}
        press(browser, "ArrowRight", "ArrowRight", "ArrowRight")
        assert browser.value(CUT)["clip"] == "inset(0px 0px 0px 53%)"
        assert browser.problems() == []


@pytest.mark.slow
def test_large_videos_are_read_when_they_are_played(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    page.write(workdir, media="beside")
    with Browser(workdir / "report.html", "--force-prefers-reduced-motion") as browser:
        read = lambda: [url for url in browser.problems() if str(url).endswith(".mp4")]
        assert read() == []
        assert browser.value("document.querySelector('.duo video').readyState") == 0
        browser.value("document.querySelector('.tools button').click()")
        assert browser.value(PLAYED_FIRST)
        assert {url.split("_")[-1] for url in read()} == {"base.mp4", "evolved.mp4"}
        assert len({*read()}) == 2


@pytest.mark.slow
def test_the_compare_page_fits_a_phone(finished_run, tmp_path):
    compare.write(two_runs.fill(tmp_path, finished_run), tmp_path / "out")
    with Browser(tmp_path / "out/compare.html") as browser:
        assert browser.value("document.querySelectorAll('.film video').length") == 24
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value(LEFT_OUT) == 0
        assert browser.problems() == []


def wide(run, shade=0):
    """Make the run's first videos as wide as those of a full-size model; return the run."""
    for name, grey in (("base", 20), ("evolved", 60 + shade)):
        frames_FHWC = np.full((2, 480, 832, 3), grey, np.uint8)
        media.write(run / f"samples/heldout_00_{name}.mp4", frames_FHWC, 8)
    return run


@pytest.mark.slow
def test_wide_videos_are_large_and_larger_in_full_screen(finished_run, tmp_path):
    copies = two_runs.fill(tmp_path, finished_run)
    runs = [wide(run, shade=40 * i) for i, run in enumerate(copies)]
    compare.write(runs, tmp_path / "out", shown=1)
    report = page.write(runs[0], shown=1)
    for file, row, count, least in (
        (tmp_path / "out/compare.html", ".film .row", 4, {1280: 280, 1920: 430, 390: 320}),
        (report, ".triple .duo", 2, {1280: 560, 1920: 560, 390: 320}),
    ):
        with Browser(file, "--force-prefers-reduced-motion") as browser:
            for screen in (LAPTOP, SCREEN, PHONE):
                lines = count if screen is PHONE else 1
                browser.ask("Emulation.setDeviceMetricsOverride", **screen)
                until(browser, f"innerWidth === {screen['width']}")
                small = browser.value(f"({WIDTHS})('{row}')")
                assert len(small) == count and min(small) >= least[screen["width"]]
                assert browser.value(f"({ROWS})('{row}')") == lines
                assert browser.value("document.documentElement.scrollWidth <= innerWidth")
                browser.ask("Runtime.evaluate", expression=FULL, userGesture=True)
                until(browser, "document.fullscreenElement !== null")
                until(browser, f"Math.min(...({WIDTHS})('{row}')) > {1.05 * max(small)}")
                assert browser.value(f"({ROWS})('{row}')") == lines
                browser.ask("Runtime.evaluate", expression="document.exitFullscreen()")
                until(browser, "document.fullscreenElement === null")


@pytest.mark.slow
def test_charts_can_be_read_on_a_phone(finished_run, tmp_path):
    long = two_runs.fill(tmp_path, finished_run, [letter * 90 for letter in "abc"])
    compare.write(long, tmp_path / "out")
    for file in (finished_run / "report.html", tmp_path / "out/compare.html"):
        with Browser(file, "--force-prefers-reduced-motion") as browser:
            browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
            until(browser, "innerWidth === 390")
            assert browser.value(SMALLEST_TEXT) >= 12  # the box of letters of 10 pixels
            left, right = browser.value(TIP_ENDS)
            assert left >= 0 and right <= 390
            assert browser.value("document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_a_phone_shows_wide_blind_videos_one_above_the_other(finished_run, tmp_path):
    (run,) = two_runs.fill(tmp_path, finished_run, "a")
    for k in range(1, 6):
        (run / f"samples/heldout_{k:02d}_base.mp4").unlink()
    with Browser(page.write_blind(wide(run))) as browser:
        press(browser, "Enter")
        widths = lambda: browser.value(f"({WIDTHS})('.sides')")
        shown = lambda: browser.value("document.querySelector('.sides').innerText.split(/\\s+/)")
        wait(lambda: browser.value("document.querySelector('.sides.wide') !== null"))
        assert browser.value(f"({ROWS})('.sides')") == 1 and "Left" in shown()
        browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
        wait(lambda: min(widths()) > 340)
        assert browser.value(f"({ROWS})('.sides')") == 2
        assert shown() == ["Upper", "Lower"]
        assert browser.value("document.documentElement.scrollHeight <= innerHeight")


@pytest.mark.slow
def test_the_blind_page_works_by_keyboard_alone(finished_run, tmp_path):
    """Answers are given, taken back, skipped, saved; the file is read back as what was chosen."""
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    file, saved = page.write_blind(workdir), tmp_path / "saved"
    with Browser(file) as browser:
        browser.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
        title = lambda: browser.value("document.querySelector('h1')?.textContent")
        shown = lambda: browser.value("document.querySelector('.facts').textContent")
        press(browser, "Enter")
        assert title() == study.QUESTIONS["identity"] and shown() == "question 1 of 18"
        assert browser.value(PLAYED_FIRST)
        press(browser, " ")
        assert browser.value("[...document.querySelectorAll('video')].every((one) => one.paused)")
        press(browser, "ArrowLeft", "ArrowRight")
        assert title() == study.QUESTIONS["quality"] and shown() == "question 3 of 18"
        press(browser, "Backspace")
        assert title() == study.QUESTIONS["motion"]
        press(browser, "ArrowLeft", "n")  # the answer taken back was right, it is left now
        press(browser, *["ArrowRight"] * 14)
        assert shown() == "question 18 of 18"
        browser.ask("Page.reload")  # a tab that was closed goes on where it stopped
        wait(lambda: title() == "Which video is better?")
        assert "17 of 18" in browser.value("document.querySelector('.main').textContent")
        press(browser, "Enter", "ArrowLeft")
        assert title() == "Done. Thank you."
        press(browser, "s")
        (answers,) = wait(lambda: list(saved.glob("answers_*.json")))
        assert [url for url in browser.problems() if not str(url).startswith("blob:")] == []
    given = json.loads(answers.read_text())["answers"]
    sides = [next((s for s in ("left", "right") if a[s] == a["choice"]), None) for a in given]
    assert sides == ["left", "left", None, *["right"] * 14, "left"]
    assert len({a["trial"] for a in given}) == 6
    trials = study.of_run(folder.load(workdir))
    counted = choices.tally(trials, choices.read(answers).answers)
    assert (counted.answers, counted.skipped, counted.left, counted.raters) == (17, 1, 3, 1)
    arm = {(t.name, mark): arm for t in trials for mark, arm in t.arms[0].items()}
    wins = sum(arm.get((a["trial"], a["choice"])) == "evolved" for a in given)
    assert sum(p.wins for p in counted.preferences) == wins


@pytest.mark.slow
def test_no_key_throws_answers_away(finished_run, tmp_path):
    """R saves what is not saved, and lays it aside; B takes it up again."""
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    file, saved = page.write_blind(workdir), tmp_path / "saved"
    files = lambda: sorted(saved.glob("answers_*.json"))
    with Browser(file) as browser:
        browser.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
        shown = lambda: browser.value("document.querySelector('main')?.innerText ?? ''")
        press(browser, "Enter", *["ArrowLeft"] * 18)
        assert "Done. Thank you." in shown() and "Save, then next person" in shown()
        press(browser, "r")
        (first,) = wait(files)
        assert len(json.loads(first.read_text())["answers"]) == 18
        assert "question 1 of 18" in shown()
        press(browser, "Backspace")
        assert "Back to the person before (18 of 18 answered)" in shown()
        press(browser, "b", "Backspace", "ArrowRight")  # taken up, and the last answer changed
        assert "Done. Thank you." in shown() and "Save, then next person" in shown()
        press(browser, "s")
        last = lambda: json.loads(first.read_text())["answers"][-1]
        wait(lambda: last()["choice"] == last()["right"])  # here a file takes its name's place
        assert "Saved as answers_" in shown() and "Save, then" not in shown()
        press(browser, "r", "ArrowLeft", "ArrowLeft")
        browser.ask("Page.reload")
        wait(lambda: "Save, then begin anew" in shown())
        press(browser, "r")
        wait(lambda: len(files()) == 2)
        stored = browser.value(STORED)
        assert [len(one["answers"]) for one in stored["before"]] == [18, 2]
        assert stored["now"]["answers"] == []
        # whoever was laid aside comes up again, whatever was begun in between
        press(browser, "ArrowLeft", *["Backspace"] * 2, "b", *["Backspace"] * 3, "b")
        assert "Done. Thank you." in shown()
        stored = browser.value(STORED)
        assert len(stored["now"]["answers"]) == 18


@pytest.mark.slow
def test_a_second_tab_writes_over_nothing(finished_run, tmp_path):
    """Whichever tab did not answer last asks, and then goes on with the other's answers."""
    file = page.write_blind(shutil.copytree(finished_run, tmp_path / "run"))
    with Browser(file) as browser:
        shown = lambda: browser.value("document.querySelector('main')?.innerText ?? ''")
        first, second = browser.open_again(), browser.session
        wait(lambda: "Begin" in shown())
        browser.session = first
        press(browser, "Enter", "ArrowLeft", "ArrowLeft")
        browser.session = second
        wait(lambda: "goes on in another tab" in shown())
        press(browser, "ArrowLeft", "n", "s", "Backspace")  # no longer keys
        press(browser, "Enter")
        wait(lambda: "Go on (2 of 18 answered)" in shown())
        press(browser, "Enter", "ArrowRight")
        browser.session = first
        wait(lambda: "goes on in another tab" in shown())
        assert len(browser.value(STORED)["now"]["answers"]) == 3


@pytest.mark.slow
def test_order_and_sides_differ_from_person_to_person(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    file, seen = page.write_blind(workdir), set()
    for _ in range(3):  # each browser is a new person; two alike of 6! 2^6 orders are no accident
        with Browser(file) as browser:
            orders = []
            press(browser, "Enter")
            for _ in range(6):
                orders.append(browser.value(SIDES))
                press(browser, "n", "n", "n")
            assert len({name for name, _ in orders}) == 6
            seen.add(json.dumps(orders))
    assert len(seen) == 3


def until(browser, condition):
    """Wait till a condition of the page holds."""
    wait(lambda: browser.value(condition))


def wait(found):
    """Return what `found` finds, within 20 seconds."""
    end = time.monotonic() + 20
    while not (value := found()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return value
