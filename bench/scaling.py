"""Compile the train step for 1 to 256 devices: memory, arithmetic and traffic of each.

    python bench/scaling.py [--preset=vace_14b] [--chip=h100] [--most=256]

Strong scaling of one step, from compilation alone (nothing runs, no time is known; see
evoid_jax/plan for the compiler that it needs). Up to as many devices as a step has videos, each
holds a piece of the model and takes its own videos; beyond, devices share a video's tokens. Prints
for each count the mesh, GiB and PFLOP of one device, the GiB it exchanges, and all devices'
arithmetic against one device's: 1.00 is work shared without loss.
"""

import argparse
import runpy
from pathlib import Path

from evoid_jax import config
from evoid_jax.models import platform
from evoid_jax.plan import __main__ as plan
from evoid_jax.plan import chips, count, flops, programs

CONFIGS = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "evoid.py"))


def layout(devices: int, videos: int) -> dict[str, int]:
    """Return the mesh of a device count: the model in pieces first, then the tokens."""
    return {"data": 1, "fsdp": min(devices, videos), "context": max(1, devices // videos)}


def row(cfg: config.Config, target: chips.Target) -> dict[str, float]:
    """Return GiB and PFLOP of one device, and the GiB that it exchanges."""
    at = plan.setting(cfg, target)
    with platform.compiling_for(target.chip.platform):
        traced = programs.train_step(at)
        compiled = traced.lower().compile()
    return {
        "gib": count.memory_gib(compiled),
        "pflop": count.flops(traced) / flops.PETA / target.count,
        "exchanged": sum(count.collective_gib(compiled.as_text()).values()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="vace_14b", choices=list(CONFIGS["PRESETS"]))
    parser.add_argument("--chip", default="h100", choices=["h100", "h200"])
    parser.add_argument("--most", type=int, default=256)
    args = parser.parse_args()
    preset = CONFIGS["get_config"](args.preset)
    preset.train.remat = "full"  # what one device alone has room for
    videos, devices, whole = preset.data.pairs * preset.data.seeds, 1, None
    chips.quiet_host()
    print("devices  data x fsdp x context  GiB each  PFLOP each  GiB exchanged each  work / one's")
    while devices <= args.most:
        preset.mesh.update(layout(devices, videos))
        target = chips.parse(f"{args.chip}:{devices}")
        one = row(config.from_dict(preset.to_dict()), target)
        whole = whole or one["pflop"]  # the first count is one device, which does everything
        mesh = " x ".join(str(n) for n in layout(devices, videos).values())
        print(
            f"{devices:7}{mesh:>23}{one['gib']:10.1f}{one['pflop']:12.2f}"
            f"{one['exchanged']:20.1f}{one['pflop'] * devices / whole:14.3f}",
            flush=True,
        )
        devices *= 2


if __name__ == "__main__":
    main()
