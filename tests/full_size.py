"""Wan2.1-VACE-1.3B with random weights: its sizes, names and dtypes; nothing is downloaded.

The transformer (2.15 B parameters, bfloat16) and the VAE (float32) are of true size. The text
encoder has the true width but two of its 24 layers and a small vocabulary: it costs 11 GB and shows
nothing that two layers do not.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

from evoid_jax.models import native, pipeline, umt5, vae
from evoid_jax.models.weights import Tensor
from evoid_jax.plan import programs
from evoid_jax.pretrain import tokenizer as tokenizers

WAN = programs.RELEASED["Wan2.1-VACE-1.3B-diffusers"]
PROMPTS = ["a woman nods slowly in a sunny park", "an old man turns his head and smiles"]
DTYPES = {"transformer": ml_dtypes.bfloat16, "vae": np.float32, "text_encoder": ml_dtypes.bfloat16}


def build(folder: Path, seed: int = 0) -> Path:
    """Write the diffusers folder, 5.8 GB, tensor by tensor; returns it."""
    tokenizer_folder = folder.with_name(folder.name + "-tokenizer")
    tokenizers.train(PROMPTS * 8, tokenizer_folder, 400)
    text = umt5.UMT5Config(len(umt5.load_tokenizer(tokenizer_folder)), num_layers=2)
    files = native.released_files(WAN, "bfloat16")
    files["text_encoder/config.json"] |= text.to_json()
    files["vae/config.json"] = vae.VAEConfig().to_json()
    parts = {name: pipeline.part(name, files[f"{name}/config.json"]) for name in pipeline.PARTS}
    tensors = {name: _random(name, parts[name], seed) for name in pipeline.PARTS}
    contents = {path: pipeline.dumps(content) for path, content in files.items()}
    contents |= {f"tokenizer/{f.name}": f.read_bytes() for f in tokenizer_folder.iterdir()}
    pipeline.write_diffusers(pipeline.Pipeline(parts, tensors, contents), folder)
    return folder


def _random(name: str, part: pipeline.Part, seed: int) -> dict[str, Tensor]:
    """Describe tensors that are drawn when they are written, each from its own seed."""
    dtype, tensors = np.dtype(DTYPES[name]), {}
    for i, (key, shape) in enumerate(pipeline.wanted(part).items()):
        draw = lambda key=key, shape=shape, i=i: _draw(key, shape, (seed, i)).astype(dtype)
        tensors[key] = Tensor(dtype, shape, draw, f"tensor {key}")
    return tensors


def _draw(key: str, shape: tuple[int, ...], seed: tuple[int, int]) -> np.ndarray:
    """Draw weights that keep activations near one: no zeros, no ones, nothing that hides."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if len(shape) > 1 and not key.endswith(("gamma", "scale_shift_table")):
        fan_in = np.prod(shape[1:])
        return x * np.float32(fan_in**-0.5)
    near_one = "norm" in key and key.endswith(("weight", "gamma"))
    return np.float32(1.0 * near_one) + 0.1 * x
