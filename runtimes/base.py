"""The runtime contract: load an artifact, get a session, feed it arrays."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.tensors import TensorSpec, check_feed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ModelFiles", "Runtime", "Session", "SessionOptions"]


@dataclass(frozen=True)
class ModelFiles:
    """What a runtime needs to open one artifact.

    Attributes:
        path: The file to open.
        inputs: Specs under canonical names, shapes as this artifact takes them.
        outputs: Specs under canonical names.
        input_names: Canonical name to the artifact's own, where they differ.
        output_names: Canonical name to the artifact's own, where they differ.
        golden: The bundle's golden set, for the runtime that answers from it.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_names: Mapping[str, str] = field(default_factory=dict)
    output_names: Mapping[str, str] = field(default_factory=dict)
    golden: Path | None = None


@dataclass(frozen=True)
class SessionOptions:
    """How to run it.

    Attributes:
        threads: Intra-op threads; 0 leaves the choice to the runtime.
        providers: Execution providers or devices in order of preference; empty for the CPU.
        allow_fallback: Whether a later provider will do when the first is absent or fails.
        extra: Runtime-specific options, from the device profile.
    """

    threads: int = 0
    providers: Sequence[str] = ()
    allow_fallback: bool = False
    extra: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Session(abc.ABC):
    """An artifact loaded in a runtime, ready to run.

    Not thread-safe: one caller at a time. The arrays that `run` returns are valid until its next call.

    Attributes:
        inputs: What `run` takes.
        outputs: What `run` returns.
        placement: What really runs where, such as `{"CPUExecutionProvider": "all nodes"}`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    placement: Mapping[str, str]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check the feed, then run the model once.

        Args:
            feed: Arrays by canonical input name, with the dtype and shape of `inputs`.

        Returns:
            Arrays by canonical output name, valid until the next call.

        Raises:
            UsageError: A name, shape or dtype is wrong; native code has not been called.
        """
        check_feed(self.inputs, feed)
        return self._run(feed)

    @abc.abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once on a feed that fits."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free the native model; a closed session is not used again."""


class Runtime(abc.ABC):
    """An engine that runs artifacts; knows tensors and nothing else.

    Attributes:
        name: Its name in the table.
        formats: Artifact formats that it opens.
        extra: The extra of `edgekit-deploy` that provides it.
    """

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]

    @abc.abstractmethod
    def version(self) -> str:
        """Return the installed version, such as `ai-edge-litert 2.3.0`.

        Raises:
            UnavailableError: It is not installed; the message names the extra.
        """

    @abc.abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Return the execution providers or devices that are available here.

        Raises:
            UnavailableError: The runtime is not installed.
        """

    @abc.abstractmethod
    def load(self, files: ModelFiles, options: SessionOptions) -> Session:
        """Open an artifact.

        Raises:
            UnavailableError: The runtime, or the first provider asked for, is not available here.
            InvalidFileError: The runtime cannot read the file.
        """
