"""EvoID: evolve an identity-preserving video model from rewards.

    python -m evoid_jax.train --config=configs/evoid.py:tiny --workdir=runs/tiny

A run started again in the same workdir goes on from its newest checkpoint. The loop is `evolution`.
Many hosts run this program together, see distributed.py and launch/; the first one writes.

Letters: B videos, P pairs, M rewards, G groups, R reference frames, T H W C latents.
"""

from __future__ import annotations

import json
import logging as std_logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from ml_collections import config_flags
from tqdm import tqdm

from evoid_jax import (
    checkpoint,
    config,
    distributed,
    evolve,
    heldout,
    metrics,
    rollout,
    sharding,
)
from evoid_jax.data import pairs
from evoid_jax.models import lora
from evoid_jax.report import page as report
from evoid_jax.rewards import fuse, table
from evoid_jax.rewards.panel import Panel


def evolution(run: Run, state: evolve.State, memory: RewardMemory, saved, writer) -> evolve.State:
    """Generate, score, weigh, evolve, follow: the paper's figure 2, `cfg.steps` times."""
    cfg, first = run.cfg, int(state.step)
    look = {"desc": "evolution", "disable": not distributed.leads()}
    for step in tqdm(range(first, cfg.steps), initial=first, total=cfg.steps, **look):
        clock = session.Clock()
        drawn = pairs.batch(run.data, step, cfg.data.pairs)
        batch = session.prepare(run, drawn, session.seeds(cfg, step))

        # The stable transformer generates; what is decoded is scored while the rest is generated.
        tickets, clean = [], []
        for part in session.generate(run, state.stable, batch, clock):
            tickets.append(run.panel.submit(part.video_BFHWC, batch.request, part.rows))
            clean.append(part.clean_BTHWC)
        scores = run.panel.collect(tickets)

        # Many scores become one reward in [0, 1]; the judge moves the weights.
        judge = partial(run.panel.attention, batch.request, batch.pair_B)
        memory, fused = blend.blend(cfg.reward, memory, scores, batch.pair_B, judge)
        clock.lap("score")

        # The evolving transformer takes one step; the stable one follows it inside.
        scored = session.to_device(batch, jnp.concatenate(clean), fused, run.mesh)
        setup = evolve.Setup(cfg, run.frozen.wan, run.mesh, batch.references)
        with jax.transfer_guard("disallow"):  # a hidden copy between host and device is a bug
            state, terms = evolve.train_step(
                state, run.frozen.wan_params, scored, run.teacher, setup=setup
            )
        terms = check(step, jax.device_get(terms))
        clock.lap("train")
        if writer:
            writer.write(step, record(cfg, terms, scores, fused, memory, clock.stop()))
        if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
            checkpoint.save(saved, step + 1, state, memory._asdict())
    return state


def check(step: int, terms: dict) -> dict:
    """Return the terms as floats; raise where one is not finite."""
    terms = jax.tree.map(float, terms)
    flat = traverse_util.flatten_dict(terms, sep="/")
    bad = [name for name, value in flat.items() if not np.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} is not finite. Start again from the last checkpoint "
            "with a smaller config.train.lr, or config.dtype=float32"
        )
    return terms


def record(
    cfg: config.Config,
    terms: dict,
    scores: ScoreTable,
    fused: Fused,
    memory: RewardMemory,
    seconds: dict[str, float],
) -> dict:
    """Return one step's line of metrics.jsonl; what was not had is NaN.

    terms: as `evolve.train_step` returns them; their names are the record's.
    """
    names = table.names(cfg.reward.table)

    def means(value_BM: np.ndarray) -> dict[str, float]:
        columns = zip(names, value_BM.T, scores.valid_BM.T, strict=True)
        return {name: mean(value_B, valid_B) for name, value_B, valid_B in columns}

    attention = memory.attention or [np.nan] * len(config.GROUPS)
    return terms | {
        "reward": {
            "unified": mean(fused.reward_B, fused.valid_B),
            "raw": means(scores.raw_BM),
            "score": means(scores.score_BM),
            "normalised": means(fused.normalised_BM),
        },
        "weights": dict(zip(names, fused.weights_M, strict=True)),
        "attention": dict(zip(config.GROUPS, attention, strict=True)),
        "valid_fraction": scores.valid_BM.mean(),
        "seconds": seconds,
    }


def mean(value_B: np.ndarray, valid_B: np.ndarray) -> float:
    """Return the mean of the valid values, NaN where there are none."""
    return float(value_B[valid_B].mean()) if valid_B.any() else float("nan")


