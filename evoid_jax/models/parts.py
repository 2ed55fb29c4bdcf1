"""The models of a pipeline, each described by its config.json, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

import jax

from evoid_jax.models import native, umt5, vae, wan, weights
from evoid_jax.models.weights import Rule

PARTS = ("transformer", "vae", "text_encoder")


class Part(NamedTuple):
    """One model, as its config describes it."""

    config: wan.WanConfig | vae.VAEConfig | umt5.UMT5Config
    rules: list[Rule]
    shapes: dict[tuple[str, ...], tuple[int, ...]]  # of our parameters, by path
    original: dict[str, str]  # diffusers key: original key


def part(name: str, config: dict, file: str | None = None) -> Part:
    """Describe one of PARTS from its diffusers config.json, already a dict.

    file: the config's name, for messages.

    Raises:
      ValueError: a model that is not implemented; the message names file and key.
    """
    key, file = jax.random.key(0), file or f"{name}/config.json"
    if name == "transformer":
        c = wan.WanConfig.from_json(config, file)
        shapes = weights.shapes(lambda: wan.init(key, wan.Wan(c)))
        return Part(c, wan.rules(c), shapes, native.transformer_names(c))
    if name == "vae":
        c = vae.VAEConfig.from_json(config, file)
        return Part(c, vae.rules(c), weights.shapes(lambda: vae.init(key, c)), native.vae_names(c))
    c = umt5.UMT5Config.from_json(config, file)
    return Part(c, umt5.rules(c), weights.shapes(lambda: umt5.init(key, c)), native.umt5_names(c))


def wanted(part: Part) -> dict[str, tuple[int, ...]]:
    """Return diffusers key: torch shape of every tensor of a part."""
    return weights.expected(part.rules, part.shapes)


def check_classes(named: dict[str, list], configs: dict[str, dict], index: str) -> None:
    """Raise a ValueError where a part's own config names another class than the index does.

    Args:
      named: content of model_index.json; index: its name, for messages.
      configs: by part, content of its config file.
    """
    for name, config in configs.items():
        own = [config.get("_class_name"), *(config.get("architectures") or [])]
        for kind in own:
            if kind not in (None, named[name][1]):
                raise ValueError(
                    f"{index} says that {name} is of class {named[name][1]}, its own config says "
                    f"{kind}; they are of two models"
                )


def check_fit(described: dict[str, Part], folder: str) -> None:
    """Raise a ValueError that names two parts which cannot be of one model."""
    transformer = described["transformer"].config
    latent, text = described["vae"].config, described["text_encoder"].config
    # the control: what is kept, what is made anew, and the mask of the pixels behind each latent
    control = 2 * latent.z_dim + latent.stride_s**2
    wants = {
        "in_channels": (transformer.in_channels, latent.z_dim, "the vae's z_dim is"),
        "out_channels": (transformer.out_channels, latent.z_dim, "the vae's z_dim is"),
        "text_dim": (transformer.text_dim, text.d_model, "the text_encoder's d_model is"),
    }
    if transformer.vace_layers:
        have = transformer.vace_in_channels
        wants |= {"vace_in_channels": (have, control, "the control that the vae makes has")}
    for key, (have, needed, whose) in wants.items():
        if have != needed:
            raise ValueError(
                f"{folder}: the transformer's {key} is {have}, but {whose} {needed}; the parts are "
                "of two models"
            )
