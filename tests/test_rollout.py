"""rollout.py against WanVACEPipeline with the same random weights, and the laws of sampling."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipeline
import torch
from compare import relative
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_pipeline import FRAMES, HEIGHT, NEGATIVE, PROMPTS, WIDTH, photo

from evoid_jax import canvas, flow, rollout, sharding, sources
from evoid_jax.models import lora, scheduler

SIZE = FRAMES, HEIGHT, WIDTH
IMAGES = [photo(50, 37, 1), photo(40, 90, 2), photo(64, 64, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def frozen(folder):
    return rollout.load(folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return tiny_pipeline.load(folder)


def to_torch_layout(x_BTHWC) -> np.ndarray:
    return np.moveaxis(np.asarray(x_BTHWC), -1, 1)


def noise_for(frozen, references: int, seed: int = 0):
    shape = rollout.latent_shape(frozen, *SIZE, references)
    return rollout.noise(np.uint32([seed]), shape)


def pil(images):
    return [Image.fromarray(image) for image in images] or None


@torch.no_grad()
def their_control(pipe, images) -> torch.Tensor:
    conditions = pipe.preprocess_conditions(
        None, None, pil(images), 1, HEIGHT, WIDTH, FRAMES, torch.float32, "cpu"
    )
    video, mask, references = conditions
    latents = pipe.prepare_video_latents(video, mask, references, None, "cpu")
    return torch.cat([latents, pipe.prepare_masks(mask, references)], dim=1)


@pytest.mark.parametrize("references", [0, 1, 2, 3])
def test_control_equals_the_pipeline(frozen, pipe, references):
    images = IMAGES[:references]
    ours = to_torch_layout(rollout.control(frozen, [images], *SIZE))
    theirs = their_control(pipe, images).numpy()
    assert relative(ours[:, :32], theirs[:, :32]) <= 1e-5
    np.testing.assert_array_equal(ours[:, 32:], theirs[:, 32:])


def test_control_of_a_batch_is_that_of_each_video(frozen):
    pairs = [[IMAGES[0], IMAGES[1]], [IMAGES[2], IMAGES[0]]]
    together = rollout.control(frozen, pairs, *SIZE)
    for one, pair in zip(together, pairs, strict=True):
        np.testing.assert_allclose(one, rollout.control(frozen, [pair], *SIZE)[0], atol=1e-5)


def test_vace_order_keeps_and_diffusers_order_reverses(frozen):
    kept = rollout.control(frozen, [IMAGES], *SIZE, order="vace")
    turned = rollout.control(frozen, [IMAGES], *SIZE, order="diffusers")
    np.testing.assert_array_equal(kept[:, :3], turned[:, 2::-1])
    np.testing.assert_array_equal(kept[:, 3:], turned[:, 3:])
    alone = rollout.control(frozen, [IMAGES[:1]], *SIZE)
    np.testing.assert_allclose(kept[:, :1], alone[:, :1], atol=1e-5)


def test_canvas_is_white_around_the_image():
    white = canvas.on_canvas(np.zeros((16, 16, 3), np.uint8), 32, 48)
    assert (white[:, :8] == 1).all()
    assert (white[:, 40:] == 1).all()
    assert (white[:, 8:40] == -1).all()


def test_image_of_the_right_size_is_only_rescaled():
    image = photo(32, 48, 5)
    np.testing.assert_allclose(canvas.on_canvas(image, 32, 48), image / 127.5 - 1, atol=1e-6)


@torch.no_grad()
def test_text_equals_the_pipeline(frozen, pipe):
    ours = rollout.encode_text(frozen, [*PROMPTS, ""])
    theirs = pipe.encode_prompt([*PROMPTS, ""], max_sequence_length=512)[0].numpy()
    S = ours.shape[1]
    assert S < 512
    assert relative(ours, theirs[:, :S]) <= 1e-5
    assert not theirs[:, S:].any()


def test_text_of_a_fixed_length_is_the_same(frozen):
    free = rollout.encode_text(frozen, PROMPTS)
    fixed = rollout.encode_text(frozen, PROMPTS, length=free.shape[1] + 16)
    np.testing.assert_allclose(fixed[:, : free.shape[1]], free, atol=1e-5)
    assert not fixed[:, free.shape[1] :].any()
    with pytest.raises(ValueError, match="tokens, more than the length 8"):
        rollout.encode_text(frozen, PROMPTS, length=8)


def our_latents(frozen, images, noise, kind, steps, guidance):
    text = rollout.encode_text(frozen, PROMPTS[1:2])
    null = rollout.encode_text(frozen, [NEGATIVE])
    control = rollout.control(frozen, [images], *SIZE)
    table = flow.schedule(kind, steps, 3.0)
    model = frozen.wan, frozen.wan_params, None
    return rollout.sample(*model, text, null, control, noise, table, guidance)


def their_output(pipe, images, noise, steps, guidance):
    """Return the pipeline's frames, and its latents before it trims and decodes them."""
    seen = {}
    frames = pipe(
        prompt=PROMPTS[1],
        negative_prompt=NEGATIVE,
        reference_images=pil(images),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=torch.tensor(to_torch_layout(noise)),
        callback_on_step_end=lambda pipe, i, t, tensors: seen.update(tensors) or {},
    ).frames
    return frames, seen["latents"].numpy()


