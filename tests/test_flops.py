"""The formulas against numbers worked out by hand, and the counter against the formulas."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from evoid_jax import sharding
from evoid_jax.algorithm_groups import Imitation
from evoid_jax.config import Config, Guidance, Lora, Train, Video
from evoid_jax.models import wan
from evoid_jax.plan import count, flops, programs

VACE_14B = programs.RELEASED["Wan2.1-VACE-14B-diffusers"]
VACE_1_3B = programs.RELEASED["Wan2.1-VACE-1.3B-diffusers"]
TINY = wan.WanConfig(2, 12, 4, 40, text_dim=16, text_len=8, vace_layers=(0, 2))


def petaflop(c: wan.WanConfig, tokens: int, vace: bool) -> float:
    """A forward pass as the public arithmetic has it: blocks and VACE's projections."""
    work = flops.blocks(c, c.num_layers, tokens, 512)
    if vace:
        work = flops.add(work, flops.blocks(c, len(c.vace_layers), tokens, 512))
    projections = (len(c.vace_layers) + 1) * 2 * c.dim**2 * tokens if vace else 0
    return (work.forward + projections) / flops.PETA


@pytest.mark.parametrize(
    ("c", "tokens", "vace", "expected"),
    [
        (VACE_14B, 34320, True, 2.1785),  # 81 x 480 x 832 and a reference frame
        (VACE_14B, 32760, False, 1.678),  # the teacher: no reference
        (VACE_14B, 79200, True, 8.518),  # 81 x 720 x 1280 and a reference frame
        (VACE_1_3B, 34320, True, 0.462),
        (VACE_1_3B, 34320, False, 0.306),
    ],
)
def test_forward_passes_of_the_released_models(c, tokens, vace, expected):
    assert petaflop(c, tokens, vace) == pytest.approx(expected, rel=6e-4, abs=4e-4)


def test_ends_and_adapter_are_small_beside_the_blocks():
    at = flops.sizes(VACE_14B, (22, 60, 104), 1)
    assert at == flops.Sizes(34320, 32760, 512)
    whole = flops.main(VACE_14B, at.tokens, at.text).forward
    blocks = flops.blocks(VACE_14B, 40, at.tokens, at.text).forward
    assert 1 < whole / blocks < 1.0005
    thin = flops.adapter(VACE_14B, Config(), at.tokens, at.text).forward
    # by hand: 6 of 8 layers see the video, 2 the text; each 2 x 32 x (5120 + 5120) a row
    assert thin == 40 * (6 * 34320 + 2 * 512) * 2 * 32 * 10240


def counted(f, *args) -> float:
    return count.flops(jax.jit(f).trace(*args))


def test_loops_branches_and_recomputation_are_counted():
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    once = 2 * 4**3
    assert counted(jnp.matmul, x, x) == once
    repeat = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]
    assert counted(repeat, x) == 7 * once
    assert counted(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, jnp.sin, x), x) == (
        2 * once
    )
    layer = lambda w, x: jnp.sin(jnp.sin(x @ w) @ w).sum()
    plain, again = (counted(jax.value_and_grad(f), x, x) for f in (layer, jax.checkpoint(layer)))
    # Five: two forward, two for w, one for what is between. Recomputation repeats the forward ones:
    # the slope of the outer sin needs the second product.
    assert (plain, again) == (5 * once, 7 * once)
    assert counted(lambda x: (x @ x, x)[1], x) == 0


def test_devices_of_a_shard_map_are_added_up():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    places = {"mesh": mesh, "in_specs": P("data"), "out_specs": P("data")}
    assert counted(jax.shard_map(lambda x: x @ x.T, **places), x) == 2 * 4**3


def test_convolutions_are_counted():
    x, kernel = jnp.zeros((1, 5, 6, 3)), jnp.zeros((3, 3, 3, 8))
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert counted(convolve, x, kernel) == 2 * (5 * 6 * 8) * (3 * 3 * 3)


def test_the_model_does_what_the_formulas_say():
    module, cfg = wan.Wan(TINY, remat="none"), Config(lora=Lora(rank=2))
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    base = jax.eval_shape(lambda: wan.init(jax.random.key(0), module))
    x, control = shape(1, 3, 4, 6, 16), shape(1, 3, 4, 6, 96)
    t, text = shape(1), shape(1, TINY.text_len, 16)
    at = flops.sizes(TINY, (3, 4, 6), 1)
    velocity = counted(partial(wan.velocity, module), base, None, x, t, text)
    assert velocity == flops.main(TINY, at.tokens, at.text).forward
    hints = counted(partial(wan.hints, module), base, None, x, t, text, control)
    assert hints == flops.vace(TINY, at.tokens, at.text).forward
    lora = jax.eval_shape(lambda base: programs.evolve.init(cfg, base, TINY).stable, base)
    adapted = counted(partial(wan.velocity, module), base, lora, x, t, text)
    assert adapted - velocity == flops.adapter(TINY, cfg, at.tokens, at.text).forward


