"""Keys of a part's config.json: every one is read, or held to what is implemented, or of no effect.

A key that nobody reads is how the wrong model runs as the right one, so it is an error, unless it
is null: an option that is off.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

# What diffusers and transformers write about a file rather than about the model.
BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash")
BOOKKEEPING += ("_use_default_values", "transformers_version", "dtype", "torch_dtype")
BOOKKEEPING += ("_attn_implementation_autoset",)


# Beyond these no model lies: only the description of one, which would take all memory.
LARGEST, MOST_LAYERS, LONGEST = 2**20, 1000, 1024


class Keys(NamedTuple):
    """What may stand in one kind of config.json."""

    whole: tuple[str, ...]  # read: whole numbers from 1
    real: tuple[str, ...]  # read: finite numbers above 0
    lists: dict[str, type]  # read: lists of whole numbers, of numbers, of true and false
    fixed: dict[str, tuple]  # the values that are implemented, the usual one first
    ignored: tuple[str, ...]  # without effect on what the model computes


def check(config: dict, keys: Keys, file: str) -> None:
    """Raise a ValueError that names file and key unless every key is accounted for.

    Args:
      config: content of the file.
      file: its name, for messages.
    """
    read = {*keys.whole, *keys.real, *keys.lists}
    for key, value in config.items():
        if key in keys.fixed:
            if value not in keys.fixed[key]:
                wanted = " or ".join(repr(x) for x in keys.fixed[key])
                raise ValueError(f"{file}: {key} {value!r} is not supported; expected {wanted}")
        elif key in read:
            _check_value(value, key, keys, file)
        elif key == "quantization_config":
            raise ValueError(
                f"{file} has {key}: quantised weights are not supported; take the model in "
                "bfloat16, float16 or float32"
            )
        elif key not in BOOKKEEPING and key not in keys.ignored and value is not None:
            raise ValueError(
                f"{file} has {key} {value!r}, which is not known here, so this may be another "
                "kind of model; remove the key if it changes nothing"
            )


def _check_value(value, key: str, keys: Keys, file: str) -> None:
    most = MOST_LAYERS if key == "num_layers" else LARGEST
    if key in keys.whole and not (type(value) is int and 0 < value <= most):
        raise ValueError(f"{file}: {key} is {value!r}; expected a whole number from 1 to {most}")
    if key in keys.real and not (is_number(value) and value > 0):
        raise ValueError(f"{file}: {key} is {value!r}; expected a number above 0")
    if key in keys.lists:
        kind = keys.lists[key]
        sound = is_number if kind is float else lambda x: type(x) is kind
        listed = isinstance(value, (list, tuple)) and len(value) <= LONGEST
        if not listed or not all(sound(one) and abs(one) <= LARGEST for one in value):
            names = {int: "whole numbers", float: "numbers", bool: "true and false"}
            raise ValueError(f"{file}: {key} is {value!r}; expected a list of {names[kind]}")


def is_number(value) -> bool:
    """Tell whether a value of a JSON file is a finite number."""
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)
