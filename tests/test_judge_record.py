"""What asking took, and the log of replies."""

import json

from evoid_jax.rewards import judge_record
from evoid_jax.rewards.judge_record import Replies, Usage

NOTHING = dict.fromkeys(judge_record.COUNTS, 0)


def reply(prompt=None, answer=None):
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": answer}}


def test_counts_start_again_when_they_are_taken():
    usage = Usage()
    usage.add(calls=2, seconds=1.5)
    usage.add(calls=1, failures=1)
    usage.add_tokens(reply(100, 7))
    usage.add_tokens(reply(50, 3))
    taken = {"calls": 3, "failures": 1, "seconds": 1.5, "prompt_tokens": 150, "answer_tokens": 10}
    assert usage.take() == NOTHING | taken
    assert usage.take() == NOTHING


def test_a_sum_in_which_a_part_is_unknown_is_unknown():
    for silent in (reply(None, 7), {}, {"usage": None}, {"usage": "many"}, [], None):
        usage = Usage()
        usage.add_tokens(reply(100, 7))
        usage.add_tokens(silent)
        usage.add_tokens(reply(100, 7))
        assert usage.take()["prompt_tokens"] is None
        usage.add_tokens(reply(1, 1))
        assert usage.take()["prompt_tokens"] == 1
    one, two = NOTHING | {"calls": 2, "prompt_tokens": None}, NOTHING | {"calls": 3, "cached": 1}
    total = NOTHING | {"calls": 5, "cached": 1, "prompt_tokens": None}
    assert judge_record.total([one, two]) == total
    assert judge_record.total([two]) == two


def test_the_log_is_lines_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_record, "LARGEST", 400)
    replies = Replies(tmp_path / "logs")
    assert not (tmp_path / "logs" / judge_record.FILE).exists()  # nothing said yet
    for i in range(100):
        replies.write(json.dumps({"number": i, "text": "100 % {gone} \ud83d é"}))
    replies.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert len(files) == 1 + judge_record.OLDER
    assert all(file.stat().st_size <= 400 for file in files)
    last = (tmp_path / "logs" / judge_record.FILE).read_text().splitlines()[-1]
    assert json.loads(last)["number"] == 99
    Replies(None).write("nowhere")
