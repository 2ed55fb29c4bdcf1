"""Compile a run for chips that are not here: does it fit, what does it compute, how long at best?

    python -m evoid_jax.plan --config=configs/evoid.py:vace_14b --target=h100:8

The real compilers compile the real programs; memory, arithmetic and traffic are read from the
result. Nothing runs, so no time is measured: hours are what arithmetic takes at an assumed share of
the chips' peak (MFU).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import jax
from absl import app, flags, logging

from evoid_jax import commandline, config, sharding
from evoid_jax.models import platform
from evoid_jax.plan import chips, count, flops, programs, scoring

USABLE = 0.95  # of a device's memory: the rest is the runtime's and fragments
MFU = (0.3, 0.4, 0.5)
LIKELY = 0.4  # of these, where one number is wanted
TRACES = {
    "train_step": programs.train_step,
    "rollout_step": programs.rollout_step,
    "vae_decode": programs.vae_decode,
}


def setting(cfg: config.Config, target: chips.Target) -> programs.Setting:
    """Lay a config out on a target's devices."""
    mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.context, chips.devices(target))
    at = programs.Setting(cfg, programs.models(cfg.model), mesh)
    sharding.check_videos(at.videos, mesh)
    return at


def work(at: programs.Setting) -> dict[str, float | None]:
    """Return the FLOPs that each program needs, by formula; the VAE has none but its own count."""
    c, cfg = at.models.wan, at.cfg
    sizes = flops.sizes(c, at.latent_THWC[:3], at.references)
    once = flops.objective(c, cfg, sizes)["model"]
    return {
        # K times of every video make one update
        "train_step": at.videos * cfg.train.timesteps * once,
        "rollout_step": at.together * flops.solver_step(c, cfg, sizes),
        "vae_decode": None,
    }


def measure(trace: Callable, at: programs.Setting, needed: float | None, repeats: int) -> dict:
    """Compile one program and read it.

    Args:
      repeats: how many units of `needed` the program does, such as solver steps.

    Returns:
      GiB are of one device, PFLOP of all; what only a whole program tells is None where the
      compiler gave up because it needs too much memory.
    """
    traced = trace(at)
    executed = count.flops(traced) / repeats
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
        memory = count.memory_gib(compiled)
        traffic = round(sum(count.collective_gib(compiled.as_text()).values()) / repeats, 3)
    except jax.errors.JaxRuntimeError as error:
        # TPU compilers refuse what does not fit, and say how much they would have needed.
        memory, traffic = count.asked_gib(str(error)), None
        if memory is None:
            raise
    return {
        "hbm_gib": round(memory, 2),
        "compile_s": round(time.perf_counter() - began, 1),
        "model_pflop": (executed if needed is None else needed) / flops.PETA,
        "executed_pflop": executed / flops.PETA,
        "collective_gib": traffic,
    }


def resident_gib(at: programs.Setting) -> dict[str, float]:
    """Return what lies on the fullest device beside each program's own arguments."""
    params, gib = programs.base(at), programs.local_gib
    state = programs.state(at, params)
    text_encoder = programs.text_encoder_gib(at)
    decoder = gib(programs.vae_params(at))
    # The rollout's own arguments hold the stable adapter; evolving and optimizer stay beside it.
    others = gib(state) - gib(state.stable)
    return {
        "train_step": text_encoder + decoder,
        "rollout_step": text_encoder + decoder + others,
        "vae_decode": text_encoder + gib(params) + gib(state),
    }


def plan(cfg: config.Config, target: chips.Target) -> dict:
    """Compile all programs of a run for a target; returns the JSON object of `--json`.

    Raises:
      ValueError: the config does not fit the devices.
      RuntimeError: the target's compiler is missing or refuses a program.
    """
    at = setting(cfg, target)
    needed, beside = work(at), resident_gib(at)
    planned: dict = {"target": str(target), "devices": target.count, "mesh": dict(at.mesh.shape)}
    planned |= {"videos_in_flight": at.together, "memory_gib": round(target.chip.hbm_gib, 1)}
    with platform.compiling_for(target.chip.platform):
        for name, trace in TRACES.items():
            # The rollout is one program of all solver steps; its numbers are told for one.
            repeats = cfg.rollout.steps if name == "rollout_step" else 1
            planned[name] = measure(trace, at, needed[name], repeats)
            planned[name]["resident_gib"] = round(beside[name], 2)
            print(f"{name}: {json.dumps(planned[name])}", file=sys.stderr)
    usable = USABLE * target.chip.hbm_gib
    planned["fits"] = all(
        planned[name]["hbm_gib"] + planned[name]["resident_gib"] <= usable for name in TRACES
    )
    planned["run_model_pflop"] = run_pflop(at, planned)
    planned["hours_at_mfu"] = {
        str(mfu): round(hours(planned["run_model_pflop"], target, mfu), 1) for mfu in MFU
    }
    planned["reward_preset"] = cfg.reward.preset
    planned["scoring"] = scoring.plan(cfg, target, step(at, planned), LIKELY)
    return planned


