"""Tables: rows of named columns, read block by block, and how columns become a model's features.

What was fitted on the training table (means, medians, deviations, categories) is stored in the bundle, so that a
device needs no table but its own. On a device: numpy; Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import UnavailableError, UsageError
from edgekit.tensors import TensorSpec

__all__ = [
    "SUFFIXES",
    "Column",
    "Rows",
    "Table",
    "TableFile",
    "TableStep",
    "fit_columns",
    "number",
    "open_table",
]

#: Files that are read as tables.
SUFFIXES = (".csv", ".parquet", ".pq")
#: Cells that hold nothing, where a column says how to fill them.
_MISSING = ("", "NA", "NaN", "nan", "null")
_BLOCK = 1024
#: More categories than any column is one-hot encoded to.
_MOST_CATEGORIES = 10_000

#: What a table's cell may be: text of a `.csv`, a value of a `.parquet`.
Cell = str | int | float | bool | None


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column, and what becomes of its cells: filled, then standardised or one-hot encoded.

    Attributes:
        name: The column's.
        impute: What fills a cell that holds nothing: `mean`, `median` or `constant`; empty to refuse such a row.
        value: What is filled in: fitted for `mean` and `median`, given for `constant`.
        standardise: Whether the cell becomes (cell − mean) / std.
        mean: Fitted where it is not given.
        std: The deviation of the population, fitted where it is not given; 1 for a column that never varies.
        one_hot: Whether the cell becomes one feature for each category, 1 for its own and 0 for the others.
        categories: In the features' order; fitted, in alphabetical order, where they are not given.
        unknown: What becomes of a category that is not listed: `refuse`, or `zeros` for none of the features.
    """

    name: str
    impute: Literal["", "mean", "median", "constant"] = ""
    value: float | str | None = None
    standardise: bool = False
    mean: float | None = None
    std: float | None = None
    one_hot: bool = False
    categories: tuple[str, ...] = ()
    unknown: Literal["refuse", "zeros"] = "refuse"

    @property
    def width(self) -> int:
        """How many features it becomes."""
        return len(self.categories) if self.one_hot else 1


class TableStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="table"):
    """How a table's columns become an input [N, features], in the order they are named.

    Attributes:
        input: The input's name.
        columns: Those that become features; a name alone stands for a column of numbers, taken as they are.
        drop: Columns that are left out.
        drop_duplicates: Whether a row that came before is left out where data is read to convert or to score; what is
            predicted keeps all its rows.
        fit: The training table that values are fitted on, beside the file of the step; gone once they are.
    """

    input: str
    columns: tuple[str | Column, ...]
    drop: tuple[str, ...] = ()
    drop_duplicates: bool = False
    fit: str = ""

    def named(self) -> tuple[Column, ...]:
        """Return the columns, those given by name alone as well."""
        return tuple(Column(each) if isinstance(each, str) else each for each in self.columns)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows.

    Attributes:
        columns: Cells by column name.
        numbers: What each row is called in messages: its line in a `.csv`, its index from 0 elsewhere.
        where: What to call the whole in messages.
        row: What a row is called: `line` or `row`.
    """

    columns: Mapping[str, Sequence[Cell]]
    numbers: Sequence[int]
    where: str
    row: str = "row"


@dataclass(frozen=True)
class TableFile:
    """A table in a file.

    Attributes:
        columns: Their names, in order.
        blocks: Reads it from the start, some rows at a time.
    """

    columns: tuple[str, ...]
    blocks: Callable[[], Iterator[Rows]]

    def distinct(self) -> TableFile:
        """Return the table without the rows that came before."""
        return TableFile(self.columns, lambda: _distinct(self.blocks()))


def open_table(path: Path, what: str) -> TableFile:
    """Open a `.csv` or a `.parquet`.

    Args:
        path: The file.
        what: What to call the data in messages.

    Raises:
        UsageError: It is no table; what is wrong further down is raised by `blocks`.
        UnavailableError: Parquet without pyarrow.
    """
    found = _open_csv(path, what) if path.suffix.lower() == ".csv" else _open_parquet(path, what)
    twice = next((name for name in found.columns if found.columns.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{what} {path} has the column {twice!r} twice")
    return found


def _open_csv(path: Path, what: str) -> TableFile:
    where = f"{what} {path}"
    header = next(_csv_lines(path, where), (0, []))[1]
    names = tuple(name.strip() for name in header)
    empty = UsageError(f"{where} is empty", expected="a line of column names and rows of numbers")
    if not names:
        raise empty

    def blocks() -> Iterator[Rows]:
        lines = _csv_lines(path, where)
        next(lines, None)
        some = False
        for part in _parts(lines):
            for line, cells in part:
                if len(cells) != len(names):
                    raise UsageError(
                        f"{where}: line {line} has the wrong number of cells",
                        got=len(cells),
                        expected=len(names),
                    )
            some = True
            columns = zip(*(cells for _, cells in part), strict=True)
            yield Rows(dict(zip(names, columns, strict=True)), [line for line, _ in part], where, "line")
        if not some:
            raise empty

    return TableFile(names, blocks)


def _csv_lines(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of every line that is not empty; the header is the first line, even if it is."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if row or reader.line_num == 1:
                    yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not a table in UTF-8: {error}") from error


def _parts(lines: Iterator[tuple[int, list[str]]]) -> Iterator[list[tuple[int, list[str]]]]:
    part: list[tuple[int, list[str]]] = []
    for line in lines:
        part.append(line)
        if len(part) == _BLOCK:
            yield part
            part = []
    if part:
        yield part


def _open_parquet(path: Path, what: str) -> TableFile:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UnavailableError(
            "Parquet needs pyarrow", hint="Run: pip install 'edgekit-deploy[convert]', or give a .csv."
        ) from error
    where = f"{what} {path}"

    def blocks() -> Iterator[Rows]:
        first = 0
        try:
            for batch in ParquetFile(path).iter_batches(_BLOCK):
                columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                yield Rows(columns, range(first, first + batch.num_rows), where)
                first += batch.num_rows
        except ArrowException as error:
            raise UsageError(f"{where} cannot be read: {error}") from error
        if not first:
            raise UsageError(f"{where} is empty", expected="rows")

    try:
        names = tuple(ParquetFile(path).schema_arrow.names)
    except ArrowException as error:
        raise UsageError(f"{where} cannot be read: {error}") from error
    return TableFile(names, blocks)


def _distinct(blocks: Iterator[Rows]) -> Iterator[Rows]:
    seen: set[bytes] = set()
    for rows in blocks:
        kept = []
        for index, cells in enumerate(zip(*rows.columns.values(), strict=True)):
            key = hashlib.blake2b(repr(cells).encode(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                kept.append(index)
        if kept:
            columns = {name: [cells[index] for index in kept] for name, cells in rows.columns.items()}
            yield Rows(columns, [rows.numbers[index] for index in kept], rows.where, rows.row)


def number(cell: Cell, rows: Rows, index: int, column: str) -> float:
    """Return a cell as a number.

    Raises:
        UsageError: It is none; names the row and the column.
    """
    try:
        # Python's own 1_000 is no number in a table
        return float("" if cell is None or (isinstance(cell, str) and "_" in cell) else cell)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{rows.where}: {rows.row} {rows.numbers[index]}, column {column!r} is no number",
            got="nothing" if cell is None else repr(cell),
        ) from error


class Table:
    """One input that is made of a table's columns; what cannot fit is refused when it is made.

    Args:
        spec: The input.
        step: How, with everything fitted.

    Raises:
        UsageError: The features are not what the input takes, or a value was neither given nor fitted.
    """

    def __init__(self, spec: TensorSpec, step: TableStep) -> None:
        self.spec, self.step, self.columns = spec, step, step.named()
        for column in self.columns:
            _check_column(column, spec.name)
        names = [column.name for column in self.columns] + list(step.drop)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"preprocess of input {spec.name!r} names the column {twice!r} twice")
        width = sum(column.width for column in self.columns)
        if len(spec.shape) != 2 or spec.shape[1] not in (-1, width):
            raise UsageError(
                f"the table does not fit input {spec.name!r}",
                got=f"{width} features of {len(self.columns)} columns",
                expected=f"{list(spec.shape)}",
                hint="Name the columns that the model was trained on in --preprocess, in its order.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that it takes."""
        return tuple(column.name for column in self.columns)

    def features(self, rows: Rows) -> np.ndarray:
        """Return the features of rows, float64 [N, features].

        Raises:
            UsageError: A cell is no number, of no known category, or empty where nothing fills it.
        """
        parts = [_features(column, rows) for column in self.columns]
        return np.concatenate(parts, axis=1)


def _check_column(column: Column, name: str) -> None:
    where = f"preprocess of input {name!r}: column {column.name!r}"
    if column.one_hot and (column.standardise or column.impute in ("mean", "median")):
        raise UsageError(
            f"{where} holds categories: they have no mean", expected='impute = "constant", no standardise'
        )
    if not column.one_hot and (column.categories or column.unknown != "refuse"):
        raise UsageError(f"{where} is not one_hot: categories and unknown mean nothing")
    if not column.impute and column.value is not None:
        raise UsageError(f"{where} has a value and no impute", expected='impute = "constant"')
    if not column.standardise and (column.mean is not None or column.std is not None):
        raise UsageError(f"{where} has a mean or a std and no standardise")
    lacks = [
        *(["value"] if column.impute and column.value is None else []),
        *(["mean"] if column.standardise and column.mean is None else []),
        *(["std"] if column.standardise and column.std is None else []),
        *(["categories"] if column.one_hot and not column.categories else []),
    ]
    if lacks:
        raise UsageError(
            f"{where} lacks {', '.join(lacks)}",
            hint='Give what the model was trained with, or the training table to fit it on: fit = "train.csv".',
        )
    numbers = [n for n in (column.mean, column.std) if n is not None]
    numbers += [] if column.one_hot or column.value is None else [_as_number(column.value, where)]
    if not np.isfinite(numbers).all() or column.std == 0:
        raise UsageError(f"{where} has numbers that make no sense", got=numbers)
    if len(set(column.categories)) != len(column.categories) or len(column.categories) > _MOST_CATEGORIES:
        raise UsageError(f"{where} has a category twice, or more than {_MOST_CATEGORIES}")
    if column.one_hot and column.impute and str(column.value) not in column.categories:
        raise UsageError(
            f"{where} fills in what is no category", got=column.value, expected=", ".join(column.categories)
        )


