"""diffusers' Wan transformers with random weights, to compare ours with."""

import numpy as np
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

from evoid_jax.models.wan import WanConfig


def torch_model(config: WanConfig) -> torch.nn.Module:
    """Return a VACE or T2V model in which no weight is zero or one."""
    torch.manual_seed(0)
    kind = WanVACETransformer3DModel if config.vace_layers else WanTransformer3DModel
    model = kind.from_config(config.to_json()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def channels_first(x_BTHWC, dtype=torch.float32) -> torch.Tensor:
    """Return BCTHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x_BTHWC, -1, 1))).to(dtype)
