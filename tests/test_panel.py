"""Requests travel with their videos: what one batch is told and answered never reaches another."""

import dataclasses
import gc
import time

import jax
import numpy as np
import pytest
from fake_sidecar import Fake
from fastapi import FastAPI
from servers import serve

from evoid_jax import config, distributed, sharding
from evoid_jax.rewards import absent
from evoid_jax.rewards import panel as panel_module
from evoid_jax.rewards.panel import Panel
from evoid_jax.rewards.request import Request
from evoid_jax.rewards.servers import check_offered
from evoid_jax.sidecars.tiny import judge as judge_server

VIDEOS = 4
ROWS = np.arange(VIDEOS, dtype=np.int32)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def videos(first: int) -> np.ndarray:
    """Return videos that a Fake scores by their first pixel: first, first + 1, ..."""
    video_BFHWC = np.zeros((VIDEOS, 3, 16, 16, 3), np.uint8)
    video_BFHWC[:] = np.arange(first, first + VIDEOS, dtype=np.uint8).reshape(-1, 1, 1, 1, 1)
    return video_BFHWC


def request(word: str, monitors: bool = False) -> Request:
    photos = [np.zeros((8, 8, 3), np.uint8)]
    return Request([photos] * VIDEOS, [f"{word} {row}" for row in ROWS], monitors=monitors)


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def panel(fake, tmp_path):
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", preference=False, timeout=20.0)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            yield panel


def test_two_requests_under_way_at_once_keep_their_own(panel, fake):
    first, second = request("first", monitors=True), request("second")
    tickets = [panel.submit(videos(10), first, ROWS), panel.submit(videos(50), second, ROWS[::-1])]
    one, two = (
        panel.collect([ticket_B], asked)
        for ticket_B, asked in zip(tickets, (first, second), strict=True)
    )
    np.testing.assert_array_equal(one.raw_BM[:, 0], range(10, 14))
    np.testing.assert_array_equal(two.raw_BM[:, 0], range(53, 49, -1))  # by row, as it was asked
    assert np.all(one.valid_BM[:, :7]) and not np.any(one.valid_BM[:, 7])
    # Each video was sent with the prompt of its row in its own request ...
    sent = {}
    for batch in fake.batches:
        pixels = [int(video[0, 0, 0, 0]) for video in batch.videos]
        sent |= dict(zip(pixels, batch.prompts, strict=True))
    of_first = {10 + row: f"first {row}" for row in ROWS}
    of_second = {50 + i: f"second {row}" for i, row in enumerate(ROWS[::-1])}
    assert sent == of_first | of_second
    # ... and what came back besides scores stands in that request alone.
    np.testing.assert_array_equal(panel.monitors(first)["truth"], [20, 22, 24, 26])
    assert panel.monitors(second) == {}
    assert [int(second.videos[row][0, 0, 0, 0]) for row in ROWS] == [53, 52, 51, 50]


def test_an_answer_after_its_batch_was_dropped_reaches_nobody(fake, tmp_path):
    fake.before = [1.0]  # seconds that the first request is kept waiting
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", preference=False, timeout=20.0)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            dropped, kept = request("dropped"), request("kept")
            jax.block_until_ready(panel.submit(videos(10), dropped, ROWS))
            while not fake.posts:
                time.sleep(0.01)
            del dropped
            scores = panel.collect([panel.submit(videos(50), kept, ROWS)], kept)
            while len(fake.batches) < 2:
                time.sleep(0.01)
            np.testing.assert_array_equal(scores.raw_BM[:, 0], [50, 51, 52, 53])
            assert sorted(kept.videos) == [0, 1, 2, 3]
            assert all(int(video[0, 0, 0, 0]) >= 50 for video in kept.videos.values())


def test_a_request_is_forgotten_with_its_batch(panel):
    """Its videos are gigabytes at a real size."""
    done = request("done")
    panel.collect([panel.submit(videos(10), done, ROWS)], done)
    number = done.number
    assert number in panel._requests
    del done
    gc.collect()
    assert number not in panel._requests


def lacking(*names, calls: int):
    """Leave these rewards out of the first replies."""

    def change(reply):
        nonlocal calls
        calls -= 1
        if calls >= 0:
            reply["scores"] = {k: v for k, v in reply["scores"].items() if k not in names}
        return reply

    return change


