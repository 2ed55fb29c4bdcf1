"""Many runs of one preset: made one after the other, each once, and compared on the same videos.

    python bench/many_runs.py --config=configs/evoid.py:tiny,rwr --workdir=runs/trial

As a command it evolves without a proof: for trials of settings, which may be judged by the watch's
validation people and by nobody else. `ablation.py` and `algorithms.py` are made of the rest.

The folder of a run is named by its row, its seed and a digest of its settings and of the base's
weights: after a change of either it is another run. A finished one is taken whatever code made it;
where the commits differ, or the digests of the rewards, a line under the table says so.

Letters: B videos, those of all seeds one after the other.
"""

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from evoid_jax import (
    commandline,
    config,
    fields,
    files,
    proof,
    provenance,
    run_lock,
    session,
    train,
    work_folder,
)
from evoid_jax.reward_groups import JUDGE

# Of a video: the total of all rewards, that of all but the judge's grade, as the paper's is, the
# judge's two grades, and the monitors.
COLUMNS = ("total", "objective", JUDGE, "evoscore", "identity", "motion")
SCORES = "scores.json"  # of a run: what each video of its proof scored
# Of all runs whose proofs are compared, unless the user says otherwise: no watch, which no table
# uses, and of as many videos as the preset's proof twice the people, over whom intervals are.
COMPARED = (
    "--config.watch.every=0",
    "--config.data.heldout_identities=64",
    "--config.data.heldout_seeds=1",
)


class Row(NamedTuple):
    """A row of a table: the same settings, run with several seeds."""

    name: str
    spec: str  # of --config
    arguments: tuple[str, ...] = ()  # overrides, --config.part.key=value


class Failed(Exception):
    """A run that ended with an error; its text names the log."""


def command(row: Row, seed: int, workdir: Path, more: list[str], module: str) -> list[str]:
    """Return the command line of one run. module: what Python runs, -m included.

    more: words of the user's, which give way to the row's own.
    """
    words = [f"--config={row.spec}", *more, *row.arguments, f"--config.seed={seed}"]
    return [*module.split(), *words, f"--workdir={workdir}"]


def settings_of(row: Row, seed: int, more: list[str]) -> config.Config:
    """Return the settings of a run."""
    words = command(row, seed, Path("none"), more, module="")
    values, _ = commandline.configure(words[:-1])
    return config.from_dict(values.to_dict())


def folder(out: Path, row: Row, seed: int, more: list[str]) -> Path:
    """Return the folder of a run: see above."""
    cfg = settings_of(row, seed, more)
    base = sorted(Path(fields.locate(cfg.model)).glob("*/*.safetensors"))
    digest = files.digest([config.digest(cfg), *map(files.sha256, base)])
    return out / f"{row.name}-{seed}-{digest[:8]}"


def proved(workdir: Path, steps: int) -> bool:
    """Tell whether a run is done, proof included."""
    summary = workdir / "summary.json"
    if not (summary.is_file() and (workdir / SCORES).is_file()):
        return False
    return files.read_json(summary)["steps"] == steps


def make(row: Row, seed: int, out: Path, more: list[str]) -> Path:
    """Run a row with one seed unless that is done; returns its folder.

    Raises:
      Failed: the run did.
    """
    more = [*COMPARED, *more]
    workdir = folder(out, row, seed, more)
    if not proved(workdir, settings_of(row, seed, more).steps):
        call(command(row, seed, workdir, more, "-m evoid_jax.train"), log_of(workdir))
    return workdir


def make_all(
    rows: list[Row], seeds: range, out: Path, more: list[str]
) -> tuple[dict[str, "Measured"], list[str]]:
    """Run rows with all seeds. One that fails costs its own row alone.

    Returns:
      What the proofs of each row scored, and a sentence on each row that failed.
    """
    made, failed = {}, []
    for row in rows:
        try:
            made[row.name] = measured([make(row, seed, out, more) for seed in seeds])
        except Failed as error:
            failed.append(f"{row.name} is not in the table: {error}")
            print(failed[-1], flush=True)
    return made, failed


