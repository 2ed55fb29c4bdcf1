"""Heuristic judge: no model, but the OpenAI chat protocol of one; for tiny runs and tests.

    python -m evoid_jax.sidecars.tiny.judge --host 127.0.0.1 --port 0 --port-file FILE

It decodes the pictures it is sent and measures what grades.py says. That is no opinion of a model,
so every reply and /v1/models name the model "heuristic". Equal requests, equal answers.

Which question is asked is read from the properties of `response_format.json_schema`; which picture
is which, from the text part before it ("reference", "best", "worst"); see rewards/judge.py.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re

import anyio
import cv2
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image

from evoid_jax.rewards.evoscore import ASPECTS
from evoid_jax.sidecars import door, limits, listen
from evoid_jax.sidecars.queue import NoRoom, Room, Share
from evoid_jax.sidecars.tiny.grades import GRADES, SIDE, grade_all, naturalness, proposed

MODEL = "heuristic"
READERS = 2  # questions answered at once, in threads of their own
ROOM = 2**29  # bytes of questions that may be here at once
FORMATS = ("PNG", "JPEG")  # of pictures: what clients send
NEEDS = ("identity", "text", "quality")
NATURALNESS, PROPOSALS = ("naturalness",), ("prompts",)
# EvoScore's nine items, each by the one of the five grades that is nearest to it.
ITEMS = dict.fromkeys(ASPECTS["identity"], "identity")
ITEMS |= dict(zip(ASPECTS["prompt"], ("text_consistency",) * 2 + ("camera_movement",), strict=True))
ITEMS |= dict(zip(ASPECTS["technical"], ("visual_realism",) * 2 + ("motion",), strict=True))
QUESTIONS = (GRADES, NEEDS, NATURALNESS, PROPOSALS, tuple(ITEMS))


def answer(body: dict) -> dict:
    """Answer a chat request with the object that its schema asks for.

    Raises:
      ValueError: the request has no schema or pictures that we know; says what was expected.
    """
    asked, properties = _asked(body)
    pictures, prompt = _contents(body)
    if asked == NATURALNESS and pictures.get("frames"):
        return {"naturalness": naturalness(np.stack(pictures["frames"]))}
    photos = pictures.pop("reference", [])
    if asked == PROPOSALS and photos:
        return {"prompts": proposed(photos[0], _least(properties["prompts"]))}
    if not photos or not any(pictures.values()):
        raise ValueError("expected a picture after a text naming the reference, then frames")
    grades = [grade_all(photos, np.stack(v), prompt) for v in pictures.values() if v]
    if asked == tuple(ITEMS):
        return {name: 1 + round(9 * grades[0][grade]) for name, grade in ITEMS.items()}
    if asked == GRADES:  # whole numbers 1..10
        return {name: 1 + round(9 * grades[0][name]) for name in GRADES}
    mean = {name: float(np.mean([g[name] for g in grades])) for name in GRADES}
    # Needs 0..10: what both videos, best and worst, lack of the best grade on average.
    quality = (mean["visual_realism"] + mean["motion"] + mean["camera_movement"]) / 3
    strength = (mean["identity"], mean["text_consistency"], quality)
    return {name: round(10 * (1 - x)) for name, x in zip(NEEDS, strength, strict=True)}


def _asked(body: dict) -> tuple[tuple[str, ...], dict]:
    """Return which of QUESTIONS a request's schema has as its properties, and these."""
    try:
        properties = dict(body["response_format"]["json_schema"]["schema"]["properties"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("expected response_format with a json_schema") from error
    for names in QUESTIONS:
        if set(properties) == set(names):
            return names, properties
    raise ValueError(f"this judge answers {QUESTIONS}, not {sorted(properties)!s:.200}")


def _least(schema) -> int:
    """Return how many items a list must have by its schema."""
    count = schema.get("minItems") if isinstance(schema, dict) else None
    if type(count) is not int or count < 1:
        raise ValueError(f"expected prompts with minItems, got {schema!r:.80}")
    return count


def _contents(body: dict) -> tuple[dict[str, list[np.ndarray]], str]:
    """Return the pictures by role (reference, best, worst, frames) and the prompt."""
    try:
        contents = [message["content"] for message in body["messages"]]
        # A plain string is a system message, which has no pictures and no prompt.
        parts = [part for content in contents if isinstance(content, list) for part in content]
        said, prompt = "", ""
        pictures: dict[str, list[np.ndarray]] = {}
        shown = [part for part in parts if part["type"] == "image_url"]
        limits.check("pictures", len(shown), limits.PICTURES)
        for part in parts:
            if part["type"] == "text":
                said = part["text"]
                quoted = re.search(r'^Prompt: (".*")$', said, re.M)
                prompt = json.loads(quoted[1]) if quoted else prompt
                limits.check("letters of a prompt", len(prompt), limits.PROMPT)
            elif part["type"] == "image_url":
                role = re.match(r"(reference|best|worst)", said, re.I)
                name = role[1].lower() if role else "frames"
                pictures.setdefault(name, []).append(_decode(part["image_url"]["url"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a chat request with text and image_url parts: {error!r}") from error
    return pictures, prompt


def _decode(url: str) -> np.ndarray:
    """Decode a data: URL into float RGB of SIDE x SIDE; addresses are not fetched."""
    if not isinstance(url, str):
        raise ValueError(f"expected data:image/..;base64, got {url!r:.40}")
    head, _, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError(f"expected data:image/..;base64, got {url[:40]!r}")
    file = base64.b64decode(data)
    _check_picture(file)
    picture = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ValueError("an image part does not decode")
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _check_picture(file: bytes) -> None:
    """Raise where a picture is none, or has more pixels than may be; reads its beginning alone."""
    try:
        width, height = Image.open(io.BytesIO(file), formats=FORMATS).size
    except Image.DecompressionBombError:  # far beyond it; Pillow does not say how far
        width = height = 10**9
    except Exception as error:  # Pillow raises whatever a broken file leads it into
        raise ValueError(f"an image part does not decode as {' or '.join(FORMATS)}") from error
    limits.check("pixels of a picture", width * height, limits.PICTURE_PIXELS)


def chatted(body: bytes | bytearray) -> dict:
    """Return the reply to the body of a chat request.

    Raises:
      ValueError: it cannot be read or answered; says what was expected.
    """
    limits.check_parts(body)
    try:
        content = json.dumps(answer(json.loads(body)))
    except cv2.error as error:
        raise ValueError(f"a picture that cannot be measured: {error.err}") from error
    except RecursionError:
        raise ValueError("the request has too many lists in each other") from None
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-heuristic",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def app(token: str | None = None) -> FastAPI:
    """Build the server: /health, and the two routes of the OpenAI protocol that clients use.

    token: what all but /health ask for, as an API key is sent; see door.py.
    """
    api = FastAPI(title="evoid_jax heuristic judge", openapi_url=None)
    api.add_middleware(door.Door, most=limits.CHAT_BODY, token=token)
    room, readers = Room(ROOM), anyio.CapacityLimiter(READERS)

    # All of them `async`, as in serve.py: /health must not wait for a thread.
    @api.get(door.OPEN)
    async def health() -> dict:
        return {"status": "ok"}

    @api.get("/v1/models")
    async def models() -> dict:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "evoid_jax"}
        return {"object": "list", "data": [model]}

    @api.post("/v1/chat/completions")
    async def chat(request: Request):
        try:
            with Share(room) as share:
                body = await door.body(request, share, limits.CHAT_BODY)
                return await anyio.to_thread.run_sync(chatted, body, limiter=readers)
        except NoRoom:
            return _refusal("many questions wait; come again in 1 s", 429, {"Retry-After": "1"})
        except ValueError as error:
            return _refusal(str(error), 413 if isinstance(error, limits.TooMuch) else 400)

    return api


def _refusal(why: str, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    error = {"message": why, "type": "invalid_request_error", "code": None}
    return JSONResponse({"error": error}, status, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listen.add_arguments(parser, port=8200)
    args = parser.parse_args()
    listener, token = listen.bind(args)
    cv2.setNumThreads(1)  # the pictures are small; threads would only wait for each other
    print(f"heuristic judge at {listen.announce(listener, args)}/v1", flush=True)
    listen.server(app(token)).run(sockets=[listener])


if __name__ == "__main__":
    main()
