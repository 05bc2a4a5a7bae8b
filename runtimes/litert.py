"""LiteRT, the runtime of `.tflite` files, by whichever library carries it here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.errors import InvalidFileError, UnavailableError, UsageError
from edgekit.runtimes.base import ModelFiles, Runtime, Session, SessionOptions, bind, pick_providers

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LIBRARIES", "LiteRT", "delegated"]

#: Distribution to the module that has `Interpreter`, best first. TensorFlow is last: it is 700 MB.
LIBRARIES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}

_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every TFLite file


class _Library(msgspec.Struct, frozen=True):
    distribution: str
    module: Any


def _library() -> _Library:
    """Import the first library that works here."""
    faults = {}
    for distribution, module in LIBRARIES.items():
        found = _try_import(module)
        if not isinstance(found, str):
            return _Library(distribution, found)
        faults[distribution] = found
    broken = [f"{distribution}: {fault}" for distribution, fault in faults.items() if fault]
    raise UnavailableError(
        "the runtime litert is not installed" if not broken else "the runtime litert does not import",
        got="; ".join(broken) or None,
        hint="Run: pip install 'edgekit-deploy[tflite]'.",
    )


def _version(library: _Library) -> str:
    """Return what the package or the module says of itself, else what pip noted down, else `unknown`."""
    package = import_module(library.module.__name__.partition(".")[0])
    for module in (package, library.module):
        version = getattr(module, "__version__", None)
        if isinstance(version, str):
            return version
    from importlib import metadata  # slower to import than LiteRT itself

    try:
        return metadata.version(library.distribution)
    except metadata.PackageNotFoundError:  # a vendor's build under another distribution name
        return "unknown"


def _try_import(name: str) -> ModuleType | str:
    """Return the module, or why it does not import; an empty reason when it is simply not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name is not None and name.startswith(error.name)
        return "" if absent else str(error)
    except (ImportError, AttributeError, OSError) as error:
        # tflite-runtime was built for numpy 1 and fails like this beside numpy 2
        return str(error) or type(error).__name__


class LiteRT(Runtime):
    """Runs TFLite artifacts on the CPU, with XNNPACK for the operators it knows.

    Options: `xnnpack` (default true) may be set to false, to compare with the reference kernels.
    """

    name = "litert"
    formats = ("tflite",)
    extra = "tflite"
    packages = tuple(module.partition(".")[0] for module in LIBRARIES.values())
    no_op_times = "its Python interpreter has no profiler (LiteRT's benchmark_model has one: --enable_op_profiling=true)"

    def version(self) -> str:  # noqa: D102  the contract is the base class's
        library = _library()
        return f"{library.distribution} {_version(library)}"

    def providers(self) -> tuple[str, ...]:  # noqa: D102  the contract is the base class's
        _library()
        return ("CPU",)

    def load(self, files: ModelFiles, options: SessionOptions) -> Session:  # noqa: D102  the contract is the base class's
        library = _library()
        wanted = options.providers or ("CPU",)
        pick_providers(self.name, wanted, self.providers(), allow_fallback=options.allow_fallback)
        _check_identifier(files)
        settings = _settings(library, options)

        def open_interpreter() -> tuple[Any, float]:
            return _open(library, files, settings)

        return LiteRTSession(open_interpreter, files, settings)


