"""The benchmark's total: its own example to the last bits, and what it passes over in silence."""

import json
import math
from pathlib import Path

import pytest

from evoid_jax.evaluate import published, upstream

# The benchmark's example of metric files is in no package: it is used where it lies beside the
# repository.
DEMO = next((p / "shared/data/opens2v/demo_output_json" for p in Path(__file__).parents
             if (p / "shared/data/opens2v/demo_output_json").is_dir()), None)  # fmt: skip
# The same numbers, of the two videos that are in it.
EXAMPLE = {
    "aesthetic_score": {
        "faceobj_14": {"aes_score": 4.811809062957764},
        "singleface_3": {"aes_score": 5.194509506225586},
    },
    "motion_smoothness": {
        "faceobj_14": {"motion_smoothness": 0.8985507246376812},
        "singleface_3": {"motion_smoothness": 1.0},
    },
    "motion_amplitude": {
        "faceobj_14": {"motion_fb": 0.35025984048843384, "motion_lk": 7.2},
        "singleface_3": {"motion_fb": 0.038793787360191345, "motion_lk": 0.73},
    },
    "facesim": {"singleface_3": {"cur_score": 0.9420197624713182, "arc_score": 0.93}},
    "gmescore": {
        "faceobj_14": {"gme_score": 0.68115234375},
        "singleface_3": {"gme_score": 0.67236328125},
    },
    "naturalscore_1": {"faceobj_14": "4", "singleface_3": "3"},
    "naturalscore_2": {"faceobj_14": "4", "singleface_3": "3"},
    "naturalscore_3": {"faceobj_14": "4", "singleface_3": "4"},
}
PARTS = {
    "aes_score": 0.3343864281972249,
    "motion_smoothness": 0.9492753623188406,
    "motion_amplitude": 0.1945268139243126,
    "facesim_cur": 0.9420197624713182,
    "gme_score": 0.6767578125,
    "natural_score": 0.6666666666666667,
}
TOTAL = 0.6884787565947551


def folder_of(place, entries=None):
    """Write metric files as the benchmark does."""
    place.mkdir(parents=True, exist_ok=True)
    for name, held in (entries or EXAMPLE).items():
        (place / f"{name}.json").write_text(json.dumps(held, indent=4))
    return place


def without(*names):
    return {name: held for name, held in EXAMPLE.items() if name not in names}


def check_example(read):
    merged = upstream.merge(read.values)
    assert merged.total == pytest.approx(TOTAL, abs=1e-12)
    assert merged.scores == pytest.approx(PARTS, abs=1e-12)


def test_the_benchmarks_example_merges_to_its_total(tmp_path):
    read = upstream.read(folder_of(tmp_path))
    check_example(read)
    assert read.faults == [] and read.others == []
    assert upstream.merge(read.values).counts == dict.fromkeys(PARTS, 2) | {"facesim_cur": 1}


@pytest.mark.skipif(DEMO is None, reason="the benchmark's example files are not at hand")
def test_the_benchmarks_own_files_merge_to_its_total():
    check_example(upstream.read(DEMO))


def test_the_weights_are_those_of_v1_1_and_not_of_v1_0(tmp_path):
    """v1.0 had no smoothness, and .15 for aesthetics and motion: .6164 for the same parts."""
    assert {m.name: m.weight for m in upstream.METRICS} == {
        "aes_score": 0.18,
        "motion_smoothness": 0.09,
        "motion_amplitude": 0.03,
        "facesim_cur": 0.25,
        "gme_score": 0.15,
        "natural_score": 0.30,
    }
    assert math.fsum(m.weight for m in upstream.METRICS) == pytest.approx(1, abs=1e-15)
    v1_0 = {"aes_score": 0.15, "motion_amplitude": 0.15, "facesim_cur": 0.25}
    v1_0 |= {"gme_score": 0.15, "natural_score": 0.30}
    total = sum(weight * PARTS[name] for name, weight in v1_0.items())
    assert total == pytest.approx(0.6163556, abs=1e-6) and abs(total - TOTAL) > 0.05


@pytest.mark.parametrize("metric", upstream.METRICS, ids=lambda metric: metric.name)
def test_a_metric_that_no_video_has_gives_no_total(metric, tmp_path):
    """The benchmark takes it for 0: aesthetics would count (0 - 4) / 3, naturalness -1/4."""
    files = [metric.file, *(f"{metric.file}_{k}" for k in (1, 2, 3))]
    read = upstream.read(folder_of(tmp_path, without(*files)))
    merged = upstream.merge(read.values)
    assert merged.total is None and merged.scores[metric.name] is None
    others = {name: score for name, score in merged.scores.items() if name != metric.name}
    assert others == pytest.approx({name: PARTS[name] for name in others}, abs=1e-12)


