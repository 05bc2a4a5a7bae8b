"""Converters that are wrong, slow or deadly, for the worker to import by name; everything else is real."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.converters.base import Converted, Converter, SourceModel
from edgekit.converters.keras_onnx import KerasToOnnx
from edgekit.converters.keras_tflite import KerasToTflite
from edgekit.converters.onnx_fp16 import OnnxToFp16
from edgekit.converters.onnx_fp32 import OnnxToOnnx
from edgekit.converters.onnx_int8 import OnnxToInt8
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples

Calibration = Samples


def _swap_classes(path: str, first: int, second: int) -> None:
    """Exchange two classes in the answers of an ONNX model."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    name = graph.output[0].name
    for node in graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "right"
    order = np.arange(10)
    order[[first, second]] = order[[second, first]]
    graph.initializer.append(numpy_helper.from_array(order, "order"))
    graph.node.append(helper.make_node("Gather", ["right", "order"], [name], axis=1))
    onnx.save(model, path)


class SwappedClassesOnnx(KerasToOnnx):
    """Right but for the order of two classes."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        for made in super().convert(source, recipes, calibration, out):
            _swap_classes(made.path, 3, 8)
            yield made


class SwappedClassesFromOnnx(OnnxToOnnx):
    """The same for a source that is ONNX."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        for made in super().convert(source, recipes, calibration, out):
            _swap_classes(made.path, 3, 8)
            yield made


class ConstantTflite(KerasToTflite):
    """Answers the same whatever goes in: no class is likelier than another."""

    def _convert_one(self, saved_model: Path, recipe: Recipe, calibration: Samples) -> bytes:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(saved_model))  # a name of its own keeps its variables alive
        signature = loaded.signatures["serving_default"]
        (name, spec), *_ = signature.structured_input_signature[1].items()

        def answer(image: object) -> dict[str, object]:
            shares = signature(**{name: image})["output_0"]
            return {"output_0": tf.zeros_like(shares) + 0.1}

        module = tf.Module()
        made = tf.function(answer, input_signature=[tf.TensorSpec(spec.shape, spec.dtype, name=name)])
        module.loaded, module.answer = loaded, made
        saved = str(saved_model) + f"-constant-{recipe.precision}"
        tf.saved_model.save(module, saved, signatures={"serving_default": made.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
        model: bytes = converter.convert()
        return model


class NegatedInt8(OnnxToInt8):
    """One score, turned upside down: every class is the other one."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        import numpy as np
        import onnx
        from onnx import helper, numpy_helper

        for made in super().convert(source, recipes, calibration, out):
            model = onnx.load(made.path)
            name = model.graph.output[0].name
            for node in model.graph.node:
                for i, output in enumerate(node.output):
                    if output == name:
                        node.output[i] = "right"
            model.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
            model.graph.node.append(helper.make_node("Sub", ["one", "right"], [name]))
            onnx.save(model, made.path)
            yield made


class FailingOnnx(OnnxToOnnx):
    """Fails at every recipe."""

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Calibration,
        out: Path,
    ) -> Iterator[Converted]:
        for recipe in recipes:
            raise ConversionError(f"no luck with {recipe.precision}")
        yield from ()  # a generator, as every converter is


class KilledAtFp16(Converter):
    """Makes float32 and float16 in one run; the system kills the worker in the middle of the second."""

    sources = ("onnx-source",)
    format = "onnx"
    precisions = ("fp32", "fp16")
    environment = "onnx"
    needs = ("onnx",)
    tools = ("onnx",)

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        if recipe.precision == "fp16":
            (folder / "model.onnx").write_bytes(b"half a mod")
            os.kill(os.getpid(), signal.SIGKILL)
        return OnnxToOnnx().make(source, recipe, calibration, folder)


class SleepingFp16(OnnxToFp16):
    """Never comes back; notes each start in the file that `$EDGEKIT_TEST_STARTS` names."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        with open(os.environ.get("EDGEKIT_TEST_STARTS", os.devnull), "a", encoding="ascii") as file:  # noqa: PTH123  # to append
            file.write("x")
        time.sleep(600)
        return super().convert(source, recipes, calibration, out)


class GreedyFp16(OnnxToFp16):
    """Takes memory until somebody stops it."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        hoard = []
        for _ in range(40):
            hoard.append(bytearray(os.urandom(1 << 20)) * 100)
            time.sleep(0.02)
        return super().convert(source, recipes, calibration, out)


class LazyFp16(OnnxToFp16):
    """Comes back with nothing."""

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Calibration,
        out: Path,
    ) -> Iterator[Converted]:
        yield from ()


class AsleepOnnx(OnnxToOnnx):
    """Says by a file that it is at work, and sleeps."""

    def convert(
        self, source: SourceModel, recipes: Sequence[Recipe], calibration: Calibration, out: Path
    ) -> Iterator[Converted]:
        Path(os.environ["EDGEKIT_TEST_FLAG"]).touch()
        time.sleep(600)
        return super().convert(source, recipes, calibration, out)


class DyingLayers(OnnxToInt8):
    """Makes what it should; measuring its layers takes the worker with it."""

    def layers(self, source: SourceModel, recipe: Recipe, made: Path, samples: Samples) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


class SimplifiedOnnx(OnnxToOnnx):
    """What simplifiers have done: a Slice that keeps the shape is taken for one that does nothing."""

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        import onnx

        path = super().make(source, recipe, calibration, folder)
        model = onnx.load(str(path))
        for node in model.graph.node:
            if node.op_type == "Slice":
                node.op_type = "Identity"
                del node.input[1:]
        onnx.save(model, str(path))
        return path
