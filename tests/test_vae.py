"""The VAE equals diffusers' AutoencoderKLWan, in every form that we compute it."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative

from evoid_jax.models import vae, vae_layers, weights

TINY = vae.VAEConfig(base_dim=8, num_res_blocks=1)
DEEP = vae.VAEConfig(base_dim=4, num_res_blocks=2)
OTHER = vae.VAEConfig(
    base_dim=4,
    decoder_base_dim=8,
    num_res_blocks=1,
    z_dim=4,
    dim_mult=(1, 2, 3),
    temperal_downsample=(True, True),
    latents_mean=(0.5, -0.5, 0.0, 1.0),
    latents_std=(2.0, 1.0, 0.5, 3.0),
)
SMALL = vae.VAEConfig(
    base_dim=4, num_res_blocks=1, dim_mult=(1, 2, 2), temperal_downsample=(True, True)
)

# Whole programs for tiny arrays: nearly all the time is LLVM's, so ask it for less.
FAST = {"xla_backend_optimization_level": 0}
encode = jax.jit(vae.encode, static_argnums=(1, 3), compiler_options=FAST)
moments = jax.jit(vae.moments, static_argnums=(1, 3), compiler_options=FAST)
decode = jax.jit(vae.decode, static_argnums=(1, 3), compiler_options=FAST)


def video(frames: int, seed: int = 0) -> np.ndarray:
    shape = (2, frames, 16, 24, 3)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def reference(config: vae.VAEConfig):
    """Return diffusers' model with random weights and norms, and the same weights as our tree."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan.from_config(config.to_json()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.5, 1.5)
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    return model, weights.to_params(tensors, vae.rules(config))


def torch_moments(model, x_BFHWC):
    with torch.no_grad():
        posterior = model.encode(torch.tensor(x_BFHWC).permute(0, 4, 1, 2, 3)).latent_dist
    return [x.permute(0, 2, 3, 4, 1).numpy() for x in (posterior.mode(), posterior.logvar)]


def torch_decode(model, z_BTHWC):
    with torch.no_grad():
        y = model.decode(torch.tensor(z_BTHWC).float().permute(0, 4, 1, 2, 3)).sample
    return y.permute(0, 2, 3, 4, 1).numpy()


@pytest.mark.parametrize(
    ("config", "frames"), [(TINY, 1), (TINY, 5), (TINY, 9), (DEEP, 9), (OTHER, 9)]
)
def test_encode_and_decode_equal_diffusers(config, frames):
    model, params = reference(config)
    mean, logvar = torch_moments(model, video(frames))
    latents = (mean - np.float32(config.latents_mean)) / np.float32(config.latents_std)
    assert relative(encode(params, config, video(frames)), latents) <= 1e-5
    if config is OTHER:
        for ours, theirs in zip(moments(params, config, video(9)), (mean, logvar), strict=True):
            assert relative(ours, theirs) <= 1e-5
    # latents of a trained model are large enough to reach the clip of the pixels
    wide = np.random.default_rng(1).normal(0, 2, latents.shape).astype(np.float32)
    pixels = torch_decode(model, wide * config.latents_std + config.latents_mean)
    assert pixels.shape == (2, frames, 16, 24, 3)
    assert relative(decode(params, config, wide), pixels) <= 1e-5


@pytest.mark.parametrize("frames", [1, 13])
def test_one_latent_frame_at_a_time_changes_no_number(frames):
    params = vae.init(jax.random.key(0), SMALL)
    latents = encode(params, SMALL, video(frames))
    assert relative(encode(params, SMALL, video(frames), True), latents) <= 5e-6
    whole = decode(params, SMALL, latents)
    assert whole.shape == (2, frames, 16, 24, 3)
    assert relative(decode(params, SMALL, latents, True), whole) <= 5e-6


