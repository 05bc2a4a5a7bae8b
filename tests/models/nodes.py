"""ONNX's own node tests (D14): one operator each, with inputs and the exact outputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tests.models.judging import LIMITS

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
    arrays = [_plain(value) for value in inputs]
    plain = all(isinstance(value, np.ndarray) for value in arrays) and len(names) == len(arrays)
    feeds = dict(zip(names, arrays, strict=True)) if plain else None
    return NodeCase(case.name, case.model, feeds, tuple(map(_plain, outputs)), case.rtol, case.atol)


def _plain(value: Any) -> Any:
    """Return an array for a scalar, and for the message that a type without a numpy type of its own comes in."""
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if np.isscalar(value) else value


def agrees(case: NodeCase, outputs: list[Any], precision: str = "fp32") -> bool:
    """Say whether outputs are what the test wants; NaN equals NaN.

    Within the test's own tolerances, or within what parity allows any artifact of that precision: an error near zero
    that is a ten-thousandth of the output's range makes nobody's answer wrong.
    """
    if len(outputs) != len(case.outputs):
        return False
    allowed = LIMITS[precision].p95_error
    return all(_close(want, got, case, allowed) for want, got in zip(case.outputs, outputs, strict=True))


def _close(want: Any, got: Any, case: NodeCase, allowed: float) -> bool:
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape:
        return False
    if want.dtype.kind in "OSUb" or got.dtype.kind in "OSUb":
        return bool(np.array_equal(want.astype(str), got.astype(str)))
    kind = np.complex128 if "c" in (want.dtype.kind, got.dtype.kind) else np.float64
    wide, found = want.astype(kind), got.astype(kind)
    finite = np.isfinite(wide)
    span = float(np.ptp(wide[finite].real)) if finite.any() else 0.0
    exact = want.dtype.kind != "f" and allowed == LIMITS["fp32"].p95_error
    atol = max(case.atol, 0.0 if exact else allowed * span)
    return bool(np.allclose(found, wide, rtol=case.rtol, atol=atol, equal_nan=True))
