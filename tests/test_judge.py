import base64
import io
import json

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image
from servers import dead_url, serve

from evoid_jax.rewards import judge
from evoid_jax.rewards.table import GROUPS
from evoid_jax.sidecars.tiny import judge as judge_server
from evoid_jax.world import portraits

SEVENS = dict.fromkeys(judge.DIMENSIONS, 7)


def world(count=2, seed=0) -> dict:
    """Return what a judge grades: true videos of the tiny world, people's photos, prompts."""
    scenes = [portraits.scene(300 + b, seed + 7 * b) for b in range(count)]
    video_BFHWC = np.stack([portraits.render(s) for s in scenes])
    references = [[portraits.reference(s.identity)] for s in scenes]
    return {
        "video_BFHWC": video_BFHWC,
        "references": references,
        "prompts": [portraits.prompt(s) for s in scenes],
    }


class Fake:
    """A chat server whose answers are given; keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def app(self):
        api = FastAPI()

        @api.post("/v1/chat/completions")
        async def chat(request: Request):
            self.asked.append(await request.json())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, int):
                return JSONResponse({"error": {"message": "no"}}, answer)
            text = answer if isinstance(answer, str | None) else json.dumps(answer)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            choices = [choice | {"finish_reason": "stop"}]
            return {"id": "1", "object": "chat.completion", "created": 0, "model": "fake"} | {
                "choices": choices
            }

        return api

    def pictures(self, i=0):
        parts = self.asked[i]["messages"][0]["content"]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(u.split(",")[1])))) for u in urls]

    def texts(self, i=0):
        return [p["text"] for p in self.asked[i]["messages"][0]["content"] if p["type"] == "text"]


def ask(fake, **options):
    """Return the fake's VQScores of two videos, and the judge."""
    options = {"model": "fake", "workers": 1, "max_retries": 0} | options
    with serve(fake.app()) as url:
        asker = judge.Judge(url + "/v1", **options)
        return asker.vqscore(**world()), asker


def test_vqscore_by_hand():
    grades = dict(zip(judge.DIMENSIONS, (1, 4, 7, 10, 8), strict=True))
    (raw_B, score_B, valid_B), asker = ask(Fake(grades, SEVENS))
    np.testing.assert_allclose(raw_B, [6, 7])
    np.testing.assert_allclose(score_B, [(0 + 3 + 6 + 9 + 7) / 45, 6 / 9], rtol=1e-6)
    assert raw_B.dtype == score_B.dtype == np.float32 and np.all(valid_B)
    assert asker.failures == 0


