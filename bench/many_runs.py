"""Many runs of one preset: made one after the other, each once, and compared on the same videos.

    python bench/many_runs.py --config=configs/evoid.py:tiny,rwr --workdir=runs/trial

As a command it evolves without a proof: for trials of settings, which may be judged by the watch's
validation people and by nobody else. `ablation.py` and `algorithms.py` are made of the rest.

Letters: B videos, those of all seeds one after the other.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from evoid_jax import (
    commandline,
    config,
    files,
    proof,
    run_lock,
    session,
    settings,
    train,
    work_folder,
)

COLUMNS = ("total", "evoscore", "identity", "motion")
SCORES = "scores.json"  # of a run: what each video of its proof scored


class Row(NamedTuple):
    """A row of a table: the same settings, run with several seeds."""

    name: str
    spec: str  # of --config
    arguments: tuple[str, ...] = ()  # overrides, --config.part.key=value


def command(row: Row, seed: int, workdir: Path, more: list[str], module: str) -> list[str]:
    """Return the command line of one run. module: what Python runs, -m included."""
    arguments = [f"--config={row.spec}", *row.arguments, *more]
    return [*module.split(), *arguments, f"--config.seed={seed}", f"--workdir={workdir}"]


def settings_of(line: list[str]) -> config.Config:
    """Return the settings that a command line gives."""
    values, _ = commandline.configure([word for word in line if word.startswith("--config")])
    return config.from_dict(values.to_dict())


def same_run(cfg: config.Config, workdir: Path) -> bool:
    """Tell whether a folder holds a run with exactly these settings."""
    return (workdir / settings.FILE).is_file() and (
        settings.stored(workdir)["digest"] == config.digest(cfg)
    )


def proved(cfg: config.Config, workdir: Path) -> bool:
    """Tell whether a run is done, proof included."""
    summary = workdir / "summary.json"
    if not (same_run(cfg, workdir) and summary.is_file() and (workdir / SCORES).is_file()):
        return False
    return files.read_json(summary)["steps"] == cfg.steps


def make(row: Row, seed: int, out: Path, more: list[str]) -> Path:
    """Run a row with one seed unless that is done; returns its folder.

    Raises:
      SystemExit: the run failed; names its log.
    """
    workdir = out / f"{row.name}-{seed}"
    line = command(row, seed, workdir, more, "-m evoid_jax.train")
    if not proved(settings_of(line), workdir):
        call(line, out / "logs" / f"{workdir.name}.log")
    return workdir


def call(line: list[str], log: Path) -> None:
    """Run a command of ours and say which; raise SystemExit with the log's name where it fails."""
    print("python", shlex.join(line), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, *line], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"that run failed, see {log}; the same command goes on from there")


# --- what the videos of a proof scored


class Measured(NamedTuple):
    """All seeds' videos of a row's proofs, and the base's of the same; NaN where missing."""

    base: dict[str, np.ndarray]  # column -> (B,)
    evolved: dict[str, np.ndarray]
    triple_B: list[tuple]  # seed of the run, identity, prompt, seed of the noise
    identity_B: np.ndarray


def measured(workdirs: list[Path]) -> Measured:
    """Read the proofs of a row's runs.

    Raises:
      SystemExit: a run has kept no scores of single videos.
    """
    rows = []
    for number, workdir in enumerate(workdirs):
        file = workdir / SCORES
        if not file.is_file():
            raise SystemExit(f"{file} is missing; run the same command with this version")
        held = files.read_json(file)
        for triple in held["triples"]:
            key = number, triple["identity"], triple["prompt"], triple["seed"]
            rows.append((key, columns(triple, held["prior"])))
    arms = [
        {name: np.array([both[arm][name] for _, both in rows], float) for name in COLUMNS}
        for arm in (0, 1)
    ]
    keys = [key for key, _ in rows]
    return Measured(*arms, keys, np.array([key[1] for key in keys]))


