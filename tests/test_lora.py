"""Facts about adapters: a fresh one changes nothing, diffusers reads them, strength is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from diffusers import WanVACEPipeline
from flax import traverse_util
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from torch_wan import torch_model

from evoid_jax.models import adapters, lora, weights
from evoid_jax.models import wan as wan_model
from evoid_jax.models.wan import Wan, WanConfig

TINY = WanConfig(2, 16, num_layers=3, ffn_dim=48, text_dim=12, vace_layers=(0, 2))
TIMESTEP_B = np.array([999.0, 37.5], np.float32)
RANK, ALPHA = 32, 48.0

velocity = jax.jit(wan_model.velocity, static_argnums=0)
hints = jax.jit(wan_model.hints, static_argnums=0)


def fresh_adapter(params, seed=0, rank=RANK, **options):
    return lora.init(jax.random.key(seed), params, TINY, rank=rank, **options)


def trained(seed, params, **options):
    """An adapter as training leaves it: b is not zero."""
    key = jax.random.key(seed)
    move = lambda x: x + 0.1 * jax.random.normal(key, x.shape)
    return jax.tree.map(move, fresh_adapter(params, seed, **options))


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


def our_velocity(params, adapter, inputs, lora_scale=1.0):
    x, text, control = inputs
    wan = Wan(TINY, lora_scale=lora_scale)
    hints_VBLD = hints(wan, params, adapter, x, TIMESTEP_B, text, control)
    return np.asarray(velocity(wan, params, adapter, x, TIMESTEP_B, text, hints_VBLD))


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def params():
    tensors = {name: x.numpy() for name, x in torch_model(TINY).state_dict().items()}
    return weights.to_params(tensors, wan_model.rules(TINY))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    return draw(2, 1, 6, 10, 16), draw(2, 8, TINY.text_dim), draw(2, 1, 6, 10, 96)


def test_a_fresh_adapter_changes_nothing(params, inputs):
    for targets in ("main", "main+vace"):
        with_fresh = our_velocity(params, fresh_adapter(params, targets=targets), inputs)
        np.testing.assert_array_equal(with_fresh, our_velocity(params, None, inputs))


def test_init_is_peft_s(params):
    adapter = fresh_adapter(params, modules=lora.MODULES)
    assert set(adapter) == {"blocks"}
    assert set(adapter["blocks"]) == {"attn1", "attn2", "ffn_up", "ffn_down"}
    assert set(adapter["blocks"]["attn1"]) == {"to_q", "to_k", "to_v", "to_out"}
    down = adapter["blocks"]["ffn_down"]  # 48 -> 32
    assert down["a"].shape == (3, 48, RANK) and down["b"].shape == (3, RANK, 32)
    assert {x.dtype for x in jax.tree.leaves(adapter)} == {np.dtype(np.float32)}
    assert np.abs(down["a"]).max() <= 48**-0.5
    np.testing.assert_allclose(down["a"].std(), (3 * 48) ** -0.5, rtol=0.1)  # of a uniform
    assert not down["b"].any()
    assert not np.array_equal(down["a"][0], down["a"][1])
    assert_trees_equal(adapter, fresh_adapter(params, modules=lora.MODULES))


def test_without_adapter_the_graph_has_no_adapter(params, inputs):
    x, text, _ = inputs

    def products(adapter):
        make = jax.make_jaxpr(wan_model.velocity, static_argnums=0)
        return str(make(Wan(TINY), params, adapter, x, TIMESTEP_B, text)).count("dot_general[")

    assert products(trained(0, params)) - products(None) == 2 * 8  # a and b, for two attentions


FORMS = [("main", "diffusers"), ("main+vace", "diffusers"), ("main", "comfyui")]


@pytest.mark.parametrize(("targets", "form"), FORMS)
def test_saved_adapters_give_diffusers_our_velocity(params, inputs, tmp_path, targets, form):
    tree = trained(1, params, targets=targets)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    lora.save(file, tree, scale=ALPHA / RANK, metadata={"reward": "0.61"})
    if form == "comfyui":
        adapter = adapters.read(file)
        adapters.write(file, adapters.to_comfyui(adapter), adapter)
    names = ["vae", "text_encoder", "tokenizer", "scheduler"]
    pipe = WanVACEPipeline(transformer=torch_model(TINY), **dict.fromkeys(names))
    pipe.load_lora_weights(tmp_path, adapter_name="evolved")
    want = torch_velocity(pipe.transformer, *inputs)
    got = our_velocity(params, tree, inputs, lora_scale=ALPHA / RANK)
    assert relative(got, want) <= 1e-5
    assert relative(our_velocity(params, None, inputs), want) > 1e-3
    held = get_peft_model_state_dict(pipe.transformer, adapter_name="evolved")
    ours = adapters.to_diffusers(adapters.read(file))
    assert {f"{adapters.PREFIX}{key}" for key in held} == ours.keys()
    for key, x in held.items():
        np.testing.assert_array_equal(ours[f"{adapters.PREFIX}{key}"], x.numpy())


# --- the scale, which has one owner


def effect(tree, scale):
    """Return (L, O, I) of every module: what the tree adds to its kernel at a scale."""
    flat = traverse_util.flatten_dict(tree)
    product = lambda path: np.einsum("lir,lro->loi", flat[(*path, "a")], flat[(*path, "b")])
    return {path[:-1]: product(path[:-1]) * scale for path in flat if path[-1] == "a"}


def assert_same_effect(got, want):
    assert got.keys() >= want.keys()
    for path, delta_LOI in got.items():
        size = max(np.abs(want[path]).max(), 1.0) if path in want else 1.0
        np.testing.assert_allclose(delta_LOI, want.get(path, 0.0), atol=2e-6 * size)


def test_save_then_load_is_the_identity_with_the_scale_in_b(params, tmp_path):
    tree = trained(2, params, targets="main+vace", modules=("to_q", "ffn_down"))
    file = tmp_path / "adapter.safetensors"
    lora.save(file, tree, scale=1.0)
    assert_trees_equal(lora.load(file, TINY), tree)
    assert load_file(file)["transformer.vace_blocks.1.ffn.net.2.lora_A.weight"].shape == (RANK, 48)
    lora.save(file, tree, scale=2.0)
    twice = lambda path, x: 2 * x if path[-1].key == "b" else x
    assert_trees_equal(lora.load(file, TINY), jax.tree_util.tree_map_with_path(twice, tree))


def test_the_header_of_a_saved_file_is_true_for_it(params, tmp_path):
    """Whoever divides alpha by rank gets 1: the run's own scale is in lora_B."""
    file = tmp_path / "adapter.safetensors"
    lora.save(file, trained(2, params), scale=1.5, metadata={"rank": "8", "step": "7"})
    header = weights.read_header(file)[1]
    assert header == {"format": "pt", "rank": "32", "alpha": "32", "scale": "1", "step": "7"}


