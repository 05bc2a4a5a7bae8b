"""The Open Inference Protocol v2's inference requests: a body in, arrays out.

JSON and the binary tensor extension, as Triton and KServe speak them. Pure: no sockets, no models.

NaN and infinity have no JSON form; they are read as the tokens `NaN`, `Infinity` and `-Infinity`, which Python's
`json` and Triton's own clients write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from edgekit.daemon import codec
from edgekit.daemon.http1 import HttpError
from edgekit.daemon.sharedmemory import Slice
from edgekit.daemon.signature import Classes, Inference, Layout, Port, SharedInput, Signature, Wanted

__all__ = ["decode_inference"]

Array = np.ndarray[Any, Any]
_MOST_REMEMBERED = 64
_REMEMBERED_BYTES = 2048
#: Longer JSON is compared with its shape before Python objects are made of it, and then piece by piece: a number of
#: two bytes becomes an object of 32.
_FLAT_BYTES = 1 << 20
_ABSENT = msgspec.Raw()
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _InputParameters(msgspec.Struct, gc=False):
    binary_data_size: _Size | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: _Size = 0
    shared_memory_byte_size: _Size | None = None


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=1, le=2**62)], ...]
    datatype: str
    parameters: _InputParameters | None = None
    data: msgspec.Raw = _ABSENT


class _OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: _Size = 0
    shared_memory_byte_size: _Size | None = None


class _WantedOutput(msgspec.Struct, gc=False):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(msgspec.Struct, gc=False):
    binary_data_output: bool = False


class _Message(msgspec.Struct, gc=False):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_WantedOutput] | None = None


class _LenientInput(_Input, gc=False):
    data: Any = _ABSENT


class _LenientMessage(_Message, gc=False):
    inputs: list[_LenientInput]  # type: ignore[assignment]


class _FlatInput(_Input, gc=False):
    """An input whose data has been read as a flat list of its datatype already."""


class _Bools(_FlatInput, gc=False):
    data: list[bool] = _ABSENT  # type: ignore[assignment]


class _Ints(_FlatInput, gc=False):
    data: list[int] = _ABSENT  # type: ignore[assignment]


class _Floats(_FlatInput, gc=False):
    data: list[float] = _ABSENT  # type: ignore[assignment]


class _BoolMessage(_Message, gc=False):
    inputs: list[_Bools]  # type: ignore[assignment]


class _IntMessage(_Message, gc=False):
    inputs: list[_Ints]  # type: ignore[assignment]


class _FloatMessage(_Message, gc=False):
    inputs: list[_Floats]  # type: ignore[assignment]


#: For models whose inputs are all of one kind: most clients send flat lists, and one pass over them will do.
_FLAT_DECODERS: dict[type | None, msgspec.json.Decoder[Any]] = {
    bool: msgspec.json.Decoder(_BoolMessage),
    int: msgspec.json.Decoder(_IntMessage),
    float: msgspec.json.Decoder(_FloatMessage),
}
_DECODER = msgspec.json.Decoder(_Message)
_ENCODER = msgspec.json.Encoder()


def decode_inference(signature: Signature, body: memoryview, json_length: int | None) -> Inference:
    """Read the body of an inference request.

    Args:
        signature: The model's.
        body: The whole body, decompressed.
        json_length: The value of Inference-Header-Content-Length; None without the header.

    Raises:
        HttpError: 400, saying what is wrong.
    """
    if json_length is None or json_length == len(body):
        return _decode(signature, _message(signature, body), body, len(body))
    if json_length == 0 and len(body) > 0:
        return _raw_inference(signature, body)
    if not 0 < json_length < len(body):
        raise HttpError(400, f"inference header size should be in range (0, {len(body)})")
    if json_length > _REMEMBERED_BYTES:
        return _decode(signature, _message(signature, body[:json_length]), body, json_length)
    text = bytes(body[:json_length])
    layout = signature.layouts.get(text)
    if layout is None:
        message = _message(signature, text)
        layout = _layout(signature, message)
        if layout is None:
            return _decode(signature, message, body, json_length)
        if len(signature.layouts) >= _MOST_REMEMBERED:
            signature.layouts.clear()
        signature.layouts[text] = layout
    return _cut(layout, body, json_length)


def _decode(signature: Signature, message: _Message, body: memoryview, offset: int) -> Inference:
    """Take the tensors out of the message, and out of the body from `offset`."""
    feed: dict[str, Array] = {}
    shared: list[SharedInput] = []
    for tensor in message.inputs:
        port = signature.input_port(tensor.name, tensor.datatype, feed)
        nbytes = port.nbytes(tensor.shape)
        piece = _shared_piece(signature, tensor)
        if piece is not None:
            shared.append(signature.postpone(feed, port, tensor.shape, nbytes, piece))
        elif _is_binary(tensor):
            size = _binary_size(port, tensor, nbytes)
            feed[tensor.name] = _from_binary(tensor.name, port, tensor.shape, body, offset, size)
            offset += size
        else:
            feed[tensor.name] = _from_json(port, tensor)
    signature.check_complete(feed)
    _check_length(body, offset)
    shape = message.inputs[0].shape
    return Inference(feed, _wanted(signature, message), message.id, shape[0] if shape else 1, shared)


def _layout(signature: Signature, message: _Message) -> Layout | None:
    """Return what the message says of its binary tensors; None where some tensor comes in JSON."""
    tensors: dict[str, tuple[str, Port, tuple[int, ...], int]] = {}
    for tensor in message.inputs:
        if not _is_binary(tensor) or _shared_piece(signature, tensor) is not None:
            return None
        port = signature.input_port(tensor.name, tensor.datatype, tensors)
        size = _binary_size(port, tensor, port.nbytes(tensor.shape))
        tensors[tensor.name] = (tensor.name, port, tensor.shape, size)
    signature.check_complete(tensors)
    return Layout(tuple(tensors.values()), _wanted(signature, message), message.id)


def _cut(layout: Layout, body: memoryview, offset: int) -> Inference:
    feed: dict[str, Array] = {}
    for name, port, shape, size in layout.tensors:
        feed[name] = _from_binary(name, port, shape, body, offset, size)
        offset += size
    if offset != len(body):
        _check_length(body, offset)
    shape = layout.tensors[0][2]
    return Inference(feed, layout.wanted, layout.id, shape[0] if shape else 1)


def _check_length(body: memoryview, offset: int) -> None:
    if offset != len(body):
        raise HttpError(400, f"the body has {len(body) - offset} bytes after the last tensor: expected none")


def _message(signature: Signature, data: memoryview | bytes) -> _Message:
    decoder = _FLAT_DECODERS.get(signature.leaf) if len(data) <= _FLAT_BYTES else None
    if decoder is not None:
        try:
            message: _Message = decoder.decode(data)
        except (ValueError, RecursionError):
            pass  # nested data, or a mistake: the general way reads the one and explains the other
        else:
            return message
    try:
        try:
            return _DECODER.decode(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            if not any(token in bytes(data) for token in (b"NaN", b"Infinity")):
                raise
            import json  # the one that writes these tokens, and reads them

            message = msgspec.convert(json.loads(bytes(data)), _LenientMessage)
            _ENCODER.encode(message.id)  # it also reads half surrogates, which could not be echoed
            return message
    except msgspec.ValidationError as error:
        raise HttpError(400, f"the request is not an inference request: {error}") from error
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"failed to parse the request JSON: {error}") from error


def _shared_piece(signature: Signature, tensor: _Input) -> Slice | None:
    """Return where the tensor lies in shared memory; None where it comes with the request."""
    parameters = tensor.parameters
    if parameters is None or parameters.shared_memory_region is None:
        return None
    if tensor.data is not _ABSENT or parameters.binary_data_size is not None:
        raise HttpError(400, f"input {tensor.name!r} has both shared_memory_region and data of its own")
    return signature.share(
        f"input {tensor.name!r}",
        parameters.shared_memory_region,
        parameters.shared_memory_offset,
        parameters.shared_memory_byte_size,
    )


def _is_binary(tensor: _Input) -> bool:
    return tensor.parameters is not None and tensor.parameters.binary_data_size is not None


def _from_json(port: Port, tensor: _Input) -> Array:
    if tensor.data is _ABSENT:
        raise HttpError(400, f"input {tensor.name!r} has neither data nor binary_data_size")
    if isinstance(tensor, _FlatInput):
        return codec.array_from_values(tensor.name, port.kind, tensor.shape, tensor.data)
    return codec.array_from_json(tensor.name, port.kind, tensor.shape, tensor.data)


def _binary_size(port: Port, tensor: _Input, nbytes: int) -> int:
    """Return how many bytes of the body belong to the tensor."""
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    assert size is not None
    if tensor.data is not _ABSENT:
        raise HttpError(400, f"input {tensor.name!r} has both data and binary_data_size")
    port.check_size("binary_data_size", size, tensor.shape, nbytes)
    return size


def _from_binary(
    name: str, port: Port, shape: tuple[int, ...], body: memoryview, offset: int, size: int
) -> Array:
    if offset + size > len(body):
        raise HttpError(
            400,
            f"input {name!r}: the body ends within the binary data: got {len(body) - offset} bytes, "
            f"expected {size}",
        )
    if port.kind.size == 0:
        return codec.bytes_from_binary(name, shape, body[offset : offset + size])
    return codec.array_from_binary(port.kind, shape, body, offset)


def _wanted(signature: Signature, message: _Message) -> Sequence[Wanted]:
    binary = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return signature.all_binary if binary else signature.all_json
    wanted: dict[str, bool | Slice | Classes] = {}
    for output in message.outputs:
        signature.check_output(output.name, wanted)
        wanted[output.name] = _destination(signature, output, binary=binary)
    return tuple(wanted.items())


def _destination(signature: Signature, output: _WantedOutput, *, binary: bool) -> bool | Slice | Classes:
    parameters = output.parameters
    if parameters is None:
        return binary
    binary = binary if parameters.binary_data is None else parameters.binary_data
    if parameters.classification is not None:
        if parameters.shared_memory_region is not None:
            raise HttpError(400, f"output {output.name!r}: classes do not go into shared memory")
        signature.check_classes(output.name, parameters.classification)
        return Classes(parameters.classification, binary)
    if parameters.shared_memory_region is not None:
        return signature.share(
            f"output {output.name!r}",
            parameters.shared_memory_region,
            parameters.shared_memory_offset,
            parameters.shared_memory_byte_size,
        )
    return binary


def _raw_inference(signature: Signature, body: memoryview) -> Inference:
    """Read a raw binary request: the whole body is the only input, as a batch of one."""
    if len(signature.inputs) != 1:
        raise HttpError(
            400, f"a raw binary request needs a model with one input: {signature.name} has "
            f"{len(signature.inputs)}"
        )  # fmt: skip
    ((name, port),) = signature.inputs.items()
    if port.kind.size == 0:
        shape = tuple(1 for _ in port.spec.shape)
        values = np.empty(1, dtype=object)
        values[0] = bytes(body)
        port.nbytes(shape)
        return Inference({name: values.reshape(shape)}, signature.all_binary, None, 1)
    shape = _raw_shape(port, len(body))
    array = codec.array_from_binary(port.kind, shape, body, 0)
    return Inference({name: array}, signature.all_binary, None, 1)


def _raw_shape(port: Port, nbytes: int) -> tuple[int, ...]:
    want = port.spec.shape
    shape = [1 if axis == 0 and size == -1 else size for axis, size in enumerate(want)]
    if shape.count(-1) > 1:
        raise HttpError(400, f"a raw binary request needs at most one free size: got {list(want)}")
    known = math.prod(size for size in shape if size != -1) * port.kind.size
    if -1 in shape and known and nbytes % known == 0:
        shape[shape.index(-1)] = nbytes // known
    elif -1 in shape or nbytes != known:
        raise HttpError(400, f"the raw body does not fit input {port.spec.name!r} of shape {shape}: got {nbytes} bytes, expected {known}")  # fmt: skip
    return tuple(shape)
