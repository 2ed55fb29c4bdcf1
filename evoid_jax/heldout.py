"""The proof: what the run started from against evolved, on pairs that training never saw.

Letters: F H W C pixels.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from evoid_jax import arms, distributed, evolve, media, metrics, proof, triples
from evoid_jax.arms import Arm, Trial
from evoid_jax.data import pairs
from evoid_jax.proof_parts import Parts, key
from evoid_jax.rewards import blend, table
from evoid_jax.session import Run

SHOWN = 12  # held-out videos that are kept as mp4
SEED = 2**20  # held-out seeds start here, the same for every run


def prove(run: Run, state: evolve.State, began: float) -> dict:
    """Generate the same held-out triples with the start and the evolved model, and compare.

    Writes summary.json, scores.json and samples/. What a start before has made is not made again.

    Args:
      state: of the evolved model.
      began: the `time.perf_counter()` of the run's start.

    Returns:
      `proof.summary`, to which summary.json adds `circumstances`.
    """
    start = time.perf_counter()
    data, each = run.heldout, run.cfg.data.heldout_seeds
    rows = pairs.spread(data.identities, run.cfg.data.heldout_identities)
    chosen = [data.with_others(row) for row in rows]
    trial = Trial(chosen, each, seed=SEED, shown=SHOWN, name="held-out")
    start_adapter = arms.start(state.initial, state.evolving)
    keepers = Parts(run, "base", start_adapter), Parts(run, "evolved", state.evolving)
    made_by = key(run, state.evolving)
    if distributed.leads():  # before the first video of an earlier proof is replaced
        (run.workdir / triples.BEGUN).parent.mkdir(parents=True, exist_ok=True)
        proof.write_json(run.workdir / triples.BEGUN, {"made_by": made_by})
    base = arms.play(run, trial, start_adapter, keepers[0])
    evolved = arms.play(run, trial, state.evolving, keepers[1])
    base, evolved = arms.level(base, evolved)
    now = time.perf_counter() + sum(keeper.seconds for keeper in keepers)
    summary = proof.summary(
        table.names(run.cfg.reward.table),
        blend.proof_priors(run.cfg.reward),
        base.score_BM,
        evolved.score_BM,
        cluster_B=np.repeat([pair.identity for pair in trial.chosen], each),
        monitor_base=base.monitor,
        monitor_evolved=evolved.monitor,
        steps=int(state.step),
        seconds={"heldout": now - start, "total": now - began},
        heldout=data.kind,
        rewarded=blend.rewarded(run.cfg.reward),
    )
    if distributed.leads():
        proof.write_json(run.workdir / "summary.json", summary | circumstances(run, evolved))
        write_scores(run, trial, base, evolved, made_by)
        write_samples(run, trial)
    return summary


def circumstances(run: Run, evolved: Arm) -> dict:
    """Return what summary.json says besides, for whoever reads it later.

    reached       int, steps that the run had made; more than `steps` where a watch chose
    monitored_by  {MONITOR: str}, the service that measured it: its preset and versions
    """
    logged = metrics.read(run.workdir)
    service = next((info for info in run.panel.infos if info.get("monitors")), {})
    # The first word is the code's own; what follows names one reward's model.
    versions = [str(row.get("version") or "").split(" ")[0] for row in service.get("rewards", [])]
    words = ", ".join([str(service.get("preset")), *sorted({*versions} - {""})])
    return {
        "reached": logged[-1]["step"] + 1 if logged else 0,
        "monitored_by": dict.fromkeys(evolved.monitor, words),
    }


def write_scores(run: Run, trial: Trial, base: Arm, evolved: Arm, made_by: str) -> None:
    """Keep what each single video scored, for the report. made_by: see triples.py."""
    seed_PN = arms.seeds(trial, 0, len(trial.chosen))
    triples.write(
        run.workdir,
        table.names(run.cfg.reward.table),
        blend.proof_priors(run.cfg.reward),
        [
            (pair.identity, pair.prompt, seed)
            for pair, seed_N in zip(trial.chosen, seed_PN, strict=True)
            for seed in seed_N
        ],
        (base.score_BM, evolved.score_BM),
        (base.monitor, evolved.monitor),
        photos=[media.digest(pair.images[0]) for pair in trial.chosen for _ in range(trial.each)],
        made_by=made_by,
    )


def write_samples(run: Run, trial: Trial) -> None:
    """Say what the kept videos show, the first seed of the first pairs, with their faces beside."""
    folder: Path = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for k, pair in enumerate(trial.chosen[: trial.shown]):
        media.write_image(folder / f"heldout_{k:02d}_reference.png", pair.images[0])
        seed = int(arms.seeds(trial, k, 1)[0, 0])
        entries.append({"k": k, "prompt": pair.prompt, "identity": pair.identity, "seed": seed})
    proof.write_json(folder / "heldout.json", entries)
