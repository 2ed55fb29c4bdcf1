"""The tables of many runs: which are made again, what is compared with what, and how it is told."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run

from bench import many_runs
from evoid_jax import provenance

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
    np.testing.assert_allclose(many_runs.against_base(row, "total").by_seed, [0.225, 0.075])


def test_the_objective_total_is_without_the_judge_s_grade():
    """As the paper's, whose total has none; the judge's prior of 4 is as much as all the others."""
    prior = {"arcface": 1.0, "gme": 3.0, "vqscore": 4.0}
    made = triple("a", 1, (0.5, 0.1, 0.5), (0.5, 0.5, 0.6))
    made["base"]["vqscore"], made["evolved"]["vqscore"] = 0.4, 0.8
    base, evolved = many_runs.columns(made, prior)
    assert (base["objective"], evolved["objective"]) == pytest.approx((0.2, 0.5))
    assert (base["total"], evolved["total"]) == pytest.approx((0.3, 0.65))
    assert (base["vqscore"], evolved["vqscore"]) == (0.4, 0.8)


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
    assert many_runs.between(row, other, "total").change.mean == pytest.approx(0.1)
    nothing = many_runs.between(row, row._replace(triple_B=[()] * 4), "total")
    assert math.isnan(nothing.change.mean) and nothing.by_seed == []


def against(*delta, seeds=2):
    """Ten people with these changes in turn, in the runs of some seeds."""
    delta_B = np.resize(delta, 10 * seeds)
    identity_B = np.array([f"{b % 10}" for b in range(10 * seeds)])
    return many_runs.Against(0 * delta_B, delta_B, identity_B, np.repeat(range(seeds), 10))


def test_what_a_comparison_shows():
    outcome = many_runs.outcome
    assert outcome(1, against(0.01, 0.03)) == "shown" == outcome(-1, against(-0.01, -0.03))
    assert outcome(1, against(-0.02)) == "the other way" == outcome(-1, against(0.02))
    assert outcome(0, against(0.02)) == "equal there, not here" == outcome(0, against(-0.02))
    assert outcome(1, against(0.1, -0.1)) == "not shown"
    assert outcome(0, against(0.1, -0.1)) == "not contradicted"
    assert outcome(1, against(math.nan)) == "not measured"


def test_what_one_of_the_seeds_contradicts_is_not_shown():
    first, second = [0.05] * 10, [-0.001] * 10
    both = against(*first, *second)
    assert both.change.low > 0 and both.by_seed == pytest.approx([0.05, -0.001])
    assert many_runs.outcome(1, both) == "not shown"
    assert many_runs.told_by_seed(both) == "+0.050, -0.001"


def test_a_run_that_is_done_is_not_made_again(tmp_path, monkeypatch):
    """Done is: proved, with these very settings and this base, and with scores of single videos."""
    made = []
    monkeypatch.setattr(many_runs, "call", lambda line, log: made.append(line))
    row = many_runs.Row("rwr", "configs/evoid.py:tiny,rwr", ("--config.steps=7",))
    more = ["--config.data.pairs=2", "--config.steps=9", "--noconfig.reward.preference"]
    workdir = many_runs.make(row, 3, tmp_path, more)
    (line,) = made
    assert workdir.name.startswith("rwr-3-") and line[:2] == ["-m", "evoid_jax.train"]
    cfg = many_runs.settings_of(row, 3, [*many_runs.COMPARED, *more])
    assert (cfg.algorithm, cfg.steps, cfg.data.pairs, cfg.seed) == ("rwr", 7, 2, 3)
    assert cfg.watch.every == 0 and cfg.data.heldout_identities == 64
    assert cfg.reward.preference is False
    write(workdir, [])
    (workdir / "summary.json").write_text(json.dumps({"steps": 6}))
    many_runs.make(row, 3, tmp_path, more)
    assert len(made) == 2  # stopped before its last step
    (workdir / "summary.json").write_text(json.dumps({"steps": 7}))
    assert many_runs.make(row, 3, tmp_path, more) == workdir
    assert len(made) == 2
    other = many_runs.make(row, 3, tmp_path, ["--config.train.lr=0.1", *more])
    assert other != workdir and len(made) == 3
    few = ["--config.data.heldout_identities=8"]  # the user's own word stands
    many_runs.make(row, 3, tmp_path, few)
    assert many_runs.settings_of(row, 3, [*many_runs.COMPARED, *few]).data.heldout_identities == 8


def test_a_run_belongs_to_the_base_that_it_began_with(tmp_path):
    base = tmp_path / "base" / "transformer"
    base.mkdir(parents=True)
    row = many_runs.Row("mdw", "configs/evoid.py:tiny", (f"--config.model={tmp_path}/base",))
    (base / "a.safetensors").write_bytes(b"one")
    one = many_runs.folder(tmp_path, row, 0, [])
    (base / "a.safetensors").write_bytes(b"two")
    assert many_runs.folder(tmp_path, row, 0, []) != one


def test_a_row_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def call(line, log):
        if "--config=configs/evoid.py:tiny,nft" in line:
            raise many_runs.Failed(f"a run ended with 1, see {log}")
        (word,) = (word for word in line if word.startswith("--workdir="))
        write(Path(word.removeprefix("--workdir=")), [triple("a", 1, (0, 0, 0), (1, 1, 1))])

    monkeypatch.setattr(many_runs, "call", call)
    rows = [many_runs.Row(name, f"configs/evoid.py:tiny,{name}") for name in ("nft", "rwr")]
    made, failed = many_runs.make_all(rows, range(2), tmp_path, [])
    assert list(made) == ["rwr"] and len(made["rwr"].triple_B) == 2
    assert len(failed) == 1 and failed[0].startswith("nft is not in the table: a run ended with 1")
    with pytest.raises(SystemExit, match="1"):
        many_runs.finish(tmp_path / "table.md", "the table", failed)
    assert failed[0] in (tmp_path / "table.md").read_text() and failed[0] in capsys.readouterr().out


def started(workdir, commit, changed=False, sha256="ab"):
    """Write what a start of a run keeps of its code and of who scored."""
    source = {"preset": "tiny", "version": "tiny-1", "sha256": sha256}
    rewards = [{"name": "arcface", "sources": [source]}, {"name": "vqscore", "sources": []}]
    provenance.write(
        workdir, {"git": {"commit": commit * 40, "changed": changed}, "rewards": rewards}
    )
    return workdir


def test_runs_of_other_code_or_other_rewards_are_told_under_the_table(tmp_path, capsys):
    runs = [write(tmp_path / str(i), [triple("a", 1, (0, 0, 0), (1, 1, 1))]) for i in range(5)]
    for run in runs[:3]:
        started(run, "a")
    alike = many_runs.measured(runs[:3])
    many_runs.finish(tmp_path / "table.md", "the table", [], [alike])
    assert (tmp_path / "table.md").read_text() == "the table\n"
    started(runs[3], "b", changed=True)
    other = many_runs.measured(runs[3:])  # the last one has no run.json
    many_runs.finish(tmp_path / "table.md", "the table", [], [alike, other, alike])
    line = f"3 of {'a' * 12}, 1 of {'b' * 12} with changes, 1 of unknown code."
    assert (
        f"the table\n\nThe runs were not made alike: runs by their code: {line}"
        in (tmp_path / "table.md").read_text()
    )
    assert line in capsys.readouterr().out
    started(runs[2], "a", sha256="cd")  # it went on with another model
    told = many_runs.unlike(many_runs.measured(runs[:3]).made)
    assert told.endswith("alike: not the same model (sha256) in all of them gave arcface.")


def test_a_trial_is_judged_by_its_last_comparison(tmp_path):
    assert many_runs.tried(tmp_path, 5) is None
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "step_000005.json").write_text(json.dumps({"delta_total": 0.04}))
    assert many_runs.tried(tmp_path, 5) == 0.04 and many_runs.tried(tmp_path, 6) is None


def test_the_ablation_s_table_and_orderings(row):
    from bench import ablation

    text = ablation.results({"mdw": row})
    assert "| base |  | 0.200 | nan | 0.500 | 0.300 | 0.100 |  | 0.658 | 0.544 |" in text
    assert "+0.225, +0.075 | 0.704 | 0.682 |" in text
    text = ablation.monitors({"uwr": row, "pwr": row})
    assert "| from, to | identity | by seed | motion | by seed |" in text
    assert "| uwr to pwr | +0.000 (0.000, 0.000) |" in text and "base to uwr" in text
    text = ablation.orderings({"uwr": row, "pwr": row, "pwr_tp": row})
    assert (
        "| base to uwr | total | +0.027 | +0.150 (0.075, 0.225) | +0.225, +0.075 | shown |" in text
    )
    line = "| pwr to pwr_tp | total | +0.000 | +0.000 (0.000, 0.000) | +0.000, +0.000 |"
    assert f"{line} not contradicted |" in text
    assert "| uwr to pwr | evoscore | +0.018 | +0.000 (0.000, 0.000) |" in text
    assert "uwr_tp" not in text and "mdw" not in text and "Of 6 intervals" in text


def test_the_table_of_algorithms_says_what_each_took(row):
    from bench import algorithms

    steps, cost = {"evoid": 50, "rwr": 70}, {"evoid": 2e13, "rwr": 1e13}
    better = row._replace(evolved=row.evolved | {"total": row.evolved["total"] + 0.1})
    text = algorithms.results({"evoid": row, "rwr": better}, steps, cost)
    assert "| evoid | 50 | 1 | 0.350 +0.150 (0.075, 0.225) | 0.600 " in text
    assert "| rwr | 70 | 0.7 | 0.450 +0.250 " in text
    assert "| +0.100 (0.100, 0.100) |" in text
    text = algorithms.seeds({"evoid": row, "rwr": better})
    assert "| evoid | +0.225, +0.075 |" in text and "| rwr | +0.325, +0.175 |" in text


def test_every_row_of_the_ablation_is_a_preset():
    from bench import ablation

    for name in ablation.PAPER:
        if name != "base":
            cfg = many_runs.settings_of(ablation.row(name), 0, [])
            assert "evoscore" in [row.name for row in cfg.reward.table]


def test_equal_flops_are_more_steps_of_what_asks_less():
    from bench import algorithms

    rows = {name: algorithms.row(name, 50, (), name) for name in algorithms.SECOND}
    cost = {name: algorithms.step_flops(row, []) for name, row in rows.items()}
    assert cost["evoid"] > cost["nft"] == cost["grpo"] > cost["rwr"] == cost["imitation"]
    assert cost["clips"] < 0.5 * cost["imitation"]  # nothing is generated
    steps = algorithms.at_equal_flops(list(rows), 50, cost)
    assert steps["nft"] == steps["evoid"] == 50 < steps["rwr"] and "clips" not in steps


def test_rates_are_tried_until_the_best_has_one_on_either_side(tmp_path, monkeypatch):
    """By one rule for all; a trial that fails is none that is chosen."""
    from bench import algorithms

    def best_at(rate, second=0.0):
        def attempt(name, chosen, steps, out, more):
            lr, value = (float(word.split("=")[1]) for word in chosen)
            tried.append((lr, value))
            return None if lr == 1e-3 else -abs(math.log(lr / rate)) + second * value

        return attempt

    for rate, second, chosen, count in (
        (3e-3, 0.0, (3e-3, 0.3), 4),
        (3e-3, 1.0, (3e-3, 1.0), 4),
        (2.5e-2, 0.0, (0.0316, 0.3), 6),  # 0.01, 0.0316, 0.1
        (1.0, 0.0, (0.1, 0.3), 6),  # two more rates are all
    ):
        tried = []
        monkeypatch.setattr(algorithms, "attempt", best_at(rate, second))
        words = algorithms.tuned("rwr", 5, tmp_path, [])
        assert tuple(float(word.split("=")[1]) for word in words) == chosen
        assert len(tried) == len(set(tried)) == count
    monkeypatch.setattr(algorithms, "attempt", lambda *_: None)
    with pytest.raises(algorithms.Failed, match="all 5 trials did"):
        algorithms.tuned("rwr", 5, tmp_path, [])


def test_every_trial_is_a_preset_with_its_settings():
    from bench import algorithms

    for name, (setting, values) in algorithms.SECOND.items():
        for value in values:
            row = algorithms.row(name, 50, algorithms.choice(name, 3e-3, value), name)
            cfg = many_runs.settings_of(row, 0, [])
            group, key = setting.split(".")
            assert getattr(getattr(cfg, group), key) == value and cfg.train.lr == 3e-3


def test_a_trial_evolves_and_watches_and_proves_nothing(tmp_path):
    cfg, workdir = small_run.settings(str(tmp_path / "cache"), 2), tmp_path / "trial"
    many_runs.trial(cfg, workdir)
    assert math.isfinite(many_runs.tried(workdir, cfg.steps))
    assert [row["step"] for row in small_run.lines(workdir)] == [0, 1]
    assert not (workdir / "summary.json").exists() and not (workdir / "proof").exists()
