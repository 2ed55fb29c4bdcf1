"""Where every array lives: one mesh, one table for the weights, the batch over its first axis.

Mesh axes: `data` (copies of the model), `fsdp` (the model in pieces), `context` (a video's tokens
in pieces). Videos are spread over data and fsdp together, and the tokens (B, L, ...) of each over
context. A kernel's pieces are gathered where it is used; tokens move in attention alone.

On one device, or without a mesh, the functions that lay out arrays do nothing: a small program
stays free of annotations. `constrain`, `tokens` and `videos` are for inside of a jitted function.
"""

from __future__ import annotations

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "context")
BATCH = P(("data", "fsdp"))  # one entry: the first axis of an array, over both together
REPLICATED = P()
CONTEXT = "context"

# Weights of the transformer, by path without the leading axis of a stack: exactly one rule each.
# "rows": a kernel (out, in) is split over fsdp along its output width, which is contiguous on disk,
# so that a device reads its own part of a file. "whole": small, and on every device.
WEIGHTS = (
    (r".*/(to_q|to_k|to_v|to_out|ffn_up|ffn_down|proj_out|vace_proj_in|time_proj)/kernel", "rows"),
    (r"(vace_proj_in|time_proj|proj_out)/kernel", "rows"),
    (r"(time|text)_embedder_[12]/kernel", "rows"),
    (r"(vace_)?patch_embedding/kernel", "whole"),
    (r".*bias|.*norm_[qk]|.*norm2_scale|.*scale_shift_table", "whole"),
)


