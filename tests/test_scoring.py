"""What scoring takes, against numbers worked out by hand and against the published ones."""

import dataclasses

import pytest

from configs import evoid
from evoid_jax import config
from evoid_jax.plan import chips, scoring

GIGA, TERA = 1e9, 1e12
PAPER = config.from_dict(evoid.get_config("vace_14b").to_dict())


def test_a_block_by_hand():
    net = scoring.Net(layers=2, width=4, hidden=6, queries=8, keys=2, gated=True)
    # Per token: q and o 4 x 8 each, k and v 4 x 2 each, three of 4 x 6; twice for multiply and add.
    linear = 3 * 2 * (32 + 32 + 8 + 8 + 72)
    scores = 2 * (2 * 3 * 3 * 8)  # q k^T, and its product with v
    assert net.flops(3) == 2 * (linear + scores)


def test_face_nets_take_what_is_published_of_them():
    """12.1 and 6.3 billion multiply-adds (insightface, model zoo: R100 and R50)."""
    assert scoring.face_net(scoring.IR_101) == pytest.approx(2 * 12.1 * GIGA, rel=0.01)


def test_clip_by_hand():
    # 257 tokens: 24 layers of 2 (4 + 8) 1024^2 a token and 4 x 257 x 1024 scores; the patches.
    token = 24 * (24 * 1024**2 + 4 * 257 * 1024)
    assert scoring.aesthetic() == 257 * token + 2 * 256 * 588 * 1024
    assert scoring.aesthetic() == pytest.approx(162 * GIGA, rel=0.001)


def test_one_align_by_hand():
    # Eyes: 1025 tokens, 723.6 G. A window: 225 tokens of 12.95 G, and 26.5 G of scores.
    one = scoring.qalign(1)
    assert one == pytest.approx((0.7236 + 0.0357 + 225 * 0.012953 + 0.0265) * TERA, rel=0.002)
    assert scoring.qalign(81) == pytest.approx(81 * one)


def test_gme_by_hand():
    # 17 x 30 tokens of 2040 patches: 2.567 + 0.682 T of blocks, 45 + 6 G around them. Then 535
    # tokens of 13.05 G and 115 G of scores.
    eyes = (2.567 + 0.682 + 0.045 + 0.006) * TERA
    words = (535 * 0.01305 + 0.115) * TERA
    assert scoring.gme(480, 832) == pytest.approx(eyes + words, rel=0.002)


def test_a_question_to_the_judge_by_hand():
    # A frame becomes 512 x 288: 144 tokens, 576 patches, 0.515 T; the photo 256, 1024, 0.98 T.
    # 8 x 144 + 256 + 600 tokens of 5.45 G (3.3 billion of 30 are at work), and 3.2 T of scores.
    see = (8 * 0.516 + 0.973) * TERA
    tokens = 8 * 144 + 256 + 600
    words = tokens * 48 * 2 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 3 * 2048 * 6144)
    words += 48 * 4 * tokens**2 * 4096
    assert scoring.judged(480, 832, 8) == pytest.approx(see + words, rel=0.01)


def test_a_step_of_the_paper():
    at = scoring.Step(generation=1395.0, update=560.0, parts=4)
    made = scoring.plan(PAPER, chips.parse("h100:8"), at, mfu=0.4)
    assert made["gpu"] == "h100"
    assert made["pflop"]["gme"] == pytest.approx(32 * 32 * 0.0104, rel=0.01)
    assert made["pflop"]["qalign"] == pytest.approx(32 * 0.3, rel=0.01)
    assert made["pflop"]["aesthetic"] == pytest.approx(32 * 32 * 0.000162, rel=0.01)
    # 1395 PFLOP take eight H100 440.8 s at 40 %; 20.5 PFLOP take one 103.6 s at 20 %.
    total = sum(made["pflop"].values())
    assert made["busy"] == pytest.approx(total / (0.2 * 0.989) / 440.8, rel=0.001)
    assert made["keep_up"] == 1
    # A quarter of its scoring comes after the last video: 26 s of 618 s are under 5 %.
    assert made["hidden"] == 1


def test_the_judge_is_asked_about_naturalness_by_twice_the_frames():
    """And about EvoScore where it is rewarded, by as many as about VQScore."""
    at = scoring.Step(generation=1395.0, update=560.0, parts=4)

    def judge_pflop(table, preference=True):
        reward = dataclasses.replace(PAPER.reward, table=table, preference=preference)
        cfg = dataclasses.replace(PAPER, reward=reward)
        return scoring.plan(cfg, chips.parse("h100:8"), at, mfu=0.4)["judge_pflop"]

    row = lambda prior: (*config.METRICS, config.Metric("evoscore", "quality", prior))
    of = lambda frames: 32 * scoring.judged(480, 832, frames) / 1e15
    assert of(8) == pytest.approx(0.614, rel=0.001) and of(16) == pytest.approx(1.096, rel=0.001)
    assert judge_pflop(config.METRICS, preference=False) == pytest.approx(of(16))
    assert judge_pflop(config.METRICS) == judge_pflop(row(0.0)) == pytest.approx(of(16) + of(8))
    assert judge_pflop(row(0.3)) == pytest.approx(of(16) + 2 * of(8))


def test_a_hundred_times_the_generators_want_more_scorers():
    at = scoring.Step(generation=1395.0, update=560.0, parts=1)
    made = scoring.plan(PAPER, chips.parse("v5p:8x8x8"), at, mfu=0.4)
    speed = 0.4 * 512 * 0.459
    alone = sum(made["pflop"].values()) / (0.2 * 0.989)
    assert made["gpu"] == "h100"
    assert made["keep_up"] == -(-alone * speed // 1395)
    assert made["hidden"] == -(-alone * speed // (0.05 * 1955)) > made["keep_up"]


def test_shorter_videos_take_less_and_other_presets_have_no_formulas():
    short = config.from_dict(config.to_dict(PAPER) | {"video": {"frames": 17}})
    whole, part = scoring.of_video(PAPER), scoring.of_video(short)
    assert part["gme"] == pytest.approx(whole["gme"] * 17 / 32)
    assert part["qalign"] == pytest.approx(whole["qalign"] * 17 / 81)
    at = scoring.Step(generation=1.0, update=1.0, parts=1)
    assert scoring.plan(config.Config(), chips.parse("h100:1"), at, mfu=0.4) is None
    said = scoring.table(None, "tiny", 0.4)
    assert said == ["scoring: the reward preset tiny has no formulas; paper has"]


def test_the_table_names_every_reward():
    at = scoring.Step(generation=1395.0, update=560.0, parts=4)
    text = " ".join(
        scoring.table(scoring.plan(PAPER, chips.parse("h100:8"), at, mfu=0.4), "paper", 0.4)
    )
    for name in ("arcface", "curricularface", "gme", "aesthetic", "qalign"):
        assert f"{name} " in text
    assert "h100 that keep up with generation: 1, 0.23 of them busy" in text
    assert "20% of the peak there, 40% here" in text
