"""Write down how a run was made: command, code, versions, devices, times, and who scored.

`run.json` in the run folder is `{"schema": 1, "starts": [START, ...]}`. A run that is resumed has
one START for each time it was started, because code, machines and scorers may differ between them:

    command    str, as a shell would take it
    step       int, the first step of this start
    start, end str, UTC such as 2026-01-31T12:00:00Z; end is null while it runs and after a crash or
               a kill, which leave no time to write it
    git        {"commit": str, "changed": bool} or null where the code is in no repository
    versions   {"python": str, "evoid_jax": str or null, "jax": ...}
    devices    [{"kind": str, "platform": str, "count": int}], processes int
    rewards    [{"name", "group", "prior", "sources": [{"address", "preset", "version", "sha256",
               "about"}]}]; two sources are replicas that answer differently
    monitors   [str]
    weights    {"model": str, "teacher": str}, `hub.sketch` of each that is a folder
    data       str, `pairs.Splits.digest`
    judge      {"model": str, "address": str} or null

No environment variables, no host names; passwords in addresses and values of keys are cut out.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from evoid_jax import files
from evoid_jax.metrics import plain, without_secrets, write_text

FILE = "run.json"
SCHEMA = 1
PACKAGES = ("evoid_jax", "jax", "jaxlib", "flax", "optax", "numpy")
HEURISTIC = "heuristic"  # the model name of the project's own judge, which is no language model
HERE = Path(__file__).resolve().parent


def collect(
    argv: Sequence[str],
    devices: Iterable,
    *,
    step: int = 0,
    processes: int = 1,
    table: Iterable = (),
    sidecars: Iterable[tuple[str, Mapping]] = (),
    judge_model: str = "",
    judge_address: str = "",
    weights: Mapping[str, str] | None = None,
    data: str = "",
) -> dict:
    """Describe one start of a run, as `write` appends it to run.json.

    Args:
      argv: sys.argv.
      devices: jax devices of all processes, such as `mesh.devices.flat`.
      step: the first step that this start trains.
      table: the run's rewards, in order; each has `name`, `group` and `prior`.
      sidecars: (address or "local", the reply of its /info) for each of them.
      judge_model, judge_address: of the judge; no model is no judge.
      weights: of `work_folder.weights`.
      data: of `pairs.Splits.digest`.
    """
    sidecars = list(sidecars)
    judge = {"model": judge_model, "address": judge_address} if judge_model else None
    kinds = Counter((device.device_kind, device.platform) for device in devices)
    counted = [
        {"kind": kind, "platform": name, "count": count} for (kind, name), count in kinds.items()
    ]
    start = {
        "command": command(argv),
        "step": int(step),
        "start": now(),
        "end": None,
        "git": git(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "devices": counted,
        "processes": int(processes),
        "rewards": [_reward(row.name, row.group, row.prior, sidecars) for row in table],
        "monitors": list(
            dict.fromkeys(name for _, info in sidecars for name in info.get("monitors") or ())
        ),
        "judge": judge,
        "weights": dict(weights or {}),
        "data": data,
    }
    return without_secrets(plain(start))


def write(workdir: str | Path, start: Mapping) -> Path:
    """Append `start` (of `collect`) to run.json. Raises ValueError for a broken run.json."""
    starts = [*((read(workdir) or {}).get("starts") or ()), dict(start)]
    return _save(workdir, starts)


def finish(workdir: str | Path, since: str = "") -> Path | None:
    """Stamp the end of the newest start; None where there is none.

    Args:
      since: a time, as of `now`; a start before it is of an earlier process, and is left as it is.
    """
    made = read(workdir)
    if not made or not made["starts"] or str(made["starts"][-1].get("start")) < since:
        return None
    last = made["starts"][-1] | {"end": now()}
    return _save(workdir, [*made["starts"][:-1], last])


def read(workdir: str | Path) -> dict | None:
    """Return run.json, None where there is none.

    Raises:
      ValueError: it is not what this module writes; the message names the file.
    """
    file = Path(workdir) / FILE
    if not file.exists():
        return None
    try:
        made = files.read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; remove it to go on without it") from error
    starts = made.get("starts")
    if not _are_dicts(starts):
        raise ValueError(f'{file}: expected {{"starts": [{{..}}]}}; remove it to go on without it')
    for start in starts:
        _check_start(file, start)
    return made


def check_versions(
    workdir: str | Path, table: Iterable, sidecars: Iterable[tuple[str, Mapping]]
) -> None:
    """Raise a ValueError where rewards have other versions than when the run last started.

    Args:
      workdir: of the run; one that holds no run.json fits all.
      table, sidecars: as of `collect`.
    """
    made, sidecars = read(workdir), list(sidecars)
    before = made["starts"][-1].get("rewards", []) if made and made["starts"] else []
    was = {row["name"]: _versions(row.get("sources", [])) for row in before}
    changed = []
    for row in table:
        now = _versions(_reward(row.name, row.group, row.prior, sidecars)["sources"])
        if was.get(row.name) and now and was[row.name] != now:
            changed.append(f"{row.name} was {_told(was[row.name])}, is {_told(now)}")
    if changed:
        raise ValueError(
            f"the sidecars have other versions than when the run in {workdir} last started, and "
            f"rewards would not compare: {'; '.join(changed)}. Start them as they were, take "
            "another --workdir, or go on all the same: --config.reward.versions=any"
        )


def check_data(workdir: str | Path, data: str) -> None:
    """Raise a ValueError where a run would go on with other pairs than it last had.

    data: as of `collect`. A run that tells of none fits all.
    """
    made = read(workdir)
    was = made["starts"][-1].get("data") if made and made["starts"] else ""
    if was and was != data:
        raise ValueError(
            f"config.data: its people, prompts or pictures are not those that the run in {workdir} "
            "was begun with, and what was scored before would be compared with other people's "
            "videos; bring them back, or use another --workdir"
        )


def _versions(sources: Sequence[Mapping]) -> set[tuple[str, str]]:
    return {(str(one.get("version") or ""), str(one.get("sha256") or "")) for one in sources}


def _told(versions: set[tuple[str, str]]) -> str:
    """Return versions in words, with as much of their digests as tells them apart."""
    words = (f"{version or 'without one'} ({sha256[:12]})" for version, sha256 in sorted(versions))
    return " and ".join(word.removesuffix(" ()") for word in words)


def command(argv: Sequence[str]) -> str:
    """Return argv as the command that was typed: a module of this package by its name."""
    program = Path(argv[0])
    try:
        parts = program.resolve().relative_to(HERE.parent).with_suffix("").parts
        words = ["python", "-m", ".".join(p for p in parts if p != "__main__")]
    except ValueError:  # a script from elsewhere
        words = [argv[0]]
    return shlex.join(without_secrets([*words, *argv[1:]]))  # cut before quotes are added


def git(folder: Path = HERE) -> dict | None:
    """Return the commit of the code in `folder` and whether files differ from it.

    None without git or a repository, and for a package that was installed into a repository of
    something else, whose commit would be taken for ours: our own file must be tracked there.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changes)} if commit else None


