"""Adapters of a run as files that diffusers loads, with a header that says what they are.

The header's strings are read by `generate`, `notebook` and `convert`: where the adapter is from,
and how it is meant to be deployed. diffusers ignores them.
"""

from __future__ import annotations

from pathlib import Path

import jax

from evoid_jax import config, deployment, metrics
from evoid_jax.models import lora, pipeline

FILE = "export/pytorch_lora_weights.safetensors"  # in a run's folder: the evolved adapter


def write(file: Path, tree: dict, cfg: config.Config, step: int, role: str = "evolving") -> Path:
    """Write an adapter of a run; returns the file.

    Args:
      tree: leaves a (L, I, R) and b (L, R, O), of the run's scale.
      step: how many steps it has evolved.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    tree = jax.device_get(tree)
    lora.save(file, tree, scale=cfg.lora.scale, metadata=header(cfg, step, role))
    return file


def header(cfg: config.Config, step: int, role: str) -> dict[str, str]:
    """Return what the header of an adapter's file says, besides its rank and scale.

    How its run made videos is there by the settings' own names, as `deployment.HEADER` has them.
    """
    made = config.to_dict(cfg)
    settings = {name: metrics.get(made, *name.split(".")) for name in deployment.OF_RUN.values()}
    return {
        "base_model": pipeline.model_name(cfg.model),
        "step": str(step),
        "role": role,
        "config_digest": config.digest(cfg),
        "guidance": f"{cfg.guidance.deploy:g}",
        "negative_prompt": cfg.guidance.negative_prompt,
        **{name: str(value) for name, value in settings.items()},
    }
