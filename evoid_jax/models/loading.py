"""Tensors of files to arrays on devices, each process reading only what its devices hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import repeat

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from evoid_jax.models.weights import SAME, Rule, Tensor, check, check_finite, expected, keys

SMALL = 2**26  # bytes; a stack up to this is made on the host, which needs no compiled program
HOSTS = ("cpu",)  # platforms whose devices' memory is the host's
READERS = 4  # threads that copy out of the page cache


def load(
    tensors: dict[str, Tensor],
    rules: list[Rule],
    shapes: dict[tuple[str, ...], tuple[int, ...]],
    dtype_of: Callable[[tuple[str, ...]], np.dtype],
    sharding_of: Callable[[tuple[str, ...], tuple[int, ...]], NamedSharding],
    what: str = "weights",
) -> dict:
    """Put a model's tensors on their devices, each process reading only what its devices hold.

    Args:
      tensors, rules: of one model, as `open_folder` and the model give them.
      shapes: path: shape of every leaf, as `shapes` returns.
      dtype_of: path -> dtype of that leaf; cast on the device.
      sharding_of: (path, shape) -> where that leaf lives.
      what: the model's name, for the progress bar and for messages.

    Returns:
      tree of jax arrays, as `to_params` builds it. On accelerators big stacks grow layer by layer
      in a buffer on the devices; the host holds two layers at most.

    Raises:
      ValueError: a tensor is missing, unknown, of another shape, or not finite.
    """
    check(tensors, expected(rules, shapes), what)
    total, flat = sum(tensor.nbytes for tensor in tensors.values()), {}
    hidden = jax.process_index() > 0
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=1, disable=hidden) as bar:
        for rule in rules:
            stack = [tensors[key] for key in keys(rule)]
            shape, dtype = shapes[rule.path], np.dtype(dtype_of(rule.path))
            sharding = sharding_of(rule.path, shape)
            big = rule.layout is SAME and rule.layers
            big = big and math.prod(shape) * dtype.itemsize > SMALL
            big = big and sharding.mesh.devices.flat[0].platform not in HOSTS
            make = _grow if big else _gather
            flat[rule.path] = make(stack, rule, shape, dtype, sharding, bar)
    return traverse_util.unflatten_dict(flat)


def _gather(stack: list[Tensor], rule: Rule, shape, dtype, sharding: NamedSharding, bar):
    """Make a leaf on the host, each device's piece in memory that the CPU's device takes over."""

    def fill(out, tensor: Tensor, at) -> None:
        out[...] = rule.layout.to_jax(tensor.read())[at]
        check_finite(out, tensor.label)

    def piece(at):
        out = _aligned(
            tuple(len(range(*a.indices(n))) for a, n in zip(at, shape, strict=True)), dtype
        )
        if not rule.layers:
            fill(out, stack[0], at)
            return out
        with ThreadPoolExecutor(READERS) as pool:  # list() raises what a thread raised
            list(pool.map(fill, out, stack[at[0]], repeat(at[1:])))
        return out

    made = jax.make_array_from_callback(shape, sharding, piece)
    bar.update(sum(tensor.nbytes for tensor in stack))
    return made


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that JAX's CPU device can use as it is, without a copy."""
    size, line = math.prod(shape) * dtype.itemsize, 64
    raw = np.empty(size + line, np.uint8)
    start = -raw.ctypes.data % line
    return raw[start : start + size].view(dtype).reshape(shape)


def _grow(stack: list[Tensor], rule: Rule, shape, dtype, sharding: NamedSharding, bar):
    """Make a stack in a buffer on the devices, layer by layer."""
    source = NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
    buffer, sound = _zeros(shape, dtype, sharding)(), []
    for i, tensor in enumerate(stack):
        x = tensor.read()
        cut = lambda at, x=x: np.ascontiguousarray(x[at])
        layer = jax.make_array_from_callback(tensor.shape, source, cut)
        buffer, finite = _put(sharding)(buffer, layer, np.int32(i))
        sound.append(finite)
        sound[max(i - 1, 0)].block_until_ready()  # two layers in flight, no more
        bar.update(tensor.nbytes)
    for tensor, finite in zip(stack, sound, strict=True):
        if not finite:
            raise ValueError(f"{tensor.label} holds NaN or infinity (as {dtype})")
    return buffer


@cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding):
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@cache
def _put(sharding: NamedSharding):
    """Return a function that writes a layer into a stack, in place, and tells if it is finite."""

    def put(buffer, layer, i):
        x = layer.astype(buffer.dtype)
        return jax.lax.dynamic_update_index_in_dim(buffer, x, i, 0), jnp.isfinite(x).all()

    everywhere = NamedSharding(sharding.mesh, P())
    return jax.jit(put, donate_argnums=0, out_shardings=(sharding, everywhere))
