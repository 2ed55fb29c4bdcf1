"""Where every array lives: one mesh, one table for the weights, the batch over its first axis.

Mesh axes: `data` (copies of the model), `fsdp` (the model in pieces), `context` (a video's tokens
in pieces). Videos are spread over data and fsdp together, and the tokens (B, L, ...) of each over
context. A kernel's pieces are gathered where it is used; tokens move in attention alone.
"""

from __future__ import annotations

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "context")
BATCH = P(("data", "fsdp"))
REPLICATED = P()
CONTEXT = "context"

# Weights of the transformer, by path without the leading axis of a stack: exactly one rule each.
# A kernel (out, in) is split along its output width, which is contiguous on disk; what is small is
# everywhere.
WEIGHTS = (
    (r".*/(to_q|to_k|to_v|to_out|ffn_up|ffn_down|proj_out|vace_proj_in|time_proj)/kernel", "rows"),
    (r"(vace_proj_in|time_proj|proj_out)/kernel", "rows"),
    (r"(time|text)_embedder_[12]/kernel", "rows"),
    (r"(vace_)?patch_embedding/kernel", "whole"),
    (r".*bias|.*norm_[qk]|.*norm2_scale|.*scale_shift_table", "whole"),
)


def make_mesh(data: int = -1, fsdp: int = 1, context: int = 1, devices=None) -> Mesh:
    """Make the mesh; -1 for `data` or `fsdp` takes all devices that the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, context = mesh_shape(data, fsdp, context, len(devices))
    if data * fsdp * context != len(devices):
        raise ValueError(
            f"mesh data={data} fsdp={fsdp} context={context} needs {data * fsdp * context} "
            f"devices, there are {len(devices)}"
        )
    shape = np.array(devices).reshape(data, fsdp, context)
    return Mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_shape(data: int, fsdp: int, context: int, devices: int) -> tuple[int, int, int]:
    """Put what the other axes leave of the devices in the place of -1."""
    if data == -1:
        return devices // (fsdp * context), fsdp, context
    return data, devices // (data * context) if fsdp == -1 else fsdp, context


def batch_shards(mesh: Mesh) -> int:
    """Return over how many devices a batch of videos is spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def alone(mesh: Mesh | None) -> bool:
    """Say whether everything is on one device, so that nothing has to be told of its place."""
    return mesh is None or mesh.size == 1


def pieces(mesh: Mesh | None) -> int:
    """Return into how many pieces a video's tokens go."""
    return 1 if mesh is None else mesh.shape[CONTEXT]


def batch_axes(videos: int, mesh: Mesh):
    """Return the axes that a batch is spread over: none where it does not divide."""
    return None if videos % batch_shards(mesh) else BATCH[0]


