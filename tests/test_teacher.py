"""The T2V teacher: shared where its bytes are the base's, else loaded beside it and obeyed."""

import dataclasses
import json
from pathlib import Path

import conversions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipeline

from evoid_jax import config, evolve, rollout, sharding, teacher
from evoid_jax.models import wan, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline.build(tmp_path_factory.mktemp("teacher") / "vace")


@pytest.fixture(scope="module")
def frozen(folder):
    return rollout.load(folder)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def t2v(folder: Path, out: Path, change=lambda key, x: x, **sizes) -> Path:
    """Write the main half of a VACE transformer as a T2V transformer."""
    held = weights.read_tensors(folder / "transformer")
    main = {key: change(key, np.array(x)) for key, x in held.items() if "vace" not in key}
    weights.write_tensors(out / conversions.MODEL, main)
    settings = weights.read_config(folder / "transformer") | sizes
    settings = {key: value for key, value in settings.items() if "vace" not in key}
    (out / "config.json").write_text(
        json.dumps(settings | {"_class_name": "WanTransformer3DModel"})
    )
    return out


def test_no_folder_trusts_the_base(folder, frozen, mesh):
    assert teacher.load("", folder, frozen, mesh) is None


def test_equal_bytes_share_the_base(folder, frozen, mesh, tmp_path, capsys):
    assert teacher.load(str(t2v(folder, tmp_path / "t2v")), folder, frozen, mesh) is None
    assert "byte-equal" in capsys.readouterr().out


def test_other_bytes_are_loaded_and_named(folder, frozen, mesh, tmp_path, capsys):
    changed = "blocks.1.ffn.net.2.bias"
    shake = lambda key, x: x + 0.5 if key == changed else x
    loaded = teacher.load(str(t2v(folder, tmp_path / "t2v", shake)), folder, frozen, mesh)
    said = capsys.readouterr().out
    assert changed in said and "1 of" in said and "beside" in said

    c = frozen.wan.config
    keys = jax.random.split(jax.random.key(0), 3)
    state = evolve.init(config.Config(), frozen.wan_params, c)
    x0 = jax.random.normal(keys[0], (2, 3, 4, 4, c.in_channels))
    noise, t_B = jax.random.normal(keys[1], x0.shape), jnp.array([0.4, 0.7])
    text = jax.random.normal(keys[2], (2, 4, c.text_dim))
    control = jnp.zeros((2, 3, 4, 4, c.vace_in_channels))
    sample = evolve.Sample(x0, noise, t_B, text, text[:1], control, jnp.ones(2), jnp.ones(2))
    setup = evolve.Setup(config.Config(), frozen.wan, mesh, references=1)
    step = jax.jit(lambda base, t2v: evolve.objective(state, base, sample, t2v, setup)[1])
    own, other = step(frozen.wan_params, None), step(frozen.wan_params, loaded)
    # the teacher's terms follow it, and nothing else does
    assert abs(own["loss"]["t2v"] - other["loss"]["t2v"]) > 1e-3 * own["loss"]["t2v"]
    for kind, names in {"loss": ("policy", "self"), "drift": ("evo_stb", "evo_init")}.items():
        for name in names:
            np.testing.assert_allclose(own[kind][name], other[kind][name], rtol=1e-6, atol=1e-9)
    x_t = (1 - t_B)[:, None, None, None, None] * x0
    x_t += t_B[:, None, None, None, None] * noise
    hints = wan.hints(frozen.wan, frozen.wan_params, None, x_t, 1000 * t_B, text, control)
    v = wan.velocity(frozen.wan, frozen.wan_params, None, x_t, 1000 * t_B, text, hints)
    v_t2v = wan.velocity(frozen.wan, loaded, None, x_t[:, 1:], 1000 * t_B, text)
    want = jnp.square(v[:, 1:] - v_t2v).mean((1, 2, 3, 4)).sum()
    np.testing.assert_allclose(other["loss"]["t2v"], want, rtol=1e-4)


def test_another_size_is_refused(folder, frozen, mesh, tmp_path):
    held = weights.read_config(folder / "transformer")["num_layers"]
    with pytest.raises(ValueError, match=f"another size.*num_layers {held - 1}, not {held}"):
        drop = t2v(folder, tmp_path / "t2v", num_layers=held - 1)
        tensors = weights.read_tensors(drop)
        fewer = {k: np.array(x) for k, x in tensors.items() if f"blocks.{held - 1}." not in k}
        weights.write_tensors(drop / conversions.MODEL, fewer)
        teacher.load(str(drop), folder, frozen, mesh)


def test_another_size_is_refused_before_the_base_is_loaded(folder, tmp_path):
    """`check` needs the base's config, none of its weights."""
    base = wan.WanConfig.from_json(weights.read_config(folder / "transformer"))
    drop = t2v(folder, tmp_path / "t2v")
    teacher.check(str(drop), folder, base)
    teacher.check("", folder, base)
    other = dataclasses.replace(base, ffn_dim=2 * base.ffn_dim)
    with pytest.raises(ValueError, match="config.teacher: .* of another size.*ffn_dim"):
        teacher.check(str(drop), folder, other)
    with pytest.raises(OSError, match="missing"):
        teacher.check(str(tmp_path), folder, base)
