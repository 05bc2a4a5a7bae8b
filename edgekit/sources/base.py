"""The source contract: a trained model opened in its own framework, inside a worker process."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Source", "SourceOptions", "first_line"]


class SourceOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the user said about how the source is to be read.

    Attributes:
        signature: Of a SavedModel or a TFLite file that has several; empty for `serving_default`, or the only one.
        custom_objects: Path of the user's own Python module with layers and functions that the model needs.
        trust_pickle: The user's explicit word that code inside the file may run.
        input_shapes: Input name to a whole shape, batch first, -1 where free; for files that declare none.
        requantize: Quantize again what is quantized already.
    """

    signature: str = ""
    custom_objects: str = ""
    trust_pickle: bool = False
    input_shapes: dict[str, tuple[int, ...]] = {}
    requantize: bool = False


class Source(abc.ABC):
    """A source model opened in its own framework.

    Attributes:
        inputs: Canonical specs.
        outputs: Canonical specs.
        tools: Versions of what reads it.
        packages: Distributions that read it.
        environment: The worker that opens it: sources and converters of one environment share a process.
        heeds: Fields of `SourceOptions` that mean something to it; any other that is given is an error.
        notes: What a user should know of how it was read.
        quantized: Precision of a source that is quantized already; empty for a float one.
        files: Files beside the model that belong to it, such as its weights.
    """

    packages: ClassVar[tuple[str, ...]]
    environment: ClassVar[str]
    heeds: ClassVar[tuple[str, ...]] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()
    quantized: str = ""
    files: tuple[str, ...] = ()

    @abc.abstractmethod
    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Open the model.

        Raises:
            InvalidFileError: The file is not what its name says, or cannot be read safely.
            ConversionError: It can be read, and lacks something that conversion needs.
        """

    @property
    def tools(self) -> dict[str, str]:
        """Return the version of every package that reads this source."""
        return {name: version(name) for name in self.packages}

    @abc.abstractmethod
    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's answers to a batch, arrays by canonical output name."""


def first_line(error: BaseException) -> str:
    """Return the first line of a framework's error, or the kind of error where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
