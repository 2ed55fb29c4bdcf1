"""The loop's own decisions: what is recorded, what is saved, when a run ends; without a model."""

from types import SimpleNamespace

import numpy as np
import pytest

from evoid_jax import checkpoint, config, interruption, progress, train
from evoid_jax.rewards import absent, blend
from evoid_jax.rewards.table import ScoreTable


def test_the_record_shows_what_was_missing_and_the_weights_as_they_were_used():
    """One video of four lacks arcface. The judge is not asked for its preference."""
    table = config.METRICS[0], config.METRICS[2], config.METRICS[7]
    cfg = config.Config(reward=config.Reward(table=table, preference=False, dynamic=False))
    score_BM = np.array([[0.2, 0.3], [0.4, 0.5], [np.nan, 0.1], [0.6, 0.7]], np.float32)
    score_BM = np.concatenate([score_BM, np.full((4, 1), np.nan, np.float32)], axis=1)
    valid_BM = np.isfinite(score_BM)
    scores = ScoreTable(score_BM, score_BM, valid_BM, np.zeros_like(valid_BM))
    memory, fused = blend.blend(cfg.reward, blend.FORGOTTEN, scores, np.zeros(4, int), ask=None)
    request = SimpleNamespace(why={"arcface: no memory": 1})
    lesson = train.Lesson(SimpleNamespace(request=request), None, scores, fused, judge=None)
    assert train.record(cfg, {}, lesson, memory, seconds={})["judge"] == {}
    row = train.record(cfg, {}, lesson._replace(judge={"calls": 3}), memory, seconds={})
    assert row["judge"] == {"calls": 3}
    assert row["missing"] == {"arcface": 0.25, "gme": 0} and row["valid_fraction"] == 7 / 8
    assert row["reasons"] == [{"scores": 1, "reason": "arcface: no memory"}]
    assert row["reward"]["spread"]["arcface"] == pytest.approx(np.std([0.2, 0.4, 0.6]))
    assert row["reward"]["spread"]["vqscore"] is None
    assert row["reward"]["saturated"]["gme"] == 0 and np.isnan(
        row["reward"]["saturated"]["vqscore"]
    )
    want = {"arcface": 0.125 / 0.275, "gme": 0.15 / 0.275, "vqscore": 0}
    assert row["weights"] == pytest.approx(want)
    assert fused.valid_B.tolist() == [True, True, False, True]


@pytest.mark.parametrize("stop", [absent.stopped(["gme"], 600.0, {}), interruption.Interrupted()])
def test_a_run_that_stops_keeps_what_it_reached(monkeypatch, stop):
    kept = []
    monkeypatch.setattr(checkpoint, "save", lambda *values: kept.append(values))
    reached = progress.Reached("saved", 0, "state", blend.FORGOTTEN)

    def stopped():
        with pytest.raises(type(stop)), reached.kept():
            raise stop

    stopped()
    assert kept == []  # nothing has been made yet
    reached.follow(7, "newer", blend.FORGOTTEN, sound=True)
    stopped()
    assert kept == [("saved", 7, "newer", blend.FORGOTTEN._asdict())]
    reached.follow(8, "refused", blend.FORGOTTEN, sound=False)
    stopped()
    assert len(kept) == 1


# --- updates that were refused


def made(refused: float, loss: float = 0.3, drift: float = 0.01) -> dict:
    return {"loss": {"total": loss}, "drift": {"evo_init": drift}, "refused": refused}


@pytest.fixture
def health(monkeypatch):
    """A run's health, fed with terms: returns whether each step may be saved."""
    health = progress.Health(config.Config(train=config.Train(refused=3, drift=1.0)))
    aside = []
    monkeypatch.setattr(checkpoint, "settle", lambda saved: None)
    monkeypatch.setattr(checkpoint, "set_aside", lambda saved, after: aside.append(after))

    def feed(step, terms):
        reached = progress.Reached("saved", step, "state", blend.FORGOTTEN)
        return health.after(reached, terms, learned=True, why={})

    return SimpleNamespace(feed=feed, aside=aside)


def test_refused_updates_are_not_saved_and_end_the_run_when_they_go_on(health):
    sound, refused = made(0.0), made(1.0, loss=float("nan"))
    assert [health.feed(k, terms) for k, terms in enumerate([sound, refused, refused, sound])] == [
        True,
        False,
        False,
        True,
    ]
    assert not health.feed(4, refused) and not health.feed(5, refused)
    with pytest.raises(FloatingPointError, match=r"3 updates in a row .*loss/total is not finite"):
        health.feed(6, refused)
    assert health.aside == [3]  # what was saved after step 3 was sound; nothing later is trusted


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (made(1.0, drift=2.0), "drift/evo_init is 2, more than config.train.drift=1"),
        (made(1.0), "longer than the adapter itself"),
        (made(1.0, drift=float("inf")), "drift/evo_init is not finite"),
    ],
)
def test_a_refusal_says_why(terms, why):
    assert why in progress.refusal(config.Config(), terms)


# --- when a checkpoint is due


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [(9, 1.0, False), (10, 1.0, True), (199, 1.0, False), (200, 1.0, True), (3, 26.0, True)],
)
def test_a_step_that_takes_longer_than_the_grace_is_saved_at_once(step, seconds, expected):
    assert progress.due(config.Config(grace=25.0), step, seconds) == expected
