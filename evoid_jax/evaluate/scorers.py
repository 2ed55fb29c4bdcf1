"""Who measures: reward sidecars, given by address or started here, and a judge if there is one.

Each measure has a source, whose digest changes whenever its numbers may: two systems are compared
by measures of one source alone. Only the preset `paper` measures what the benchmark does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files
from evoid_jax.reward_groups import Reward
from evoid_jax.rewards import client, local, rubrics, servers
from evoid_jax.rewards.judge import Judge, open_judge
from evoid_jax.settings import check_reward_preset

PAPER = "paper"
OBJECTIVE = ("arcface", "curricularface", "gme", "aesthetic", "qalign", "flow")
NATURALNESS, EVOSCORE = "naturalness", "evoscore"
MEASURES = (*OBJECTIVE, NATURALNESS, EVOSCORE)
LOADING = 1800.0  # seconds for a sidecar to load its nets: `paper` reads 39 GB
FRAMES, SIDE = 16, 512  # that the benchmark shows for naturalness
BENCHMARKS, USERS, OURS = "the benchmark's words", "the user's words", "our words"
# Whose grades the leaderboard's naturalness are, by the benchmark's own question.
GRADER = "gpt-4o-2024-11-20"


class Source(NamedTuple):
    """What gives one measure."""

    preset: str  # of the sidecar; "" is the judge
    model: str  # and its version
    about: str
    digest: str
    why: tuple[str, ...] = ()  # what keeps its numbers from the leaderboard's, one sentence each


class Scorers(NamedTuple):
    """Everybody who measures, and what."""

    urls: tuple[str, ...]
    judge: Judge | None
    options: client.Options
    sources: dict[str, Source]

    def of_sidecars(self) -> tuple[str, ...]:
        """Return the measures that sidecars are asked for."""
        return tuple(name for name, source in self.sources.items() if source.preset)


@contextlib.contextmanager
def open_scorers(cfg: Reward, logs: Path, evoscore: bool = True) -> Iterator[Scorers]:
    """Start what is to be started, ask everybody what they measure, and stop it at the end.

    Naturalness is asked of the judge, as the benchmark does, where there is one, else of a sidecar.

    Args:
      cfg: sidecars, preset, judge and how it is asked.
      logs: for logs and the judge's answers.
      evoscore: ask the judge for EvoScore too.

    Raises:
      ConnectionError: somebody is not there, or is not what it should be.
      ValueError: a setting cannot be, nobody measures anything, or two measure one thing otherwise.
    """
    if "local" in cfg.sidecars:
        check_reward_preset(cfg.preset)
    options = servers.options(cfg, fps=16)
    with contextlib.ExitStack() as stack:
        start = lambda url: stack.enter_context(_started(cfg.preset, logs)).url
        urls = tuple(start(url) if url == "local" else url for url in cfg.sidecars)
        judge = _judge(cfg, logs, stack) if cfg.judge else None
        infos = {url: _info(url, options) for url in urls}
        sources = _offered(infos, judge is None)
        if judge is not None:
            sources |= _judged(judge, evoscore)
        if not sources:
            raise ValueError(
                f"--reward.sidecars: nobody there offers any of {', '.join(OBJECTIVE)}"
            )
        yield Scorers(urls, judge, options, sources)


def not_comparable(sources: Mapping[str, Source]) -> list[str]:
    """Say what keeps the numbers from standing beside the leaderboard's, one sentence each."""
    return list(dict.fromkeys(why for source in sources.values() for why in source.why))


def objections(name: str, preset: str, about: str) -> tuple[str, ...]:
    """Say what keeps a sidecar's numbers from standing beside the leaderboard's.

    Args:
      name: of the measure.
      preset: the sidecar's set.
      about: what it says of the measure.
    """
    words = []
    if preset != PAPER:
        words.append(
            f"preset {preset}: stand-ins for the benchmark's models, their scores on its scales"
        )
    if name == NATURALNESS:
        words.append(
            "naturalness: one grade of the sidecar's, in all three files; the leaderboard's is the "
            f"mean of three by {GRADER}"
        )
    if preset == PAPER and "not the benchmark's" in about:
        words.append(f"{name}: {about}")
    if preset == PAPER and name == "gme" and "7B" not in about:
        words.append(f"gme: the leaderboard's model is the 7B one, here: {about or '?'}")
    return tuple(words)


