"""Made-up runs that can be compared: the same people, prompts and seeds, other adapters."""

import json
import shutil
from pathlib import Path

import made_up
import numpy as np

from evoid_jax import media, proof, triples


def fill(folder: Path, finished_run: Path, names: str = "abc", rise: float = 0.1) -> list[Path]:
    """Copy a finished run for every name; each scores `rise` more than the one before it.

    Their first sample is the same video in all of them, the others differ.
    """
    runs = []
    for i, name in enumerate(names):
        run = shutil.copytree(finished_run, folder / name)
        (run / "report.html").unlink()
        scores = made_up.scored(np.random.default_rng(0))
        scores = scores._replace(evolved_BM=np.clip(scores.evolved_BM + i * rise, 0, 1))
        made_up.write_scores(run, scores, "A woman with red hair nods slowly")
        proof.write_json(run / "summary.json", made_up.summary_of(scores))
        for k in range(1, 6):
            (run / f"samples/heldout_{k:02d}_evolved.mp4").write_bytes(made_up.mp4(k + 7 + 7 * i))
        runs.append(run)
    return runs


def change(file: Path, **values) -> None:
    """Change parts of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without_scores(run: Path) -> None:
    """Make a run one of an older version."""
    (run / triples.FILE).unlink()


def without_photos(run: Path) -> None:
    """Make the scores those of an older version, which names no photos."""
    scores = json.loads((run / triples.FILE).read_text())
    for triple in scores["triples"]:
        triple.pop("photo", None)
    (run / triples.FILE).write_text(json.dumps(scores))


def of_others(run: Path, people: int) -> None:
    """Put others in the place of the first people, under the same names."""
    scores = json.loads((run / triples.FILE).read_text())
    for k in range(people):
        stranger = made_up.portrait(k % 6, t=2)
        for triple in scores["triples"][2 * k : 2 * k + 2]:
            triple["photo"] = media.digest(stranger)
        if k < 6:
            media.write_image(run / f"samples/heldout_{k:02d}_reference.png", stranger)
    (run / triples.FILE).write_text(json.dumps(scores))
