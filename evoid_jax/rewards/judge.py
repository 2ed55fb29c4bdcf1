"""The MLLM judge: a preference score per video, and which dimension a batch should improve.

Speaks the OpenAI chat API, which vLLM, SGLang and our heuristic stand-in
(sidecars/tiny/judge.py) serve. The paper names the five dimensions of VQScore and the three of
attention, not its wording; the questions below are ours. B videos, F frames, H W C pixels, G groups
(table.GROUPS).
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import openai
from PIL import Image

from evoid_jax.groups import GROUPS
from evoid_jax.sidecars.wire import Photos, shared

log = logging.getLogger(__name__)

DIMENSIONS = ("visual_realism", "text_consistency", "identity", "motion", "camera_movement")
RUBRIC = """\
You have seen one or more reference photos of a person and, in order of time, frames of a \
generated video of that person. Grade the video in five dimensions with whole numbers from 1 to 10.
visual_realism: do the frames look like camera footage? 1: hardly recognisable; 4: obvious \
artefacts such as melted hands or smeared textures; 7: small flaws on a close look; 10: flawless.
text_consistency: does it show what the prompt says, person, action, place and style? 1: something \
else; 4: the subject only; 7: all but a detail; 10: everything.
identity: is it the person of the photos, in every frame? 1: someone else; 4: a vague likeness; 7: \
clearly the same with slight drift; 10: unmistakable throughout.
motion: does the person move naturally, smoothly and as much as the prompt asks? 1: frozen or \
jumping about; 4: stiff or jerky; 7: natural with a hitch; 10: like life.
camera_movement: is the camera steady or moving as the prompt asks? 1: shaking or contrary to it; \
4: uneven; 7: right with a wobble; 10: exactly right.
Use the whole range and judge each dimension alone. A frozen copy of a photo deserves a high \
identity but a low motion grade. Answer with the JSON object only."""
QUESTION = """\
You have seen one or more reference photos of a person and frames of the best and the worst of \
several videos that a generator made from them and one prompt. The generator is being trained. How \
much does each of three dimensions need improvement? Answer with numbers from 0 (nothing to gain) \
to 10 (badly needed).
identity: the likeness to the person of the photos.
text: following the prompt, its action, place and style.
quality: how the video looks and moves: realism, sharpness, natural and steady motion.
Weigh what both videos lack more than what only the worst lacks. Answer with the JSON object \
only."""


def _schema(name: str, kind: dict, keys: tuple[str, ...]) -> dict:
    """Return a response_format: an object of exactly these keys, each of this kind."""
    schema = {
        "type": "object",
        "properties": {key: kind for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


GRADES = _schema("vqscore", {"type": "integer", "minimum": 1, "maximum": 10}, DIMENSIONS)
NEEDS = _schema("attention", {"type": "number", "minimum": 0, "maximum": 10}, GROUPS)


class Judge:
    """A judge at an OpenAI-compatible address; safe to use from several threads.

    Args:
      base_url: such as "http://127.0.0.1:8200/v1".
      model: as the server names it.
      api_key: vLLM takes anything.
      timeout: seconds for one answer; connection failures and 5xx are tried again `max_retries`
        times, an answer that cannot be read once more, with another seed.
      workers: requests under way at once.
      frames: frames shown in a request; a question about two videos shows half of them from each.
      photos: reference photos shown in a request, at most; the first ones.
      side: longest side of a shown frame or photo; larger ones are scaled down.
      fps: of the videos, for the frames' times.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "heuristic",
        api_key: str = "EMPTY",
        timeout: float = 60.0,
        max_retries: int = 3,
        workers: int = 8,
        frames: int = 8,
        side: int = 512,
        fps: float = 8.0,
        photos: int = 4,
    ):
        self.model, self.frames, self.side, self.fps = model, frames, side, fps
        self.workers, self.photos = workers, photos
        local = urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            max_retries=max_retries,
            # a proxy from the environment must not catch our own machine's addresses
            http_client=openai.DefaultHttpxClient(trust_env=not local),
        )
        self._lock = threading.Lock()
        self.failures = 0  # questions without a usable answer, since the start

    def check(self) -> None:
        """Raise ConnectionError unless the server answers and has the model."""
        address = self._client.base_url
        try:
            names = [model.id for model in self._client.models.list()]
        except openai.OpenAIError as error:
            raise ConnectionError(
                f"config.reward.judge: no judge at {address}: {error} Start one, or correct the "
                "address"
            ) from error
        except Exception as error:  # any server answers something, of which openai expects a shape
            raise ConnectionError(
                f"config.reward.judge: {address} is no OpenAI API, whose address mostly ends in "
                f"/v1: {error}"
            ) from error
        if self.model not in names:
            raise ConnectionError(
                f"config.reward.judge: {address} serves {names}, not {self.model!r} "
                "(config.reward.judge_model)"
            )

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
        photos = self._photos(references)

        def grade(b: int) -> float:
            parts = photos[b] + self._show(video_BFHWC[b], self.frames, "")
            grades = self._ask(parts, RUBRIC, prompts[b], GRADES, read_grades)
            return math.nan if grades is None else float(np.mean(grades))

        raw_B = np.array(self._map(grade, len(prompts)), np.float32)
        return raw_B, (raw_B - 1) / 9, np.isfinite(raw_B)

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
        ends = _best_and_worst(group_B, reward_B, valid_B)
        photos = self._photos([references[best] for best, _ in ends])

        def ask(i: int) -> list[float] | None:
            best, worst = ends[i]
            count = max(1, self.frames // 2)
            parts = photos[i] + self._show(video_BFHWC[best], count, "best video, ")
            if worst != best:  # one video, or one that is valid: it is shown once
                parts += self._show(video_BFHWC[worst], count, "worst video, ")
            return self._ask(parts, QUESTION, prompts[best], NEEDS, read_needs)

        answers = [answer for answer in self._map(ask, len(ends)) if answer is not None]
        if not answers:
            return np.zeros(len(GROUPS), np.float32), 0
        return np.mean(answers, axis=0).astype(np.float32), len(answers)

    def _map(self, function: Callable, count: int) -> list:
        """Call function(0) to function(count - 1), `workers` at once; results in order."""
        with ThreadPoolExecutor(max(1, min(self.workers, count))) as pool:
            return list(pool.map(function, range(count)))

    def _photos(self, references: Photos) -> list[list[dict]]:
        """Return of each video the text and picture parts of its photos.

        A photo that videos share is scaled and encoded once: it may have a hundred megapixels.
        """
        photos, indices = shared([own[: self.photos] for own in references])
        pictures = [_picture(photo_HWC, self.side) for photo_HWC in photos]
        return [_labelled([pictures[i] for i in own]) for own in indices]

    def _show(self, video_FHWC: np.ndarray, count: int, label: str) -> list[dict]:
        """Return text and picture parts of `count` frames, evenly spaced in time."""
        frames = np.unique(np.linspace(0, len(video_FHWC) - 1, count).round().astype(int))
        parts = []
        for k, f in enumerate(frames):
            text = f"{label}frame {k + 1}/{len(frames)}, t={f / self.fps:.2f}s"
            parts += [{"type": "text", "text": text}, _picture(video_FHWC[f], self.side)]
        return parts

    def _ask(self, parts: list[dict], question: str, prompt: str, schema: dict, read: Callable):
        """Return what `read` makes of the answer, or None after two tries; never raises."""
        # In quotes and escaped: a prompt that itself asks for good grades stays a string.
        text = f"{question}\nPrompt: {json.dumps(prompt, ensure_ascii=False)}"
        content = [*parts, {"type": "text", "text": text}]
        # An answer that cannot be read is asked for once more. A server that failed is not: the
        # client has tried that `max_retries` times already.
        for seed in (0, 1):
            try:
                reply = self._client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": content}],
                    response_format=schema,
                    temperature=0,
                    max_tokens=200,
                    seed=seed,
                )
                answer = reply.choices[0].message.content
                log.debug("judge answered %s", answer)
                return read(answer)
            except openai.OpenAIError as error:
                log.warning("judge: %s", error)
                break
            except Exception as error:  # an unreadable answer, or a reply of some other shape
                log.warning("judge: unusable answer: %s", error)
        with self._lock:
            self.failures += 1
        return None


