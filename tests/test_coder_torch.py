"""The VAE by PyTorch is that of evoid_jax/models/vae.py: its latents, its loss and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from evoid_jax.models import vae
from evoid_jax.pretrain import coder_torch

SEED, STEP, WEIGHT = 3, 7, 1e-2
# Two halvings of time, one level without; widths differ, so that some blocks have shortcuts.
CONFIG = vae.VAEConfig(
    base_dim=4, z_dim=3, dim_mult=(1, 2, 3, 4), num_res_blocks=1,
    latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3,
)  # fmt: skip


def clip(frames: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, frames, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(vae.init(jax.random.key(0), CONFIG))


def ours(params, video_BFHWC):
    """Return the loss and gradient by JAX, of the formulas as they stand in the paper of VAEs."""
    b, t, h, w, c = jax.eval_shape(lambda: vae.moments(params, CONFIG, video_BFHWC))[0].shape
    noise = coder_torch.noise_of(SEED, STEP, (b, c, t, h, w)).transpose(0, 2, 3, 4, 1)

    def loss_fn(params):
        mean, logvar = vae.moments(params, CONFIG, video_BFHWC)
        error = vae.raw_decode(params, CONFIG, mean + jnp.exp(logvar / 2) * noise) - video_BFHWC
        kl = (mean**2 + jnp.exp(logvar) - 1 - logvar) / 2
        return jnp.mean(error**2) + 0.1 * jnp.mean(jnp.abs(error)) + WEIGHT * jnp.mean(kl)

    return jax.jit(jax.value_and_grad(loss_fn))(params)


def off(ours, theirs) -> list[float]:
    """Return of each leaf how far two gradients are apart, relative to the first's length.

    Stills leave the weights of time alone: there both are zero, and no distance is known.
    """
    distance = lambda a, b: float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-9))
    return jax.tree.leaves(jax.tree.map(distance, jax.device_get(ours), theirs))


@pytest.mark.parametrize("frames", [1, 9])
def test_the_gradient_is_that_of_jax(params, frames):
    video = clip(frames)
    theirs = coder_torch.gradient_of(CONFIG, WEIGHT, SEED, torch.float32)
    loss, gradient = theirs(params, STEP, video)
    expected, ours_of = ours(params, video)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert max(off(ours_of, gradient)) < 1e-4
    # A training that was killed goes on to the same bits only if a step has the same bits again.
    again = theirs(params, STEP, video)
    assert again[0] == loss
    jax.tree.map(np.testing.assert_array_equal, again[1], gradient)


def test_what_is_frozen_has_no_gradient_and_changes_no_other(params):
    whole = coder_torch.gradient_of(CONFIG, WEIGHT, SEED, torch.float32)
    frozen = {name: params[name] for name in ("encoder", "quant_conv")}
    learning = {name: params[name] for name in ("decoder", "post_quant_conv")}
    of_part = coder_torch.gradient_of(CONFIG, WEIGHT, SEED, torch.float32, frozen=frozen)
    loss, gradient = of_part(learning, STEP, clip(9))
    expected, gradients = whole(params, STEP, clip(9))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.keys() == learning.keys()
    assert max(off({name: gradients[name] for name in learning}, gradient)) < 1e-5


def test_in_bfloat16_it_points_the_same_way(params):
    video = clip(9)
    exact, rounded = (
        coder_torch.gradient_of(CONFIG, WEIGHT, SEED, dtype)(params, STEP, video)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3)
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for _, g in (exact, rounded))
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


@pytest.mark.parametrize("frames", [1, 9])
def test_latents_are_those_of_jax(params, frames):
    config = dataclasses.replace(CONFIG, latents_mean=(0.1, -0.2, 0.3), latents_std=(0.5, 2.0, 1.5))
    theirs = coder_torch.encoder_of(params, config)(clip(frames))
    ours = jax.jit(lambda x: vae.encode(params, config, x))(clip(frames))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_every_step_and_seed_has_noise_of_its_own():
    draws = [coder_torch.noise_of(*at, (4,)) for at in ((0, 0), (0, 1), (1, 0))]
    assert len({draw.tobytes() for draw in draws}) == 3
    np.testing.assert_array_equal(coder_torch.noise_of(0, 1, (4,)), draws[1])
