"""EvoID: evolve an identity-preserving video model from rewards.

    python -m evoid_jax.train --config=configs/evoid.py:tiny --workdir=runs/tiny

A run started again in the same workdir goes on from its newest checkpoint. The loop is `evolution`.
Many hosts run this program together, see distributed.py and launch/; the first one writes.

Letters: B videos, P pairs, M rewards, G groups, R reference frames, T H W C latents.
"""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from evoid_jax import (
    checkpoint,
    commandline,
    config,
    distributed,
    evolve,
    export,
    files,
    heldout,
    interruption,
    metrics,
    progress,
    provenance,
    run_lock,
    session,
    settings,
    sharding,
    sources,
    watch,
    work_folder,
)
from evoid_jax.data import pairs
from evoid_jax.interruption import Interrupted
from evoid_jax.models import lora, platform
from evoid_jax.report import folder, page, terminal, text
from evoid_jax.rewards import blend, fuse, table
from evoid_jax.rewards.blend import Fused, RewardMemory
from evoid_jax.rewards.table import ScoreTable
from evoid_jax.session import Run


def evolution(run: Run, state: evolve.State, memory: RewardMemory, saved, writer) -> evolve.State:
    """Generate, score, weigh, evolve, follow: the paper's figure 2, `cfg.steps` times."""
    reached = progress.Reached(saved, int(state.step), state, memory)
    with reached.kept():
        evolve_on(run, reached, writer)
    return reached.state


def evolve_on(run: Run, reached: progress.Reached, writer: metrics.Writer | None) -> None:
    """Make the steps that are left; `reached` follows."""
    cfg, first = run.cfg, reached.step
    watching, health = watch.Watching(run, first), progress.Health(cfg)
    watching.catch_up(reached.state, writer)
    steps, hidden = range(first, cfg.steps), not distributed.leads()
    for step in tqdm(steps, "evolution", initial=first, total=cfg.steps, disable=hidden):
        if watching.stop:
            break
        run_lock.check(run.workdir)
        clock = session.Clock()
        lesson, memory = gather(run, reached, clock)

        # The evolving transformer takes one step; the stable one follows it inside.
        setup = evolve.Setup(cfg, run.frozen.wan, run.mesh, lesson.batch.references)
        with interruption.shielded():  # the old state is given away, and the new one not there yet
            with jax.transfer_guard("disallow"):  # a hidden copy to or from the host is a bug
                state, terms = evolve.train_step(
                    reached.state, run.frozen.wan_params, lesson.scored, run.teacher, setup=setup
                )
            terms = jax.tree.map(float, jax.device_get(terms))
            terms["drift"] |= watch.guided_drift(run, state, lesson.scored, setup)
            clock.lap("train")
            seconds = clock.stop()
            if writer:
                writer.write(step, record(cfg, terms, lesson, memory, seconds))
            learned, why = bool(lesson.fused.valid_B.any()), lesson.batch.request.why
            sound = health.after(reached, terms, learned, why)
            reached.follow(step + 1, state, memory, sound)
            if progress.due(cfg, step + 1, seconds["total"]):
                reached.save()
        health.check_idle()
        watching.after(reached.state, terms, writer)
    if watching.stop:
        reached.save()
        distributed.say(f"watch: stopped after step {reached.step}, {watching.stop}")


class Lesson(NamedTuple):
    """A step's videos and their rewards, ready to be learned from, and what is recorded of them."""

    batch: session.Prepared
    scored: evolve.Scored
    scores: ScoreTable
    fused: Fused
    judge: dict[str, float | None] | None  # what it took since the last step's line


