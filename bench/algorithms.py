"""EvoID and other algorithms on the tiny world, at equal rollouts and at equal FLOPs.

    python bench/algorithms.py --out=runs/algorithms [--seeds=3] [--rows=evoid,nft] [--config.X=Y]

Runs one after the other; a run that is done is not made again, one that was stopped goes on. Other
words go to every run, and give way to those of a row. On a machine with several cores start it
several times with other --rows, and in the end once with all of them, which only makes the tables.

First each algorithm's own settings are tried (RATES, SECOND), by the same rule for each, in runs of
another seed with as many steps as EvoID's, and judged by the total on validation people; the
held-out people decide nothing. Then every algorithm is run with several seeds for as many steps as
EvoID, and for as many as the same FLOPs of the transformer buy. Prints both tables and keeps them
as OUT/table.md.
"""

import argparse
import json
from pathlib import Path

import jax
import many_runs
from many_runs import Failed, Measured, Row

from evoid_jax import session, sharding
from evoid_jax.plan import flops, programs
from evoid_jax.world import portraits

COLUMNS = ("total", "evoscore", "identity", "motion")

# What is tried of each: its rate, and one setting of its own, the usual value first. A clip of 5
# makes each reward as flat as DiffusionNFT's published one, (R - mean) / std / 10 + 1/2.
RATES = (1e-3, 3e-3, 1e-2)
FACTOR = 10**0.5  # from a rate to the next, where the best one is the first or the last
MORE_RATES = 2
SECOND = {
    "evoid": ("loss.beta", (2.0, 1.0)),
    "imitation": ("reward.clip", (0.5, 2.0)),
    "clips": ("train.shift", (3.0, 1.0)),
    "rwr": ("rwr.temperature", (0.3, 1.0)),
    "nft": ("reward.clip", (0.5, 5.0)),
    "grpo": ("grpo.level", (1.0, 0.5)),
}
STEPS = 20
TRIAL_SEED = 100  # none of those that are compared
# One video of each of 64 validation people, before the first step and after the last.
WATCHED = ("--config.watch.identities=64", "--config.watch.seeds=1")
NEAR = 0.1  # budgets that differ by less are taken as equal


def row(name: str, steps: int, chosen: tuple[str, ...], label: str) -> Row:
    """Return an algorithm's row of so many steps, over which its rate falls."""
    words = "tiny" if name == "evoid" else f"tiny,{name}"
    steps_of = (f"--config.steps={steps}", f"--config.train.lr_steps={steps}")
    return Row(label, f"configs/evoid.py:{words},evoscore", (*steps_of, *chosen))


def choice(name: str, rate: float, second: float) -> tuple[str, ...]:
    """Return a rate and a value of an algorithm's second setting as words of a command."""
    return f"--config.train.lr={rate:.3g}", f"--config.{SECOND[name][0]}={second}"


def tuned(name: str, steps: int, out: Path, more: list[str]) -> tuple[str, ...]:
    """Try an algorithm's settings; returns those with the best total on validation people.

    The rates with the usual second value, then further ones while the best is at an end, then the
    other second value at the best rate.

    Raises:
      Failed: all trials did.
    """
    gains: dict[tuple[str, ...], float | None] = {}
    usual, other = SECOND[name][1]

    def gain(rate: float, second: float) -> float:
        chosen = choice(name, rate, second)
        if chosen not in gains:
            gains[chosen] = attempt(name, chosen, steps, out, more)
        return float("-inf") if gains[chosen] is None else gains[chosen]

    rates = list(RATES)
    best = max(rates, key=lambda rate: gain(rate, usual))
    for _ in range(MORE_RATES):
        if best not in (min(rates), max(rates)):
            break
        rates.append(best * FACTOR if best == max(rates) else best / FACTOR)
        best = max(rates, key=lambda rate: gain(rate, usual))
    second = max((usual, other), key=lambda value: gain(best, value))
    kept = {" ".join(chosen): value for chosen, value in gains.items()}
    (out / f"{name}-trials.json").write_text(json.dumps(kept, indent=2) + "\n")
    if gain(best, second) == float("-inf"):
        raise Failed(f"all {len(gains)} trials did, see {out / 'logs'}")
    chosen = choice(name, best, second)
    print(f"{name}: {' '.join(chosen)}, {gain(best, second):+.3f} on validation people", flush=True)
    return chosen


def attempt(
    name: str, chosen: tuple[str, ...], steps: int, out: Path, more: list[str]
) -> float | None:
    """Return what a trial gains on validation people; None where it failed."""
    one = row(name, steps, (*chosen, f"--config.watch.every={steps}", *WATCHED), f"{name}-trial")
    workdir = many_runs.folder(out, one, TRIAL_SEED, more)
    if many_runs.tried(workdir, steps) is None:
        line = many_runs.command(one, TRIAL_SEED, workdir, more, "bench/many_runs.py")
        try:
            many_runs.call(line, many_runs.log_of(workdir))
        except Failed as error:
            print(f"{name}, {' '.join(chosen)}: {error}", flush=True)
    return many_runs.tried(workdir, steps)