def test_what_a_judge_is_shown():
    fake = Fake(SEVENS)
    ask(fake, frames=3, fps=4.0)
    video_BFHWC, references, prompts = world().values()
    photo, *frames = fake.pictures()
    assert np.abs(photo.astype(int) - references[0][0]).mean() < 4  # JPEG is lossy
    for frame, f in zip(frames, (0, 4, 8), strict=True):
        assert np.abs(frame.astype(int) - video_BFHWC[0, f]).mean() < 4
    texts = fake.texts()
    assert texts[0].startswith("reference")
    assert texts[1:4] == ["frame 1/3, t=0.00s", "frame 2/3, t=1.00s", "frame 3/3, t=2.00s"]
    assert json.dumps(prompts[0]) in texts[4] and json.dumps(prompts[1]) in fake.texts(1)[4]
    kinds = [part["type"] for part in fake.asked[0]["messages"][0]["content"]]
    assert kinds == ["text", "image_url"] * 4 + ["text"]
    sent = fake.asked[0]
    assert sent["temperature"] == 0 and sent["model"] == "fake"
    assert sent["response_format"]["type"] == "json_schema"
    schema = sent["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False
    assert schema["schema"]["required"] == list(judge.DIMENSIONS)


def test_large_frames_are_scaled_down():
    fake = Fake(SEVENS)
    with serve(fake.app()) as url:
        asker = judge.Judge(url + "/v1", frames=2, side=100)
        asker.vqscore(np.zeros((1, 5, 96, 200, 3), np.uint8), world(1)["references"], ["a person"])
    assert [p.shape for p in fake.pictures()] == [(64, 64, 3), (48, 100, 3), (48, 100, 3)]


def test_several_photos_are_shown_numbered_scaled_and_not_too_many():
    wide, tall = np.full((90, 300, 3), 200, np.uint8), np.full((60, 40, 3), 90, np.uint8)
    fake = Fake(SEVENS)
    with serve(fake.app()) as url:
        asker = judge.Judge(url + "/v1", frames=2, side=100, photos=2, workers=1)
        references = [[wide, tall, wide], [tall]]
        asker.vqscore(world()["video_BFHWC"], references, ["a person"] * 2)
    assert [p.shape for p in fake.pictures(0)[:2]] == [(30, 100, 3), (60, 40, 3)]
    assert [p.shape for p in fake.pictures(1)[:1]] == [(60, 40, 3)]
    assert len(fake.pictures(0)) == 4 and len(fake.pictures(1)) == 3
    assert fake.texts(0)[:2] == [f"reference photo {k}/2 of the person" for k in (1, 2)]
    assert fake.texts(1)[0] == "reference photo of the person"


@pytest.mark.parametrize(
    "answer",
    [
        "seven",
        None,
        "",
        "[7, 7, 7, 7, 7]",
        {"identity": 7},
        SEVENS | {"beauty": 7},
        SEVENS | {"motion": 0},
        SEVENS | {"motion": 11},
        SEVENS | {"motion": 7.5},
        SEVENS | {"motion": True},
        SEVENS | {"motion": "7"},
        SEVENS | {"motion": None},
    ],
    ids=str,
)
def test_unusable_answers_are_asked_once_more(answer):
    fake = Fake(answer, SEVENS)
    (_, _, valid_B), asker = ask(fake)
    assert np.all(valid_B) and asker.failures == 0
    assert [a["seed"] for a in fake.asked] == [0, 1, 0]
    with pytest.raises(ValueError, match="expected"):
        judge.read_grades(answer if isinstance(answer, str | None) else json.dumps(answer))


def test_failures_are_invalid_and_counted():
    (raw_B, score_B, valid_B), asker = ask(Fake("no", "no", SEVENS))
    np.testing.assert_array_equal(valid_B, [False, True])
    assert np.isnan(raw_B[0]) and np.isnan(score_B[0]) and raw_B[1] == 7 and asker.failures == 1
    for fake in (Fake(500), Fake(400)):
        (_, _, valid_B), asker = ask(fake)
        assert not np.any(valid_B) and asker.failures == 2 and len(fake.asked) == 2


def test_a_server_that_recovers():
    (_, _, valid_B), asker = ask(Fake(503, SEVENS), max_retries=2)
    assert np.all(valid_B) and asker.failures == 0


def test_a_dead_judge():
    asker = judge.Judge(dead_url() + "/v1", max_retries=0, timeout=2.0)
    _, _, valid_B = asker.vqscore(**world())
    assert not np.any(valid_B) and asker.failures == 2
    attention_G, ok = asker.attention(**world(), group_B=np.zeros(2), reward_B=np.array([0.1, 0.9]))
    assert not ok and not np.any(attention_G)
    with pytest.raises(ConnectionError, match="no judge at"):
        asker.check()


def test_attention_shows_best_and_worst_and_averages_pairs():
    video_BFHWC, references, prompts = world(5).values()
    group_B, reward_B = np.array([9, 9, 4, 4, 9]), np.array([0.2, 0.9, 0.6, np.nan, 0.5])
    fake = Fake({"identity": 1, "text": 2, "quality": 10}, {"identity": 4, "text": 0, "quality": 0})
    with serve(fake.app()) as url:
        asker = judge.Judge(url + "/v1", frames=4, workers=1)
        attention_G, ok = asker.attention(video_BFHWC, references, prompts, group_B, reward_B)
    assert ok and attention_G.dtype == np.float32
    np.testing.assert_allclose(attention_G, [2.5, 1, 5])
    alone, pair = fake.pictures(0), fake.pictures(1)  # pairs in the order of their numbers
    assert len(alone) == 1 + 2 and len(pair) == 1 + 4
    near = lambda a, b: np.abs(a.astype(int) - b).mean() < 4
    assert near(alone[1], video_BFHWC[2, 0]) and near(pair[0], references[1][0])
    assert near(pair[1], video_BFHWC[1, 0]) and near(pair[3], video_BFHWC[0, 0])
    assert "best video, frame 1/2, t=0.00s" in fake.texts(1)
    assert "worst video, frame 2/2, t=1.00s" in fake.texts(1)
    schema = fake.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(GROUPS)


def test_attention_leaves_out_what_failed():
    asked = world(4) | {
        "group_B": np.array([0, 0, 1, 1]),
        "reward_B": np.array([0.1, 0.2, 0.3, 0.4]),
    }
    good = {"identity": 3, "text": 2.5, "quality": 0}
    with serve(Fake("?", "?", good).app()) as url:
        asker = judge.Judge(url + "/v1", workers=1)
        attention_G, ok = asker.attention(**asked)
        assert ok and asker.failures == 1
        np.testing.assert_allclose(attention_G, [3, 2.5, 0])
        _, ok = asker.attention(**asked, valid_B=np.zeros(4, bool))
        assert not ok


@pytest.mark.parametrize("value", [-0.1, 10.5, "NaN", "Infinity", '"3"', "true", "null"])
def test_bad_needs_are_refused(value):
    with pytest.raises(ValueError, match=r"0\.\.10"):
        judge.read_needs(f'{{"identity": {value}, "text": 1, "quality": 1}}')


@pytest.fixture(scope="module")
def heuristic():
    with serve(judge_server.app()) as url:
        yield judge.Judge(url + "/v1")


def test_the_heuristic_says_what_it_is(heuristic):
    heuristic.check()
    models = heuristic._client.models.list()
    assert [m.id for m in models] == ["heuristic"]
    reply = heuristic._client.chat.completions.with_raw_response
    parts = [
        *heuristic._photos(world(1)["references"])[0],
        *heuristic._show(world(1)["video_BFHWC"][0], 2, ""),
    ]
    parts.append({"type": "text", "text": "grade"})
    answer = reply.create(
        model="gpt", messages=[{"role": "user", "content": parts}], response_format=judge.GRADES
    )
    assert json.loads(answer.text)["model"] == "heuristic"
    with pytest.raises(ConnectionError, match="not 'qwen'"):
        judge.Judge(str(heuristic._client.base_url), model="qwen").check()


def test_the_heuristic_is_deterministic(heuristic):
    first, again = heuristic.vqscore(**world()), heuristic.vqscore(**world())
    assert np.all(first[2])
    np.testing.assert_array_equal(first[0], again[0])


def test_the_heuristic_prefers_the_true_video(heuristic):
    """The truth beats, on average by a clear step, each way of spoiling it."""
    video_BFHWC, references, prompts = world(12).values()
    random = np.random.default_rng(0)
    noise = random.normal(0, 30, video_BFHWC.shape)
    spoilt = {
        "noise": np.clip(video_BFHWC + noise, 0, 255).astype(np.uint8),
        "frozen": np.repeat(video_BFHWC[:, 4:5], 9, axis=1),
        "shuffled": video_BFHWC[:, random.permutation(9)],
        "another scene": np.roll(video_BFHWC, 1, axis=0),
        "a copy of the photo": np.repeat(np.stack(references), 9, axis=1),
        "nothing": np.full_like(video_BFHWC, 128),
    }
    true_B = heuristic.vqscore(video_BFHWC, references, prompts)[1]
    for name, video in spoilt.items():
        score_B = heuristic.vqscore(video, references, prompts)[1]
        assert np.mean(true_B - score_B) > 0.05, name
        assert np.mean(true_B > score_B) > 0.6, name


def test_the_heuristic_takes_the_mean_over_photos():
    video_BFHWC, references, prompts = world().values()
    small = lambda x: np.stack([judge_server.cv2.resize(f, (48, 48)) for f in x]) / np.float32(255)
    photos = [small(own)[0] for own in references]
    video = small(video_BFHWC[0])
    one, two = (judge_server.grade(photo, video, prompts[0]) for photo in photos)
    both = judge_server.grade_all(photos, video, prompts[0])
    assert one["identity"] > two["identity"] + 0.1
    for name in judge.DIMENSIONS:
        assert both[name] == pytest.approx((one[name] + two[name]) / 2)


def test_heuristic_attention_points_at_what_is_wrong(heuristic):
    video_BFHWC, references, prompts = world(8).values()
    group_B, reward_B = np.arange(8), np.ones(8)
    ask = lambda video, reference: dict(
        zip(
            GROUPS,
            heuristic.attention(video, reference, prompts, group_B, reward_B)[0],
            strict=True,
        )
    )
    true = ask(video_BFHWC, references)
    noise = np.random.default_rng(0).integers(-60, 60, video_BFHWC.shape)
    noisy = ask(np.clip(video_BFHWC + noise, 0, 255).astype(np.uint8), references)
    strangers = ask(video_BFHWC, references[-1:] + references[:-1])
    assert all(0 <= x <= 10 for x in true.values())
    assert noisy["quality"] > true["quality"] + 0.5
    assert strangers["identity"] > true["identity"] + 1
    frozen = ask(np.repeat(video_BFHWC[:, :1], 9, axis=1), references)
    assert frozen["text"] > true["text"] + 0.5


def test_the_heuristic_refuses_what_it_cannot_read():
    photo = judge.Judge("http://127.0.0.1:1/v1")._photos(world(1)["references"])[0]
    body = lambda parts, schema=judge.GRADES: {
        "messages": [{"role": "user", "content": parts}],
        "response_format": schema,
    }
    bad = {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}
    torn = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}}
    for request, words in [
        ({"messages": []}, "json_schema"),
        (body(photo, judge._schema("x", {}, ("age",))), "not .'age'"),
        (body(photo), "then frames"),
        (body([*photo, {"type": "text", "text": "frame"}, bad]), "base64"),
        (body([*photo, {"type": "text", "text": "frame"}, torn]), "does not decode"),
        (body([{"type": "image_url"}]), "not a chat request"),
    ]:
        with pytest.raises(ValueError, match=words):
            judge_server.answer(request)


@pytest.mark.parametrize("answer", [[], None, "hello", {"data": [3]}])
def test_a_server_that_is_no_judge_is_called_so(answer):
    api = FastAPI()
    api.get("/v1/models")(lambda: JSONResponse(answer))
    with serve(api) as url, pytest.raises(ConnectionError, match=r"^config\.reward\.judge"):
        judge.Judge(f"{url}/v1", "m", max_retries=0).check()