def setting(**groups) -> programs.Setting:
    """A plan of the tiny transformer on one device."""
    cfg = Config(lora=Lora(rank=2), dtype="float32", **groups)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    models = programs.Models(TINY, programs.vae.VAEConfig(), programs.umt5.UMT5Config())
    cfg = dataclasses.replace(cfg, video=Video(frames=9, height=32, width=48))
    return programs.Setting(cfg, models, mesh)


@pytest.mark.parametrize("algorithm", ["imitation", "rwr", "nft", "grpo"])
def test_another_algorithm_does_no_more_than_it_must(algorithm):
    at = setting(algorithm=algorithm)
    need = flops.objective(TINY, at.cfg, flops.sizes(TINY, at.latent_THWC[:3], 1))
    executed = count.flops(programs.train_step(at)) / (at.videos * at.cfg.train.timesteps)
    assert 0.98 * need["executed"] < executed < 1.02 * need["executed"]


def test_what_algorithms_need_beside_each_other():
    """By hand: imitation lacks stable, initial and teacher, nft the teacher alone."""
    at = flops.sizes(TINY, (3, 4, 6), 1)
    need = {
        name: flops.objective(TINY, Config(algorithm=name), at)["model"] for name in flops.ASKED
    }
    whole, bare = (flops.main(TINY, tokens, at.text).forward for tokens in (at.video, at.tokens))
    thin = flops.adapter(TINY, Config(), at.tokens, at.text).forward
    assert need["evoid"] - need["nft"] == pytest.approx(whole)
    assert need["nft"] - need["imitation"] == pytest.approx(2 * bare + thin)
    assert need["nft"] == need["grpo"] and need["rwr"] == need["imitation"]


def test_a_step_generates_and_updates_unless_there_are_clips():
    at = flops.sizes(TINY, (3, 4, 6), 1)
    best, clips = (
        Config(algorithm="imitation", imitation=Imitation(target=target))
        for target in ("best", "clips")
    )
    update = 32 * 4 * flops.objective(TINY, best, at)["model"]
    assert flops.step(TINY, clips, at) == pytest.approx(update)
    generated = 32 * 20 * flops.solver_step(TINY, best, at)
    assert flops.step(TINY, best, at) == pytest.approx(update + generated)


def test_walks_cost_what_other_rollouts_do():
    plain, walks = setting(), setting(algorithm="grpo")
    assert count.flops(programs.rollout_step(walks)) == count.flops(programs.rollout_step(plain))
    assert programs.walk(walks, 32).shape == (32, 21, *walks.latent_THWC)
    assert programs.walk(plain, 32) is None


@pytest.mark.parametrize("remat", ["full", "attention", "none"])
def test_a_train_step_does_no_more_than_it_must(remat):
    """One hint branch, four roles, one backward pass with what it recomputes."""
    at = setting(train=Train(remat=remat))
    need = flops.objective(TINY, at.cfg, flops.sizes(TINY, at.latent_THWC[:3], 1))
    executed = count.flops(programs.train_step(at)) / (at.videos * at.cfg.train.timesteps)
    assert 0.98 * need["executed"] < executed < 1.02 * need["executed"]


def test_guidance_doubles_a_solver_step():
    at = flops.sizes(TINY, (3, 4, 6), 1)
    once, twice = (
        flops.solver_step(TINY, Config(guidance=Guidance(rollout=g)), at) for g in (1.0, 5.0)
    )
    assert twice == 2 * once


HLO = """HloModule jit_f

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %ag = bf16[8,4]{1,0} all-gather(%p1), channel_id=1, dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %ag)
}

%limit (p: (s32[], f32[6])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[6])) -> (s32[], f32[6]) {
  ROOT %cp = f32[6]{0} collective-permute(%p1), channel_id=9
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %rs = f32[2]{0} reduce-scatter(f32[4]{0} %a), channel_id=2, dimensions={0}
  %w = (s32[], bf16[8,4]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"40"}}
  %v = (s32[], f32[6]) while(%init), condition=%limit, body=%outer
  %s = (f32[4], f32[4]) all-reduce-start(%a), channel_id=3, to_apply=%add
  ROOT %d = f32[4]{0} all-reduce-done(%s)
}
"""  # noqa: E501


def test_collectives_in_loops_are_multiplied():
    exchanged = count.collective_gib(HLO)
    assert exchanged == {
        "reduce-scatter": 16 / 2**30,
        "all-gather": 40 * 64 / 2**30,
        "collective-permute": 7 * 24 / 2**30,  # the length stands in the condition alone
        "all-reduce": 16 / 2**30,
    }
