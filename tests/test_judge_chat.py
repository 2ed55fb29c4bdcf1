"""Asking until there is an answer: second tries, refused fields, kept answers, what is logged."""

import json
import threading

import pytest
from fake_judge import FakeJudge, Slow, Status, chat
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from servers import dead_url, serve

from evoid_jax.rewards import judge_record, rubrics
from evoid_jax.rewards.judge_server import JudgeError

QUESTION = rubrics.questions().naturalness
PARTS = [{"type": "text", "text": "frame"}]
FOUR = {"naturalness": 4}
KEY = "sk-very-secret-1234"


def ask(fake, question=QUESTION, folder=None, more="", number=0, temperature=0.0, **options):
    """Ask a fake once; return the answer and what it took."""
    with serve(fake.app()) as url:
        asker = chat(url + "/v1", folder, **options)
        try:
            read = asker.ask(question, PARTS, more=more, number=number, temperature=temperature)
            return read, asker.usage.take()
        finally:
            asker.close()


def test_what_is_sent():
    fake = FakeJudge(FOUR)
    assert ask(fake, more="Prompt: x", tokens=99)[0] == [4]
    (sent,) = fake.asked
    assert sent["model"] == "fake" and sent["temperature"] == 0 and sent["seed"] == 0
    assert sent["max_tokens"] == 99 and sent["response_format"] == QUESTION.form
    assert fake.texts() == ["frame", f"{QUESTION.text}\nPrompt: x"]
    assert "logprobs" not in sent


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_at_another_temperature():
    broken = Status(500, message="no text"), Status(200, {"error": "busy"})
    for first in ("four", "", None, {"naturalness": 6}, *broken):
        fake = FakeJudge(first, FOUR)
        read, usage = ask(fake)
        assert read == [4] and usage["failures"] == 0 and usage["calls"] == 2
        assert [(a["temperature"], a["seed"]) for a in fake.asked] == [(0, 0), (0.7, 1)]
    fake = FakeJudge("four", FOUR)
    ask(fake, number=2, temperature=1.0)
    assert [(a["temperature"], a["seed"]) for a in fake.asked] == [(1, 4), (0.4, 5)]
    fake = FakeJudge("no")
    with pytest.raises(JudgeError, match="expected a JSON object with naturalness, got 'no'"):
        ask(fake)
    assert len(fake.asked) == 2


