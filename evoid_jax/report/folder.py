"""Read a run folder: what training has written there so far, checked.

Files are config.json, metrics.jsonl, run.json, summary.json, scores.json, samples/, watch/ and
export/; each may be missing, since the run may have only begun, or may be older than the file.
Videos and photos are named here and not read: a run may hold gigabytes of them.
"""

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files, metrics, provenance, settings, triples
from evoid_jax.triples import Scores, Triple

OF_RUNS = (settings.FILE, metrics.FILE, provenance.FILE, "summary.json", "report.html")
WATCH = "watch"  # as watch.py writes it
OF_RUNS += ("samples", "export", "logs", WATCH, triples.FILE)
ALL = sys.maxsize  # videos: every triple that is kept
FLOAT = sys.float_info.max
GROUPS_OF_STEP = ("loss", "reward", "weights", "attention", "missing", "drift", "seconds", "judge")
FLAT = ("loss", "weights", "attention", "drift", "seconds")  # of them these hold numbers alone
BY_REWARD = ("score", "raw", "spread", "saturated")  # in the group reward: a number of each


class HeldoutSample(NamedTuple):
    """One shown triple: its entry in heldout.json, its files, its scores; None where missing."""

    entry: dict
    base: Path | None
    evolved: Path | None
    reference: Path | None
    scored: Triple | None
    total: tuple[float, float] | None  # of base and evolved

    @property
    def key(self) -> tuple:
        """What the run calls the triple; see faces.py for the same one in another run."""
        return tuple(self.entry.get(name) for name in ("identity", "prompt", "seed"))


class WatchedPair(NamedTuple):
    """A pair that the watch keeps videos of; None where they are missing."""

    entry: dict  # prompt, identity and seed; {} in an older run
    reference: Path | None
    start: Path | None
    videos: list[Path | None]  # of each comparison


class RewardRow(NamedTuple):
    """What is known of one reward; None and () where it is not recorded."""

    name: str
    group: str | None
    prior: float | None
    sources: tuple[dict, ...]  # see provenance.py


class RunFolder(NamedTuple):
    """What a run folder holds. config and summary are None where the file does not exist."""

    path: str  # as it was typed
    name: str
    config: dict | None
    digest: str | None  # of the config, as training wrote it
    steps: list[dict]
    starts: list[dict]  # see provenance.py; [] where it is not recorded
    rewards: tuple[RewardRow, ...]
    summary: dict | None
    samples: list[HeldoutSample]
    samples_total: int
    scores: Scores | None  # of every video of the proof
    outdated: bool  # see triples.outdated: then no sample has scores
    watched: list[dict]  # summaries, in the order of their steps
    watched_pairs: list[WatchedPair]
    adapter: str | None  # relative to the folder; None where there is none yet


def load(workdir: str | Path, videos: int = 12) -> RunFolder:
    """Read a run folder, with the first `videos` of the triples whose videos it keeps.

    Raises:
      FileNotFoundError: there is no such folder, or one of something other than a run.
      ValueError: a file is malformed; names it.
    """
    folder = files.user_path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{workdir} is not a folder: give the --workdir of a training run")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in OF_RUNS):
        raise FileNotFoundError(
            f"{workdir} holds neither {settings.FILE} nor anything else of a run; give the "
            "--workdir of a training run"
        )
    config = _read_json(folder / "config.json", dict)
    summary = _read_json(folder / "summary.json", dict)
    if summary is not None:
        _check_summary(folder / "summary.json", summary)
    steps = metrics.read(folder)
    for record in steps:
        _check_step(folder / metrics.FILE, record)
    made = provenance.read(folder) or {"starts": []}
    entries = _read_json(folder / "samples" / "heldout.json", list) or []
    scores = triples.read(folder)
    outdated = triples.outdated(folder, scores)
    of_samples = None if outdated else scores
    watched = _watched(folder / WATCH)
    return RunFolder(
        path=str(workdir),
        name=folder.resolve().name,
        config=config,
        digest=None if config is None else config.get("digest"),
        steps=steps,
        starts=made["starts"],
        rewards=rewards_of(config or {}, made["starts"], steps, summary or {}),
        summary=summary,
        samples=[_sample(folder / "samples", entry, of_samples) for entry in entries[:videos]],
        samples_total=len(entries),
        scores=scores,
        outdated=outdated,
        watched=list(watched.values()),
        watched_pairs=_watched_pairs(folder / WATCH, list(watched)) if videos else [],
        adapter=_adapter(folder),
    )


