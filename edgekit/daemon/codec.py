"""Tensors on the wire: the protocol's datatypes, and arrays from and to their JSON and binary forms."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgekit.daemon.http1 import HttpError

__all__ = [
    "BY_DTYPE",
    "DATATYPES",
    "Datatype",
    "array_from_binary",
    "array_from_bytes",
    "array_from_json",
    "array_from_values",
    "binary_from_array",
    "bytes_from_binary",
    "json_from_array",
]

Array = np.ndarray[Any, Any]


class Datatype(NamedTuple):
    """One datatype of the protocol.

    Attributes:
        wire: Its name in the protocol.
        dtype: numpy's name; `bytes` for strings of any length.
        code: Its letter in `struct`; empty where it has no JSON form or none that `struct` can pack.
        size: Bytes per element; 0 for strings.
        leaf: The Python type of one element in JSON.
    """

    wire: str
    dtype: str
    code: str
    size: int
    leaf: type


DATATYPES = {
    kind.wire: kind
    for kind in (
        Datatype("BOOL", "bool", "?", 1, bool),
        Datatype("UINT8", "uint8", "B", 1, int),
        Datatype("UINT16", "uint16", "H", 2, int),
        Datatype("UINT32", "uint32", "I", 4, int),
        Datatype("UINT64", "uint64", "Q", 8, int),
        Datatype("INT8", "int8", "b", 1, int),
        Datatype("INT16", "int16", "h", 2, int),
        Datatype("INT32", "int32", "i", 4, int),
        Datatype("INT64", "int64", "q", 8, int),
        Datatype("FP16", "float16", "", 2, float),
        Datatype("FP32", "float32", "f", 4, float),
        Datatype("FP64", "float64", "d", 8, float),
        Datatype("BYTES", "bytes", "", 0, str),
    )
}
BY_DTYPE = {kind.dtype: kind for kind in DATATYPES.values()}

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    leaf: msgspec.json.Decoder(list[leaf])  # type: ignore[valid-type]
    for leaf in (bool, int, float)
}
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))


def array_from_binary(kind: Datatype, shape: tuple[int, ...], body: memoryview, offset: int) -> Array:
    """Return the tensor that begins at `offset` of `body`: a view of it where the address is aligned.

    The caller has checked that the body is long enough. Little-endian, row-major, no padding.
    """
    if kind.leaf is bool:
        # any non-zero byte is true; numpy's own bool must be 0 or 1
        flags: Array = np.ndarray(shape, np.uint8, body, offset) != 0
        return flags
    array: Array = np.ndarray(shape, kind.dtype, body, offset)
    return array if array.flags.aligned else array.copy()


def bytes_from_binary(name: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Return strings, uint32 length and bytes each, as an object array of `bytes`.

    Raises:
        HttpError: 400, the lengths do not add up to the shape and the size.
    """
    values: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise HttpError(400, f"input {name!r}: the binary data ends within a length")
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise HttpError(400, f"input {name!r}: the binary data ends within an element")
        values.append(bytes(data[offset : offset + length]))
        offset += length
    return array_from_bytes(name, values, shape)


def array_from_json(name: str, kind: Datatype, shape: tuple[int, ...], data: object) -> Array:
    """Return a tensor from its JSON form: flat and row-major, or nested exactly as `shape` says.

    Args:
        name: The input's name, for messages.
        kind: Its datatype.
        shape: What the request declares.
        data: A `msgspec.Raw`, or what a lenient JSON parser made of it.

    Raises:
        HttpError: 400, with what was got and expected.
    """
    try:
        if isinstance(data, msgspec.Raw) and kind.code and len(memoryview(data)) > _PIECE_BYTES:
            return _array_from_long_json(name, kind, shape, bytes(data))
        values = _flat_values(name, kind, shape, math.prod(shape), data)
        if kind.leaf is str:
            return array_from_bytes(name, [value.encode() for value in values], shape)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HttpError(400, f"input {name!r}: data is not {kind.wire}: {error}") from error
    return array_from_values(name, kind, shape, values)


def array_from_values(name: str, kind: Datatype, shape: tuple[int, ...], values: Sequence[Any]) -> Array:
    """Return a tensor from its elements: Python's, of the datatype's kind, flat and row-major.

    Raises:
        HttpError: 400, they are too many or too few, or one does not fit into the datatype.
    """
    if kind.wire == "FP16":
        raise HttpError(400, f"input {name!r}: FP16 has no JSON form. Send it as binary data.")
    if len(values) != math.prod(shape):
        raise _misshapen(name, shape, len(values))
    # bytearray: some runtimes want a writable array
    packed = bytearray(_pack(name, kind, values))
    return np.frombuffer(packed, dtype=kind.dtype).reshape(shape)


def _pack(name: str, kind: Datatype, values: Sequence[Any]) -> bytes:
    try:
        return struct.pack(f"<{len(values)}{kind.code}", *values)
    except (struct.error, OverflowError) as error:
        raise HttpError(400, f"input {name!r}: a value does not fit into {kind.wire}: {error}") from error


