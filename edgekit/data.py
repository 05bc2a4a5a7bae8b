"""Reading the user's data, block by block: arrays, tables, folders of images; checked until it fits the model's inputs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.arrays import ArrayFileError, StoredArray, open_arrays
from edgekit.errors import UsageError
from edgekit.fitting import check_shape, fit_array, refuse_non_finite
from edgekit.images import Picture, find_images
from edgekit.preprocess import Preprocessor, read_preprocess
from edgekit.sketch import ValueSketch
from edgekit.streams import Entry, SampleFolder, SampleWriter
from edgekit.tables import SUFFIXES as TABLES
from edgekit.tables import Cell, Rows, TableFile, number, open_table
from edgekit.tensors import TensorSpec, describe, sample_specs, takes_whole

__all__ = ["LABELS", "Dataset", "class_labels", "has_columns", "read_data", "read_preprocess"]

#: The name of the labels in an `.npz`.
LABELS = "y"
#: What a single input may be called as well.
_ALIAS = "x"
_KINDS = ".npz, .npy, .csv, .parquet or a folder of images in class folders"
#: Bytes that are read at once, or one sample where that is more.
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Dataset:
    """Data that fits a model's inputs.

    Attributes:
        inputs: Arrays by input name, with the input's dtype, [N, …]; of streamed data they are read when asked for.
        labels: int64 [N] for classes, float64 [N, …] for targets; None where there are none.
        class_names: Name of each class, where the data names them.
        source: Where it came from.
        stream: The samples on disk, however many; None where `inputs` holds them in memory.
        seen: Values of each float input, all of them or a seeded sample, any order: for percentiles.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    stream: SampleFolder | None = None
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values()))) if self.stream is None else len(self.stream)

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Values of each float input, to take percentiles of."""
        return self.inputs if self.stream is None and not self.seen else self.seen

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return some samples, arrays [len(rows), …] by input name."""
        if self.stream is None:
            return {name: array[rows] for name, array in self.inputs.items()}
        return _collect([self.stream.rows(int(row), int(row) + 1) for row in rows])


class _Streamed(Mapping[str, np.ndarray]):
    """The arrays of samples on disk, read when the first is asked for."""

    def __init__(self, stream: SampleFolder) -> None:
        self._stream = stream

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self._stream.rows(0, len(self._stream))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream.names)

    def __len__(self) -> int:
        return len(self._stream.names)