def constrain(x: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    """State where an array inside a jitted function lives; free of cost on one device."""
    return x if alone(mesh) else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def tokens(x_BLD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Lay out videos over data and fsdp, and the tokens of each over context."""
    return x_BLD if alone(mesh) else constrain(x_BLD, mesh, token_spec(x_BLD.shape[0], mesh))


def token_spec(videos: int, mesh: Mesh) -> P:
    """Return the spec of (B, L, ...), tokens in pieces."""
    return P(batch_axes(videos, mesh), CONTEXT)


def videos(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Lay out (B, ...) over data and fsdp; every piece of the context sees whole videos."""
    return x if alone(mesh) else constrain(x, mesh, P(batch_axes(x.shape[0], mesh)))


def per_video(fn, given, x_BTHWC: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Run `fn(given, x)` on each device's part of the videos, and all of the tree `given`.

    Devices along context take videos of their own where these divide over all devices, else a piece
    of each video's plane, whose borders the compiler exchanges where a convolution needs them.
    """
    if alone(mesh):
        return fn(given, x_BTHWC)
    videos, plane = _parts(x_BTHWC.shape, mesh)
    # check_vma: loops inside would have to say how what they carry varies
    rows = {"mesh": mesh, "in_specs": (REPLICATED, videos), "out_specs": videos, "check_vma": False}
    if plane is None:
        return jax.shard_map(fn, **rows)(given, x_BTHWC)
    piece = lambda given, x: fn(given, jax.lax.with_sharding_constraint(x, plane))
    return jax.shard_map(piece, axis_names=set(BATCH[0]), **rows)(given, x_BTHWC)


def share(shape_BTHWC: tuple[int, ...], mesh: Mesh | None) -> float:
    """Return how much of all videos a device sees in `per_video`: 1 is everything."""
    if alone(mesh):
        return 1.0
    videos, plane = _parts(shape_BTHWC, mesh)
    axes = (*(videos[0] or ()), *(CONTEXT for axis in plane or () if axis))
    return 1 / math.prod(mesh.shape[axis] for axis in axes)


def _parts(shape_BTHWC: tuple[int, ...], mesh: Mesh) -> tuple[P, P | None]:
    """Return the spec of videos, and of each video's plane where context shares that."""
    count, _, *plane = shape_BTHWC[:4]
    if count % mesh.size == 0:
        return P(AXES), None
    whole = [n % mesh.shape[CONTEXT] == 0 for n in plane]
    cut = whole.index(True) if True in whole else len(plane)  # rows first
    spec = [CONTEXT if i == cut else None for i in range(len(plane))]
    return P(batch_axes(count, mesh)), P(None, None, *spec)


def weight_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the spec of one transformer weight.

    Raises:
      ValueError: not exactly one rule of WEIGHTS fits the path.
    """
    hits = {kind for pattern, kind in WEIGHTS if re.fullmatch(pattern, path)}
    if len(hits) != 1:
        raise ValueError(f"{path} {shape}: {len(hits)} sharding rules fit, want 1; see WEIGHTS")
    if hits == {"whole"} or shape[-2] % mesh.shape["fsdp"]:
        return REPLICATED
    return P(*[None] * (len(shape) - 2), "fsdp", None)


def text_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the spec of one text encoder weight: in pieces along its rows, what is small is whole.

    It is 10.6 GiB and works for a moment in a step: no device should hold all of it.
    """
    rows = 1 if path.startswith("layers/") else 0
    if len(shape) < rows + 2 or shape[rows] % mesh.shape["fsdp"]:
        return REPLICATED
    return P(*[None] * rows, "fsdp")


def replicate(tree, mesh: Mesh):
    """Put a tree on every device of the mesh."""
    return _place(tree, NamedSharding(mesh, REPLICATED))


def place_batch(tree, mesh: Mesh):
    """Spread a tree of arrays over the mesh along their first axis.

    Raises:
      ValueError: the first axis does not divide; names both numbers.
    """
    shards = batch_shards(mesh)
    for x in jax.tree.leaves(tree):
        if x.shape[0] % shards:
            raise ValueError(
                f"{x.shape[0]} videos do not divide over {shards} devices (data x fsdp); change "
                "config.data.pairs, config.data.seeds or config.mesh"
            )
    return _place(tree, NamedSharding(mesh, BATCH))


def _place(tree, sharding: NamedSharding):
    """Put a tree where `sharding` says; what a process has alone is the same on all processes."""

    def one(x):
        spans = isinstance(x, jax.Array) and not x.is_fully_addressable
        if sharding.is_fully_addressable or spans:
            return jax.device_put(x, sharding)
        host = np.asarray(x)  # device_put would gather and compare it first
        return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])

    return jax.tree.map(one, tree)


def split(x, parts: int, mesh: Mesh):
    """Reshape (B, ...) to (parts, B / parts, ...) so that each device keeps its own videos."""
    shards = batch_shards(mesh)
    each = x.shape[0] // (shards * parts)
    x = x.reshape(shards, parts, each, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(parts, shards * each, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, *BATCH)))


def check_videos(videos: int, mesh: Mesh) -> None:
    """Raise a ValueError where a step's videos do not divide over data x fsdp."""
    if videos % batch_shards(mesh):
        raise ValueError(
            f"{videos} videos of a step do not divide over {batch_shards(mesh)} groups of devices "
            "(data x fsdp); give other config.data.pairs and seeds, or a larger config.mesh.context"
        )


def parts_of(videos: int, per_device: int, mesh: Mesh) -> int:
    """Return into how many equal parts `videos` go, with at most `per_device` on a device."""
    local = videos // batch_shards(mesh)
    each = max(d for d in range(1, min(per_device, local) + 1) if local % d == 0)
    return math.ceil(local / each)
