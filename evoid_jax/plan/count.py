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
    flash = name.removesuffix("_wrapper")
    if flash in FLASH:
        return FLASH[flash] * _scores(eqn)
    if name == "while":
        raise ValueError("a loop without a known length cannot be counted; use scan")
    inner = [_count(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
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
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contract)


def _convolution(eqn) -> float:
    kernel = eqn.invars[1].aval.shape
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]  # (out, in / groups, *space)
    each = math.prod(kernel) // kernel[out_axis]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * each


def _scores(eqn) -> float:
    """FLOPs of one matmul of all queries with all keys, q and k being BLNK."""
    B, L, N, K = eqn.invars[0].aval.shape
    return 2 * B * N * L * eqn.invars[1].aval.shape[1] * K


def memory_gib(compiled) -> float:
    """Return what one device needs: arguments, results and temporaries, aliased ones once."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return (total - m.alias_size_in_bytes) / 2**30


def asked_gib(message: str) -> float | None:
    """Return what a TPU compiler's refusal says that a program needs; None: another refusal."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return found and float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) - 2)


# --- Collectives, in the compiled program's text.

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALL = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_OPERATION = re.compile(r" = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")


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
        if name not in memo:
            memo[name] = {}
            for line in computations.get(name, ()):
                times = _trips(line, computations)
                for kind, size in _line(line, times, total).items():
                    memo[name][kind] = memo[name].get(kind, 0.0) + size
        return memo[name]

    return {kind: size / 2**30 for kind, size in total(entry).items()}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            found[name].append(line)
    return found, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Return how often an instruction runs what it calls: 1 unless it is a loop.

    GPU compilers write a loop's length; TPU compilers leave it to its condition, `i < constant`.
    """
    if found := _TRIPS.search(line):
        return int(found[1])
    if not (condition := _CONDITION.search(line)):
        return 1
    bounds = [b for x in computations.get(condition[1], ()) for b in _BOUND.findall(x)]
    return int(bounds[0]) if len(bounds) == 1 else 1


def _line(line: str, trips: int, total) -> dict[str, float]:
    """Return the bytes of one instruction by kind, those of the programs it calls included."""
    operation = _OPERATION.search(line)
    if not operation:
        return {}
    kind = operation[2].removesuffix("-start")
    if kind in COLLECTIVES:
        return {kind: max(map(_bytes, _ARRAY.findall(line.split(", channel_id")[0])))}
    called = _CALL.findall(line)
    for branches in _BRANCHES.findall(line):
        called += [b.strip().lstrip("%") for b in branches.split(",")]
    sums: dict[str, float] = {}
    for name in called:
        for inner, size in total(name).items():
            sums[inner] = sums.get(inner, 0.0) + trips * size
    return sums


def _bytes(array: tuple[str, str]) -> float:
    kind, shape = array
    names = {"bf16": 2, "pred": 1}
    bits = re.search(r"\d+", kind)
    each = names.get(kind, int(bits[0]) / 8 if bits else 0)
    return each * math.prod(map(int, filter(None, shape.split(","))))
