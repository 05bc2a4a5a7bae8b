"""The converter contract: one source in, one artifact per recipe out, inside a worker process."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edgekit.manifest import Recipe
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Converted", "Converter", "SourceModel"]


@dataclass(frozen=True)
class SourceModel:
    """What a converter starts from: the user's model, or an artifact of an earlier converter.

    Attributes:
        kind: `keras`, `savedmodel`, or a format.
        path: File or folder.
        inputs: Canonical specs.
        outputs: Canonical specs.
    """

    kind: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Converted(msgspec.Struct, frozen=True):
    """One artifact as a converter leaves it.

    Attributes:
        path: The file a runtime opens.
        files: Every file, `path` among them.
        inputs: Canonical specs with the shapes that this artifact takes.
        outputs: Canonical specs.
        input_names: Canonical name to the artifact's own, where they differ.
        output_names: Canonical name to the artifact's own, where they differ.
        tools: Version of every tool that took part.
    """

    path: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_names: dict[str, str] = {}
    output_names: dict[str, str] = {}
    tools: dict[str, str] = {}


class Converter(abc.ABC):
    """Turns one kind of source into one format, at several precisions.

    Attributes:
        sources: Kinds and formats that it reads.
        format: Format that it writes.
        precisions: Precisions that it makes.
        environment: Converters of one environment share a worker process.
        needs: Modules that must be importable.
        extra: The extra of `edgekit-deploy` that provides them.
    """

    sources: ClassVar[tuple[str, ...]]
    format: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    environment: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = "convert"

    @abc.abstractmethod
    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Mapping[str, np.ndarray] | None,
        out: Path,
    ) -> Iterator[Converted]:
        """Make one artifact per recipe, in order, each in a folder `out/<format>-<precision>`.

        Args:
            source: What to convert.
            recipes: What to make.
            calibration: Arrays by canonical input name, [N, …]; None when no recipe needs them.
            out: An existing folder.

        Raises:
            ConversionError: The source cannot be converted; says why.
        """
