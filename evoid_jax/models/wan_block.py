"""One layer of the Wan transformer, main or VACE, and what its backward pass keeps.

Follows diffusers `WanTransformerBlock` and `WanVACETransformerBlock`, rounding included.

Shapes: B videos, L tokens, S text tokens, D width, F hidden width, P = K/2 rotated pairs of a head,
V VACE blocks.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from evoid_jax import sharding
from evoid_jax.models import attention
from evoid_jax.models.layers import Attention, layer_norm
from evoid_jax.models.linear import Dense, row
from evoid_jax.models.wan_config import WanConfig


def table_init(key, shape):
    """Draw a scale_shift_table as diffusers does: normal, over the root of the width."""
    return jax.random.normal(key, shape) / shape[-1] ** 0.5


@struct.dataclass
class Conditions:
    """What every block reads and no block changes."""

    time_B6D: jax.Array  # float32: shift, scale and gate of attention, then of the feed-forward
    text_BSD: jax.Array
    text_bias_S: jax.Array | None  # added to the logits of text tokens; of `pad_text`
    rope: tuple[np.ndarray, np.ndarray]  # cos and sin, LP
    length: int = struct.field(pytree_node=False)  # tokens without padding
    hints_VBLD: jax.Array | None = None


class Block(nn.Module):
    """One layer, of the main stack or (emits_hint) of the VACE stack, as a scan body."""

    config: WanConfig
    dtype: jnp.dtype
    lora_scale: float
    emits_hint: bool
    mesh: Mesh | None
    backend: attention.Backend

    @nn.compact
    def __call__(self, x_BLD, hint_of_layer, conditions: Conditions):
        """Apply the layer.

        Args:
          x_BLD: residual stream, in the dtype that it keeps.
          hint_of_layer: (index of its hint, 1 or 0 to use it), scalars; None without hints.
          conditions: the same for every layer.

        Returns:
          x_BLD for the next layer, and the hint BLD of a VACE layer, else None.
        """
        c = self.config
        lay_out = partial(sharding.tokens, mesh=self.mesh)
        dense = partial(Dense, dtype=self.dtype, lora_scale=self.lora_scale, mesh=self.mesh)
        attend = partial(
            Attention,
            head_size=c.attention_head_dim,
            eps=c.eps,
            dtype=self.dtype,
            lora_scale=self.lora_scale,
            mesh=self.mesh,
            backend=self.backend,
        )
        # AdaLN-single: one projection of the time for all layers, plus a table of each layer's own.
        table = self.param("scale_shift_table", table_init, (1, 6, c.dim)).astype(jnp.float32)
        modulation_B6D = table + conditions.time_B6D
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation_B6D, 6, 1)

        # Norms, modulation and gated sums in float32, then rounded to the residual stream's dtype:
        # where diffusers rounds, or bfloat16 drifts apart over the layers. A stream in float32 is
        # rounded only on its way into a matmul, as in Wan's own code.
        h_BLD = (layer_norm(x_BLD, c.eps) * (1 + scale1) + shift1).astype(self.dtype)
        h_BLD = attend(name="attn1")(h_BLD, rope=conditions.rope, length=conditions.length)
        x_BLD = (x_BLD + h_BLD * gate1).astype(x_BLD.dtype)

        # Text: a norm with weights of its own in place of the modulation, and no gate.
        norm2 = self.param("norm2_scale", nn.initializers.ones, (c.dim,))
        bias2 = self.param("norm2_bias", nn.initializers.zeros, (c.dim,))
        h_BLD = layer_norm(x_BLD, c.eps) * row(norm2, 3) + row(bias2, 3)
        x_BLD += attend(name="attn2")(
            h_BLD.astype(self.dtype), conditions.text_BSD, bias_S=conditions.text_bias_S
        )

        h_BLD = (layer_norm(x_BLD, c.eps) * (1 + scale2) + shift2).astype(self.dtype)
        h_BLF = lay_out(dense(c.ffn_dim, name="ffn_up")(h_BLD))
        h_BLF = nn.gelu(h_BLF, approximate=True)  # Wan's is the tanh form
        h_BLD = dense(c.dim, name="ffn_down")(h_BLF)
        x_BLD = lay_out((x_BLD + h_BLD * gate2).astype(x_BLD.dtype))

        if self.emits_hint:
            # Zero at first, as in ControlNet: a fresh VACE branch changes nothing. Without LoRA.
            zeros = nn.initializers.zeros
            project = Dense(c.dim, self.dtype, kernel_init=zeros, mesh=self.mesh, name="proj_out")
            return x_BLD, lay_out(project(x_BLD))
        if conditions.hints_VBLD is not None:
            # All layers are one program, so that one without a hint adds 0 times the first.
            index, use = hint_of_layer
            x_BLD += conditions.hints_VBLD[index] * use.astype(self.dtype)
        return x_BLD, None


# What the backward pass does for want of memory. "full" keeps only each block's input and computes
# all the rest again; "attention" also keeps what self-attention, the dearest part, gave; "none"
# keeps every activation. prevent_cse: inside a scan XLA cannot undo the recomputation anyway.
REMAT = {
    "full": nn.remat(Block, prevent_cse=False),
    "attention": nn.remat(Block, prevent_cse=False, policy=attention.keep),
    "none": Block,
}
