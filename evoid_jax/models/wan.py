"""Wan2.1 video transformer and its VACE branch, in Flax linen.

Follows diffusers `transformer_wan.py` and `transformer_wan_vace.py`: the same weights, the same
rounding. `velocity` without hints is WanTransformer3DModel; `hints` and `velocity` together are
WanVACETransformer3DModel. They are apart because hints never read a main block, so that several
adapters of the main blocks share one set of hints.

On a mesh, zero tokens are appended in the patch embedding, so that every device gets as many as the
others, and dropped where tokens become latents again. Attention never looks at them.

Shapes: B videos, T H W C latent frames/height/width/channels, L tokens, S text tokens, E text
width, D width, N heads, K head size, P = K/2 rotated pairs, V VACE blocks. Stacked layers lead.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from evoid_jax import sharding
from evoid_jax.models import attention
from evoid_jax.models.layers import (
    PatchEmbedding,
    layer_norm,
    pad_text,
    rope_tables,
    sinusoid,
    token_grid,
    unpatchify,
)
from evoid_jax.models.linear import Dense
from evoid_jax.models.wan_block import REMAT, Conditions, table_init
from evoid_jax.models.wan_config import WanConfig
from evoid_jax.models.weights import CONV, SAME, Rule


def velocity(wan: Wan, base, lora, x_BTHWC, timestep_B, text_BSE, hints_VBLD=None):
    """Predict the velocity, noise minus video.

    The four roles of the method are this one function: evolving and stable differ in `lora`, the
    initial model has none, the teacher has neither `lora` nor `hints_VBLD`.

    Args:
      wan: the module; it holds sizes and dtype, no weights.
      base: parameter tree of `init` or `weights.to_params`.
      lora: adapter tree of `lora.init`, or None: then the graph holds no adapter.
      x_BTHWC: noisy normalised latents, reference frames first; T, H and W multiples of the patch.
      timestep_B: 0 (video) to 1000 (noise).
      text_BSE: text states, zero past each prompt's end. S below text_len means that the rest of
        the text_len rows is zero too; it is accounted for exactly.
      hints_VBLD: of `hints`, or None: then this is the T2V model.

    Returns:
      v_BTHWC float32, reference frames included.

    Raises:
      ValueError: the latents do not divide into patches or are longer than RoPE reaches, or the
        text has more than text_len rows.
    """
    return wan.apply(_variables(base, lora), x_BTHWC, timestep_B, text_BSE, hints_VBLD)


def hints(wan: Wan, base, lora, x_BTHWC, timestep_B, text_BSE, control_BTHWC, scale=1.0):
    """Compute what the VACE branch adds to the main blocks.

    Args are those of `velocity`, and
      control_BTHWC: VACE control, as many frames as x or fewer (the rest counts as zero tokens).
      scale: conditioning scale, a number or one per VACE block.

    Returns:
      VBLD in the compute dtype, padded as inside `velocity`. It reads no weight of main blocks.

    Raises:
      ValueError: as `velocity`, for x or the control.
    """
    variables = _variables(base, lora)
    return wan.apply(
        variables, x_BTHWC, timestep_B, text_BSE, control_BTHWC, scale=scale, method=Wan.hints
    )


def init(key, wan: Wan):
    """Draw parameters to train from: Wan's own initialisation, VACE hints zero, output small.

    Args:
      key: of `jax.random.key`.
      wan: the module whose parameters these are.

    Returns:
      The tree that `velocity` and `hints` take as `base`, float32.
    """
    c = wan.config
    # One patch is enough: no parameter depends on the number of tokens.
    x_BTHWC = jnp.zeros((1, *c.patch_size, c.in_channels))
    control_BTHWC = jnp.zeros((1, *c.patch_size, c.vace_in_channels)) if c.vace_layers else None
    text_BSE = jnp.zeros((1, 1, c.text_dim))
    draw = jax.jit(partial(wan.init, method=Wan.touch))
    return draw(key, x_BTHWC, jnp.zeros(1), text_BSE, control_BTHWC)["params"]


def cast(params, dtype):
    """Cast weights to `dtype`, except those that diffusers loads in float32 at any dtype.

    Args:
      params: parameter tree, or any part of it that keeps the names.
      dtype: of matmuls, such as bfloat16.

    Returns:
      The same tree.
    """
    # diffusers' _keep_in_fp32_modules; the others that it names, norm1 and norm3, have no weights.
    keep = ("time_embedder", "scale_shift_table", "norm2")

    def leaf(path, x):
        return x if any(k.key.startswith(keep) for k in path) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def rules(config: WanConfig) -> list[Rule]:
    """Tie every diffusers tensor to its leaf; see `weights.to_params`."""
    table = [
        *_conv("patch_embedding"),
        *_dense("condition_embedder.time_embedder.linear_1", "time_embedder_1"),
        *_dense("condition_embedder.time_embedder.linear_2", "time_embedder_2"),
        *_dense("condition_embedder.time_proj", "time_proj"),
        *_dense("condition_embedder.text_embedder.linear_1", "text_embedder_1"),
        *_dense("condition_embedder.text_embedder.linear_2", "text_embedder_2"),
        *_block("blocks", config.num_layers),
        Rule("scale_shift_table", ("scale_shift_table",)),
        *_dense("proj_out", "proj_out"),
    ]
    if config.vace_layers:
        blocks = len(config.vace_layers)
        table += [
            *_conv("vace_patch_embedding"),
            *_dense("vace_blocks.0.proj_in", "vace_proj_in"),
            *_block("vace_blocks", blocks),
            *_dense("vace_blocks.{i}.proj_out", "vace_blocks", "proj_out", layers=blocks),
        ]
    return table


class Wan(nn.Module):
    """The transformer; call it through `velocity` and `hints`."""

    config: WanConfig
    dtype: jnp.dtype = jnp.float32  # of matmuls
    residual: str = "model"  # the residual stream is of `dtype`, or "float32" as in Wan's own code
    lora_scale: float = 1.0  # alpha / rank
    remat: str = "full"  # what the backward pass recomputes, one of REMAT
    mesh: Mesh | None = None  # None is one device
    attention: str = "auto"  # one of attention.BACKENDS

    def setup(self):
        c = self.config
        # None of these has LoRA: adapters sit in the blocks alone.
        dense = partial(Dense, dtype=self.dtype, mesh=self.mesh)
        small = nn.initializers.normal(0.02)
        embedder = partial(Dense, kernel_init=small, mesh=self.mesh)
        embedding = partial(PatchEmbedding, c.dim, c.patch_size, self.dtype, self.mesh)
        self.patch_embedding = embedding()
        self.time_embedder_1 = embedder(c.dim)  # float32 in diffusers, whatever the model's dtype
        self.time_embedder_2 = embedder(c.dim)
        self.time_proj = dense(6 * c.dim)
        self.text_embedder_1 = embedder(c.dim, dtype=self.dtype)
        self.text_embedder_2 = embedder(c.dim, dtype=self.dtype)
        self.blocks = self._stack(c.num_layers, emits_hint=False)
        self.scale_shift_table = self.param("scale_shift_table", table_init, (1, 2, c.dim))
        self.proj_out = dense(c.out_channels * math.prod(c.patch_size), kernel_init=small)
        if c.vace_layers:
            self.vace_patch_embedding = embedding()
            self.vace_proj_in = dense(c.dim)
            self.vace_blocks = self._stack(len(c.vace_layers), emits_hint=True)

    def _stack(self, layers: int, emits_hint: bool):
        """Make the layers one scan over stacked weights: compiled once, however many they are."""
        scanned = nn.scan(
            REMAT[self.remat],
            variable_axes={"params": 0, "lora": 0},  # each layer takes its row of every weight
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # its row of hint_of_layer, and all of the conditions
            length=layers,
        )
        return scanned(
            config=self.config,
            dtype=self.dtype,
            lora_scale=self.lora_scale,
            emits_hint=emits_hint,
            mesh=self.mesh,
            backend=self._backend(),
        )

    def _backend(self) -> attention.Backend:
        size = self.config.attention_head_dim
        return attention.choose(self.attention, self.mesh, self.dtype, size)

    def _padded(self, grid) -> int:
        """Return how many tokens a grid has with padding, the same for velocity and hints."""
        return attention.padded(math.prod(grid), sharding.pieces(self.mesh), self._backend())

    def _grid(self, x_BTHWC) -> tuple[int, int, int]:
        return token_grid(x_BTHWC.shape, self.config.patch_size, self.config.rope_max_seq_len)

    def _stream(self, x_BTHWC, grid):
        """Return the residual stream before the first block."""
        x_BLD = self.patch_embedding(x_BTHWC, self._padded(grid))
        return x_BLD.astype(jnp.float32) if self.residual == "float32" else x_BLD

    def __call__(self, x_BTHWC, timestep_B, text_BSE, hints_VBLD=None):
        """Compute `velocity`, whose arguments these are."""
        c = self.config
        grid = self._grid(x_BTHWC)
        time_BD, conditions = self._conditions(grid, timestep_B, text_BSE)
        conditions = conditions.replace(hints_VBLD=hints_VBLD)
        hint_of_layer = None if hints_VBLD is None else _hint_of_layer(c)
        x_BLD = self._stream(x_BTHWC, grid)
        x_BLD, _ = self.blocks(x_BLD, hint_of_layer, conditions)
        # The output layer is modulated by the time itself, not by its projection time_B6D.
        table_12D = self.scale_shift_table.astype(jnp.float32)
        modulation_B2D = table_12D + time_BD[:, None].astype(jnp.float32)
        shift_B1D, scale_B1D = jnp.split(modulation_B2D, 2, 1)
        x_BLD = layer_norm(x_BLD, c.eps) * (1 + scale_B1D) + shift_B1D
        v_BLP = sharding.tokens(self.proj_out(x_BLD), self.mesh)
        # Here the pieces of a video's tokens come together: latents are whole on their device.
        v_BLP = sharding.videos(v_BLP, self.mesh)
        return unpatchify(v_BLP, grid, c.patch_size).astype(jnp.float32)

    def hints(self, x_BTHWC, timestep_B, text_BSE, control_BTHWC, scale=1.0):
        """Compute `hints` of this module's name, whose arguments these are."""
        grid, control_grid = self._grid(x_BTHWC), self._grid(control_BTHWC)
        _, conditions = self._conditions(grid, timestep_B, text_BSE)
        x_BLD = self._stream(x_BTHWC, grid)
        c_BLD = self.vace_patch_embedding(control_BTHWC, self._padded(grid))
        if control_grid != grid:
            # diffusers pads the control after its embedding: a missing token is zero, without the
            # embedding's bias.
            real_L = np.arange(c_BLD.shape[1]) < math.prod(control_grid)
            c_BLD = jnp.where(real_L[None, :, None], c_BLD, 0)
        c_BLD = self.vace_proj_in(c_BLD) + x_BLD
        _, hints_VBLD = self.vace_blocks(c_BLD, None, conditions)
        scale = jnp.asarray(scale, self.dtype)
        return hints_VBLD * (scale[:, None, None, None] if scale.ndim else scale)

    def touch(self, x_BTHWC, timestep_B, text_BSE, control_BTHWC):
        """Run both branches, so that `init` sees every weight.

        Args are those of `hints`; control_BTHWC is None for a model without VACE blocks.
        """
        hints_VBLD = None
        if control_BTHWC is not None:
            hints_VBLD = self.hints(x_BTHWC, timestep_B, text_BSE, control_BTHWC)
        return self(x_BTHWC, timestep_B, text_BSE, hints_VBLD)

    def _conditions(self, grid, timestep_B, text_BSE) -> tuple[jax.Array, Conditions]:
        """Embed time and text once for all blocks; also the time by itself, BD."""
        c = self.config
        time_BD = nn.silu(self.time_embedder_1(sinusoid(timestep_B, c.freq_dim)))
        time_BD = self.time_embedder_2(time_BD).astype(self.dtype)
        time_B6D = self.time_proj(nn.silu(time_BD)).reshape(-1, 6, c.dim).astype(jnp.float32)
        text_BSE, bias_S = pad_text(text_BSE, c.text_len)
        text_BSD = nn.gelu(self.text_embedder_1(text_BSE), approximate=True)
        text_BSD = sharding.videos(self.text_embedder_2(text_BSD), self.mesh)
        conditions = Conditions(
            time_B6D=time_B6D,
            text_BSD=text_BSD,
            text_bias_S=bias_S,
            rope=rope_tables(grid, c.attention_head_dim, self._padded(grid)),
            length=math.prod(grid),
        )
        return time_BD, conditions