def hours(pflop: float, target: chips.Target, mfu: float) -> float:
    """Return how long the arithmetic takes at a share `mfu` of all chips' peak."""
    peak = target.count * target.chip.peak_flops / flops.PETA
    return pflop / (mfu * peak) / 3600


def step(at: programs.Setting, planned: dict) -> scoring.Step:
    """Return what a step does, without scoring."""
    parts = at.videos // at.together
    # one part of a step's videos, as many as are generated at once
    part = at.cfg.rollout.steps * planned["rollout_step"]["model_pflop"]
    part += planned["vae_decode"]["model_pflop"]
    update = planned["train_step"]["model_pflop"]
    return scoring.Step(generation=parts * part, update=update, parts=parts)


def run_pflop(at: programs.Setting, planned: dict) -> float:
    """Return what a whole run needs: every step generates, decodes and trains."""
    once = step(at, planned)
    return at.cfg.steps * (once.update + once.generation)


def table(planned: dict) -> str:
    """Format a plan for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned["mesh"].items())
    lines = [
        f"{planned['target']}: {planned['devices']} devices of {planned['memory_gib']} GiB, "
        f"{mesh}; {planned['videos_in_flight']} videos generated at once",
        "",
        "program       own GiB  beside it  needs PFLOP  does PFLOP  exchanged GiB  compiled in",
        *(row(name, planned[name]) for name in TRACES),
    ]
    takes = ", ".join(f"{h} h at {float(mfu):.0%}" for mfu, h in planned["hours_at_mfu"].items())
    exaflop = planned["run_model_pflop"] / 1000
    lines += [
        "",
        "fits" if planned["fits"] else f"does not fit {USABLE:.0%} of the memory",
        f"the run ({exaflop:.1f} EFLOP) takes {takes} of the peak; assumed, not measured",
        *scoring.table(planned["scoring"], planned["reward_preset"], LIKELY),
    ]
    return "\n".join(lines)


def row(name: str, program: dict) -> str:
    """Format one program of a plan; what the compiler could not tell is a dash."""
    traffic = program["collective_gib"]
    exchanged = "-" if traffic is None else f"{traffic:.2f}"
    return (
        f"{name:12}{program['hbm_gib']:9.1f}{program['resident_gib']:11.1f}"
        f"{program['model_pflop']:13.2f}{program['executed_pflop']:12.2f}{exchanged:>15}"
        f"{program['compile_s']:11.0f} s"
    )


def configure(cfg: config.Config, asked) -> config.Config:
    """Apply the command line's sizes; the mesh is the config's, as `train` makes it.

    asked: has a value or None for each of frames, height, width, videos_per_device, context, fsdp.
    """
    values = config.to_dict(cfg)
    for size in ("frames", "height", "width"):
        if getattr(asked, size) is not None:
            values["video"][size] = getattr(asked, size)
    if asked.fsdp is not None:
        values["mesh"] |= {"data": -1, "fsdp": asked.fsdp}
    if asked.context is not None:
        values["mesh"]["context"] = asked.context
    if asked.videos_per_device is not None:
        values["train"]["videos_per_device"] = asked.videos_per_device
        values["rollout"]["videos_per_device"] = asked.videos_per_device
    return config.from_dict(values)


@contextmanager
def stdout_kept():
    """Give the real stdout; whatever libraries print meanwhile goes to stderr.

    Compilers write to file descriptor 1 from C++, which `contextlib.redirect_stdout` does not see.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    asked = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    with stdout_kept() as out:
        target = chips.parse(asked.target)
        cfg = configure(config.from_dict(asked.config.to_dict()), asked)
        chips.quiet_host()  # before JAX starts its first backend
        planned = plan(cfg, target)
        out.write((json.dumps(planned) if asked.json else table(planned)) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("target", None, f"The chips: {chips.FORM}.", required=True)
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")
    for size in ("frames", "height", "width"):
        flags.DEFINE_integer(size, None, f"Instead of config.video.{size}.")
    flags.DEFINE_integer("videos_per_device", None, "At once, in training and generation.")
    flags.DEFINE_integer("context", None, "Devices that share a video's tokens.")
    flags.DEFINE_integer("fsdp", None, "Instead of config.mesh.fsdp; data takes the rest.")
    commandline.run(main, settings=config.Config, expected=(ValueError, RuntimeError, OSError))
