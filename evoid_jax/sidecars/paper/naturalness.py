"""`naturalness`: how real a video looks to a multimodal model, by a rubric of whole numbers 1 to 5.

OpenS2V-Eval's NaturalScore asks GPT-4o so; its frames are ours, its wording is its authors' and the
rubric (rewards/rubrics.py) our own. Any OpenAI-compatible server may be the judge.
"""

from __future__ import annotations

import cv2
import numpy as np

from evoid_jax.rewards import judge, rubrics
from evoid_jax.rewards.judge_chat import Chat
from evoid_jax.rewards.judge_server import Server

FRAMES, SIDE = 16, 512
LEAST, MOST = 1, 5
QUESTION = rubrics.questions().naturalness


def load(url: str, model: str, key_env: str, timeout: float = 120.0) -> Chat:
    """Return a judge that has answered.

    Args:
      url: of an OpenAI API, such as http://127.0.0.1:8200/v1.
      model: as the server names it; "" is the only one that it has.
      key_env: the environment variable with its key; "" sends none.
      timeout: seconds for one video.

    Raises:
      ConnectionError: it is not there, or has not the model.
    """
    chat = Chat(Server(url, model=model, key_env=key_env, timeout=timeout, setting="--judge"))
    chat.check()
    return chat


def grade(chat: Chat, video_THWC: np.ndarray, fps: float) -> float:
    """Return the grade of a video, 1 to 5.

    Args:
      video_THWC: uint8 RGB.
      fps: for the times that stand beside the frames.

    Raises:
      JudgeError: no usable answer came in time; says why.
    """
    step, chosen = sampled(video_THWC)
    parts = judge.shown(np.stack(chosen), len(chosen), side=SIDE, fps=fps / step)
    (value,) = chat.ask(QUESTION, parts)
    return float(value)


def sampled(video_THWC: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """Return the benchmark's 16 frames and how many lie between two; all of a shorter video.

    Frames are 512 pixels along the longer side; the shorter one is rounded down.
    """
    step = max(len(video_THWC) // FRAMES, 1)
    height, width = video_THWC.shape[1:3]
    longer = max(height, width)
    size = (int(width * SIDE / longer), int(height * SIDE / longer))
    frames = video_THWC[: FRAMES * step : step]
    resize = lambda f: cv2.resize(np.ascontiguousarray(f), size, interpolation=cv2.INTER_AREA)
    return step, [resize(frame) for frame in frames]
