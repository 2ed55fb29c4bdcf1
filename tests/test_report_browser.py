"""What a reader sees of the page, in headless Chromium."""

import pytest
from browser import Browser

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
        assert browser.value("document.querySelectorAll('video.tiny, img.tiny').length") == 18
        assert browser.value(HOVERED) == "step 23"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.ask("Emulation.setDeviceMetricsOverride", **phone)
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value(LEFT_OUT) == 0  # no column of the table is off the screen
        assert browser.problems() == []