def _objections_to(judge: Judge) -> tuple[str, ...]:
    """Say what keeps a judge's grades of naturalness from standing beside the leaderboard's."""
    words, asked = [], _words(judge)
    model, server = judge.chat.model, judge.chat.server
    if model != GRADER or asked != BENCHMARKS:
        words.append(
            f"naturalness: graded by {model}, asked in {asked}; the leaderboard's is "
            f"{GRADER}'s, in the benchmark's"
        )
    if server.extra or server.expected:
        words.append(
            "naturalness: asked with judge_extra or judge_expected, which change the grades; "
            "the benchmark asks with neither"
        )
    return tuple(words)


def _words(judge: Judge) -> str:
    """Say in whose words a judge is asked for naturalness."""
    question = judge.questions.naturalness
    if rubrics.is_benchmarks(question):
        return BENCHMARKS
    return OURS if question.text == rubrics.questions().naturalness.text else USERS


def _started(preset: str, logs: Path) -> local.Local:
    args = ["--preset", preset]
    if preset == PAPER:  # without naturalness: the judge is asked here
        args.append(f"--rewards={','.join(OBJECTIVE)}")
    name = f"sidecar_{preset}"
    return local.start_local("evoid_jax.sidecars.serve", args, logs, LOADING, name)


def _info(url: str, options: client.Options) -> dict:
    try:
        return client.info(url, options)
    except client.SidecarError as error:
        raise ConnectionError(
            f"--reward.sidecars: {error}; start a reward sidecar there, or correct the address"
        ) from None


def _judge(cfg: Reward, logs: Path, stack: contextlib.ExitStack) -> Judge:
    url = cfg.judge
    if url == "local":
        url = stack.enter_context(local.start_judge(logs)).url + "/v1"
    judge = open_judge(cfg, url, fps=16, folder=logs, setting="--reward.judge")
    stack.callback(judge.chat.close)
    return judge


def _offered(infos: dict[str, dict], naturalness: bool) -> dict[str, Source]:
    """Return who measures what; of two that offer the same the first is asked.

    infos: by address, what each sidecar says of itself.

    Raises:
      ValueError: two share the videos, being of one version, and do not measure alike.
    """
    wanted = (*OBJECTIVE, NATURALNESS) if naturalness else OBJECTIVE
    sources: dict[str, Source] = {}
    shared: dict[tuple, tuple[str, str]] = {}  # name and version -> who says what of it
    for url, info in infos.items():
        preset = str(info.get("preset") or "unnamed")
        for entry in info["rewards"]:
            name = entry["name"]
            if name not in wanted:
                continue
            version, about, sha256 = (
                str(entry.get(k) or "") for k in ("version", "about", "sha256")
            )
            first, said = shared.setdefault((name, version, sha256), (url, about))
            if said != about:
                raise ValueError(
                    f"--reward.sidecars: {first} and {url} measure {name} differently ({said!r} "
                    f"and {about!r}); start them alike, or give one of them"
                )
            digest = files.digest([preset, name, version, about, sha256])[:16]
            why = objections(name, preset, about)
            sources.setdefault(name, Source(preset, version, about, digest, why))
    return {name: sources[name] for name in wanted if name in sources}


def _judged(judge: Judge, evoscore: bool) -> dict[str, Source]:
    """Return what the judge measures."""
    asked = {NATURALNESS: (judge.questions.naturalness, FRAMES, SIDE)}
    if evoscore:
        asked[EVOSCORE] = (judge.questions.evoscore, judge.frames, judge.side)
    model, server = judge.chat.model, judge.chat.server
    how = [model, dict(server.extra), server.expected]  # what changes answers, as the judge's cache
    why = {NATURALNESS: _objections_to(judge), EVOSCORE: ()}
    digest = lambda question, shown: files.digest([*how, question.text, *shown])[:16]
    return {
        name: Source("", model, question.name, digest(question, shown), why[name])
        for name, (question, *shown) in asked.items()
    }