def begin(run: Run, saved: checkpoint.Checkpoints) -> tuple[evolve.State, RewardMemory]:
    """Return the newest checkpoint's state, or a fresh one."""
    cfg, wan = run.cfg, run.frozen.wan
    start = None
    if cfg.lora.init:  # files hold adapters of scale 1
        unscale = lambda path, x: x / wan.lora_scale if path[-1].key == "b" else x
        start = lora.load(cfg.lora.init, wan.config)
        start = jax.tree_util.tree_map_with_path(unscale, start)
    state = evolve.init(cfg, run.frozen.wan_params, wan.config, start)
    state = sharding.replicate(state, run.mesh)
    restored = checkpoint.restore(saved, state)
    if restored is None:
        return state, blend.FORGOTTEN
    state, memory = restored
    distributed.say(f"resuming after step {int(state.step)}")
    return state, RewardMemory(**memory)


# What a run may change when it is resumed: how long it is, where it runs, whom it asks.
# So is all of mesh.
FREE = ("steps", "save_every", "keep", "tensorboard", "wandb", "attention", "train/remat")
FREE += ("train/videos_per_device", "rollout/videos_per_device", "rollout/split", "data/cache")
FREE += ("reward/sidecars", "reward/judge", "reward/timeout")


def check_workdir(cfg: config.Config, workdir: Path) -> None:
    """Raise a ValueError where a workdir belongs to other settings; those of FREE may change."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    flat = partial(traverse_util.flatten_dict, sep="/")
    old, now = flat(json.loads(path.read_text())), flat(json.loads(json.dumps(config.to_dict(cfg))))
    for key in now:
        free = key in FREE or key.startswith("mesh/")
        if not free and now[key] != old.get(key):
            name = key.replace("/", ".")
            raise ValueError(
                f"{workdir} holds a run with another config.{name}: {old.get(key)}, now "
                f"{now[key]}. Use another --workdir, or remove this one"
            )


def export(run: Run, state: evolve.State) -> Path:
    """Write the evolved adapter as diffusers loads it."""
    file = run.workdir / "export" / "pytorch_lora_weights.safetensors"
    about = {
        "base_model": Path(run.cfg.model).name,
        "rank": str(run.cfg.lora.rank),
        "step": str(int(state.step)),
        "config_digest": config.digest(run.cfg),
    }
    lora.save(file, jax.device_get(state.evolving), run.cfg.lora.alpha, about)
    return file


@contextmanager
def open_log(run: Run, start: int) -> Iterator[metrics.Writer | None]:
    """Write config.json and open the record from step `start` on; None where another writes."""
    if not distributed.leads():
        yield None
        return
    cfg = run.cfg
    settings = config.to_dict(cfg) | {"digest": config.digest(cfg)}
    metrics.write_text(run.workdir / "config.json", json.dumps(settings, indent=2) + "\n")
    log = dict(tensorboard=cfg.tensorboard, wandb=cfg.wandb, config=config.to_dict(cfg))
    with metrics.Writer(run.workdir, start, cfg.steps, **log) as writer:
        yield writer


def train(cfg: config.Config, workdir: Path) -> Path:
    """Run everything: evolution, export, held-out proof, report. Returns the report's path."""
    began = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    check_workdir(cfg, workdir)
    with session.open_run(cfg, workdir) as run:
        saved = checkpoint.open_folder(workdir / "checkpoints", cfg.keep)
        state, memory = begin(run, saved)
        start = int(state.step)
        with open_log(run, start) as writer:
            began -= sum(line["seconds"]["total"] for line in metrics.read(workdir)[:start])
            state = evolution(run, state, memory, saved, writer)
        if distributed.leads():
            export(run, state)
        heldout.prove(run, state, began)
    checkpoint.close(saved)
    return report.write(workdir) if distributed.leads() else workdir / report.FILE


def quiet() -> None:
    """Keep libraries' routine messages off the terminal, and compiled programs for the next run."""
    for name in ("httpx", "httpx2", "openai"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    logging.set_verbosity(logging.WARNING)
    cache = Path("~/.cache/evoid_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet()
    try:
        cfg = config.from_dict(flags.FLAGS.config.to_dict())
        with distributed.together(distributed.from_flags(), flags.FLAGS.silent):
            path = train(cfg, Path(flags.FLAGS.workdir))
            distributed.say(f"report: {path.resolve()}")
    except distributed.EXPECTED as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Such as configs/evoid.py:tiny.")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Run folder; resumed when it exists.", required=True)
    distributed.define_flags()
    app.run(main)
