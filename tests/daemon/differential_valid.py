"""Valid inference requests over HTTP, in parts that may be broken before they are put together; seeded."""

from __future__ import annotations

import gzip
import json
import math
import random
import struct
import zlib
from typing import Any, NamedTuple

__all__ = ["CODES", "MODELS", "Asked", "Tensor", "Valid", "packed", "value"]


class Tensor(NamedTuple):
    """Name, datatype and shape of an input or output; -1 for any size."""

    name: str
    wire: str
    shape: tuple[int, ...]


#: What both servers serve: inputs, outputs, and numpy expressions for the outputs by the inputs' names.
MODELS: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...], dict[str, str]]] = {
    "affine": (
        (Tensor("x", "FP32", (-1, 4)),),
        (Tensor("y", "FP32", (-1, 4)), Tensor("total", "FP32", (-1, 1))),
        {"y": "x * 2 + 1", "total": "x.sum(axis=1, keepdims=True)"},
    ),
    "adder": (
        (Tensor("a", "FP32", (-1, 2)), Tensor("b", "INT64", (-1, 2))),
        (Tensor("total", "FP64", (-1, 2)),),
        {"total": "a.astype('float64') + b"},
    ),
    "fixed": ((Tensor("x", "INT32", (2, 3)),), (Tensor("y", "INT32", (2, 3)),), {"y": "x"}),
    **{
        f"echo-{wire.lower()}": (
            (Tensor("x", wire, (-1, -1)),),
            (Tensor("y", wire, (-1, -1)),),
            {"y": "x"},
        )
        for wire in ("BOOL", "UINT8", "INT8", "UINT64", "INT64", "FP16", "FP32", "FP64", "BYTES")
    },
}
CODES = {
    "BOOL": "?", "UINT8": "B", "INT8": "b", "INT32": "i", "UINT64": "Q", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_RANGES = {
    "UINT8": (0, 255), "INT8": (-128, 127), "INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}  # fmt: skip


class Asked(NamedTuple):
    """One request.

    Attributes:
        kind: What it tries; deliberate differences are listed by it.
        pieces: The body, in the chunks that it is sent in; one for a body with a Content-Length.
    """

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    pieces: tuple[bytes, ...]
    chunked: bool = False


class Valid:
    """A valid inference request, in parts that may be broken before it is put together."""

    def __init__(self, draw: random.Random, model: str = "") -> None:
        self.draw = draw
        self.model = model or draw.choice(tuple(MODELS))
        self.inputs, self.outputs, _ = MODELS[self.model]
        self.version = draw.choice(("", "", "", "/versions/1"))
        rows, columns = draw.choice((1, 1, 2, 3)), draw.choice((1, 2, 5))
        free = {0: rows, 1: columns}
        self.tensors: list[dict[str, Any]] = []
        self.binary: list[bytes] = []
        for tensor in self.inputs:
            shape = [free[axis] if size == -1 else size for axis, size in enumerate(tensor.shape)]
            self.add(tensor, shape)
        self.message: dict[str, Any] = {"inputs": self.tensors}
        self.headers: dict[str, str] = {}
        self.tail = b""
        self.header_length: int | None = None
        self._wish()

    def add(self, tensor: Tensor, shape: list[int]) -> None:
        values = [value(self.draw, tensor.wire) for _ in range(math.prod(shape))]
        made: dict[str, Any] = {"name": tensor.name, "shape": shape, "datatype": tensor.wire}
        if tensor.wire == "FP16" or self.draw.random() < 0.5:
            data = packed(tensor.wire, values)
            made["parameters"] = {"binary_data_size": len(data)}
            self.binary.append(data)
        else:
            made["data"] = values if self.draw.random() < 0.5 else _nested(values, shape)
        self.tensors.append(made)

    def _wish(self) -> None:
        """Ask for outputs, an id, parameters."""
        draw = self.draw
        halves = any(tensor.wire == "FP16" for tensor in self.outputs)
        if draw.random() < 0.4:
            self.message["id"] = draw.choice(("7", "é\u2028", 'a"b\\c', "x" * 200))
        if halves or draw.random() < 0.4:
            self.message["parameters"] = {"binary_data_output": halves or draw.random() < 0.7}
        if draw.random() < 0.4:
            wanted = draw.sample(self.outputs, draw.randint(1, len(self.outputs)))
            self.message["outputs"] = [{"name": tensor.name} for tensor in wanted]
            all_binary = self.message.get("parameters", {}).get("binary_data_output", False)
            for output in self.message["outputs"]:
                if halves or all_binary or draw.random() < 0.5:
                    output["parameters"] = {"binary_data": halves or draw.random() < 0.5}
        if draw.random() < 0.15:
            self.message.setdefault("parameters", {}).update({"mine": "x", "other": 5, "flag": True})

    def asked(self, kind: str, text: bytes | None = None) -> Asked:
        """Put it together."""
        draw = self.draw
        if text is None:
            text = json.dumps(self.message, ensure_ascii=draw.random() < 0.5).encode()
        body = text + b"".join(self.binary) + self.tail
        headers = dict(self.headers)
        if self.header_length is not None:
            headers["Inference-Header-Content-Length"] = str(self.header_length)
        elif self.binary or self.tail or draw.random() < 0.1:
            headers["Inference-Header-Content-Length"] = str(len(text))
        encoding = draw.choice(("",) * 8 + ("gzip", "deflate"))
        if encoding:
            headers["Content-Encoding"] = encoding
            body = gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
        path = f"/v2/models/{self.model}{self.version}/infer"
        if draw.random() < 0.1:
            # Triton refuses binary strings whose length has come in two pieces
            strings = not encoding and any(tensor.wire == "BYTES" for tensor in self.inputs)
            # by a share of its length: what compression makes of a body differs from zlib to zlib
            at = int((0 if strings else draw.random()) * len(body))
            return Asked(kind, "POST", path, headers, (body[:at], body[at:]), chunked=True)
        return Asked(kind, "POST", path, headers, (body,))


def value(draw: random.Random, wire: str) -> Any:
    if wire == "BOOL":
        return draw.random() < 0.5
    if wire in _RANGES:
        low, high = _RANGES[wire]
        return draw.choice((low, high, draw.randint(0, 100)))
    if wire == "BYTES":
        return draw.choice(("", "a", "é", "\u2028x", "longer " * 9, '"\\'))
    # halves of small numbers: exact in every float, and in their sums
    return draw.randint(-1000, 1000) / 2


def packed(wire: str, values: list[Any]) -> bytes:
    if wire == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{CODES[wire]}", *values)


def _nested(values: list[Any], shape: list[int]) -> Any:
    if len(shape) <= 1:
        return values
    step = len(values) // shape[0]
    return [_nested(values[at : at + step], shape[1:]) for at in range(0, len(values), step)]