def test_cpu_forms_equal_the_direct_forms(monkeypatch):
    params = vae.init(jax.random.key(0), SMALL)
    latents = encode(params, SMALL, video(13))
    pixels = decode(params, SMALL, latents)
    monkeypatch.setattr(vae_layers, "_on_cpu", lambda: False)
    direct = jax.jit(lambda x: vae.encode(params, SMALL, x), compiler_options=FAST)(video(13))
    assert relative(direct, latents) <= 5e-6
    direct = jax.jit(lambda z: vae.decode(params, SMALL, z), compiler_options=FAST)(latents)
    assert relative(direct, pixels) <= 5e-6


def test_conv_forms_agree_in_value_and_gradient():
    keys = jax.random.split(jax.random.key(0), 4)
    p = {"kernel": jax.random.normal(keys[0], (3, 3, 3, 5, 3)), "bias": jnp.arange(3.0)}
    x = jax.random.normal(keys[1], (2, 5, 6, 4, 5))
    weigh = jax.random.normal(keys[2], (2, 3, 6, 4, 3))

    def value_and_gradients(conv):
        return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(conv(p, x) * weigh), (0, 1)))(p, x)

    flat, cube = (
        value_and_gradients(vae_layers.conv3d_flat),
        value_and_gradients(vae_layers.conv3d_cube),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), flat, cube)


def test_first_latent_is_the_image_alone_and_later_frames_cannot_change_it():
    params = vae.init(jax.random.key(0), SMALL)
    x, y = video(13), video(13)
    y[:, 9:] = video(4, seed=7)
    from_x, from_y = encode(params, SMALL, x), encode(params, SMALL, y)
    np.testing.assert_array_equal(from_x[:, :3], from_y[:, :3])
    assert relative(from_y[:, 3:], from_x[:, 3:]) > 1e-3
    assert relative(encode(params, SMALL, x[:, :1]), from_x[:, :1]) <= 5e-6


def test_long_frames_attend_one_at_a_time_with_the_same_numbers(monkeypatch):
    params = vae.init(jax.random.key(0), SMALL)["decoder"]["mid_block"]["attentions"]["0"]
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 8))
    together = vae_layers.attention(params, x)
    monkeypatch.setattr(vae_layers, "ATTENTION_LOGITS", 0)
    assert relative(vae_layers.attention(params, x), together) <= 5e-6


def test_the_norm_of_nothing_has_a_gradient():
    p, x = {"gamma": jnp.ones(4)}, jnp.zeros((1, 4))
    np.testing.assert_array_equal(vae_layers.norm(p, x), x)
    assert np.isfinite(jax.grad(lambda x: vae_layers.norm(p, x).sum())(x)).all()


def test_our_folder_loads_in_diffusers_and_returns(tmp_path):
    params = vae.init(jax.random.key(3), TINY)
    tensors = weights.to_tensors(params, vae.rules(TINY))
    weights.write_tensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    model = diffusers.AutoencoderKLWan.from_pretrained(tmp_path)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in tensors.items()
    }
    assert vae.VAEConfig.from_json(weights.read_config(tmp_path)) == TINY
    assert vae.VAEConfig.from_json(dict(model.config)) == TINY
    back = weights.to_params(weights.read_tensors(tmp_path), vae.rules(TINY))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_the_released_config_is_the_default():
    assert vae.VAEConfig.from_json({}) == vae.VAEConfig()
    defaults = dict(diffusers.AutoencoderKLWan.from_config(vae.VAEConfig().to_json()).config)
    assert vae.VAEConfig.from_json(defaults) == vae.VAEConfig()


@pytest.mark.parametrize(
    ("field", "value"),
    [("is_residual", True), ("patch_size", 2), ("attn_scales", [1.0]), ("out_channels", 12)],
)
def test_other_autoencoders_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        vae.VAEConfig.from_json({field: value})


def test_config_lengths_are_checked():
    with pytest.raises(ValueError, match="temperal_downsample"):
        vae.VAEConfig(dim_mult=(1, 2))
    with pytest.raises(ValueError, match="z_dim is 8"):
        vae.VAEConfig(z_dim=8)


def test_a_video_that_does_not_fit_the_strides_is_refused():
    params = vae.init(jax.random.key(0), SMALL)
    with pytest.raises(ValueError, match="8 frames of 16x24"):
        vae.encode(params, SMALL, video(8))
