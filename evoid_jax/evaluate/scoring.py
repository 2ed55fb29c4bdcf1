"""Videos into numbers: each video is read once, shown to whoever measures, and written down.

F frames, H W C pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from evoid_jax import media
from evoid_jax.evaluate import cases, scorers, upstream
from evoid_jax.evaluate.cases import Case
from evoid_jax.evaluate.journal import Entry, Journal
from evoid_jax.evaluate.scorers import Scorers, Source
from evoid_jax.rewards import client, evoscore, judge, rubrics
from evoid_jax.rewards.judge_server import JudgeError

HEAT = 1.0  # of its three questions: at 0 they would be one
USUAL_RATE = 16.0  # frames per second of a file that names none; Wan2.1's

LEFT_OUT = "nobody measures it any more, and no number of this video is kept"

Found = dict[str, dict[str, Entry]]  # key -> measure -> its number, or why there is none


class Video(NamedTuple):
    """A case's video, read."""

    case: Case
    of: str  # digest of the video with its photo and prompt
    video_FHWC: np.ndarray  # uint8
    photo_HWC: np.ndarray  # uint8
    fps: float
    row: int  # of the case in the list


def score(
    listed: list[Case],
    videos: Path,
    who: Scorers,
    earlier: Mapping[str, Source],
    journal: Journal,
    workers: int,
) -> tuple[Found, dict[str, Source]]:
    """Measure all videos that are there, and return what is known of every case.

    Args:
      listed: the cases.
      videos: the folder with KEY.mp4.
      who: measures.
      earlier: who measured what they do not, and is not asked: see kept.py.
      journal: what is in it is not asked for again.
      workers: videos under way at once.

    Returns:
      What is known, and those of `earlier` by whom there is a number of these videos.
    """
    with ThreadPoolExecutor(workers) as pool:
        tasks = {
            case.key: pool.submit(_score_one, case, row, videos, who, earlier, journal)
            for row, case in enumerate(listed)
        }
        try:
            for task in tqdm(as_completed(tasks.values()), "scoring", len(tasks), unit="video"):
                task.result()  # what went wrong ends all, now and not when the last one is done
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = {key: task.result() for key, task in tasks.items()}
    had = {n for entries in found.values() for n, entry in entries.items() if entry.raw is not None}
    kept = {name: one for name, one in earlier.items() if had & measures({name: one}).keys()}
    named = measures({**who.sources, **kept})
    return {key: {n: of[n] for n in named} for key, of in found.items()}, kept


def measures(sources: Mapping[str, Source]) -> dict[str, str]:
    """Return the names under which numbers are written down, each with its source's digest."""
    names = {}
    for name, source in sources.items():
        if name == scorers.NATURALNESS and not source.preset:  # the judge's, asked several times
            numbers = range(1, upstream.ASKS + 1)
            names |= {f"{scorers.NATURALNESS}_{k}": source.digest for k in numbers}
        else:
            names[name] = source.digest
    return names


def _score_one(
    case: Case,
    row: int,
    videos: Path,
    who: Scorers,
    earlier: Mapping[str, Source],
    journal: Journal,
) -> dict[str, Entry]:
    """Return what is known of a case, after asking for what is not."""
    today, file = measures(who.sources), cases.video(videos, case)
    names = today | measures(earlier)
    if not file.is_file():
        reason = f"there is no {file.name}"
        return {n: Entry(case.key, "", n, by, None, reason=reason) for n, by in names.items()}
    try:
        of = _digest(file, case)
    except OSError as error:
        return {n: Entry(case.key, "", n, by, None, reason=str(error)) for n, by in names.items()}
    had = {name: journal.had(case.key, of, name, by) for name, by in names.items()}
    wanted = {n: by for n, by in today.items() if had[n] is None or had[n].raw is None}
    for entries in _ask(file, case, of, row, wanted, who) if wanted else ():
        journal.add(entries)  # at once: what a kill finds written is not asked for again
        had |= {entry.name: entry for entry in entries}
    lost = lambda name: Entry(case.key, of, name, names[name], None, reason=LEFT_OUT)
    return {name: entry or lost(name) for name, entry in had.items()}


