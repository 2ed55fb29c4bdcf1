"""The linear layer with LoRA, and where it rounds.

In bfloat16 a number keeps 8 bits, and an adapter's share of a layer's output is smaller than that
for many updates: 1e-5 of it after the first. Rounding the base's part, adding the adapter's and
rounding again would lose nearly all of it. So all parts are summed in float32 and rounded once:
the share then decides for some outputs in which direction they go, and over the tokens it is there.

Shapes: B videos, I width in, O width out, R rank.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from evoid_jax import sharding


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
        adapter = None
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            adapter = a, b * self.lora_scale
        return affine(x.astype(self.dtype), kernel.astype(self.dtype), bias, adapter)


@jax.custom_vjp
def affine(x, kernel_OI, bias_O, adapter=None):
    """Return x @ kernel^T + bias + x @ a @ b, summed in float32 and rounded once.

    Every matmul takes its operands in x's dtype, which is what tensor cores are fast at; for that
    the gradient is written out below, as autodiff would multiply by float32 cotangents.

    Args:
      x: (B, ..., I), float32 or bfloat16.
      kernel_OI: of x's dtype.
      bias_O: any float dtype.
      adapter: a_IR and b_RO, float32, or None: the same numbers as with b zero.

    Returns:
      (B, ..., O) of x's dtype.
    """
    return _forward(x, kernel_OI, bias_O, adapter)[0]


def row(x_D, ndim: int):
    """Give a vector leading axes of one: numpy's rank promotion is an error in the tests."""
    return x_D.reshape((1,) * (ndim - 1) + (-1,))


def _forward(x, kernel_OI, bias_O, adapter):
    y = _product("...i,oi->...o", x, kernel_OI) + row(bias_O.astype(jnp.float32), x.ndim)
    z = None
    if adapter is not None:
        a_IR, b_RO = adapter
        z = _into_rank(x, a_IR)  # in this order: R is small, a @ b would be a whole kernel
        y += _out_of_rank(z, b_RO)
    return y.astype(x.dtype), (x, kernel_OI, bias_O, adapter, z)


def _backward(kept, dy):
    """Return the cotangents of `affine`'s arguments; dy is of x's dtype, as y is."""
    x, kernel_OI, bias_O, adapter, z = kept
    leading = tuple(range(x.ndim - 1))
    dx = _product("...o,oi->...i", dy, kernel_OI)
    # Of a frozen base: nothing reads these two, and they are not computed.
    dkernel_OI = jnp.tensordot(dy, x, (leading, leading), preferred_element_type=jnp.float32)
    dbias_O = dy.astype(jnp.float32).sum(leading).astype(bias_O.dtype)
    dadapter = None
    if adapter is not None:
        # One rounding of a factor is no harm here: gradients of two adapters are never compared.
        a_IR, b_RO = (w.astype(x.dtype) for w in adapter)
        dz = _product("...o,ro->...r", dy, b_RO).astype(x.dtype)
        dx += _product("...r,ir->...i", dz, a_IR)
        # Video by video: tokens are contracted in the layout that x has, videos summed last;
        # otherwise XLA copies x transposed.
        da_BIR = _product("b...i,b...r->bir", x, dz)
        db_BRO = _product("b...r,b...o->bro", z, dy)
        dadapter = da_BIR.sum(0), db_BRO.sum(0)
    return dx.astype(x.dtype), dkernel_OI.astype(kernel_OI.dtype), dbias_O, dadapter


affine.defvjp(_forward, _backward)


def _product(subscripts: str, x, y):
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _into_rank(x, a_IR):
    """Return x @ a as (B, ..., R) of x's dtype."""
    if x.dtype == a_IR.dtype:
        return _product("...i,ir->...r", x, a_IR)
    z = _product("...i,ir->...r", x, jnp.concatenate(_halves(a_IR, x.dtype), axis=1))
    high, low = jnp.split(z, 2, axis=-1)
    # Rounded: this error is another one for each token, while one of a or b would be of the model.
    return (high + low).astype(x.dtype)


def _out_of_rank(z, b_RO):
    """Return z @ b as (B, ..., O) float32."""
    if z.dtype == b_RO.dtype:
        return _product("...r,ro->...o", z, b_RO)
    twice = jnp.concatenate([z, z], axis=-1)
    return _product("...r,ro->...o", twice, jnp.concatenate(_halves(b_RO, z.dtype), axis=0))


def _halves(w, dtype):
    """Split float32 weights into what `dtype` holds of them and what it holds of the rest.

    An update changes weights by less than bfloat16 tells apart; the two together keep 16 bits.
    """
    info = jnp.finfo(dtype)
    # Not a cast there and back: the compiler may drop such a pair, and no rest would be left.
    high = jax.lax.reduce_precision(w, exponent_bits=info.nexp, mantissa_bits=info.nmant)
    return high.astype(dtype), (w - high).astype(dtype)
