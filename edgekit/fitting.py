"""Fitting the user's arrays to a model's inputs: shape, type and values, or a refusal that names the place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import UsageError
from edgekit.tensors import TensorSpec

__all__ = ["check_shape", "fit_array", "refuse_non_finite"]


def fit_array(spec: TensorSpec, array: np.ndarray, what: str = "data", first: int = 0) -> np.ndarray:
    """Return `array` as the model takes it, [N, …], or say why it does not fit.

    Floats may become narrower floats and whole numbers floats; floats never become whole numbers, and whole
    numbers change their type only where every value survives.

    Args:
        spec: The input.
        array: [N, …], any dtype.
        what: What to call the data in messages.
        first: The index of the first sample, for messages.

    Raises:
        UsageError: Naming the input, and where one value is at fault its index.
    """
    check_shape(spec, array.shape, what)
    return np.ascontiguousarray(_cast(spec, array, what, first))


def check_shape(spec: TensorSpec, shape: tuple[int, ...], what: str) -> None:
    """Refuse a shape [N, …] that is not the input's, or empty where that is not; raises `UsageError`."""
    want = spec.shape[1:]
    if len(shape) != len(spec.shape) or any(w not in (-1, g) for w, g in zip(want, shape[1:], strict=True)):
        raise UsageError(
            f"{what}: input {spec.name!r} has the wrong shape",
            got=list(shape),
            expected=f"[N, {_sizes(want)}]",
        )
    if not shape[0] or any(not g for w, g in zip(want, shape[1:], strict=True) if w):
        raise UsageError(f"{what}: input {spec.name!r} is empty", got=list(shape))


def _sizes(shape: Sequence[int]) -> str:
    return ", ".join("any" if size == -1 else str(size) for size in shape)


def _cast(spec: TensorSpec, array: np.ndarray, what: str, first: int) -> np.ndarray:
    if spec.dtype == "bytes":
        if array.dtype.kind not in "SU":
            raise UsageError(f"{what}: input {spec.name!r} wants text", got=array.dtype)
        return array.astype(object)
    target = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and target.kind != "f"):
        raise UsageError(f"{what}: input {spec.name!r} has the wrong type", got=array.dtype, expected=target)
    refuse_non_finite(array, spec.name, what, first)
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if target.kind == "f":
        refuse_non_finite(cast, spec.name, f"{what} as {target}", first)
    elif not np.array_equal(cast, array):
        raise UsageError(
            f"{what}: input {spec.name!r} has values that {target} cannot hold",
            got=f"{array.dtype} in [{array.min()}, {array.max()}]",
        )
    return cast


def refuse_non_finite(array: np.ndarray, name: str, what: str, first: int = 0) -> None:
    """Refuse NaN and infinity by their place; `first` is the index of the first sample. Raises `UsageError`."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    place = np.argwhere(~np.isfinite(array))[0].tolist()
    raise UsageError(
        f"{what}: {name!r} holds {array[tuple(place)]} at index {[place[0] + first, *place[1:]]}", expected="finite numbers",
        hint="Remove or repair the sample.",
    )  # fmt: skip
