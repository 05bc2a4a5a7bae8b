"""ONNX's own node tests (D14): one operator each, with inputs and the exact outputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["NodeCase", "agrees", "node_cases"]


@dataclass(frozen=True)
class NodeCase:
    """One test of one operator.

    Attributes:
        name: As ONNX names it.
        model: An `onnx.ModelProto`.
        feeds: Input name to value; None where an input is a sequence, a map or an optional, not an array.
        outputs: What must come out, in the model's order.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    name: str
    model: Any
    feeds: dict[str, np.ndarray] | None
    outputs: tuple[Any, ...]
    rtol: float
    atol: float


@cache
def node_cases() -> tuple[NodeCase, ...]:
    """Return every node test of the installed ONNX."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():  # some tests are about values that overflow
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return tuple(_case(case) for case in found)


def _case(case: Any) -> NodeCase:
    inputs, outputs = case.data_sets[0]
    names = [value.name for value in case.model.graph.input]
    arrays = [np.asarray(value) if np.isscalar(value) else value for value in inputs]
    plain = all(isinstance(value, np.ndarray) for value in arrays) and len(names) == len(arrays)
    feeds = dict(zip(names, arrays, strict=True)) if plain else None
    return NodeCase(case.name, case.model, feeds, tuple(outputs), case.rtol, case.atol)


def agrees(case: NodeCase, outputs: list[Any]) -> bool:
    """Say whether outputs are what the test wants, within its tolerances; NaN equals NaN."""
    if len(outputs) != len(case.outputs):
        return False
    return all(_close(want, got, case) for want, got in zip(case.outputs, outputs, strict=True))


def _close(want: Any, got: Any, case: NodeCase) -> bool:
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape:
        return False
    if want.dtype.kind in "OSUb" or got.dtype.kind in "OSUb":
        return bool(np.array_equal(want.astype(str), got.astype(str)))
    kind = np.complex128 if "c" in (want.dtype.kind, got.dtype.kind) else np.float64
    return bool(
        np.allclose(got.astype(kind), want.astype(kind), rtol=case.rtol, atol=case.atol, equal_nan=True)
    )
