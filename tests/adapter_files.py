"""What tests of adapter files share: a small base, drawn layers, and files as tools write them."""

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file

from evoid_jax.models import adapter_names, adapters
from evoid_jax.models.wan import WanConfig

TINY = WanConfig(2, 16, num_layers=2, ffn_dim=48, text_dim=12, freq_dim=16, vace_layers=(0, 1))
SOME = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.0.ffn.net.0.proj")
SOME += ("blocks.1.ffn.net.2", "vace_blocks.1.attn1.to_v")


def sizes(module: str) -> tuple[int, int]:
    """Return widths in and out of a module of TINY."""
    return 48 if module.endswith("net.2") else 32, 48 if module.endswith("net.0.proj") else 32


def drawn(modules=SOME, rank=4, seed=0) -> dict[str, adapters.Layer]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    ends = {module: sizes(module) for module in modules}
    return {m: adapters.Layer(draw(rank, i), draw(o, rank)) for m, (i, o) in ends.items()}


def write(file, tensors: dict, header=None):
    """Write any tensors, NaN and empty ones included, which our own writer refuses."""
    held = {}
    for key, x in tensors.items():
        x = np.asarray(x)
        half = x.dtype == ml_dtypes.bfloat16
        value = torch.from_numpy(x.astype(np.float32) if half else np.array(x))
        held[key] = value.to(torch.bfloat16) if half else value
    save_file(held, file, header)
    return file


def diffusers_names(layers) -> dict[str, np.ndarray]:
    return adapters.to_diffusers(adapters.Adapter(layers, {}, {}))


def original_names(layers, prefix="diffusion_model.", halves=("lora_A", "lora_B")):
    tensors = {}
    for module, layer in layers.items():
        name = f"{prefix}{adapter_names.original(module)}"
        tensors |= {
            f"{name}.{halves[0]}.weight": layer.a_RI,
            f"{name}.{halves[1]}.weight": layer.b_OR,
        }
    return tensors


def assert_reads(file, layers, scale=1.0):
    """Compare what is read with layers at a scale, a number or one by module."""
    got = adapters.read(file)
    assert got.layers.keys() == layers.keys()
    for module, layer in layers.items():
        factor = scale[module] if isinstance(scale, dict) else scale
        np.testing.assert_array_equal(got.layers[module].a_RI, layer.a_RI)
        np.testing.assert_allclose(got.layers[module].b_OR, layer.b_OR * factor, rtol=1e-6)
    return got


def musubi(layers, alpha) -> dict[str, np.ndarray]:
    tensors = {}
    for module, layer in layers.items():
        name = f"lora_unet_{adapter_names.original(module).replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": layer.a_RI, f"{name}.lora_up.weight": layer.b_OR}
        tensors[f"{name}.alpha"] = np.float32(alpha)
    return tensors
