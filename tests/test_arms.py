"""What the watch and the proof keep of an arm is used again by the same scorers, if it is whole."""

from types import SimpleNamespace

import numpy as np
import pytest

from evoid_jax import arms, config, files, proof_parts, watch

NAN = float("nan")


class Scorers:
    """A panel whose one reward has a version."""

    def __init__(self, version):
        self.version = version

    def scorers(self):
        return [["arcface", self.version, ""]]


def arm(score=0.5, monitor=None, whole=True):
    column = np.full((2, 1), score)
    some = {"motion": np.array([1.0, 2.0])} if monitor is None else monitor
    return arms.Arm([], column, np.ones((2, 1), bool), np.zeros((2, 1), bool), some, whole)


def run_of(folder, version="1", **changes):
    cfg = config.from_dict({"data": {"source": "portraits"}, **changes})
    return SimpleNamespace(cfg=cfg, workdir=folder, panel=Scorers(version))


def test_a_part_without_monitors_leaves_those_of_the_others():
    joined = arms._join([arm(monitor={}, whole=False), arm()])
    np.testing.assert_array_equal(joined.monitor["motion"], [NAN, NAN, 1, 2])
    assert not joined.whole and arms._join([arm(), arm()]).whole


def test_a_part_is_kept_if_it_is_whole_and_read_by_the_same_scorers(tmp_path):
    adapter = {"a": np.zeros(2, np.float32)}
    of = lambda version: proof_parts.Parts(run_of(tmp_path, version), "base", adapter)
    (tmp_path / "proof").mkdir()
    of("1").write(0, 0, arm(whole=False), seconds=1.0)
    assert of("1").read(0, 0, shown=0) is None
    of("1").write(0, 0, arm(), seconds=1.0)
    np.testing.assert_array_equal(of("1").read(0, 0, shown=0).monitor["motion"], [1, 2])
    assert of("2").read(0, 0, shown=0) is None


@pytest.fixture
def played(monkeypatch):
    """How often the start was made; the first time without its monitor."""
    made = []

    def play(*_):
        made.append(arm(monitor={"motion": np.array([NAN, NAN])} if not made else None))
        return made[-1]._replace(whole=len(made) > 1)

    monkeypatch.setattr(arms, "play", play)
    monkeypatch.setattr(watch, "_keep_pairs", lambda *_: None)
    return made


def test_the_watch_scores_its_start_again_unless_the_same_scorers_made_all_of_it(tmp_path, played):
    state = SimpleNamespace(initial=None, evolving={})

    def start(version="1", **changes):
        watch._start(run_of(tmp_path, version, **changes), None, state)
        return len(played)

    judged = {"reward": {"judge_extra": '{"seed": 1}'}}
    assert [start(), start(), start()] == [1, 2, 2]
    assert [start("2"), start("2"), start("2", **judged)] == [3, 3, 4]
    assert files.read_json(tmp_path / "watch/start.json")["monitor"] == {"motion": [1, 2]}
