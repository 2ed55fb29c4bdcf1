"""Facts about adapters: a fresh one changes nothing, and diffusers and PEFT read and write them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file

from evoid_jax.models import lora as adapters
from evoid_jax.models import wan as wan_model
from evoid_jax.models import weights
from evoid_jax.models.wan import Wan, WanConfig

TINY = WanConfig(2, 16, num_layers=3, ffn_dim=48, text_dim=12, vace_layers=(0, 2))
TIMESTEP_B = np.array([999.0, 37.5], np.float32)
RANK, ALPHA = 32, 48.0
DIFFUSERS_NAMES = ["to_q", "to_k", "to_v", "to_out.0"]

velocity = jax.jit(wan_model.velocity, static_argnums=0)
hints = jax.jit(wan_model.hints, static_argnums=0)


def torch_model():
    torch.manual_seed(0)
    model = WanVACETransformer3DModel.from_config(TINY.to_json()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def trained(key, params, **options):
    """An adapter as training leaves it: b is not zero."""
    fresh = adapters.init(key, params, TINY, rank=RANK, **options)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), fresh)


def torch_velocity(model, x_BTHWC, text_BSE, control_BTHWC):
    first = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    rows = np.pad(text_BSE, ((0, 0), (0, TINY.text_len - text_BSE.shape[1]), (0, 0)))
    with torch.no_grad():
        out = model(
            first(x_BTHWC),
            torch.from_numpy(TIMESTEP_B),
            torch.from_numpy(rows),
            control_hidden_states=first(control_BTHWC),
        )
    return np.moveaxis(out.sample.numpy(), 1, -1)


def our_velocity(params, lora, x, text, control, lora_scale=1.0):
    wan = Wan(TINY, lora_scale=lora_scale)
    hints_VBLD = hints(wan, params, lora, x, TIMESTEP_B, text, control)
    return np.asarray(velocity(wan, params, lora, x, TIMESTEP_B, text, hints_VBLD))


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def params():
    tensors = {name: x.numpy() for name, x in torch_model().state_dict().items()}
    return weights.to_params(tensors, wan_model.rules(TINY))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    return draw(2, 1, 6, 10, 16), draw(2, 8, TINY.text_dim), draw(2, 1, 6, 10, 96)


def test_a_fresh_adapter_changes_nothing(params, inputs):
    for targets in ("main", "main+vace"):
        fresh = adapters.init(jax.random.key(0), params, TINY, rank=RANK, targets=targets)
        with_fresh = our_velocity(params, fresh, *inputs)
        np.testing.assert_array_equal(with_fresh, our_velocity(params, None, *inputs))


def test_init_is_peft_s(params):
    key = jax.random.key(0)
    modules = (*adapters.ATTENTION, "ffn_up", "ffn_down")
    lora = adapters.init(key, params, TINY, rank=RANK, modules=modules)
    assert set(lora) == {"blocks"}
    assert set(lora["blocks"]) == {"attn1", "attn2", "ffn_up", "ffn_down"}
    assert set(lora["blocks"]["attn1"]) == {"to_q", "to_k", "to_v", "to_out"}
    down = lora["blocks"]["ffn_down"]  # 48 -> 32
    assert down["a"].shape == (3, 48, RANK) and down["b"].shape == (3, RANK, 32)
    assert {x.dtype for x in jax.tree.leaves(lora)} == {np.dtype(np.float32)}
    assert np.abs(down["a"]).max() <= 48**-0.5
    np.testing.assert_allclose(down["a"].std(), (3 * 48) ** -0.5, rtol=0.1)  # of a uniform
    assert not down["b"].any()
    assert not np.array_equal(down["a"][0], down["a"][1])
    assert_trees_equal(lora, adapters.init(key, params, TINY, rank=RANK, modules=modules))


def test_without_adapter_the_graph_has_no_adapter(params, inputs):
    x, text, _ = inputs
    lora = trained(jax.random.key(0), params)

    def products(lora):
        make = jax.make_jaxpr(wan_model.velocity, static_argnums=0)
        return str(make(Wan(TINY), params, lora, x, TIMESTEP_B, text)).count("dot_general[")

    assert products(lora) - products(None) == 2 * 8  # a and b, for q k v o of two attentions


FORMS = [("main", "diffusers"), ("main+vace", "diffusers"), ("main", "comfyui")]


@pytest.mark.parametrize(("targets", "form"), FORMS)
def test_saved_adapters_give_diffusers_our_velocity(params, inputs, tmp_path, targets, form):
    lora = trained(jax.random.key(1), params, targets=targets)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    adapters.save(file, lora, ALPHA, {"reward": "0.61"})
    if form == "comfyui":
        weights.write_tensors(file, adapters.to_comfyui(adapters.read(file)[0]))
    names = ["vae", "text_encoder", "tokenizer", "scheduler"]
    pipe = WanVACEPipeline(transformer=torch_model(), **dict.fromkeys(names))
    pipe.load_lora_weights(tmp_path, adapter_name="evolved")
    want = torch_velocity(pipe.transformer, *inputs)
    got = our_velocity(params, lora, *inputs, lora_scale=ALPHA / RANK)
    assert relative(got, want) <= 1e-5
    assert relative(our_velocity(params, None, *inputs), want) > 1e-3
    peft_tensors = get_peft_model_state_dict(pipe.transformer, adapter_name="evolved")
    held = {name: x.numpy() for name, x in peft_tensors.items()}
    assert_trees_equal(adapters.from_peft(held, TINY), adapters.load(file, TINY))


def test_save_then_load_is_the_identity_with_alpha_in_b(params, tmp_path):
    lora = trained(jax.random.key(2), params, targets="main+vace", modules=("to_q", "ffn_down"))
    file = tmp_path / "adapter.safetensors"
    adapters.save(file, lora, RANK)
    assert_trees_equal(adapters.load(file, TINY), lora)
    assert load_file(file)["transformer.vace_blocks.1.ffn.net.2.lora_A.weight"].shape == (RANK, 48)
    adapters.save(file, lora, 2 * RANK)
    twice = lambda path, x: 2 * x if path[-1].key == "b" else x
    assert_trees_equal(adapters.load(file, TINY), jax.tree_util.tree_map_with_path(twice, lora))


def test_adapters_of_peft_load_with_their_alpha(params, inputs, tmp_path):
    model = torch_model()
    names = [f"blocks.{i}.attn{n}.{m}" for i in range(3) for n in (1, 2) for m in DIFFUSERS_NAMES]
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=names, init_lora_weights=False
    )
    model.add_adapter(settings)
    WanVACEPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    lora = adapters.load(tmp_path / "pytorch_lora_weights.safetensors", TINY)
    got = our_velocity(params, lora, *inputs)
    assert relative(got, torch_velocity(model, *inputs)) <= 1e-5


def test_hints_as_constants_give_finite_gradients_to_the_adapter_alone(params, inputs):
    x, text, control = inputs
    hints_VBLD = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, control)
    before = jax.tree.map(np.array, params)

    @jax.jit
    def gradient(lora):
        v = lambda lora: wan_model.velocity(
            Wan(TINY), params, lora, x, TIMESTEP_B, text, hints_VBLD
        )
        return jax.grad(lambda lora: jnp.square(v(lora)).mean())(lora)

    fresh = adapters.init(jax.random.key(0), params, TINY, rank=RANK)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient(fresh)):
        assert np.isfinite(g).all()
        moves = np.abs(g).max(axis=(1, 2)) > 0  # while b is zero, only b has a gradient
        assert moves.all() if path[-1].key == "b" else not moves.any()
    assert all(
        np.abs(g).max() > 0 for g in jax.tree.leaves(gradient(trained(jax.random.key(3), params)))
    )
    assert_trees_equal(params, before)


def test_merged_equals_beside(params, inputs):
    lora = trained(jax.random.key(4), params)
    beside = our_velocity(params, lora, *inputs, lora_scale=ALPHA / RANK)
    merged = our_velocity(adapters.merge(params, lora, ALPHA / RANK), None, *inputs)
    assert relative(merged, beside) <= 2e-6


def test_bad_files_are_named(params, tmp_path):
    tensors = adapters.to_peft(trained(jax.random.key(5), params), RANK, RANK)
    a, b = (f"transformer.blocks.1.attn2.to_v.lora_{side}.weight" for side in "AB")

    def reading(changed):
        return adapters.from_peft(changed, TINY)

    without = lambda *keys: {k: x for k, x in tensors.items() if k not in keys}
    with pytest.raises(ValueError, match=r"blocks\.attn2\.to_v.*has layers \[0, 2\]"):
        reading(without(a, b))
    with pytest.raises(ValueError, match=r"blocks\.attn2\.to_v.*other half"):
        reading(without(*(b.replace(".1.", f".{i}.") for i in range(3))))
    with pytest.raises(ValueError, match=rf"blocks\.attn2\.to_v\.a: ranks \[5, {RANK}\]"):
        reading(tensors | {a: np.zeros((5, 32)), b: np.zeros((32, 5))})
    with pytest.raises(ValueError, match=r"widths \[31, 32\].* width 32"):
        reading(tensors | {a: np.zeros((RANK, 31))})
    with pytest.raises(ValueError, match=r"diffusion_model\.blocks\.0\.self_attn\.q"):
        reading({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": np.zeros((4, 32))})
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        adapters.load(tmp_path / "absent.safetensors", TINY)
    file = tmp_path / "dora.safetensors"
    weights.write_tensors(file, tensors, {adapters.METADATA: '{"transformer.use_dora": true}'})
    with pytest.raises(ValueError, match="use_dora True is not supported"):
        adapters.load(file, TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "all"}, "expected one of main, main\\+vace"),
        ({"modules": ("to_qkv",)}, "to_qkv.*expected some of to_q"),
    ],
)
def test_bad_choices_are_named(params, options, message):
    with pytest.raises(ValueError, match=message):
        adapters.init(jax.random.key(0), params, TINY, **options)


def test_a_base_without_vace_cannot_be_adapted_there(params):
    t2v = dataclasses.replace(TINY, vace_layers=())
    with pytest.raises(ValueError, match="no VACE blocks"):
        adapters.init(jax.random.key(0), params, t2v, targets="main+vace")