def _watched(folder: Path) -> dict[str, dict]:
    """Read the watch's comparisons, by their names; raise a ValueError for a malformed one."""
    watched = {}
    for file in sorted(folder.glob("step_*.json")):
        watched[file.stem] = summary = _read_json(file, dict)
        _check_summary(file, summary)
        _check_number(file, "drift", summary.get("drift"))
        if summary.get("steps") is None:
            raise ValueError(f"{file} does not say after how many steps it was made: no 'steps'")
    return watched


def _watched_pairs(folder: Path, names: list[str]) -> list[WatchedPair]:
    """Return the pairs of which the watch kept a video of the start."""
    entries = _read_json(folder / "pairs.json", list) or []
    pairs = []
    known = [(at, entry) for at, entry in enumerate(entries) if isinstance(entry, dict)]
    whole = lambda k, at: k if isinstance(k, int) else at
    numbered = {whole(entry.get("k"), at): entry for at, entry in known}
    for start in sorted(folder.glob("start_*.mp4")):
        number = start.stem.removeprefix("start_")
        entry = numbered.get(int(number), {}) if number.isdecimal() else {}
        videos = [_there(folder / f"{name}_{number}.mp4") for name in names]
        reference = _there(folder / f"pair_{number}_reference.png")
        pairs.append(WatchedPair(entry, reference=reference, start=start, videos=videos))
    return pairs


def rewards_of(
    config: Mapping, starts: list[dict], steps: list[dict], summary: Mapping
) -> tuple[RewardRow, ...]:
    """Return the run's rewards in the order of its own table; names are whatever it used.

    The newest start in run.json knows most; without it the config's table, the summary's priors
    and the names in the record have to do.
    """
    of_start = starts[-1].get("rewards") if starts else None
    # Of two rows with one name the later stands: what the start recorded wins over the config.
    known = {row["name"]: row for row in (*_table(config), *_dicts(of_start)) if "name" in row}
    prior = summary.get("prior") or {}
    groups = (("reward", "score"), ("weights",), ("reward", "spread"))
    logged = [metrics.get(record, *keys) or {} for keys in groups for record in steps]
    # The order decides the page's order and colours: the run's own table first.
    names = [*known, *prior, *(name for scores in logged for name in scores)]
    return tuple(
        RewardRow(
            name=name,
            group=known.get(name, {}).get("group"),
            prior=_number(prior.get(name, known.get(name, {}).get("prior"))),
            sources=tuple(_dicts(known.get(name, {}).get("sources"))),
        )
        for name in dict.fromkeys(names)
    )


def next_command(path: str, config: Mapping | None, adapter: str) -> str:
    """Return the command that generates with the run's adapter, in lines for a shell."""
    config = config or {}
    groups = {"video": ("frames", "height", "width", "fps")}
    groups |= {"rollout": ("steps", "scheduler", "shift")}  # the adapter knows its guidance
    usual = [(key, metrics.get(config, part, key)) for part, keys in groups.items() for key in keys]
    rare = [
        ("reference_order", metrics.get(config, "rollout", "reference_order"), "diffusers"),
        ("residual", metrics.get(config, "residual"), "model"),
    ]
    other = [(key, value) for key, value, usually in rare if value != usually]
    model = config.get("model") or "MODEL"
    lines = [
        f"python -m evoid_jax.generate {shlex.quote(f'--model={model}')}",
        shlex.quote(f"--lora={Path(path) / adapter}"),
        *filter(None, map(_flags, (usual, other))),
        '--image=face.png --prompt="A person waves a hand." --output=out.mp4',
    ]
    return metrics.without_secrets(" \\\n    ".join(lines))


def _flags(values: list[tuple]) -> str:
    return " ".join(shlex.quote(f"--{key}={value}") for key, value in values if value is not None)


def _number(value) -> float | None:
    return value if isinstance(value, int | float) and abs(value) <= FLOAT else None


def _adapter(folder: Path) -> str | None:
    files = sorted((folder / "export").glob("*.safetensors"))
    usual = folder / "export" / "pytorch_lora_weights.safetensors"
    file = usual if usual in files else next(iter(files), None)
    return file and file.relative_to(folder).as_posix()


def _table(config: Mapping) -> list[dict]:
    """Return the rows of config.reward.table: {name: {"group", "prior", ..}}, or a list of them."""
    rows = metrics.get(config, "reward", "table")
    if isinstance(rows, dict):
        rows = [{"name": name} | row for name, row in rows.items() if isinstance(row, dict)]
    return _dicts(rows)


