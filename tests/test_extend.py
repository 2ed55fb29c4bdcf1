"""docs/extend.md: a reward of one's own is added without a change of the package."""

import json

import pytest
from example_sidecar import FILE, running
from small_run import SMALL, lines

from evoid_jax import commandline, config, train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of one step whose ninth reward is the example's."""
    values = commandline.load(f"{FILE.parent / 'sharpness.py'}:tiny")
    values.update(SMALL | {"steps": 1})
    values.data.cache = str(tmp_path_factory.mktemp("cache"))
    folder = tmp_path_factory.mktemp("run")
    with running() as url:
        values.reward.sidecars = ("local", url)
        train.train(config.from_dict(values.to_dict()), folder)
    return folder


def test_it_is_scored_and_weighed(workdir):
    (row,) = lines(workdir)
    assert 0 < row["reward"]["score"]["sharpness"] < 1
    assert row["reward"]["raw"]["sharpness"] > 1
    assert row["weights"]["sharpness"] > 0
    assert sum(row["weights"].values()) == pytest.approx(1, abs=1e-5)
    assert row["valid_fraction"] == 1


def test_the_proof_compares_it(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["prior"]["sharpness"] == pytest.approx(0.1)
    assert summary["failures"]["evolved"]["sharpness"] == 0
    assert {"mean", "ci95"} <= summary["delta"]["sharpness"].keys()


def test_the_report_shows_it_and_what_it_is(workdir):
    page = (workdir / "report.html").read_text()
    assert page.count("sharpness") > 3
    assert "mean step between neighbouring pixels" in page
    (start,) = json.loads((workdir / "run.json").read_text())["starts"]
    (row,) = [row for row in start["rewards"] if row["name"] == "sharpness"]
    assert (row["group"], row["prior"]) == ("quality", 0.1)
    assert [source["version"] for source in row["sources"]] == ["1"]