def log_of(workdir: Path) -> Path:
    return workdir.parent / "logs" / f"{workdir.name}.log"


def call(line: list[str], log: Path) -> None:
    """Run a command of ours and say which.

    Raises:
      Failed: it did; its words are in the log.
    """
    print("python", shlex.join(line), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, *line], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Failed(f"a run ended with {done.returncode}, see {log}")


def finish(file: Path, text: str, failed: list[str], rows: Iterable["Measured"] = ()) -> None:
    """Keep and print a table; end with an error where a row is missing in it.

    rows: all that it is made of; where their runs were not made alike, a line under it says so.
    """
    text = "\n".join([text, *failed])
    text += unlike([made for row in rows for made in row.made])
    file.write_text(f"{text}\n")
    print(text)
    if failed:
        raise SystemExit(1)


# --- what the videos of a proof scored


class Measured(NamedTuple):
    """All seeds' videos of a row's proofs, and the base's of the same; NaN where missing."""

    base: dict[str, np.ndarray]  # column -> (B,)
    evolved: dict[str, np.ndarray]
    triple_B: list[tuple]  # seed of the run, identity, prompt, seed of the noise
    identity_B: np.ndarray
    made: tuple["Made", ...] = ()  # how each of the runs was


def measured(workdirs: list[Path]) -> Measured:
    """Read the proofs of a row's runs."""
    rows = []
    for number, workdir in enumerate(workdirs):
        held = files.read_json(workdir / SCORES)
        for triple in held["triples"]:
            key = number, triple["identity"], triple["prompt"], triple["seed"]
            rows.append((key, columns(triple, held["prior"])))
    arms = [
        {name: np.array([both[arm][name] for _, both in rows], float) for name in COLUMNS}
        for arm in (0, 1)
    ]
    keys = [key for key, _ in rows]
    made = tuple(map(how_made, workdirs))
    return Measured(*arms, keys, np.array([key[1] for key in keys]), made)


class Made(NamedTuple):
    """What of how a run was made its folder's name does not tell: the code, and who scored."""

    workdir: Path
    code: tuple[str, ...]  # of each start in turn: the commit, and whether files were changed
    rewards: tuple[tuple[str, str], ...]  # name, sha256 of what gave it


def how_made(workdir: Path) -> Made:
    """Read how a run was made; one without run.json is of unknown code."""
    starts = (provenance.read(workdir) or {"starts": []})["starts"]
    code = dict.fromkeys(code_of(start.get("git")) for start in starts)
    rewards = {
        (row["name"], str(source.get("sha256") or ""))
        for start in starts
        for row in start.get("rewards", [])
        for source in row.get("sources", [])
    }
    return Made(workdir, tuple(code) or ("unknown code",), tuple(sorted(rewards)))


def code_of(git: dict | None) -> str:
    """Return a commit in words."""
    if not git:
        return "unknown code"
    return f"{git['commit'][:12]}{' with changes' if git.get('changed') else ''}"


def unlike(made: Sequence[Made]) -> str:
    """Return a line that says how many runs are of which code; "" where all were made alike."""
    runs = {one.workdir: one for one in made}.values()  # one may be in several tables
    codes = Counter(" then ".join(one.code) for one in runs)
    told = []
    if len({code for one in runs for code in one.code}) > 1:
        counts = ", ".join(f"{count} of {code}" for code, count in codes.most_common())
        told.append(f"runs by their code: {counts}")
    digests = {}
    for name, sha256 in {reward for one in runs for reward in one.rewards}:
        digests.setdefault(name, []).append(sha256)
    if others := sorted(name for name, held in digests.items() if len(held) > 1):
        told.append(f"not the same model (sha256) in all of them gave {', '.join(others)}")
    return f"\n\nThe runs were not made alike: {'; '.join(told)}." if told else ""


