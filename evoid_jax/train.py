"""EvoID: evolve an identity-preserving video model from rewards.

    python -m evoid_jax.train --config=configs/evoid.py:tiny --workdir=runs/tiny

A run started again in the same workdir goes on from its newest checkpoint. The loop is `evolution`.
Many hosts run this program together, see distributed.py and launch/; the first one writes.

Letters: B videos of a step, P pairs, M metrics, G groups, R reference frames, T H W C latents.
"""

from __future__ import annotations

import json
import logging as std_logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import config_flags
from tqdm import tqdm

from evoid_jax import (
    checkpoint,
    config,
    distributed,
    evolve,
    flow,
    heldout,
    metrics,
    rollout,
    sharding,
    teacher,
)
from evoid_jax.data import pairs
from evoid_jax.models import lora
from evoid_jax.report import page as report
from evoid_jax.rewards import fuse, table
from evoid_jax.rewards.panel import Panel


class Run(NamedTuple):
    """Everything that does not change while the run goes on."""

    cfg: config.Config
    workdir: Path
    mesh: Mesh
    frozen: rollout.Frozen
    teacher: dict | None  # None: the base's main blocks
    data: pairs.Pairs
    panel: Panel
    solver: flow.Table
    text_rows: int | None  # S of every prompt; None: each batch's own


class Memory(NamedTuple):
    """What the host remembers from step to step; saved with every checkpoint."""

    attention: list[float] | None  # averaged over steps; None before the first answer
    deviations: list[list[float]]  # per step and metric: the scores' usual spread within a pair


def evolution(run: Run, state: evolve.State, memory: Memory, saved, writer) -> evolve.State:
    """Generate, score, weigh, evolve, follow: the paper's figure 2, `cfg.steps` times."""
    cfg, first = run.cfg, int(state.step)
    look = {"desc": "evolution", "disable": not distributed.leads()}
    for step in tqdm(range(first, cfg.steps), initial=first, total=cfg.steps, **look):
        clock = Clock()
        batch = heldout.prepare(run, pairs.batch(run.data, step, cfg.data.pairs), seeds(cfg, step))
        tickets, clean = [], []
        for part in heldout.parts(run, batch):
            clean.append(heldout.sample(run, state.stable, batch, part))
            clock.lap("rollout", clean[-1])
            video = rollout.decode(run.frozen, clean[-1][:, batch.references :])
            clock.lap("decode", video)
            tickets.append(run.panel.submit(video, part))
        raw, scores, valid = heldout.collect(run, tickets)
        memory, fused = fuse_scores(run, memory, scores, valid, batch.pair_B)
        clock.lap("score")
        scored = to_device(run, batch, jnp.concatenate(clean), fused)
        with jax.transfer_guard("disallow"):  # a hidden copy between host and device is a bug
            state, terms = evolve.train_step(
                state,
                run.frozen.wan_params,
                scored,
                run.teacher,
                cfg=cfg,
                wan=run.frozen.wan,
                mesh=run.mesh,
                references=batch.references,
            )
        terms = check(step, jax.device_get(terms))
        clock.lap("train")
        if writer:
            writer.write(step, record(terms, raw, scores, fused, memory, clock.stop()))
        if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
            checkpoint.save(saved, step + 1, state, memory._asdict())
    return state


class Fused(NamedTuple):
    """One step's rewards."""

    reward_B: np.ndarray
    valid_B: np.ndarray
    normalised_BM: np.ndarray
    valid_BM: np.ndarray
    weights_M: np.ndarray


def priors(cfg: config.Reward) -> np.ndarray:
    """Return prior_M: the table's, or uniform; none for the preference where that is off."""
    prior_M, *_ = table.arrays()
    if cfg.uniform:
        prior_M = np.ones_like(prior_M)
    if not cfg.preference:
        prior_M[table.NAMES.index("vqscore")] = 0
    return prior_M


def fuse_scores(run: Run, memory: Memory, scores, valid, pair_B) -> tuple[Memory, Fused]:
    """Normalise within pairs, let the judge move the weights, and unify (paper, section 3.3)."""
    cfg = run.cfg.reward
    _, group_M, floor_M = table.arrays()
    history = [*memory.deviations, fuse.deviation(scores, pair_B).tolist()]
    floor_M = np.maximum(floor_M, cfg.floor * np.median(history, axis=0)).astype(np.float32)
    normalised = fuse.normalize(scores, valid, pair_B, cfg.clip, floor_M)
    plain_B, any_B = fuse.unify(normalised, valid, priors(cfg), group_M)
    attention = memory.attention
    if cfg.dynamic:
        answer_G, answered = run.panel.attention(pair_B, plain_B, any_B)
        if answered:
            keep = cfg.attention_memory if attention is not None else 0.0
            old = np.zeros(len(table.GROUPS)) if attention is None else np.array(attention)
            attention = (keep * old + (1 - keep) * answer_G).tolist()
    gamma = cfg.gamma if attention is not None else 0.0
    s_G = np.array(attention if attention is not None else [0.0] * len(table.GROUPS), np.float32)
    weights_M = fuse.final_weights(priors(cfg), group_M, s_G, cfg.tau, gamma)
    reward_B, valid_B = fuse.unify(normalised, valid, weights_M, group_M)
    fused = Fused(*map(np.asarray, (reward_B, valid_B, normalised, valid, weights_M)))
    return Memory(attention, history), fused


