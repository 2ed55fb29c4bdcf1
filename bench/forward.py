"""Time one VACE forward against diffusers: same weights, same inputs, one process, in turn.

    python bench/forward.py [--model=evoid_jax/assets/tiny] [--videos=8] [--runs=9]

Both sides must agree (relative L2 below 1e-5) before anything is timed. Prints medians in
milliseconds and the ratio diffusers / ours, the median over pairs of neighbouring runs.
"""

import argparse

import jax
import numpy as np
import timing
import torch
from diffusers import WanVACETransformer3DModel

from evoid_jax import rollout
from evoid_jax.models import wan


def inputs(config, videos: int):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    latents = draw(videos, 4, 8, 8, config.in_channels)
    control = draw(videos, 4, 8, 8, config.vace_in_channels)
    return latents, rng.uniform(0, 1000, videos).astype(np.float32), control


def ours(frozen, x, t, control, text):
    def forward(x, t, text, control):
        hints = wan.hints(frozen.wan, frozen.wan_params, None, x, t, text, control)
        return wan.velocity(frozen.wan, frozen.wan_params, None, x, t, text, hints)

    run = jax.jit(forward)
    args = [jax.device_put(a) for a in (x, t, text, control)]
    return lambda: np.asarray(run(*args))


def theirs(folder, x, t, control, text):
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer").float()
    to = lambda a: torch.from_numpy(np.moveaxis(a, -1, 1).copy())
    args = to(x), torch.from_numpy(t), torch.from_numpy(text)
    given = {"control_hidden_states": to(control), "return_dict": False}

    @torch.inference_mode()
    def run():
        return np.moveaxis(model.eval()(*args, **given)[0].numpy(), 1, -1)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    frozen = rollout.load(args.model)
    x, t, control = inputs(frozen.wan.config, args.videos)
    shape = args.videos, frozen.wan.config.text_len, frozen.wan.config.text_dim
    text = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    a, b = ours(frozen, x, t, control, text), theirs(args.model, x, t, control, text)
    error = np.linalg.norm(a() - b()) / np.linalg.norm(b())
    if error > 1e-5:
        raise SystemExit(f"the two sides differ by {error:.1e}, nothing to compare")
    our, their, ratio = timing.in_turn(a, b, args.runs)
    print(f"relative L2 {error:.1e}; {args.videos} videos, {shape[1]} text rows, {args.runs} runs")
    print(f"ours {1e3 * our:.1f} ms, diffusers {1e3 * their:.1f} ms")
    print(f"diffusers / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