def collected(fake, log_dir, *, count=1, proof=False, monitors=False, **changes):
    """Score `count` batches in a row; return the last one's scores and request."""
    settings = {"judge": "", "preference": False, "timeout": 20.0} | changes
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), **settings)
        with Panel(cfg, one_device(), 8, log_dir) as panel:
            for _ in range(count):
                asked = request("a", monitors)
                asked.proof = proof
                scores = panel.collect([panel.submit(videos(10), asked, ROWS[::-1])], asked)
    return scores, asked


@pytest.fixture
def waits(monkeypatch):
    """The seconds that would have been waited."""
    seconds = []
    monkeypatch.setattr(panel_module.interruption, "pause", seconds.append)
    return seconds


def test_a_reward_that_nobody_has_is_asked_for_again(fake, tmp_path, waits, capsys):
    fake.change = lacking("gme", "flow", calls=4)  # the first request is tried twice
    scores, asked = collected(fake, tmp_path)
    assert waits == [2, 4, 8] and asked.why == {}
    # videos 10.. went to rows 3..0, and the second half of them came with the second try
    np.testing.assert_array_equal(scores.raw_BM[:, 2], [15, 14, 13, 12])
    np.testing.assert_allclose(scores.score_BM[:, 6], np.array([13, 12, 11, 10]) / 255, rtol=1e-6)
    assert np.all(scores.valid_BM[:, :7]) and not np.any(scores.blank_BM)
    assert [set(batch.rewards) for batch in fake.batches[2:]] == [{"gme", "flow"}] * 3
    said = capsys.readouterr().out
    assert "waiting for gme, flow, which no video of this step has" in said
    assert "the reply has no scores for gme" in said and "and 594 s of patience" in said


def test_a_run_stops_where_patience_ends_unless_it_may_go_on(fake, tmp_path, waits):
    fake.change = lacking("gme", calls=10**9)
    words = "no video of this step has gme, asked for again over 9 s .*on_missing=go_on"
    with pytest.raises(absent.MissingReward, match=words):
        collected(fake, tmp_path, patience=9.0)
    assert waits == [2, 4, 3] and issubclass(absent.MissingReward, distributed.EXPECTED)
    with pytest.raises(absent.MissingReward):
        collected(fake, tmp_path, patience=0.0)
    waits.clear()
    scores, asked = collected(fake, tmp_path, count=3, patience=9.0, on_missing="go_on")
    assert waits == [2, 4, 3]  # a reward that was given up is not waited for at every step
    np.testing.assert_array_equal(scores.valid_BM[0, :7], [1, 1, 0, 1, 1, 1, 1])
    assert asked.why == {
        "the reply has no scores for gme, only "
        "['aesthetic', 'arcface', 'curricularface', 'flow', 'naturalness', 'qalign']": 4
    }


def blank(name: str, of: set[int]):
    """Answer that a reward could not be measured in the videos with these first pixels."""

    def change(reply):
        column = reply["scores"].get(name)
        if column:
            pixels = [round(255 * score) for score in reply["scores"]["flow"]["score"]]
            hidden = [pixel in of for pixel in pixels]
            column["score"] = [None if hid else 0.5 for hid in hidden]
            column["reason"] = ["no face in 8 frames" if hid else None for hid in hidden]
            column["excused"] = [False] * len(hidden)
        return reply

    return change


def test_what_cannot_be_measured_is_not_waited_for_until_it_never_can_be(fake, tmp_path, waits):
    fake.change = blank("arcface", of={10, 11, 12, 13})
    scores, asked = collected(fake, tmp_path, count=4)
    assert waits == [] and np.all(scores.blank_BM[:, 0]) and asked.why == {"no face in 8 frames": 4}
    words = r"arcface could be measured in no video of the last 5 steps \(no face in 8 frames\)"
    with pytest.raises(absent.MissingReward, match=words):
        collected(fake, tmp_path, count=5)
    collected(fake, tmp_path, count=6, idle_steps=0)
    collected(fake, tmp_path, count=6, proof=True)  # its base may well hide what evolution finds


@pytest.mark.parametrize("prior", [0.0, 0.1])
def test_a_blank_is_told_whether_the_reward_counts_or_only_watches(fake, tmp_path, waits, prior):
    fake.change = blank("arcface", of={10})
    first, *others = config.METRICS
    rows = (dataclasses.replace(first, prior=prior), *others)
    scores, _ = collected(fake, tmp_path, table=rows)
    np.testing.assert_array_equal(scores.blank_BM[:, 0], [0, 0, 0, 1])  # rows are turned round


