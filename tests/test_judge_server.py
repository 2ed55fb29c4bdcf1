"""Sending a request: keys, addresses, proxies, time, and what failures mean."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import proxies
import pytest
from fake_judge import FakeJudge, Slow, Status
from servers import dead_url, serve

from evoid_jax.rewards import judge_server
from evoid_jax.rewards.judge_record import Usage
from evoid_jax.rewards.judge_server import JudgeError, Refused, Server, Wire

BODY = {"model": "fake", "messages": [{"role": "user", "content": "?"}], "seed": 3}
KEY = "sk-very-secret-1234"


def post(url, body=BODY, **options):
    """Send one request; return the reply and the usage."""
    options = {"timeout": 20.0, "retries": 0} | options
    usage = Usage()
    wire = Wire(Server(url, **options), usage)
    try:
        return wire.post(body, time.monotonic() + options["timeout"]), usage.take()
    finally:
        wire.close()


@pytest.fixture(autouse=True)
def no_proxy_or_key(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv(judge_server.USUAL_KEY, raising=False)


def test_a_request_is_sent_as_it_is_and_counted():
    fake = FakeJudge("yes")
    with serve(fake.app()) as url:
        reply, usage = post(url + "/v1", BODY | {"of_our_own": {"a": 1}})
    assert reply["choices"][0]["message"]["content"] == "yes"
    assert fake.asked == [BODY | {"of_our_own": {"a": 1}}]
    assert usage["calls"] == 1 and usage["seconds"] > 0
    assert (usage["prompt_tokens"], usage["answer_tokens"]) == (100, 7)


def test_a_server_behind_a_path_and_a_query():
    fake = FakeJudge("yes")
    with serve(fake.app(root="/team/judge/v1")) as url:
        post(f"{url}/team/judge/v1/?version=2")
    assert fake.paths[0].endswith("/team/judge/v1/chat/completions?version=2")


def test_the_key_is_the_environments(monkeypatch):
    fake = FakeJudge("yes")
    with serve(fake.app()) as url:
        post(url + "/v1")
        monkeypatch.setenv(judge_server.USUAL_KEY, KEY)
        monkeypatch.setenv("MY_KEY", f" {KEY}-mine\n")
        post(url + "/v1", key_env=judge_server.USUAL_KEY)
        post(url + "/v1", key_env="MY_KEY")
        post(url + "/v1")  # none is named: none is sent
    assert fake.keys == ["Bearer EMPTY", f"Bearer {KEY}", f"Bearer {KEY}-mine", "Bearer EMPTY"]


def test_nothing_else_of_the_environment_is_sent(monkeypatch):
    """An account's names and headers for one service are none of another judge's business."""
    seen = []

    async def look(request, call_next):
        seen.append(dict(request.headers))
        return await call_next(request)

    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "hunter2")
    headers = "X-Mine: hunter2\nAuthorization: Bearer hunter2"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", headers)
    app = FakeJudge("yes").app()
    app.middleware("http")(look)
    with serve(app) as url:
        post(url + "/v1")
        wire = Wire(Server(url + "/v1"), Usage())
        assert wire.models() == ["fake"]
        wire.close()
    assert len(seen) == 2 and "hunter2" not in str(seen)
    assert {headers["authorization"] for headers in seen} == {"Bearer EMPTY"}


def test_a_key_that_cannot_be_is_refused_and_not_shown(monkeypatch):
    assert judge_server.read_key("") == judge_server.read_key(judge_server.USUAL_KEY) == ""
    with pytest.raises(ValueError, match="judge_key_env names an environment variable") as error:
        judge_server.read_key(KEY)  # whoever takes the setting for the key itself
    assert KEY not in str(error.value)
    for odd in (f"{KEY} and more", f"{KEY}\nmore", f"{KEY}é"):
        monkeypatch.setenv("MY_KEY", odd)
        with pytest.raises(ValueError, match="the variable holds no key") as error:
            judge_server.read_key("MY_KEY")
        assert "secret" not in str(error.value)


def test_an_address_with_a_password_is_refused_and_not_shown():
    for url in ("http://me:hunter2@host/v1", "http://host/v1?key=hunter2"):
        with pytest.raises(ValueError, match="--judge: an address must hold no name") as error:
            post(url, setting="--judge")
        assert "hunter2" not in str(error.value)


def test_a_key_that_a_server_repeats_is_cut_out(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    fake = FakeJudge(Status(401, message=f"wrong key: {KEY}"), Status(200, f"<html>{KEY}</html>"))
    with serve(fake.app()) as url:
        for kind in (Refused, JudgeError):
            with pytest.raises(kind) as error:
                post(url + "/v1", key_env="MY_KEY")
            assert KEY not in str(error.value) and "***" in str(error.value)


def test_proxies_of_the_environment_are_used_but_not_for_this_machine(monkeypatch):
    fake = FakeJudge("yes")
    with serve(fake.app()) as url, serve(proxies.http(fake.app())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        post("http://judge.example/v1")
        monkeypatch.setenv("HTTP_PROXY", dead_url())
        post(url + "/v1")
        post(url.replace("127.0.0.1", "localhost") + "/v1")
        with pytest.raises(JudgeError, match="connection attempts failed"):
            post("http://judge.example/v1")
    assert len(fake.asked) == 3


def test_a_server_behind_socks(monkeypatch):
    pytest.importorskip("socksio", reason="httpx2[socks] of requirements.txt is not installed")
    fake = FakeJudge("yes")
    with serve(fake.app()) as url, proxies.socks(url) as (address, wanted):
        for scheme in ("socks5", "socks5h"):
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://{address}")
            post("http://judge.example/v1")
    assert len(fake.asked) == 2 and wanted == [("judge.example", 80)] * 2


def test_a_proxy_that_cannot_be_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://me:hunter2@127.0.0.1:1")
    with pytest.raises(ValueError, match="config.reward.judge: the environment's proxy") as error:
        post("http://judge.example/v1")
    assert "hunter2" not in str(error.value)


def test_a_failure_that_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr(judge_server, "PATIENCE", 0.01)
    busy = Status(429, headers={"retry-after": "0.01"}, message="busy")
    fake = FakeJudge(busy, Status(503), Status(408), "yes")
    with serve(fake.app()) as url:
        _, usage = post(url + "/v1", retries=3)
        assert usage["calls"] == 4
        fake.answers = [Status(503, message="out of memory")]
        with pytest.raises(JudgeError, match="503.*out of memory"):
            post(url + "/v1", retries=1)
        assert len(fake.asked) == 6
        fake.answers = [Status(429, headers={"retry-after": "3600"})]
        with pytest.raises(JudgeError, match="429"):  # which is not worth waiting for
            post(url + "/v1", retries=3)
        assert len(fake.asked) == 7
        fake.answers = [Status(403, message="not you")]
        with pytest.raises(Refused, match="not you"):
            post(url + "/v1", retries=3)
        assert len(fake.asked) == 8


@pytest.mark.parametrize("slow", [Slow(), Slow(dribbles=True)], ids=["silent", "dribbles"])
def test_an_answer_that_does_not_come_in_time_is_given_up(slow):
    fake = FakeJudge(slow)
    with serve(fake.app()) as url, pytest.raises(JudgeError, match="no answer in 0.5 s"):
        post(url + "/v1", timeout=0.5, retries=3)
    assert len(fake.asked) <= 1  # and not once more


def test_a_server_that_is_started_again_is_waited_for():
    fake = FakeJudge("yes")
    with serve(fake.app()) as url:
        port = int(url.rsplit(":", 1)[1])
    with ThreadPoolExecutor(1) as pool:
        wire = Wire(Server(url + "/v1", retries=0, patience=60.0), Usage())
        models = pool.submit(wire.models)
        reply = pool.submit(post, url + "/v1", retries=0, timeout=60.0, patience=60.0)
        time.sleep(1.0)
        with serve(fake.app(), port):
            assert models.result(60) == ["fake"] and reply.result(60)
        wire.close()


def test_a_reply_is_not_read_without_end(monkeypatch):
    monkeypatch.setattr(judge_server, "ANY_REPLY", 1000)
    for status in (200, 400, 500):
        long = FakeJudge(Status(status, "x" * 5000))
        words = pytest.raises(JudgeError, match="a reply of more than 1128 bytes")
        with serve(long.app()) as url, words:
            post(url + "/v1", tokens=1)


def test_a_server_that_is_not_there():
    with pytest.raises(JudgeError, match="connection attempts failed"):
        post(dead_url() + "/v1")


@pytest.mark.parametrize("text", ["<html>welcome</html>", "", "{"])
def test_a_reply_that_is_no_json_is_shown(text):
    words = pytest.raises(JudgeError, match="expected JSON, got")
    with serve(FakeJudge(Status(200, text)).app()) as url, words as error:
        post(url + "/v1")
    assert text in str(error.value)


# --- fields that a server refuses

ASKED = dict.fromkeys(("model", "messages", "response_format", "temperature", "max_tokens"), 0)
ASKED |= dict.fromkeys(("seed", "logprobs", "top_logprobs", "chat_template_kwargs"), 0)


def refusal(status, body):
    request = httpx2.Request("POST", "http://judge.example/v1")
    response = httpx2.Response(status, json=body, request=request)
    client = openai.OpenAI(api_key="x", base_url="http://judge.example/v1")
    return client._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("status", "body", "field"),
    [
        (400, {"error": {"message": "Unsupported value.", "param": "temperature"}}, "temperature"),
        (
            400,
            {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens'."}},
            "max_tokens",
        ),
        (
            400,
            {"error": {"message": "This response_format type is unavailable now"}},
            "response_format",
        ),
        (400, {"error": {"message": "Failed to parse JSON schema"}}, "response_format"),
        (400, {"error": "top_logprobs must be at most 5"}, "logprobs"),
        (
            400,
            {"error": {"message": "Unknown field: chat_template_kwargs"}},
            "chat_template_kwargs",
        ),
        (
            422,
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": "temperature"}]},
            "seed",
        ),
        (400, {"error": {"message": "image_url: cannot decode", "param": "messages"}}, None),
        (400, {"error": {"message": "the model is unseeded and proceeds"}}, None),
        (403, {"error": {"message": "temperature", "param": "temperature"}}, None),
        (500, {"error": {"message": "seed"}}, None),
    ],
    ids=str,
)
def test_the_field_that_is_refused_is_found(status, body, field):
    assert judge_server.refused_field(refusal(status, body), ASKED) == field
