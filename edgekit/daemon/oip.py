"""The Open Inference Protocol v2's inference messages: a body in, arrays out, and the way back.

JSON and the binary tensor extension, as Triton and KServe speak them. Pure: no sockets, no models.

NaN and infinity have no JSON form; they are written as the tokens `NaN`, `Infinity` and `-Infinity`, which
Python's `json` and Triton's own clients read, and they are accepted in requests as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from edgekit.daemon import codec
from edgekit.daemon.http1 import HttpError, Reply
from edgekit.tensors import TensorSpec

__all__ = ["Inference", "Port", "Signature", "decode_inference", "encode_outputs"]

Array = np.ndarray[Any, Any]
_MOST_SHAPES = 64
_MOST_REMEMBERED = 64
_REMEMBERED_BYTES = 2048
#: Longer JSON is compared with its shape before Python objects are made of it, and then piece by piece: a number of
#: two bytes becomes an object of 32.
_FLAT_BYTES = 1 << 20
_ABSENT = msgspec.Raw()


class Port:
    """One input or output of a model, with what is worth knowing once and not per request."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.kind = codec.BY_DTYPE[spec.dtype]
        self._bytes_by_shape: dict[tuple[int, ...], int] = {}

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Check a declared shape and return how many bytes it holds (0 for strings).

        Raises:
            HttpError: 400, it is not a shape that the model takes.
        """
        known = self._bytes_by_shape.get(shape)
        if known is not None:
            return known
        if not self.spec.accepts(shape):
            raise HttpError(
                400,
                f"input {self.spec.name!r} has the wrong shape: got {list(shape)}, "
                f"expected {list(self.spec.shape)}",
            )
        nbytes = math.prod(shape) * self.kind.size
        if len(self._bytes_by_shape) < _MOST_SHAPES:
            self._bytes_by_shape[shape] = nbytes
        return nbytes

    def metadata(self) -> dict[str, object]:
        """Return the protocol's description of this tensor."""
        return {"name": self.spec.name, "datatype": self.kind.wire, "shape": list(self.spec.shape)}


class _Layout(NamedTuple):
    """What the JSON of a request with binary tensors only says: checked once, whatever the tensors hold.

    Attributes:
        tensors: Name, port, shape and bytes, in the order of the data.
    """

    tensors: tuple[tuple[str, Port, tuple[int, ...], int], ...]
    wanted: Sequence[tuple[str, bool]]
    id: str | None


