"""Every scorer answers one real question before a run begins."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fake_judge import FakeJudge, Status
from fake_sidecar import SEVEN, Fake
from servers import serve

from evoid_jax import config, media, provenance, sharding
from evoid_jax.data import pairs
from evoid_jax.rewards import rubrics, tryout
from evoid_jax.rewards.panel import Panel

VIDEO = config.Video(frames=5, height=32, width=48, fps=8)
SEVENS = dict.fromkeys(rubrics.DIMENSIONS, 7)


@pytest.fixture
def data(tmp_path):
    """Pairs of which the photos are grey."""
    photo = np.full((40, 60, 3), 90, np.uint8)
    lines = []
    for i in range(2):
        photo[0, 0] = i
        media.write_image(tmp_path / f"{i}.png", photo)
        lines.append({"image": f"{i}.png", "prompt": f"A person waves {i}.", "identity": f"p{i}"})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return pairs.open_splits(folder=str(tmp_path)).evolution


def check(data, folder, fakes, judge=None, **settings):
    """Try scorers out as a run does."""
    running = [serve(fake.app()) for fake in fakes]
    if judge is not None:
        running.append(serve(judge.app()))
    urls = [one.__enter__() for one in running]
    judged = {"judge": f"{urls.pop()}/v1", "judge_model": "fake"} if judge else {"judge": ""}
    settings = judged | {"preference": judge is not None, "timeout": 20.0} | settings
    reward = config.Reward(sidecars=tuple(urls), dynamic=False, **settings)
    cfg = config.Config(video=VIDEO, reward=reward)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    try:
        with Panel(reward, mesh, 8, folder / "logs") as panel:
            tryout.check(cfg, folder, data, panel)
            return panel
    finally:
        for one in running:
            one.__exit__(None, None, None)


def test_each_is_asked_for_what_it_offers_about_a_photo_of_the_run(data, tmp_path):
    faces, rest, judge = Fake(SEVEN[:2]), Fake(SEVEN[1:]), FakeJudge(SEVENS)
    panel = check(data, tmp_path, [faces, rest], judge)
    assert [b.rewards for b in faces.batches] == [list(SEVEN[:2])]
    assert [b.rewards for b in rest.batches] == [list(SEVEN[1:])]
    (asked,) = rest.batches
    assert asked.videos[0].shape == (5, 32, 48, 3) and asked.prompts[0].startswith("A person")
    assert asked.references[0][0].shape == (40, 60, 3)
    assert len(judge.asked) == 1 and panel.judge.chat.usage.take()["calls"] == 0
    check(data, tmp_path, [faces, rest], judge, photos="canvas")
    assert rest.batches[-1].references[0][0].shape == (32, 48, 3)
    assert len(judge.asked) == 2  # no kept answer is taken for the judge's


def test_one_that_is_up_and_cannot_score_ends_the_run_with_words(data, tmp_path):
    def no_memory(reply):
        column = reply["scores"]["gme"]
        column |= {"score": [None], "reason": ["gme: CUDA out of memory"], "excused": [True]}
        return reply

    for fake, words in (
        (Fake(change=no_memory), r"has no gme \(gme: CUDA out of memory\)"),
        (Fake(before=[(400, "no such video")] * 99), "has no arcface, .*HTTP 400: no such video"),
    ):
        with pytest.raises(ConnectionError, match=f"^config.reward.sidecars: .*{words}"):
            check(data, tmp_path, [fake])


def test_what_cannot_be_measured_in_it_is_no_fault_nor_what_has_no_weight(data, tmp_path):
    def no_face(reply):
        reply["scores"]["arcface"] |= {"score": [None], "reason": ["no face"]}
        return reply

    rows = [
        dataclasses.replace(row, prior=0.0) if row.name == "gme" else row for row in config.METRICS
    ]
    fake = Fake(change=no_face)
    check(data, tmp_path, [fake], table=tuple(rows))
    assert set(fake.batches[0].rewards) == set(SEVEN) - {"gme"}


def test_a_judge_that_does_not_answer_ends_the_run_with_words(data, tmp_path):
    judge = FakeJudge(Status(400, message="no pictures"))
    words = "^config.reward.judge: asked to grade .*no pictures"
    with pytest.raises(ConnectionError, match=words):
        check(data, tmp_path, [Fake()], judge)


def test_other_versions_than_the_run_began_with_are_refused_unless_told(data, tmp_path):
    fake = Fake()
    panel = check(data, tmp_path, [fake])
    table = config.METRICS
    start = provenance.collect(["x"], [], table=table, sidecars=[("a", panel.infos[0])])
    provenance.write(tmp_path, start)
    check(data, tmp_path, [fake])
    fake.version = "2"
    with pytest.raises(ValueError, match="arcface was 1, is 2.*reward.versions=any"):
        check(data, tmp_path, [fake])
    check(data, tmp_path, [fake], versions="any")
