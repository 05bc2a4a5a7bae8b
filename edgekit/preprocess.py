"""Preprocessing as data: how pictures, tables and texts become a model's inputs.

The steps are the bundle's `preprocess`, read from `[[preprocess]]` tables of a TOML file. One object, made from them
and from the model's inputs, feeds calibration, parity, `eval`, `run` and `edgekit.load`. Arrays are never touched:
they are what the model takes. On a device: numpy, and what `edgekit.images` and `edgekit.text` say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import UsageError
from edgekit.images import EXAMPLE, ImageBinding, ImageStep, Picture, image_u8_binding
from edgekit.images import SUFFIXES as IMAGE_SUFFIXES
from edgekit.tables import Rows, Table, TableStep, fit_columns, open_table
from edgekit.tensors import TensorSpec, describe
from edgekit.text import LARGEST_FILE, Text, TextStep, wordpiece_of

__all__ = ["Preprocessor", "read_preprocess"]

Step = ImageStep | TableStep | TextStep
_KINDS: dict[str, type[Step]] = {"image": ImageStep, "table": TableStep, "text": TextStep}


def read_preprocess(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """Read the preprocessing from a TOML file with a table `[[preprocess]]` for each step.

    Files that a step names lie beside it: a tokenizer's becomes a part of the step, a training table is fitted on.
    `[[postprocess]]` tables in the same file are another reader's.

    Returns:
        The steps as the bundle stores them.

    Raises:
        UsageError: It is not there, is no TOML, or holds something else.
        UnavailableError: The training table is of a kind that needs a package.
    """
    source = Path(path)
    try:
        tables = _load_toml(source)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read --preprocess {source}: {error}") from error
    steps = tables.get("preprocess", [])
    known = set(tables) <= {"preprocess", "postprocess"} and tables
    if not known or not isinstance(steps, list) or ("preprocess" in tables and not steps):
        raise UsageError(
            f"--preprocess {source} holds no steps",
            got=", ".join(sorted(tables)) or "nothing",
            expected=EXAMPLE,
        )
    for step in steps:
        if not isinstance(step, dict) or step.get("kind") not in _KINDS:
            raise UsageError(f"--preprocess {source} has an unknown step", got=step, expected=EXAMPLE)
    return tuple(_complete(step, source.parent) for step in steps)


def _load_toml(source: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    return toml.loads(source.read_text(encoding="utf-8"))


def _complete(step: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a step with what lies in other files."""
    parsed = _parse(step)
    if isinstance(parsed, TableStep) and parsed.fit:
        table = folder / parsed.fit
        if not table.is_file():
            raise UsageError(f"no training table at {table}", hint="Check fit in --preprocess.")
        fitted = fit_columns(parsed, open_table(table, "training table"), f"training table {table}")
        found: dict[str, Any] = msgspec.to_builtins(fitted)
        return found
    if isinstance(parsed, TextStep):
        return {**step, "tokenizer": Path(parsed.tokenizer).name, "content": _tokenizer(parsed, folder)}
    return step


def _tokenizer(step: TextStep, folder: Path) -> str:
    path = folder / step.tokenizer
    if step.content:
        raise UsageError("content of a text step is read from its tokenizer's file", hint="Leave it out.")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(
                f"tokenizer {path} is too big",
                got=path.stat().st_size,
                expected=f"at most {LARGEST_FILE} bytes",
            )
        # read as it is: a lone carriage return may be a token
        content = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read tokenizer {path}: {error}") from error
    wordpiece_of(content, path.name, step.lowercase)  # says what is wrong with it now
    return content


def _parse(step: Mapping[str, Any]) -> Step:
    kind = _KINDS.get(str(step.get("kind")))
    if kind is None:
        raise UsageError("preprocess has an unknown step", got=step.get("kind"), expected=", ".join(_KINDS))
    try:
        return msgspec.convert(dict(step), kind)
    except msgspec.ValidationError as error:
        where = f" of input {step['input']!r}" if "input" in step else ""
        raise UsageError(
            f"preprocess{where}: {error}",
            expected="kind = " + ", ".join([f'"{step.get("kind")}"', *kind.__struct_fields__]),
        ) from error