@dataclass
class _Raw:
    """What a file holds, read block by block.

    Attributes:
        blocks: Reads it from the start: arrays [k, …] by input name.
        n: How many samples there are; None where only reading tells.
        pictures: Inputs whose blocks are pixels, uint8 [k, H, W, C].
        in_place: Inputs whose values may stay where they are, and where that is.
        labels: Called after the last block.
        class_names: Name of each class, where the data names them.
    """

    blocks: Callable[[], Iterator[Mapping[str, np.ndarray]]]
    n: int | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    in_place: Mapping[str, Entry] = field(default_factory=dict)
    labels: Callable[[], np.ndarray | None] = lambda: None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Request:
    """What `read_data` was asked for."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    preprocessor: Preprocessor
    label_column: str | None
    need_labels: bool
    what: str
    class_names: tuple[str, ...]
    every_row: bool
    keep_labels: bool
    whole: bool

    @property
    def where(self) -> str:
        """What to call the data in messages."""
        return f"{self.what} {self.path}"


def read_data(
    path: str | os.PathLike[str],
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Sequence[Mapping[str, Any]] = (),
    label_column: str | None = None,
    need_labels: bool = False,
    what: str = "evaluation data",
    class_names: Sequence[str] = (),
    scratch: Path | None = None,
    every_row: bool = False,
    seed: int = 0,
) -> Dataset:
    """Read data for a model.

    Args:
        path: `.npz` (arrays by input name, labels under `y`), `.npy` (one input, no labels), `.csv` or `.parquet`
            (features in columns, or what the preprocessing makes of columns) or a folder of images.
        inputs: What the model takes.
        preprocess: The bundle's preprocessing, for tables and images.
        label_column: The column of a table that holds the labels; where they are not needed it may be absent.
        need_labels: Whether data without labels is refused.
        what: What to call the data in messages.
        class_names: The model's class names, in its order; text labels and class folders go by them.
        scratch: A folder to be made for the samples: they are streamed through it, and never are all in memory.
            Labels that are not needed are then left out. None to hold everything in memory.
        every_row: Whether rows that came before are kept, whatever the preprocessing says: for predictions.
        seed: Of the values that are kept for percentiles.

    Raises:
        UsageError: The data is not there, or does not fit; the message names the array, sample, row or file.
        UnavailableError: Images or Parquet need an extra that is not installed.
    """
    source = Path(path)
    if not source.exists():
        raise UsageError(f"no {what} at {source}", hint="Check the path.")
    if not (source.is_file() or source.is_dir()):  # to open a pipe would wait for whoever writes to it
        raise UsageError(f"{what} {source} is neither a file nor a folder", expected=_KINDS)
    request = _Request(
        source,
        sample_specs(inputs),
        Preprocessor(preprocess, inputs),
        label_column,
        need_labels,
        what,
        tuple(class_names),
        every_row,
        keep_labels=need_labels or scratch is None,
        whole=takes_whole(inputs),
    )
    try:
        return _gather(request, _open(request), ValueSketch(seed), scratch)
    except ArrayFileError as error:
        raise UsageError(f"{request.where} cannot be read: {error}") from error


def has_columns(path: Path) -> bool:
    """Tell whether a path is named as a table, which may have a column of labels."""
    return path.suffix.lower() in TABLES


def _gather(request: _Request, raw: _Raw, sketch: ValueSketch, scratch: Path | None) -> Dataset:
    held: _Memory | _Disk = _Memory(raw.n) if scratch is None else _Disk(scratch, request, raw)
    n = 0
    for block in raw.blocks():
        fitted = {spec.name: _fit_block(spec, block[spec.name], request, raw, n) for spec in request.inputs}
        sketch.add(fitted)
        held.add(block, fitted)
        n += len(next(iter(fitted.values())))
    labels, names = _read_labels(raw.labels(), raw.class_names, request.class_names, request.what)
    if labels is None and request.need_labels:
        raise UsageError(f"{request.where} has no labels", hint=_how_to_label(request.path, request.inputs))
    if labels is not None and len(labels) != n:
        raise UsageError(
            f"{request.what}: labels do not fit the inputs", got=f"{len(labels)} labels", expected=n
        )
    stream = held.close()
    inputs = held.arrays() if stream is None else _Streamed(stream)
    return Dataset(inputs, labels, names, str(request.path), stream, sketch.values())


def _fit_block(spec: TensorSpec, block: np.ndarray, request: _Request, raw: _Raw, first: int) -> np.ndarray:
    picture = raw.pictures.get(spec.name)
    return fit_array(spec, block, request.what, first) if picture is None else picture.samples(block)


class _Memory:
    """Holds what was read; where its number is known, nothing is held twice.

    Args:
        n: How many samples will come; None where nobody knows.
    """

    def __init__(self, n: int | None) -> None:
        self._n, self._filled = n, 0
        self._whole: dict[str, np.ndarray] = {}
        self._parts: list[Mapping[str, np.ndarray]] = []

    def add(self, _block: Mapping[str, np.ndarray], fitted: Mapping[str, np.ndarray]) -> None:
        k = len(next(iter(fitted.values())))
        if self._n is None or k == self._n:
            self._parts.append(fitted)
            return
        for name, array in fitted.items():
            if name not in self._whole:
                self._whole[name] = np.empty((self._n, *array.shape[1:]), array.dtype)
            self._whole[name][self._filled : self._filled + k] = array
        self._filled += k

    def close(self) -> None:
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        return self._whole or _collect(self._parts)


class _Disk:
    """Writes what was read, in its narrower form: as it came, or as the model takes it.

    Args:
        scratch: The folder to be made.
        request: What was asked for.
        raw: What is read.
    """

    def __init__(self, scratch: Path, request: _Request, raw: _Raw) -> None:
        self._writer, self._raw = SampleWriter(scratch), raw
        self._dtypes: dict[str, str] = {}
        self._wanted = {spec.name: spec.dtype for spec in request.inputs}
        self._takes_whole = request.whole

    def add(self, block: Mapping[str, np.ndarray], fitted: Mapping[str, np.ndarray]) -> None:
        written = {}
        for name, array in fitted.items():
            came = block[name]
            if name in self._raw.in_place:
                self._writer.hash(name, came)
            elif name in self._raw.pictures:
                written[name] = came
            elif array.dtype == object or came.dtype.itemsize < array.dtype.itemsize:
                written[name], self._dtypes[name] = came, self._wanted[name]
            else:
                written[name] = array
        self._writer.add(written)

    def close(self) -> SampleFolder:
        pictures = {name: picture.definition for name, picture in self._raw.pictures.items()}
        return self._writer.close(
            in_place=self._raw.in_place, dtypes=self._dtypes, pictures=pictures, whole=self._takes_whole
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


def _collect(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _how_to_label(source: Path, inputs: Sequence[TensorSpec]) -> str:
    if has_columns(source):
        return "Name their column with --label-column."
    if source.is_dir():
        return "Put the images into one folder for each class."
    names = ", ".join(f"{spec.name}=…" for spec in inputs)
    return f"Save them under {LABELS!r}: np.savez(path, {names}, {LABELS}=labels)."


def _open(request: _Request) -> _Raw:
    source, kind = request.path, request.path.suffix.lower()
    if request.label_column is not None and kind not in TABLES:
        raise UsageError("--label-column is for .csv files and .parquet", got=str(source))
    if source.is_dir():
        return _open_images(request)
    if kind in TABLES:
        table = open_table(source, request.what)
        if request.preprocessor.drops_duplicates and not request.every_row:
            table = table.distinct()
        return _open_table(request, table)
    if kind in (".npz", ".npy"):
        return _open_arrays(request)
    raise UsageError(f"{request.where} is of no known kind", got=kind or "no suffix", expected=_KINDS)


# Folders


def _open_images(request: _Request) -> _Raw:
    picture = request.preprocessor.picture(request.where)
    files = find_images(request.path, request.class_names, request.what)
    name = picture.spec.name
    return _Raw(
        lambda: ({name: picture.read(path)[None]} for path in files.paths),
        n=len(files.paths),
        pictures={name: picture},
        labels=lambda: files.labels,
        class_names=files.class_names,
    )


# Array files


def _open_arrays(request: _Request) -> _Raw:
    arrays = open_arrays(request.path)
    labels = None
    if request.path.suffix.lower() == ".npy":
        arrays = _only_array(request, arrays)
    else:
        labels = _name_arrays(request, arrays)
    for spec in request.inputs:
        check_shape(spec, arrays[spec.name].shape, request.what)
    lengths = {spec.name: arrays[spec.name].shape[0] for spec in request.inputs}
    if len(set(lengths.values())) != 1:
        raise UsageError(f"{request.what}: the inputs have different numbers of samples", got=lengths)
    n = next(iter(lengths.values()))
    widest = max(math.prod(array.shape[1:]) * array.dtype.itemsize for array in arrays.values())
    rows = max(1, _BLOCK // max(1, widest))

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for parts in zip(*(array.blocks(rows) for array in arrays.values()), strict=True):
            yield dict(zip(arrays, parts, strict=True))

    return _Raw(
        blocks,
        n=n,
        in_place=_in_place(arrays, {spec.name: spec.dtype for spec in request.inputs}),
        labels=lambda: None if labels is None else _array_labels(labels, request, n),
    )


def _only_array(request: _Request, arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    if len(request.inputs) != 1:
        raise UsageError(
            f"{request.where} is one array, the model takes {len(request.inputs)}",
            expected=f"an .npz with {describe(request.inputs)}",
        )
    return {request.inputs[0].name: next(iter(arrays.values()))}


def _name_arrays(request: _Request, arrays: dict[str, StoredArray]) -> StoredArray | None:
    """Leave the inputs' arrays under the inputs' names, and return the labels."""
    names = {spec.name for spec in request.inputs}
    labels = None if LABELS in names else arrays.pop(LABELS, None)
    only = request.inputs[0].name if len(request.inputs) == 1 else ""
    if only and only not in arrays and _ALIAS in arrays:
        arrays[only] = arrays.pop(_ALIAS)
    if set(arrays) != names:
        alias = f" (or {_ALIAS!r})" if only else ""
        raise UsageError(
            f"{request.where} has the wrong arrays",
            got=", ".join(sorted(arrays)) or "none",
            expected=f"{describe(request.inputs)}{alias}, labels under {LABELS!r}",
        )
    return labels


def _in_place(arrays: Mapping[str, StoredArray], dtypes: Mapping[str, str]) -> dict[str, Entry]:
    found = {}
    for name, array in arrays.items():
        offset = array.offset
        if offset is not None:
            file = str(array.path.absolute())
            found[name] = Entry(name, file, array.dtype.str, array.shape, offset, dtypes[name])
    return found


def _array_labels(labels: StoredArray, request: _Request, n: int) -> np.ndarray | None:
    """Return the labels; where nobody needs them, only their number is looked at."""
    if labels.shape[:1] == (n,) and not request.keep_labels:
        return None
    return labels.whole()


# Tables


def _open_table(request: _Request, table: TableFile) -> _Raw:
    label, columns = request.label_column, table.columns
    prepared = bool(request.preprocessor.columns)
    if not prepared and (len(request.inputs) != 1 or len(request.inputs[0].shape) != 2):
        raise UsageError(
            f"{request.where}: a table is for a model with one input of two axes", got=describe(request.inputs),
            hint="Give an .npz, or say in --preprocess how columns become inputs.",
        )  # fmt: skip
    features = len(columns) if prepared else request.inputs[0].shape[1]
    if not request.need_labels and label not in columns and (prepared or len(columns) == features):
        label = None  # all there is are the features
    if label is not None and label not in columns:
        raise UsageError(f"{request.where} has no column {label!r}", got=", ".join(columns))
    given = [name for name in columns if name != label]
    _check_columns(request, given, label)
    found: list[Cell] = []

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for rows in table.blocks():
            if label is not None:
                found.extend(_label(rows, i, label) for i in range(len(rows.numbers)))
            yield request.preprocessor.rows(rows) if prepared else _plain(request, rows, given)

    return _Raw(blocks, labels=lambda: None if label is None else _parse_labels(found))


def _check_columns(request: _Request, given: Sequence[str], label: str | None) -> None:
    """Refuse a table whose columns are not those that the model, or its preprocessing, takes."""
    preprocessor = request.preprocessor
    if not preprocessor.columns:
        width = request.inputs[0].shape[1]
        if width not in (-1, len(given)) or not given:
            raise UsageError(
                f"{request.where} has the wrong number of feature columns",
                got=f"{len(given)} ({', '.join(given)})",
                expected=f"{width} for input {request.inputs[0].name!r}",
                hint=None if label else "Name the column of the labels with --label-column.",
            )
        return
    missing = [name for name in preprocessor.columns if name not in given]
    over = [name for name in given if name not in (*preprocessor.columns, *preprocessor.dropped)]
    if missing:
        raise UsageError(f"{request.where} has no column {missing[0]!r}", got=", ".join(given))
    if over:
        raise UsageError(
            f"{request.where} has the column {over[0]!r}, and no step takes it",
            expected=", ".join(preprocessor.columns),
            hint="Name it under drop in --preprocess, or with --label-column if it holds the labels.",
        )


def _plain(request: _Request, rows: Rows, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns as features in their order, float64 [k, features]."""
    values = [
        [number(rows.columns[name][i], rows, i, name) for name in names] for i in range(len(rows.numbers))
    ]
    return {request.inputs[0].name: np.array(values, np.float64)}


def _label(rows: Rows, index: int, column: str) -> Cell:
    cell = rows.columns[column][index]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise UsageError(f"{rows.where}: {rows.row} {rows.numbers[index]} has no label in column {column!r}")
    return cell


def _parse_labels(cells: Sequence[Cell]) -> np.ndarray:
    """Return labels as whole numbers if all are, else as numbers if all are, else as text."""
    text = np.array([str(int(cell) if isinstance(cell, bool) else cell).strip() for cell in cells])
    return next((found for found in (_as(np.int64, text), _as(np.float64, text)) if found is not None), text)


def _as(dtype: type[np.generic], text: np.ndarray) -> np.ndarray | None:
    try:
        return text.astype(dtype)
    except (ValueError, OverflowError):
        return None


# Labels


def _read_labels(
    labels: np.ndarray | None, found: tuple[str, ...], class_names: tuple[str, ...], what: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return labels in their final type, and the class names: those `found` in the data, else the model's."""
    if labels is None or found:
        return labels, found or class_names
    if labels.dtype.kind in "SU":
        return _map_names(labels.astype(str), class_names, what)
    refuse_non_finite(labels, LABELS, what)
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