def _digest(file: Path, case: Case) -> str:
    """Return what binds a number to its video, photo and prompt."""
    parts = (file.read_bytes(), case.photo.read_bytes(), case.prompt.encode())
    each = "".join(hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256(each.encode()).hexdigest()[:32]


def _ask(
    file: Path, case: Case, of: str, row: int, wanted: dict[str, str], who: Scorers
) -> Iterator[list[Entry]]:
    """Yield an entry for every wanted measure of a video, those together that come together."""
    try:
        video_FHWC, rate = media.read(file)
        photo_HWC = media.read_image(case.photo)
    except (OSError, ValueError) as error:
        yield [Entry(case.key, of, n, by, None, reason=str(error)) for n, by in wanted.items()]
        return
    video = Video(case, of, video_FHWC, photo_HWC, rate or USUAL_RATE, row)
    objective = {name: wanted[name] for name in who.of_sidecars() if name in wanted}
    if objective:
        yield list(_of_sidecars(video, objective, who))
    for name, by in wanted.items():
        if name == scorers.EVOSCORE:
            yield [_of_judge(video, name, by, _evoscore, who)]
        elif name not in objective:
            number = int(name.rpartition("_")[2])
            ask = lambda video, who, number=number: _natural(video, who, number)
            yield [_of_judge(video, name, by, ask, who)]


def _of_sidecars(video: Video, wanted: dict[str, str], who: Scorers) -> Iterator[Entry]:
    scores = client.score(
        list(who.urls),
        tuple(wanted),
        video.video_FHWC[None],
        [[video.photo_HWC]],
        [video.case.prompt],
        options=who.options._replace(fps=video.fps),
        first=video.row,
    )
    key, of = video.case.key, video.of
    for m, (name, by) in enumerate(wanted.items()):
        raw, score = scores.table.raw_BM[0, m], scores.table.score_BM[0, m]
        if scores.table.valid_BM[0, m]:
            yield Entry(key, of, name, by, float(raw), float(score))
        else:
            reason = scores.reasons[0].get(name, "no answer")
            yield Entry(key, of, name, by, None, reason=reason)


def _of_judge(video: Video, name: str, by: str, ask, who: Scorers) -> Entry:
    """Return the judge's answer as an entry. ask: (video, who) -> raw, score and what else."""
    try:
        raw, score, more = ask(video, who)
    except JudgeError as error:
        return Entry(video.case.key, video.of, name, by, None, reason=f"the judge: {error}")
    return Entry(video.case.key, video.of, name, by, raw, score, more=more)


def _natural(video: Video, who: Scorers, number: int) -> tuple[float, float, None]:
    """Ask how natural a video looks, one of several times.

    The benchmark's frames: every n-th of the video, 16 together; to its own question alone.
    """
    step = max(len(video.video_FHWC) // scorers.FRAMES, 1)
    shown_FHWC = video.video_FHWC[: scorers.FRAMES * step : step]
    parts = judge.shown(shown_FHWC, len(shown_FHWC), side=scorers.SIDE, fps=video.fps / step)
    question = who.judge.questions.naturalness
    if rubrics.is_benchmarks(question):
        parts = [part for part in parts if part["type"] != "text"]
    (grade,) = who.judge.chat.ask(question, parts, number=number, temperature=HEAT)
    return float(grade), (float(grade) - 1) / 4, None


def _evoscore(video: Video, who: Scorers) -> tuple[float, float, dict[str, float]]:
    """Ask for EvoScore; its aspects are kept beside it."""
    questions, frames, side = who.judge.questions, who.judge.frames, who.judge.side
    # One judge for each video: it tells the frames' times, and rates differ between systems.
    asker = judge.Judge(who.judge.chat, questions, frames=frames, side=side, fps=video.fps)
    shown = video.video_FHWC[None], [[video.photo_HWC]], [video.case.prompt]
    (grades,) = asker.grades(questions.evoscore, *shown)
    if grades is None:
        raise JudgeError("no usable answer, see judge_replies.jsonl")
    value = evoscore.evoscore(grades)
    return value, value, evoscore.aspects(grades)