def make_mesh(data: int = -1, fsdp: int = 1, context: int = 1, devices=None) -> Mesh:
    """Make the mesh.

    Args:
      data: copies of the model; -1 takes all devices that the others leave.
      fsdp: devices that share a copy; -1 as for data.
      context: devices that share a video's tokens; of one host where its devices divide so.
      devices: None is all of JAX's.

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
    # Auto: the compiler finds the shardings between our constraints; Explicit would want them all.
    return Mesh(laid_out(devices, (data, fsdp, context)), AXES, axis_types=(AxisType.Auto,) * 3)


def laid_out(devices, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the devices as the mesh has them: neighbours exchange most along its last axis.

    Hosts follow one another in the order of their slices and processes, so that a process has
    consecutive videos. A group of context devices lies within a host where the host's devices
    divide into such groups; larger groups are whole hosts, or follow a TPU's wires.

    Args:
      devices: as many as the product of `shape`, of several processes if need be.
      shape: of data, fsdp and context.

    Returns:
      Array of that shape.
    """
    context = shape[-1]
    hosts = _by_host(devices)
    if all(len(host) % context == 0 for host in hosts):
        groups = [_wired(host, (len(host) // context, context)) for host in hosts]
        return np.concatenate(groups).reshape(shape)
    return _wired([device for host in hosts for device in host], shape)


def _by_host(devices) -> list[list]:
    """Return the devices of each process, processes in the order of their slices and numbers."""
    hosts: dict[tuple[int, int], list] = {}
    for device in devices:
        # Only TPUs have slices, and only where there are several.
        place = getattr(device, "slice_index", None) or 0, device.process_index
        hosts.setdefault(place, []).append(device)
    return [hosts[place] for place in sorted(hosts)]


def _wired(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    """Return devices in a shape: a TPU's along its wires where these allow it, others in order."""
    if devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(shape, devices)
        except (ValueError, AssertionError, NotImplementedError):
            pass  # several slices, or a part of one that is no cuboid, or a shape that cuts an axis
    ordered = np.empty(len(devices), object)
    ordered[:] = devices
    return ordered.reshape(shape)


def mesh_shape(data: int, fsdp: int, context: int, devices: int) -> tuple[int, int, int]:
    """Return the sizes of the axes, with what the others leave of the devices in place of -1.

    Where that does not divide, the product is less than `devices`: `make_mesh` raises then.
    """
    if data == -1:
        return devices // (fsdp * context), fsdp, context
    return data, devices // (data * context) if fsdp == -1 else fsdp, context


def batch_shards(mesh: Mesh) -> int:
    """Return into how many shares a batch of videos goes, one per group of context devices."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def alone(mesh: Mesh | None) -> bool:
    """Say whether everything is on one device, so that there is nothing to lay out."""
    return mesh is None or mesh.size == 1


def pieces(mesh: Mesh | None) -> int:
    """Return into how many pieces a video's tokens go."""
    return 1 if mesh is None else mesh.shape[CONTEXT]


def batch_axes(videos: int, mesh: Mesh):
    """Return the mesh axes for the first axis of a batch; None where its videos do not divide.

    A batch that does not divide is whole on every device, which computes the same thing: right, but
    not faster. What takes time is checked by `check_videos`.
    """
    return None if videos % batch_shards(mesh) else BATCH[0]


def constrain(x: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    """Lay out an array.

    Args:
      x: any shape.
      mesh: None is one device.
      spec: the mesh axes of each of x's axes.

    Returns:
      x, the same numbers.
    """
    return x if alone(mesh) else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def tokens(x_BLD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Lay out videos over data and fsdp, and the tokens of each over context.

    Args:
      x_BLD: B videos of L tokens; more axes may follow. L divides by context.
      mesh: None is one device.

    Returns:
      x_BLD, the same numbers.
    """
    return x_BLD if alone(mesh) else constrain(x_BLD, mesh, token_spec(x_BLD.shape[0], mesh))


def token_spec(videos: int, mesh: Mesh) -> P:
    """Return the spec of (B, L, ...) for `videos` videos, tokens in pieces."""
    return P(batch_axes(videos, mesh), CONTEXT)


def videos(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Lay out videos over data and fsdp, each of them whole along context.

    Args:
      x: (B, ...).
      mesh: None is one device.

    Returns:
      x, the same numbers.
    """
    return x if alone(mesh) else constrain(x, mesh, P(batch_axes(x.shape[0], mesh)))


def per_video(fn, params, x_BTHWC: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Run a function of weights and videos on each device's part of the videos.

    Devices along context take videos of their own where these divide over all devices, else a piece
    of each video's plane, whose borders the compiler exchanges where a convolution needs them.

    Args:
      fn: (params, x_BTHWC) -> (B, ...), which treats every video alone.
      params: a tree, whole on every device.
      x_BTHWC: all videos, as latents or pixels.
      mesh: None is one device.

    Returns:
      (B, ...), spread over the devices as x was.
    """
    if alone(mesh):
        return fn(params, x_BTHWC)
    videos, plane = _parts(x_BTHWC.shape, mesh)
    # check_vma is off: loops inside would have to say how what they carry varies over the mesh.
    rows = {"mesh": mesh, "in_specs": (REPLICATED, videos), "out_specs": videos, "check_vma": False}
    if plane is None:
        return jax.shard_map(fn, **rows)(params, x_BTHWC)
    # Manual over data and fsdp only: along context the compiler still divides, as `plane` says.
    piece = lambda params, x: fn(params, jax.lax.with_sharding_constraint(x, plane))
    return jax.shard_map(piece, axis_names=set(BATCH[0]), **rows)(params, x_BTHWC)


def share(shape_BTHWC: tuple[int, ...], mesh: Mesh | None) -> float:
    """Return which share of all videos a device computes in `per_video`.

    Args:
      shape_BTHWC: of all videos.
      mesh: None is one device.

    Returns:
      In (0, 1]; 1 is everything.
    """
    if alone(mesh):
        return 1.0
    videos, plane = _parts(shape_BTHWC, mesh)
    shares = math.prod(mesh.shape[axis] for axis in videos[0] or ())
    if plane is not None and CONTEXT in plane:
        shares *= mesh.shape[CONTEXT]
    return 1 / shares


def _parts(shape_BTHWC: tuple[int, ...], mesh: Mesh) -> tuple[P, P | None]:
    """Return the spec of videos, and that of each video's plane, None where videos are enough."""
    count, _, height, width = shape_BTHWC[:4]
    if count % mesh.size == 0:
        return P(AXES), None
    # Cut between rows where these divide, else between columns, else not at all.
    videos, pieces = P(batch_axes(count, mesh)), mesh.shape[CONTEXT]
    if height % pieces == 0:
        return videos, P(None, None, CONTEXT, None)
    if width % pieces == 0:
        return videos, P(None, None, None, CONTEXT)
    return videos, P(None, None, None, None)


def weight_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the spec of one transformer weight.

    Args:
      path: such as "blocks/attn1/to_q/kernel".
      shape: with the leading axis of a stack where the path is of one.
      mesh: of `make_mesh`.

    Raises:
      ValueError: not exactly one rule of WEIGHTS fits the path.
    """
    hits = {kind for pattern, kind in WEIGHTS if re.fullmatch(pattern, path)}
    if len(hits) != 1:
        raise ValueError(f"{path} {shape}: {len(hits)} sharding rules fit, want 1; see WEIGHTS")
    # Tiny models have widths that fsdp does not divide: whole then, which only costs memory.
    if hits == {"whole"} or shape[-2] % mesh.shape["fsdp"]:
        return REPLICATED
    stacked = len(shape) == 3
    return P(None, "fsdp", None) if stacked else P("fsdp", None)


def text_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the spec of one text encoder weight: kernels in pieces along their rows, others whole.

    The encoder is 10.6 GiB and works for a moment in a step: no device should hold all of it.

    Args:
      path: "layers/..." is a stack, whose first axis counts layers.
      shape: with that axis.
      mesh: of `make_mesh`.
    """
    stacked = path.startswith("layers/")
    rows = 1 if stacked else 0
    if len(shape) < rows + 2 or shape[rows] % mesh.shape["fsdp"]:
        return REPLICATED
    return P(None, "fsdp") if stacked else P("fsdp")


def moment_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the spec of one of the optimizer's arrays: a stack in pieces along its layers.

    The optimizer works number by number, and nobody else reads what it remembers (ZeRO stage 1,
    Rajbhandari et al. 2020).

    shape: (layers, rows, columns) of a stack; anything else stays whole.
    """
    stacked = len(shape) == 3 and shape[0] % mesh.shape["fsdp"] == 0
    return P("fsdp") if stacked else REPLICATED


def replicate(tree, mesh: Mesh):
    """Put a tree of arrays of any shape on every device of the mesh."""
    whole = NamedSharding(mesh, REPLICATED)
    return place(tree, jax.tree.map(lambda _: whole, tree))


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
    rows = NamedSharding(mesh, BATCH)
    return place(tree, jax.tree.map(lambda _: rows, tree))


def place(tree, shardings):
    """Put a tree's arrays where a tree of NamedSharding says.

    Arrays of one process must be the same in all processes.
    """

    def put(x, sharding: NamedSharding):
        spans = isinstance(x, jax.Array) and not x.is_fully_addressable
        if sharding.is_fully_addressable or spans:
            return jax.device_put(x, sharding)
        # Each process takes its own part of what all have: device_put would first gather everyone's
        # copy and compare them.
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def split(x, parts: int, mesh: Mesh):
    """Cut a batch into parts that are run one after the other, inside of a jitted function.

    Args:
      x: (B, ...), spread over the mesh along B; B divides by parts times `batch_shards`.
      parts: how many.
      mesh: of `make_mesh`.

    Returns:
      (parts, B / parts, ...). A part holds videos of every device, not consecutive ones: so each
      device keeps its own and nothing moves.
    """
    shards, video_shape = batch_shards(mesh), x.shape[1:]
    each = x.shape[0] // (shards * parts)
    x = x.reshape((shards, parts, each, *video_shape)).swapaxes(0, 1)
    x = x.reshape((parts, shards * each, *video_shape))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH[0])))


def described(mesh: Mesh) -> str:
    """Say what a mesh is made of, in a few words."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind}" + (f" ({axes})" if axes else "")


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
    # The most that divides: unequal parts would be programs of their own to compile.
    each = max(d for d in range(1, min(per_device, local) + 1) if local % d == 0)
    return math.ceil(local / each)
