"""EvoID and other algorithms on the tiny world, at equal rollouts and at equal FLOPs.

    python bench/algorithms.py --out=runs/algorithms [--seeds=3] [--rows=evoid,nft] [--config.X=Y]

Runs one after the other; a run that is done is not made again, one that was stopped goes on. Other
words go to every run. First each algorithm's own settings are tried (TRIALS), as many for each, in
short runs that are judged by the total on validation people; the held-out people decide nothing.
Then every algorithm is run with several seeds for as many steps as EvoID, and for as many as the
same FLOPs of the transformer buy. Prints both tables and keeps them as OUT/table.md.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import many_runs
from many_runs import Measured, Row

from evoid_jax import sharding
from evoid_jax.plan import flops, programs

# What is tried of each: its rate, and the one setting of its own that its authors vary.
RATES = (1e-3, 3e-3, 1e-2)
TRIALS = {
    "evoid": ("loss.beta", (1.0, 2.0)),
    "imitation": ("train.weight_decay", (1e-4, 1e-2)),
    "clips": ("train.weight_decay", (1e-4, 1e-2)),
    "rwr": ("rwr.temperature", (0.1, 0.3)),
    "nft": ("nft.beta", (1.0, 0.1)),
    "grpo": ("grpo.level", (1.0, 0.5)),
}
STEPS, TRIAL_STEPS = 50, 25


def row(name: str, steps: int, chosen: tuple[str, ...], label: str) -> Row:
    """Return an algorithm's row of so many steps, over which its rate falls."""
    words = "tiny" if name == "evoid" else f"tiny,{name}"
    steps_of = (f"--config.steps={steps}", f"--config.train.lr_steps={steps}")
    return Row(label, f"configs/evoid.py:{words},evoscore", (*steps_of, *chosen))


def choices(name: str) -> list[tuple[str, ...]]:
    """Return the settings that are tried of an algorithm."""
    setting, values = TRIALS[name]
    return [
        (f"--config.train.lr={rate}", f"--config.{setting}={value}")
        for rate, value in itertools.product(RATES, values)
    ]


def tuned(name: str, steps: int, out: Path, more: list[str]) -> tuple[str, ...]:
    """Try an algorithm's settings; returns those with the best total on validation people."""
    gains = {}
    for number, chosen in enumerate(choices(name)):
        watch = (f"--config.watch.every={steps}", "--config.watch.identities=32")
        tried = row(name, steps, (*chosen, *watch), f"{name}-trial{number}")
        workdir = out / tried.name
        line = many_runs.command(tried, 0, workdir, more, "bench/many_runs.py")
        cfg = many_runs.settings_of(line)
        if many_runs.tried(cfg, workdir) is None:
            many_runs.call(line, out / "logs" / f"{tried.name}.log")
        gains[chosen] = many_runs.tried(cfg, workdir)
    best = max(gains, key=gains.get)
    kept = {" ".join(chosen): gain for chosen, gain in gains.items()}
    (out / f"{name}-trials.json").write_text(json.dumps(kept, indent=2) + "\n")
    print(f"{name}: {' '.join(best)}, {gains[best]:+.3f} on validation people", flush=True)
    return best


def step_flops(one: Row, more: list[str]) -> float:
    """Return the FLOPs of the transformer that a step of a row needs, by formula."""
    cfg = many_runs.settings_of(many_runs.command(one, 0, Path("none"), more, ""))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    at = programs.Setting(cfg, programs.models(cfg.model), mesh)
    sizes = flops.sizes(at.models.wan, at.latent_THWC[:3], at.references)
    return flops.step(at.models.wan, cfg, sizes)


def results(measured: dict[str, Measured], steps: dict[str, int], cost: dict[str, float]) -> str:
    """Return one table. cost: FLOPs of a step."""
    heads = ["algorithm", "steps", "PFLOP", "total", "EvoScore", "identity", "motion"]
    heads += ["total by seed", "total against EvoID"]
    first = next(iter(measured.values()))
    base = [f"{many_runs.mean(first.base[name]):.3f}" for name in many_runs.COLUMNS]
    lines = [["base", "0", "0", *base, "", ""]]
    for name, held in measured.items():
        cells = [many_runs.cell(held, column) for column in many_runs.COLUMNS]
        seeds = ", ".join(f"{delta:+.3f}" for delta in many_runs.by_seed(held, "total"))
        against = "--"
        if name != "evoid" and "evoid" in measured:
            against = str(many_runs.between(measured["evoid"], held, "total"))
        spent = f"{steps[name] * cost[name] / flops.PETA:.3g}"
        lines.append([name, str(steps[name]), spent, *cells, seeds, against])
    return many_runs.table(heads, lines)


def compared(
    args, chosen: dict[str, tuple[str, ...]], steps: dict[str, int], more: list[str]
) -> dict[str, Measured]:
    """Run every algorithm for its steps with all seeds, and read the proofs."""
    measured = {}
    for name, settings in chosen.items():
        one = row(name, steps[name], settings, f"{name}-{steps[name]}steps")
        runs = [many_runs.make(one, seed, args.out, more) for seed in range(args.seeds)]
        measured[name] = many_runs.measured(runs)
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="EvoID's; others have as many")
    parser.add_argument("--trial_steps", type=int, default=TRIAL_STEPS)
    parser.add_argument("--rows", default=",".join(TRIALS))
    args, more = parser.parse_known_args()
    if any(word.startswith("--config.steps=") for word in more):
        parser.error("how many steps is part of the comparison: give --steps and --trial_steps")
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.rows.split(",")
    chosen = {name: tuned(name, args.trial_steps, args.out, more) for name in names}
    cost = {name: step_flops(row(name, args.steps, chosen[name], name), more) for name in names}
    whole = args.steps * step_flops(row("evoid", args.steps, (), "evoid"), more)
    equal = dict.fromkeys(names, args.steps)
    as_many = {name: max(round(whole / cost[name]), 1) for name in names}
    texts = []
    for label, steps in (("rollouts", equal), ("flops", as_many)):
        held = compared(args, chosen, steps, more)
        texts.append(f"At equal {label}:\n\n{results(held, steps, cost)}\n")
    (args.out / "table.md").write_text("\n".join(texts))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