def _as_number(value: float | str, where: str) -> float:
    if isinstance(value, str):
        raise UsageError(f"{where}: value is text", got=repr(value), expected="a number")
    return value


def _features(column: Column, rows: Rows) -> np.ndarray:
    """Return one column's features, float64 [N, width]."""
    cells = _filled(column, rows)
    if column.one_hot:
        return _one_hot(column, cells, rows)
    values = np.array([number(cell, rows, i, column.name) for i, cell in enumerate(cells)], np.float64)
    if column.mean is not None and column.std is not None:
        values = (values - column.mean) / column.std
    return values[:, None]


def _filled(column: Column, rows: Rows) -> list[Cell]:
    cells = rows.columns[column.name]
    return [column.value if column.impute and _is_missing(cell) else cell for cell in cells]


def _is_missing(cell: Cell) -> bool:
    if isinstance(cell, str):
        return cell.strip() in _MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _one_hot(column: Column, cells: Sequence[Cell], rows: Rows) -> np.ndarray:
    place = {name: index for index, name in enumerate(column.categories)}
    found = np.zeros((len(cells), len(place)))
    for index, cell in enumerate(cells):
        name = _category(cell)
        if name in place:
            found[index, place[name]] = 1.0
        elif column.unknown == "refuse":
            raise UsageError(
                f"{rows.where}: {rows.row} {rows.numbers[index]}, column {column.name!r} is no known category",
                got=repr(name),
                expected=", ".join(column.categories[:20]),
                hint='To take it for none of them: unknown = "zeros".',
            )
    return found


def _category(cell: Cell) -> str:
    return "" if cell is None else str(cell).strip()


# Fitting


def fit_columns(step: TableStep, table: TableFile, where: str) -> TableStep:
    """Return the step with what it lacks fitted on the training table.

    A mean is the exact sum of the cells that hold something, divided by their number; a median of an even number the
    mean of the middle two; a deviation that of the population, of the filled column.

    Args:
        step: As the user wrote it.
        table: The training table.
        where: What to call it in messages.

    Raises:
        UsageError: It lacks a column, or a cell is no number.
    """
    absent = [column.name for column in step.named() if column.name not in table.columns]
    if absent:
        raise UsageError(f"{where} has no column {absent[0]!r}", got=", ".join(table.columns))
    rows = table.distinct() if step.drop_duplicates else table
    columns = tuple(_fit(column, rows, where) for column in step.named())
    return msgspec.structs.replace(step, columns=columns, fit="")


def _fit(column: Column, table: TableFile, where: str) -> Column:
    if column.one_hot:
        if column.categories:
            return column
        found: set[str] = set()
        for rows in table.blocks():
            found |= {_category(cell) for cell in _filled(column, rows)}
        return msgspec.structs.replace(column, categories=tuple(sorted(found)))
    if not (column.standardise or column.impute in ("mean", "median")):
        return column
    values = [
        number(cell, rows, index, column.name)
        for rows in table.blocks()
        for index, cell in enumerate(rows.columns[column.name])
        if not (column.impute and _is_missing(cell))
    ]
    missing = sum(len(rows.numbers) for rows in table.blocks()) - len(values)
    if not values:
        raise UsageError(f"{where}: column {column.name!r} holds nothing to fit on")
    return _with_moments(column, values, missing)


def _with_moments(column: Column, values: Sequence[float], missing: int) -> Column:
    value = column.value
    if column.impute in ("mean", "median") and value is None:
        value = math.fsum(values) / len(values) if column.impute == "mean" else float(np.median(values))
    if not column.standardise:
        return msgspec.structs.replace(column, value=value)
    whole = [*values, *[float(value or 0.0)] * missing]
    mean = math.fsum(whole) / len(whole) if column.mean is None else column.mean
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in whole) / len(whole)) or 1.0
    return msgspec.structs.replace(
        column, value=value, mean=mean, std=std if column.std is None else column.std
    )