class Preprocessor:
    """How raw things become a model's inputs; what cannot fit the model is refused when it is made.

    Args:
        steps: The bundle's `preprocess`.
        inputs: What the model takes, without its state.

    Attributes:
        inputs: What the model takes.
        pictures: Inputs that a step makes of pictures.
        tables: Inputs that a step makes of a table's columns.
        texts: Those that a step makes of a text.

    Raises:
        UsageError: A step is malformed, names an input that the model does not have, or does not fit it.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], inputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        specs = {spec.name: spec for spec in inputs}
        parsed = [_parse(step) for step in steps]
        for step in parsed:
            if not isinstance(step, TextStep) and step.input not in specs:
                raise UsageError(
                    f"preprocess is for the input {step.input!r}, which the model does not have",
                    expected=describe(inputs),
                    hint="Correct the name in --preprocess.",
                )
        self.pictures = tuple(Picture(specs[s.input], s) for s in parsed if isinstance(s, ImageStep))
        self.tables = tuple(Table(specs[s.input], s) for s in parsed if isinstance(s, TableStep))
        self.texts = tuple(Text(inputs, s) for s in parsed if isinstance(s, TextStep))
        self._refuse_two_steps()
        for picture in self.pictures:
            picture.table  # noqa: B018  a float input without a scale is refused now

    def _refuse_two_steps(self) -> None:
        made = [picture.spec.name for picture in self.pictures]
        made += [table.spec.name for table in self.tables]
        made += [name for text in self.texts for name in text.names]
        twice = next((name for name in made if made.count(name) > 1), None)
        if twice is not None:
            raise UsageError(
                f"preprocess has {made.count(twice)} steps for input {twice!r}", expected="one for each input"
            )

    @property
    def drops_duplicates(self) -> bool:
        """Whether rows that came before are left out where data is read to convert or to score."""
        return any(table.step.drop_duplicates for table in self.tables)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table that the steps take; empty where no step says so."""
        named = [name for table in self.tables for name in table.names]
        return tuple(dict.fromkeys(named + [text.step.column for text in self.texts]))

    @property
    def dropped(self) -> tuple[str, ...]:
        """Columns of a table that are left out."""
        return tuple(name for table in self.tables for name in table.step.drop)

    def picture(self, what: str) -> Picture:
        """Return the model's one input as a picture; without a step, as its shape and type say.

        Args:
            what: What to call the data in messages.

        Raises:
            UsageError: The model takes several inputs, or one that is no picture.
        """
        if len(self.inputs) != 1:
            raise UsageError(
                f"{what}: images are for a model with one input", got=len(self.inputs), hint="Give an .npz."
            )
        return self.pictures[0] if self.pictures else Picture(self.inputs[0])

    def image_u8(self) -> ImageBinding | None:
        """Return the second binding, for cameras; None where the model is not one scaled picture's."""
        return image_u8_binding(self.pictures, self.inputs)

    def rows(self, rows: Rows) -> dict[str, np.ndarray]:
        """Return the inputs that the steps make of rows: arrays [N, …] by name, features in float64.

        Raises:
            UsageError: A column is missing, or a cell cannot be used; names the row.
        """
        missing = [name for name in self.columns if name not in rows.columns]
        if missing:
            raise UsageError(f"{rows.where} has no column {missing[0]!r}", got=", ".join(rows.columns))
        found = {table.spec.name: table.features(rows) for table in self.tables}
        for text in self.texts:
            cells = rows.columns[text.step.column]
            found |= text.tokens([_as_text(cell, rows, i, text.step.column) for i, cell in enumerate(cells)])
        absent = [spec.name for spec in self.inputs if spec.name not in found]
        if absent:
            raise UsageError(
                f"{rows.where}: nothing says how the table becomes the input {absent[0]!r}",
                got=f"steps for {', '.join(found)}",
                hint="Add a step to --preprocess, or give an .npz.",
            )
        return found

    def prepare(self, raw: object) -> dict[str, np.ndarray] | None:
        """Return the feed of something raw; None where no step takes such a thing.

        Args:
            raw: The path of an image file, or a raw picture, uint8 [H, W, 3] in RGB or [H, W], or pictures of the
                input's size, uint8 [N, H, W, C]; a text or a list of texts; a table's columns by name, lists or
                single cells.

        Returns:
            Arrays [N, …] by input name, in the inputs' types.

        Raises:
            UsageError: It is such a thing, and does not fit.
        """
        if isinstance(raw, Mapping):
            return self._of_columns(raw) if self.columns else None
        texts = [raw] if isinstance(raw, str) else raw
        if self.texts and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            columns = self.columns
            return self._of_columns({columns[0]: texts}) if len(columns) == 1 else None
        if not self.pictures or len(self.inputs) != 1:
            return None
        if isinstance(raw, (str, os.PathLike)):
            return self.image(Path(raw), "the picture")
        return self._of_pixels(raw) if isinstance(raw, np.ndarray) else None

    def image(self, path: Path, what: str) -> dict[str, np.ndarray]:
        """Return the feed of one image file, [1, …].

        Args:
            path: The file.
            what: What to call the data in messages.
        """
        picture = self.picture(what)
        return {picture.spec.name: picture.samples(picture.read(path)[None])}

    def _of_pixels(self, pixels: np.ndarray) -> dict[str, np.ndarray] | None:
        (picture,) = self.pictures
        if pixels.dtype != np.uint8 or (pixels.dtype == np.dtype(picture.spec.dtype) and pixels.ndim == 4):
            return None
        if pixels.ndim != 4:
            return {picture.spec.name: picture.samples(picture.fit(pixels)[None])}
        binding = self.image_u8()
        return None if binding is None else binding.feed(pixels)

    def _of_columns(self, raw: Mapping[Any, Any]) -> dict[str, np.ndarray]:
        cells = {
            str(name): list(each) if isinstance(each, (list, tuple, np.ndarray)) else [each]
            for name, each in raw.items()
        }
        lengths = {len(each) for each in cells.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise UsageError("columns have different numbers of rows, or none", got=sorted(lengths))
        found = self.rows(Rows(cells, range(lengths.pop()), "the rows given"))
        return {spec.name: found[spec.name].astype(spec.dtype) for spec in self.inputs}


def is_image(path: Path) -> bool:
    """Tell whether a path is named as an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _as_text(cell: object, rows: Rows, index: int, column: str) -> str:
    if not isinstance(cell, str):
        raise UsageError(
            f"{rows.where}: {rows.row} {rows.numbers[index]}, column {column!r} is no text", got=repr(cell)
        )
    return cell