@pytest.mark.parametrize("alpha", [4.0, 8.0, 24.0])
@pytest.mark.parametrize("rank", [4, 8, 64])
def test_a_run_starts_at_the_strength_of_its_file(params, tmp_path, rank, alpha):
    """A file of rank 4, for runs of rank 4, 8 and 64; the export is the file again."""
    tree = trained(3, params, rank=4, modules=("to_v",))
    file, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    lora.save(file, tree, scale=1.0)
    fresh, scale = fresh_adapter(params, rank=rank, modules=("to_v", "ffn_up")), alpha / rank
    begun = lora.start(file, fresh, TINY, scale=scale)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, fresh)
    assert_same_effect(effect(begun, scale), effect(tree, 1.0))
    lora.save(out, begun, scale=scale)
    assert_same_effect(effect(lora.load(out, TINY), 1.0), effect(tree, 1.0))


def test_what_a_file_lacks_is_fresh_trainable_and_without_effect(params, inputs, tmp_path):
    """Layer 1 alone, of rank 4, in a run of rank 8 on more modules."""
    whole = trained(4, params, rank=4, modules=("to_q",))
    adapter = lora.to_adapter(whole, scale=1.0)
    some = adapter._replace(
        layers={name: layer for name, layer in adapter.layers.items() if ".1.attn2" in name}
    )
    file = tmp_path / "some.safetensors"
    adapters.write(file, adapters.to_diffusers(some), some)
    fresh = fresh_adapter(params, rank=8, modules=("to_q", "to_k"))
    begun = lora.start(file, fresh, TINY, scale=0.5)
    ours, drawn = begun["blocks"]["attn2"]["to_q"], fresh["blocks"]["attn2"]["to_q"]
    np.testing.assert_array_equal(ours["a"][1, :, :4], whole["blocks"]["attn2"]["to_q"]["a"][1])
    np.testing.assert_array_equal(ours["a"][1, :, 4:], drawn["a"][1, :, 4:])
    np.testing.assert_array_equal(ours["a"][0], drawn["a"][0])
    assert ours["b"][1, :4].any() and not ours["b"][1, 4:].any() and not ours["b"][::2].any()
    assert_trees_equal(begun["blocks"]["attn1"], fresh["blocks"]["attn1"])
    beside = our_velocity(params, begun, inputs, lora_scale=0.5)
    alone = our_velocity(params, lora.load(file, TINY), inputs)
    assert relative(beside, alone) <= 2e-6
    assert relative(beside, our_velocity(params, None, inputs)) > 1e-4


