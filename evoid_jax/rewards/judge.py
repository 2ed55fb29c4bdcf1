"""The MLLM judge: a preference score per video, and which dimension a batch should improve.

Besides: how natural a video looks, by the benchmark's scale, and prompts that suit a photo. What is
asked stands in rubrics.py, how in judge_chat.py. B videos, F frames, H W C pixels, G groups
(table.GROUPS).
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from evoid_jax.reward_groups import GROUPS, Reward
from evoid_jax.rewards import evoscore, rubrics, threads
from evoid_jax.rewards.judge_chat import Chat
from evoid_jax.rewards.judge_server import JudgeError, Server
from evoid_jax.sidecars.photos import Photos, shared

AWAY = 120.0  # seconds that a judge may be away, as one that is started again is


class Judge:
    """Grades videos and names what they need; safe to use from several threads.

    A question without a usable answer is counted in `chat.usage` and gives no number.

    Args:
      chat: with the server.
      questions: what it is asked; None is ours.
      frames: frames shown in a request; a question about two videos shows half of them from each.
      photos: reference photos shown in a request, at most; the first ones.
      side: longest side of a shown frame or photo; larger ones are scaled down.
      fps: of the videos, for the frames' times.
    """

    def __init__(
        self,
        chat: Chat,
        questions: rubrics.Questions | None = None,
        *,
        frames: int = 8,
        side: int = 512,
        photos: int = 4,
        fps: float = 8.0,
    ):
        self.chat, self.questions = chat, questions or rubrics.questions()
        self.frames, self.side, self.photos, self.fps = frames, side, photos, fps

    def vqscore(
        self, video_BFHWC: np.ndarray, references: Photos, prompts: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Grade each video in five dimensions, one request a video.

        Args:
          video_BFHWC: uint8 RGB.
          references: of each video the photos of its person, uint8 RGB (h, w, 3) of any sizes.
          prompts: B strings.

        Returns:
          raw_B, the mean grade 1..10; score_B, the mean of (grade - 1) / 9; both float32 and NaN
          where no usable answer came; and valid_B.
        """
        grades = self.grades(self.questions.vqscore, video_BFHWC, references, prompts)
        means = [math.nan if row is None else float(np.mean(row)) for row in grades]
        raw_B = np.array(means, np.float32)
        return raw_B, (raw_B - 1) / 9, np.isfinite(raw_B)

    def evoscore(
        self, video_BFHWC: np.ndarray, references: Photos, prompts: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Grade each video by EvoScore, see evoscore.py; one request a video. Args: as `vqscore`.

        Returns:
          raw_B and score_B, both the score in [0, 1], float32, NaN where no usable answer came; and
          valid_B.
        """
        grades = self.grades(self.questions.evoscore, video_BFHWC, references, prompts)
        scores = [math.nan if row is None else evoscore.evoscore(row) for row in grades]
        score_B = np.array(scores, np.float32)
        return score_B, score_B.copy(), np.isfinite(score_B)

    def grades(
        self,
        question: rubrics.Question,
        video_BFHWC: np.ndarray,
        references: Photos,
        prompts: list[str],
    ) -> list[list[float] | None]:
        """Return what is answered to one question about each video, None where nothing usable is.

        Args: as `vqscore`.
        """
        until, photos = self.chat.deadline(), self._photos(references)

        def ask(b: int) -> list[float] | None:
            parts = photos[b] + shown(video_BFHWC[b], self.frames, self.side, self.fps)
            return self._answer(question, parts, prompts[b], until)

        return _each(ask, len(prompts), self.chat)

    def attention(
        self,
        video_BFHWC: np.ndarray,
        references: Photos,
        prompts: list[str],
        group_B: np.ndarray,
        reward_B: np.ndarray,
        valid_B: np.ndarray | None = None,
    ) -> tuple[np.ndarray, int]:
        """Ask, pair by pair, how much each dimension needs improvement.

        Args:
          video_BFHWC: uint8 RGB.
          references: of each video the photos of its person, uint8 RGB (h, w, 3) of any sizes.
          prompts: B strings.
          group_B: (B,) equal within a pair.
          reward_B: (B,) by which the best and the worst video of a pair are chosen.
          valid_B: (B,) which rewards count; None: all that are finite.

        Returns:
          attention_G float32 in 0..10, the mean over the pairs that were answered, and how many
          were. If none, attention is zeros: blend with gamma = 0 then, which is the prior.
        """
        until, ends = self.chat.deadline(), _best_and_worst(group_B, reward_B, valid_B)
        photos = self._photos([references[best] for best, _ in ends])
        count = max(1, self.frames // 2)
        show = partial(shown, count=count, side=self.side, fps=self.fps)

        def ask(i: int) -> list[float] | None:
            best, worst = ends[i]
            parts = photos[i] + show(video_BFHWC[best], label="best video, ")
            if worst != best:  # one video, or one that is valid: it is shown once
                parts += show(video_BFHWC[worst], label="worst video, ")
            return self._answer(self.questions.attention, parts, prompts[best], until)

        answers = [answer for answer in _each(ask, len(ends), self.chat) if answer is not None]
        if not answers:
            return np.zeros(len(GROUPS), np.float32), 0
        return np.mean(answers, axis=0).astype(np.float32), len(answers)

    def _answer(
        self, question: rubrics.Question, parts: list[dict], prompt: str, until: float
    ) -> list[float] | None:
        """Return the answer to a question about a prompt's videos, None where there is none."""
        # In quotes and escaped: a prompt that itself asks for good grades stays a string.
        more = f"Prompt: {json.dumps(prompt, ensure_ascii=False)}"
        try:
            return self.chat.ask(question, parts, more=more, deadline=until)
        except JudgeError:
            return None  # counted and logged there

    def _photos(self, references: Photos) -> list[list[dict]]:
        """Return of each video the text and picture parts of its photos.

        A photo that videos share is scaled and encoded once: it may have a hundred megapixels.
        """
        photos, indices = shared([own[: self.photos] for own in references])
        pictures = [picture(photo_HWC, self.side) for photo_HWC in photos]
        return [_labelled([pictures[i] for i in own]) for own in indices]


def open_judge(
    cfg: Reward, url: str, fps: float, folder: str | Path, setting: str = "config.reward.judge"
) -> Judge:
    """Return the judge of a run, once it has answered.

    Args:
      cfg: config.reward.
      url: of the server; differs from the setting where that is "local".
      fps: of the videos.
      folder: for kept answers and the log of replies.
      setting: what gave the url, for messages.

    Raises:
      ConnectionError: it is not there, or has not the model.
      ValueError, OSError: a setting cannot be, or the file of the rubric.
    """
    own = cfg.judge == "local"
    server = Server(
        url=url,
        model=cfg.judge_model,
        key_env="" if own else cfg.judge_key_env,
        timeout=cfg.timeout,
        workers=cfg.judge_workers,
        tokens=cfg.judge_tokens,
        extra=json.loads(cfg.judge_extra or "{}"),
        expected=cfg.judge_expected,
        name=cfg.judge,  # our own server has another port each time
        setting=setting,
        patience=min(cfg.patience, cfg.timeout, AWAY),
    )
    questions = rubrics.questions(cfg.judge_rubric)
    judge = Judge(
        Chat(server, Path(folder)),
        questions,
        frames=cfg.judge_frames,
        side=cfg.judge_side,
        fps=fps,
    )
    try:
        judge.chat.check()
    except BaseException:
        judge.chat.close()
        raise
    return judge


# --- questions that need no prompt


def naturalness(
    chat: Chat,
    video_BFHWC: np.ndarray,
    *,
    asks: int = 1,
    question: rubrics.Question | None = None,
    frames: int = 16,
    side: int = 512,
    fps: float = 8.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grade how natural each video looks, by the scale of the benchmark (OpenS2V-Eval).

    Args:
      chat: with a judge's server.
      video_BFHWC: uint8 RGB.
      asks: how often each video is graded; the benchmark takes the mean over three. One is asked
        for at temperature 0, several at 1.
      question: of `rubrics.questions`; None is ours.
      frames, side: frames shown, and their longest side. fps: of the videos.

    Returns:
      raw_B, the mean grade 1..5 over the asks that were answered; score_B, (raw - 1) / 4; both
      float32 and NaN where none was; and valid_B.
    """
    question, until = question or rubrics.questions().naturalness, chat.deadline()
    parts = [shown(video_FHWC, frames, side, fps) for video_FHWC in video_BFHWC]
    heat = 0.0 if asks == 1 else 1.0

    def grade(i: int) -> float:
        b, number = divmod(i, asks)
        try:
            (value,) = chat.ask(question, parts[b], number=number, temperature=heat, deadline=until)
            return value
        except JudgeError:
            return math.nan  # counted and logged there

    grades = np.array(_each(grade, len(parts) * asks, chat)).reshape(len(parts), asks)
    raw_B = np.array(
        [row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in grades],
        np.float32,
    )
    return raw_B, (raw_B - 1) / 4, np.isfinite(raw_B)


def propose(chat: Chat, photo_HWC: np.ndarray, count: int, side: int = 768) -> list[str]:
    """Have a judge's model write prompts for videos of the person on a photo.

    Args:
      chat: with its server.
      photo_HWC: uint8 RGB.
      count: how many prompts are asked for.
      side: longest side of the photo as it is shown.

    Returns:
      Up to `count` prompts, each one line, no two alike; the same again for the same photo.

    Raises:
      JudgeError: no usable answer; says why.
    """
    label = {"type": "text", "text": "reference photo of the person"}
    parts = [label, picture(photo_HWC, side)]
    return chat.ask(rubrics.proposals(count), parts, temperature=0.7)


# --- what is shown


def shown(video_FHWC: np.ndarray, count: int, side: int, fps: float, label: str = "") -> list[dict]:
    """Return text and picture parts of `count` frames of a video, evenly spaced in time.

    Args:
      video_FHWC: uint8 RGB.
      side: longest side of a picture.
      fps: of the video, for the times in the texts.
      label: in front of each text.
    """
    frames = np.unique(np.linspace(0, len(video_FHWC) - 1, count).round().astype(int))
    parts = []
    for k, f in enumerate(frames):
        text = f"{label}frame {k + 1}/{len(frames)}, t={f / fps:.2f}s"
        parts += [{"type": "text", "text": text}, picture(video_FHWC[f], side)]
    return parts


def picture(frame_HWC: np.ndarray, side: int) -> dict:
    """Return one frame, uint8 RGB, as a JPEG part whose longest side is at most `side`."""
    image = Image.fromarray(np.asarray(frame_HWC))
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)  # small pictures lose colour otherwise
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _labelled(photos: list[dict]) -> list[dict]:
    """Return text and picture parts of one person's photos."""
    parts = []
    for k, photo in enumerate(photos):
        number = "" if len(photos) == 1 else f" {k + 1}/{len(photos)}"
        parts += [{"type": "text", "text": f"reference photo{number} of the person"}, photo]
    return parts


def _best_and_worst(
    group_B: np.ndarray, reward_B: np.ndarray, valid_B: np.ndarray | None
) -> list[tuple[int, int]]:
    """Return each pair's best and worst valid video; a pair without any is left out."""
    group_B, reward_B = np.asarray(group_B), np.asarray(reward_B)
    valid_B = np.isfinite(reward_B) & (True if valid_B is None else np.asarray(valid_B, bool))
    ends = []
    for group in np.unique(group_B[valid_B]):
        rows = np.flatnonzero(valid_B & (group_B == group))
        ends.append((int(rows[reward_B[rows].argmax()]), int(rows[reward_B[rows].argmin()])))
    return ends


def _each(function: Callable, count: int, chat: Chat) -> list:
    """Call function(0) to function(count - 1), as many at once as the chat takes; in order."""
    return threads.each(function, count, chat.server.workers)
