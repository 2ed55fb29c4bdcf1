"""The tables of many runs: which are made again, what is compared with what, and how it is told."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run

from bench import many_runs
from evoid_jax import config

sys.path.append(str(Path(many_runs.__file__).parent))  # where `bench/ablation.py` finds it

PRIOR = {"arcface": 1.0, "gme": 3.0, "evoscore": 0.0}


def triple(person, seed, base, evolved, **more):
    """A video pair with scores (arcface, gme, evoscore) of both arms."""
    arms = {
        name: dict(zip(PRIOR, values, strict=True))
        for name, values in (("base", base), ("evolved", evolved))
    }
    monitor = {name: {"identity": 0.3, "motion": 0.1} for name in arms}
    monitor["evolved"] = {"identity": 0.4, "motion": None}
    made = {"identity": person, "prompt": "p", "seed": seed, **arms, "monitor": monitor}
    return made | more


def write(workdir, triples):
    workdir.mkdir(parents=True, exist_ok=True)
    made = {"schema": 1, "prior": PRIOR, "triples": triples}
    (workdir / many_runs.SCORES).write_text(json.dumps(made))
    return workdir


@pytest.fixture
def row(tmp_path):
    """Two seeds of one row, two people: gains of .4 and .2 in gme, then of .2 and 0."""
    first = [
        triple("a", 1, (0.5, 0.1, 0.5), (0.5, 0.5, 0.6)),
        triple("b", 2, (0.5, 0.1, 0.5), (0.5, 0.3, 0.6)),
    ]
    second = [
        triple("a", 1, (0.5, 0.1, 0.5), (0.5, 0.3, 0.6)),
        triple("b", 2, (0.5, 0.1, 0.5), (0.5, 0.1, 0.6)),
    ]
    return many_runs.measured([write(tmp_path / "0", first), write(tmp_path / "1", second)])


def test_totals_are_weighed_by_the_proof_s_priors(row):
    np.testing.assert_allclose(row.base["total"], [0.2] * 4)  # (0.5 + 3 x 0.1) / 4
    np.testing.assert_allclose(row.evolved["total"], [0.5, 0.35, 0.35, 0.2])
    np.testing.assert_allclose(row.evolved["evoscore"], [0.6] * 4)
    assert np.isnan(row.evolved["motion"]).all()
    np.testing.assert_allclose(many_runs.by_seed(row, "total"), [0.225, 0.075])


def test_a_score_that_one_arm_lacks_counts_in_neither():
    base, evolved = many_runs.columns(triple("a", 1, (0.5, 0.1, None), (None, 0.5, None)), PRIOR)
    assert (base["total"], evolved["total"]) == pytest.approx((0.1, 0.5))
    assert base["evoscore"] is None


def test_changes_have_intervals_over_people(row):
    apart = many_runs.change(row.base["total"], row.evolved["total"], row.identity_B)
    assert apart.mean == pytest.approx(0.15)
    assert apart.low == pytest.approx(0.075) and apart.high == pytest.approx(0.225)  # b, a alone
    assert many_runs.cell(row, "total") == "0.350 +0.150 (0.075, 0.225)"
    assert many_runs.cell(row, "motion") == "--"


def test_rows_are_compared_where_both_have_the_video(row, tmp_path):
    better = [
        triple("a", 1, (0.5, 0.1, 0.5), (0.9, 0.5, 0.6)),
        triple("b", 9, (0.5, 0.1, 0.5), (0.9, 0.9, 0.6)),  # with other noise
    ]
    other = many_runs.measured([write(tmp_path / "other", better)])
    assert many_runs.between(row, other, "total").mean == pytest.approx(0.1)
    assert math.isnan(many_runs.between(row, row._replace(triple_B=[()] * 4), "total").mean)


def test_what_an_interval_shows():
    outcome = lambda sign, *numbers: many_runs.outcome(sign, many_runs.Change(*numbers))
    assert outcome(1, 0.02, 0.01, 0.03) == "shown" == outcome(-1, -0.02, -0.03, -0.01)
    assert outcome(1, -0.02, -0.03, -0.01) == "the other way" == outcome(0, 0.02, 0.01, 0.03)
    assert outcome(1, 0.02, -0.01, 0.05) == "not shown"
    assert outcome(0, 0.0, -0.01, 0.01) == "not contradicted"
    assert outcome(1, *[math.nan] * 3) == "not measured"


def test_a_run_that_is_done_is_not_made_again(tmp_path, monkeypatch):
    """Done is: proved, with these very settings, and with the scores of single videos."""
    made = []
    monkeypatch.setattr(many_runs, "call", lambda line, log: made.append(line))
    row = many_runs.Row("rwr", "configs/evoid.py:tiny,rwr", ("--config.steps=7",))
    more = ["--config.data.pairs=2"]
    workdir = many_runs.make(row, 3, tmp_path, more)
    (line,) = made
    assert workdir == tmp_path / "rwr-3" and line[:2] == ["-m", "evoid_jax.train"]
    cfg = many_runs.settings_of(line)
    assert (cfg.algorithm, cfg.steps, cfg.data.pairs, cfg.seed) == ("rwr", 7, 2, 3)
    write(workdir, [])
    (workdir / "config.json").write_text(config.dumps(cfg))
    (workdir / "summary.json").write_text(json.dumps({"steps": 6}))
    many_runs.make(row, 3, tmp_path, more)
    assert len(made) == 2  # stopped before its last step
    (workdir / "summary.json").write_text(json.dumps({"steps": 7}))
    many_runs.make(row, 3, tmp_path, more)
    assert len(made) == 2
    many_runs.make(row, 3, tmp_path, [])
    assert len(made) == 3  # other settings: train says what is wrong with the folder


def test_a_trial_is_judged_by_its_last_comparison(tmp_path):
    cfg = config.Config(steps=5)
    assert many_runs.tried(cfg, tmp_path) is None
    (tmp_path / "config.json").write_text(config.dumps(cfg))
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "step_000005.json").write_text(json.dumps({"delta_total": 0.04}))
    assert many_runs.tried(cfg, tmp_path) == 0.04
    assert many_runs.tried(config.Config(steps=6), tmp_path) is None


def test_the_ablation_s_table_and_orderings(row):
    from bench import ablation

    text = ablation.results({"mdw": row})
    assert "| base |  | 0.200 | 0.500 | 0.300 | 0.100 |  | 0.658 | 0.544 |" in text
    assert "+0.225, +0.075 | 0.704 | 0.682 |" in text
    text = ablation.orderings({"uwr": row, "pwr": row, "pwr_tp": row})
    assert "| base to uwr | total | +0.027 | +0.150 (0.075, 0.225) | shown |" in text
    assert "| pwr to pwr_tp | total | +0.000 | +0.000 (0.000, 0.000) | not contradicted |" in text
    assert "| uwr to pwr | evoscore | +0.018 | +0.000 (0.000, 0.000) | not shown |" in text
    assert "uwr_tp" not in text and "mdw" not in text


def test_the_table_of_algorithms_says_what_each_took(row):
    from bench import algorithms

    steps, cost = {"evoid": 50, "rwr": 70}, {"evoid": 2e13, "rwr": 1e13}
    better = row._replace(evolved=row.evolved | {"total": row.evolved["total"] + 0.1})
    text = algorithms.results({"evoid": row, "rwr": better}, steps, cost)
    assert "| evoid | 50 | 1 | 0.350 +0.150 (0.075, 0.225) | 0.600 " in text
    assert "| rwr | 70 | 0.7 | 0.450 +0.250 " in text
    assert "| +0.100 (0.100, 0.100) |" in text


def test_every_row_of_the_ablation_is_a_preset():
    from bench import ablation

    for name in ablation.PAPER:
        if name != "base":
            line = many_runs.command(ablation.row(name), 0, Path("none"), [], "")
            assert "evoscore" in [row.name for row in many_runs.settings_of(line).reward.table]


def test_equal_flops_are_more_steps_of_what_asks_less():
    from bench import algorithms

    rows = {name: algorithms.row(name, 50, (), name) for name in algorithms.TRIALS}
    cost = {name: algorithms.step_flops(row, []) for name, row in rows.items()}
    assert cost["evoid"] > cost["nft"] == cost["grpo"] > cost["rwr"] == cost["imitation"]
    assert cost["clips"] < 0.5 * cost["imitation"]  # nothing is generated
    for name, (setting, values) in algorithms.TRIALS.items():
        assert len(algorithms.choices(name)) == 3 * len(values) == 6, setting
        for chosen in algorithms.choices(name):
            row = algorithms.row(name, 50, chosen, name)
            many_runs.settings_of(many_runs.command(row, 0, Path("none"), [], ""))


def test_a_trial_evolves_and_watches_and_proves_nothing(tmp_path):
    cfg, workdir = small_run.settings(str(tmp_path / "cache"), 2), tmp_path / "trial"
    many_runs.trial(cfg, workdir)
    assert math.isfinite(many_runs.tried(cfg, workdir))
    assert [row["step"] for row in small_run.lines(workdir)] == [0, 1]
    assert not (workdir / "summary.json").exists() and not (workdir / "proof").exists()
