"""Write what a run measures: one JSON line per step, one terminal line, optional mirrors.

`metrics.jsonl` is the record that everything else (report, plots, resumed runs) reads. A line is
written and flushed to disk at once, so a killed run loses at most the line it was writing.
"""

import importlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

FILE = "metrics.jsonl"
PIP = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer:
    """Append steps to `workdir/metrics.jsonl`, print them, and mirror them where asked.

    start: first step this process will write; older lines from it on are dropped, so that a
      resumed run has each step once. steps: planned number, for the printed line.
    tensorboard, wandb: mirror the scalars. W&B stays offline unless WANDB_MODE says otherwise.
    Raises ValueError for a broken line that is not the last, ImportError for a missing mirror.
    """

    def __init__(
        self,
        workdir: str | Path,
        start: int = 0,
        steps: int | None = None,
        tensorboard: bool = False,
        wandb: bool = False,
        config: Mapping | None = None,
        verbose: bool = True,
    ):
        self.workdir = Path(workdir)
        self.steps = steps
        self.verbose = verbose
        self.board = _open_tensorboard(self.workdir, start) if tensorboard else None
        self.wandb = _open_wandb(self.workdir, config) if wandb else None
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.file = _open_lines(self.workdir / FILE, start)

    def write(self, step: int, record: Mapping) -> None:
        """Record one step. record: nested dict of numbers (numpy and jax scalars too)."""
        record = plain({"step": int(step), **record})
        self.file.write(json.dumps(record, allow_nan=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.verbose:
            tqdm.write(line(record, self.steps))  # clears and redraws a running progress bar
        scalars = dict(flatten(record))
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
        if self.wandb:
            self.wandb.log(scalars, step=step)

    def close(self) -> None:
        """Close the file and finish the mirrors."""
        self.file.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read(workdir: str | Path) -> list[dict]:
    """Return the steps in `workdir/metrics.jsonl` in order of step; [] if there is no file.

    A torn last line (the process died while writing) is skipped; any other broken line raises
    ValueError naming it. Where a step occurs twice, the later line counts.
    """
    file = Path(workdir) / FILE
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    records = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            records[int(record["step"])] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline after it: torn
                break
            raise ValueError(
                f"{file}:{number}: expected a JSON object with a step, got {text[:60]!r}; "
                "remove this line to go on"
            ) from error
    return [records[step] for step in sorted(records)]


def line(record: Mapping, steps: int | None = None) -> str:
    """Return the terminal line of one record; what the record lacks is left out."""
    step = record["step"] + 1
    parts = [f"step {step:>{len(str(steps))}}/{steps}" if steps else f"step {step}"]
    scores = record.get("reward", {}).get("score", {})
    overall = weighted(scores, record.get("weights", {}))
    if overall is not None:
        each = " ".join(f"{name[:4]} {_short(value)}" for name, value in scores.items())
        parts.append(f"score {overall:.3f} ({each})")
    for label, path in (("loss", "loss/total"), ("drift", "drift/evo_stb"), ("grad", "grad_norm")):
        value = get(record, path)
        if value is not None:
            parts.append(f"{label} {value:.3g}")
    if record.get("valid_fraction") is not None:
        parts.append(f"valid {record['valid_fraction']:.0%}")
    if get(record, "seconds/total") is not None:
        parts.append(f"{get(record, 'seconds/total'):.1f} s")
    return "  ".join(parts)


def weighted(scores: Mapping, weights: Mapping) -> float | None:
    """Return the weighted mean of the scores that exist; None if there are none."""
    pairs = [(weights.get(name) or 0.0, value) for name, value in scores.items()]
    pairs = [(weight, value) for weight, value in pairs if value is not None]
    mass = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / mass if mass > 0 else None


def get(record: Mapping, path: str):
    """Return `record[a][b]...` for the path "a/b/..."; None where it does not exist."""
    for key in path.split("/"):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def flatten(record: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield ("a/b", number) for every number in a nested dict, without "step"."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and f"{prefix}{key}" != "step":
            yield f"{prefix}{key}", value


def plain(value):
    """Return value as JSON can hold it: arrays become lists, NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return plain(np.asarray(value).tolist())  # numpy and jax scalars and arrays, bfloat16 too


def write_text(file: str | Path, text: str) -> Path:
    """Write text so that a reader sees the old file or the new one, never a part."""
    file = Path(file)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(part, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _open_lines(file, start):
    kept = [record for record in read(file.parent) if record["step"] < start]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return open(file, "a", encoding="utf-8")


def _open_tensorboard(workdir, start):
    module = _import("tensorboardX", "tensorboard")
    return module.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)


def _open_wandb(workdir, config):
    module = _import("wandb", "wandb")
    workdir.mkdir(parents=True, exist_ok=True)
    return module.init(
        project="evoid_jax",
        name=workdir.resolve().name,
        dir=str(workdir),
        config=plain(config or {}),
        mode=os.environ.get("WANDB_MODE", "offline"),
    )


def _import(module, writer):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the {writer} writer needs the package {module}, which is not installed: "
            f"run `pip install {PIP[writer]}` or switch this writer off"
        ) from error


def _short(value):
    return "--" if value is None else f"{value:.2f}".replace("0.", ".", 1)