def read_grades(answer: str | None) -> list[int]:
    """Read the five grades, whole numbers 1..10; ValueError says what is wrong."""
    grades = _read(answer, DIMENSIONS)
    # type(x) is int: true is an int to Python, and 1 to a reader who only compares.
    if not all(type(x) is int and 1 <= x <= 10 for x in grades):
        raise ValueError(f"expected whole numbers 1..10 for {DIMENSIONS}, got {grades}")
    return grades


def read_needs(answer: str | None) -> list[float]:
    """Read the three needs, numbers 0..10 in the order of GROUPS; ValueError says what is wrong."""
    needs = _read(answer, GROUPS)
    if not all(type(x) in (int, float) and 0 <= x <= 10 for x in needs):  # NaN fails this too
        raise ValueError(f"expected numbers 0..10 for {GROUPS}, got {needs}")
    return [float(x) for x in needs]


def _read(answer: str | None, keys: tuple[str, ...]) -> list:
    """Return the values of a JSON object with exactly these keys, in their order."""
    # Servers promise the schema, but not all of them keep it: nothing is trusted here.
    if not isinstance(answer, str):
        raise ValueError(f"expected a JSON object with {keys}, got no text")
    try:
        value = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"expected a JSON object with {keys}, got {answer[:80]!r}") from error
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"expected a JSON object with exactly {keys}, got {answer[:120]!r}")
    return [value[key] for key in keys]


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


def _labelled(photos: list[dict]) -> list[dict]:
    """Return text and picture parts of one person's photos."""
    parts = []
    for k, picture in enumerate(photos):
        number = "" if len(photos) == 1 else f" {k + 1}/{len(photos)}"
        parts += [{"type": "text", "text": f"reference photo{number} of the person"}, picture]
    return parts


def _picture(frame_HWC: np.ndarray, side: int) -> dict:
    """Return one frame as a JPEG data part."""
    image = Image.fromarray(np.asarray(frame_HWC))
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)  # small pictures lose colour otherwise
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
