"""Time a step's rollout against diffusers' pipeline: same weights, same noise, the same videos.

    python bench/rollout.py [--model=evoid_jax/assets/tiny] [--seeds=8] [--steps=20] [--runs=3]

One face and one prompt, several seeds, with guidance. Ours goes from prompt and photo to pixels in
one batch, as `train` does; diffusers' pipeline takes one reference set a call, so it is called once
a seed, as one would. Each side has a process of its own. Latents must agree to 1e-3 and frames to
2/255 before anything is timed. Prints medians in seconds and the ratio diffusers / ours, the median
over pairs of neighbours.
"""

import argparse

import numpy as np
import timing
import torch
from diffusers import WanVACEPipeline
from PIL import Image

from evoid_jax import flow, generate, rollout
from evoid_jax.models.scheduler import solver_of
from evoid_jax.world import portraits

GUIDANCE, NEGATIVE = 5.0, ""


class Ours:
    """Prompt and photo to pixels, all seeds at once."""

    def __init__(self, args):
        scene = portraits.scene(portraits.SPLITS["heldout"][0], 0)
        sizes = generate.settings(args.model, dict.fromkeys(generate.DEFAULTS))
        self.size = sizes["frames"], sizes["height"], sizes["width"]
        self.frozen = rollout.load(args.model, remat="none")
        shape = rollout.latent_shape(self.frozen, *self.size, 1)
        self.noise = rollout.noise(np.arange(args.seeds, dtype=np.int32), shape)
        self.table = flow.schedule("unipc", args.steps, solver_of(self.frozen.scheduler)[1])
        self.photo = portraits.reference(scene.identity)
        self.prompt = portraits.prompt(scene)

    def given(self) -> tuple:
        """Return what the other side starts from: sizes, photo, prompt, noise."""
        return self.size, self.photo, self.prompt, np.asarray(self.noise)

    def latents(self) -> np.ndarray:
        return np.asarray(self._sampled())

    def _sampled(self):
        text = rollout.encode_text(self.frozen, [self.prompt])
        null = rollout.encode_text(self.frozen, [NEGATIVE], text.shape[1])
        control = rollout.control(self.frozen, [[self.photo]], *self.size, "diffusers")
        rows = np.zeros(len(self.noise), np.int32)
        wan, params = self.frozen.wan, self.frozen.wan_params
        given = text[rows], null, control[rows], self.noise, self.table, GUIDANCE
        return rollout.sample(wan, params, None, *given)

    def frames(self) -> np.ndarray:
        return np.asarray(rollout.decode(self.frozen, self._sampled()[:, 1:])) / 255.0


class Theirs:
    """The pipeline, once a seed."""

    def __init__(self, args, size, photo, prompt, noise):
        self.pipe = WanVACEPipeline.from_pretrained(args.model)
        self.pipe.set_progress_bar_config(disable=True)
        frames, height, width = size
        self.call = dict(num_frames=frames, height=height, width=width, guidance_scale=GUIDANCE)
        self.call |= dict(num_inference_steps=args.steps, prompt=prompt)
        self.call |= dict(negative_prompt=NEGATIVE, reference_images=[Image.fromarray(photo)])
        first = np.moveaxis(noise, -1, 1)
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
    ours = timing.Side(Ours, args)
    theirs = timing.Side(Theirs, args, *ours.get("given"))
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