#: JSON of a tensor is decoded in pieces of about this size.
_PIECE_BYTES = 1 << 20


def _array_from_long_json(name: str, kind: Datatype, shape: tuple[int, ...], raw: bytes) -> Array:
    """Return a tensor from JSON that is too long to be Python objects all at once."""
    elements = _elements(name, shape, math.prod(shape), raw)
    decoder, packed = _DECODERS[kind.leaf], bytearray()
    start = 0
    while start < len(elements):
        comma = elements.find(b",", start + _PIECE_BYTES)
        stop = comma if comma >= 0 else len(elements)
        packed += _pack(name, kind, decoder.decode(b"[" + elements[start:stop] + b"]"))
        start = stop + 1
    if len(packed) != math.prod(shape) * kind.size:
        raise _misshapen(name, shape, len(packed) // kind.size)
    return np.frombuffer(packed, dtype=kind.dtype).reshape(shape)


def _flat_values(name: str, kind: Datatype, shape: tuple[int, ...], count: int, data: object) -> list[Any]:
    if not isinstance(data, msgspec.Raw):
        return _flatten(name, kind, shape, count, data)
    raw = bytes(data)
    if kind.leaf is str:
        return _flatten(name, kind, shape, count, msgspec.json.decode(raw))
    values: list[Any] = _DECODERS[kind.leaf].decode(b"[" + _elements(name, shape, count, raw) + b"]")
    return values


def _elements(name: str, shape: tuple[int, ...], count: int, raw: bytes) -> bytes:
    """Return the elements of a JSON list, flat or nested as `shape` says, with commas between and no brackets.

    They are the same elements in the same order, and without the inner brackets they decode at a third of the cost.
    """
    structure = raw.translate(None, _NOT_STRUCTURE)
    if _is_flat(structure, count) or (
        len(structure) == _nested_length(shape) and structure == _nested_structure(shape)
    ):
        return raw.translate(None, b"[]")
    raise _misshapen(name, shape, structure.count(b",") + (structure != b"[]"))


def _flatten(name: str, kind: Datatype, shape: tuple[int, ...], count: int, data: object) -> list[Any]:
    """Flatten nested lists by hand: for strings, and for JSON with NaN, which only a lenient parser takes."""
    leaves = list[kind.leaf]  # type: ignore[name-defined]
    if isinstance(data, list) and len(data) == count and not any(isinstance(item, list) for item in data):
        return msgspec.convert(data, leaves)
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            raise _misshapen(name, shape, len(level))
        level = [element for item in level for element in item]
    return msgspec.convert(level, leaves)


def _misshapen(name: str, shape: Sequence[int], got: int) -> HttpError:
    return HttpError(
        400,
        f"input {name!r}: data does not have the shape {list(shape)}: got {got} elements or another nesting, "
        f"expected {math.prod(shape)} elements, flat or nested as the shape says",
    )


def _is_flat(structure: bytes, count: int) -> bool:
    return len(structure) == count + 1 and structure.count(b",") == count - 1 and structure[-1:] == b"]"


def _nested_length(shape: tuple[int, ...]) -> int:
    length = 0
    for size in reversed(shape):
        length = 2 + size * length + size - 1
    return length


@functools.lru_cache(8)
def _nested_structure(shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of a nested list; its length has been compared with the data's."""
    structure = b""
    for size in reversed(shape):
        structure = b"[" + b",".join([structure] * size) + b"]"
    return structure


def array_from_bytes(name: str, values: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    """Return strings as an object array of `bytes`.

    Raises:
        HttpError: 400, they are too many or too few.
    """
    if len(values) != math.prod(shape):
        raise _misshapen(name, shape, len(values))
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array.reshape(shape)


def binary_from_array(kind: Datatype, array: Array) -> bytes | memoryview:
    """Return the tensor's binary form: a view of the array, to be sent as it lies, where that is the same."""
    if kind.leaf is str:
        values = [_as_bytes(value) for value in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    if array.nbytes <= _COPIED_BYTES or not array.flags.c_contiguous:
        return array.tobytes()
    return array.data


#: Below this a copy is cheaper than carrying the array's buffer along.
_COPIED_BYTES = 4096


def json_from_array(name: str, kind: Datatype, array: Array) -> list[Any]:
    """Return the tensor's elements, flat and row-major, ready for JSON.

    Raises:
        HttpError: 400, the datatype has no JSON form, or a string is not UTF-8.
    """
    if kind.wire == "FP16":
        raise HttpError(400, f"output {name!r}: FP16 has no JSON form. Ask for it with binary_data.")
    if kind.leaf is not str:
        values: list[Any] = array.reshape(-1).tolist()
        return values
    try:
        return [_as_bytes(value).decode() for value in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise HttpError(
            400, f"output {name!r} holds bytes that are not UTF-8. Ask for it with binary_data."
        ) from error


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
