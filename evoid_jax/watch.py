"""The watch: every some steps a small held-out comparison, and the adapter as it then was.

It is the proof in small, on validation pairs and at the proof's settings, monitors included: what
the run started from is scored once, the adapter of the moment each time, with the same noise. A
run's folder keeps all of it:

    watch/start.json           scores of what the run started from
    watch/step_000020.json     the comparison after step 20, see `proof.summary`, and its drift
    watch/step_000020.safetensors  the adapter, as diffusers loads it
    watch/start_00.mp4, step_000020_00.mp4  the first videos
    watch/pairs.json, pair_00_reference.png  their prompts, people and photos
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from evoid_jax import (
    arms,
    config,
    distributed,
    evolve,
    export,
    files,
    media,
    metrics,
    proof,
    sharding,
    stopping,
)
from evoid_jax.arms import Arm, Trial
from evoid_jax.data import pairs
from evoid_jax.models import lora
from evoid_jax.proof_parts import COLUMNS
from evoid_jax.rewards import blend, table
from evoid_jax.session import Run

FOLDER = "watch"  # in a run's folder
SHOWN = 4  # videos that are kept of every comparison
SEED = 2**21  # the seeds start here, the same for every run, and others than the proof's


def due(cfg: config.Config, step: int) -> bool:
    """Say whether a run is compared after so many steps."""
    return cfg.watch.every > 0 and step % cfg.watch.every == 0


class Watching:
    """The comparisons of a run so far, and whether they say that it should stop.

    Args:
      step: how many steps are done; comparisons of later ones, of a start before, do not count.

    Attributes:
      stop: why the run should stop, or "".
    """

    def __init__(self, run: Run, step: int):
        self._run = run
        self._seen = read(run.workdir, before=step)
        # Only where nothing has happened since: a limit may have been raised to go on.
        current = bool(self._seen) and self._seen[-1]["steps"] == step
        self.stop = self._reason() if current else ""

    def catch_up(self, state: evolve.State, writer: metrics.Writer | None) -> None:
        """Make the comparison that a start before was stopped in, or before."""
        step = int(state.step)
        made = bool(self._seen) and self._seen[-1]["steps"] == step
        if step and due(self._run.cfg, step) and not made:
            *_, last = metrics.read(self._run.workdir)
            self.after(state, last, writer)

    def after(self, state: evolve.State, terms: dict, writer: metrics.Writer | None) -> None:
        """Compare where it is due; `terms` are those of the step that was just made."""
        step = int(state.step)
        if not due(self._run.cfg, step):
            return
        summary, videos = look(self._run, state, terms["drift"]["evo_init"])
        self._seen.append(metrics.plain(summary))
        self.stop = self._reason()
        if writer:
            writer.compare(step, summary, videos, self._warn())

    def _reason(self) -> str:
        cfg = self._run.cfg
        return stopping.reason(cfg.watch, self._seen, cfg.reward.stop_on_hacking)

    def _warn(self) -> str:
        return self.stop or stopping.warning(self._seen[-1])


def guided_drift(
    run: Run, state: evolve.State, scored: evolve.Scored, setup: evolve.Setup
) -> dict[str, float]:
    """Return the drift of what guidance samples with, where a comparison is due and it is used."""
    if not (run.cfg.guidance.used and due(run.cfg, int(state.step))):
        return {}
    drift = evolve.guided_drift(state, run.frozen.wan_params, scored, setup=setup)
    return {name: float(value) for name, value in jax.device_get(drift).items()}


def chosen(run: Run, state: evolve.State) -> evolve.State:
    """Return the state whose evolving adapter is exported and proved; see config.watch.export."""
    if run.cfg.watch.export == "last":
        return state
    top = None
    if distributed.leads():  # the others may be here while it still writes the last comparison
        top = stopping.best(read(run.workdir, before=int(state.step)))
    steps = distributed.exchange(top and top["steps"])[0]
    if steps in (None, int(state.step)):
        return state
    distributed.say(f"watch: the best adapter is that of step {steps}")
    file = sound_adapter(run.workdir, _read(_file(run.workdir, steps)))
    like, base = jax.device_get(state.evolving), run.frozen.wan.config
    tree = lora.start(file, like, base, scale=run.cfg.lora.scale)
    tree, step = sharding.replicate((tree, np.int32(steps)), run.mesh)
    return state._replace(evolving=tree, step=step)


def look(run: Run, state: evolve.State, drift: float) -> tuple[dict, list[np.ndarray]]:
    """Compare the evolving transformer with what the run started from, and keep all of it.

    Args:
      drift: of the evolving transformer from its start, as the last step measured it.

    Returns:
      The comparison, as it is kept, and the first videos, uint8 FHWC. The same on every process.
    """
    began, step = time.perf_counter(), int(state.step)
    trial = _trial(run)
    base, evolved = arms.level(_start(run, trial, state), arms.play(run, trial, state.evolving))
    summary = proof.summary(
        table.names(run.cfg.reward.table),
        blend.proof_priors(run.cfg.reward),
        base.score_BM,
        evolved.score_BM,
        cluster_B=np.repeat([pair.identity for pair in trial.chosen], trial.each),
        monitor_base=base.monitor,
        monitor_evolved=evolved.monitor,
        steps=step,
        seconds={"watch": time.perf_counter() - began},
        heldout=run.validation.kind,
        rewarded=blend.rewarded(run.cfg.reward),
    )
    summary["drift"], summary["scorers"] = drift, _scorers(run)
    summary["judge"] = run.panel.judge_usage() or {}  # taken here, or the next step would count it
    if distributed.leads():
        _keep_videos(run, f"step_{step:06d}", evolved.shown)
        export.write(adapter(run.workdir, step), state.evolving, run.cfg, step)
        summary["adapter_sha256"] = files.sha256(adapter(run.workdir, step))
        file = _file(run.workdir, step)
        proof.write_json(file, files.sealed(metrics.plain(summary)))  # last: all of it is there
    return summary, evolved.shown


def read(workdir: Path, before: int | None = None) -> list[dict]:
    """Return a run's comparisons in the order of their steps; none where there is no folder.

    Args:
      before: leave out those after so many steps, which a run may have to make again.

    Raises:
      ValueError: a file is not what `look` wrote.
    """
    summaries = [_read(file) for file in sorted((workdir / FOLDER).glob("step_*.json"))]
    return [s for s in summaries if before is None or s["steps"] <= before]


def _read(file: Path) -> dict:
    try:
        return files.unsealed(file, files.read_json(file))
    except ValueError as error:
        raise ValueError(f"{error}; remove it to go on without that comparison") from None


def adapter(workdir: Path, step: int) -> Path:
    """Return the file of the adapter as it was after so many steps."""
    return workdir / FOLDER / f"step_{step:06d}.safetensors"


def sound_adapter(workdir: Path, summary: Mapping) -> Path:
    """Return the file of the adapter that a comparison was of.

    Raises:
      ValueError, OSError: it is gone, or not as it was written.
    """
    file = adapter(workdir, summary["steps"])
    if files.sha256(files.require_file(file)) != summary["adapter_sha256"]:
        raise ValueError(
            f"{file} is not as it was written: its digest is another than that of the comparison "
            "beside it; remove both to go on without them"
        )
    return file


def _file(workdir: Path, step: int) -> Path:
    return workdir / FOLDER / f"step_{step:06d}.json"


def _trial(run: Run) -> Trial:
    cfg, data = run.cfg.watch, run.validation
    rows = pairs.spread(data.identities, cfg.identities)
    chosen = [data.with_others(row) for row in rows]
    return Trial(chosen, cfg.seeds, seed=SEED, shown=SHOWN, name="watch")


def _start(run: Run, trial: Trial, state: evolve.State) -> Arm:
    """Return the scores of what the run started from: kept ones, or made now."""
    file = run.workdir / FOLDER / "start.json"
    cfg = run.cfg
    made_with = [cfg.watch.identities, cfg.watch.seeds, cfg.guidance.proof, _scorers(run)]
    kept = kept_start(file)
    # All processes must do the same.
    if all(distributed.exchange(kept.get("made_with") == made_with)):
        floats = lambda values: np.array(values, float)  # null is NaN
        return Arm(
            shown=[],
            score_BM=floats(kept["score_BM"]),
            valid_BM=np.array(kept["valid_BM"], bool),
            blank_BM=np.array(kept["blank_BM"], bool),
            monitor={name: floats(values) for name, values in kept["monitor"].items()},
        )
    arm = arms.play(run, trial, arms.start(state.initial, state.evolving))
    if distributed.leads():
        _keep_videos(run, "start", arm.shown)
        _keep_pairs(run, trial)
    if distributed.leads() and arm.whole:
        kept = {name: getattr(arm, name) for name in (*COLUMNS, "monitor")}
        kept = metrics.plain({"made_with": made_with} | kept)
        proof.write_json(file, files.sealed(kept))
    return arm


def _scorers(run: Run) -> str:
    """Return a digest of who scores: only what the same ones scored may be compared. Collective."""
    reward = run.cfg.reward
    judge = [reward.judge_model, reward.judge_extra] if reward.judge else []
    own = files.digest([run.panel.scorers(), judge])[:16]
    return distributed.exchange(own)[0]  # what is kept is the first process's


def kept_start(file: Path) -> dict:
    """Return the kept scores of the start, nothing where there are none that are whole."""
    try:
        return files.unsealed(file, files.read_json(file)) if file.is_file() else {}
    except ValueError as error:
        logging.warning("%s; the start is scored again", error)
        return {}


def _keep_videos(run: Run, name: str, shown: list[np.ndarray]) -> None:
    folder = run.workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for k, video_FHWC in enumerate(shown):
        media.write(folder / f"{name}_{k:02d}.mp4", video_FHWC, run.cfg.video.fps)


def _keep_pairs(run: Run, trial: Trial) -> None:
    """Say what the kept videos show: the prompt, the person, the seed, and the photo beside it."""
    folder, entries = run.workdir / FOLDER, []
    for k, pair in enumerate(trial.chosen[: trial.shown]):
        media.write_image(folder / f"pair_{k:02d}_reference.png", pair.images[0])
        seed = int(arms.seeds(trial, k, 1)[0, 0])
        entries.append({"k": k, "prompt": pair.prompt, "identity": pair.identity, "seed": seed})
    proof.write_json(folder / "pairs.json", entries)
