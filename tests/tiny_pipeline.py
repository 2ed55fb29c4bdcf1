"""A WanVACEPipeline with random weights, small enough to run in a second, for parity tests.

A test module makes its folder once:
    @pytest.fixture(scope="module")
    def folder(tmp_path_factory):
        return tiny_pipeline.build(tmp_path_factory.mktemp("pipeline"))
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from evoid_jax.models import umt5
from evoid_jax.pretrain import tokenizer as tokenizers

torch.set_num_threads(1)  # its threads wait for each other far longer than these sizes take
FRAMES, HEIGHT, WIDTH = 9, 32, 48
PROMPTS = [
    "A woman with red hair nods slowly in a sunny park.",
    "An old man with a beard turns his head and smiles &amp; blinks; the camera zooms in.",
    "A boy waves at the camera, close-up, soft light.",
]
NEGATIVE = "blurry, low quality"


def build(folder: Path, seed: int = 0) -> Path:
    """Write a random pipeline to a folder, every weight of it random, and return the folder."""
    torch.manual_seed(seed)
    tokenizers.train([*PROMPTS, NEGATIVE] * 4, folder / "tokenizer", 400)
    tokenizer = umt5.load_tokenizer(folder / "tokenizer")
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        text_dim=32,
        freq_dim=64,
        ffn_dim=96,
        num_layers=3,
        vace_layers=[0, 2],
    )
    parts = {"vae": vae, "text_encoder": UMT5EncoderModel(text), "transformer": transformer}
    for part in parts.values():
        shake(part)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanVACEPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts)
    pipe.save_pretrained(folder)
    return folder


@torch.no_grad()
def shake(model):
    """Move every weight off its initial value, so that no ones or zeros hide a mistake."""
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight) * (weight.std() if weight.numel() > 1 else 1)
        if weight.ndim == 1 or weight.std() == 0:
            weight += 0.05 * torch.randn_like(weight)


def load(folder: Path) -> WanVACEPipeline:
    """Load the pipeline as a user of diffusers does, quietly."""
    pipe = WanVACEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Draw a smooth random uint8 image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    wave = sum(
        np.sin(rng.uniform(0.02, 0.3, 3) * x + rng.uniform(0.02, 0.3, 3) * y + rng.uniform(0, 6, 3))
        for _ in range(4)
    )
    return ((wave / 8 + 0.5) * 255).clip(0, 255).astype(np.uint8)