def to_device(run: Run, batch: heldout.Prepared, clean, fused: Fused) -> evolve.Scored:
    """Lay a step's videos and rewards out on the mesh for the update."""
    of_video = clean, batch.pair_B, fused.reward_B, fused.valid_B.astype(np.float32)
    of_pair = sharding.replicate((batch.text_PSE, batch.control_PTHWC), run.mesh)
    return evolve.Scored(*sharding.place_batch(of_video, run.mesh), *of_pair)


def seeds(cfg: config.Config, step: int) -> np.ndarray:
    """Return (P, N) integer seeds of a step's videos, its own for every run, step and video."""
    state = np.random.SeedSequence([cfg.seed, step])
    count = cfg.data.pairs, cfg.data.seeds
    return (state.generate_state(count[0] * count[1]) >> 1).astype(np.int32).reshape(count)


def check(step: int, terms: dict) -> dict[str, float]:
    """Return the terms as floats; raise where the loss is not finite."""
    terms = {name: float(x) for name, x in terms.items()}
    bad = [name for name, x in terms.items() if not np.isfinite(x)]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} is not finite. Start again from the last checkpoint "
            "with a smaller config.train.lr, or config.dtype=float32"
        )
    return terms


def record(terms, raw, scores, fused: Fused, memory: Memory, seconds) -> dict:
    """Return one step's line of metrics.jsonl."""
    mean = lambda x_BM: [
        x[v].mean() if v.any() else np.nan for x, v in zip(x_BM.T, ok_M, strict=True)
    ]
    ok_M = fused.valid_BM.T
    named = lambda x_BM: dict(zip(table.NAMES, mean(x_BM), strict=True))
    drift = ("evo_stb", "evo_init", "evo_t2v")
    valid_B = fused.valid_B
    return {
        "loss": {name: terms[name] for name in ("total", "policy", "t2v", "self")},
        "reward": {
            "unified": fused.reward_B[valid_B].mean() if valid_B.any() else np.nan,
            "raw": named(raw),
            "score": named(scores),
            "normalised": named(fused.normalised_BM),
        },
        "weights": dict(zip(table.NAMES, fused.weights_M, strict=True)),
        "attention": dict(zip(table.GROUPS, memory.attention or [np.nan] * 3, strict=True)),
        "drift": {name: terms[name] for name in drift},
        "grad_norm": terms["grad_norm"],
        "valid_fraction": fused.valid_BM.mean(),
        "seconds": seconds,
    }


class Clock:
    """Seconds per phase of one step."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str, wait_for=None) -> None:
        """Add the time since the last lap to `phase`, once `wait_for` has been computed."""
        jax.block_until_ready(wait_for)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now

    def stop(self) -> dict[str, float]:
        return self.seconds | {"total": time.perf_counter() - self.start}


@contextmanager
def open_run(cfg: config.Config, workdir: Path) -> Iterator[Run]:
    """Load the model and the data and start the scorers; stop these at the end."""
    mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.context)
    sharding.check_videos(cfg.data.pairs * cfg.data.seeds, mesh)
    cache = str(Path(cfg.data.cache).expanduser())
    with distributed.leader_first():
        data = pairs.open_pairs(cfg.data.source, cfg.data.dir, "evolution", cfg.seed, cache)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[cfg.dtype]
    frozen = rollout.load(cfg.model, dtype, remat=cfg.train.remat, mesh=mesh)
    rollout.check_size(frozen, cfg.video.frames, cfg.video.height, cfg.video.width)
    scale = cfg.lora.alpha / cfg.lora.rank
    wan = frozen.wan.clone(lora_scale=scale, attention=cfg.attention)
    frozen = frozen._replace(wan=wan)
    t2v = teacher.load(cfg.teacher, cfg.model, frozen, mesh)
    rows = text_rows(frozen, [*(row.prompt for row in data), cfg.rollout.negative_prompt], mesh)
    r = cfg.rollout
    solver = sharding.replicate(flow.schedule(r.scheduler, r.steps, r.shift), mesh)
    logs = distributed.own_folder(workdir / "logs")
    with Panel(cfg.reward, mesh, cfg.video.fps, logs) as panel:
        yield Run(cfg, workdir, mesh, frozen, t2v, data, panel, solver, rows)


def text_rows(frozen: rollout.Frozen, prompts: list[str], mesh: Mesh) -> int:
    """Return how many rows every prompt gets, so that no step compiles anew.

    On accelerators all that the model was made for: nothing to weigh, and fused attention needs no
    bias. On the CPU as many as the longest prompt has, with room for those of other data.
    """
    full = frozen.wan.config.text_len
    if mesh.devices.flat[0].platform != "cpu":
        return full
    longest = sorted(set(prompts), key=len)[-64:]
    longest = max(len(ids) for ids in frozen.tokenizer(longest)["input_ids"])
    return min(full, -(-(longest + 8) // 8) * 8)


def begin(run: Run, saved: checkpoint.Checkpoints) -> tuple[evolve.State, Memory]:
    """Return the newest checkpoint's state, or a fresh one."""
    cfg, wan = run.cfg, run.frozen.wan
    start = None
    if cfg.lora.init:  # files hold adapters of scale 1
        unscale = lambda path, x: x / wan.lora_scale if path[-1].key == "b" else x
        start = lora.load(cfg.lora.init, wan.config)
        start = jax.tree_util.tree_map_with_path(unscale, start)
    state = evolve.init(cfg, run.frozen.wan_params, wan.config, start)
    state = sharding.replicate(state, run.mesh)
    found = checkpoint.restore(saved, state)
    if found is None:
        return state, Memory(None, [])
    distributed.say(f"resuming after step {int(found[0].step)}")
    return found[0], Memory(**found[1])


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
    with open_run(cfg, workdir) as run:
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
