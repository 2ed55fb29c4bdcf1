"""Plans: targets, sizes without a model folder, and (slow) the real compilers' answers."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import evoid
from evoid_jax import config, session, sharding
from evoid_jax.config import Config, Rollout, Train
from evoid_jax.models import pipeline
from evoid_jax.plan import __main__ as plan
from evoid_jax.plan import chips, count, programs


def test_targets_are_read():
    assert chips.parse("h100:8") == chips.Target("h100", (8,))
    assert chips.parse("v5p:2x2x1").count == 4
    assert str(chips.parse("v6e:4x4")) == "v6e:4x4"


@pytest.mark.parametrize("text", ["h100", "h100:0", "h100:2x2", "v5p:4", "v6e:2x2x2", "a100:8"])
def test_other_targets_are_refused_with_the_form(text):
    with pytest.raises(ValueError, match="expected h100:N, h200:N, v5p:AxBxC"):
        chips.parse(text)


def test_a_missing_compiler_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError) as error:
        chips.check_compiler("cuda")
    assert f'pip install "jax[cuda12]=={jax.__version__}"' in str(error.value)
    assert "\n" not in str(error.value)


def test_every_gpu_has_a_description_with_its_memory():
    for kind, chip in chips.CHIPS.items():
        if chip.platform == "cuda":
            text = (chips.DESCRIPTIONS / f"{kind}.txtpb").read_text()
            assert f"device_memory_size: {round(chip.hbm_gib * 2**30)}" in text


def one_device(**changes) -> programs.Setting:
    cfg = Config(model="Wan2.1-VACE-14B-diffusers", **changes)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return programs.Setting(cfg, programs.models(cfg.model), mesh)


def test_the_released_14b_needs_no_folder():
    at = one_device()
    base = programs.base(at)
    count = sum(x.size for x in jax.tree.leaves(base))
    assert 17.2e9 < count < 17.5e9  # 14.3 B of T2V, 3 B of VACE
    assert programs.local_gib(base) == pytest.approx(2 * count / 2**30, rel=2e-3)
    assert at.latent_THWC == (22, 60, 104, 16)
    state = programs.state(at, base)
    assert sum(x.size for x in jax.tree.leaves(state.evolving)) == 40 * 8 * 2 * 32 * 5120
    assert programs.text_encoder_gib(at) == pytest.approx(10.6, abs=0.1)


def test_the_transformer_is_the_one_that_train_makes():
    cfg = evoid.get_config("tiny")
    cfg.update({"dtype": "bfloat16", "residual": "float32", "lora": {"alpha": 8.0}})
    cfg = config.from_dict(cfg.to_dict())
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    at = programs.Setting(cfg, programs.models(cfg.model), mesh)
    made = session.load_frozen(cfg, pipeline.open_diffusers(cfg.model), mesh).wan
    assert (made.residual, made.dtype) == ("float32", jnp.bfloat16)
    assert made == at.wan


def test_the_mesh_is_the_one_that_train_makes():
    """The big presets cut the model over all devices; --fsdp is the only one to change that."""
    cfg = config.from_dict(evoid.get_config("vace_14b").to_dict())
    sizes = dict.fromkeys(("frames", "height", "width", "videos_per_device", "context", "fsdp"))
    mesh = lambda **asked: plan.configure(cfg, SimpleNamespace(**sizes | asked)).mesh
    assert mesh() == config.Mesh(data=1, fsdp=-1, context=1)
    assert mesh(context=4) == config.Mesh(data=1, fsdp=-1, context=4)
    assert mesh(fsdp=2) == config.Mesh(data=-1, fsdp=2, context=1)


@pytest.mark.parametrize("size", ["frames", "height", "width", "videos_per_device", "context"])
def test_a_size_of_zero_is_refused_and_not_taken_for_none(size):
    sizes = dict.fromkeys(("frames", "height", "width", "videos_per_device", "context", "fsdp"))
    with pytest.raises(ValueError, match=rf"config\.\w+\.{size} must be"):
        plan.configure(config.Config(), SimpleNamespace(**sizes | {size: 0}))


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(ValueError, match="somewhere is no folder, and none of Wan2.1-VACE-14B"):
        programs.models("somewhere")


def test_videos_in_flight_follow_the_config():
    assert one_device().together == 1
    at = one_device(rollout=Rollout(videos_per_device=4), train=Train(videos_per_device=2))
    assert (at.videos, at.together) == (32, 4)


def test_a_refusal_for_memory_says_how_much():
    told = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    assert count.asked_gib(told + "hbm. Used 33.75G of 31.25G hbm. Exceeded by 2.50G.") == 33.75
    assert count.asked_gib("Used 512.0M of 31.25G hbm") == 0.5
    assert count.asked_gib("INTERNAL: something else") is None


def test_the_table_tells_what_the_plan_found():
    program = {"hbm_gib": 40.0, "resident_gib": 11.0, "compile_s": 9.0, "collective_gib": None}
    program |= {"model_pflop": 1.0, "executed_pflop": 1.5}
    made = dict.fromkeys(plan.TRACES, program)
    made |= {"target": "v6e:4x4", "devices": 16, "mesh": {"fsdp": 4}, "memory_gib": 31.2}
    made |= {"videos_in_flight": 4, "fits": False, "run_model_pflop": 1e6}
    made |= {"scoring": None, "reward_preset": "tiny"}
    text = plan.table(made | {"hours_at_mfu": {"0.4": 12.5}})
    assert "v6e:4x4: 16 devices" in text
    assert "does not fit 95% of the memory" in text
    assert "12.5 h at 40% of the peak; assumed, not measured" in text.replace("\n", "")
    assert "the reward preset tiny has no formulas" in text


# --- The compilers themselves: minutes, and wheels of gigabytes.


def compiler(platform: str):
    try:
        chips.check_compiler(platform)
    except RuntimeError as error:
        pytest.skip(str(error))


def planned(*args: str) -> dict:
    command = [sys.executable, "-m", "evoid_jax.plan", "--config=configs/evoid.py:vace_14b"]
    done = subprocess.run([*command, "--json", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


LIMITS = [
    ("cuda", ("--target=h100:1",), 68.0),
    ("cuda", ("--target=h100:8",), 34.0),
    ("cuda", ("--target=h100:8", "--config.train.remat=attention"), 46.0),
    ("cuda", ("--target=h100:8", "--height=720", "--width=1280"), 75.0),
    ("tpu", ("--target=v5p:2x2x1",), 46.0),
    ("tpu", ("--target=v5p:2x2x1", "--config.train.remat=attention"), 60.0),
    ("tpu", ("--target=v6e:4x4", "--context=4"), 28.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "args", "limit"), LIMITS)
def test_the_paper_s_run_fits(platform, args, limit):
    compiler(platform)
    made = planned(*args)
    step = made["train_step"]
    assert step["hbm_gib"] <= limit
    assert made["fits"], made
    assert step["executed_pflop"] > step["model_pflop"]