@pytest.mark.parametrize("broken", [False, True])
def test_monitors_are_asked_for_again_with_the_rewards_or_alone(fake, tmp_path, waits, broken):
    """After an outage of the server, or of its monitors alone."""

    def change(reply):
        if not waits and broken:
            raise RuntimeError("out of memory")
        return reply if waits else reply | {"monitor": {}}

    fake.change = change
    scores, asked = collected(fake, tmp_path, monitors=True)
    assert waits and np.all(scores.valid_BM[:, :7]) and asked.unseen == []
    np.testing.assert_array_equal(asked.monitor["truth"], [26, 24, 22, 20])
    assert [len(batch.rewards) for batch in fake.batches[-1:]] == [7 if broken else 0]


def test_monitors_are_those_of_one_service_whoever_else_has_some(fake, tmp_path, waits):
    """Of the first that has any; another that scores rewards does not stand in for it."""
    first = Fake(names=["sharpness"])
    first.column = {"sharpness": 0}
    first.change = lambda reply: reply if waits else reply | {"monitor": {}}
    with serve(first.app()) as watcher, serve(fake.app()) as url:
        settings = {"judge": "", "preference": False, "timeout": 20.0}
        cfg = config.Reward(sidecars=(f"{watcher}/", url), **settings)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            asked = request("a", monitors=True)
            panel.collect([panel.submit(videos(10), asked, ROWS)], asked)
            again = Panel(
                dataclasses.replace(cfg, sidecars=(url, watcher)), one_device(), 8, tmp_path
            )
            assert panel.scorers() == again.scorers()  # in whatever order they are named
            again.close()
    assert waits == [2] and asked.unseen == [] and not any(b.monitors for b in fake.batches)
    np.testing.assert_array_equal(asked.monitor["truth"], [20, 22, 24, 26])


def test_a_monitor_that_nobody_gives_ends_no_run(fake, tmp_path, waits, capsys):
    fake.change = lambda reply: reply | {"monitor": {}}
    _, asked = collected(fake, tmp_path, count=2, patience=6.0, monitors=True)
    assert waits == [2, 4] and asked.unseen == ["truth"]  # the second batch does not wait again
    said = "going on without truth (never rewarded): nothing tells whether a reward is gamed"
    assert capsys.readouterr().out.count(said) == 1


def test_a_monitor_that_measured_nothing_has_answered(fake, tmp_path, waits):
    fake.change = lambda reply: reply | {"monitor": {"truth": [None] * len(reply["ids"])}}
    _, asked = collected(fake, tmp_path, monitors=True)
    assert waits == [] and asked.unseen == [] and np.all(np.isnan(asked.monitor["truth"]))


def test_a_reward_that_only_watches_is_not_waited_for(fake, tmp_path, waits):
    fake.change = lacking("gme", calls=10**9)
    rows = [
        dataclasses.replace(row, prior=0.0) if row.name == "gme" else row for row in config.METRICS
    ]
    collected(fake, tmp_path, table=tuple(rows))
    assert waits == []


def test_the_proof_asks_the_judge_though_the_update_does_not(fake, tmp_path, waits):
    with serve(judge_server.app()) as url:
        judged = {"judge": f"{url}/v1", "preference": False}
        update, _ = collected(fake, tmp_path, **judged)
        proof, _ = collected(fake, tmp_path, proof=True, **judged)
    assert not np.any(update.valid_BM[:, 7]) and np.all(proof.valid_BM[:, 7])


def test_evoscore_is_asked_for_where_it_counts_and_in_the_proof(fake, tmp_path):
    """A row of prior 0 costs nothing while the run learns, and is measured in watch and proof."""
    rows = lambda prior: (*config.METRICS, config.Metric("evoscore", "quality", prior))
    with serve(judge_server.app()) as url:
        judged = {"judge": f"{url}/v1", "preference": False}
        rewarded, asked = collected(fake, tmp_path, table=rows(0.3), **judged)
        watched, _ = collected(fake, tmp_path, table=rows(0.0), **judged)
        proof, _ = collected(fake, tmp_path, table=rows(0.0), proof=True, **judged)
    assert np.all(rewarded.valid_BM[:, 8]) and asked.why == {}
    np.testing.assert_array_equal(rewarded.raw_BM[:, 8], rewarded.score_BM[:, 8])
    assert not np.any(watched.valid_BM[:, 7:]) and np.all(proof.valid_BM[:, 7:])


