"""The embedded tiny model: diffusers loads it and makes the same videos, and it is small."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline
import torch
from PIL import Image

from evoid_jax import media
from evoid_jax.world import portraits, prompts

ASSETS = Path(__file__).parents[1] / "evoid_jax" / "assets"
TINY = ASSETS / "tiny"


def test_it_is_small():
    size = sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file())
    assert size <= 24e6


@pytest.mark.parametrize("references", [1, 2])
def test_generate_equals_diffusers(references, tmp_path):
    """20 UniPC steps with CFG 5 from the same noise: latents 1e-4 apart, frames 2/255."""
    people = portraits.SPLITS["heldout"][:references]
    files = []
    for i in people:
        files.append(tmp_path / f"{i}.png")
        media.write_image(files[-1], portraits.reference(portraits.identity(i), 96))
    prompt = prompts.prompt(portraits.scene(people[0], 0))
    shape = (1, 16, 3 + references, 8, 8)
    noise = np.random.default_rng(references).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    command = [sys.executable, "-m", "evoid_jax.generate", f"--model={TINY}"]
    command += [f"--image={','.join(map(str, files))}", f"--prompt={prompt}"]
    names = {"output": "out.mp4", "noise": "noise.npy", "raw": "raw.npy", "latents": "latents.npy"}
    command += [f"--{key}={tmp_path / name}" for key, name in names.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]

    pipe = tiny_pipeline.load(TINY)
    size = {"height": 64, "width": 64, "num_frames": 9}
    ask = {"prompt": prompt, "negative_prompt": "", "num_inference_steps": 20} | size
    ask |= {"reference_images": [Image.open(f) for f in files], "guidance_scale": 5.0}
    ask |= {"latents": torch.from_numpy(noise)}
    with torch.no_grad():
        latents = pipe(**ask, output_type="latent").frames.numpy()
        frames = pipe(**ask, output_type="np").frames
    ours = np.load(tmp_path / "latents.npy")
    assert ours.shape == latents.shape
    assert np.linalg.norm(ours - latents) <= 1e-4 * np.linalg.norm(latents)
    raw = np.load(tmp_path / "raw.npy")
    assert raw.shape == frames.shape and np.abs(raw - frames).max() <= 2 / 255
    assert media.read(tmp_path / "out.mp4")[0].shape == (9, 64, 64, 3)