def _variables(base, lora):
    # Without the collection `Dense` adds no adapter: the graph is the base model's, not one plus 0.
    return {"params": base} if lora is None else {"params": base, "lora": lora}


def _hint_of_layer(config: WanConfig):
    """Return for each layer the index of its hint, and 1 where it has one, else 0."""
    layers = list(config.vace_layers)  # such as 0, 2, 4: the layers that VACE block 0, 1, 2 feeds
    index_L = np.zeros(config.num_layers, np.int32)
    use_L = np.zeros(config.num_layers, np.float32)
    index_L[layers] = np.arange(len(layers))
    use_L[layers] = 1
    return jnp.asarray(index_L), jnp.asarray(use_L)


def _dense(key: str, *path: str, layers: int = 0) -> list[Rule]:
    return [
        Rule(f"{key}.weight", (*path, "kernel"), SAME, layers),
        Rule(f"{key}.bias", (*path, "bias"), SAME, layers),
    ]


def _conv(name: str) -> list[Rule]:
    return [
        Rule(f"{name}.weight", (name, "kernel"), CONV),
        Rule(f"{name}.bias", (name, "bias")),
    ]


def _block(stack: str, layers: int) -> list[Rule]:
    # {i} in a tensor's name counts the layers, which are rows of one leaf here.
    at = f"{stack}.{{i}}"
    table = [
        Rule(f"{at}.scale_shift_table", (stack, "scale_shift_table"), SAME, layers),
        Rule(f"{at}.norm2.weight", (stack, "norm2_scale"), SAME, layers),
        Rule(f"{at}.norm2.bias", (stack, "norm2_bias"), SAME, layers),
        *_dense(f"{at}.ffn.net.0.proj", stack, "ffn_up", layers=layers),
        *_dense(f"{at}.ffn.net.2", stack, "ffn_down", layers=layers),
    ]
    for attn in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out"):
            torch_name = "to_out.0" if name == "to_out" else name  # beside a Dropout
            table += _dense(f"{at}.{attn}.{torch_name}", stack, attn, name, layers=layers)
        for name in ("norm_q", "norm_k"):
            table.append(Rule(f"{at}.{attn}.{name}.weight", (stack, attn, name), SAME, layers))
    return table
