"""OpenVINO, on the CPU, an integrated GPU or an NPU."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from time import perf_counter
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
from edgekit.tensors import TensorSpec, sample_shape

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenVino", "compile_options", "present_devices"]

Option = str | int | float | bool

#: Devices that compile for one shape only.
STATIC = ("NPU",)

#: Devices that stand for others, which must be named: `AUTO:NPU,CPU`.
_COMPOSITE = ("AUTO", "MULTI", "HETERO")

#: Properties that say how a model runs.
_TOLD = (
    "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT",
    "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "SCHEDULING_CORE_TYPE",
)  # fmt: skip

#: Calls whose operators are kept.
_MOST_CALLS = 1000

#: OpenVINO's names of element types, where they are not numpy's.
_DTYPES = {
    "boolean": "bool", "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "i8": "int8",
    "i16": "int16", "i32": "int32", "i64": "int64", "f16": "float16", "f32": "float32", "f64": "float64",
    "string": "bytes",
}  # fmt: skip


@cache
def _core() -> Any:
    """Return the one Core of this process; loading its plugins again would take time and memory."""
    try:
        with _without_telemetry():
            from openvino import Core
    except ImportError as error:
        raise not_importable(OpenVino, error) from error
    return Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO without the library that reports its use; its conversion tools then use a stub.

    `import openvino` imports those tools, and with them the reporting, for programs that only infer too.
    """
    reporting = "openvino_telemetry"
    if reporting in sys.modules:
        yield
        return
    sys.modules[reporting] = None  # type: ignore[assignment]  # Python's own way to forbid an import
    try:
        yield
    finally:
        del sys.modules[reporting]


class OpenVino(Runtime):
    """Runs OpenVINO artifacts; also reads ONNX files, which the gate uses.

    Options: OpenVINO's own properties in capitals, such as `INFERENCE_PRECISION_HINT = "f32"`.
    """

    name = "openvino"
    formats = ("openvino",)
    extra = "openvino"
    packages = ("openvino",)
    no_op_times = ""

    def version(self) -> str:  # noqa: D102  the contract is the base class's
        _core()
        from openvino import __version__

        return f"openvino {__version__.split('-')[0]}"

    def providers(self) -> tuple[str, ...]:  # noqa: D102  the contract is the base class's
        return tuple(_core().available_devices)

    def load(self, files: ModelFiles, options: SessionOptions) -> Session:  # noqa: D102  the contract is the base class's
        core = _core()
        wanted = tuple(options.providers) or ("CPU",)
        here = present_devices(wanted, self.providers())
        devices = pick_providers(self.name, wanted, here, allow_fallback=options.allow_fallback)

        def load(devices: Sequence[str]) -> Session:
            return _compile(core, _read(core, files), files, devices[0], options)

        return load_first(devices, load, allow_fallback=options.allow_fallback)

    def profile_ops(self, files: ModelFiles, options: SessionOptions) -> OpProfiler:  # noqa: D102  the contract is the base class's
        counting = msgspec.structs.replace(options, extra={**options.extra, "PERF_COUNT": True})
        session = self.load(files, counting)
        assert isinstance(session, OpenVinoSession)
        return _Counters(session)