@pytest.mark.parametrize(
    ("fake", "words", "calls"),
    [
        (FakeJudge("", message={"refusal": "I must not."}), "refused: 'I must not.'", 2),
        (FakeJudge("", choice={"finish_reason": "length"}), "config.reward.judge_tokens", 2),
        (FakeJudge(FOUR, choice={"finish_reason": "content_filter"}), "content filter", 2),
        (FakeJudge(Status(400, message="bad picture")), "HTTP 400: bad picture", 1),
        (FakeJudge(Status(503, message="overloaded")), "HTTP 503: overloaded", 1),
        (FakeJudge(Status(200, "<html>")), "expected JSON", 1),
        (FakeJudge(Slow()), "no answer in 0.5 s", 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_question_without_an_answer_says_why_and_is_counted(fake, words, calls):
    with serve(fake.app()) as url:
        asker = chat(url + "/v1", timeout=0.5 if "0.5" in words else 20.0)
        with pytest.raises(JudgeError, match=words):
            asker.ask(QUESTION, PARTS)
        usage = asker.usage.take()
    assert usage["failures"] == 1 and usage["calls"] == calls


@pytest.mark.parametrize(
    "fake",
    [
        FakeJudge("```json\n" + json.dumps(FOUR) + "\n```"),
        FakeJudge(f"It is natural enough. {json.dumps(FOUR)} Thank you."),
        FakeJudge(f"<think>{json.dumps({'naturalness': 1})}?</think>{json.dumps(FOUR)}"),
        FakeJudge(None, message={"reasoning_content": json.dumps(FOUR)}),
        FakeJudge(FOUR, message={"reasoning_content": "A long thought."}),
        FakeJudge({"naturalness": "4"}),
        FakeJudge([{"type": "text", "text": json.dumps(FOUR)}]),
    ],
    ids=range(7),
)
def test_an_answer_with_something_around_it_is_read_at_once(fake):
    assert ask(fake)[0] == [4] and len(fake.asked) == 1


def test_a_field_that_is_refused_is_dropped_once_and_for_all(caplog):
    fake = FakeJudge(FOUR, refuses={"response_format": "no response_format", "seed": "seed: no"})
    with serve(fake.app()) as url:
        asker = chat(url + "/v1")
        assert asker.ask(QUESTION, PARTS) == [4]
        assert len(fake.asked) == 3
        assert asker.ask(QUESTION, PARTS, number=1) == [4]
        assert len(fake.asked) == 4 and "seed" not in fake.asked[3]
        assert asker.usage.take()["failures"] == 0
    assert caplog.text.count("refuses response_format") == caplog.text.count("refuses seed") == 1


def test_the_length_of_an_answer_has_another_name_for_some():
    fake = FakeJudge(FOUR, refuses={"max_tokens": "max_tokens: use max_completion_tokens"})
    assert ask(fake, tokens=99)[0] == [4]
    assert fake.asked[1]["max_completion_tokens"] == 99 and "max_tokens" not in fake.asked[1]
    fake.refuses["max_completion_tokens"] = "max_completion_tokens is too large"
    assert ask(fake)[0] == [4]  # and then the server says how long an answer may be


def test_a_server_that_refuses_everything_is_not_asked_for_ever():
    fake = FakeJudge(Status(400, message="seed temperature max_tokens response_format model"))
    with pytest.raises(JudgeError, match="HTTP 400"):
        ask(fake)
    assert len(fake.asked) <= 6


def test_extra_fields_go_before_ours():
    fake = FakeJudge("four", FOUR)
    extra = {"temperature": 0.6, "chat_template_kwargs": {"enable_thinking": False}}
    ask(fake, extra=extra)
    assert [a["temperature"] for a in fake.asked] == [0.6, 0.6]
    assert [a["seed"] for a in fake.asked] == [0, 1]  # by which the second may differ
    assert fake.asked[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_answer_is_kept_in_the_folder(tmp_path):
    fake = FakeJudge("?", {"naturalness": 2}, {"naturalness": 3}, FOUR)
    read, usage = ask(fake, folder=tmp_path, name="one")
    assert read == [2] and usage["cached"] == 0
    read, usage = ask(fake, folder=tmp_path, name="one")  # after a restart, on another port
    assert read == [2] and usage["cached"] == 1 and usage["calls"] == 0
    assert ask(fake, folder=tmp_path, name="one", number=1)[0] == [3]
    for other in ({"name": "two"}, {"name": "one", "extra": {"a": 1}}, {"more": "Prompt: y"}):
        assert ask(fake, folder=tmp_path, **other)[0] == [4]
    assert len(fake.asked) == 6
    fake.answers = ["no"]
    for _ in range(2):  # what could not be read is asked for again
        with pytest.raises(JudgeError):
            ask(fake, folder=tmp_path, name="three")
    assert len(fake.asked) == 10


def test_replies_are_logged_with_what_became_of_them_and_without_pictures_or_key(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", KEY)
    fake = FakeJudge(f"I know your {KEY}", FOUR, message={"reasoning_content": "hm"})
    ask(fake, folder=tmp_path, key_env="MY_KEY")
    assert fake.keys == [f"Bearer {KEY}"] * 2
    with pytest.raises(JudgeError):
        ask(FakeJudge(Status(503, message=KEY)), folder=tmp_path, key_env="MY_KEY", name="x")
    lines = (tmp_path / judge_record.FILE).read_text().splitlines()
    first, second, third = map(json.loads, lines)
    assert first["reply"]["choices"][0]["message"]["content"] == "I know your ***"
    assert first["unusable"].startswith("expected a JSON object") and first["seed"] == 0
    assert second["unusable"] == "" and second["question"] == "naturalness"
    assert second["reply"]["choices"][0]["message"]["reasoning_content"] == "hm"
    assert third["reply"] is None and third["unusable"] == "HTTP 503: ***"
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_no_more_requests_are_under_way_than_workers():
    fake = FakeJudge(lambda body: Slow(0.05))
    with serve(fake.app()) as url:
        asker = chat(url + "/v1", workers=3)

        def ask_in_vain(number):
            with pytest.raises(JudgeError):
                asker.ask(QUESTION, PARTS, number=number)

        threads = [threading.Thread(target=ask_in_vain, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asker.usage.take()["calls"] == 24
    assert fake.most == 3


def test_what_is_past_its_time_is_not_asked():
    fake = FakeJudge(FOUR)
    with serve(fake.app()) as url:
        asker = chat(url + "/v1")
        with pytest.raises(JudgeError, match="there was no time to ask it"):
            asker.ask(QUESTION, PARTS, deadline=asker.deadline() - 30)
    assert fake.asked == []


def test_tokens_that_a_server_does_not_count_are_unknown():
    _, usage = ask(FakeJudge(FOUR, usage=False))
    assert usage["prompt_tokens"] is None and usage["answer_tokens"] is None
    assert usage["calls"] == 1


# --- expected values

ROWS = [
    {"token": '{"naturalness": ', "logprob": 0.0, "top_logprobs": []},
    {
        "token": "4",
        "logprob": -0.6931472,
        "top_logprobs": [{"token": "3", "logprob": -0.6931472}],
    },
    {"token": "}", "logprob": 0.0, "top_logprobs": []},
]


def test_grades_are_expected_values_where_the_server_gives_logprobs(caplog):
    fake = FakeJudge(FOUR, choice={"logprobs": {"content": ROWS}})
    assert ask(fake, expected=True)[0] == pytest.approx([3.5])
    assert fake.asked[0]["logprobs"] is True and fake.asked[0]["top_logprobs"] == 20
    assert ask(fake)[0] == pytest.approx([3.5])  # unasked for, and not wrong
    assert caplog.text == ""
    silent = FakeJudge(FOUR, refuses={"logprobs": "logprobs are not supported"})
    assert ask(silent, expected=True)[0] == [4]
    assert "top_logprobs" not in silent.asked[1]
    assert "gives no logprobs" in caplog.text and "refuses logprobs" in caplog.text


# --- the check before a run


def checked(fake, **options):
    with serve(fake.app()) as url:
        asker = chat(url + "/v1", **options)
        asker.check()
        return asker.model


def test_a_server_with_the_model_is_taken():
    fake = FakeJudge("yes", models=("other", "fake"))
    assert checked(fake) == "fake" and fake.asked == []
    assert checked(FakeJudge("yes", models=("one",)), model="") == "one"
    with pytest.raises(ConnectionError, match=r"not 'qwen' \(config.reward.judge_model\)"):
        checked(fake, model="qwen")
    with pytest.raises(
        ConnectionError, match=r"serves \['other', 'fake'\], not '' \(--judge_model"
    ):
        checked(fake, model="", setting="--judge")


@pytest.mark.parametrize("models", [None, ()], ids=["no route", "no models"])
def test_a_server_that_lists_no_models_is_asked_for_a_word(models):
    fake = FakeJudge("yes", models=models)
    assert checked(fake) == "fake"
    assert [a["messages"][0]["content"] for a in fake.asked] == ["Say yes."]
    for answer in (Status(404), Status(200, {"hello": 1}), Status(500)):
        with pytest.raises(ConnectionError, match="^config.reward.judge: no judge at http"):
            checked(FakeJudge(answer, models=models))
    with pytest.raises(ConnectionError, match="does not list its models, not ''"):
        checked(fake, model="")


def test_a_server_that_wants_a_key_says_so(monkeypatch):
    api = FastAPI()
    refused = JSONResponse({"error": {"message": "no key"}}, 401)
    api.get("/v1/models")(lambda: refused)
    with serve(api) as url, pytest.raises(ConnectionError, match="no key; put its key into an env"):
        chat(url + "/v1").check()
    with pytest.raises(ConnectionError, match="no key; .*config.reward.judge_key_env"):
        checked(FakeJudge(Status(401, message="no key"), models=None))


def test_a_server_that_is_not_there():
    with pytest.raises(ConnectionError, match="no judge at .*attempts failed.*; start one"):
        chat(dead_url() + "/v1").check()


@pytest.mark.parametrize("answer", [[], None, "hello", {"data": [3]}])
def test_a_server_that_is_no_judge_is_called_so(answer):
    api = FastAPI()
    api.get("/v1/models")(lambda: JSONResponse(answer))
    with serve(api) as url, pytest.raises(ConnectionError, match=r"^config\.reward\.judge"):
        chat(url + "/v1").check()
