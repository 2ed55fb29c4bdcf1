"""Names of an adapter's tensors, as many tools write them, and what they mean.

A key is wrappers, a module of the base, and a part: `base_model.model.` + `blocks.0.attn1.to_q` +
`.lora_A.weight`. Each of the three is written in several ways, and every mixture of them exists:

    wrappers  none, transformer., base_model.model., diffusion_model., lora_unet_, and more
    modules   diffusers' names or the original code's, joined by dots or by underscores
    parts     lora_A and lora_B with or without PEFT's adapter name, lora_down and lora_up, alpha,
              and the differences of whole tensors that distilled adapters carry
"""

from __future__ import annotations

import re
from typing import NamedTuple

from evoid_jax.models import native

PREFIX = "transformer."  # the part of a diffusers pipeline that an adapter belongs to
PEFT = "base_model.model."  # PEFT's own save_pretrained
COMFYUI = "diffusion_model."
KOHYA = ("lora_unet_", "lora_transformer_", "lycoris_")  # then the rest is joined by underscores

# Objects that tools wrap a transformer in, in any order and number. DiffSynth has vace.vace_blocks;
# without the look ahead vace_blocks would become blocks.
WRAPPERS = re.compile(
    r"((base_model|model|module|_orig_mod|pipe|dit|transformer|diffusion_model|lora_unet|"
    r"lora_transformer|lycoris|vace(?=_vace_blocks))_)*"
)
HALF = re.compile(
    r"(?P<module>.+)\.lora(_(?P<side>[AB])(\.[\w-]+)?|[._](?P<way>down|up))\.(?P<leaf>weight|bias)"
)
WHOLE = re.compile(r"(?P<module>.+)\.(?P<part>alpha|diff|diff_b|diff_m|w_norm|b_norm)")
# Of a module: a half of the pair, its alpha, the bias of lora_B (which alpha scales too), or what
# is added to its weight or its bias as it stands.
PARTS = {"alpha": "alpha", "diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
TABLE = "scale_shift_table"  # a tensor of its own, not a weight of a module

VARIANTS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_mid": "LoCon with a Tucker core",
    "lora_embedding_": "LoRA of an embedding",
    "lora_E": "AdaLoRA",
    "vera_": "VeRA",
    "oft_": "OFT",
    "boft_": "BOFT",
}
FOREIGN = {
    r"k_img|v_img|add_[kv]_proj|img_emb|image_embedder": "of an image-to-video model",
    r"transformer_2\.": "of the second expert of Wan2.2",
    r"text_encoder|text_model|lora_te": "of a text encoder",
}
EXAMPLES = (
    "transformer.blocks.0.attn1.to_q.lora_A.weight (diffusers, PEFT), "
    "diffusion_model.blocks.0.self_attn.q.lora_down.weight (ComfyUI) or "
    "lora_unet_blocks_0_self_attn_q.lora_down.weight (kohya, musubi)"
)


class Name(NamedTuple):
    """What one key of an adapter file means."""

    module: str  # diffusers' name of the base's module, such as blocks.0.attn1.to_q
    part: str  # A | B | alpha | B bias | weight | bias
    written: str  # the module as its own tool calls it, which PEFT's patterns are matched with


def parse(key: str) -> Name:
    """Return what a key means.

    Raises:
      ValueError: a variant of LoRA, another model's module, or no adapter's name at all.
    """
    for mark, variant in VARIANTS.items():
        if f".{mark}" in key:
            raise ValueError(f"is of a {variant} adapter; only plain LoRA is supported")
    if half := HALF.fullmatch(key):
        written, part = half["module"], half["side"] or {"down": "A", "up": "B"}[half["way"]]
        if half["leaf"] == "bias":
            part = f"{part} bias"
    elif whole := WHOLE.fullmatch(key):
        written, part = whole["module"], whole["part"]
        if part == "diff_m":  # lightx2v: of the modulation, which has no module's name
            written, part = f"{written}.modulation", "diff"
        part = PARTS[part]
    else:
        raise ValueError(f"is of no adapter: {_expected(key)}")
    module = _module(written)
    if module is None or part == "A bias":
        raise ValueError(f"fits no module of a Wan transformer: {_expected(key)}")
    own = written.removeprefix(PEFT) if written.startswith(PEFT) else written.removeprefix(PREFIX)
    return Name(module, part, own)


def original(module: str) -> str:
    """Return the original code's name of a module, which ComfyUI uses."""
    return native.TRANSFORMER.get(module) or native.block_module(module, native.BLOCK)


def tensor_key(module: str, part: str) -> str:
    """Return diffusers' key of a module's weight or bias."""
    return module if module.endswith(TABLE) else f"{module}.{part}"


def grouped(names) -> str:
    """List names in short: layers that differ by their number alone are counted."""
    counts: dict[str, int] = {}
    for name in names:
        short = re.sub(r"\.\d+\.", ".*.", name, count=1)
        counts[short] = counts.get(short, 0) + 1
    shown = [f"{name} ({n})" if n > 1 else name for name, n in list(counts.items())[:8]]
    return ", ".join(shown) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _by_flat_name(table: dict[str, str]) -> dict[str, str]:
    """Return diffusers' name by both names of every module, joined by underscores."""
    flat = {ours.replace(".", "_"): ours for ours in table}
    return flat | {name.replace(".", "_"): ours for ours, name in table.items()}


IN_BLOCK, OUTSIDE = _by_flat_name(native.BLOCK), _by_flat_name(native.TRANSFORMER)


def _module(written: str) -> str | None:
    """Return diffusers' name of a module, however it is written.

    All dots become underscores first. Back from there nothing can be guessed (self_attn_q could be
    self.attn.q), so that whole names are looked up; a table of them has no two that are equal.
    """
    flat = written.replace(".", "_")
    flat = flat[WRAPPERS.match(flat).end() :]
    block = re.fullmatch(r"(vace_blocks|blocks)_(\d+)_(.+)", flat)
    if block is None:
        return OUTSIDE.get(flat)
    inner = IN_BLOCK.get(block[3])
    return inner and f"{block[1]}.{int(block[2])}.{inner}"


def _expected(key: str) -> str:
    for pattern, whose in FOREIGN.items():
        if re.search(pattern, key):
            return f"it is {whose}, which this project does not adapt"
    return f"expected names like {EXAMPLES}"
