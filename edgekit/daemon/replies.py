"""Inference replies in JSON and binary: arrays in, the reply's buffers out.

NaN and infinity have no JSON form; they are written as the tokens `NaN`, `Infinity` and `-Infinity`, which
Python's `json` and Triton's own clients read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edgekit.daemon import codec
from edgekit.daemon.http1 import Reply
from edgekit.daemon.signature import Classes, Inference, Signature

__all__ = ["encode_outputs"]

Array = np.ndarray[Any, Any]
_MOST_REMEMBERED = 64


class _Output(msgspec.Struct, omit_defaults=True, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class _Response(msgspec.Struct, omit_defaults=True, gc=False):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str | None = None


_ENCODER = msgspec.json.Encoder()


def encode_outputs(signature: Signature, request: Inference, outputs: Mapping[str, Array]) -> Reply:
    """Build the reply to an inference request.

    Args:
        signature: The model's.
        request: What was asked for.
        outputs: Arrays by output name. Large ones are not copied: the reply holds views of them.

    Raises:
        HttpError: 400, an output has no JSON form, or does not fit into its shared memory.
    """
    if request.id is None and request.wanted is signature.all_binary and signature.fixed_size:
        return _encode_binary(signature, outputs)
    described: list[_Output] = []
    tensors: list[bytes | memoryview] = []
    for name, where in request.wanted:
        array = outputs[name]
        kind = signature.outputs[name].kind
        if isinstance(where, Classes):
            array, kind = signature.classes(array, where.most), codec.DATATYPES["BYTES"]
            where = where.binary  # noqa: PLW2901
        if where is False:
            values = codec.json_from_array(name, kind, array)
            described.append(_Output(name, kind.wire, array.shape, None, values))
            continue
        data = codec.binary_from_array(kind, array)
        if where is True:
            described.append(_described(name, kind, array, data))
            tensors.append(data)
        else:
            signature.deposit(name, where, data)
            # without parameters, as Triton's: its C++ client takes any for those of binary data
            described.append(_Output(name, kind.wire, array.shape))
    head = _to_json(_Response(signature.name, signature.version, described, request.id))
    if not tensors:
        return Reply(200, (head,))
    return Reply(200, (head, *tensors), "application/octet-stream", len(head))


def _encode_binary(signature: Signature, outputs: Mapping[str, Array]) -> Reply:
    """Build the most frequent reply: all outputs in binary, whose JSON depends on their shapes only."""
    tensors: list[bytes | memoryview] = []
    shapes: list[tuple[int, ...]] = []
    for name, port in signature.outputs.items():
        array = outputs[name]
        tensors.append(codec.binary_from_array(port.kind, array))
        shapes.append(array.shape)
    key = tuple(shapes)
    head = signature.described.get(key)
    if head is None:
        described = [
            _described(name, port.kind, outputs[name], data)
            for (name, port), data in zip(signature.outputs.items(), tensors, strict=True)
        ]
        head = _to_json(_Response(signature.name, signature.version, described))
        if len(signature.described) >= _MOST_REMEMBERED:
            signature.described.clear()
        signature.described[key] = head
    return Reply(200, (head, *tensors), "application/octet-stream", len(head))


def _described(name: str, kind: codec.Datatype, array: Array, data: bytes | memoryview) -> _Output:
    return _Output(name, kind.wire, array.shape, {"binary_data_size": _size(data)})


def _size(data: bytes | memoryview) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes


def _to_json(response: _Response) -> bytes:
    data = _ENCODER.encode(response)
    if b"null" not in data:
        return data
    import json  # the fast encoder writes null for NaN and infinity; this one writes tokens that it reads

    return json.dumps(msgspec.to_builtins(response), separators=(",", ":")).encode()
