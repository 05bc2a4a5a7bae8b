"""ONNX Runtime, with settings that suit a small machine."""

from __future__ import annotations

import tempfile
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.errors import InvalidFileError, UnavailableError, UsageError
from edgekit.runtimes.base import (
    ModelFiles,
    OpProfiler,
    OpTime,
    Runtime,
    Session,
    SessionOptions,
    bind,
    load_first,
    not_importable,
    pick_providers,
    typical_ops,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxRuntime", "provider_options", "session_entries", "traced"]

Option = str | int | float | bool

CPU = "CPUExecutionProvider"

#: Sends what it is fed to a web service: never a choice for a device.
_REMOTE = "AzureExecutionProvider"

#: Prefix of an option to (the provider it is for, whether the prefix is part of the provider's own name).
_PROVIDER_PREFIXES = {
    "trt_": ("TensorrtExecutionProvider", True),
    "cuda_": ("CUDAExecutionProvider", False),
    "vitisai_": ("VitisAIExecutionProvider", False),
}

#: On a device, threads that spin between requests take the cores and the heat of everything else.
_QUIET = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}

_ASSIGNMENT = "session.record_ep_graph_assignment_info"

_DTYPES = {
    "tensor(bool)": "bool", "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64", "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32",
    "tensor(int64)": "int64", "tensor(float16)": "float16", "tensor(float)": "float32",
    "tensor(double)": "float64", "tensor(string)": "bytes",
}  # fmt: skip

#: How the trace calls the time of an operator itself, without waiting and copying.
_KERNEL = "_kernel_time"

#: ONNX Runtime's own exceptions that mean a bad file, whatever the provider.
_FILE_ERRORS = {"InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel"}


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise not_importable(OnnxRuntime, error) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


class OnnxRuntime(Runtime):
    """Runs ONNX artifacts.

    Options: names with a dot are session configuration entries (`session.intra_op.allow_spinning`); names
    that start with `trt_` go to TensorRT as they are, with `cuda_` to CUDA and with `vitisai_` to Vitis AI without that
    prefix.
    """

    name = "onnxruntime"
    formats = ("onnx",)
    extra = "onnx"
    packages = ("onnxruntime",)
    no_op_times = ""

    def version(self) -> str:  # noqa: D102  the contract is the base class's
        return f"onnxruntime {_library().__version__}"

    def providers(self) -> tuple[str, ...]:  # noqa: D102  the contract is the base class's
        return tuple(name for name in _library().get_available_providers() if name != _REMOTE)

    def load(self, files: ModelFiles, options: SessionOptions) -> Session:  # noqa: D102  the contract is the base class's
        library = _library()
        wanted = tuple(options.providers) or (CPU,)
        present = pick_providers(self.name, wanted, self.providers(), allow_fallback=options.allow_fallback)

        def load(providers: Sequence[str]) -> Session:
            settings = _session_options(library, options)
            return OnnxSession(_open(library, files, providers, options, settings), files)

        return load_first(present, load, allow_fallback=options.allow_fallback)

    def profile_ops(self, files: ModelFiles, options: SessionOptions) -> OpProfiler:  # noqa: D102  the contract is the base class's
        library = _library()
        wanted = tuple(options.providers) or (CPU,)
        present = pick_providers(self.name, wanted, self.providers(), allow_fallback=options.allow_fallback)
        folder = tempfile.TemporaryDirectory(prefix="edgekit-ops-")
        settings = _session_options(library, options)
        settings.enable_profiling = True
        settings.profile_file_prefix = f"{folder.name}/ops"
        try:
            return _Tracer(_open(library, files, present, options, settings), files, folder)
        except BaseException:
            folder.cleanup()
            raise


def provider_options(provider: str, extra: Mapping[str, Option]) -> dict[str, str]:
    """Return the options of one provider, as strings, which is how providers take them.

    Args:
        provider: Such as `TensorrtExecutionProvider`.
        extra: Options of all providers and of the session.
    """
    own: dict[str, str] = {}
    for key, value in extra.items():
        for prefix, (owner, keeps_prefix) in _PROVIDER_PREFIXES.items():
            if owner == provider and key.startswith(prefix):
                own[key if keeps_prefix else key[len(prefix) :]] = _as_text(value)
    return own


def session_entries(extra: Mapping[str, Option]) -> dict[str, str]:
    """Return the session's configuration entries: the quiet defaults, changed by names with a dot.

    Raises:
        UsageError: An option is neither an entry nor a provider's.
    """
    entries = dict(_QUIET)
    for key, value in extra.items():
        if "." in key:
            entries[key] = _as_text(value)
        elif not key.startswith(tuple(_PROVIDER_PREFIXES)):
            raise UsageError(
                f"onnxruntime has no option {key!r}", expected="a name with a dot, trt_…, cuda_… or vitisai_…"
            )
    return entries


