"""How a trained model is used: sizes, steps, guidance and solver of the videos made with it.

A flag says it, else the adapter's file, else the model's own `evoid.json` and scheduler, else
DEFAULTS and SAMPLER.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from absl import flags

from evoid_jax import files
from evoid_jax.groups import NEGATIVE_PROMPT
from evoid_jax.models import umt5

# Used where no flag, no adapter and no `evoid.json` in the model's folder says otherwise. Sizes,
# rate and negative prompt are Wan2.1's own, steps and guidance those of the EvoID paper.
DEFAULTS = {
    "frames": 81,
    "height": 480,
    "width": 832,
    "fps": 16,
    "steps": 20,
    "guidance": 5.0,
    "negative_prompt": NEGATIVE_PROMPT,
}
# How the solver runs. None: as the model's scheduler says.
SAMPLER = {"scheduler": None, "shift": None, "residual": "model", "reference_order": "diffusers"}
CHOICES = {
    "scheduler": ("unipc", "euler"),
    "residual": ("model", "float32"),
    "reference_order": ("diffusers", "vace"),
}
# What an adapter's header calls a setting of the run that made it: as the run's config does, for
# in another maker's file `steps` would be those of training.
OF_RUN = {
    "scheduler": "rollout.scheduler",
    "steps": "rollout.steps",
    "shift": "rollout.shift",
    "reference_order": "rollout.reference_order",
    "residual": "residual",
    "frames": "video.frames",
    "height": "video.height",
    "width": "video.width",
    "fps": "video.fps",
}
HEADER = {"guidance": "guidance", "negative_prompt": "negative_prompt"} | OF_RUN
# Whether whole, least and most of each. Below 0 guidance would be off, as it is up to 1; sizes and
# frames must further fit the model's strides.
BOUNDS = {
    "frames": (True, 1, 100_000),
    "height": (True, 1, 16_384),
    "width": (True, 1, 16_384),
    "fps": (False, 0.1, 1000),
    "steps": (True, 1, 1000),
    "guidance": (False, 0, 1000),
}


def define_flags(values: flags.FlagValues):
    """Define flags in `values`: for each key of DEFAULTS, solver, time shift, seed and dtype."""
    string, number, whole, choice = (
        partial(define, flag_values=values)
        for define in (
            flags.DEFINE_string,
            flags.DEFINE_float,
            flags.DEFINE_integer,
            flags.DEFINE_enum,
        )
    )
    string("negative_prompt", None, "Default of the adapter or the model, else Wan2.1's own.")
    whole(
        "steps",
        None,
        "Denoising steps; default of the adapter or the model, else 20.",
        lower_bound=1,
    )
    number("guidance", None, "Off up to 1; default of the adapter or the model, else 5.")
    number("shift", None, "Time shift, above 0; default of the adapter or the model's scheduler.")
    whole("frames", None, "4 k + 1; default of the adapter or the model, else 81.")
    whole("height", None, "Pixels; default of the adapter or the model, else 480.")
    whole("width", None, "Pixels; default of the adapter or the model, else 832.")
    number("fps", None, "Frames per second; default of the adapter or the model, else 16.")
    whole("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
    choice("scheduler", None, CHOICES["scheduler"], "Solver; default of the adapter or the model.")
    choice("dtype", None, ["float32", "bfloat16"], "Of the transformer; default float32 on CPU.")
    choice(
        "residual",
        None,
        CHOICES["residual"],
        "Of its residual stream; model is --dtype. Default of the adapter, else model.",
    )


def settings(folder: str | Path, asked: dict, header: Mapping[str, str] | None = None) -> dict:
    """Settle every key of DEFAULTS: from `asked` unless None, an adapter's header, the model's
    evoid.json, DEFAULTS.

    Args:
      asked: flags by name; others than those of DEFAULTS are left alone.
      header: of the adapter's file, which says how it is meant to be deployed.

    Raises:
      ValueError: evoid.json holds a key that DEFAULTS has not, or a value is out of bounds.
    """
    own, file = {}, Path(folder) / "evoid.json"
    if file.exists():
        own = files.read_json(file)
        if unknown := sorted(own.keys() - DEFAULTS.keys()):
            raise ValueError(f"{file} has {unknown[0]!r}; expected some of {sorted(DEFAULTS)}")
    flagged = {key: asked[key] for key in DEFAULTS if asked.get(key) is not None}
    for key, value in own.items():
        check_bounds(f"{file}: {key}", key, value)
    meant = {key: x for key, x in deployment(header or {}).items() if key in DEFAULTS}
    for key, value in flagged.items():
        check_bounds(f"--{key}", key, value)
    return DEFAULTS | own | meant | flagged


def sampler(asked: dict, header: Mapping[str, str] | None = None) -> dict:
    """Settle every key of SAMPLER: from `asked` unless None, an adapter's header, SAMPLER.

    Args:
      asked: flags by name; others than those of SAMPLER are left alone.
      header: of the adapter's file.

    Raises:
      ValueError: a value is out of bounds, or none of CHOICES.
    """
    flagged = {key: asked[key] for key in SAMPLER if asked.get(key) is not None}
    meant = {key: x for key, x in deployment(header or {}).items() if key in SAMPLER}
    for key, value in flagged.items():
        check_bounds(f"--{key}", key, value)
    return SAMPLER | meant | flagged


def told(asked: dict, header: Mapping[str, str]) -> str:
    """Say which settings are an adapter's, where no flag goes before them; "" where none is."""
    meant = {key: x for key, x in deployment(header).items() if asked.get(key) is None}
    if "negative_prompt" in meant:  # it is long
        meant["negative_prompt"] = "of its own" if meant["negative_prompt"] else "empty"
    if not meant:
        return ""
    words = (f"{key} {x:g}" if isinstance(x, float) else f"{key} {x}" for key, x in meant.items())
    return f"as the adapter's file says, where no flag does: {', '.join(words)}"