@pytest.mark.parametrize(
    ("kind", "references", "guidance"),
    [("unipc", 1, 5.0), ("unipc", 2, 5.0), ("euler", 1, 5.0), ("unipc", 1, 1.0)],
)
def test_sampling_equals_the_pipeline(frozen, pipe, kind, references, guidance, monkeypatch):
    if kind == "euler":
        monkeypatch.setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler(shift=3.0))
    images, noise = IMAGES[:references], noise_for(frozen, references)
    ours = our_latents(frozen, images, noise, kind, 20, guidance)
    frames, latents = their_output(pipe, images, noise, 20, guidance)
    assert relative(to_torch_layout(ours), latents) <= 1e-4
    floats = rollout.decode_float(frozen, ours[:, references:])
    assert frames.std() > 0.05  # or else equality would say nothing
    assert np.abs(floats - frames).max() <= 2 / 255
    exported = (frames * 255).astype(np.uint8)  # diffusers.utils.export_to_video
    video = np.asarray(rollout.decode(frozen, ours[:, references:]))
    assert video.dtype == np.uint8
    assert np.abs(video.astype(int) - exported).max() <= 1


def test_a_video_does_not_depend_on_its_batch_nor_on_how_guidance_runs(frozen):
    text = rollout.encode_text(frozen, PROMPTS[:2])
    null = rollout.encode_text(frozen, [NEGATIVE])
    control = rollout.control(frozen, [IMAGES[:1], IMAGES[1:2]], *SIZE)
    noise = rollout.noise(np.uint32([7, 8]), rollout.latent_shape(frozen, *SIZE, 1))
    table = flow.schedule("unipc", 20, 3.0)
    model = frozen.wan, frozen.wan_params, None
    both = rollout.sample(*model, text, null, control, noise, table, 5.0)
    apart = rollout.sample(*model, text, null, control, noise, table, 5.0, split=True)
    assert relative(apart, both) <= 1e-5
    one = rollout.sample(*model, text[1:], null, control[1:], noise[1:], table, 5.0)
    assert relative(one, both[1:]) <= 1e-5