def version(package: str) -> str | None:
    """Return the installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reward(name, group, prior, sidecars) -> dict:
    """Return what is known of a reward; equal answers of several sidecars are one source."""
    sources: dict[tuple, dict] = {}
    for address, info in sidecars:
        for entry in info.get("rewards") or ():
            if entry.get("name") == name:
                facts = {key: entry.get(key) for key in ("version", "sha256", "about")}
                facts = {"preset": info.get("preset")} | facts
                sources.setdefault(tuple(facts.values()), {"address": address} | facts)
    return {"name": name, "group": group, "prior": float(prior), "sources": [*sources.values()]}


def _check_start(file: Path, start: dict) -> None:
    rewards = start.get("rewards", [])
    fits = _are_dicts(start.get("devices", [])) and _are_dicts(rewards)
    fits = fits and all(
        isinstance(row.get("name"), str) and _are_dicts(row.get("sources", [])) for row in rewards
    )
    if not fits:
        raise ValueError(
            f"{file}: expected devices and rewards to be lists of objects, each reward with a "
            "name and a list of sources; remove the file to go on without it"
        )
    if not isinstance(start.get("weights", {}), dict) or not isinstance(start.get("data", ""), str):
        raise ValueError(
            f"{file}: expected weights to be an object and data a text; remove the file to go on "
            "without it"
        )


def _are_dicts(rows) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _save(workdir, starts) -> Path:
    text = json.dumps({"schema": SCHEMA, "starts": starts}, indent=2, allow_nan=False)
    return write_text(Path(workdir) / FILE, text + "\n")


def _git(folder, *words) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