def columns(triple: dict, prior: dict[str, float]) -> tuple[dict, dict]:
    """Return the columns of the base's and of the evolved video of a triple, None where missing."""
    arms = ("base", "evolved")
    scores_2M = np.array([[triple[arm].get(name) for name in prior] for arm in arms], float)
    # As in proof.py: a score that one arm lacks counts in neither.
    scores_2M[:, ~np.isfinite(scores_2M).all(axis=0)] = np.nan
    total_2 = proof.total(scores_2M, list(prior.values()))
    monitors = [triple["monitor"][arm] for arm in arms]
    evoscore = [triple[arm].get("evoscore") for arm in arms]
    return tuple(
        {"total": total, "evoscore": evoscore[i]}
        | {name: monitors[i].get(name) for name in ("identity", "motion")}
        for i, total in enumerate(total_2)
    )


class Change(NamedTuple):
    """How much the second of two is above the first, with a 95 % interval over identities."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "--"
        return f"{self.mean:+.3f} ({self.low:.3f}, {self.high:.3f})"


def change(first_B: np.ndarray, second_B: np.ndarray, identity_B: np.ndarray) -> Change:
    """Compare two columns of the same videos; all seeds' videos of a person are drawn together."""
    return Change(*proof.paired_bootstrap(first_B, second_B, cluster_B=identity_B))


def between(first: Measured, second: Measured, column: str) -> Change:
    """Compare two rows where both have the same triples of runs with the same seeds."""
    place = {key: b for b, key in enumerate(second.triple_B)}
    both = [(b, place[key]) for b, key in enumerate(first.triple_B) if key in place]
    if not both:
        return Change(*[np.nan] * 3)
    one, two = np.array(both).T
    return change(
        first.evolved[column][one], second.evolved[column][two], identity_B=first.identity_B[one]
    )


def by_seed(row: Measured, column: str) -> list[float]:
    """Return the change from the base of each seed's run."""
    number_B = np.array([key[0] for key in row.triple_B])
    delta_B = row.evolved[column] - row.base[column]
    return [mean(delta_B[number_B == number]) for number in np.unique(number_B)]


def mean(value_B: np.ndarray) -> float:
    """Return the mean of what there is, NaN where there is nothing."""
    had = value_B[np.isfinite(value_B)]
    return float(had.mean()) if len(had) else float("nan")


def cell(row: Measured, column: str) -> str:
    """Return a row's mean in a column, and its change from the base with the interval."""
    value = mean(row.evolved[column])
    if np.isnan(value):
        return "--"
    apart = change(row.base[column], row.evolved[column], row.identity_B)
    return f"{value:.3f} {apart}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def outcome(sign: int, apart: Change) -> str:
    """Say whether an interval shows what was expected: sign +1, -1, or 0 for no difference."""
    if np.isnan(apart.mean) or np.isnan(apart.low):
        return "not measured"
    if apart.low <= 0 <= apart.high:
        return "not contradicted" if sign == 0 else "not shown"
    found = 1 if apart.low > 0 else -1
    return "shown" if found == sign else "the other way"


# --- a trial


def trial(cfg: config.Config, workdir: Path) -> None:
    """Evolve and watch as `train` does, and prove nothing."""
    cfg = config.checked(cfg)
    work_folder.check_start(cfg, workdir)
    with run_lock.held(workdir), session.open_run(cfg, workdir) as run:
        train.evolved(run)


def tried(cfg: config.Config, workdir: Path) -> float | None:
    """Return the total's change on validation people after a trial's last step, None before it."""
    file = workdir / "watch" / f"step_{cfg.steps:06d}.json"
    if not (same_run(cfg, workdir) and file.is_file()):
        return None
    return files.read_json(file)["delta_total"]


def main(argv: list[str]) -> None:
    train.quiet()
    cfg = config.from_dict(flags.FLAGS.config.to_dict())
    trial(cfg, files.user_path(flags.FLAGS.workdir))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run folder; resumed when it exists.", required=True)
    commandline.run(main, settings=config.Config)
