"""From a model to a table; killed in the middle; and by two processes together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluations import KEYS, benchmark, clips, read, run
from fake_sidecar import Fake
from servers import dead_url, serve

from evoid_jax import media
from evoid_jax.evaluate import upstream

ROOT = Path(__file__).parents[1]
TINY = ROOT / "evoid_jax" / "assets" / "tiny"
MAKE = (f"--model={TINY}", "--name=base", "--guidance=1")


def command(data, out, *more):
    return [sys.executable, "-m", "evoid_jax.evaluate", f"--data={data}", f"--out={out}", *more]


def test_the_tiny_model_from_a_list_to_a_table_and_on_from_there(tmp_path):
    """By its own sidecar and judge; a video that is lost is made again, to the last byte, alone."""
    data, out = benchmark(tmp_path / "benchmark", KEYS[:2]), tmp_path / "out"
    flags = (*MAKE, "--steps=2", "--reward.preset=tiny", "--reward.judge=local")
    row = out / "base"
    files = [row / "videos" / f"{key}.mp4" for key in KEYS[:2]]
    assert run(data, out, *MAKE, "--steps=2", "--noscore") == ""
    assert all(file.is_file() for file in files) and not (out / "table.md").exists()
    text = run(data, out, *flags)
    for file in files:
        video_FHWC, fps = media.read(file)
        assert (video_FHWC.shape, fps) == ((9, 64, 64, 3), 8)
    total = read(row, "total.json")
    assert total["missing"] == [] and 0 < total["total_score"] < 1
    assert set(total["videos_with_metric"].values()) == {2} and total["evoscore"]["videos"] == 2
    written = {file.name for file in (row / "metrics_not_comparable").iterdir()}
    assert written == set(upstream.file_names())
    assert "preset tiny: stand-ins" in text and "graded by heuristic" in text
    made = [file.read_bytes() for file in files]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    assert run(data, out, *MAKE, "--steps=2", "--noscore") == ""
    assert [file.read_bytes() for file in files] == made and made[0] != made[1]
    assert files[0].stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="base was begun with other videos .steps was 2, now 3"):
        run(data, out, *MAKE, "--steps=3", "--reward.preset=tiny")


def test_killed_in_the_middle_and_started_again_it_scores_no_video_twice(tmp_path):
    data, folder = benchmark(tmp_path / "benchmark"), clips(tmp_path / "mine", (50, 100, 150))
    fake = Fake(names=["gme"], before=[None, None, 600.0])  # the third request is not answered
    with serve(fake.app()) as url:
        more = f"--videos={folder}", f"--reward.sidecars={url}", "--workers=1"
        started = subprocess.Popen(
            command(data, tmp_path / "out", *more), stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        while fake.posts < 3:
            assert started.poll() is None, started.stderr.read()
            time.sleep(0.05)
        os.kill(started.pid, signal.SIGKILL)
        started.communicate()
        assert not (tmp_path / "out/mine/total.json").exists()
        lines = (tmp_path / "out/mine/scores.jsonl").read_text().splitlines()
        assert len(lines) == 2
        text = run(data, tmp_path / "out", *more)
    assert len(fake.batches) == len({batch.prompts[0] for batch in fake.batches}) == 3
    assert read(tmp_path / "out/mine", "total.json")["videos_with_metric"]["gme_score"] == 3
    assert "GME is missing" not in text


@pytest.mark.slow
def test_two_processes_make_the_videos_that_one_does(tmp_path):
    """Each has its devices' share of them; the first process writes and scores."""
    data = benchmark(tmp_path / "benchmark")
    address = dead_url().removeprefix("http://")
    with serve(Fake(names=["gme"]).app()) as url:
        flags = *MAKE, "--steps=2", f"--reward.sidecars={url}"
        alone = command(data, tmp_path / "one", *flags)
        subprocess.run(alone, check=True, cwd=ROOT, timeout=1800)
        started = []
        for process in range(2):
            who = f"--coordinator={address}", "--processes=2", f"--process={process}"
            both = command(data, tmp_path / "two", *flags, *who)
            started.append(subprocess.Popen(both, cwd=ROOT))
        assert [one.wait(1800) for one in started] == [0, 0]
    for key in KEYS:
        one, two = (
            media.read(tmp_path / out / "base/videos" / f"{key}.mp4")[0].astype(int)
            for out in ("one", "two")
        )
        assert one.shape == two.shape and abs(one - two).mean() < 0.5
    lines = (tmp_path / "two/base/scores.jsonl").read_text().splitlines()
    assert len(lines) == len(KEYS)
