"""The linear layer: one rounding, an adapter that survives it, gradients as autodiff has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close, relative

from evoid_jax.models import platform
from evoid_jax.models.linear import Dense, adapted

HALF = jnp.bfloat16
WIDTH, RANK, TOKENS = 2048, 32, 512


def layer(seed=0, width=WIDTH, videos=1, tokens=TOKENS):
    """Input, kernel and bias in bfloat16, and a fresh adapter's `a`, of usual sizes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (videos, tokens, width)).astype(HALF)
    kernel = (jax.random.normal(keys[1], (width, width)) * width**-0.5).astype(HALF)
    bias = (0.1 * jax.random.normal(keys[2], (width,))).astype(HALF)
    bound = width**-0.5
    return x, kernel, bias, jax.random.uniform(keys[3], (width, RANK), minval=-bound, maxval=bound)


def signs(seed, width=WIDTH):
    """The direction of a first update: Adam moves every number by the rate."""
    return jnp.sign(jax.random.normal(jax.random.key(seed), (RANK, width)))


@jax.jit
def see(x, kernel, bias, adapter):
    """The layer as a model has it, in x's dtype."""
    variables = {"params": {"kernel": kernel, "bias": bias}}
    if adapter is not None:
        variables["lora"] = {"a": adapter[0], "b": adapter[1]}
    return Dense(len(bias), x.dtype).apply(variables, x)


def exact(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


@pytest.fixture(params=["cuda", "tpu"], autouse=True)
def traced_for(request):
    """Both forms of the sum, each of which holds all that is tested here."""
    jax.clear_caches()  # what is traced for one platform is not traced again for the other
    with platform.compiling_for(request.param):
        yield request.param


@pytest.mark.parametrize("rate", [1e-5, 1e-4])
def test_the_effect_of_a_first_update_survives_bfloat16(rate):
    """Of the stable adapter 1e-5, of the evolving 1e-4: 1e-5 and 1e-4 of the output."""
    x, kernel, bias, a = layer()
    b = rate * signs(9)
    moved, still = exact(see(x, kernel, bias, (a, b)), see(x, kernel, bias, (a, 0 * b)))
    x, a, b = exact(x, a, b)
    true = x @ a @ b
    gain = ((moved - still) * true).sum() / np.square(true).sum()
    assert 0.95 < gain < 1.05


@pytest.mark.parametrize("width", [24, 1536, WIDTH])
def test_an_adapter_of_zero_is_no_adapter_bit_for_bit(width, traced_for):
    x, kernel, bias, a = layer(width=width)
    zero = see(x, kernel, bias, (a, jnp.zeros((RANK, width))))
    none = see(x, kernel, bias, None)
    if traced_for == "tpu":
        # Its matmuls sum in float32 either way. A CPU has another kernel for a result in float32,
        # so here that one, rounded, is what is expected.
        none = jax.jit(rounded_product)(x, kernel, bias)
    np.testing.assert_array_equal(np.asarray(zero), np.asarray(none))


def rounded_product(x, kernel, bias):
    wide = jnp.einsum("...i,oi->...o", x, kernel, preferred_element_type=jnp.float32)
    return wide.astype(x.dtype) + bias[None, None]


def one(kernel, b, bias=0.0):
    """The layer from width 2 to 1 at rank 1, in bfloat16, where x is 1, 1 and a is 1, 0."""
    x, kernel = jnp.ones((1, 2), HALF), jnp.array([kernel], HALF)
    adapter = jnp.array([[1.0], [0.0]]), jnp.full((1, 1), b)
    return float(see(x, kernel, jnp.full(1, bias, HALF), adapter)[0, 0])


def test_the_adapter_is_added_before_the_rounding():
    # Next to 256 stands 258: each part alone is too small to get there, both together are not.
    assert one((256.0, 0.75), b=0.0) == 256 and one((256.0, 0.0), b=0.75) == 256
    assert one((256.0, 0.75), b=0.75) == 258


def test_an_update_of_a_grown_adapter_is_seen():
    # bfloat16 knows 1 and 1.0078: of an adapter in it, 1.001 would be 1.
    assert one((0.0, -1.0), b=1.0) == 0
    np.testing.assert_allclose(one((0.0, -1.0), b=1.001), 0.001, rtol=0.01)


def plain(x, kernel, bias, adapter):
    y = x @ kernel.T + bias[None, None]
    return y if adapter is None else y + x @ adapter[0] @ adapter[1]


def small(with_adapter, dtype=jnp.float32):
    """Arguments of the layer at width 24, some videos, and a cotangent."""
    x, kernel, bias, a = (w.astype(jnp.float32) for w in layer(width=24, videos=3, tokens=7))
    adapter = (a, 0.1 * signs(1, width=24)) if with_adapter else None
    dy = jax.random.normal(jax.random.key(2), x.shape)
    return (x.astype(dtype), kernel.astype(dtype), bias.astype(dtype), adapter), dy.astype(dtype)


def pulled(f, arguments, dy):
    """Return the value of f and the cotangents of all its arguments."""
    y, pull = jax.vjp(f, *arguments)
    return y, pull(dy)


@pytest.mark.parametrize("with_adapter", [True, False])
def test_in_float32_value_and_gradients_are_the_plain_formula_s(with_adapter):
    arguments, dy = small(with_adapter)
    close(pulled(see, arguments, dy), pulled(plain, arguments, dy), 1e-6)


def test_in_bfloat16_gradients_are_near_those_of_the_same_numbers_in_float32():
    arguments, dy = small(with_adapter=True, dtype=HALF)
    y, cotangents = pulled(see, arguments, dy)
    assert y.dtype == HALF
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    _, want = pulled(plain, wide, dy.astype(jnp.float32))
    for x, ours, theirs in zip(
        jax.tree.leaves(arguments), jax.tree.leaves(cotangents), jax.tree.leaves(want), strict=True
    ):
        assert ours.dtype == x.dtype
        assert relative(ours.astype(jnp.float32), theirs) < 8e-3


def test_matmuls_multiply_bfloat16_and_sum_what_the_adapter_learns_from_in_float32():
    (x, kernel, _, (a, b)), dy = small(with_adapter=True, dtype=HALF)
    learning = lambda a, b: pulled(lambda a, b: adapted(x, kernel, a, b), (a, b), dy)[1]
    program = jax.make_jaxpr(learning)(a, b)
    dots = [eqn for eqn in program.eqns if eqn.primitive.name == "dot_general"]
    assert {v.aval.dtype for eqn in dots for v in eqn.invars} == {jnp.dtype(HALF)}
    # Back from each result to the matmul that it is a sum of.
    made_by = {v: eqn for eqn in program.eqns for v in eqn.outvars}
    for result in program.jaxpr.outvars:
        while (eqn := made_by[result]).primitive.name != "dot_general":
            assert result.aval.dtype == jnp.float32
            result = eqn.invars[0]
        assert result.aval.dtype == jnp.float32


def test_the_layer_applies_the_adapter_at_its_scale():
    (x, kernel, bias, (a, b)), _ = small(with_adapter=True)
    variables = {"params": {"kernel": kernel, "bias": bias}, "lora": {"a": a, "b": b}}
    got = Dense(24, lora_scale=0.5).apply(variables, x)
    np.testing.assert_allclose(got, plain(x, kernel, bias, (a, 0.5 * b)), rtol=1e-5, atol=1e-5)
