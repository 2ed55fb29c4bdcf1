"""Sizes of a Wan2.1 transformer, read from and written to diffusers' config.json."""

from __future__ import annotations

from dataclasses import dataclass, fields

# What every Wan2.1 T2V and VACE checkpoint holds, and all that `wan` implements.
FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}


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
    def from_json(cls, config: dict) -> WanConfig:
        """Read a diffusers transformer `config.json`, already a dict.

        Raises:
          ValueError: another class, a feature that Wan2.1 T2V and VACE do not use, or an absent
            size; the message names it.
        """
        name = config.get("_class_name", "WanVACETransformer3DModel")
        if name not in ("WanTransformer3DModel", "WanVACETransformer3DModel"):
            raise ValueError(f"_class_name {name}: expected a WanTransformer3DModel or its VACE")
        for key, value in FIXED.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} {config[key]!r} is not supported; expected {value!r}")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in config.items() if key in known and value is not None}
        if name == "WanTransformer3DModel":
            values["vace_layers"] = ()
        elif not values.get("vace_layers"):
            raise ValueError(f"{name} without vace_layers")
        values |= {k: tuple(values[k]) for k in ("vace_layers", "patch_size") if k in values}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"transformer config.json: {error}") from None

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
