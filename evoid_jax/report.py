"""Turn a run folder into one self-contained page, `report.html`.

    python -m evoid_jax.report --workdir=FOLDER

The page holds the headline with its interval, held-out videos of base and evolved side by side,
curves, the table of numbers and the config. Videos and images are inside it as data URIs and it
loads nothing, so it can be mailed. An unfinished run gives a page that says so.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from evoid_jax import metrics, report_page

FILE = "report.html"


class Sample(NamedTuple):
    """One held-out triple: its entry in heldout.json and the bytes of its files (or None)."""

    entry: dict
    base: bytes | None
    evolved: bytes | None
    reference: bytes | None


class Run(NamedTuple):
    """What a run folder holds. summary and config are None where the file does not exist."""

    name: str
    config: dict | None
    digest: str | None
    steps: list[dict]
    summary: dict | None
    samples: list[Sample]
    samples_total: int


def load(workdir: str | Path, videos: int = 12) -> Run:
    """Read a run folder; the first `videos` held-out triples with their files.

    Raises FileNotFoundError if there is no folder, ValueError naming a file that is malformed.
    """
    workdir = Path(workdir).resolve()
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir} is not a folder: give the --workdir of a training run")
    config = _read_json(workdir / "config.json", dict)
    entries = _read_json(workdir / "samples" / "heldout.json", list) or []
    return Run(
        name=workdir.name,
        config=config,
        digest=None if config is None else digest(config),
        steps=metrics.read(workdir),
        summary=_read_json(workdir / "summary.json", dict),
        samples=[_sample(workdir / "samples", entry) for entry in entries[:videos]],
        samples_total=len(entries),
    )


def digest(config: dict) -> str:
    """Return 12 hex digits that name a config: SHA-256 of its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def write(workdir: str | Path, videos: int = 12) -> Path:
    """Write `workdir/report.html` from what the run folder holds now; return its path."""
    return metrics.write_text(Path(workdir) / FILE, report_page.page(load(workdir, videos)))


def _read_json(file, kind):
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{file}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def _sample(folder, entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("k"), int):
        raise ValueError(
            f"{folder / 'heldout.json'}: expected entries with a number k, got {entry!r}"
        )
    read = lambda name: file.read_bytes() if (file := folder / name).exists() else None
    name = f"heldout_{entry['k']:02d}"
    return Sample(
        entry, read(f"{name}_base.mp4"), read(f"{name}_evolved.mp4"), read(f"{name}_reference.png")
    )


def main(_):
    print(write(flags.FLAGS.workdir, flags.FLAGS.videos))


if __name__ == "__main__":  # flags here, not above: train defines --workdir and imports this module
    flags.DEFINE_string("workdir", None, "run folder written by evoid_jax.train", required=True)
    flags.DEFINE_integer("videos", 12, "held-out triples to show", lower_bound=0)
    app.run(main)
