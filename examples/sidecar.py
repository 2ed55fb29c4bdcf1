"""A reward sidecar that stands alone (docs/sidecar_protocol.md): python examples/sidecar.py 8101"""

import hashlib
import json
import struct
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

ABOUT = "s, the mean step between neighbouring pixels in grey levels of 255, as s / (s + 8)"
REWARDS = [{"name": "sharpness", "version": "1", "about": ABOUT}]
app = FastAPI()
app.get("/info")(lambda: {"preset": "example", "rewards": REWARDS})


def answer(body: bytes) -> dict:
    (size,) = struct.unpack("<I", body[:4])
    header = json.loads(body[4 : 4 + size])
    pixels = np.frombuffer(body, np.uint8, np.prod(header["shape"]), offset=4 + size)
    grey_BFHW = pixels.reshape(header["shape"]).mean(axis=-1, dtype=np.float32)
    raw_B = np.abs(np.diff(grey_BFHW, axis=3)).mean(axis=(1, 2, 3))
    column = {"raw": raw_B.tolist(), "score": (raw_B / (raw_B + 8)).tolist()}
    bound = {"digest": hashlib.sha256(body).hexdigest(), "ids": header["ids"], "rewards": REWARDS}
    return {"scores": {"sharpness": column}} | bound


@app.post("/score")
async def score(request: Request) -> dict:
    body = await request.body()
    try:
        return await run_in_threadpool(answer, body)
    except Exception as error:  # the client gives the videos up, with this reason
        raise HTTPException(400, f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
