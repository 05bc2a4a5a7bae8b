"""The runtime contract: load an artifact, get a session, feed it arrays."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, UnavailableError
from edgekit.tensors import TensorSpec, check_feed

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ModelFiles",
    "OpProfiler",
    "OpTime",
    "Runtime",
    "Session",
    "SessionOptions",
    "bind",
    "load_first",
    "not_importable",
    "pick_providers",
    "typical_ops",
]


class ModelFiles(msgspec.Struct, frozen=True):
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
    input_names: Mapping[str, str] = {}
    output_names: Mapping[str, str] = {}
    golden: Path | None = None


class SessionOptions(msgspec.Struct, frozen=True):
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
    extra: Mapping[str, str | int | float | bool] = {}


class Session(abc.ABC):
    """An artifact loaded in a runtime, ready to run.

    Not thread-safe: one caller at a time. The arrays that `run` returns are valid until its next call.

    Attributes:
        inputs: What `run` takes.
        outputs: What `run` returns.
        placement: What really runs where, such as `{"CPUExecutionProvider": "8 of 8 nodes"}`.
        fresh_outputs: Whether `run` returns new arrays each time, which a caller may keep without copying.
        compile_ms: How much of opening it went into making it runnable (optimising, delegating, building engines),
            in milliseconds; None where the library reads and compiles in one call.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    placement: Mapping[str, str]
    fresh_outputs: ClassVar[bool] = False
    compile_ms: float | None = None

    # Name, dtype and shape of every array of the last feed that was admitted. Most feeds look like the one
    # before; comparing with it costs a tenth of reading the specs again.
    _admitted: tuple[tuple[str, Any, tuple[int, ...]], ...] = ()

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check the feed, then run the model once.

        Args:
            feed: Arrays by canonical input name, with the dtype and shape of `inputs`.

        Returns:
            Arrays by canonical output name, valid until the next call.

        Raises:
            UsageError: A name, shape or dtype is wrong; native code has not been called.
            MachineError: The native library failed.
        """
        admitted = self._admitted
        if not admitted or len(feed) != len(admitted):
            self._admit(feed)
        else:
            try:
                for name, dtype, shape in admitted:
                    array = feed[name]
                    if array.dtype is not dtype or array.shape != shape:
                        self._admit(feed)
                        break
            except (KeyError, AttributeError):
                self._admit(feed)
        try:
            return self._run(feed)
        except EdgeKitError:
            raise
        except Exception as error:
            raise MachineError(f"{type(self).__name__} failed while it ran the model: {error}") from error

    def _admit(self, feed: Mapping[str, np.ndarray]) -> None:
        """Check a feed that does not look like the last one, and prepare for its shapes."""
        check_feed(self.inputs, feed)
        before, self._admitted = self._admitted, ()
        shapes = {spec.name: feed[spec.name].shape for spec in self.inputs}
        if shapes != {name: shape for name, _, shape in before}:
            self._prepare(shapes)
        self._admitted = tuple((spec.name, feed[spec.name].dtype, shapes[spec.name]) for spec in self.inputs)

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        try:
            self._reshape(shapes)
        except EdgeKitError:
            raise
        except Exception as error:
            raise MachineError(f"{type(self).__name__} cannot prepare for {dict(shapes)}: {error}") from error

    def _reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027  most need nothing
        """Prepare for inputs of other shapes than the last; called once, before the first such run.

        A runtime that needs this overrides it. After a failure it is called again before the next run.
        """

    @abc.abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once on a feed that fits."""

    def settings(self) -> dict[str, str]:
        """Return how it runs, in the library's own words: threads, streams, precision; read back where it tells."""
        return {}

    @abc.abstractmethod
    def close(self) -> None:
        """Free the native model; a closed session is not used again."""


class OpTime(msgspec.Struct, frozen=True):
    """One operator as the runtime's own profiler tells of it.

    Attributes:
        name: Of the node.
        kind: Of the operator, such as `Conv`.
        kernel: What computed it, in the library's words; empty where it does not tell.
        place: The provider or device that ran it.
        us: Of one call of the model, in microseconds.
    """

    name: str
    kind: str
    kernel: str
    place: str
    us: float


class OpProfiler(abc.ABC):
    """A session with the library's profiler on.

    Attributes:
        session: To be run as any other.
    """

    session: Session

    def collect(self) -> None:  # noqa: B027  most tell at the end
        """Take what the profiler knows of the last call; called after each call that counts."""

    @abc.abstractmethod
    def finish(self, calls: int) -> tuple[OpTime, ...]:
        """Close the session and return the operators by the last `calls` calls, as `typical_ops` does."""


