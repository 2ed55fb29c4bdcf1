"""How strong an adapter file means its layers to be: the factor on B A that it states somewhere.

    alpha tensors                  ComfyUI, kohya, musubi: alpha / rank, layer by layer
    lora_adapter_metadata          diffusers' key in the header: a PEFT configuration
    lora_config                    the same by finetrainers
    adapter_config.json            the same, beside a file of PEFT
    ss_network_alpha               kohya's header, where no alpha tensors stand
    scale                          our own header: always 1, it is in lora_B already

A file that states nothing means 1, as diffusers and ComfyUI take it. Two statements must agree, and
a statement that some tools apply and others do not is refused: it is not ours to guess.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from evoid_jax import files

CONFIG = "adapter_config.json"
PEFT_FILE = "adapter_model.safetensors"
SETTINGS = ("lora_adapter_metadata", "lora_config")  # keys of the header, each a PEFT configuration
PATTERNS = ("rank_pattern", "alpha_pattern")
FACTORS = ("scale", "scaling", "lora_scale")  # of headers, which no loader reads either
WORDS = ("lora_alpha", "network_alpha", "alpha", "ss_network_alpha")  # that no loader reads
ROUNDING = 2**-7  # two statements are one if they differ by less: alpha tensors may be bfloat16
# Settings of PEFT under which B A * alpha / rank is not what the adapter does.
VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA of bare parameters",
    "trainable_token_indices": "trainable tokens",
}
# Initialisations for which PEFT changes the base's weights, too, whenever it loads the adapter.
REBASED = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")


class Stated(NamedTuple):
    """What the tensors alone say of one layer."""

    written: str  # its module, as the file's own tool calls it
    rank: int
    alpha: float | None


def scales(
    file: Path, header: dict[str, str], layers: dict[str, Stated], kohya: bool, peft: bool
) -> dict[str, float]:
    """Return the factor on B A of every layer.

    Args:
      file: whose folder may hold adapter_config.json.
      header: the file's strings.
      layers: by module.
      kohya: the keys are kohya's, so that the header's ss_network_alpha is meant.
      peft: the keys are of PEFT's own save_pretrained, which keeps alpha outside of the file.

    Raises:
      ValueError: statements contradict each other, are of something other than plain LoRA, or leave
        open which scale is meant; the message names them.
    """
    # The most exact first: it is the one that counts where others agree up to rounding.
    stated = [
        (f"{key} in the header", _of_settings(_parse(header[key], key), layers, strict=True))
        for key in SETTINGS
        if key in header
    ]
    alphas = {name: s.alpha / s.rank for name, s in layers.items() if s.alpha is not None}
    if alphas:  # a layer without one has scale 1
        stated.append(("its alpha tensors", dict.fromkeys(layers, 1.0) | alphas))
    for key in FACTORS:
        _check_one(header, key)
    if "scale" in header:
        stated.append(("scale in the header", dict.fromkeys(layers, 1.0)))
    beside = file.parent / CONFIG
    if beside.is_file() and _belongs(file, bool(stated)):
        try:
            settings = _parse(beside.read_text(encoding="utf-8-sig"), "the file")
            stated.insert(0, (str(beside), _of_settings(settings, layers, strict=not peft)))
        except ValueError as error:
            raise ValueError(f"{beside}: {error}") from None
    if not stated:
        return _unstated(header, layers, kohya, peft)
    _agree(stated)
    return stated[0][1]


def _check_one(header: dict[str, str], key: str) -> None:
    """Raise a ValueError where a header states a factor other than 1."""
    text = header.get(key, "1").split(":")[0]
    try:
        one = float(text) == 1
    except ValueError:
        one = False
    if not one:
        raise ValueError(
            f"has {key} {header[key]} in its header, which no tool applies; remove it if the file "
            f"is meant at scale 1, else say what is meant in a {CONFIG} beside it"
        )


def _belongs(file: Path, stated: bool) -> bool:
    """Tell whether adapter_config.json beside a file is meant for it."""
    if file.name == PEFT_FILE:
        return True
    return not stated and not (file.parent / PEFT_FILE).exists()


def _agree(stated: list[tuple[str, dict[str, float]]]) -> None:
    first, ours = stated[0]
    for other, theirs in stated[1:]:
        for name, scale in ours.items():
            if not math.isclose(scale, theirs[name], rel_tol=ROUNDING):
                raise ValueError(
                    f"{name} has scale {scale:g} by {first} and {theirs[name]:g} by {other}; "
                    "remove the one that is wrong"
                )


def _unstated(header, layers: dict[str, Stated], kohya: bool, peft: bool) -> dict[str, float]:
    """Return the scales of a file that states none in a place that every loader reads."""
    if peft:
        raise ValueError(
            f"is a file of PEFT without its {CONFIG}, where alpha stands; put it beside, or write "
            f'one: {{"r": RANK, "lora_alpha": ALPHA}}'
        )
    ones = dict.fromkeys(layers, 1.0)
    word = next((key for key in WORDS if key in header), None)
    if word is None:
        return ones
    alpha = number(header[word], f"{word} of the header")
    said = {name: alpha / stated.rank for name, stated in layers.items()}
    if kohya and word.startswith("ss_"):
        dim = header.get("ss_network_dim")
        ranks = {stated.rank for stated in layers.values()}
        if dim is not None and ranks != {number(dim, "ss_network_dim of the header")}:
            raise ValueError(f"has ss_network_dim {dim} in its header and ranks {sorted(ranks)}")
        return said
    if said != ones:
        raise ValueError(
            f"has {word} {header[word]} in its header, which not every tool applies, and no alpha "
            f"tensors; say what is meant in a {CONFIG} beside the file: "
            f'{{"r": RANK, "lora_alpha": ALPHA}}, with ALPHA = RANK for scale 1'
        )
    return ones


def _of_settings(settings: dict, layers: dict[str, Stated], strict: bool) -> dict[str, float]:
    """Return each layer's scale by a PEFT configuration, as PEFT's LoraLayer computes it.

    strict: a pattern must fit a layer. PEFT ignores one that does not, which is right for its own
    files; under another tool's names it may have been meant for a layer that has two.
    """
    # diffusers puts the pipeline's part before every key: transformer.lora_alpha
    settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
    _check_plain(settings)
    for key in ("r", "lora_alpha"):
        if key not in settings:
            raise ValueError(f"{key} is missing; expected a configuration of PEFT's LoRA")
    rank_patterns, alpha_patterns = (_patterns(settings, key) for key in PATTERNS)
    written = [stated.written for stated in layers.values()]
    for key in alpha_patterns if strict else ():  # a rank that fits nothing shows in the tensors
        if not any(_matches(key, name) for name in written):
            raise ValueError(f"alpha_pattern {key!r} fits no layer of the adapter")
    said = {}
    for name, stated in layers.items():
        ranks = _by_pattern(rank_patterns, stated.written, settings["r"])
        if stated.rank not in ranks:
            raise ValueError(f"{name} has rank {stated.rank}, the configuration says {ranks[0]!r}")
        alphas = _by_pattern(alpha_patterns, stated.written, settings["lora_alpha"])
        if any(alpha != alphas[0] for alpha in alphas):
            # The first one counts, but PEFT sorts them when it saves: training had another first.
            raise ValueError(f"{name} fits alpha_patterns of different values, {alphas}; leave one")
        divisor = stated.rank**0.5 if settings.get("use_rslora") else stated.rank
        said[name] = number(alphas[0], "lora_alpha") / divisor
    return said


def _patterns(settings: dict, key: str) -> dict:
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{key} is {patterns!r}; expected an object of names and numbers")
    return patterns


def _check_plain(settings: dict) -> None:
    kind = str(settings.get("peft_type", "LORA")).rsplit(".", 1)[-1]
    if kind != "LORA":
        raise ValueError(f"is an adapter of peft_type {kind}; only plain LoRA is supported")
    for key, variant in VARIANTS.items():
        if settings.get(key):
            raise ValueError(f"is {variant} ({key}); only plain LoRA is supported")
    start = str(settings.get("init_lora_weights", True)).lower()
    if start.startswith(REBASED):
        raise ValueError(
            f"has init_lora_weights {start!r}, for which PEFT changes the base's weights too; save "
            "it with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _by_pattern(patterns: dict, name: str, default) -> list:
    """Return the values of the patterns that fit a module, or the default."""
    return [value for key, value in patterns.items() if _matches(key, name)] or [default]


def _matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern fits a module, as PEFT's get_pattern_key does."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None


def _parse(text: str, what: str) -> dict:
    return files.parse_json(text.encode(errors="surrogatepass"), what)


def number(value, what: str) -> float:
    """Return a positive finite number; alpha 0 would switch the adapter off."""
    try:
        real = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} is {value!r:.80}; expected a number") from None
    if not (math.isfinite(real) and real > 0):
        raise ValueError(f"{what} is {value!r}; expected a positive number")
    return real