def gather(
    run: Run, reached: progress.Reached, clock: session.Clock
) -> tuple[Lesson, RewardMemory]:
    """Generate the videos of the next step, score them, and weigh the scores."""
    cfg, step = run.cfg, reached.step
    drawn = pairs.batch(run.data, step, cfg.data.pairs)
    batch = session.prepare(run, drawn, session.seeds(cfg, step))

    # The stable transformer generates; what is decoded is scored while the rest is generated.
    tickets, made = [], []
    for part in sources.videos(run, reached.state.stable, batch, step, clock):
        tickets.append(run.panel.submit(part.video_BFHWC, batch.request, part.rows))
        made.append(part._replace(video_BFHWC=None))  # pixels are large, and only scored
        interruption.point()
    scores = run.panel.collect(tickets, batch.request)

    # Many scores become one reward in [0, 1]; the judge moves the weights.
    judge = partial(run.panel.attention, batch.request, batch.pair_B)
    memory, fused = blend.blend(cfg.reward, reached.memory, scores, batch.pair_B, judge)
    usage = run.panel.judge_usage()
    clock.lap("score")
    return Lesson(batch, sources.scored(run, batch, made, fused), scores, fused, usage), memory


def record(
    cfg: config.Config, terms: dict, lesson: Lesson, memory: RewardMemory, seconds: dict[str, float]
) -> dict:
    """Return one step's line of metrics.jsonl; what was not had is NaN, or None.

    A reward's spread is that of its scores within a pair, saturated its share of scores at 0 or 1.

    terms: as `evolve.train_step` returns them; their names are the record's.
    """
    scores, fused, why = lesson.scores, lesson.fused, lesson.batch.request.why
    names = table.names(cfg.reward.table)
    counts_M = blend.priors(cfg.reward) > 0
    missing = dict(zip(names, 1 - scores.valid_BM.mean(axis=0), strict=True))
    missing = {name: missing[name] for name, counts in zip(names, counts_M, strict=True) if counts}

    def means(value_BM: np.ndarray) -> dict[str, float]:
        columns = zip(names, value_BM.T, scores.valid_BM.T, strict=True)
        return {name: mean(value_B, valid_B) for name, value_B, valid_B in columns}

    saturated_M = fuse.saturation(np.where(scores.valid_BM, scores.score_BM, np.nan))
    attention = memory.attention or [np.nan] * len(config.GROUPS)
    return terms | {
        "reward": {
            "unified": mean(fused.reward_B, fused.valid_B),
            "raw": means(scores.raw_BM),
            "score": means(scores.score_BM),
            "normalised": means(fused.normalised_BM),
            "spread": dict(zip(names, memory.deviations[-1], strict=True)),
            "saturated": dict(zip(names, saturated_M, strict=True)),
        },
        "weights": dict(zip(names, fused.weights_M, strict=True)),
        "attention": dict(zip(config.GROUPS, attention, strict=True)),
        "valid_fraction": scores.valid_BM[:, counts_M].mean(),
        "missing": missing,
        # A list: words are no names of curves.
        "reasons": [{"scores": count, "reason": reason} for reason, count in why.items()],
        "judge": lesson.judge or {},
        "seconds": seconds,
    }


def mean(value_B: np.ndarray, valid_B: np.ndarray) -> float:
    """Return the mean of the valid values, NaN where there are none."""
    return float(value_B[valid_B].mean()) if valid_B.any() else float("nan")


# --- a run, from start to end


def train(cfg: config.Config, workdir: Path) -> Path:
    """Run everything: evolution, export, held-out proof, report. Returns the report's path.

    Raises:
      ValueError, OSError, FloatingPointError: the message tells the user what to do.
      Interrupted: a signal came; its text says what is saved, its code is the process's.
    """
    cfg = config.checked(cfg)
    if cfg.deterministic:
        platform.check_deterministic()
    work_folder.check_start(cfg, workdir)
    began = provenance.now()
    with run_lock.held(workdir), interruption.listening(cfg.grace):
        try:
            return run_whole(work_folder.pinned(cfg, workdir), workdir)
        except KeyboardInterrupt as stop:
            # A full disk must not take the place of what is said here, and of the exit code.
            with contextlib.suppress(OSError, ValueError):
                if distributed.leads():
                    provenance.finish(workdir, since=began)
            words = work_folder.interrupted(workdir, cfg.steps)
            raise Interrupted(words, *interruption.told(stop)) from None


def run_whole(cfg: config.Config, workdir: Path) -> Path:
    """Do what `train` does, with a folder that is this run's alone."""
    began = time.perf_counter()
    with session.open_run(cfg, workdir) as run:
        state, earlier = evolved(run)
        state = watch.chosen(run, state)
        if distributed.leads():
            export.write(workdir / export.FILE, state.evolving, cfg, step=int(state.step))
        heldout.prove(run, state, began - earlier)
    run_lock.check(workdir)
    if distributed.leads():
        provenance.finish(workdir)
        page.write(workdir)
    return workdir / page.FILE


