"""Tensor specifications, and the check that every feed passes before native code sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import ConversionError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DTYPES",
    "TensorSpec",
    "check_feed",
    "check_rows",
    "check_specs",
    "describe",
    "join_samples",
    "one_sample",
    "sample_shape",
    "sample_specs",
    "takes_whole",
]

#: The dtypes that EdgeKit knows, by numpy's names; `bytes` is a variable-length string (numpy `object`).
DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "float32", "float64", "bytes",
)  # fmt: skip


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output of a model.

    Attributes:
        name: The canonical name: the source model's.
        dtype: One of `DTYPES`.
        shape: Sizes, -1 where any size will do; the first is the batch.
        layout: Axis letters, such as `NHWC`; empty where nobody said.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    def accepts(self, shape: Sequence[int]) -> bool:
        """Tell whether an array of `shape` fits."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )


def describe(specs: Iterable[TensorSpec]) -> str:
    """Return `name dtype[1, 28, 28, 1], …`, for messages and tables."""
    return ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in specs)


def sample_shape(spec: TensorSpec, batch: int = 1) -> tuple[int, ...]:
    """Return a concrete shape for `spec`: `batch` for a free first axis, 1 for every other free axis."""
    return tuple((batch if axis == 0 else 1) if size == -1 else size for axis, size in enumerate(spec.shape))


def takes_whole(specs: Sequence[TensorSpec]) -> bool:
    """Tell whether a call takes one sample as a whole, for want of an axis for samples.

    That is so where an input is a single number, or begins with another axis than the samples': the state [2, 1, 128]
    of a recurrent network, or a batch of eight that was fixed when the model was exported.
    """
    return not {spec.shape[:1] for spec in specs} <= {(-1,), (1,)}


def sample_specs(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the specs of data, [N, …]: the inputs', with an axis for samples in front where the model has none."""
    if not takes_whole(specs):
        return tuple(specs)
    return tuple(msgspec.structs.replace(spec, shape=(-1, *spec.shape), layout="") for spec in specs)


def one_sample(
    specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray], index: int
) -> dict[str, np.ndarray]:
    """Return one sample of data, [N, …] by name, as a call takes it."""
    if takes_whole(specs):
        return {name: array[index : index + 1].reshape(array.shape[1:]) for name, array in arrays.items()}
    return {name: array[index : index + 1] for name, array in arrays.items()}


def join_samples(
    specs: Sequence[TensorSpec], rows: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the answers to one sample after the other as arrays [N, …] by name.

    An output that leaves the samples' axis out, as [3] of an input [1, 8], has it put in front.

    Args:
        specs: The inputs'.
        rows: One call's outputs each.

    Raises:
        ConversionError: An output is of another shape from sample to sample.
    """
    import numpy as np

    joined = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name]) for row in rows]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise _no_rows(name, " and ".join(map(str, map(list, sorted(shapes)[:2]))), "one shape")
        alone = takes_whole(specs) or next(iter(shapes))[:1] != (1,)
        joined[name] = (np.stack if alone else np.concatenate)(arrays)
    return joined


def check_specs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse a model that EdgeKit could neither feed nor judge.

    Raises:
        ConversionError: It has no input or no output, or one that is no tensor of a dtype in `DTYPES`.
    """
    for what, specs in (("input", inputs), ("output", outputs)):
        if not specs:
            raise ConversionError(f"the model has no {what}")
        odd = next((spec for spec in specs if spec.dtype not in DTYPES), None)
        if odd is not None:
            raise ConversionError(
                f"the model's {what} {odd.name!r} is of a type that no data can be given or judged in",
                got=odd.dtype,
                expected="a tensor of " + ", ".join(DTYPES),
            )


def check_rows(outputs: Mapping[str, np.ndarray], n: int) -> None:
    """Refuse outputs that cannot be told apart by sample.

    Args:
        outputs: What a model answered to `n` samples, by name.
        n: The samples.

    Raises:
        ConversionError: Naming the output whose first axis is not the samples'.
    """
    for name, array in outputs.items():
        if array.shape[:1] != (n,):
            raise _no_rows(name, f"{list(array.shape)} of {n} samples", f"[{n}, …]")


def _no_rows(name: str, got: str, expected: str) -> ConversionError:
    return ConversionError(
        f"the model's output {name!r} has not one row for each sample",
        got=got,
        expected=expected,
        hint="Where its rows depend on the data, as behind a suppression of boxes, end the graph before that and give "
        "the rest as [[postprocess]].",
    )


def check_feed(specs: Sequence[TensorSpec], feed: Mapping[str, np.ndarray]) -> None:
    """Refuse a feed whose names, shapes or dtypes are not those of `specs`.

    Args:
        specs: What the model takes.
        feed: Arrays by canonical input name.

    Raises:
        UsageError: Naming the first tensor that does not fit, what it is and what it should be.
    """
    import numpy as np

    for spec in specs:
        array = feed.get(spec.name)
        if array is None:
            raise UsageError(f"input {spec.name!r} is missing", got=sorted(feed), expected=describe(specs))
        if not isinstance(array, np.ndarray):
            raise UsageError(
                f"input {spec.name!r} is not an array", got=type(array).__name__, expected="a numpy array"
            )
        if not array.dtype.isnative:
            raise UsageError(
                f"input {spec.name!r} has the other byte order", got=array.dtype.str, expected=spec.dtype
            )
        if array.dtype.name != spec.dtype and not (spec.dtype == "bytes" and array.dtype.kind in "OS"):
            raise UsageError(
                f"input {spec.name!r} has the wrong dtype", got=array.dtype.name, expected=spec.dtype
            )
        if array.shape != spec.shape and not spec.accepts(array.shape):
            raise UsageError(
                f"input {spec.name!r} has the wrong shape", got=list(array.shape), expected=list(spec.shape)
            )
    if len(feed) != len(specs):
        extra = sorted(set(feed) - {spec.name for spec in specs})
        raise UsageError(f"unknown input {extra[0]!r}", got=sorted(feed), expected=describe(specs))
