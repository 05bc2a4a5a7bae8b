"""Reading the user's data: `.npz`, `.npy`, folders of images, `.csv`; checked until it fits the model's inputs."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.arrays import ArrayFileError, read_npy, read_npz
from edgekit.errors import UsageError
from edgekit.images import read_image_folder, read_preprocess
from edgekit.tensors import TensorSpec, describe

__all__ = ["LABELS", "Dataset", "class_labels", "fit_array", "read_data", "read_preprocess"]

#: The name of the labels in an `.npz`.
LABELS = "y"
#: What a single input may be called as well.
_ALIAS = "x"
_KINDS = ".npz, .npy, .csv or a folder of images in class folders"


@dataclass(frozen=True)
class Dataset:
    """Data that fits a model's inputs.

    Attributes:
        inputs: Arrays by input name, with the input's dtype, [N, …].
        labels: int64 [N] for classes, float64 [N, …] for targets; None where there are none.
        class_names: Name of each class, where the data names them.
        source: Where it came from.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class _Raw:
    """What a file held, before it is checked."""

    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()


def read_data(
    path: str | os.PathLike[str],
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Sequence[dict[str, Any]] = (),
    label_column: str | None = None,
    need_labels: bool = False,
    what: str = "evaluation data",
    class_names: Sequence[str] = (),
) -> Dataset:
    """Read data for a model.

    Args:
        path: `.npz` (arrays by input name, labels under `y`), `.npy` (one input, no labels), `.csv` (one 2-D
            input, one feature per column) or a folder of images in class folders.
        inputs: What the model takes.
        preprocess: The bundle's preprocessing; it applies to images only.
        label_column: The column of a `.csv` that holds the labels; where they are not needed it may be absent.
        need_labels: Whether data without labels is refused.
        what: What to call the data in messages.
        class_names: The model's class names, in its order; text labels and class folders go by them.

    Raises:
        UsageError: The data is not there, or does not fit; the message names the array, sample, row or file.
        UnavailableError: Images need an extra that is not installed.
    """
    source = Path(path)
    if not source.exists():
        raise UsageError(f"no {what} at {source}", hint="Check the path.")
    if not (source.is_file() or source.is_dir()):  # to open a pipe would wait for whoever writes to it
        raise UsageError(f"{what} {source} is neither a file nor a folder", expected=_KINDS)
    raw = _read(source, inputs, preprocess, label_column, what, class_names, need_labels=need_labels)
    arrays = {spec.name: fit_array(spec, raw.arrays[spec.name], what) for spec in inputs}
    n = _common_length(arrays, what)
    labels, names = _read_labels(raw, class_names, what)
    if labels is None and need_labels:
        raise UsageError(f"{what} {source} has no labels", hint=_how_to_label(source, inputs))
    if labels is not None and len(labels) != n:
        raise UsageError(f"{what}: labels do not fit the inputs", got=f"{len(labels)} labels", expected=n)
    return Dataset(arrays, labels, names, str(source))


def _read(
    source: Path,
    inputs: Sequence[TensorSpec],
    preprocess: Sequence[dict[str, Any]],
    label_column: str | None,
    what: str,
    class_names: Sequence[str],
    *,
    need_labels: bool,
) -> _Raw:
    kind = source.suffix.lower()
    if label_column is not None and kind != ".csv":
        raise UsageError("--label-column is for .csv files", got=str(source))
    if source.is_dir():
        found = read_image_folder(source, inputs, preprocess, class_names, what)
        return _Raw({found.input: found.pixels}, found.labels, found.class_names)
    if kind == ".csv":
        return _read_csv(source, inputs, label_column, what, need_labels=need_labels)
    if kind in (".npz", ".npy"):
        try:
            return _read_npz(source, inputs, what) if kind == ".npz" else _read_npy(source, inputs, what)
        except ArrayFileError as error:
            raise UsageError(f"{what} {source} cannot be read: {error}") from error
    if kind in (".parquet", ".pq"):
        raise UsageError(f"{what} {source}: Parquet is not supported yet", expected=_KINDS)
    raise UsageError(f"{what} {source} is of no known kind", got=kind or "no suffix", expected=_KINDS)