def typical_ops(calls: Sequence[Sequence[OpTime]]) -> tuple[OpTime, ...]:
    """Return each operator with the mean of the middle half of its times: a call that was held up moves nothing.

    Args:
        calls: The operators of each call; one that runs several times in a call counts with its sum.
    """
    found: dict[tuple[str, str], OpTime] = {}
    times: dict[tuple[str, str], list[float]] = {}
    for rank, call in enumerate(calls):
        for each in call:
            key = (each.name, each.kind)
            found.setdefault(key, each)
            row = times.setdefault(key, [0.0] * len(calls))
            row[rank] += each.us
    quarter = len(calls) // 4
    middle = {key: sorted(row)[quarter : len(row) - quarter] for key, row in times.items()}
    return tuple(
        msgspec.structs.replace(each, us=sum(middle[key]) / len(middle[key])) for key, each in found.items()
    )


class Runtime(abc.ABC):
    """An engine that runs artifacts; knows tensors and nothing else.

    Attributes:
        name: Its name in the table.
        formats: Artifact formats that it opens.
        extra: The extra of `edgekit-deploy` that provides it.
        packages: Top-level packages that may carry its library; none where it has no library.
        no_op_times: Why it cannot tell the time of single operators; empty where it can.
    """

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    no_op_times: ClassVar[str] = "EdgeKit does not read its profiler"

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

    def profile_ops(self, files: ModelFiles, options: SessionOptions) -> OpProfiler:  # noqa: ARG002
        """Open an artifact with the library's profiler on.

        Raises:
            UnavailableError: The library has no profiler, as `no_op_times` says, or what `load` raises it for.
            InvalidFileError: The runtime cannot read the file.
        """
        raise UnavailableError(f"{self.name} cannot tell the time of single operators: {self.no_op_times}")


def not_importable(runtime: type[Runtime], error: ImportError) -> UnavailableError:
    """Return the error for a library that does not import: because it is not there, or because it is broken."""
    hint = f"Run: pip install 'edgekit-deploy[{runtime.extra}]'."
    if isinstance(error, ModuleNotFoundError) and error.name in runtime.packages:
        return UnavailableError(f"the runtime {runtime.name} is not installed", hint=hint)
    return UnavailableError(f"the runtime {runtime.name} does not import", got=str(error), hint=hint)


def pick_providers(
    runtime: str, wanted: Sequence[str], available: Collection[str], *, allow_fallback: bool
) -> tuple[str, ...]:
    """Return the providers to use, in order: those wanted that are available.

    Args:
        runtime: The runtime's name, for the message.
        wanted: Providers in order of preference.
        available: Providers that are here.
        allow_fallback: Whether a later one will do when the first is absent.

    Raises:
        UnavailableError: The first is absent and nothing later may do, or none is here.
    """
    present = tuple(name for name in wanted if name in available)
    if present and (present[0] == wanted[0] or allow_fallback):
        return present
    hint = "Install what it needs" + (", or give --allow-fallback." if present else ".")
    raise UnavailableError(
        f"{wanted[0]} is not available to {runtime} here",
        got=", ".join(available) or "nothing",
        expected=" or ".join(wanted) if allow_fallback else wanted[0],
        hint=hint,
    )


def load_first(
    providers: Sequence[str], load: Callable[[Sequence[str]], Session], *, allow_fallback: bool
) -> Session:
    """Return what `load` makes of the providers; where the first one fails and may, of those after it.

    Raises:
        UnavailableError: The first failed and nothing later may do, or the last failed too.
    """
    try:
        return load(providers)
    except UnavailableError:
        if not allow_fallback or len(providers) == 1:
            raise
    return load_first(providers[1:], load, allow_fallback=allow_fallback)


def bind(
    specs: Sequence[TensorSpec],
    renamed: Mapping[str, str],
    known: Mapping[str, str],
    files: ModelFiles,
    *,
    count: int | None = None,
) -> tuple[tuple[str, str], ...]:
    """Return (canonical name, own name) of every tensor of `specs`.

    Args:
        specs: The tensors under their canonical names.
        renamed: Canonical name to the artifact's own name, where they differ.
        known: The artifact's tensors: own name to dtype.
        files: The artifact, for the message.
        count: How many tensors `specs` must name; None where some may be left out.

    Raises:
        InvalidFileError: The artifact is not what the manifest says.
    """
    pairs = tuple((spec.name, renamed.get(spec.name, spec.name)) for spec in specs)
    for spec, (_, own) in zip(specs, pairs, strict=True):
        if own not in known:
            raise InvalidFileError(f"{files.path} has no tensor {own!r}", got=", ".join(known))
        if known[own] != spec.dtype:
            raise InvalidFileError(
                f"{files.path}: tensor {own!r} has another dtype than the manifest says",
                got=known[own],
                expected=spec.dtype,
            )
    if count not in (None, len(pairs)):
        raise InvalidFileError(
            f"{files.path} has other inputs than the manifest says",
            got=", ".join(known),
            expected=", ".join(own for _, own in pairs),
        )
    return pairs