def test_an_earlier_total_in_the_folder_is_left_alone(tmp_path):
    """The benchmark merges every json file of the folder, its own total too."""
    folder_of(tmp_path)
    total = {"total_score": 0.9, "aes_score": 0.9}
    (tmp_path / "total_score.json").write_text(json.dumps(total))
    (tmp_path / "aes_score.json").write_text(json.dumps({"singleface_3": {"aes_score": 7}}))
    read = upstream.read(tmp_path)
    assert read.others == ["aes_score.json", "total_score.json"]
    check_example(read)


@pytest.mark.parametrize("failed", ["error", "", "nan", None, True, float("nan")], ids=str)
def test_a_grade_that_failed_is_told_of_and_the_others_count(failed, tmp_path):
    """The benchmark stores "error" and then ends at float("error"); NaN it would spread."""
    folder_of(tmp_path, EXAMPLE | {"naturalscore_2": {"faceobj_14": failed, "singleface_3": "3"}})
    read = upstream.read(tmp_path)
    check_example(read)  # 4, 4 and 4 have the mean of 4 and 4
    ((key, metric, reason),) = read.faults
    assert (key, metric) == ("faceobj_14", "natural_score")
    assert "naturalscore_2.json has" in reason


def test_a_video_whose_grades_all_failed_lacks_the_metric(tmp_path):
    grades = {f"naturalscore_{k}": {"faceobj_14": "error", "singleface_3": "3"} for k in (1, 2, 3)}
    read = upstream.read(folder_of(tmp_path, EXAMPLE | grades))
    assert read.values["natural_score"] == {"singleface_3": 3}
    assert len(read.faults) == 3
    assert upstream.merge(read.values).scores["natural_score"] == 0.5


def test_a_likeness_of_zero_is_a_score_and_the_other_likeness_is_none(tmp_path):
    """No face in any frame is 0 and counts; arc_score stands beside it and is in no total."""
    faces = {"singleface_3": {"cur_score": 0.0, "arc_score": 0.9}, "faceobj_14": {"arc_score": 0.9}}
    read = upstream.read(folder_of(tmp_path, EXAMPLE | {"facesim": faces}))
    merged = upstream.merge(read.values)
    assert (merged.scores["facesim_cur"], merged.counts["facesim_cur"]) == (0, 1)
    assert merged.total == pytest.approx(TOTAL - 0.25 * PARTS["facesim_cur"], abs=1e-12)
    assert [(fault.key, fault.metric) for fault in read.faults] == [("faceobj_14", "facesim_cur")]


def test_a_value_that_is_no_number_is_told_of(tmp_path):
    folder_of(tmp_path, EXAMPLE | {"gmescore": {"faceobj_14": {"gme_score": math.nan}}})
    read = upstream.read(tmp_path)
    assert "gme_score" not in read.values and read.faults[0].metric == "gme_score"
    assert upstream.merge(read.values).total is None


def test_parts_are_clipped_as_the_benchmark_does():
    by_name = {metric.name: metric for metric in upstream.METRICS}
    unit = lambda name, value: upstream.unit(by_name[name], value)
    assert [unit("aes_score", x) for x in (3, 4, 5.5, 7, 9)] == [0, 0, 0.5, 1, 1]
    assert [unit("natural_score", x) for x in (0, 1, 3, 5, 6)] == [0, 0, 0.5, 1, 1]
    for name in ("motion_amplitude", "motion_smoothness"):
        assert [unit(name, x) for x in (-0.25, 0.25, -3)] == [0.25, 0.25, 1]
    for name in ("facesim_cur", "gme_score"):
        assert [unit(name, x) for x in (-0.25, 0.25, 3)] == [-0.25, 0.25, 1]


def test_files_that_are_written_are_read_back_and_stale_ones_go(tmp_path):
    upstream.write(tmp_path / "metrics", EXAMPLE)
    names = sorted(file.name for file in (tmp_path / "metrics").iterdir())
    assert names == sorted(upstream.file_names()) == sorted(f"{name}.json" for name in EXAMPLE)
    assert json.loads((tmp_path / "metrics/facesim.json").read_text()) == EXAMPLE["facesim"]
    assert (tmp_path / "metrics/naturalscore_3.json").read_text().startswith("{\n    ")
    check_example(upstream.read(tmp_path / "metrics"))
    upstream.write(tmp_path / "metrics", without("gmescore"))
    assert not (tmp_path / "metrics/gmescore.json").exists()


def test_a_folder_without_metric_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        upstream.read(tmp_path / "gone")
    (tmp_path / "total_score.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has none of aesthetic_score.json"):
        upstream.read(tmp_path)


def test_published_rows_agree_where_two_sources_have_them():
    """The paper prints the leaderboard's totals and FaceSim with three digits."""
    by_source = {(one.source, one.name): one for one in published.ROWS}
    for name in ("VACE-14B", "Phantom-14B", "Hailuo"):
        board = by_source[published.LEADERBOARD, name]
        paper = by_source[published.PAPER, name]
        assert abs(board.total - paper.total) <= 0.0501
        assert abs(board.metrics["facesim_cur"] - paper.metrics["facesim_cur"]) <= 0.0501
    assert by_source[published.PAPER, "EvoID"].total == 70.4