class Signature:
    """What the protocol needs to know of a model."""

    def __init__(
        self, name: str, version: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.name, self.version = name, version
        self.inputs = {spec.name: Port(spec) for spec in inputs}
        self.outputs = {spec.name: Port(spec) for spec in outputs}
        self.all_json = tuple((name, False) for name in self.outputs)
        self.all_binary = tuple((name, True) for name in self.outputs)
        # a client repeats itself: what the JSON before binary tensors means, and that of the reply
        self.layouts: dict[bytes, _Layout] = {}
        self.described: dict[tuple[tuple[int, ...], ...], bytes] = {}
        self.fixed_size = all(port.kind.size for port in self.outputs.values())
        leaves = {port.kind.leaf for port in self.inputs.values()}
        self.flat_decoder = _FLAT_DECODERS.get(leaves.pop()) if len(leaves) == 1 else None


class Inference(NamedTuple):
    """A decoded inference request.

    Attributes:
        feed: Arrays by input name; they may be views of the request's body.
        wanted: Output names in the order asked for, and whether each is wanted in binary.
        id: To be echoed; None where the client gave none.
        rows: Size of the first input's first axis, 1 for a scalar.
    """

    feed: dict[str, Array]
    wanted: Sequence[tuple[str, bool]]
    id: str | None
    rows: int


class _InputParameters(msgspec.Struct, gc=False):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: str | None = None


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
_FLAT_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
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
    for tensor in message.inputs:
        port = _port(signature, tensor, feed)
        nbytes = port.nbytes(tensor.shape)
        if _is_binary(tensor):
            size = _binary_size(port, tensor, nbytes)
            feed[tensor.name] = _from_binary(tensor.name, port, tensor.shape, body, offset, size)
            offset += size
        else:
            feed[tensor.name] = _from_json(port, tensor)
    _check_complete(signature, feed)
    _check_length(body, offset)
    shape = message.inputs[0].shape
    return Inference(feed, _wanted(signature, message), message.id, shape[0] if shape else 1)


def _layout(signature: Signature, message: _Message) -> _Layout | None:
    """Return what the message says of its binary tensors; None where some tensor comes in JSON."""
    tensors: dict[str, tuple[str, Port, tuple[int, ...], int]] = {}
    for tensor in message.inputs:
        if not _is_binary(tensor):
            return None
        port = _port(signature, tensor, tensors)
        size = _binary_size(port, tensor, port.nbytes(tensor.shape))
        tensors[tensor.name] = (tensor.name, port, tensor.shape, size)
    _check_complete(signature, tensors)
    return _Layout(tuple(tensors.values()), _wanted(signature, message), message.id)


def _cut(layout: _Layout, body: memoryview, offset: int) -> Inference:
    feed: dict[str, Array] = {}
    for name, port, shape, size in layout.tensors:
        feed[name] = _from_binary(name, port, shape, body, offset, size)
        offset += size
    if offset != len(body):
        _check_length(body, offset)
    shape = layout.tensors[0][2]
    return Inference(feed, layout.wanted, layout.id, shape[0] if shape else 1)


def _check_complete(signature: Signature, given: Mapping[str, object]) -> None:
    if len(given) != len(signature.inputs):
        missing = next(name for name in signature.inputs if name not in given)
        raise HttpError(400, f"input {missing!r} is missing: expected {_known(signature.inputs)}")


def _check_length(body: memoryview, offset: int) -> None:
    if offset != len(body):
        raise HttpError(400, f"the body has {len(body) - offset} bytes after the last tensor: expected none")


def _message(signature: Signature, data: memoryview | bytes) -> _Message:
    if signature.flat_decoder is not None and len(data) <= _FLAT_BYTES:
        try:
            message: _Message = signature.flat_decoder.decode(data)
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


def _port(signature: Signature, tensor: _Input, given: Mapping[str, object]) -> Port:
    port = signature.inputs.get(tensor.name)
    if port is None:
        raise HttpError(400, f"unknown input {tensor.name!r}: expected {_known(signature.inputs)}")
    if tensor.name in given:
        raise HttpError(400, f"input {tensor.name!r} is given twice")
    if tensor.datatype != port.kind.wire:
        raise HttpError(
            400,
            f"input {tensor.name!r} has the wrong datatype: got {tensor.datatype!r}, expected {port.kind.wire}",
        )
    if tensor.parameters and tensor.parameters.shared_memory_region is not None:
        raise HttpError(400, f"input {tensor.name!r}: shared memory is not supported by this server")
    return port


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
    if size != nbytes and port.kind.size:
        raise HttpError(
            400,
            f"input {tensor.name!r}: binary_data_size does not fit the shape {list(tensor.shape)}: "
            f"got {size}, expected {nbytes}",
        )
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


def _wanted(signature: Signature, message: _Message) -> Sequence[tuple[str, bool]]:
    binary = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return signature.all_binary if binary else signature.all_json
    wanted: dict[str, bool] = {}
    for output in message.outputs:
        if output.name not in signature.outputs:
            raise HttpError(400, f"unknown output {output.name!r}: expected {_known(signature.outputs)}")
        if output.name in wanted:
            raise HttpError(400, f"output {output.name!r} is asked for twice")
        wanted[output.name] = _wants_binary(output, default=binary)
    return tuple(wanted.items())


def _wants_binary(output: _WantedOutput, *, default: bool) -> bool:
    parameters = output.parameters
    if parameters is None:
        return default
    if parameters.shared_memory_region is not None:
        raise HttpError(400, f"output {output.name!r}: shared memory is not supported by this server")
    if parameters.classification is not None:
        raise HttpError(400, f"output {output.name!r}: classification is not supported by this server")
    return default if parameters.binary_data is None else parameters.binary_data


def _known(ports: Mapping[str, Port]) -> str:
    return ", ".join(ports) or "none"


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


def encode_outputs(signature: Signature, request: Inference, outputs: Mapping[str, Array]) -> Reply:
    """Build the reply to an inference request.

    Args:
        signature: The model's.
        request: What was asked for.
        outputs: Arrays by output name. Large ones are not copied: the reply holds views of them.
    """
    if request.id is None and request.wanted is signature.all_binary and signature.fixed_size:
        return _encode_binary(signature, outputs)
    described: list[_Output] = []
    tensors: list[bytes | memoryview] = []
    for name, binary in request.wanted:
        array = outputs[name]
        kind = signature.outputs[name].kind
        if binary:
            data = codec.binary_from_array(kind, array)
            described.append(_described(name, kind, array, data))
            tensors.append(data)
        else:
            values = codec.json_from_array(name, kind, array)
            described.append(_Output(name, kind.wire, array.shape, None, values))
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
    size = len(data) if isinstance(data, bytes) else data.nbytes
    return _Output(name, kind.wire, array.shape, {"binary_data_size": size})


def _to_json(response: _Response) -> bytes:
    data = _ENCODER.encode(response)
    if b"null" not in data:
        return data
    import json  # the fast encoder writes null for NaN and infinity; this one writes tokens that it reads

    return json.dumps(msgspec.to_builtins(response), separators=(",", ":")).encode()
