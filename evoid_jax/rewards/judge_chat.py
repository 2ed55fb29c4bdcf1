"""A chat with a judge: questions about pictures, asked until there is an answer that can be read.

vLLM, SGLang, llama.cpp, hosted services and our heuristic (sidecars/tiny/judge.py) differ in what
they allow and in how they fail. How a reply is read is in judge_answers.py, how a request is sent
in judge_server.py. Neither JAX nor torch is needed here: sidecars may use it too.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

from evoid_jax.rewards import judge_answers, judge_cache, judge_record
from evoid_jax.rewards.judge_answers import Unusable
from evoid_jax.rewards.judge_server import USUAL_KEY, Broken, JudgeError, Refused, Server, Wire
from evoid_jax.rewards.rubrics import Question

log = logging.getLogger(__name__)
LIKELY = 20  # alternatives of a token, as many as the API allows


class Chat:
    """Asks questions of one server; safe to use from several threads.

    Use: `check()` once, then `ask(question, parts)`.

    Args:
      server: where it is, see judge_server.py.
      folder: for kept answers and for the log of replies; None keeps neither.

    Raises:
      ValueError: the variable of the key is not set, or a key or a proxy cannot be.
    """

    def __init__(self, server: Server, folder: Path | None = None):
        self.server, self.model = server, server.model
        self.usage = judge_record.Usage()
        self._wire = Wire(server, self.usage)
        self._cache = judge_cache.Cache(folder / judge_cache.FILE if folder else None)
        self._replies = judge_record.Replies(folder)
        self.why = ""  # the last question that has no answer has none
        self._lock = threading.Lock()
        self._dropped: set[str] = set()  # fields that the server refused
        self._told: set[str] = set()  # of what a warning has told

    def close(self) -> None:
        """Close connections and files."""
        self._wire.close()
        self._cache.close()
        self._replies.close()

    def check(self) -> None:
        """Raise a ConnectionError unless the server answers and has the model.

        A server that does not list its models is asked for a word instead.
        """
        setting, address = self.server.setting, self._wire.address
        try:
            names = self._wire.models()
        except JudgeError as error:
            raise self._no_judge(error) from None
        except ValueError as error:
            raise ConnectionError(
                f"{setting}: {address} is no OpenAI API, whose address mostly ends in /v1: {error}"
            ) from None
        if not self.model and names and len(names) == 1:
            self.model = names[0]
        if not self.model or (names and self.model not in names):
            served = f"serves {names}" if names else "does not list its models"
            raise ConnectionError(
                f"{setting}: {address} {served}, not {self.model!r} ({setting}_model)"
            )
        if names is None:
            self._ask_for_a_word()

    def deadline(self) -> float:
        """Return the moment, by `time.monotonic`, at which what is asked now must be answered."""
        return time.monotonic() + self.server.timeout

    def ask(
        self,
        question: Question,
        parts: list[dict],
        *,
        more: str = "",
        number: int = 0,
        temperature: float = 0.0,
        deadline: float | None = None,
    ) -> list:
        """Ask one question about some pictures.

        An answer that cannot be read is asked for once more, at another temperature, since the same
        one would give the same answer. Failures that may pass are tried again besides.

        Args:
          question: of rubrics.py.
          parts: text and picture parts, which come before the question.
          more: follows the question.
          number: which of several times that the same is asked; each has seeds of its own.
          temperature: of the first try.
          deadline: as `deadline` returns it; None is the server's timeout from now.

        Returns:
          What the question reads in the answer.

        Raises:
          JudgeError: no usable answer came in time; says why.
        """
        text = f"{question.text}\n{more}".strip()
        content = [*parts, {"type": "text", "text": text}]
        name = self._digest(question, content, number, temperature)
        if (kept := self._cache.get(name)) is not None:
            self.usage.add(cached=1)
            return kept
        until = self.deadline() if deadline is None else deadline
        another = 0.7 if temperature < 0.5 else 0.4
        try:
            try:
                read = self._once(question, content, temperature, 2 * number, until)
            except (Unusable, Broken):
                read = self._once(question, content, another, 2 * number + 1, until)
        except (Unusable, JudgeError) as error:
            self.usage.add(failures=1)
            why = self._wire.words(error)
            log.info("judge, %s: %s", question.name, why)  # whoever asks tells it
            self.why = why
            raise JudgeError(why) from None
        self._cache.put(name, read)
        return read

    def _digest(
        self, question: Question, content: list[dict], number: int, temperature: float
    ) -> str:
        """Return the name under which an answer is kept: of all that may change it."""
        server = self.server
        asked = {"server": server.name or server.url, "model": self.model, "content": content}
        asked |= {"form": question.form, "number": number, "temperature": temperature}
        asked |= {"extra": dict(server.extra), "expected": server.expected}
        return judge_cache.digest(asked)

    def _once(
        self, question: Question, content: list[dict], temperature: float, seed: int, until: float
    ) -> list:
        """Ask once; log what came and what became of it."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": temperature,
            "max_tokens": self.server.tokens,
            "seed": seed,
        }
        if question.form is not None:
            body["response_format"] = question.form
        if self.server.expected:
            body |= {"logprobs": True, "top_logprobs": LIKELY}
        reply, outcome, began = None, "", time.monotonic()
        try:
            reply = self._reply(body | dict(self.server.extra), until)
            said = judge_answers.said(reply)
            if self.server.expected and not said.tokens:
                self._warn("the server gives no logprobs: grades stay the whole numbers it says")
            return question.read(said)
        except (Unusable, JudgeError) as error:
            outcome = self._wire.words(error)
            raise
        finally:
            line = {"question": question.name, "temperature": temperature, "seed": seed}
            line |= {"seconds": round(time.monotonic() - began, 3), "unusable": outcome}
            self._replies.write(self._wire.hide(json.dumps(line | {"reply": reply})))

    def _reply(self, body: dict, until: float) -> object:
        """Return the server's reply, without a field that it refuses from then on."""
        while True:
            allowed = self._allowed(body)
            try:
                return self._wire.post(allowed, until)
            except Refused as refusal:
                if refusal.field is None:
                    raise
                with self._lock:
                    self._dropped.add(refusal.field)
                self._warn(f"the server refuses {refusal.field}, which is not sent any more")

    def _allowed(self, body: dict) -> dict:
        """Return a request without the fields that the server has refused."""
        asked = {name: value for name, value in body.items() if name not in self._dropped}
        if "logprobs" in self._dropped:
            asked.pop("top_logprobs", None)
        # OpenAI's later models have another name for the length of an answer.
        if "max_tokens" in self._dropped and "max_completion_tokens" not in self._dropped:
            asked["max_completion_tokens"] = body["max_tokens"]
        return asked

    def _ask_for_a_word(self) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "Say yes."}]}
        body |= {"max_tokens": self.server.tokens} | dict(self.server.extra)
        try:
            judge_answers.said(self._reply(body, self.deadline()))
        except (JudgeError, Unusable) as error:
            raise self._no_judge(error) from None

    def _no_judge(self, error: Exception) -> ConnectionError:
        setting = self.server.setting
        advice = "start one, or correct the address, which mostly ends in /v1"
        if isinstance(error, Refused) and error.status in (401, 403):
            advice = (
                "put its key into an environment variable and give that one's name as "
                f"{setting}_key_env (unless its name is the usual {USUAL_KEY})"
            )
        words = self._wire.words(error)
        return ConnectionError(f"{setting}: no judge at {self._wire.address}: {words}; {advice}")

    def _warn(self, words: str) -> None:
        """Tell something once."""
        with self._lock:
            if words in self._told:
                return
            self._told.add(words)
        log.warning("judge: %s", words)
