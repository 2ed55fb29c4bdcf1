"""The weights in an ONNX file, without the onnx package: names and arrays.

An ONNX file is one protobuf message; only a few of its fields hold the weights (onnx.proto3:
ModelProto.graph 7, GraphProto.initializer 5, and those of TensorProto below).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GRAPH, INITIALIZER = 7, 5
DIMS, TYPE, FLOATS, NAME, RAW = 1, 2, 4, 8, 9
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}  # by TensorProto.DataType


def weights(content: bytes) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX file, which must hold them itself.

    Raises:
      ValueError: it is none, or holds weights of a kind that is not read here.
    """
    try:
        graphs = [value for number, value in fields(memoryview(content)) if number == GRAPH]
        inside = [pair for graph in graphs for pair in fields(graph)]
        arrays = dict(_tensor(value) for number, value in inside if number == INITIALIZER)
    except (IndexError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"not an ONNX file that can be read: {error!r}") from error
    if not arrays:
        raise ValueError("not an ONNX file, or one without weights")
    return arrays


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a protobuf message: number, and a whole number or bytes.

    Raises:
      ValueError, IndexError: the message is broken.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"not a protobuf message: wire type {kind}")
        if at + size > len(message):
            raise ValueError(f"the message ends {at + size - len(message)} bytes too early")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a whole number of seven bits a byte; return it and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    name, kind, shape, parts = "", 0, [], []
    for number, value in fields(message):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == TYPE:
            kind = value
        elif number == NAME:
            name = bytes(value).decode()
        elif number in (RAW, FLOATS):
            parts.append(bytes(value))
    array = np.frombuffer(b"".join(parts), DTYPES[kind])
    if array.size != np.prod(shape, dtype=int):
        raise ValueError(
            f"weight {name} should have the shape {shape}, and has {array.size} values"
        )
    return name, array.reshape(shape)


def _varints(message: memoryview) -> list[int]:
    at, values = 0, []
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values
