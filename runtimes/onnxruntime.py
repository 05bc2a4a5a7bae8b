"""ONNX Runtime, with settings that suit a small machine."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InvalidFileError, UnavailableError, UsageError
from edgekit.runtimes.base import (
    ModelFiles,
    Runtime,
    Session,
    SessionOptions,
    bind,
    load_first,
    not_importable,
    pick_providers,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxRuntime", "provider_options", "session_entries"]

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

    def version(self) -> str:  # noqa: D102  the contract is the base class's
        return f"onnxruntime {_library().__version__}"

    def providers(self) -> tuple[str, ...]:  # noqa: D102  the contract is the base class's
        return tuple(name for name in _library().get_available_providers() if name != _REMOTE)

    def load(self, files: ModelFiles, options: SessionOptions) -> Session:  # noqa: D102  the contract is the base class's
        library = _library()
        wanted = tuple(options.providers) or (CPU,)
        present = pick_providers(self.name, wanted, self.providers(), allow_fallback=options.allow_fallback)

        def load(providers: Sequence[str]) -> Session:
            return OnnxSession(_open(library, files, providers, options), files)

        return load_first(present, load, allow_fallback=options.allow_fallback)


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


def _open(library: Any, files: ModelFiles, providers: Sequence[str], options: SessionOptions) -> Any:
    """Open the native session, and see to it that the first provider is really in it."""
    settings = _session_options(library, options)
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

    def close(self) -> None:
        self._native = None


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