def present_devices(wanted: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Return the available devices and those of `wanted` that are made of them.

    `NPU` is present where `NPU.0` is; `AUTO:NPU,CPU` is present where its first device is.

    >>> present_devices(["AUTO:NPU,CPU", "GPU"], ["CPU", "GPU.0"])
    ('CPU', 'GPU.0', 'GPU')
    """

    def present(name: str) -> bool:
        kind, _, parts = name.partition(":")
        if kind in _COMPOSITE:
            return bool(parts) and present(parts.split(",")[0])
        return any(device == name or device.startswith(f"{name}.") for device in available)

    return (*available, *(name for name in wanted if name not in available and present(name)))


def compile_options(device: str, options: SessionOptions) -> dict[str, Option]:
    """Return the properties for `compile_model`.

    Raises:
        UsageError: An option is not written as OpenVINO's properties are.
    """
    for key in options.extra:
        if key != key.upper():
            raise UsageError(
                f"openvino has no option {key!r}", expected="a property in capitals, as OpenVINO writes them"
            )
    config: dict[str, Option] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU" and options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    return {**config, **options.extra}


def _read(core: Any, files: ModelFiles) -> Any:
    if not files.path.is_file():
        raise InvalidFileError(f"{files.path} is missing")
    try:
        return core.read_model(str(files.path))
    except RuntimeError as error:
        raise InvalidFileError(
            f"{files.path} is not a model that OpenVINO can read: {_last_line(error)}"
        ) from error


def _last_line(error: Exception) -> str:
    """Return the line that says something: the ones before it are places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _compile(core: Any, model: Any, files: ModelFiles, device: str, options: SessionOptions) -> Session:
    inputs = files.inputs
    config = compile_options(device, options)
    if device.partition(":")[0].partition(".")[0] in STATIC:
        inputs = tuple(TensorSpec(spec.name, spec.dtype, sample_shape(spec), spec.layout) for spec in inputs)
    begin = perf_counter()
    try:
        if inputs is not files.inputs:
            ports = _by_name(model.inputs)
            names = bind(inputs, files.input_names, _dtypes(ports), files, count=len(model.inputs))
            model.reshape({own: list(spec.shape) for spec, (_, own) in zip(inputs, names, strict=True)})
        compiled = core.compile_model(model, device, config)
    except RuntimeError as error:
        if device == "CPU":
            raise InvalidFileError(
                f"{files.path} is not a model that OpenVINO can run: {_last_line(error)}"
            ) from error
        raise UnavailableError(
            f"OpenVINO's device {device} could not compile {files.path}: {_last_line(error)}"
        ) from error
    session = OpenVinoSession(compiled, inputs, files)
    session.compile_ms = 1e3 * (perf_counter() - begin)
    return session


def _by_name(ports: Sequence[Any]) -> dict[str, Any]:
    return {name: port for port in ports for name in port.get_names()}


def _dtypes(ports: Mapping[str, Any]) -> dict[str, str]:
    types = {name: port.get_element_type().get_type_name() for name, port in ports.items()}
    return {name: _DTYPES.get(element, element) for name, element in types.items()}


class OpenVinoSession(Session):
    """One infer request with its own input tensors; its outputs are views of OpenVINO's memory."""

    def __init__(self, compiled: Any, inputs: tuple[TensorSpec, ...], files: ModelFiles) -> None:
        self.inputs, self.outputs = inputs, files.outputs
        self._request: Any = compiled.create_infer_request()
        ports, results = _by_name(compiled.inputs), _by_name(compiled.outputs)
        fed = bind(inputs, files.input_names, _dtypes(ports), files, count=len(compiled.inputs))
        taken = bind(files.outputs, files.output_names, _dtypes(results), files)
        self._inputs = [(name, ports[own]) for name, own in fed]
        order = list(compiled.outputs)
        self._outputs = [(name, order.index(results[own])) for name, own in taken]
        self._views: list[tuple[str, np.ndarray]] = []
        self._compiled: Any = compiled
        self.placement = dict.fromkeys(compiled.get_property("EXECUTION_DEVICES"), "all nodes")

    def _reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from openvino import Tensor

        self._views = []
        for name, port in self._inputs:
            tensor = Tensor(port.get_element_type(), list(shapes[name]))
            self._request.set_tensor(port, tensor)
            self._views.append((name, tensor.data))

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, view in self._views:
            view[...] = feed[name]
        # all outputs at once, in their order: asking for one after the other takes a microsecond more
        values = tuple(self._request.infer(share_outputs=True).values())
        return {name: values[index] for name, index in self._outputs}

    def settings(self) -> dict[str, str]:
        told = {}
        for name in _TOLD:
            try:
                told[name] = _plainly(self._compiled.get_property(name))
            except RuntimeError:  # this device does not tell
                continue
        return told

    def op_times(self) -> list[OpTime]:
        """Return the operators of the last call; only with `PERF_COUNT`.

        Those that the compiler took out or folded into others ran in no time of their own, and are left out.
        """
        places = ", ".join(self.placement)
        return [
            OpTime(
                each.node_name, each.node_type, each.exec_type, places, each.real_time.total_seconds() * 1e6
            )
            for each in self._request.get_profiling_info()
            if each.status.name == "EXECUTED"
        ]

    def close(self) -> None:
        self._views = []
        self._request = self._compiled = None


def _plainly(value: Any) -> str:
    """Return a property without the wrapping of OpenVINO's own types: `<Type: 'bfloat16'>`, `Mode.PERFORMANCE`."""
    text = getattr(value, "name", None) or str(value)
    return str(text).removeprefix("<Type: '").removesuffix("'>")


class _Counters(OpProfiler):
    """OpenVINO counts per request: the last call's times are read after each."""

    def __init__(self, session: OpenVinoSession) -> None:
        self.session, self._opened = session, session
        self._calls: deque[list[OpTime]] = deque(maxlen=_MOST_CALLS)

    def collect(self) -> None:
        self._calls.append(self._opened.op_times())

    def finish(self, calls: int) -> tuple[OpTime, ...]:
        self._opened.close()
        return typical_ops(list(self._calls)[-calls:])
