"""Write what a run measures: one JSON line per step, one terminal line, optional mirrors.

`metrics.jsonl` is the record that everything else (report, plots, resumed runs) reads. A line is
written and flushed to disk at once, so a killed run loses at most the line it was writing.
"""

import contextlib
import json
import math
import os
import re
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from evoid_jax import mirrors

FILE = "metrics.jsonl"
WIDTH = 100  # columns of the terminal that a printed line may fill
HEADS = ("step", "score", "loss", "drift", "grad", "valid", "sec")  # of the columns of every run
LAST = 2**53  # a step beyond it is none: floats count no further, and charts are drawn of them
REPEAT = 25  # lines after which the columns' names are printed again

_LOGIN = re.compile(r"([a-zA-Z][\w+.-]*://)[^/?#\s]*@")  # a password may hold an @ too
_URL = re.compile(r"[a-zA-Z][\w+.-]*://[^\s'\"]+")
_QUERY = re.compile(r"([?&][^=&#]*=)[^&#]*")
_KEY = re.compile(r"(?i)([\w.-]*(?:key|token|secret|password|passwd)=)[^\s'\"&]+")


class LineColumn(NamedTuple):
    """One column of the printed table: its head, its width, what it is, and its text."""

    head: str
    width: int
    meaning: str
    text: str