def _how_to_label(source: Path, inputs: Sequence[TensorSpec]) -> str:
    if source.suffix.lower() == ".csv":
        return "Name their column with --label-column."
    if source.is_dir():
        return "Put the images into one folder for each class."
    names = ", ".join(f"{spec.name}=…" for spec in inputs)
    return f"Save them under {LABELS!r}: np.savez(path, {names}, {LABELS}=labels)."


# Array files


def _read_npz(source: Path, inputs: Sequence[TensorSpec], what: str) -> _Raw:
    arrays = read_npz(source)
    names = {spec.name for spec in inputs}
    labels = None if LABELS in names else arrays.pop(LABELS, None)
    if len(inputs) == 1 and inputs[0].name not in arrays and _ALIAS in arrays:
        arrays[inputs[0].name] = arrays.pop(_ALIAS)
    if set(arrays) != names:
        alias = f" (or {_ALIAS!r})" if len(inputs) == 1 else ""
        raise UsageError(
            f"{what} {source} has the wrong arrays",
            got=", ".join(sorted(arrays)) or "none",
            expected=f"{describe(inputs)}{alias}, labels under {LABELS!r}",
        )
    return _Raw(arrays, labels)


def _read_npy(source: Path, inputs: Sequence[TensorSpec], what: str) -> _Raw:
    if len(inputs) != 1:
        raise UsageError(
            f"{what} {source} is one array, the model takes {len(inputs)}",
            expected=f"an .npz with {describe(inputs)}",
        )
    return _Raw({inputs[0].name: read_npy(source)})


# Tables


def _read_csv(
    source: Path, inputs: Sequence[TensorSpec], label_column: str | None, what: str, *, need_labels: bool
) -> _Raw:
    if len(inputs) != 1 or len(inputs[0].shape) != 2:
        raise UsageError(
            f"{what} {source}: a table is for a model with one input of two axes", got=describe(inputs),
            hint="Give an .npz.",
        )  # fmt: skip
    header, rows, lines = _read_rows(source, what)
    if not need_labels and label_column not in header and len(header) == inputs[0].shape[1]:
        label_column = None  # all there is are the features
    if label_column is not None and label_column not in header:
        raise UsageError(f"{what} {source} has no column {label_column!r}", got=", ".join(header))
    features = [index for index, name in enumerate(header) if name != label_column]
    width = inputs[0].shape[1]
    if width not in (-1, len(features)) or not features:
        raise UsageError(
            f"{what} {source} has the wrong number of feature columns",
            got=f"{len(features)} ({', '.join(header[index] for index in features)})",
            expected=f"{width} for input {inputs[0].name!r}",
            hint=None if label_column else "Name the column of the labels with --label-column.",
        )
    values = [
        [_number(row[index], line, header[index], source, what) for index in features]
        for row, line in zip(rows, lines, strict=True)
    ]
    labels = (
        None if label_column is None else _parse_labels([row[header.index(label_column)] for row in rows])
    )
    return _Raw({inputs[0].name: np.array(values, np.float64)}, labels)


def _read_rows(source: Path, what: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows that are not empty, and the line number of each."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            pairs = [(row, reader.line_num) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {source} is not a table in UTF-8: {error}") from error
    if not pairs:
        raise UsageError(f"{what} {source} is empty", expected="a line of column names and rows of numbers")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError(f"{what} {source} has the column {twice!r} twice")
    for row, line in pairs:
        if len(row) != len(header):
            raise UsageError(
                f"{what} {source}: line {line} has the wrong number of cells",
                got=len(row),
                expected=len(header),
            )
    return header, [row for row, _ in pairs], [line for _, line in pairs]


def _number(cell: str, line: int, column: str, source: Path, what: str) -> float:
    try:
        return float("" if "_" in cell else cell)  # Python's own 1_000 is no number in a table
    except ValueError as error:
        raise UsageError(
            f"{what} {source}: line {line}, column {column!r} is no number", got=repr(cell)
        ) from error


def _parse_labels(cells: Sequence[str]) -> np.ndarray:
    """Return labels as whole numbers if all are, else as numbers if all are, else as text."""
    text = np.array([cell.strip() for cell in cells])
    return next((found for found in (_as(np.int64, text), _as(np.float64, text)) if found is not None), text)


def _as(dtype: type[np.generic], text: np.ndarray) -> np.ndarray | None:
    try:
        return text.astype(dtype)
    except (ValueError, OverflowError):
        return None


# Fitting