def deployment(header: Mapping[str, str]) -> dict:
    """Return the settings that an adapter's header asks for; one of another maker asks for none.

    Returns:
      Some keys of DEFAULTS and SAMPLER.

    Raises:
      ValueError: one is no number where it should be, out of bounds, or none of CHOICES.
    """
    meant = {}
    for key, name in HEADER.items():
        if name in header:
            meant[key] = _parsed(f"the adapter's {name}", key, header[name])
            check_bounds(f"the adapter's {name}", key, meant[key])
    return meant


def _parsed(name: str, key: str, text: str) -> str | float | int:
    if key == "negative_prompt" or key in CHOICES:
        return text
    whole = key in BOUNDS and BOUNDS[key][0]
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is {text!r:.80}, no {kind}") from None


def check_shift(name: str, shift: float) -> None:
    """Raise a ValueError that calls the time shift by `name` unless it is within bounds."""
    if type(shift) not in (int, float) or not 0 < shift <= 1000:
        raise ValueError(f"{name} must be a number above 0, at most 1000, got {shift!r:.60}")


def check_bounds(name: str, key: str, value) -> None:
    """Raise a ValueError that calls the setting by `name` unless it is within bounds."""
    if key == "shift":
        return check_shift(name, value)
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise ValueError(f"{name} must be {' or '.join(CHOICES[key])}, got {value!r:.60}")
        return
    if key not in BOUNDS:  # the negative prompt
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r:.80}")
        try:
            umt5.check_text(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return
    whole, low, high = BOUNDS[key]
    kind = "a whole number" if whole else "a number"
    numeric = type(value) is int or (type(value) is float and not whole)
    if not numeric or not low <= value <= high:  # nan is within no bounds
        raise ValueError(f"{name} must be {kind} from {low} to {high}, got {value!r}")