def step_flops(one: Row, more: list[str]) -> float:
    """Return the FLOPs of the transformer that a step of a row needs, by formula."""
    cfg = many_runs.settings_of(one, 0, more)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    at = programs.Setting(cfg, programs.models(cfg.model), mesh)
    sizes = flops.sizes(at.models.wan, at.latent_THWC[:3], at.references)
    # On a CPU prompts are padded to the longest of them, not to the model's length.
    tokenizer = session.open_model(cfg).tokenizer
    prompts = [portraits.prompt(portraits.scene(i, i)) for i in portraits.SPLITS["validation"]]
    longest = max(map(len, tokenizer(prompts)["input_ids"]))
    text = session.text_rows(longest, at.models.wan.text_len, mesh)
    return flops.step(at.models.wan, cfg, sizes._replace(text=text))


def results(measured: dict[str, Measured], steps: dict[str, int], cost: dict[str, float]) -> str:
    """Return one table. cost: FLOPs of a step."""
    heads = ["algorithm", "steps", "PFLOP", "total", "EvoScore", "identity", "motion"]
    heads += ["total against EvoID", "by seed"]
    first = next(iter(measured.values()))
    base = [f"{many_runs.mean(first.base[name]):.3f}" for name in COLUMNS]
    lines = [["base", "0", "0", *base, "", ""]]
    for name, held in measured.items():
        cells = [many_runs.cell(held, column) for column in COLUMNS]
        against = ["--", ""]
        if name != "evoid" and "evoid" in measured:
            apart = many_runs.between(measured["evoid"], held, "total")
            against = [str(apart.change), many_runs.told_by_seed(apart)]
        spent = f"{steps[name] * cost[name] / flops.PETA:.3g}"
        lines.append([name, str(steps[name]), spent, *cells, *against])
    return many_runs.table(heads, lines)


def seeds(measured: dict[str, Measured]) -> str:
    """Return the table of each seed's own change from the base."""
    lines = []
    for name, held in measured.items():
        changes = [many_runs.against_base(held, column) for column in COLUMNS]
        lines.append([name, *map(many_runs.told_by_seed, changes)])
    heads = ["change by seed", "total", "EvoScore", "identity", "motion"]
    return many_runs.table(heads, lines)


def compared(
    args, chosen: dict[str, tuple[str, ...]], steps: dict[str, int], more: list[str]
) -> tuple[dict[str, Measured], list[str]]:
    """Run every algorithm for its steps with all seeds, and read the proofs."""
    rows = {name: row(name, steps[name], words, name) for name, words in chosen.items()}
    return many_runs.make_all(list(rows.values()), range(args.seeds), args.out, more)


def at_equal_flops(names: list[str], steps: int, cost: dict[str, float]) -> dict[str, int]:
    """Return how many steps of each cost as much as EvoID's; where nearly as many, just as many.

    True clips cost nothing to make, and what is compared here is what videos of one's own teach:
    they are left out.
    """
    made = {}
    for name in names:
        ratio = cost["evoid"] / cost[name]
        made[name] = steps if abs(ratio - 1) < NEAR else max(round(steps * ratio), 1)
    return {name: count for name, count in made.items() if name != "clips"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="EvoID's; others have as many")
    parser.add_argument("--rows", default=",".join(SECOND))
    args, more = parser.parse_known_args()
    if any(word.startswith("--config.steps") for word in more):
        parser.error("how many steps is part of the comparison: give --steps")
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in SECOND]:
        parser.error(f"--rows: no {', '.join(unknown)}; there are {', '.join(SECOND)}")
    args.out.mkdir(parents=True, exist_ok=True)
    chosen, failed = {}, []
    for name in names:
        try:
            chosen[name] = tuned(name, args.steps, args.out, more)
        except Failed as error:
            failed.append(f"{name} is not in the tables: {error}")
    known = {"evoid", *chosen}
    cost = {name: step_flops(row(name, args.steps, (), name), more) for name in known}
    texts, read = [], []
    for label, steps in (
        ("rollouts", dict.fromkeys(chosen, args.steps)),
        ("FLOPs", at_equal_flops(list(chosen), args.steps, cost)),
    ):
        words = {name: chosen[name] for name in steps}
        held, lost = compared(args, words, steps, more)
        failed += [words for words in lost if words not in failed]
        read += held.values()
        tables = f"{results(held, steps, cost)}\n\n{seeds(held)}\n" if held else ""
        texts.append(f"At equal {label}:\n\n{tables}")
    settings = [f"{name}: {' '.join(words)}" for name, words in chosen.items()]
    many_runs.finish(args.out / "table.md", "\n".join([*texts, *settings]), failed, read)


if __name__ == "__main__":
    main()