class Writer:
    """Append steps to `workdir/metrics.jsonl`, print them, and mirror them if asked to.

    start: first step this process will write; older lines from it on are dropped, so that a
      resumed run has each step once. steps: planned number, for the printed line.
    tensorboard: mirror the scalars. wandb: project to mirror them to, "" is off; W&B stays offline
      unless WANDB_MODE says otherwise. config: settings that W&B shows beside them.
    Raises ValueError for a broken line that is not the last and for a mirror that cannot start
    (`mirrors.check` finds out earlier).
    """

    def __init__(
        self,
        workdir: str | Path,
        start: int = 0,
        steps: int | None = None,
        tensorboard: bool = False,
        wandb: str = "",
        config: Mapping | None = None,
        verbose: bool = True,
    ):
        self.workdir = Path(workdir)
        self.steps = steps
        self.verbose = verbose
        self.printed = 0
        self.board = mirrors.open_tensorboard(self.workdir, start) if tensorboard else None
        shown = without_secrets(plain(config or {}))
        self.wandb = mirrors.open_wandb(self.workdir, wandb, shown) if wandb else None
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.file = _open_lines(self.workdir / FILE, start)

    def write(self, step: int, record: Mapping) -> None:
        """Record one step. record: nested dict of numbers (numpy and jax scalars too)."""
        record = plain({"step": int(step), **record})
        self.file.write(json.dumps(record, allow_nan=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.verbose:
            self._print(record)
        scalars = dict(flatten(record))
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
        if self.wandb:
            self.wandb.log(scalars, step=step)

    def compare(self, step: int, summary: Mapping, videos: list, warning: str = "") -> None:
        """Print one comparison of the watch and mirror it; its own file is written by watch.py.

        Args:
          step: how many steps are done.
          summary: of `proof.summary`.
          videos: uint8 FHWC, for the mirrors.
          warning: what is wrong with it, if anything.
        """
        if self.verbose:
            tqdm.write(comparison(step, plain(summary)))
            if warning:
                tqdm.write(f"  WATCH: {warning}")
        scalars = {f"watch/{name}": value for name, value in _compared(plain(summary)).items()}
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
            mirrors.add_videos(self.board, "watch", videos, step)
            self.board.flush()
        if self.wandb:
            # W&B counts logged steps from 0, and the step just written is still open.
            self.wandb.log(scalars | mirrors.wandb_videos("watch", videos), step=step - 1)

    def _print(self, record) -> None:
        shown = [line(record, self.steps)]
        if self.printed % REPEAT == 0:
            shown.insert(0, header(record, self.steps))
        if self.printed == 0:
            shown.insert(0, legend(record, self.steps))
        self.printed += 1
        tqdm.write("\n".join(filter(None, shown)))  # clears and redraws a running progress bar

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
    if not file.is_file():  # a folder, or a pipe, which would be waited for
        raise ValueError(f"{file} is not a regular file")
    lines = file.read_bytes().split(b"\n")
    records = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record = plain(json.loads(text))  # Python's json reads NaN, which means missing
            if type(record["step"]) is not int or not 0 <= record["step"] < LAST:
                raise ValueError("a step is a whole number from 0")
            records[record["step"]] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):  # no newline after it: torn
                break
            raise ValueError(
                f"{file}:{number}: expected a JSON object with a step, got {text[:60]!r}; "
                "remove this line to go on"
            ) from error
    return [records[step] for step in sorted(records)]


def line(record: Mapping, steps: int | None = None) -> str:
    """Return the terminal line of one record, at most WIDTH columns; see `header` and `legend`."""
    return " ".join(f"{column.text:>{column.width}}" for column in _columns(record, steps))


def header(record: Mapping, steps: int | None = None) -> str:
    """Return the heads of the columns that `line` prints for records like this one."""
    return " ".join(f"{column.head:>{column.width}}" for column in _columns(record, steps))


def legend(record: Mapping, steps: int | None = None) -> str:
    """Say what the columns of `line` are, in a few lines of at most WIDTH columns, or nothing."""
    columns = _columns(record, steps)
    words = [f"{column.head}: {column.meaning}" for column in columns if column.meaning]
    names = get(record, "reward", "score") or {}
    left = len(names) - sum(column.head in _heads(names) for column in columns)
    if left > 0:
        words.append(f"{left} more rewards: only in {FILE}")
    if not words:
        return ""
    return textwrap.fill(f"Columns. {'; '.join(words)}.", WIDTH, subsequent_indent="  ")


def comparison(step: int, summary: Mapping) -> str:
    """Return the terminal line of a comparison of the watch."""
    low, high = summary.get("delta_total_ci95") or (None, None)
    shown = [f"total {_score(get(summary, 'base', 'total'))}", "->"]
    shown += [_score(get(summary, "evolved", "total"))]
    if low is not None and high is not None:
        shown.append(f"[{low:+.3f}, {high:+.3f}]")
    for name, row in (summary.get("monitor_delta") or {}).items():
        shown.append(f"{name} {row['mean']:+.3f}" if row.get("mean") is not None else f"{name} --")
    return f"watch after {step}: {' '.join(shown)}"


def weighted(scores: Mapping, weights: Mapping) -> float | None:
    """Return the weighted mean of the scores that exist; None if there are none."""
    pairs = [(weights.get(name) or 0.0, value) for name, value in scores.items()]
    pairs = [(weight, value) for weight, value in pairs if value is not None]
    mass = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / mass if mass > 0 else None


def get(record: Mapping, *keys: str):
    """Return `record[a][b]...` for the keys a, b, ...; None where it does not exist."""
    for key in keys:
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


def without_secrets(value):
    """Return value with passwords and query values cut out of addresses in every string.

    `http://me:pw@host/v1?key=x` becomes `http://host/v1?key=***`; `--api_key=x`, `--api_key=***`.
    """
    if isinstance(value, str):
        value = _URL.sub(lambda url: _QUERY.sub(r"\1***", url[0]), _LOGIN.sub(r"\1", value))
        return _KEY.sub(r"\1***", value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


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
    except OSError as error:  # its text names the part, which the user never heard of
        raise OSError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return file


def _compared(summary: Mapping) -> dict[str, float]:
    """Return the numbers of a comparison that are worth a curve, by name."""
    named = {"delta_total": summary.get("delta_total")}
    for arm in ("base", "evolved"):
        named |= {f"{arm}/{key}": x for key, x in (summary.get(arm) or {}).items()}
    for part in ("delta", "monitor_delta"):
        rows = summary.get(part) or {}
        named |= {f"{part}/{name}": row.get("mean") for name, row in rows.items()}
    return {name: value for name, value in named.items() if value is not None}


def _open_lines(file, start):
    kept = [record for record in read(file.parent) if record["step"] < start]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return open(file, "a", encoding="utf-8")


def _columns(record, steps) -> list[LineColumn]:
    """Return the columns of a record's line; rewards that do not fit into WIDTH are left out."""
    count = f"{record['step'] + 1}/{steps}" if steps else str(record["step"] + 1)
    first = [LineColumn("step", max(len(f"{steps}/{steps}") if steps else 5, 4), "", count)]
    scores = get(record, "reward", "score") or {}
    if scores:
        overall = _score(weighted(scores, get(record, "weights") or {}))
        meaning = "mean of the rewards by this step's weights, 0 to 1"
        first.append(LineColumn("score", 5, meaning, overall))
    last = _training(record)
    room = WIDTH + 1 - sum(column.width + 1 for column in (*first, *last))
    rewards = [
        LineColumn(head, 4, name if head != name else "", _score(scores[name]))
        for name, head in zip(scores, _heads(scores), strict=True)
    ]
    return first + rewards[: max(room // 5, 0)] + last


def _training(record) -> list[LineColumn]:
    """Return the columns that stand right of the rewards, for what the record has of them."""
    columns = []
    # Of the drifts the one between evolving and stable: at zero nothing is being learnt. Not so
    # where there is a ratio, as stable is what evolving was: there it is how far both have come.
    lead = "evo_init" if "ratio" in record else "evo_stb"
    for group, preferred in (("loss", "total"), ("drift", lead)):
        values = record.get(group)
        if isinstance(values, Mapping) and values:
            name = preferred if preferred in values else next(iter(values))
            columns.append(LineColumn(group, 8, f"{group}/{name}", _number(values[name])))
    if "grad_norm" in record:
        columns.append(LineColumn("grad", 8, "gradient norm", _number(record["grad_norm"])))
    if "valid_fraction" in record:
        share = record["valid_fraction"]
        text = "--" if share is None else f"{share:.0%}"
        columns.append(LineColumn("valid", 5, "share of the scores that were obtained", text))
    if "seconds" in record:
        spent = get(record, "seconds", "total")
        text = "--" if spent is None else f"{spent:.1f}" if spent < 1000 else f"{spent:.0f}"
        columns.append(LineColumn("sec", 6, "seconds", text))
    return columns


def _heads(names) -> list[str]:
    """Return a short head for each name, at most four letters, all different."""
    heads = list(HEADS)
    for name in names:
        head, count = str(name)[:4], 1
        while head in heads:
            count += 1
            head = f"{str(name)[: 4 - len(str(count))]}{count}"
        heads.append(head)
    return heads[len(HEADS) :]


def _score(value) -> str:
    """Format a score in four columns: .412, 1.00, -.20."""
    if value is None:
        return "--"
    text = f"{value:.3f}"
    if abs(value) < 1:
        text = text.replace("0.", ".", 1)
    return text[:4].removesuffix(".")


def _number(value) -> str:
    """Format a number in eight columns."""
    if value is None:
        return "--"
    text = f"{value:.3g}"
    return text if len(text) <= 8 else f"{value:.2g}"