def test_what_the_judge_took_is_told_once(fake, tmp_path):
    with serve(fake.app()) as url, serve(judge_server.app()) as judge_url:
        cfg = config.Reward(sidecars=(url,), judge=f"{judge_url}/v1", timeout=20.0)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            for kept in (False, True):  # the same videos again are answered from before
                asked = request("a")
                panel.collect([panel.submit(videos(10), asked, ROWS)], asked)
                panel.attention(asked, np.zeros(VIDEOS), np.arange(VIDEOS), np.ones(VIDEOS, bool))
                usage = panel.judge_usage()
                assert usage["failures"] == 0
                # four videos and one pair
                assert (usage["calls"], usage["cached"]) == ((0, 5) if kept else (5, 0))
            assert panel.judge_usage()["cached"] == 0
    assert (tmp_path / "judge_replies.jsonl").read_text().count("vqscore") >= VIDEOS


def test_without_a_judge_nothing_is_told_of_it(panel):
    assert panel.judge_usage() is None


def test_a_null_is_a_blank_and_a_failure_is_not(fake, tmp_path, caplog):
    def change(reply):
        column = reply["scores"]["arcface"]
        column["score"] = [None, 0.2, None, 0.3]
        column["reason"] = ["no face in 8 frames", None, "out of memory", None]
        column["excused"] = [False, False, True, False]
        return reply

    fake.change = change
    scores, asked = collected(fake, tmp_path, count=2)
    np.testing.assert_array_equal(scores.valid_BM[:, 0], [1, 0, 1, 0])  # rows are turned round
    np.testing.assert_array_equal(scores.blank_BM[:, 0], [0, 0, 0, 1])
    assert not np.any(scores.blank_BM[:, 1:])
    assert asked.why == {"no face in 8 frames": 1, "out of memory": 1}
    assert caplog.text.count("no face in 8 frames") == 1  # of two batches


def test_the_table_of_the_config_says_who_is_asked(fake, tmp_path):
    mine = (config.METRICS[2], config.Metric("sharpness", "quality", 0.5))
    fake.names = ["sharpness", "gme"]
    fake.column = {"sharpness": 3, "gme": 2}
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", table=mine)
        with Panel(cfg, one_device(), 8, tmp_path) as panel:
            asked = request("a")
            scores = panel.collect([panel.submit(videos(10), asked, ROWS)], asked)
    np.testing.assert_array_equal(scores.raw_BM, np.stack([ROWS + 12, ROWS + 13], axis=1))
    assert set(fake.batches[0].rewards) == {"gme", "sharpness"}


def test_a_reward_that_no_sidecar_offers_is_refused_unless_it_only_watches(fake, tmp_path):
    fake.names = ["gme"]
    rows = config.METRICS[2], config.Metric("sharpness", "quality", 0.5)
    with serve(fake.app()) as url:
        cfg = config.Reward(sidecars=(url,), judge="", table=rows)
        with pytest.raises(ValueError, match="has sharpness, which no sidecar .*they offer gme"):
            Panel(cfg, one_device(), 8, tmp_path)
        idle = rows[0], dataclasses.replace(rows[1], prior=0.0)
        Panel(dataclasses.replace(cfg, table=idle), one_device(), 8, tmp_path).close()


@pytest.mark.parametrize("uniform", [False, True])
def test_a_reward_by_another_name_is_refused(uniform):
    """Whatever the weights are: priors, or the same for all that have one."""
    infos = [{"names": ["arcface", "gme"]}, {"names": ["flow"]}]
    rows = [row for row in config.METRICS if row.name in ("arcface", "gme", "flow", "vqscore")]
    check_offered(config.Reward(table=tuple(rows), uniform=uniform), infos)
    rows[0] = dataclasses.replace(rows[0], name="ArcFace")
    with pytest.raises(ValueError, match="^config.reward.table has ArcFace, which no sidecar"):
        check_offered(config.Reward(table=tuple(rows), uniform=uniform), infos)


def test_a_sidecar_that_is_not_ours_is_named_with_its_setting(tmp_path):
    with serve(FastAPI()) as url:  # answers 404
        cfg = config.Reward(sidecars=(url,), judge="")
        words = f"^config.reward.sidecars: {url}/info: HTTP 404.*; start a reward sidecar there"
        with pytest.raises(ConnectionError, match=words):
            Panel(cfg, one_device(), 8, tmp_path)
