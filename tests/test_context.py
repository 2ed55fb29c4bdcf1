"""Tokens in pieces: on any mesh of eight devices the numbers are those of one device."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import python

from evoid_jax.models import attention, splash
from evoid_jax.models import wan as wan_model

MESHES = ["(8, 1, 1)", "(1, 8, 1)", "(2, 2, 2)", "(1, 2, 4)", "(1, 1, 8)"]  # data, fsdp, context


@pytest.fixture(scope="module")
def measured():
    return json.loads(python("tests/eight_devices.py", timeout=850))


@pytest.mark.parametrize("heads", [8, 3])  # Ulysses, ring
def test_attention_of_pieces_is_that_of_the_whole_and_never_sees_padding(measured, heads):
    """Output and gradients; the padded keys and values are NaN, some devices hold nothing else."""
    apart = [x for name, x in measured.items() if name.startswith(f"attention {heads} heads")]
    assert len(apart) == {8: 6, 3: 18}[heads]
    assert max(apart) < 1e-6


@pytest.mark.parametrize("mesh", MESHES)
def test_training_agrees_with_one_device(measured, mesh):
    """Three steps; 9 tokens and the teacher's 6 in up to 8 pieces."""
    assert measured["gradient is not zero"] > 1e-6
    assert measured[f"terms {mesh}"] < 1e-5
    assert measured[f"whole gradient {mesh}"] < 1e-5
    assert measured[f"gradient {mesh}"] < 1e-4  # of each leaf: the smallest are differences of sums
    assert measured[f"adapters {mesh}"] < 1e-5


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_share_of_a_kernel(measured, mesh):
    assert measured[f"weights {mesh}"] == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_leaves_the_state_where_it_was(measured, mesh):
    """Elsewhere its buffers could not be donated, and every step would be compiled twice."""
    assert measured[f"state {mesh}"] == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_a_checkpoint_of_pieces_is_whole_on_one_device(measured, mesh):
    assert measured[f"saved {mesh}"] == 0


def test_generation_and_decoding_agree_with_one_device(measured):
    assert measured["rollout"] < 1e-5
    apart = [x for name, x in measured.items() if name.startswith("decode")]
    assert len(apart) == 4 and max(apart) <= 1  # of 255


# --- backends


def mesh_of(platform, kind=""):
    device = SimpleNamespace(platform=platform, device_kind=kind)
    return SimpleNamespace(devices=np.array([device], object))


@pytest.mark.parametrize(
    ("platform", "dtype", "head_size", "want"),
    [
        ("cpu", jnp.bfloat16, 128, "exact"),
        ("gpu", jnp.bfloat16, 128, "cudnn"),
        ("gpu", jnp.float32, 128, "exact"),
        ("tpu", jnp.bfloat16, 128, "splash"),
        ("tpu", jnp.float32, 16, "exact"),
    ],
)
def test_the_platform_chooses_the_kernel_where_it_can_hold_the_model(
    platform, dtype, head_size, want
):
    assert attention.choose("auto", mesh_of(platform), dtype, head_size).name == want
    assert attention.choose("exact", mesh_of(platform), dtype, head_size).name == "exact"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudnn", "attention cudnn needs 16 bit, got float32; use auto or exact"),
        ("splash", "attention splash needs heads of 128 k, got 16; use auto or exact"),
        ("flash", "attention 'flash'; expected one of auto, exact, cudnn, splash"),
    ],
)
def test_a_kernel_that_cannot_hold_the_model_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        attention.choose(name, mesh_of("cpu"), jnp.float32, 16)


@pytest.mark.parametrize(
    ("backend", "pieces", "want"),
    [
        (attention.EXACT, 1, 34321),
        (attention.EXACT, 8, 34328),
        (attention.Backend("cudnn"), 8, 34336),
        (attention.Backend("splash", "TPU v5"), 1, 34816),  # 68 blocks of 512
        (attention.Backend("splash", "TPU v5"), 8, 34816),  # 34 blocks of 128 on every piece
    ],
)
def test_tokens_are_padded_to_whole_pieces_and_blocks(backend, pieces, want):
    assert attention.padded(34321, pieces, backend) == want


def test_one_device_pads_nothing():
    """Without a mesh the program is the one it was: no padding, no layout, no exchange."""
    config = wan_model.WanConfig(2, 12, 1, 32, text_dim=8, in_channels=4, out_channels=4)
    wan = wan_model.Wan(config)
    shapes = jax.eval_shape(lambda key: wan_model.init(key, wan), jax.random.key(0))
    x, t, text = jnp.zeros((1, 3, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, 512, 8))
    graph = jax.make_jaxpr(lambda p: wan_model.velocity(wan, p, None, x, t, text))(shapes)
    for word in (" pad[", "shard_map", "sharding_constraint"):
        assert word not in str(graph)


@pytest.mark.parametrize("length", [640, 500, 100])  # all keys, part of a block, whole blocks less
def test_splash_is_exact_attention_to_the_first_keys(length):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (2, 640, 2, 128)) for key in keys)
    k, v = (x.at[:, length:].set(1e3) for x in (k, v))

    def both(attend):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    got = both(lambda q, k, v: splash.attention(q, k, v, length, "TPU v5", interpret=True))
    want = both(lambda q, k, v: attention.exact(q, k[:, :length], v[:, :length]))
    for a, b in zip(got, want, strict=True):
        assert jnp.linalg.norm(a - b) < 2e-6 * jnp.linalg.norm(b)


def test_splash_wants_whole_blocks():
    q = jnp.zeros((1, 130, 1, 128))
    with pytest.raises(ValueError, match="130 tokens are no multiple of 128"):
        splash.attention(q, q, q, None, "TPU v5")
