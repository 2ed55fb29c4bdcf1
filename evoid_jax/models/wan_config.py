"""Sizes of a Wan2.1 transformer, read from and written to diffusers' config.json."""

from __future__ import annotations

from dataclasses import dataclass, fields

from evoid_jax.models import keys

FILE = "transformer/config.json"
# What every Wan2.1 T2V and VACE checkpoint holds, and all that `wan` implements.
FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
KEYS = keys.Keys(
    whole=(
        "num_attention_heads",
        "attention_head_dim",
        "num_layers",
        "ffn_dim",
        "in_channels",
        "out_channels",
        "text_dim",
        "freq_dim",
        "vace_in_channels",
        "rope_max_seq_len",
        "text_len",
    ),
    real=("eps",),
    lists={"vace_layers": int, "patch_size": int},
    fixed={key: (value,) for key, value in FIXED.items()},
    ignored=(),
)
REQUIRED = ("num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim")


@dataclass(frozen=True)
class WanConfig:
    """Sizes of one transformer; the names are diffusers' `config.json`. `vace_layers` () is T2V."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6
    vace_layers: tuple[int, ...] = ()
    vace_in_channels: int = 96
    rope_max_seq_len: int = 1024
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_len: int = 512

    def __post_init__(self):
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size {self.patch_size}: expected three numbers from 1")
        if self.patch_size[1] != self.patch_size[2]:
            raise ValueError(f"patch_size {self.patch_size}: expected square patches")
        if self.dim > keys.LARGEST:
            raise ValueError(f"num_attention_heads and attention_head_dim give a width {self.dim}")
        if self.attention_head_dim % 2:  # rotary embedding turns pairs
            raise ValueError(f"attention_head_dim {self.attention_head_dim}: expected an even one")
        if self.freq_dim % 2:  # half cosines, half sines
            raise ValueError(f"freq_dim {self.freq_dim}: expected an even number")
        layers = list(self.vace_layers)
        rising = layers == sorted(set(layers))
        if layers and not (rising and layers[0] == 0 and layers[-1] < self.num_layers):
            raise ValueError(
                f"vace_layers {self.vace_layers}: expected rising layer numbers that start at 0 "
                f"and stay under num_layers {self.num_layers}"
            )

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: dict, file: str = FILE) -> WanConfig:
        """Read a diffusers transformer `config.json`, already a dict.

        Args:
          file: its name, for messages.

        Raises:
          ValueError: another class, a feature that Wan2.1 T2V and VACE do not use, a key that is
            not known, or a size that is absent or none; the message names file and key.
        """
        name = config.get("_class_name", "WanVACETransformer3DModel")
        if name not in ("WanTransformer3DModel", "WanVACETransformer3DModel"):
            raise ValueError(f"{file} is of a {name}: expected a WanTransformer3DModel or its VACE")
        vace = name == "WanVACETransformer3DModel"
        if vace and not config.get("vace_layers"):
            raise ValueError(f"{file} is of a {name} without vace_layers")
        held = sorted(key for key, value in config.items() if value is not None)
        if stray := [key for key in held if key.startswith("vace_") and not vace]:
            raise ValueError(f"{file} is of a {name}, which has no {stray[0]}")
        values = dict(config)
        if values.get("out_channels", 16) is None:  # diffusers then takes as many as come in
            values["out_channels"] = values.get("in_channels", 16)
        keys.check(values, KEYS, file)
        names = {field.name for field in fields(cls)}
        sizes = {key: value for key, value in values.items() if key in names}
        sizes |= {key: tuple(sizes[key]) for key in KEYS.lists if key in sizes}
        if absent := [key for key in REQUIRED if key not in sizes]:
            raise ValueError(f"{file} lacks {', '.join(absent)}")
        try:
            return cls(**sizes)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def to_json(self) -> dict:
        """Return the complete diffusers `config.json` as a dict; the inverse of `from_json`."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self)}
        del sizes["text_len"]  # the pipeline's, not the transformer's
        sizes["patch_size"] = list(self.patch_size)
        sizes["vace_layers"] = list(self.vace_layers)
        if not self.vace_layers:
            del sizes["vace_layers"], sizes["vace_in_channels"]
        name = "WanVACETransformer3DModel" if self.vace_layers else "WanTransformer3DModel"
        return {"_class_name": name} | sizes | FIXED