def test_the_negative_prompt_may_have_weights_of_its_own(frozen):
    """With the adapter on the prompt alone, guidance adds g times what the adapter adds to v."""
    text, null = rollout.encode_text(frozen, PROMPTS[:1]), rollout.encode_text(frozen, [NEGATIVE])
    control = rollout.control(frozen, [IMAGES[:1]], *SIZE)
    x = rollout.noise(np.uint32([7]), rollout.latent_shape(frozen, *SIZE, 1))
    adapter = lora.init(jax.random.key(0), frozen.wan_params, frozen.wan.config, rank=4)
    shake = lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape)
    adapter, bare = jax.tree.map(shake, adapter), (frozen.wan_params, None)

    def velocity(tree, scale, null_weights=None):
        weights = frozen.wan, frozen.wan_params, tree
        guided = rollout.guided(
            *weights, text, null, control, scale, split=False, null_weights=null_weights
        )
        return np.asarray(jax.jit(guided)(x, 600.0))

    added = velocity(adapter, 1.0) - velocity(None, 1.0)
    own = velocity(adapter, 5.0, null_weights=bare) - velocity(None, 5.0)
    assert relative(own, 5 * added) <= 1e-3
    assert relative(velocity(adapter, 5.0) - velocity(None, 5.0), 5 * added) > 0.05


def test_noise_depends_on_the_seed_alone():
    shape = 2, 4, 4, 16
    batch = rollout.noise(np.uint32([3, 4, 5]), shape)
    np.testing.assert_array_equal(batch[1], rollout.noise(np.uint32([4]), shape)[0])
    assert abs(float(jnp.corrcoef(batch.reshape(3, -1))[0, 1])) < 0.15
    assert abs(float(batch.std()) - 1) < 0.05


def test_decoding_frame_by_frame_changes_nothing(frozen, monkeypatch):
    latents = noise_for(frozen, 0)
    whole = rollout.decode_float(frozen, latents)
    monkeypatch.setattr(rollout, "WHOLE", 0)
    np.testing.assert_allclose(rollout.decode_float(frozen, latents), whole, atol=1e-5)


def test_true_clips_encode_frame_by_frame_as_whole_after_the_photo(frozen):
    video_BFHWC = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3)).astype(np.uint8)
    control = rollout.control(frozen, [IMAGES[:1]], *SIZE)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    of = partial(sources.encode, frozen.vae_params, video_BFHWC, control)
    of = partial(of, config=frozen.vae_config, references=1, mesh=mesh)
    whole, in_turn = of(in_turn=False), of(in_turn=True)
    assert relative(in_turn, whole) <= 5e-6
    np.testing.assert_array_equal(whole[:, 0], control[:, 0, ..., :16])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 32, 48), "frames must be 1 plus a multiple of 4, got 8"),
        ((9, 40, 48), "height must be a positive multiple of 16, got 40"),
        ((9, 32, 0), "width must be a positive multiple of 16, got 0"),
    ],
)
def test_sizes_the_model_cannot_make_are_refused(frozen, size, message):
    with pytest.raises(ValueError, match=message):
        rollout.control(frozen, [IMAGES[:1]], *size)


def test_bad_references_are_refused(frozen):
    with pytest.raises(ValueError, match=r"as many reference images, got \[1, 2\]"):
        rollout.control(frozen, [IMAGES[:1], IMAGES[:2]], *SIZE)
    with pytest.raises(ValueError, match="order 'reverse'"):
        rollout.control(frozen, [IMAGES], *SIZE, order="reverse")
    with pytest.raises(ValueError, match="is 7x20; expected at least 8x8"):
        rollout.control(frozen, [[photo(7, 20, 0)]], *SIZE)
    with pytest.raises(ValueError, match="expected uint8"):
        rollout.control(frozen, [[IMAGES[0] / 255]], *SIZE)


def test_folders_that_are_not_such_pipelines_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        rollout.load(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    scheduler = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(config | {"solver_order": 3}))
    with pytest.raises(ValueError, match="solver_order 3; only 2 is implemented"):
        rollout.load(copy)
    scheduler.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match="scheduler DDIMScheduler is not implemented"):
        rollout.load(copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="is of a WanPipeline; expected a WanVACEPipeline"):
        rollout.load(copy)


def test_scheduler_configs_are_understood():
    euler = json.loads(FlowMatchEulerDiscreteScheduler(shift=5.0).to_json_string())
    assert scheduler.solver_of(euler) == ("euler", 5.0)