NO_ROOM = [
    ({"rank": 16}, {"rank": 8}, r"config\.lora\.rank=16 \(with config\.lora\.alpha=24\)"),
    ({"targets": "main+vace"}, {}, r"set config\.lora\.targets=main\+vace$"),
    ({"modules": lora.MODULES}, {}, r"modules=\"\('to_q','to_k','to_v','to_out','ffn_up','ffn_d"),
    (
        {"rank": 16, "targets": "main+vace", "modules": ("ffn_up",)},
        {"rank": 8, "modules": ("to_q",)},
        r"rank=16 .* and config\.lora\.targets=.* and config\.lora\.modules=\"\('to_q','ffn_up'\)",
    ),
]


@pytest.mark.parametrize(("of_file", "of_run", "message"), NO_ROOM)
def test_a_run_without_room_for_its_file_is_told_what_to_set(
    params, tmp_path, of_file, of_run, message
):
    file = tmp_path / "file.safetensors"
    lora.save(file, trained(5, params, **of_file), scale=1.0)
    with pytest.raises(ValueError, match=r"file\.safetensors holds more.*" + message):
        lora.start(file, fresh_adapter(params, **of_run), TINY, scale=1.5)


def test_layers_that_do_nothing_need_no_room(params, tmp_path, caplog):
    file = tmp_path / "file.safetensors"
    tree = fresh_adapter(params, seed=6, targets="main+vace")  # b is zero everywhere
    lora.save(file, tree, scale=1.0)
    with caplog.at_level("WARNING"):
        begun = lora.start(file, fresh_adapter(params), TINY, scale=1.0)
    assert r"left out, they are zero and not trained: vace_blocks.*.attn1.to_k (2)" in caplog.text
    assert_trees_equal(begun, {"blocks": tree["blocks"]})


def test_hints_as_constants_give_finite_gradients_to_the_adapter_alone(params, inputs):
    x, text, control = inputs
    hints_VBLD = hints(Wan(TINY), params, None, x, TIMESTEP_B, text, control)
    before = jax.tree.map(np.array, params)

    @jax.jit
    def gradient(adapter):
        v = lambda adapter: wan_model.velocity(
            Wan(TINY), params, adapter, x, TIMESTEP_B, text, hints_VBLD
        )
        return jax.grad(lambda adapter: jnp.square(v(adapter)).mean())(adapter)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(fresh_adapter(params))):
        assert np.isfinite(g).all()
        moves = np.abs(g).max(axis=(1, 2)) > 0  # while b is zero, only b has a gradient
        assert moves.all() if path[-1].key == "b" else not moves.any()
    moving = gradient(trained(3, params))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(moving))
    assert_trees_equal(params, before)


