"""Make a blind study of videos: a page on which people choose between two, knowing neither.

A trial shows a photo, a prompt and two videos of one face, prompt and seed by two arms: base and
evolved of one run, or evolved of two runs. Neither the page nor the names of its files tell which
is which: videos go by their content's fingerprint, from which `choices.py` finds the arms again.
The page's script shuffles trials and sides anew for every person. As in the paper's study, each
trial is asked three questions, and one side must be chosen (two-alternative forced choice, 2AFC).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evoid_jax import metrics
from evoid_jax.report import faces, shelf, shell
from evoid_jax.report import text as fmt
from evoid_jax.report.folder import HeldoutSample, RunFolder
from evoid_jax.report.shelf import Source

FOLDER = "blind"  # beside the page that shows what people chose
FILE = "blind.html"
MARK = "<main id='blind'"  # by which the page is known again
QUESTIONS = {  # the paper's three aspects, in our words
    "identity": "In which video does the person look more like the person in the photo?",
    "motion": "In which video are the movements more natural?",
    "quality": "Which video has the better picture?",
}


class Trial(NamedTuple):
    """Two videos of one face, prompt and seed, and which arms they are of."""

    prompt: str
    photo: Path | None
    videos: dict[str, Path]  # fingerprint -> file, two of them, in an order that tells nothing
    arms: tuple[dict[str, str], ...]  # fingerprint -> arm; two where arms made the same video

    @property
    def name(self) -> str:
        """What an answer calls the trial."""
        return _digest(self.prompt, *self.videos)


def of_run(run: RunFolder) -> list[Trial]:
    """Return the trials of a run: base against evolved for every triple whose videos are kept."""
    pairs = [
        (one, {"base": one.base, "evolved": one.evolved})
        for one in run.samples
        if one.base and one.evolved
    ]
    return _merged(pairs)


def of_runs(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Trial]:
    """Return the trials of several runs: evolved against evolved, for every two of them."""
    pairs = []
    kept = [faces.kept(run) for run in runs]
    for (mine, theirs), (name, rival) in zip(
        itertools.combinations(kept, 2), itertools.combinations(names, 2), strict=True
    ):
        for key, sample in mine.items():
            other = theirs.get(key)
            if sample.evolved and other and other.evolved:
                pairs.append((sample, {name: sample.evolved, rival: other.evolved}))
    return _merged(pairs)


def name(trials: Sequence[Trial]) -> str:
    """Return what answers call the study: the same for the same trials in any order."""
    return _digest(*sorted(trial.name for trial in trials))


def write(place: Path, trials: Sequence[Trial], mode: str) -> Path:
    """Write the page into `place/blind`, with its videos inside or in files beside it.

    Args:
      mode: of shelf.MODES.

    Raises:
      ValueError: there is nothing to choose between. OSError: it cannot be written.
    """
    if not trials:
        raise ValueError(
            "there is no blind page to write: no two different videos of the same face, prompt and "
            "seed are kept (samples/ in the run folders)"
        )
    folder = place / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    source = shelf.choose(mode, _media(trials).values(), shelf.copied(folder))
    written = metrics.write_text(folder / FILE, page(trials, source))
    shelf.tidy(folder, source.names)
    return written


def remove(place: Path) -> None:
    """Remove the blind page that lies in `place/blind`, and its media; answers stay."""
    folder = place / FOLDER
    file = folder / FILE
    if not file.is_file() or MARK not in file.read_text("utf-8", errors="replace"):
        return
    file.unlink()
    shelf.tidy(folder, names=())
    if not any(folder.iterdir()):
        folder.rmdir()


def page(trials: Sequence[Trial], source: Source) -> str:
    """Return the blind page. It holds each file once; trials name files by their fingerprints."""
    data = {
        "study": name(trials),
        "questions": [{"name": key, "text": text} for key, text in QUESTIONS.items()],
        "files": {mark: source.file(file) for mark, file in sorted(_media(trials).items())},
        "trials": [_shown(trial) for trial in sorted(trials, key=lambda t: t.name)],
    }
    held = fmt.escape(json.dumps(data, ensure_ascii=False))
    body = (
        f"{MARK} data-study=\"{held}\" tabindex='-1'><h1>Which video is better?</h1>"
        "<noscript><p>This page asks with a script of its own; allow it to run.</p></noscript>"
        "</main>"
    )
    return shell.page("Which video is better?", body, kind="blind", media=shelf.policy(source))


def _merged(pairs: list[tuple[HeldoutSample, dict[str, Path]]]) -> list[Trial]:
    """Make trials; equal videos leave nothing to choose, and equal trials are one."""
    trials: dict[str, Trial] = {}
    for sample, files in pairs:
        marks = {shelf.fingerprint(file): (arm, file) for arm, file in files.items()}
        if len(marks) < 2:
            continue
        trial = Trial(
            prompt=str(sample.entry.get("prompt", "")),
            photo=sample.reference,
            videos={mark: marks[mark][1] for mark in sorted(marks)},
            arms=({mark: arm for mark, (arm, _) in marks.items()},),
        )
        same = trials.get(trial.name)
        trials[trial.name] = same._replace(arms=same.arms + trial.arms) if same else trial
    return list(trials.values())


def _media(trials: Sequence[Trial]) -> dict[str, Path]:
    """Return every file that the page shows, by its fingerprint: equal ones once."""
    photos = [trial.photo for trial in trials if trial.photo]
    held = {shelf.fingerprint(photo): photo for photo in photos}
    for trial in trials:
        held |= trial.videos
    return held


def _shown(trial: Trial) -> dict:
    """Return what the page may know of a trial."""
    return {
        "name": trial.name,
        "prompt": trial.prompt,
        "photo": shelf.fingerprint(trial.photo) if trial.photo else None,
        "videos": list(trial.videos),
    }


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