def evolved(run: Run) -> tuple[evolve.State, float]:
    """Go on from the newest checkpoint to the last step.

    Returns:
      The state, and the seconds that earlier starts took for the steps before the checkpoint.
    """
    cfg = run.cfg
    saved = checkpoint.open_folder(run.workdir / checkpoint.FOLDER, cfg.keep, cfg.keep_every)
    try:
        state, memory = begin(run, saved)
        start = int(state.step)
        with open_log(run, start) as writer:
            before = metrics.read(run.workdir)[:start]
            state = evolution(run, state, memory, saved, writer)
    finally:
        with interruption.shielded():
            checkpoint.close(saved)  # waits for what is being written
    return state, sum(line["seconds"]["total"] for line in before)


def begin(run: Run, saved: checkpoint.Checkpoints) -> tuple[evolve.State, RewardMemory]:
    """Return the newest checkpoint's state, or a fresh one."""
    cfg, wan = run.cfg, run.frozen.wan
    fresh = evolve.init(cfg, run.frozen.wan_params, wan.config)
    restored = checkpoint.restore(saved, sharding.replicate(fresh, run.mesh))
    if restored is not None:
        checkpoint.set_aside(saved, after=restored.step)
        distributed.say(f"resuming after step {restored.step}")
        return placed(run, restored.state), RewardMemory(**restored.host)
    if cfg.lora.init:
        start = lora.start(cfg.lora.init, fresh.evolving, wan.config, scale=cfg.lora.scale)
        fresh = evolve.init(cfg, run.frozen.wan_params, wan.config, start)
    return placed(run, fresh), blend.FORGOTTEN


def placed(run: Run, state: evolve.State) -> evolve.State:
    """Put a state where the update expects it."""
    return sharding.place(state, evolve.placement(state, run.mesh))


@contextmanager
def open_log(run: Run, start: int) -> Iterator[metrics.Writer | None]:
    """Write config.json and run.json, and open the record from step `start` on.

    Yields None where another process writes.
    """
    if not distributed.leads():
        yield None
        return
    cfg, reward = run.cfg, run.cfg.reward
    metrics.write_text(run.workdir / settings.FILE, config.dumps(cfg))
    how = provenance.collect(
        sys.argv,
        run.mesh.devices.flat,
        step=start,
        processes=jax.process_count(),
        table=reward.table,
        sidecars=zip(reward.sidecars, run.panel.infos, strict=True),
        judge_model=reward.judge_model if reward.judge else "",
        judge_address=reward.judge,
        weights=work_folder.weights(cfg),
        data=pairs.Splits(run.data, run.validation, run.heldout).digest(),
    )
    provenance.write(run.workdir, how)
    with metrics.Writer(
        run.workdir,
        start,
        cfg.steps,
        tensorboard=cfg.tensorboard,
        wandb=cfg.wandb,
        config=config.to_dict(cfg),
    ) as writer:
        yield writer


def quiet() -> None:
    """Keep libraries' routine messages off the terminal, and compiled programs for the next run."""
    for name in ("httpx", "httpx2", "openai"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "2")  # libtpu's own notes
    cache = Path("~/.cache/evoid_jax/compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet()
    cfg = config.from_dict(flags.FLAGS.config.to_dict())
    if cfg.deterministic:
        platform.make_deterministic()
    workdir = files.user_path(flags.FLAGS.workdir)
    with distributed.together(distributed.from_flags(), flags.FLAGS.silent):
        try:
            report = train(cfg, workdir)
        except Interrupted as stop:
            interruption.insist(stop)
            raise
        if distributed.leads():
            print(terminal.terminal_summary(folder.load(workdir, videos=0)))
            print(text.whole(f"report: {report.resolve()}"))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run folder; resumed when it exists.", required=True)
    distributed.define_flags()
    commandline.run(main, settings=config.Config, expected=distributed.EXPECTED)
