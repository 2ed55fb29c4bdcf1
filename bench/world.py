"""Tell what the tiny world's true clips score, as drawn and after the embedded model's VAE.

    python bench/world.py [--model=evoid_jax/assets/tiny] [--people=32]

The clips are those that the held-out prompts describe, so the numbers stand beside `base` and
`evolved` of a run's summary.json. Prints a row of scores and monitors for each, and the PSNR.
"""

import argparse

import jax.numpy as jnp
import numpy as np

from evoid_jax import rollout
from evoid_jax.models import vae
from evoid_jax.sidecars import preset, wire
from evoid_jax.sidecars.tiny import rewards as tiny
from evoid_jax.world import portraits


def reconstruct(frozen, video_BFHWC: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 videos."""
    x = jnp.asarray(video_BFHWC, jnp.float32) / 127.5 - 1
    return np.asarray(rollout.decode(frozen, vae.encode(frozen.vae_params, frozen.vae_config, x)))


def row(scorers, scenes, video_BFHWC: np.ndarray) -> dict[str, float]:
    """Return the mean score of each reward and monitor."""
    photos = [[portraits.reference(scene.identity)] for scene in scenes]
    prompts = [portraits.prompt(scene) for scene in scenes]
    truth = [scene.identity for scene in scenes]
    request = wire.ScoreRequest(
        videos=list(video_BFHWC),
        reasons=[None] * len(scenes),
        references=photos,
        prompts=prompts,
        attributes=truth,
        fps=8.0,
        rewards=None,  # all of them
        monitors=True,
    )
    reply = preset.answer(scorers, request)
    columns = {name: entry["score"] for name, entry in reply["scores"].items()} | reply["monitor"]
    return {name: float(np.mean(column)) for name, column in columns.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evoid_jax/assets/tiny")
    parser.add_argument("--people", type=int, default=32)
    args = parser.parse_args()
    scenes = [portraits.scene(i, 0) for i in portraits.SPLITS["heldout"][: args.people]]
    true = np.stack([portraits.render(scene) for scene in scenes])
    back = reconstruct(rollout.load(args.model), true)
    scorers = tiny.load()
    for name, video in (("true", true), ("through the VAE", back)):
        print(f"{name}:", {k: round(x, 3) for k, x in row(scorers, scenes, video).items()})
    mse_B = np.square((true / 255.0) - (back / 255.0)).mean((1, 2, 3, 4))
    # PSNR = 10 log10(peak^2 / mse), the peak being 1
    print(f"PSNR {np.mean(-10 * np.log10(mse_B)):.2f} dB")


if __name__ == "__main__":
    main()