def _as_text(value: Option) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _open(
    library: Any, files: ModelFiles, providers: Sequence[str], options: SessionOptions, settings: Any
) -> Any:
    """Open the native session, and see to it that the first provider is really in it."""
    pairs = [(name, provider_options(name, options.extra)) for name in providers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # absence is found out below, and raised
            native = library.InferenceSession(str(files.path), settings, providers=pairs, enable_fallback=0)
    except Exception as error:
        if providers[0] == CPU or type(error).__name__ in _FILE_ERRORS:
            raise InvalidFileError(
                f"{files.path} is not a model that ONNX Runtime can run: {error}"
            ) from error
        raise UnavailableError(f"{providers[0]} could not load {files.path}: {error}") from error
    if providers[0] not in native.get_providers():
        raise UnavailableError(
            f"{providers[0]} did not start",
            got=", ".join(native.get_providers()),
            hint="Its libraries are missing or do not fit; give --allow-fallback to do without it.",
        )
    return native


def _session_options(library: Any, options: SessionOptions) -> Any:
    settings = library.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # what matters comes as an exception
    entries = session_entries(options.extra)
    if hasattr(library.InferenceSession, "get_provider_graph_assignment_info"):
        entries.setdefault(_ASSIGNMENT, "1")
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings


class OnnxSession(Session):
    """One native session; its outputs are new arrays each time."""

    fresh_outputs = True

    def __init__(self, native: Any, files: ModelFiles) -> None:
        self.inputs, self.outputs = files.inputs, files.outputs
        inputs, outputs = _dtypes(native.get_inputs()), _dtypes(native.get_outputs())
        self._inputs = bind(files.inputs, files.input_names, inputs, files, count=len(inputs))
        taken = bind(files.outputs, files.output_names, outputs, files)
        self._outputs, self._own_outputs = [name for name, _ in taken], [own for _, own in taken]
        self._same_names = all(name == own for name, own in self._inputs)
        self._native = native
        self.placement = _placement(native)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._same_names:
            feed = {own: feed[name] for name, own in self._inputs}
        return dict(zip(self._outputs, self._native.run(self._own_outputs, feed), strict=True))

    def settings(self) -> dict[str, str]:
        told = self._native.get_session_options()
        found = {
            "intra_op_num_threads": str(told.intra_op_num_threads),
            "inter_op_num_threads": str(told.inter_op_num_threads),
            "execution_mode": told.execution_mode.name,
            "graph_optimization_level": told.graph_optimization_level.name,
        }
        for name in _QUIET:
            found[name] = told.get_session_config_entry(name)
        return found

    def end_profiling(self) -> bytes:
        """Return what the library's profiler wrote; only where it was switched on."""
        return Path(self._native.end_profiling()).read_bytes()

    def close(self) -> None:
        self._native = None


class _Tracer(OpProfiler):
    """ONNX Runtime writes a trace of all calls when it is told to end."""

    def __init__(self, native: Any, files: ModelFiles, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.session = self._opened = OnnxSession(native, files)
        self._folder = folder

    def finish(self, calls: int) -> tuple[OpTime, ...]:
        try:
            trace = msgspec.json.decode(self._opened.end_profiling())
        finally:
            self._opened.close()
            self._folder.cleanup()
        return traced(trace, calls)


def traced(events: Sequence[Mapping[str, Any]], calls: int) -> tuple[OpTime, ...]:
    """Return the operators of the last calls in a trace.

    An operator that runs others (`If`, `Loop`) is charged only with what they leave of its time.

    Args:
        events: ONNX Runtime's trace: `cat`, `name`, `ts` and `dur` in microseconds, `args`.
        calls: How many, of those from the end.
    """
    runs = sorted(e["ts"] for e in events if e["cat"] == "Session" and e["name"] == "model_run")[-calls:]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_KERNEL)]
    nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
    by_run: list[list[OpTime]] = [[] for _ in runs]
    open_until: list[tuple[float, int]] = []
    for event in nodes:
        run, end = bisect_right(runs, event["ts"]) - 1, event["ts"] + event["dur"]
        if run < 0:
            continue  # of the warm-up
        ops, arguments = by_run[run], event["args"]
        open_until = [each for each in open_until if each[0] >= end] if ops else []
        if open_until:
            around = ops[open_until[-1][1]]
            ops[open_until[-1][1]] = msgspec.structs.replace(around, us=max(0.0, around.us - event["dur"]))
        name = event["name"].removesuffix(_KERNEL)
        ops.append(OpTime(name, arguments["op_name"], "", arguments.get("provider", ""), event["dur"]))
        open_until.append((end, len(ops) - 1))
    return typical_ops(by_run)


def _dtypes(nodes: Sequence[Any]) -> dict[str, str]:
    return {node.name: _DTYPES.get(node.type, node.type) for node in nodes}


def _placement(native: Any) -> dict[str, str]:
    """Return how many nodes each provider took, before it fused them, as far as the library tells."""
    if hasattr(native, "get_provider_graph_assignment_info"):
        counts: Counter[str] = Counter()
        for part in native.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        if counts:
            return {name: f"{count} of {counts.total()} nodes" for name, count in counts.items()}
    registered = native.get_providers()
    if len(registered) == 1:
        return {registered[0]: "all nodes"}
    return dict.fromkeys(registered, "registered; this version does not tell its nodes")
