"""An inference request that came over gRPC: messages in, arrays out, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.daemon import codec
from edgekit.daemon.grpc_schema import message_class
from edgekit.daemon.http1 import HttpError
from edgekit.daemon.lane import INLINE_JSON_BYTES, Call, Lane
from edgekit.daemon.sharedmemory import Slice
from edgekit.daemon.signature import Classes, Inference, Port, SharedInput, Signature, Wanted

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GrpcCall", "decode_message", "encode_message"]

#: Where a datatype's elements stand in `InferTensorContents`; half precision has no place there.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_LARGEST = 2**62


class GrpcCall(Call[Any]):
    """One inference request over gRPC.

    Its answer is a `ModelInferResponse`, its bytes once it is finished, or the `HttpError` that says no.

    Args:
        lane: Of the model.
        message: A `ModelInferRequest`.
        size: Of it, in bytes.
        streamed: Whether the answer goes into a `ModelStreamInferResponse`.
    """

    __slots__ = ("message", "size", "streamed")

    def __init__(self, lane: Lane, message: Any, size: int, *, streamed: bool = False) -> None:
        super().__init__(lane)
        self.message, self.size, self.streamed = message, size, streamed

    @property
    def light(self) -> bool:
        """Tell whether decoding it is quick enough for the event loop."""
        if self.size <= INLINE_JSON_BYTES:
            return True
        return bool(self.message.raw_input_contents) and not self.lane.takes_strings

    def _decode(self) -> Inference:
        return decode_message(self.lane.signature, self.message)

    def encode(self, inference: Inference, outputs: Mapping[str, np.ndarray]) -> Any:
        """Return the response message, which holds copies."""
        return encode_message(self.lane.signature, inference, outputs)

    def keep(self, answer: Any) -> Any:
        """Return the answer: it holds no views."""
        return answer

    def finish(self, answer: Any) -> Any:
        """Return the message's bytes."""
        if self.streamed:
            answer = message_class("inference.ModelStreamInferResponse")(infer_response=answer)
        return answer.SerializeToString()

    def refuse(self, error: HttpError) -> HttpError:
        """Return the error; its sender knows how to say it."""
        return error


def decode_message(signature: Signature, message: Any) -> Inference:
    """Read a `ModelInferRequest`.

    Raises:
        HttpError: 400 or 404, saying what is wrong.
    """
    feed: dict[str, np.ndarray] = {}
    shared: list[SharedInput] = []
    raw = iter(message.raw_input_contents)
    expected = 0
    rows = 1
    for index, tensor in enumerate(message.inputs):
        port = signature.input_port(tensor.name, tensor.datatype, feed)
        shape = _shape(tensor)
        nbytes = port.nbytes(shape)
        if index == 0 and shape:
            rows = shape[0]
        piece = _piece(signature, f"input {tensor.name!r}", tensor.parameters)
        if piece is not None:
            if tensor.HasField("contents"):
                raise HttpError(400, f"input {tensor.name!r} has both shared_memory_region and contents")
            shared.append(signature.postpone(feed, port, shape, nbytes, piece))
        elif message.raw_input_contents:
            feed[tensor.name] = _from_raw(port, tensor, shape, nbytes, next(raw, None))
            expected += 1
        else:
            feed[tensor.name] = _from_contents(port, tensor, shape)
    signature.check_complete(feed)
    got = len(message.raw_input_contents)
    if got != expected:
        raise HttpError(400, f"raw_input_contents has {got} elements: expected {expected}")
    return Inference(feed, _wanted(signature, message.outputs), message.id or None, rows, shared)


def _shape(tensor: Any) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if not all(1 <= size <= _LARGEST for size in shape):
        raise HttpError(400, f"input {tensor.name!r}: no such shape: got {list(shape)}, expected sizes >= 1")
    return shape


def _piece(signature: Signature, what: str, parameters: Any) -> Slice | None:
    """Return where a tensor lies in shared memory; None where it comes with the message."""
    if "shared_memory_region" not in parameters:
        return None
    size = _number(what, parameters, "shared_memory_byte_size")
    offset = _number(what, parameters, "shared_memory_offset") or 0
    return signature.share(what, parameters["shared_memory_region"].string_param, offset, size)


def _number(what: str, parameters: Any, name: str) -> int | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if not 0 <= value <= _LARGEST:
        raise HttpError(400, f"{what}: {name} is not a number that can be")
    return int(value)


def _from_raw(port: Port, tensor: Any, shape: tuple[int, ...], nbytes: int, raw: bytes | None) -> np.ndarray:
    if tensor.HasField("contents"):
        raise HttpError(400, f"input {tensor.name!r} has contents next to raw_input_contents")
    if raw is None:
        raise HttpError(400, f"input {tensor.name!r} has no element in raw_input_contents")
    if port.kind.size == 0:
        return codec.bytes_from_binary(tensor.name, shape, memoryview(raw))
    port.check_size("raw_input_contents", len(raw), shape, nbytes)
    # bytearray: some runtimes want a writable array
    return codec.array_from_binary(port.kind, shape, memoryview(bytearray(raw)), 0)


def _from_contents(port: Port, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    field = _CONTENTS.get(port.kind.wire)
    if field is None:
        raise HttpError(
            400, f"input {tensor.name!r}: {port.kind.wire} has no contents. Send it in raw_input_contents."
        )
    others = [one.name for one, _ in tensor.contents.ListFields() if one.name != field]
    if others:
        raise HttpError(400, f"input {tensor.name!r} has {others[0]}: expected {field} for {port.kind.wire}")
    values = getattr(tensor.contents, field)
    if port.kind.size == 0:
        return codec.array_from_bytes(tensor.name, values, shape)
    return codec.array_from_values(tensor.name, port.kind, shape, values)


def _wanted(signature: Signature, outputs: Any) -> Sequence[Wanted]:
    if not outputs:
        return signature.all_binary
    wanted: dict[str, bool | Slice | Classes] = {}
    for output in outputs:
        what = f"output {output.name!r}"
        signature.check_output(output.name, wanted)
        piece = _piece(signature, what, output.parameters)
        if "classification" in output.parameters:
            if piece is not None:
                raise HttpError(400, f"{what}: classes do not go into shared memory")
            count = _number(what, output.parameters, "classification") or 0
            signature.check_classes(output.name, count)
            wanted[output.name] = Classes(count, binary=True)
            continue
        wanted[output.name] = True if piece is None else piece
    return tuple(wanted.items())


def encode_message(signature: Signature, request: Inference, outputs: Mapping[str, np.ndarray]) -> Any:
    """Return the `ModelInferResponse`: every tensor raw, as Triton sends them.

    Args:
        signature: The model's.
        request: What was asked for.
        outputs: Arrays by output name; they are copied.

    Raises:
        HttpError: 400 or 404, an output does not fit into its shared memory.
    """
    response = message_class("inference.ModelInferResponse")(
        model_name=signature.name, model_version=signature.version, id=request.id or ""
    )
    for name, where in request.wanted:
        array = outputs[name]
        kind = signature.outputs[name].kind
        if isinstance(where, Classes):
            array, kind = signature.classes(array, where.most), codec.DATATYPES["BYTES"]
        data = codec.binary_from_array(kind, array)
        response.outputs.add(name=name, datatype=kind.wire, shape=array.shape)
        if isinstance(where, Slice):
            signature.deposit(name, where, data)
            data = b""  # clients count the raw tensors by the outputs
        response.raw_output_contents.append(data if isinstance(data, bytes) else data.tobytes())
    return response