def _open(library: _Library, files: ModelFiles, settings: Mapping[str, Any]) -> tuple[Any, float]:
    """Return an interpreter, and how long it took to delegate and allocate, in milliseconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow's interpreter tells that it will go away
            interpreter = library.module.Interpreter(model_path=str(files.path), **settings)
        begin = perf_counter()
        interpreter.allocate_tensors()  # delegates too
        compile_ms = 1e3 * (perf_counter() - begin)
    except (ValueError, RuntimeError) as error:
        raise InvalidFileError(
            f"{files.path} is not a model that {library.distribution} can read: {error}"
        ) from error
    return interpreter, compile_ms


def _check_identifier(files: ModelFiles) -> None:
    try:
        with files.path.open("rb") as stream:
            head = stream.read(8)
    except FileNotFoundError as error:
        raise InvalidFileError(f"{files.path} is missing") from error
    if head[4:8] != _IDENTIFIER:
        raise InvalidFileError(f"{files.path} is not a TFLite file", got=head[4:8], expected=_IDENTIFIER)


def _settings(library: _Library, options: SessionOptions) -> dict[str, Any]:
    extra = dict(options.extra)
    xnnpack = extra.pop("xnnpack", True)
    if extra:
        raise UsageError(f"litert has no option {min(extra)!r}", expected="xnnpack")
    settings: dict[str, Any] = {"num_threads": options.threads or None}
    if not xnnpack:
        plain = library.module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        settings["experimental_op_resolver_type"] = plain
    return settings


class LiteRTSession(Session):
    """One interpreter. Outputs are copied out: the library refuses to run while a view of a tensor lives."""

    fresh_outputs = True

    def __init__(
        self,
        open_interpreter: Callable[[], tuple[Any, float]],
        files: ModelFiles,
        settings: Mapping[str, Any],
    ) -> None:
        self.inputs, self.outputs = files.inputs, files.outputs
        interpreter: Any
        interpreter, self.compile_ms = open_interpreter()
        self._settings = settings
        signed_inputs, signed_outputs = _signature(interpreter)
        inputs = _named(interpreter.get_input_details(), signed_inputs)
        outputs = _named(interpreter.get_output_details(), signed_outputs)
        fed = bind(
            files.inputs,
            files.input_names,
            _dtypes(inputs),
            files,
            count=len(interpreter.get_input_details()),
        )
        taken = bind(files.outputs, files.output_names, _dtypes(outputs), files)
        self._inputs = [(name, int(inputs[own]["index"])) for name, own in fed]
        self._outputs = [(name, int(outputs[own]["index"])) for name, own in taken]
        self._shapes = self._fresh_shapes = {
            d["index"]: tuple(d["shape"].tolist()) for d in interpreter.get_input_details()
        }
        self._open, self._interpreter = open_interpreter, interpreter
        self.placement = _placement(interpreter)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        interpreter = self._interpreter
        for name, index in self._inputs:
            interpreter.set_tensor(index, feed[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._outputs}

    def _reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        wanted = {index: shapes[name] for name, index in self._inputs}
        if wanted == self._shapes:
            return
        try:
            self._resize(wanted)
        except (ValueError, RuntimeError) as error:
            # tflite-runtime 2.14 dies of a signal when it is used again after this
            (self._interpreter, _), self._shapes = self._open(), self._fresh_shapes
            raise UsageError(
                f"the TFLite model does not take these shapes ({error})", got=dict(shapes)
            ) from error
        self._shapes = wanted

    def _resize(self, shapes: Mapping[int, tuple[int, ...]]) -> None:
        for index, shape in shapes.items():
            self._interpreter.resize_tensor_input(index, shape)
        self._interpreter.allocate_tensors()

    def settings(self) -> dict[str, str]:
        threads = self._settings["num_threads"]
        plain = "experimental_op_resolver_type" in self._settings
        return {"num_threads": str(threads or "default"), "xnnpack": "off" if plain else "on"}

    def close(self) -> None:
        self._interpreter = None


def _signature(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensor details of the model's signature by its names; empty where it has none."""
    keys = list(interpreter.get_signature_list())
    if not keys:
        return {}, {}
    key = "serving_default" if "serving_default" in keys else keys[0]
    runner = interpreter.get_signature_runner(key)
    return runner.get_input_details(), runner.get_output_details()


def _named(tensors: Sequence[Mapping[str, Any]], signed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of a model's inputs or outputs by the signature's names and by the tensors' own."""
    named = {detail["name"]: detail for detail in tensors}
    # a signature may belong to another subgraph, whose indices mean nothing here: go by the tensor's name
    return named | {name: named[d["name"]] for name, d in signed.items() if d["name"] in named}


def _dtypes(details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    import numpy as np

    return {name: np.dtype(detail["dtype"]).name for name, detail in details.items()}


def _placement(interpreter: Any) -> dict[str, str]:
    try:
        operators = interpreter._get_ops_details()  # noqa: SLF001
    except AttributeError:  # no public way to ask; a build without this one still runs
        return {"CPU": "all nodes, XNNPACK's share unknown"}
    return delegated([(d["op_name"], list(d["inputs"]), list(d["outputs"])) for d in operators])


def delegated(operators: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> dict[str, str]:
    """Count the nodes that a delegate took over.

    The interpreter lists the nodes of the file and, after them, one `DELEGATE` node for each run of nodes
    that was replaced; those are found by walking from a delegate's outputs back to its inputs.

    Args:
        operators: (name, input tensors, output tensors) of every node.

    Returns:
        `{"XNNPACK": "5 of 7 nodes", "CPU": "2 of 7 nodes"}`, without the empty rows.
    """
    nodes = [(ins, outs) for name, ins, outs in operators if name != "DELEGATE"]
    producer = {tensor: i for i, (_, outs) in enumerate(nodes) for tensor in outs}
    taken: set[int] = set()
    for name, ins, outs in operators:
        pending = list(outs) if name == "DELEGATE" else []
        while pending:
            tensor = pending.pop()
            node = producer.get(tensor)
            if tensor not in ins and node is not None and node not in taken:
                taken.add(node)
                pending += nodes[node][0]
    counts = {"XNNPACK": len(taken), "CPU": len(nodes) - len(taken)}
    return {place: f"{count} of {len(nodes)} nodes" for place, count in counts.items() if count}
