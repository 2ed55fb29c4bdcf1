"""What tests of conversions share: a base in shards, an adapter, the command in this process."""

import filecmp
from pathlib import Path

import jax
import numpy as np
import tiny_pipeline
from absl import flags
from diffusers import WanVACETransformer3DModel

from evoid_jax import convert
from evoid_jax.models import lora, wan, weights

RANK, ALPHA = 4, 6.0
MODEL = "diffusion_pytorch_model.safetensors"


def base(folder: Path) -> Path:
    """Write a pipeline as diffusers does, its transformer in shards."""
    tiny_pipeline.build(folder)
    model = WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer")
    (folder / "transformer" / MODEL).unlink()
    model.save_pretrained(folder / "transformer", max_shard_size="400KB")
    (folder / "README.md").write_text("the base's own\n")
    return folder


def wan_config(folder) -> wan.WanConfig:
    return wan.WanConfig.from_json(weights.read_config(folder / "transformer"))


def trained(folder, targets="main", seed=0):
    """An adapter as training leaves it: b is not zero."""
    c = wan_config(folder)
    shapes = jax.eval_shape(lambda: wan.init(jax.random.key(0), wan.Wan(c)))
    key = jax.random.key(seed)
    fresh = lora.init(key, shapes, c, RANK, targets, lora.MODULES)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), fresh)


def adapter(folder: Path, file: Path) -> Path:
    """Write the file that a run of this base leaves."""
    origin = {"base_model": "tiny-vace", "step": "7"}
    lora.save(file, trained(folder), scale=ALPHA / RANK, metadata=origin)
    return file


def run(*arguments) -> Path:
    """Convert as the command line does, in this process."""
    values = flags.FlagValues()
    convert.define_flags(values)
    src, dst = values(["convert", *map(str, arguments)])[1:]
    return convert.convert(Path(src), Path(dst), values)


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def assert_same_files(a: Path, b: Path):
    assert files(a) == files(b)
    assert not filecmp.cmpfiles(a, b, files(a), shallow=False)[1]


def held(folder: Path) -> dict[str, np.ndarray]:
    return weights.read_tensors(folder)
