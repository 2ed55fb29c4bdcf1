"""Facts about the Wan transformer: it is diffusers' one, and what may be shared is independent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from diffusers import WanVACETransformer3DModel
from torch_wan import channels_first, torch_model

from evoid_jax.models import attention as attention_file
from evoid_jax.models import wan as wan_model
from evoid_jax.models import weights
from evoid_jax.models.attention import attention
from evoid_jax.models.wan import Wan, WanConfig

TINY = WanConfig(2, 16, num_layers=3, ffn_dim=48, text_dim=12, vace_layers=(0, 2))
REAL_WIDTHS = WanConfig(2, 128, num_layers=2, ffn_dim=256, text_dim=4096, vace_layers=(0,))
TIMESTEP_B = np.array([999.0, 37.5], np.float32)

velocity = jax.jit(wan_model.velocity, static_argnums=0)
hints = jax.jit(wan_model.hints, static_argnums=0)


def our_params(model, config):
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    return weights.to_params(tensors, wan_model.rules(config))


def inputs(config, T=3, H=6, W=10):
    """Noisy latents, text (7 and 5 words long, 8 rows) and control; an odd token grid."""
    rng = np.random.default_rng(0)
    x_BTHWC = rng.standard_normal((2, T, H, W, config.in_channels), np.float32)
    text_BSE = rng.standard_normal((2, 8, config.text_dim), np.float32)
    text_BSE[0, 7:] = text_BSE[1, 5:] = 0
    return x_BTHWC, text_BSE, rng.standard_normal((2, T, H, W, config.vace_in_channels), np.float32)


def all_rows(text_BSE, config):
    return np.pad(text_BSE, ((0, 0), (0, config.text_len - text_BSE.shape[1]), (0, 0)))


def torch_velocity(model, x_BTHWC, text_BSE, control_BTHWC=None, scale=None, dtype=torch.float32):
    control = {}
    if control_BTHWC is not None:
        control["control_hidden_states"] = channels_first(control_BTHWC, dtype)
        control["control_hidden_states_scale"] = scale
    text = torch.from_numpy(text_BSE).to(dtype)
    with torch.no_grad():
        out = model(channels_first(x_BTHWC, dtype), torch.from_numpy(TIMESTEP_B), text, **control)
    return np.moveaxis(out.sample.float().numpy(), 1, -1)


@pytest.fixture(scope="module")
def tiny():
    """The diffusers model and the same weights as ours."""
    model = torch_model(TINY)
    return model, our_params(model, TINY)


def test_vace_equals_diffusers(tiny):
    model, params = tiny
    x, text, control = inputs(TINY)
    want = torch_velocity(model, x, all_rows(text, TINY), control)
    wan = Wan(TINY)
    hints_VBLD = hints(wan, params, None, x, TIMESTEP_B, text, control)
    assert hints_VBLD.shape == (2, 2, 3 * 3 * 5, TINY.dim)
    got = velocity(wan, params, None, x, TIMESTEP_B, text, hints_VBLD)
    assert got.dtype == jnp.float32
    assert relative(got, want) <= 1e-5


def test_vace_equals_diffusers_at_one_vace_layer_and_another_grid():
    config = dataclasses.replace(TINY, vace_layers=(0,), in_channels=4, vace_in_channels=24)
    config = dataclasses.replace(config, out_channels=4)
    model = torch_model(config)
    params = our_params(model, config)
    x, text, control = inputs(config, T=1, H=2, W=6)
    want = torch_velocity(model, x, all_rows(text, config), control)
    hints_VBLD = hints(Wan(config), params, None, x, TIMESTEP_B, text, control)
    got = velocity(Wan(config), params, None, x, TIMESTEP_B, text, hints_VBLD)
    assert relative(got, want) <= 1e-5


def test_true_head_size_latent_channels_and_text_width_equal_diffusers():
    model = torch_model(REAL_WIDTHS)
    params = our_params(model, REAL_WIDTHS)
    x, text, control = inputs(REAL_WIDTHS)
    want = torch_velocity(model, x, all_rows(text, REAL_WIDTHS), control)
    hints_VBLD = hints(Wan(REAL_WIDTHS), params, None, x, TIMESTEP_B, text, control)
    got = velocity(Wan(REAL_WIDTHS), params, None, x, TIMESTEP_B, text, hints_VBLD)
    assert relative(got, want) <= 1e-5


def test_without_hints_it_is_the_t2v_model_on_the_same_weights(tiny):
    vace, params = tiny
    t2v_config = dataclasses.replace(TINY, vace_layers=())
    t2v = torch_model(t2v_config)
    t2v.load_state_dict({k: v for k, v in vace.state_dict().items() if "vace" not in k})
    x, text, _ = inputs(TINY)
    want = torch_velocity(t2v, x, all_rows(text, TINY))
    assert relative(velocity(Wan(TINY), params, None, x, TIMESTEP_B, text), want) <= 1e-5
    alone = our_params(t2v, t2v_config)
    assert relative(velocity(Wan(t2v_config), alone, None, x, TIMESTEP_B, text), want) <= 1e-5


def test_conditioning_scale_and_short_control_follow_diffusers(tiny):
    model, params = tiny
    x, text, control = inputs(TINY)
    scale = np.array([0.5, -2.0], np.float32)
    short = control[:, :2]  # diffusers fills the missing tokens with zeros
    want = torch_velocity(model, x, all_rows(text, TINY), short, torch.from_numpy(scale))
    hints_VBLD = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, short, scale)
    got = velocity(Wan(TINY), params, None, x, TIMESTEP_B, text, hints_VBLD)
    assert relative(got, want) <= 1e-5


def test_bfloat16_follows_diffusers_in_bfloat16(tiny, tmp_path):
    model, params = tiny
    model.save_pretrained(tmp_path)  # loading, not .to(), leaves some weights in float32
    half = WanVACETransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    x, text, control = inputs(TINY)
    exact = torch_velocity(model, x, all_rows(text, TINY), control)
    want = torch_velocity(half, x, all_rows(text, TINY), control, dtype=torch.bfloat16)
    wan, cast = Wan(TINY, dtype=jnp.bfloat16), wan_model.cast(params, jnp.bfloat16)
    kept = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    ours = weights.to_tensors(cast, wan_model.rules(TINY))
    assert {name for name, x in ours.items() if x.dtype == np.float32} == kept
    hints_VBLD = hints(wan, cast, None, x, TIMESTEP_B, text, control)
    got = velocity(wan, cast, None, x, TIMESTEP_B, text, hints_VBLD)
    assert hints_VBLD.dtype == jnp.bfloat16 and got.dtype == jnp.float32
    assert relative(got, want) <= 1.5e-2
    assert relative(got, exact) <= 1.5 * relative(want, exact)


def test_trimmed_text_equals_all_rows(tiny):
    _, params = tiny
    x, text, _ = inputs(TINY)
    full = velocity(Wan(TINY), params, None, x, TIMESTEP_B, all_rows(text, TINY))
    got = velocity(Wan(TINY), params, None, x, TIMESTEP_B, text[:, :7])
    assert relative(got, np.asarray(full)) <= 2e-6
    with pytest.raises(ValueError, match="text has 8 rows, more than text_len 7"):
        velocity(Wan(dataclasses.replace(TINY, text_len=7)), params, None, x, TIMESTEP_B, text)


def test_hints_read_no_main_block(tiny):
    _, params = tiny
    x, text, control = inputs(TINY)
    whole = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, control)
    branch = {name: leaf for name, leaf in params.items() if name not in ("blocks", "proj_out")}
    np.testing.assert_array_equal(
        hints(Wan(TINY), branch, None, x, TIMESTEP_B, text, control), whole
    )


def test_the_graph_without_hints_holds_no_hint_code(tiny):
    _, params = tiny
    x, text, control = inputs(TINY)
    hints_VBLD = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, control)

    def graph(hint):
        see = lambda p: wan_model.velocity(Wan(TINY), p, None, x, TIMESTEP_B, text, hint)
        return str(jax.make_jaxpr(see)(params))

    assert "dynamic_slice" in graph(hints_VBLD) and "dynamic_slice" not in graph(None)


@pytest.mark.parametrize("remat", ["full", "attention"])
def test_remat_changes_no_number(tiny, remat):
    _, params = tiny
    x, text, control = inputs(TINY)
    hints_VBLD = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, control)

    def loss(params, remat):
        wan = Wan(TINY, remat=remat)
        v = wan_model.velocity(wan, params, None, x, TIMESTEP_B, text, hints_VBLD)
        return jnp.square(v).mean()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (loss_on, grad_on), (loss_off, grad_off) = run(params, remat), run(params, "none")
    np.testing.assert_allclose(loss_on, loss_off, rtol=1e-6)
    for on, off in zip(jax.tree.leaves(grad_on), jax.tree.leaves(grad_off), strict=True):
        np.testing.assert_allclose(on, off, rtol=1e-4, atol=1e-7)


def test_rules_are_a_bijection(tiny):
    model, params = tiny
    back = weights.to_tensors(params, wan_model.rules(TINY))
    state = model.state_dict()
    assert back.keys() == state.keys()
    for name, x in state.items():
        np.testing.assert_array_equal(back[name], x.numpy())
    fresh = jax.eval_shape(lambda: wan_model.init(jax.random.key(0), Wan(TINY)))
    assert jax.tree.map(lambda x: x.shape, fresh) == jax.tree.map(lambda x: x.shape, params)


def test_a_fresh_model_has_zero_hints_and_a_small_velocity():
    wan = Wan(TINY)
    params = wan_model.init(jax.random.key(0), wan)
    x, text, control = inputs(TINY)
    hints_VBLD = hints(wan, params, None, x, TIMESTEP_B, text, control)
    np.testing.assert_array_equal(hints_VBLD, np.zeros((2, 2, 45, 32)))
    v = np.asarray(velocity(wan, params, None, x, TIMESTEP_B, text))
    assert 0.01 < v.std() < 0.5
    np.testing.assert_array_equal(velocity(wan, params, None, x, TIMESTEP_B, text, hints_VBLD), v)
    table = params["blocks"]["scale_shift_table"]
    np.testing.assert_allclose(table.std(), TINY.dim**-0.5, rtol=0.1)
    layers = params["blocks"]["attn1"]["to_q"]["kernel"]
    np.testing.assert_allclose(layers.std(), (2 / (32 + 32)) ** 0.5, rtol=0.1)  # xavier
    assert not np.array_equal(layers[0], layers[1])


def test_config_round_trips_through_json():
    assert WanConfig.from_json(TINY.to_json()) == TINY
    t2v = dataclasses.replace(TINY, vace_layers=())
    assert t2v.to_json()["_class_name"] == "WanTransformer3DModel"
    assert WanConfig.from_json(t2v.to_json()) == t2v
    saved = dict(WanVACETransformer3DModel.from_config(TINY.to_json()).config)
    assert WanConfig.from_json(saved | {"_diffusers_version": "0.42.1"}) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_dim": 1280}, "image_dim 1280 is not supported"),
        ({"qk_norm": None}, "qk_norm None is not supported"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel: expected a Wan"),
        ({"vace_layers": [1, 2]}, "start at 0"),
        ({"vace_layers": [0, 3]}, "stay under num_layers 3"),
        ({"num_layers": None}, "num_layers"),
        ({"vace_layers": None}, "WanVACETransformer3DModel without vace_layers"),
    ],
)
def test_unsupported_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        WanConfig.from_json(TINY.to_json() | change)


def test_latents_that_do_not_fit_the_patches_are_named(tiny):
    _, params = tiny
    x, text, _ = inputs(TINY, H=5)
    with pytest.raises(ValueError, match=r"latents THW \(3, 5, 10\) do not divide"):
        wan_model.velocity(Wan(TINY), params, None, x, TIMESTEP_B, text)


def test_attention_in_blocks_of_queries_changes_no_number(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 8), np.float32) for n in (11, 5, 5))
    bias_S = rng.standard_normal(5).astype(np.float32)

    def run():
        loss = lambda q, k, v: jnp.square(attention(q, k, v, bias_S)).sum()
        return attention(q, k, v, bias_S), jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    whole, whole_grad = run()
    for rows in (2 * 6, 4):  # two blocks of both videos; three of each video; the last ones padded
        monkeypatch.setattr(attention_file, "MAX_LOGITS", rows * 3 * 5)
        blocked, blocked_grad = run()
        np.testing.assert_allclose(blocked, whole, rtol=1e-6, atol=1e-6)
        for a, b in zip(blocked_grad, whole_grad, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_attention_is_the_softmax_mean_and_log_n_counts_a_key_n_times():
    q = jnp.array([1.0, 0.0])[None, None, None]
    k = jnp.array([[2.0, 1.0], [0.0, 3.0]])[None, :, None]
    v = jnp.array([[1.0, 0.0], [0.0, 1.0]])[None, :, None]
    heavy = np.exp(2 / np.sqrt(2))  # against exp(0) = 1
    out = attention(q, k, v)[0, 0, 0]
    np.testing.assert_allclose(out, [heavy / (heavy + 1), 1 / (heavy + 1)], rtol=1e-6)
    out = attention(q, k, v, jnp.array([0.0, np.log(3.0)]))[0, 0, 0]
    np.testing.assert_allclose(out, [heavy / (heavy + 3), 3 / (heavy + 3)], rtol=1e-6)
