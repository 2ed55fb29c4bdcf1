"""Time a step's rollout against diffusers' pipeline: same weights, same noise, the same videos.

    python bench/rollout.py [--model=evoid_jax/assets/tiny] [--seeds=8] [--steps=20] [--runs=3]

One face and one prompt, several seeds, with guidance. Ours goes from prompt and photo to pixels in
one batch, as `train` does; diffusers' pipeline takes one reference set a call, so it is called once
a seed, as one would. Each side has a process of its own. Latents must agree to 1e-3 and frames to
2/255 before anything is timed. Prints medians in seconds and the ratio diffusers / ours, the median
over pairs of neighbours.
"""

import argparse
from functools import partial
from typing import NamedTuple

import numpy as np
import timing
import torch
from diffusers import WanVACEPipeline
from PIL import Image

from evoid_jax import flow, generate, rollout
from evoid_jax.models.scheduler import solver_of
from evoid_jax.world import portraits

GUIDANCE, NEGATIVE = 5.0, ""


class Start(NamedTuple):
    """What both sides start from."""

    frames: int
    height: int
    width: int
    photo_HWC: np.ndarray
    prompt: str
    noise_BTHWC: np.ndarray


class Ours:
    """Prompt and photo to pixels, all seeds at once."""

    def __init__(self, args):
        scene = portraits.scene(portraits.SPLITS["heldout"][0], 0)
        sizes = generate.settings(args.model, dict.fromkeys(generate.DEFAULTS))
        frames, height, width = sizes["frames"], sizes["height"], sizes["width"]
        self.frozen = rollout.load(args.model, remat="none")
        shape = rollout.latent_shape(self.frozen, frames, height, width, references=1)
        _, shift = solver_of(self.frozen.scheduler)
        self.table = flow.schedule("unipc", args.steps, shift)
        self.start = Start(
            frames=frames,
            height=height,
            width=width,
            photo_HWC=portraits.reference(scene.identity),
            prompt=portraits.prompt(scene),
            noise_BTHWC=rollout.noise(np.arange(args.seeds, dtype=np.int32), shape),
        )

    def start_values(self) -> Start:
        """Return what the other side starts from, as NumPy arrays."""
        return self.start._replace(noise_BTHWC=np.asarray(self.start.noise_BTHWC))

    def latents(self) -> np.ndarray:
        return np.asarray(self._sampled())

    def _sampled(self):
        frozen, start = self.frozen, self.start
        text = rollout.encode_text(frozen, [start.prompt])
        null = rollout.encode_text(frozen, [NEGATIVE], text.shape[1])
        control = rollout.control(
            frozen,
            [[start.photo_HWC]],
            start.frames,
            start.height,
            start.width,
            order="diffusers",
        )
        rows = np.zeros(len(start.noise_BTHWC), np.int32)  # one face and prompt for every seed
        return rollout.sample(
            frozen.wan,
            frozen.wan_params,
            None,
            text[rows],
            null,
            control[rows],
            start.noise_BTHWC,
            self.table,
            guidance=GUIDANCE,
        )

    def frames(self) -> np.ndarray:
        return np.asarray(rollout.decode(self.frozen, self._sampled()[:, 1:])) / 255.0


class Theirs:
    """The pipeline, once a seed."""

    def __init__(self, args, start: Start):
        self.pipe = WanVACEPipeline.from_pretrained(args.model)
        self.pipe.set_progress_bar_config(disable=True)
        self.call = dict(
            num_frames=start.frames,
            height=start.height,
            width=start.width,
            guidance_scale=GUIDANCE,
            num_inference_steps=args.steps,
            prompt=start.prompt,
            negative_prompt=NEGATIVE,
            reference_images=[Image.fromarray(start.photo_HWC)],
        )
        first = np.moveaxis(start.noise_BTHWC, -1, 1)  # BCTHW
        self.noise = [torch.from_numpy(x[None].copy()) for x in first]

    def latents(self) -> np.ndarray:
        see = lambda x: self.pipe(**self.call, latents=x, output_type="latent").frames
        return np.moveaxis(np.concatenate([see(x).numpy() for x in self.noise]), 1, -1)

    def frames(self) -> np.ndarray:
        return np.concatenate([self.pipe(**self.call, latents=x).frames for x in self.noise])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    ours = timing.Side(partial(Ours, args))
    theirs = timing.Side(partial(Theirs, args, start=ours.get("start_values")))
    a, b = ours.get("latents"), theirs.get("latents")
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    apart = np.abs(ours.get("frames") - theirs.get("frames")).max() * 255
    if error > 1e-3 or apart > 2:
        raise SystemExit(f"the two sides differ: latents {error:.1e}, frames {apart:.2f} of 255")
    our, their, ratio = timing.in_turn(ours, theirs, "frames", args.runs)
    print(f"{args.seeds} seeds, {args.steps} steps, guidance {GUIDANCE:g}, {args.runs} runs")
    print(f"latents agree to {error:.1e}, frames to {apart:.2f} of 255")
    print(f"ours {our:.2f} s, diffusers {their:.2f} s", end=" ")
    print(f"diffusers / ours {ratio:.2f}")


if __name__ == "__main__":
    main()