def test_merged_equals_beside(params, inputs):
    tree = trained(4, params)
    beside = our_velocity(params, tree, inputs, lora_scale=ALPHA / RANK)
    merged = our_velocity(lora.merge(params, tree, ALPHA / RANK), None, inputs)
    assert relative(merged, beside) <= 2e-6


def one_layer(a, b):
    """The tree of a single layer's adapter or, of a kernel, of its base."""
    return {"blocks": {"attn1": {"to_q": {"a": jnp.array([a]), "b": jnp.array([b])}}}}


def test_the_distance_of_two_adapters_by_hand():
    base = {"blocks": {"attn1": {"to_q": {"kernel": jnp.array([[[3.0, 0.0], [0.0, 4.0]]])}}}}
    adapter = one_layer([[1.0], [0.0]], [[2.0, 0.0]])  # a b holds one number, 2
    weaker = one_layer([[1.0], [0.0]], [[1.0, 0.0]])  # the same at half strength
    beside = one_layer([[0.0], [1.0]], [[1.0, 0.0]])  # a 1 in another place
    for other, scale, want in ((weaker, 1.0, 1 / 5), (beside, 1.0, 5**0.5 / 5), (weaker, 3.0, 0.6)):
        got = lora.distance(base, adapter, other, scale=scale)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def whole_product(layer):
    """Multiply the halves of an adapter's layer out, in float64."""
    return np.asarray(layer["a"], np.float64) @ np.asarray(layer["b"], np.float64)


@pytest.mark.parametrize("step", [1e-1, 1e-5])
def test_the_distance_is_that_of_whole_kernels_however_small(params, step):
    """At 1e-5 of the adapters' size the difference of whole squares would be rounding alone."""
    one = trained(4, params)
    move = lambda x: x + step * jax.random.normal(jax.random.key(1), x.shape)
    other = jax.tree.map(move, one)
    apart = whole = 0.0
    for attn in ("attn1", "attn2"):
        for name in lora.ATTENTION:
            product, product2 = (whole_product(tree["blocks"][attn][name]) for tree in (one, other))
            apart += np.square(product - product2).sum()
            whole += np.square(params["blocks"][attn][name]["kernel"]).sum()
    got = lora.distance(params, one, other, scale=ALPHA / RANK)
    np.testing.assert_allclose(got, ALPHA / RANK * (apart / whole) ** 0.5, rtol=1e-3)
    assert lora.distance(params, one, one, scale=1.0) == 0


def test_an_adapter_of_another_base_is_named(params, tmp_path):
    file = tmp_path / "file.safetensors"
    lora.save(file, trained(5, params, targets="main+vace"), scale=1.0)
    shallow = dataclasses.replace(TINY, num_layers=2, vace_layers=(0, 1))
    wide = dataclasses.replace(TINY, num_attention_heads=4)
    t2v = dataclasses.replace(TINY, vace_layers=())
    cases = [
        (shallow, r"blocks\.2\.attn1\.to_\w+ is beyond this base, which has 2 blocks"),
        (wide, r"attn1\.to_\w+ goes from width 32 to 32, this base's from 64 to 64"),
        (t2v, r"vace_blocks\.0.* is beyond this base, which has 0 vace_blocks"),
    ]
    for config, message in cases:
        with pytest.raises(ValueError, match=r"file\.safetensors: .*" + message):
            lora.load(file, config)
        with pytest.raises(ValueError, match=message):
            lora.start(file, fresh_adapter(params), config, scale=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "all"}, "expected one of main, main\\+vace"),
        ({"modules": ("to_qkv",)}, "to_qkv.*expected some of to_q"),
    ],
)
def test_bad_choices_are_named(params, options, message):
    with pytest.raises(ValueError, match=message):
        fresh_adapter(params, **options)


def test_a_base_without_vace_cannot_be_adapted_there(params):
    t2v = dataclasses.replace(TINY, vace_layers=())
    with pytest.raises(ValueError, match="no VACE blocks"):
        lora.init(jax.random.key(0), params, t2v, targets="main+vace")
