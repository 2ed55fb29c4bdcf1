"""Real clips by the set `open` through the command itself, killed in the middle and called again.

Needs what tests/test_open_real.py needs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_pictures

from evoid_jax import media
from evoid_jax.evaluate import upstream

pytestmark = pytest.mark.slow
KEYS = ("singleface_1", "singleface_2", "singlehuman_1")
PHOTOS = ("obama.jpg", "Tom_Hanks_54745.png", "coffee.png")  # the last one without a face
FRAMES = 17


@pytest.fixture
def command(tmp_path):
    real_pictures.weights()
    listed = {
        key: {"img_paths": [name], "prompt": "A man in a suit talks in the back of a car."}
        for key, name in zip(KEYS, PHOTOS, strict=True)
    }
    (tmp_path / "list.json").write_text(json.dumps(listed))
    video = real_pictures.clip("carphone_pristine.mp4")
    for k, key in enumerate(KEYS):
        media.write(tmp_path / f"mine/{key}.mp4", video[k * FRAMES : (k + 1) * FRAMES], 16)
    words = f"--data={tmp_path}/list.json --images={real_pictures.folder()} --out={tmp_path}/out"
    words += f" --videos={tmp_path}/mine --reward.preset=open --reward.judge=local --workers=1"
    return [sys.executable, "-m", "evoid_jax.evaluate", *words.split()]


def written(row: Path) -> list[dict]:
    """Return the whole lines of a row's journal."""
    file = row / "scores.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def killed_after_the_first_video(command: list[str], row: Path) -> list[dict]:
    """Start a command and kill it, servers included, when a video is scored; returns the lines."""
    started = subprocess.Popen(command, start_new_session=True)
    try:
        until = time.monotonic() + 400
        while not any(line["key"] == KEYS[0] for line in written(row)):
            assert started.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    return written(row)


def test_every_file_and_a_table_and_no_number_twice(command, tmp_path):
    row = tmp_path / "out/mine"
    had = killed_after_the_first_video(command, row)
    assert 0 < len(had) < len(KEYS) * 10
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = written(row)
    assert lines[: len(had)] == had
    names = [(line["key"], line["name"]) for line in lines]
    # arcface, curricularface, gme, aesthetic, qalign, flow; three grades; EvoScore
    assert len(names) == len(set(names)) == len(KEYS) * 10
    assert sorted(file.name for file in (row / "metrics_not_comparable").iterdir()) == sorted(
        upstream.file_names()
    )
    total = json.loads((row / "total.json").read_text())
    assert 0 < total["total_score"] < 1 and not total["comparable_with_the_leaderboard"]
    assert total["videos_with_metric"] | {"facesim_cur": 3} == dict.fromkeys(
        total["videos_with_metric"], 3
    )
    (fault,) = total["missing"]
    assert (fault["key"], fault["metric"]) == (KEYS[2], "facesim_cur") and "face" in fault["reason"]
    for name in ("table.md", "table.json", "mine/evoscore.json", "mine/system.json"):
        assert (tmp_path / "out" / name).is_file()
    assert "mine (not comparable)" in done.stdout and "table: " in done.stdout
