"""The folder that a run works in: tried before anything starts, and what it holds at a stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from evoid_jax import (
    checkpoint,
    config,
    distributed,
    export,
    fields,
    files,
    hub,
    metrics,
    mirrors,
    provenance,
    settings,
    triples,
)

# What a run writes, one file of each folder.
OUTPUTS = (
    settings.FILE,
    metrics.FILE,
    provenance.FILE,
    "summary.json",
    triples.FILE,
    "report.html",
    f"{checkpoint.FOLDER}/digests",
    "logs/judge.log",
    "proof/base_0000.npz",
    "samples/heldout.json",
    "watch/start.json",
    export.FILE,
)


def check_start(cfg: config.Config, workdir: Path) -> None:
    """Find in a moment what could else stop the run hours later; make the workdir.

    Raises:
      ValueError, OSError: a setting, a file it names, a missing package, or a workdir that holds
        another run.
    """
    fresh = not checkpoint.any_in(workdir / checkpoint.FOLDER)
    settings.check_start(cfg, fresh=fresh)
    mirrors.check(cfg.tensorboard, cfg.wandb)
    if distributed.leads():  # the others would meet its trials
        for name in OUTPUTS:
            files.check_writable(workdir / name)
    check_workdir(cfg, workdir)
    workdir.mkdir(parents=True, exist_ok=True)


def pinned(cfg: config.Config, workdir: Path) -> config.Config:
    """Return the settings with the names of models on the hub held to one commit.

    It is the one that the run began with, where the workdir holds a run, and today's otherwise. The
    same on every process.

    Raises: as `hub.folder`, with the setting's name.
    """
    old = settings.stored(workdir) if (workdir / settings.FILE).is_file() else {}
    chosen = None
    if distributed.leads():
        chosen = [
            _pin("config.model", cfg.model, old.get("model", "")),
            _pin("config.teacher", cfg.teacher, old.get("teacher", "")),
        ]
    model, teacher = distributed.exchange(chosen)[0]
    return dataclasses.replace(cfg, model=model, teacher=teacher)


def _pin(name: str, value: str, was: str) -> str:
    try:
        return hub.pinned(value, was)
    except (OSError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def check_workdir(cfg: config.Config, workdir: Path) -> None:
    """Raise a ValueError where a workdir holds a run that cannot go on with these settings."""
    metrics.read(workdir)  # both are added to
    provenance.read(workdir)
    if not (workdir / settings.FILE).is_file():
        if checkpoint.any_in(workdir / checkpoint.FOLDER):
            raise ValueError(
                f"{workdir} holds checkpoints and no {settings.FILE}, so that nothing tells of "
                "which settings they are; bring it back, or use another --workdir"
            )
        return
    differences = settings.resumable(settings.stored(workdir), cfg)
    if differences:
        raise ValueError(
            f"{workdir} holds another run: {'; '.join(differences)}. Use another --workdir, "
            "or give the settings as they were"
        )
    _check_weights(cfg, workdir)


def weights(cfg: config.Config) -> dict[str, str]:
    """Return a digest of each model of a run that is a folder: see `hub.sketch`."""
    places = {"model": cfg.model, "teacher": cfg.teacher}
    sketches = {name: hub.sketch(fields.locate(place)) for name, place in places.items() if place}
    return {name: sketch for name, sketch in sketches.items() if sketch}


def _check_weights(cfg: config.Config, workdir: Path) -> None:
    """Raise a ValueError where a run would go on from another model at the place of its own."""
    starts = (provenance.read(workdir) or {}).get("starts") or [{}]
    was = starts[-1].get("weights") or {}
    for name, sketch in weights(cfg).items():
        if was.get(name, sketch) != sketch:
            raise ValueError(
                f"config.{name}: the files in {getattr(cfg, name)} are not those that the run in "
                f"{workdir} was begun with; bring them back, or use another --workdir"
            )


def interrupted(workdir: Path, steps: int) -> str:
    """Say how far a run has come that was stopped: while it started, evolved or was proved."""
    done = max(checkpoint.steps_in(workdir / checkpoint.FOLDER), default=None)
    if done is None:
        return "stopped before anything was saved; the same command starts again"
    if done >= steps:
        return f"stopped in the proof; all {done} steps are saved, the same command proves them"
    return f"stopped; {done} of {steps} steps are saved, and the same command goes on from there"