def fit_array(spec: TensorSpec, array: np.ndarray, what: str = "data") -> np.ndarray:
    """Return `array` as the model takes it, [N, …], or say why it does not fit.

    Floats may become narrower floats and whole numbers floats; floats never become whole numbers, and whole
    numbers change their type only where every value survives.

    Raises:
        UsageError: Naming the input, and where one value is at fault its index.
    """
    want = spec.shape[1:]
    if array.ndim != len(spec.shape) or any(
        w not in (-1, g) for w, g in zip(want, array.shape[1:], strict=True)
    ):
        raise UsageError(
            f"{what}: input {spec.name!r} has the wrong shape",
            got=list(array.shape),
            expected=f"[N, {_sizes(want)}]",
        )
    if not array.size:
        raise UsageError(f"{what}: input {spec.name!r} is empty", got=list(array.shape))
    return np.ascontiguousarray(_cast(spec, array, what))


def _sizes(shape: Sequence[int]) -> str:
    return ", ".join("any" if size == -1 else str(size) for size in shape)


def _cast(spec: TensorSpec, array: np.ndarray, what: str) -> np.ndarray:
    if spec.dtype == "bytes":
        if array.dtype.kind not in "SU":
            raise UsageError(f"{what}: input {spec.name!r} wants text", got=array.dtype)
        return array.astype(object)
    target = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and target.kind != "f"):
        raise UsageError(f"{what}: input {spec.name!r} has the wrong type", got=array.dtype, expected=target)
    _refuse_non_finite(array, spec.name, what)
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if target.kind == "f":
        _refuse_non_finite(cast, spec.name, f"{what} as {target}")
    elif not np.array_equal(cast, array):
        raise UsageError(
            f"{what}: input {spec.name!r} has values that {target} cannot hold",
            got=f"{array.dtype} in [{array.min()}, {array.max()}]",
        )
    return cast


def _refuse_non_finite(array: np.ndarray, name: str, what: str) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    index = np.argwhere(~np.isfinite(array))[0].tolist()
    raise UsageError(
        f"{what}: {name!r} holds {array[tuple(index)]} at index {index}", expected="finite numbers",
        hint="Remove or repair the sample.",
    )  # fmt: skip


def _common_length(arrays: Mapping[str, np.ndarray], what: str) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UsageError(f"{what}: the inputs have different numbers of samples", got=lengths)
    return next(iter(lengths.values()))


# Labels


def _read_labels(
    raw: _Raw, class_names: Sequence[str], what: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if raw.labels is None or raw.class_names:
        return raw.labels, raw.class_names or tuple(class_names)
    labels = raw.labels
    if labels.dtype.kind in "SU":
        return _map_names(labels.astype(str), class_names, what)
    _refuse_non_finite(labels, LABELS, what)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim < 1:
        raise UsageError(f"{what}: labels are one number", expected="one label for each sample")
    return labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64), tuple(class_names)


def _map_names(
    labels: np.ndarray, class_names: Sequence[str], what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the index of each text label in the model's class names; without those, in alphabetical order."""
    names = list(class_names) or sorted(set(labels.ravel().tolist()))
    unknown = sorted(set(labels.ravel().tolist()) - set(names))
    if unknown or labels.ndim != 1:
        raise UsageError(
            f"{what}: unknown label {unknown[0] if unknown else labels.shape!r}", expected=", ".join(names)
        )
    place = {name: index for index, name in enumerate(names)}
    return np.array([place[name] for name in labels.tolist()], np.int64), tuple(names)


def class_labels(labels: np.ndarray, classes: int, what: str = "evaluation data") -> np.ndarray:
    """Return labels as classes, int64 [N], or say which sample's label is none.

    Args:
        labels: Whole numbers in [0, classes), of any type, [N].
        classes: How many classes the model tells apart.
        what: What to call the data in messages.

    Raises:
        UsageError: Naming the first label that is no class.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise UsageError(
            f"{what}: labels have the wrong shape", got=list(array.shape), expected="[N], the class of each sample",
            hint="Turn one-hot labels into classes with argmax.",
        )  # fmt: skip
    wrong = np.flatnonzero((array != np.floor(array)) | (array < 0) | (array >= classes))
    if len(wrong):
        raise UsageError(
            f"{what}: label {wrong[0]} is no class",
            got=array[wrong[0]],
            expected=f"a whole number from 0 to {classes - 1}",
        )
    return array.astype(np.int64)
