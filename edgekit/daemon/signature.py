"""What the protocol needs to know of a model: its tensors, and the checks that every request passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgekit.daemon import codec
from edgekit.daemon.http1 import HttpError
from edgekit.daemon.sharedmemory import Regions, Slice
from edgekit.tensors import TensorSpec

__all__ = ["Classes", "Inference", "Layout", "Port", "SharedInput", "Signature", "Wanted"]

Array = np.ndarray[Any, Any]
_MOST_SHAPES = 64


class Classes(NamedTuple):
    """An output is wanted as its largest values: strings `value:index`, or `value:index:label`.

    Attributes:
        most: How many, of each row of a batch.
        binary: Whether the strings go into the binary part.
    """

    most: int
    binary: bool


#: An output's name, and where it goes: True into the binary part, False into the JSON, into shared memory, or as classes.
Wanted = tuple[str, "bool | Slice | Classes"]


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

    def check_size(self, parameter: str, size: int, shape: Sequence[int], nbytes: int) -> None:
        """Refuse a number of bytes that the shape does not have; strings may have any.

        Raises:
            HttpError: 400.
        """
        if size != nbytes and self.kind.size:
            raise HttpError(
                400,
                f"input {self.spec.name!r}: {parameter} does not fit the shape {list(shape)}: "
                f"got {size}, expected {nbytes}",
            )


class Layout(NamedTuple):
    """What the JSON of a request with binary tensors only says: checked once, whatever the tensors hold.

    Attributes:
        tensors: Name, port, shape and bytes, in the order of the data.
    """

    tensors: tuple[tuple[str, Port, tuple[int, ...], int], ...]
    wanted: Sequence[Wanted]
    id: str | None


class SharedInput(NamedTuple):
    """An input that lies in shared memory; it is read when its turn has come, not while it waits."""

    name: str
    port: Port
    shape: tuple[int, ...]
    piece: Slice


class Inference(NamedTuple):
    """A decoded inference request.

    Attributes:
        feed: Arrays by input name; they may be views of the request's body.
        wanted: Output names in the order asked for, and where each goes.
        id: To be echoed; None where the client gave none.
        rows: Size of the first input's first axis, 1 for a scalar.
        shared: Inputs that `Signature.fetch` has still to put into the feed.
    """

    feed: dict[str, Array]
    wanted: Sequence[Wanted]
    id: str | None
    rows: int
    shared: Sequence[SharedInput] = ()


#: Stands in the feed for what is still in shared memory.
_LATER: Array = np.empty(0, np.uint8)


class Signature:
    """What the protocol needs to know of a model.

    Args:
        name: The model's.
        version: The model's.
        inputs: Their specs.
        outputs: Their specs.
        regions: Shared memory; None where it is off.
        labels: The classes' names; empty where there are none.
    """

    def __init__(
        self,
        name: str,
        version: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        regions: Regions | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        self.name, self.version = name, version
        self.inputs = {spec.name: Port(spec) for spec in inputs}
        self.outputs = {spec.name: Port(spec) for spec in outputs}
        self.all_json: tuple[Wanted, ...] = tuple((name, False) for name in self.outputs)
        self.all_binary: tuple[Wanted, ...] = tuple((name, True) for name in self.outputs)
        self._regions, self._labels = regions, labels
        #: Whether the first axis of every tensor is a batch of any size.
        self.batched = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        # a client repeats itself: what the JSON before binary tensors means, and that of the reply
        self.layouts: dict[bytes, Layout] = {}
        self.described: dict[tuple[tuple[int, ...], ...], bytes] = {}
        self.fixed_size = all(port.kind.size for port in self.outputs.values())
        leaves = {port.kind.leaf for port in self.inputs.values()}
        #: The Python type of every input's elements in JSON; None where they differ.
        self.leaf = leaves.pop() if len(leaves) == 1 else None

    def input_port(self, name: str, datatype: str, given: Mapping[str, object]) -> Port:
        """Return the input of that name.

        Args:
            name: As the request has it.
            datatype: As the request has it.
            given: Those that came before, by name.

        Raises:
            HttpError: 400, there is none, it came before, or its datatype is another.
        """
        port = self.inputs.get(name)
        if port is None:
            raise HttpError(400, f"unknown input {name!r}: expected {_known(self.inputs)}")
        if name in given:
            raise HttpError(400, f"input {name!r} is given twice")
        if datatype != port.kind.wire:
            raise HttpError(
                400,
                f"input {name!r} has the wrong datatype: got {datatype!r}, expected {port.kind.wire}",
            )
        return port

    def check_complete(self, given: Mapping[str, object]) -> None:
        """Refuse a request that lacks an input.

        Raises:
            HttpError: 400.
        """
        if len(given) != len(self.inputs):
            missing = next(name for name in self.inputs if name not in given)
            raise HttpError(400, f"input {missing!r} is missing: expected {_known(self.inputs)}")

    def check_output(self, name: str, wanted: Mapping[str, object]) -> None:
        """Refuse an output that is not there, or that is asked for twice.

        Raises:
            HttpError: 400.
        """
        if name not in self.outputs:
            raise HttpError(400, f"unknown output {name!r}: expected {_known(self.outputs)}")
        if name in wanted:
            raise HttpError(400, f"output {name!r} is asked for twice")

    def check_classes(self, name: str, count: int) -> None:
        """Refuse classes of an output that has none.

        Raises:
            HttpError: 400.
        """
        if count < 1 or self.outputs[name].kind.wire in ("BYTES", "FP16"):
            raise HttpError(400, f"output {name!r}: no classes can be had of it: got classification {count}")

    def classes(self, array: Array, count: int) -> Array:
        """Return the largest values of each row of a batch, else of all, as Triton's classification extension does.

        Args:
            array: An output of any numbers.
            count: How many values.

        Returns:
            Objects of `bytes`, [N, count] or [count]; fewer where a row is shorter.
        """
        rows = array.reshape(len(array), -1) if self.batched else array.reshape(1, -1)
        count = min(count, rows.shape[1])
        labels = self._labels if len(self._labels) == rows.shape[1] else ()
        found = np.empty((len(rows), count), dtype=object)
        for row, values in enumerate(rows):
            for place, index in enumerate(_largest(values, count)):
                found[row, place] = _class(values[index], index, labels).encode()
        return found if self.batched else found[0]

    def share(self, what: str, region: str, offset: int, byte_size: int | None) -> Slice:
        """Return the slice that a tensor's parameters name.

        Args:
            what: Such as `input 'x'`, for messages.
            region: `shared_memory_region`.
            offset: `shared_memory_offset`.
            byte_size: `shared_memory_byte_size`.

        Raises:
            HttpError: 400, shared memory is off, or the size is missing; 404, there is no such region.
        """
        regions = self._shared_memory(what)
        if byte_size is None:
            raise HttpError(400, f"{what}: shared_memory_region needs shared_memory_byte_size")
        piece = Slice(region, offset, byte_size)
        regions.check(piece)
        return piece

    def postpone(
        self, feed: dict[str, Array], port: Port, shape: tuple[int, ...], nbytes: int, piece: Slice
    ) -> SharedInput:
        """Keep an input's place in the feed until its turn has come.

        Raises:
            HttpError: 400, the slice has not the size of the shape.
        """
        name = port.spec.name
        port.check_size("shared_memory_byte_size", piece.byte_size, shape, nbytes)
        feed[name] = _LATER
        return SharedInput(name, port, shape, piece)

    def fetch(self, inference: Inference) -> None:
        """Read the inputs that lie in shared memory into the feed.

        Raises:
            HttpError: 400, 404 or 413, the memory is no longer what it was.
        """
        for name, port, shape, piece in inference.shared:
            data = memoryview(self._shared_memory(f"input {name!r}").read(piece))
            if port.kind.size == 0:
                inference.feed[name] = codec.bytes_from_binary(name, shape, data)
            else:
                inference.feed[name] = codec.array_from_binary(port.kind, shape, data, 0)

    def deposit(self, name: str, piece: Slice, data: bytes | memoryview) -> None:
        """Write an output to shared memory.

        Raises:
            HttpError: 400 or 404, it does not fit, or the region has gone.
        """
        self._shared_memory(f"output {name!r}").write(piece, data)

    def _shared_memory(self, what: str) -> Regions:
        if self._regions is None:
            raise HttpError(
                400, f"{what}: shared memory is not supported by this server: `serve` needs --shared-memory"
            )
        return self._regions


def _largest(values: Array, count: int) -> list[int]:
    """Return where the largest values are, the first of equals first."""
    backwards = np.argsort(values[::-1], kind="stable")[::-1][:count]
    return (len(values) - 1 - backwards).tolist()  # type: ignore[no-any-return]


def _class(value: Any, index: int, labels: Sequence[str]) -> str:
    # six digits, whatever the size: C's %f
    text = f"{value:f}" if isinstance(value, np.floating) else str(int(value))
    return f"{text}:{index}:{labels[index]}" if labels else f"{text}:{index}"


def _known(ports: Mapping[str, Port]) -> str:
    return ", ".join(ports) or "none"
