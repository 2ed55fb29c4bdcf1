"""The linear layer with LoRA, and where it rounds.

In bfloat16 a number keeps 8 bits, and an adapter's share of a layer's output is smaller than that
for many updates: 1e-5 of it after the first. Rounding the base's part, adding the adapter's and
rounding again would lose nearly all of it. So both are one sum, in the matmul's own float32, before
the first rounding: the share then decides for some outputs in which direction they go, and over the
tokens all of it is there.

Shapes: B videos, I width in, O width out, R rank.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from evoid_jax import sharding
from evoid_jax.models import platform


class Dense(nn.Module):
    """Linear layer; adds x @ a @ b * lora_scale where the "lora" collection holds this layer.

    The kernel is (out, in) as on disk, so that a device reads its piece of a file as it stands.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    lora_scale: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x):
        """Map x (B, ..., in), any float dtype, to (B, ..., features) in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (self.features, x.shape[-1]))
        # Gather the kernel's pieces: tokens are many more than weights, so the tokens stay.
        kernel = sharding.constrain(kernel, self.mesh, sharding.REPLICATED)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            y = adapted(x, kernel, a, b * self.lora_scale)
        else:
            y = jnp.einsum("...i,oi->...o", x, kernel)
        return y + row(bias.astype(self.dtype), x.ndim)


@jax.custom_vjp
def adapted(x, kernel_OI, a_IR, b_RO):
    """Return x @ kernel^T + x @ a @ b, rounded once; with b zero it is x @ kernel^T, bit for bit.

    Every matmul takes its operands in x's dtype, which is what tensor cores are fast at. For that
    the gradient is written out below: autodiff would sum those of a and b in x's dtype too.

    Args:
      x: (B, ..., I), float32 or bfloat16.
      kernel_OI: of x's dtype.
      a_IR, b_RO: float32.

    Returns:
      (B, ..., O) of x's dtype.
    """
    return _forward(x, kernel_OI, a_IR, b_RO)[0]


def row(x_D, ndim: int):
    """Give a vector leading axes of one: numpy's rank promotion is an error in the tests."""
    return x_D.reshape((1,) * (ndim - 1) + (-1,))


def _forward(x, kernel_OI, a_IR, b_RO):
    # In this order: R is small, a @ b would be a whole kernel.
    if x.dtype == jnp.float32:
        z = jnp.einsum("...i,ir->...r", x, a_IR)
        y = jnp.einsum("...i,oi->...o", x, kernel_OI) + jnp.einsum("...r,ro->...o", z, b_RO)
        return y, (x, kernel_OI, a_IR, b_RO, z)
    z = _wide("...i,ir->...r", x, jnp.concatenate(_halves(a_IR, x.dtype), axis=1))
    high, low = jnp.split(z, 2, axis=-1)
    # Rounded: this error is another one for each token, while one of a or b would be of the model.
    z = (high + low).astype(x.dtype)
    return _summed(x, kernel_OI, z, b_RO), (x, kernel_OI, a_IR, b_RO, z)


def _summed(x, kernel_OI, z, b_RO):
    """Return x @ kernel^T + z @ b in x's dtype, rounded once; z is of x's dtype, b is float32."""
    high_RO, low_RO = _halves(b_RO, x.dtype)
    twice = jnp.concatenate([z, z], axis=-1)
    if platform.current() == "tpu":
        # Its compiler adds within the kernel's matmul; the columns below would cost it 1.7 GiB more
        # for the train step of VACE-14B.
        part = jnp.einsum("...r,ro->...o", twice, jnp.concatenate([high_RO, low_RO]))
        wide = _wide("...i,oi->...o", x, kernel_OI) + part.astype(jnp.float32)
        return wide.astype(x.dtype)
    # The adapter as more columns of the kernel, not as a sum of its own: that one would have to
    # pass through memory in float32.
    longer = jnp.concatenate([x, twice], axis=-1)
    kernel = jnp.concatenate([kernel_OI, high_RO.T, low_RO.T], axis=1)
    return jnp.einsum("...i,oi->...o", longer, kernel)


def _backward(kept, dy):
    """Return the cotangents of `adapted`'s arguments; dy is of x's dtype, as y is."""
    x, kernel_OI, a_IR, b_RO, z = kept
    leading = tuple(range(x.ndim - 1))
    # Of a frozen base: nothing reads it, and it is not computed.
    dkernel_OI = jnp.tensordot(dy, x, (leading, leading)).astype(kernel_OI.dtype)
    # Rounded without harm: gradients of two adapters are never compared.
    a_IR, b_RO = a_IR.astype(x.dtype), b_RO.astype(x.dtype)
    dz = jnp.einsum("...o,ro->...r", dy, b_RO)
    dx = jnp.einsum("...o,oi->...i", dy, kernel_OI) + jnp.einsum("...r,ir->...i", dz, a_IR)
    # Video by video: tokens are contracted in the layout that x has, videos summed last; otherwise
    # XLA copies x transposed.
    da_BIR = _wide("b...i,b...r->bir", x, dz)
    db_BRO = _wide("b...r,b...o->bro", z, dy)
    return dx, dkernel_OI, da_BIR.sum(0), db_BRO.sum(0)


adapted.defvjp(_forward, _backward)

_wide = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _halves(w, dtype):
    """Split float32 weights into what `dtype` holds of them and what it holds of the rest.

    An update changes weights by less than bfloat16 tells apart; the two together keep 16 bits.
    """
    info = jnp.finfo(dtype)
    # Not a cast there and back: the compiler may drop such a pair, and no rest would be left.
    high = jax.lax.reduce_precision(w, exponent_bits=info.nexp, mantissa_bits=info.nmant)
    return high.astype(dtype), (w - high).astype(dtype)
