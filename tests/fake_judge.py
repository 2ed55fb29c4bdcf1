"""A chat server whose answers are given, for tests of what asks a judge."""

import asyncio
import base64
import io
import json

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from evoid_jax.rewards.judge_chat import Chat
from evoid_jax.rewards.judge_server import Server


class Status:
    """An answer that is an error, or a reply of another shape: any status and content."""

    def __init__(self, status=400, content=None, headers=None, message="no", param=None):
        error = {"error": {"message": message, "type": "invalid_request_error", "param": param}}
        self.status, self.headers = status, headers
        self.content = error if content is None else content


class Slow:
    """An answer that does not come in time: nothing at first, or blanks without an end."""

    def __init__(self, seconds=30.0, dribbles=False):
        self.seconds, self.dribbles = seconds, dribbles


class FakeJudge:
    """Answers one after the other, the last one for ever; keeps what it was asked.

    An answer is a text, an object (its JSON is the text), a Status, a Slow, or a function of the
    request that returns one of these. `message` and `choice` are added to a reply's own, as in
    `{"reasoning_content": ..}` and `{"finish_reason": ..}`. models: what /models lists; None: there
    is no such route. refuses: fields that a request must not have, with a message for each.
    """

    def __init__(self, *answers, message=(), choice=(), models=("fake",), refuses=(), usage=True):
        self.answers, self.asked, self.keys, self.paths = list(answers), [], [], []
        self.message, self.choice, self.models = dict(message), dict(choice), models
        self.refuses, self.usage = dict(refuses), usage
        self.under_way = self.most = 0

    def app(self, root="/v1"):
        api = FastAPI()

        @api.post(f"{root}/chat/completions")
        async def chat(request: Request):
            body = await request.json()
            self.asked.append(body)
            self.keys.append(request.headers.get("authorization"))
            self.paths.append(str(request.url))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                return await self.reply(body)
            finally:
                self.under_way -= 1

        if self.models is not None:

            @api.get(f"{root}/models")
            def models():
                rows = [{"id": name, "object": "model"} for name in self.models]
                return {"object": "list", "data": rows}

        return api

    async def reply(self, body):
        for field, words in self.refuses.items():
            if field in body:
                return JSONResponse({"error": {"message": words}}, 400)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, Slow):
            if answer.dribbles:
                return StreamingResponse(_blanks(answer.seconds), media_type="application/json")
            await asyncio.sleep(answer.seconds)
            answer = "too late"
        if isinstance(answer, Status):
            if isinstance(answer.content, str):
                return Response(answer.content, answer.status, media_type="text/html")
            return JSONResponse(answer.content, answer.status, headers=answer.headers)
        text = answer if isinstance(answer, str | list | None) else json.dumps(answer)
        message = {"role": "assistant", "content": text} | self.message
        choice = {"index": 0, "message": message, "finish_reason": "stop"} | self.choice
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "fake"}
        return reply | {"choices": [choice]} | ({"usage": usage} if self.usage else {})

    def pictures(self, i=0):
        parts = self.asked[i]["messages"][0]["content"]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(u.split(",")[1])))) for u in urls]

    def texts(self, i=0):
        return [p["text"] for p in self.asked[i]["messages"][0]["content"] if p["type"] == "text"]


async def _blanks(seconds):
    for _ in range(int(seconds / 0.1)):
        yield b" "
        await asyncio.sleep(0.1)


def chat(url, folder=None, **options):
    """Return a chat with a fake at `url`, which asks one at a time and is not patient."""
    options = {"model": "fake", "workers": 1, "retries": 0, "timeout": 20.0} | options
    return Chat(Server(url, **options), folder)
