"""`naturalness` of preset `paper`: the benchmark's frames, and a grade by whoever judges."""

import numpy as np
import pytest

from evoid_jax.sidecars.paper import clips, naturalness, rewards
from evoid_jax.sidecars.paper.options import Options


def numbered(frames, height, width):
    """A video whose frames are grey by their numbers."""
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(grey, (frames, height, width, 3))


@pytest.mark.parametrize(
    ("frames", "step", "shown"),
    [(81, 5, 16), (17, 1, 16), (5, 1, 5), (32, 2, 16)],
)
def test_the_benchmarks_frames(frames, step, shown):
    """Frame i is that of number i x (T // 16)."""
    told, chosen = naturalness.sampled(numbered(frames, 8, 8))
    assert told == step and len(chosen) == shown
    assert [int(frame[0, 0, 0]) for frame in chosen] == list(range(0, step * shown, step))


@pytest.mark.parametrize(
    ("size", "becomes"), [((480, 832), (295, 512)), ((100, 60), (512, 307)), ((64, 64), (512, 512))]
)
def test_the_longer_side_is_512_and_the_shorter_is_rounded_down(size, becomes):
    _, (frame, *_) = naturalness.sampled(numbered(3, *size))
    assert frame.shape == (*becomes, 3)


class Chat:
    """Answers the next of some grades, or fails."""

    def __init__(self, *grades):
        self.grades, self.asked = list(grades), []

    def ask(self, question, parts):
        self.asked.append((question, parts))
        grade = self.grades.pop(0)
        if grade is None:
            raise RuntimeError("the judge is silent")
        return [grade]


def test_a_video_is_shown_with_its_times_and_graded():
    chat = Chat(4)
    assert naturalness.grade(chat, numbered(81, 48, 80), fps=16) == 4
    ((question, parts),) = chat.asked
    texts = [part["text"] for part in parts if part["type"] == "text"]
    assert len(parts) == 32 and texts[0] == "frame 1/16, t=0.00s"
    assert texts[-1] == "frame 16/16, t=4.69s"  # frame 75 of 16 a second
    assert question.name == "naturalness" and "1 to 5" in question.text


def test_it_is_a_reward_and_a_silent_judge_costs_one_video_its_score(monkeypatch, tmp_path):
    chat = Chat(5, None, 1)
    monkeypatch.setattr(naturalness, "load", lambda url, model, key_env: chat)
    monkeypatch.setattr(rewards, "ASKED_AT_ONCE", 1)
    options = Options(("naturalness",), tmp_path, judge="http://nobody/v1", judge_model="any")
    (reward,) = rewards.load(options=options).rewards
    assert reward.version.endswith(" any") and "any" in reward.description
    column = reward.score([clips.Clip(numbered(3, 8, 8), [], "A person.", 8)] * 3)
    np.testing.assert_array_equal(column.score_B, [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(column.raw_B, [5.0, np.nan, 1.0])
    assert "silent" in column.reasons[1] and column.excused == [False, True, False]