def columns(triple: dict, prior: dict[str, float]) -> tuple[dict, dict]:
    """Return the columns of the base's and of the evolved video of a triple, None where missing."""
    arms = ("base", "evolved")
    scores_2M = np.array([[triple[arm].get(name) for name in prior] for arm in arms], float)
    # As in proof.py: a score that one arm lacks counts in neither.
    scores_2M[:, ~np.isfinite(scores_2M).all(axis=0)] = np.nan
    total_2 = proof.total(scores_2M, list(prior.values()))
    others = [0.0 if name == JUDGE else share for name, share in prior.items()]
    objective_2 = proof.total(scores_2M, others)
    made = []
    for i, arm in enumerate(arms):
        column = {"total": total_2[i], "objective": objective_2[i]}
        column |= {name: triple[arm].get(name) for name in (JUDGE, "evoscore")}
        column |= {name: triple["monitor"][arm].get(name) for name in ("identity", "motion")}
        made.append(column)
    return made[0], made[1]


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


class Against(NamedTuple):
    """A column of two rows on the same videos."""

    first_B: np.ndarray
    second_B: np.ndarray
    identity_B: np.ndarray
    number_B: np.ndarray  # of the seed, from 0

    @property
    def change(self) -> Change:
        return change(self.first_B, self.second_B, self.identity_B)

    @property
    def by_seed(self) -> list[float]:
        """Return each seed's own change."""
        delta_B = self.second_B - self.first_B
        return [mean(delta_B[self.number_B == number]) for number in np.unique(self.number_B)]


def against_base(row: Measured, column: str) -> Against:
    """Compare a row with what its runs started from."""
    number_B = np.array([key[0] for key in row.triple_B])
    return Against(row.base[column], row.evolved[column], row.identity_B, number_B)


def between(first: Measured, second: Measured, column: str) -> Against:
    """Compare two rows where both have the same triples of runs with the same seeds."""
    place = {key: b for b, key in enumerate(second.triple_B)}
    both = [(b, place[key]) for b, key in enumerate(first.triple_B) if key in place]
    one, two = np.array(both, int).reshape(-1, 2).T
    number_B = np.array([first.triple_B[b][0] for b in one])
    return Against(
        first.evolved[column][one], second.evolved[column][two], first.identity_B[one], number_B
    )


def mean(value_B: np.ndarray) -> float:
    """Return the mean of what there is, NaN where there is nothing."""
    had = value_B[np.isfinite(value_B)]
    return float(had.mean()) if len(had) else float("nan")


def cell(row: Measured, column: str) -> str:
    """Return a row's mean in a column, and its change from the base with the interval."""
    value = mean(row.evolved[column])
    if np.isnan(value):
        return "--"
    return f"{value:.3f} {against_base(row, column).change}"


def told_by_seed(against: Against) -> str:
    """Return each seed's own change."""
    return ", ".join(f"{delta:+.3f}" for delta in against.by_seed)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def outcome(sign: int, against: Against) -> str:
    """Say whether a comparison shows what was expected: sign +1, -1, or 0 for no difference.

    It shows something where the interval over people excludes zero and all seeds agree: the
    interval knows nothing of how trainings differ.
    """
    apart = against.change
    if np.isnan(apart.mean) or np.isnan(apart.low):
        return "not measured"
    found = 1 if apart.low > 0 else -1 if apart.high < 0 else 0
    if found == 0 or any(np.sign(delta) != found for delta in against.by_seed):
        return "not contradicted" if sign == 0 else "not shown"
    if sign == 0:
        return "equal there, not here"
    return "shown" if found == sign else "the other way"


# --- a trial


def trial(cfg: config.Config, workdir: Path) -> None:
    """Evolve and watch as `train` does, and prove nothing."""
    cfg = config.checked(cfg)
    work_folder.check_start(cfg, workdir)
    with run_lock.held(workdir), session.open_run(cfg, workdir) as run:
        train.evolved(run)


def tried(workdir: Path, steps: int) -> float | None:
    """Return the total's change on validation people after a trial's last step, None before it."""
    file = workdir / "watch" / f"step_{steps:06d}.json"
    return files.read_json(file)["delta_total"] if file.is_file() else None


def main(argv: list[str]) -> None:
    train.quiet()
    cfg = config.from_dict(flags.FLAGS.config.to_dict())
    trial(cfg, files.user_path(flags.FLAGS.workdir))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run folder; resumed when it exists.", required=True)
    commandline.run(main, settings=config.Config)
