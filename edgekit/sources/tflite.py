"""TFLite files, in LiteRT as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError, InvalidFileError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.sources.signatures import choose_signature
from edgekit.sources.tflite_graph import TfliteGraph, precision_of, read_graph
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TfliteSource", "interface", "notes_on", "open_interpreter"]

_DTYPES = {"object_": "bytes", "bytes_": "bytes", "bool_": "bool"}


class TfliteSource(Source):
    """A TFLite model, run with XNNPACK, which LiteRT takes by itself.

    The plain kernels are no better judge: on a float model with a long sum inside and a logarithm behind it they
    differ from TensorFlow, ONNX Runtime and XNNPACK by 1.4e-3, where those three agree within 1e-6.

    Its names are its signature's; a file without one has its tensors'.
    """

    packages = ("ai-edge-litert",)
    environment = "litert"
    heeds = ("signature", "requantize")

    def __init__(self, path: Path, options: SourceOptions) -> None:
        graph = read_graph(path)
        _refuse_custom(path.name, graph)  # first: LiteRT names one of them, and no reason
        self._interpreter = open_interpreter(path)
        self.quantized = precision_of(graph)
        self.notes = notes_on(graph)
        subgraph, inputs, outputs = interface(graph, options.signature, path.name)
        if subgraph:
            raise ConversionError(
                f"{path.name}: the signature is not of the file's main graph",
                hint="Convert the model again with this signature alone.",
            )
        self._shapes: dict[str, tuple[int, ...]] = {}
        details = {d["index"]: d for d in self._details()}
        self._numbers = inputs | outputs
        self.inputs = tuple(_spec(name, details[number]) for name, number in inputs.items())
        self.outputs = tuple(_spec(name, details[number]) for name, number in outputs.items())

    def _details(self) -> list[dict[str, Any]]:
        return [*self._interpreter.get_input_details(), *self._interpreter.get_output_details()]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's answers, one sample at a time where its shapes take no more."""
        interpreter = self._interpreter
        shapes = {name: array.shape for name, array in feed.items()}
        if shapes != self._shapes:
            for spec in self.inputs:
                interpreter.resize_tensor_input(self._numbers[spec.name], shapes[spec.name])
            interpreter.allocate_tensors()
            self._shapes = shapes
        for spec in self.inputs:
            interpreter.set_tensor(self._numbers[spec.name], feed[spec.name])
        interpreter.invoke()
        return {spec.name: interpreter.get_tensor(self._numbers[spec.name]) for spec in self.outputs}


def open_interpreter(path: Path, *, every_tensor: bool = False) -> Any:
    """Open a TFLite file in LiteRT.

    Args:
        path: Of the file.
        every_tensor: Keep the values of tensors in the middle, to be read after a run: by the plain kernels,
            as a delegate has no such tensors.

    Raises:
        InvalidFileError: LiteRT cannot read it.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if path.read_bytes()[4:8] != b"TFL3":
        raise InvalidFileError(f"{path.name} is not a TFLite file", expected="TFL3 as bytes 4 to 7")
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(
            model_path=str(path),
            experimental_op_resolver_type=plain if every_tensor else OpResolverType.AUTO,
            experimental_preserve_all_tensors=every_tensor,
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InvalidFileError(f"LiteRT cannot read {path.name}: {first_line(error)}") from error
    return interpreter


def interface(graph: TfliteGraph, signature: str, what: str) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return which subgraph is the model, and its inputs' and outputs' tensors by name.

    Args:
        graph: The file.
        signature: The one asked for; empty for no wish.
        what: The file's name, for an error.

    Raises:
        UsageError: The signature cannot be chosen.
        InvalidFileError: The file holds no graph.
    """
    if not graph.subgraphs:
        raise InvalidFileError(f"{what} holds no graph")
    if graph.signatures or signature:
        return graph.signatures[choose_signature(sorted(graph.signatures), signature, what)]
    main = graph.subgraphs[0]
    inputs, outputs = ({main.tensors[i].name: i for i in side} for side in (main.inputs, main.outputs))
    if len(inputs) != len(main.inputs) or len(outputs) != len(main.outputs):
        raise ConversionError(
            f"{what}: inputs or outputs share a name", hint="Convert the model again, with a signature."
        )
    return 0, inputs, outputs


def notes_on(graph: TfliteGraph) -> tuple[str, ...]:
    """Return what a user should know of a TFLite source."""
    quantized = precision_of(graph)
    said = [f"the source is quantized already: {quantized}"] if quantized else []
    if graph.has_state:
        said.append(
            "the source keeps state between calls, in resource variables: answers depend on earlier ones"
        )
    return tuple(said)


def _refuse_custom(name: str, graph: TfliteGraph) -> None:
    if graph.custom:
        flex = [kind.removeprefix("Flex") for kind in graph.custom if kind.startswith("Flex")]
        raise ConversionError(
            f"{name} needs operators that TFLite does not have: {', '.join(graph.custom)}",
            hint=f"Convert the model again without TensorFlow's own {', '.join(flex)}." if flex else None,
        )


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    import numpy as np

    dtype = np.dtype(detail["dtype"]).name
    signature = detail["shape_signature"]
    shape = signature if len(signature) else detail["shape"]
    return TensorSpec(
        name=name,
        dtype=_DTYPES.get(dtype, dtype),
        shape=tuple(int(size) for size in shape),
        layout="NHWC" if len(shape) == 4 else "",
    )
