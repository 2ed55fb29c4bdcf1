"""generate.py from the command line, against WanVACEPipeline with the same noise."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_pipeline
import torch
from absl import flags
from PIL import Image
from tiny_pipeline import FRAMES, HEIGHT, PROMPTS, WIDTH, photo

from evoid_jax import generate, media, rollout
from evoid_jax.models import lora

SHAPE = 1, 16, 3, HEIGHT // 8, WIDTH // 8  # of the video's latents
SIZE = [f"--frames={FRAMES}", f"--height={HEIGHT}", f"--width={WIDTH}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))


def arguments(folder, tmp_path, *more: str) -> list[str]:
    for i in range(2):
        media.write_image(tmp_path / f"{i}.png", photo(40 + 9 * i, 52, i))
    paths = [f"--image={tmp_path}/0.png", f"--output={tmp_path}/out/video.mp4"]
    return [f"--model={folder}", f"--prompt={PROMPTS[0]}", *paths, *SIZE, *more]


def run(args: list[str]) -> np.ndarray:
    values = flags.FlagValues()
    generate.define_flags(values)
    values(["generate", *args])
    return generate.run(values)


def test_the_command_equals_diffusers(folder, tmp_path):
    """One process, two references, every array in diffusers' layout."""
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    noise = np.concatenate([noise, noise[:, :, :2]], axis=2)
    np.save(tmp_path / "noise.npy", noise)
    out = {name: f"--{name}={tmp_path}/{name}.npy" for name in ("noise", "raw", "latents")}
    args = arguments(folder, tmp_path, *out.values(), "--steps=6", "--negative_prompt=x")
    args.append(f"--image={tmp_path}/0.png,{tmp_path}/1.png")
    command = [sys.executable, "-m", "evoid_jax.generate", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert f"video.mp4: {FRAMES} frames of {WIDTH}x{HEIGHT}" in done.stdout
    assert "6/6" in done.stderr  # the progress bar

    pipe = tiny_pipeline.load(folder)
    call = dict(prompt=PROMPTS[0], negative_prompt="x", height=HEIGHT, width=WIDTH)
    call |= dict(num_frames=FRAMES, num_inference_steps=6, latents=torch.tensor(noise))
    call |= dict(reference_images=[Image.open(tmp_path / f"{i}.png") for i in range(2)])
    theirs = pipe(**call, output_type="latent").frames.numpy()
    ours = np.load(tmp_path / "latents.npy")
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
    theirs = pipe(**call).frames
    ours = np.load(tmp_path / "raw.npy")
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= 2 / 255
    video, fps = media.read(tmp_path / "out" / "video.mp4")
    assert (video.shape, fps) == ((FRAMES, HEIGHT, WIDTH, 3), 16)


def test_seed_reference_order_scheduler_and_shift_matter(folder, tmp_path):
    pair = f"--image={tmp_path}/0.png,{tmp_path}/1.png"
    base = arguments(folder, tmp_path, pair, "--steps=2")
    video = run(base)
    np.testing.assert_array_equal(video, run([*base, "--seed=0", "--reference_order=diffusers"]))
    for flag in ("--seed=1", "--reference_order=vace", "--scheduler=euler", "--shift=9"):
        assert (video != run([*base, flag])).any(), flag


def test_an_adapter_acts_as_in_diffusers(folder, tmp_path):
    frozen = rollout.load(folder)
    adapter = lora.init(jax.random.key(0), frozen.wan_params, frozen.wan.config, rank=4)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    names = [f"--latents={tmp_path}/latents.npy", f"--noise={tmp_path}/noise.npy", "--steps=2"]
    args = arguments(folder, tmp_path, *names)
    noise = np.random.default_rng(1).standard_normal((1, 16, 4, *SHAPE[3:])).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)

    def latents(*more):
        run([*args, *more])
        return np.load(tmp_path / "latents.npy")

    plain = latents()
    lora.save(file, adapter, scale=1.0)
    np.testing.assert_allclose(latents(f"--lora={file}"), plain, atol=1e-5)  # fresh: no change
    shake = lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    adapter = jax.tree.map(shake, adapter)
    lora.save(file, adapter, scale=2.0)
    ours = latents(f"--lora={file}")
    assert np.abs(ours - plain).max() > 1e-2

    pipe = tiny_pipeline.load(folder)
    pipe.load_lora_weights(tmp_path)
    call = dict(prompt=PROMPTS[0], height=HEIGHT, width=WIDTH, num_frames=FRAMES)
    call |= dict(num_inference_steps=2, latents=torch.tensor(noise), output_type="latent")
    theirs = pipe(**call, reference_images=[Image.open(tmp_path / "0.png")]).frames.numpy()
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def test_the_models_own_defaults_come_before_ours(tmp_path):
    nothing = dict.fromkeys(generate.DEFAULTS)
    assert generate.settings(tmp_path, nothing) == generate.DEFAULTS
    (tmp_path / "evoid.json").write_text(json.dumps({"frames": 9, "height": 64, "fps": 8}))
    chosen = generate.settings(tmp_path, nothing | {"height": 32, "prompt": "x"})
    assert chosen == generate.DEFAULTS | {"frames": 9, "height": 32, "fps": 8}
    (tmp_path / "evoid.json").write_text('{"frame": 9}')
    with pytest.raises(ValueError, match="has 'frame'; expected some of"):
        generate.settings(tmp_path, nothing)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--image={}/none.png", r"none\.png does not exist"),
        ("--image={}/text.png", r"text\.png is not an image"),
        ("--height=40", "height must be a positive multiple of 16, got 40"),
        ("--frames=8", "frames must be 1 plus a multiple of 4, got 8"),
        ("--noise={}/noise.npy", r"shape \(1, 16, 3, 4, 6\); expected \(1, 16, 4, 4, 6\)"),
        ("--noise={}/text.png", "is not an npy file"),
        ("--model={}", r"model_index\.json is missing"),
        ("--prompt= ", "--prompt is empty"),
        ("--output=video.avi", r"must end in \.mp4"),
    ],
)
def test_wrong_inputs_are_named(folder, tmp_path, flag, message):
    (tmp_path / "text.png").write_text("not an image")
    np.save(tmp_path / "noise.npy", np.zeros(SHAPE, np.float32))
    args = arguments(folder, tmp_path, flag.format(tmp_path))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run(args)


def test_the_command_ends_with_a_message_not_a_traceback(tmp_path):
    args = arguments(tmp_path, tmp_path)
    command = [sys.executable, "-m", "evoid_jax.generate", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 1
    assert "error:" in done.stderr and "model_index.json is missing" in done.stderr
    assert "Traceback" not in done.stderr