def _dicts(rows) -> list[dict]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _read_json(file, kind):
    if not file.exists():
        return None
    # Python's json reads NaN, which no chart can show.
    return metrics.plain(files.read_json(file, kind))


def _sample(folder: Path, entry, scores: Scores | None) -> HeldoutSample:
    if not isinstance(entry, dict) or not isinstance(entry.get("k"), int):
        raise ValueError(
            f"{folder / 'heldout.json'}: expected entries with a number k, got {entry!r:.80}"
        )
    name = f"heldout_{entry['k']:02d}"
    sample = HeldoutSample(
        entry=entry,
        base=_there(folder / f"{name}_base.mp4"),
        evolved=_there(folder / f"{name}_evolved.mp4"),
        reference=_there(folder / f"{name}_reference.png"),
        scored=None,
        total=None,
    )
    rows = [] if scores is None else [t.key for t in scores.triples]
    if sample.key not in rows:
        return sample
    row = rows.index(sample.key)
    base, evolved = (float(total_B[row]) for total_B in triples.totals(scores))
    total = None if math.isnan(base) or math.isnan(evolved) else (base, evolved)
    return sample._replace(scored=scores.triples[row], total=total)


def _there(file: Path) -> Path | None:
    return file if file.is_file() else None


def _check_summary(file: Path, summary: dict) -> None:
    """Raise a ValueError that names the part of summary.json that proof.summary never writes."""
    for part in ("base", "evolved"):
        if not isinstance(summary.get(part), dict):
            raise ValueError(f"{file} has no {part!r}: it is no summary of a run")
    for part in ("delta_total", "steps", "pairs", "pairs_dropped", "identities", "reached"):
        _check_number(file, part, summary.get(part))
    _check_dict(file, "monitored_by", summary.get("monitored_by"))
    _check_interval(file, "delta_total_ci95", summary.get("delta_total_ci95"))
    if not all(isinstance(name, str) for name in _list(file, "rewarded", summary.get("rewarded"))):
        raise ValueError(f"{file}: expected rewarded to be a list of names")
    for part in ("base", "evolved", "prior", "seconds"):
        _check_numbers(file, part, summary.get(part))
    for part in ("monitor", "failures"):
        arms = _check_dict(file, part, summary.get(part))
        for arm in ("base", "evolved"):
            _check_numbers(file, f"{part}/{arm}", arms.get(arm))
    for part in ("delta", "monitor_delta"):
        for name, row in _check_dict(file, part, summary.get(part)).items():
            row = _check_dict(file, f"{part}/{name}", row)
            for key in ("mean", "pairs", "identities"):
                _check_number(file, f"{part}/{name}/{key}", row.get(key))
            _check_interval(file, f"{part}/{name}/ci95", row.get("ci95"))


def _check_step(file: Path, record: dict) -> None:
    """Raise a ValueError where one of the record's own groups holds other things than numbers."""
    line = f"{file}, step {record['step']}"
    if half := files.half_character(record):
        raise ValueError(f"{line} has half a character, {half}")
    for name in ("grad_norm", "valid_fraction"):
        _check_number(line, name, record.get(name))
    for name in BY_REWARD:
        _check_dict(line, f"reward/{name}", metrics.get(record, "reward", name))
    for group in GROUPS_OF_STEP:
        for name, value in _check_dict(line, group, record.get(group)).items():
            if group in FLAT or (group, name) == ("reward", "unified"):
                _check_number(line, f"{group}/{name}", value)
            inner = value if isinstance(value, dict) else {"": value}
            for key, number in inner.items():
                _check_number(line, f"{group}/{name}/{key}".rstrip("/"), number)


def _check_dict(file, part: str, value) -> dict:
    if not isinstance(value, dict | None):
        raise ValueError(f"{file}: expected {part} to be an object, got {value!r:.60}")
    return value or {}


def _list(file, part: str, value) -> list:
    if not isinstance(value, list | None):
        raise ValueError(f"{file}: expected {part} to be a list, got {value!r:.60}")
    return value or []


def _check_numbers(file, part: str, table) -> None:
    for name, value in _check_dict(file, part, table).items():
        _check_number(file, f"{part}/{name}", value)


def _check_number(file, part: str, value) -> None:
    sound = isinstance(value, int | float | None)
    if not sound or (isinstance(value, int) and abs(value) > FLOAT):  # JSON knows no largest one
        raise ValueError(f"{file}: expected {part} to be a number or null, got {value!s:.60}")


def _check_interval(file, part: str, value) -> None:
    if value is None:
        return
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{file}: expected {part} to be two numbers, got {value!r:.60}")
    for end in value:
        _check_number(file, part, end)
