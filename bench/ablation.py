"""The paper's ablation on the tiny world: every row with several seeds, and what of it shows.

    python bench/ablation.py --out=runs/ablation [--seeds=3] [--rows=uwr,mdw] [--config.NAME=VALUE]

Runs one after the other; a run that is done is not made again, one that was stopped goes on. Other
words go to every run. On a machine with several cores start it several times with other --rows,
and in the end once with all of them, which then only makes the table.

Prints the table beside the paper's numbers and keeps it as OUT/table.md: means over all seeds'
held-out videos, changes from the base with 95 % intervals, over people (all seeds' videos of a
person are drawn together); for each of the paper's orderings whether it is shown, not shown, or the
other way; and the monitors between the same rows. The tiny world's total and EvoScore are of its
own rewards and judge: only orderings can be compared, never values. The paper's total has no grade
of the judge in it, and neither has the one that stands beside it here.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import many_runs
from many_runs import Against, Measured, Row

from evoid_jax.reward_groups import JUDGE

# The columns that are shown; those that the paper has too, by its names for them.
COLUMNS = ("objective", JUDGE, "evoscore", "identity", "motion")
MONITORS = ("identity", "motion")
OF_PAPER = {"objective": "total", "evoscore": "evoscore"}


class Paper(NamedTuple):
    """A row of the paper's tables: OpenS2V-Eval's total on people, and EvoScore."""

    words: str
    total: float
    evoscore: float


PAPER = {
    "base": Paper("VACE-14B", 0.658, 0.544),
    "uwr": Paper("uniform reward weights", 0.685, 0.627),
    "uwr_tp": Paper("and the T2V teacher", 0.706, 0.663),
    "pwr": Paper("prior weights", 0.715, 0.645),
    "pwr_tp": Paper("and the T2V teacher", 0.715, 0.664),
    "pr": Paper("and the preference", 0.685, 0.675),
    "mdw": Paper("and dynamic weighting: EvoID", 0.704, 0.682),
    "esr": Paper("and EvoScore as a reward", 0.687, 0.718),
}
# Which rows the paper compares by adding one thing, base being what a run started from; and the
# whole method with the first row of each of the paper's tables.
STEPS = (
    ("base", "uwr"),
    ("uwr", "uwr_tp"),
    ("uwr", "pwr"),
    ("uwr_tp", "pwr_tp"),
    ("pwr", "pwr_tp"),
    ("pwr_tp", "pr"),
    ("pr", "mdw"),
    ("mdw", "esr"),
    ("uwr", "mdw"),
    ("pwr_tp", "mdw"),
)


def row(name: str) -> Row:
    """Return a row; its proof measures EvoScore, also where that is no reward."""
    words = name if name == "esr" else f"{name},evoscore"
    return Row(name, spec=f"configs/evoid.py:tiny,{words}")


def results(measured: dict[str, Measured]) -> str:
    """Return the table of all rows that were run."""
    heads = ["row", "what it has", "total", "VQScore", "EvoScore", "identity", "motion"]
    heads += ["total by seed", "paper: total", "paper: EvoScore"]
    first = next(iter(measured.values()))
    base = [f"{many_runs.mean(first.base[name]):.3f}" for name in COLUMNS]
    lines = [["base", "", *base, "", *numbers(PAPER["base"])]]
    for name, held in measured.items():
        cells = [many_runs.cell(held, column) for column in COLUMNS]
        seeds = many_runs.told_by_seed(many_runs.against_base(held, "objective"))
        lines.append([name, PAPER[name].words, *cells, seeds, *numbers(PAPER[name])])
    return many_runs.table(heads, lines)


def numbers(paper: Paper) -> list[str]:
    return [f"{paper.total:.3f}", f"{paper.evoscore:.3f}"]


def steps_of(measured: dict[str, Measured]) -> list[tuple[str, str]]:
    """Return which of STEPS lie between rows that were run."""
    return [(a, b) for a, b in STEPS if b in measured and a in ("base", *measured)]


def orderings(measured: dict[str, Measured]) -> str:
    """Return the table of the paper's orderings among the rows that were run."""
    lines = []
    for before, after in steps_of(measured):
        for column, of_paper in OF_PAPER.items():
            paper = getattr(PAPER[after], of_paper) - getattr(PAPER[before], of_paper)
            apart = ours(measured, before, after, column)
            sign = 0 if abs(paper) < 5e-4 else 1 if paper > 0 else -1
            here = str(apart.change), many_runs.told_by_seed(apart)
            said = many_runs.outcome(sign, apart)
            lines.append([f"{before} to {after}", of_paper, f"{paper:+.3f}", *here, said])
    heads = ["from, to", "column", "paper", "here", "by seed", "is the paper's order"]
    words = (
        "Intervals are over people, for these trainings; all seeds must agree too. Of "
        f"{len(lines)} intervals of 95 % one in twenty excludes zero by chance."
    )
    return f"{many_runs.table(heads, lines)}\n\n{words}"


def monitors(measured: dict[str, Measured]) -> str:
    """Return the table of what nobody rewards, between the same rows."""
    lines = []
    for before, after in steps_of(measured):
        cells = []
        for column in MONITORS:
            apart = ours(measured, before, after, column)
            cells += [str(apart.change), many_runs.told_by_seed(apart)]
        lines.append([f"{before} to {after}", *cells])
    heads = ["from, to", *(head for column in MONITORS for head in (column, "by seed"))]
    return many_runs.table(heads, lines)


def ours(measured: dict[str, Measured], before: str, after: str, column: str) -> Against:
    """Return two rows on the same videos, by the same seeds."""
    if before == "base":
        return many_runs.against_base(measured[after], column)
    return many_runs.between(measured[before], measured[after], column)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    every = [name for name in PAPER if name != "base"]
    parser.add_argument("--rows", default=",".join(every))
    args, more = parser.parse_known_args()
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in every]:
        parser.error(f"--rows: no {', '.join(unknown)}; there are {', '.join(every)}")
    rows = [row(name) for name in names]
    measured, failed = many_runs.make_all(rows, range(args.seeds), args.out, more)
    tables = [made(measured) for made in (results, orderings, monitors)] if measured else []
    text = "\n\n".join(tables)
    many_runs.finish(args.out / "table.md", text, failed, measured.values())


if __name__ == "__main__":
    main()
