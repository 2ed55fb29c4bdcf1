"""VACE-1.3B at full size, random weights: out and back, diffusers' numbers, one evolution step.

Slow: 40 GB of disk below pytest's folder, 15 GB of memory, about half an hour on two cores.
"""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import full_size
import numpy as np
import pytest
import torch

from evoid_jax.models import weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_size.build(tmp_path_factory.mktemp("full") / "Wan2.1-VACE-1.3B-diffusers")


def python(*arguments) -> str:
    """Run Python with its own memory; returns what it printed."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def same_pth(a: Path, b: Path) -> bool:
    x, y = (torch.load(f, mmap=True, weights_only=True) for f in (a, b))
    return list(x) == list(y) and all(
        x[key].dtype == y[key].dtype and torch.equal(x[key], y[key]) for key in x
    )


def test_out_and_back_restores_every_byte(folder, tmp_path):
    convert = ("-m", "evoid_jax.convert")
    python(*convert, folder, tmp_path / "native", "--to=native")
    python(*convert, tmp_path / "native", tmp_path / "back", "--to=diffusers")
    assert files(tmp_path / "back") == files(folder)
    assert not filecmp.cmpfiles(folder, tmp_path / "back", files(folder), shallow=False)[1]
    python(*convert, tmp_path / "back", tmp_path / "again", "--to=native")
    names = files(tmp_path / "native")
    assert files(tmp_path / "again") == names
    pickled = [name for name in names if name.endswith(".pth")]
    assert len(pickled) == 2
    assert all(same_pth(tmp_path / "native" / n, tmp_path / "again" / n) for n in pickled)
    plain = [name for name in names if name not in pickled]
    found = filecmp.cmpfiles(tmp_path / "native", tmp_path / "again", plain, shallow=False)
    assert found[0] == plain


INPUTS = """
import sys
import numpy as np
folder, dtype, out = sys.argv[1:]
rng = np.random.default_rng(0)
x_BTHWC = rng.standard_normal((1, 4, 8, 12, 16), np.float32)
text_BSE = np.zeros((1, 512, 4096), np.float32)
text_BSE[:, :20] = rng.standard_normal((1, 20, 4096), np.float32)
control_BTHWC = rng.standard_normal((1, 4, 8, 12, 96), np.float32)
t_B = np.array([712.5], np.float32)
"""
THEIRS = """
import torch
from diffusers import WanVACETransformer3DModel
kind = getattr(torch, dtype)
path = folder + "/transformer"
model = WanVACETransformer3DModel.from_pretrained(path, torch_dtype=kind).eval()
first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(kind)
with torch.no_grad():
    v = model(
        first(x_BTHWC),
        torch.from_numpy(t_B),
        torch.from_numpy(text_BSE).to(kind),
        control_hidden_states=first(control_BTHWC),
    ).sample
np.save(out, np.moveaxis(v.float().numpy(), 1, -1))
"""
OURS = """
import jax
import jax.numpy as jnp
from evoid_jax import rollout
from evoid_jax.models import wan
jax.config.update("jax_default_matmul_precision", "highest")
frozen = rollout.load(folder, jnp.dtype(dtype))
run = jax.jit(lambda p, *a: wan.velocity(frozen.wan, p, None, *a))
see = jax.jit(lambda p, *a: wan.hints(frozen.wan, p, None, *a))
given = x_BTHWC, t_B, jnp.asarray(text_BSE)
found = see(frozen.wan_params, *given, jnp.asarray(control_BTHWC))
np.save(out, np.asarray(run(frozen.wan_params, *given, found)))
"""


def test_a_forward_is_diffusers(folder, tmp_path):
    velocity = {}
    for dtype in ("float32", "bfloat16"):
        for who, script in (("theirs", THEIRS), ("ours", OURS)):
            out = tmp_path / f"{who}-{dtype}.npy"
            python("-c", INPUTS + script, folder, dtype, out)
            velocity[who, dtype] = np.load(out)
    exact = velocity["theirs", "float32"]
    away = lambda who, dtype: np.linalg.norm(velocity[who, dtype] - exact) / np.linalg.norm(exact)
    print({key: f"{away(*key):.2e}" for key in velocity})
    assert away("ours", "float32") <= 1e-5
    assert away("ours", "bfloat16") <= min(2e-2, 1.1 * away("theirs", "bfloat16"))


def test_one_evolution_step_and_its_export(folder, tmp_path):
    sizes = {"video.frames": 9, "video.height": 64, "video.width": 64, "steps": 1}
    sizes |= {"data.pairs": 1, "data.seeds": 2, "rollout.steps": 2, "train.timesteps": 1}
    sizes |= {"data.heldout_identities": 1, "data.heldout_seeds": 1, "model": folder}
    sizes |= {"reward.preset": "tiny", "reward.judge_model": "heuristic"}
    changes = [f"--config.{key}={value}" for key, value in sizes.items()]
    run = ("-m", "evoid_jax.train", "--config=configs/evoid.py:vace_1_3b")
    python(*run, f"--workdir={tmp_path / 'run'}", *changes)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["valid_fraction"] == 1 and line["grad_norm"] > 0 and line["loss"]["policy"] > 0
    file = tmp_path / "run" / "export" / "pytorch_lora_weights.safetensors"
    moved = {k: np.abs(x.read()).max() for k, x in weights.read_header(file)[0].items()}
    assert len(moved) == 2 * 8 * 30 and min(moved.values()) > 0
    print(python("-c", LOADS, folder, file))


LOADS = """
import sys
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
folder, file = sys.argv[1:]
transformer = WanVACETransformer3DModel.from_pretrained(
    folder, subfolder="transformer", torch_dtype=torch.bfloat16
)
pipe = WanVACEPipeline.from_pretrained(
    folder, transformer=transformer, vae=None, text_encoder=None, torch_dtype=torch.bfloat16
)
pipe.load_lora_weights(file)
layers = [m for m in transformer.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
assert len(layers) == 8 * 30, len(layers)
print("loads in diffusers")
"""
