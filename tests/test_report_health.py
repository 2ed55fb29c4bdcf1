"""The report's section on the rewards' health: spread, ends of the range, what is missing."""

import json
import shutil

import pytest

from evoid_jax.report import curves, folder, health, page


@pytest.mark.parametrize(
    ("spread", "saturated", "missing", "said"),
    [
        (0.05, 0.1, 0.0, ""),
        (None, None, None, ""),
        (0.0, 0.0, 0.0, "the same for all videos of a pair"),
        (0.05, 0.6, 0.0, "mostly at an end of its range"),
        (0.05, 0.0, 0.2, "often missing"),
        (0.0, 1.0, 1.0, "the same for all videos of a pair, mostly at an end of its range, often"),
    ],
)
def test_what_keeps_a_reward_from_teaching_is_said(spread, saturated, missing, said):
    assert health.remark(spread, saturated, missing).startswith(said)
    assert bool(health.remark(spread, saturated, missing)) == bool(said)


def steps(count: int, **last) -> list[dict]:
    """Return a record whose last fifth has other values than the steps before."""
    usual = {"score": 0.5, "spread": 0.125, "saturated": 0.0, "missing": 0.0}
    rows = [usual] * (count - count // 5) + [usual | last] * (count // 5)
    return [
        {"reward": {key: {"gme": row[key]} for key in ("score", "spread", "saturated")}}
        | {"missing": {"gme": row["missing"]}}
        for row in rows
    ]


def test_the_last_fifth_is_shown():
    hues = curves.palette(["gme"])
    text = health.section(steps(10, spread=0.0, saturated=0.75, missing=0.25), hues)
    assert "<td data-head='spread'>0<" in text and "<td data-head='at 0 or 1'>75%<" in text
    assert "<td data-head='missing'>25%<" in text and "often missing</mark>" in text
    sound = health.section(steps(10), hues)
    assert ">0.125<" in sound and "<mark>" not in sound


def test_a_reward_that_never_scored_may_have_a_spread(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["reward"]["spread"]["stranger"] = 0.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page.page(folder.load(run)).split(" id='health'")[1].split("</section>")[0]
    assert "</i>stranger</th>" in text and "the same for all videos of a pair" in text


def test_it_stands_in_the_page_and_older_records_have_none(finished_run):
    run = folder.load(finished_run)
    text = page.page(run)
    assert " id='health'" in text and "href='#health'" in text
    older = [{key: value for key, value in row.items() if key != "reward"} for row in run.steps]
    assert health.section(older, {}) == ""
