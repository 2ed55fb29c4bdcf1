"""What a program does: FLOPs of its trace, bytes its devices exchange, memory it needs.

FLOPs are counted in the traced program, where loops still say how long they are: matmuls and
convolutions, through scans, recomputation and kernels. Elementwise work is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from jax.extend import core
from jax.interpreters import partial_eval

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# cuDNN's flash attention, opaque to the trace: matmuls of (queries x keys x head size) in each.
FLASH = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}


def flops(traced) -> float:
    """Count the FLOPs of a `jax.jit(f).trace(...)`, over all devices; what is unused is free."""
    closed = traced.jaxpr
    # What the compiler would throw away counts as nothing: all outputs are used, dead code is not.
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(live)


def _count(jaxpr) -> float:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> float:
    """Count one equation, inner programs included."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    flash = name.removesuffix("_wrapper")  # the one that partitions the kernel
    if flash in FLASH:
        return FLASH[flash] * _scores(eqn)
    if name == "while":
        raise ValueError("a loop without a known length cannot be counted; use scan")
    inner = [_count(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":  # one branch runs; the dearest is counted
        return max(inner)
    return _times(name, params) * sum(inner)


def _times(name: str, params: dict) -> int:
    """Return how often an equation runs its inner program."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # the inner program is one device's
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _inner(params: dict) -> Iterator:
    """Yield the programs among an equation's parameters; a custom rule's other halves are none."""
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x


def _dot(eqn) -> float:
    """Count a matmul: 2 for each element of the result and each element that it sums over."""
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contract)


def _convolution(eqn) -> float:
    kernel = eqn.invars[1].aval.shape
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]  # (out, in / groups, *space)
    each = math.prod(kernel) // kernel[out_axis]  # multiply-adds for one element of the result
    return 2 * math.prod(eqn.outvars[0].aval.shape) * each


def _scores(eqn) -> float:
    """Count one matmul of all queries with all keys, q and k being BLNK."""
    q, k = eqn.invars[:2]
    B, L, N, K = q.aval.shape
    keys = k.aval.shape[1]
    return 2 * B * N * L * keys * K


def memory_gib(compiled) -> float:
    """Return what one device needs: arguments, results and temporaries, aliased ones once."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    # A donated argument and the result that takes its place are one buffer, listed twice.
    return (total - m.alias_size_in_bytes) / 2**30


def asked_gib(message: str) -> float | None:
    """Return what a TPU compiler's refusal says that a program needs; None: another refusal."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if used is None:
        return None
    number, unit = used.groups()
    return float(number) * 1024.0 ** ("KMGT".index(unit) - 2)  # G is 1, since it is GiB


# --- Collectives, in the compiled program's text.
#
# The compiled program (HLO) is a list of named computations, one instruction a line:
#
#     %body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
#       %ag = bf16[8,4]{1,0} all-gather(%p1), channel_id=1, dimensions={0}
#     }
#     ENTRY %main (a: f32[4]) -> f32[4] {
#       %w = (s32[], bf16[8,4]) while(%init), condition=%limit, body=%body, backend_config={..}
#     }

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")  # a computation begins
_CALL = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_OPERATION = re.compile(r" = (.*?) ([a-z][\w-]*)\(")  # what is returned, and the instruction
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")  # bf16[8,4], f8e4m3fn[2]


def collective_gib(text: str) -> dict[str, float]:
    """Sum what one device receives or sends by kind, loops multiplied by their length, in GiB.

    The size of a collective is that of its largest array: the whole of a gather, the unreduced of a
    scatter.

    Args:
      text: `compiled.as_text()`.
    """
    computations, entry = _computations(text)
    memo: dict[str, dict[str, float]] = {}

    def total(name: str) -> dict[str, float]:
        if name not in memo:  # many instructions call the same computation
            memo[name] = {}
            for line in computations.get(name, ()):
                times = _trips(line, computations)
                for kind, size in _line(line, times, total).items():
                    memo[name][kind] = memo[name].get(kind, 0.0) + size
        return memo[name]

    return {kind: size / 2**30 for kind, size in total(entry).items()}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by name, and the name of the one that is run."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[1]
            lines[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:  # before the first computation stands the module's own line
            lines[name].append(line)
    return lines, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Return how often an instruction runs what it calls: 1 unless it is a loop.

    GPU compilers write a loop's length; TPU compilers leave it to its condition, `i < constant`.
    """
    if trips := _TRIPS.search(line):
        return int(trips[1])
    if not (condition := _CONDITION.search(line)):
        return 1
    bounds = [b for x in computations.get(condition[1], ()) for b in _BOUND.findall(x)]
    # More constants than one: it cannot be told which of them is the bound.
    return int(bounds[0]) if len(bounds) == 1 else 1


def _line(line: str, trips: int, total) -> dict[str, float]:
    """Return the bytes of one instruction by kind, those of the programs it calls included."""
    operation = _OPERATION.search(line)
    if not operation:
        return {}
    # An asynchronous one is a pair, -start and -done: the first alone counts.
    kind = operation[2].removesuffix("-start")
    if kind in COLLECTIVES:
        arrays = _ARRAY.findall(line.split(", channel_id")[0])  # results and arguments
        return {kind: max(map(_bytes, arrays))}
    called = _CALL.findall(line)
    for branches in _BRANCHES.findall(line):  # all of them: an upper bound
        called += [b.strip().lstrip("%") for b in branches.split(",")]
    sums: dict[str, float] = {}
    for name in called:
        for inner, size in total(name).items():
            sums[inner] = sums.get(inner, 0.0) + trips * size
    return sums


def _bytes(array: tuple[str, str]) -> float:
    """Return the bytes of an array written as ("bf16", "8,4"); a scalar's shape is ""."""
    kind, shape = array
    bits = re.search(r"\d+", kind)  # of f32, s8, f8e4m3fn; tokens have none and take no room
    sized = {"bf16": 2, "pred": 1}
    each = sized.get(kind, int(bits[0]) / 8 if bits else 0)
    return each * math.prod(int(side) for side in shape.split(",") if side)
