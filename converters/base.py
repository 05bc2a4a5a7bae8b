"""The converter contract: one source in, one artifact per recipe out, inside a worker process."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import msgspec

from edgekit.errors import ConversionError, EdgeKitError
from edgekit.manifest import Option, Recipe
from edgekit.sources.base import SourceOptions
from edgekit.streams import Samples
from edgekit.tensors import TensorSpec

__all__ = ["Converted", "Converter", "Rung", "SourceModel", "frozen"]

_CALIBRATED = ("int8", "int16x8")


@dataclass(frozen=True)
class SourceModel:
    """What a converter starts from: the user's model, or an artifact of an earlier converter.

    Attributes:
        kind: `keras`, `savedmodel`, or a format.
        path: File or folder.
        inputs: Canonical specs.
        outputs: Canonical specs.
        options: What the user said about how the model is read.
    """

    kind: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: SourceOptions = field(default_factory=SourceOptions)


class Rung(msgspec.Struct, frozen=True):
    """One way to quantize that a converter offers, as data: a step of the ladder to the accuracy budget.

    Attributes:
        calibration: How ranges are taken from the calibration data: `minmax`, `percentile`, `mse`, ….
        options: What the recipe's options hold besides, such as `bias_correction`.
        precisions: Those that it is for; empty for all that are calibrated.
    """

    calibration: str
    options: dict[str, Option] = {}
    precisions: tuple[str, ...] = ()


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

    A converter says what it is by its class attributes and makes one artifact in `make`; the contract around it
    (folders, order, versions, the name in an error) is held here.

    Attributes:
        sources: Kinds and formats that it reads.
        format: Format that it writes.
        precisions: Precisions that it makes.
        environment: Converters of one environment share a worker process.
        needs: Modules that must be importable.
        tools: Distributions whose versions stand in the artifact.
        extra: The extra of `edgekit-deploy` that provides them.
        rungs: Its ways to make a calibrated precision, from cheap to careful; the first is what is tried first.
        careful: Precision without calibration to the options to try in turn where the plain recipe loses too much.
        choices: Options that `make` heeds beside those of its rungs and of the target's profile.
        keeps_float: Whether it honours `Recipe.float_layers`, and `layers` names what may stand there.
    """

    sources: ClassVar[tuple[str, ...]]
    format: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    environment: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    tools: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = "convert"
    rungs: ClassVar[tuple[Rung, ...]] = (Rung("minmax"),)
    careful: ClassVar[Mapping[str, Sequence[Mapping[str, Option]]]] = {}
    choices: ClassVar[tuple[str, ...]] = ()
    keeps_float: ClassVar[bool] = False

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Samples,
        out: Path,
    ) -> Iterator[Converted]:
        """Make one artifact per recipe, in order, each in a folder `out/<format>-<precision>`.

        Args:
            source: What to convert.
            recipes: What to make.
            calibration: Samples by canonical input name; none where no recipe needs them.
            out: An existing folder.

        Raises:
            ConversionError: The source cannot be converted; says what failed, and why.
        """
        for recipe in recipes:
            name = f"{self.format}-{recipe.precision}"
            if recipe.precision in _CALIBRATED and not len(calibration):
                raise ConversionError(f"{name} needs calibration data", hint="Give --calibration.")
            folder = out / name
            folder.mkdir()
            try:
                path = self.make(source, recipe, calibration, folder)
            except EdgeKitError:
                raise
            except Exception as error:  # frameworks raise what they like
                raise ConversionError(f"{self.tools[0]} cannot make {name}: {self.reason(error)}") from error
            yield Converted(
                path=str(path),
                files=tuple(sorted(str(file) for file in folder.iterdir())),
                inputs=self.inputs(source, recipe),
                outputs=source.outputs,
                input_names=dict(self.input_names(source, path)),
                output_names=dict(self.output_names(source, path)),
                tools={tool: version(tool) for tool in self.tools},
            )

    @abc.abstractmethod
    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        """Write one artifact's files into `folder`, and nothing else; return the one that a runtime opens.

        What it raises is told under the artifact's name; an `EdgeKitError` is told as it is.

        Args:
            source: What to convert.
            recipe: What to make.
            calibration: Samples by canonical input name; empty where the recipe needs none.
            folder: An empty folder.
        """

    def inputs(self, source: SourceModel, recipe: Recipe) -> tuple[TensorSpec, ...]:
        """Return the inputs as the artifact takes them: the source's, `frozen` by a recipe that is `static`."""
        return frozen(source.inputs) if recipe.options.get("static") else source.inputs

    def input_names(self, source: SourceModel, path: Path) -> Mapping[str, str]:  # noqa: ARG002
        """Return canonical input names to the artifact's own, where they differ."""
        return {}

    def output_names(self, source: SourceModel, path: Path) -> Mapping[str, str]:  # noqa: ARG002
        """Return canonical output names to the artifact's own, where they differ."""
        return {}

    def layers(self, source: SourceModel, recipe: Recipe, made: Path, samples: Samples) -> dict[str, float]:  # noqa: ARG002
        """Return how well each quantized layer follows the float one, worst first, for the ladder and the report.

        Args:
            source: The float artifact that `make` started from.
            recipe: As given to `make`.
            made: What `make` returned.
            samples: A few inputs.

        Returns:
            Layer, by a name that `Recipe.float_layers` takes, to its signal-to-quantization-noise ratio in dB:
            10 log10(mean(x²) / mean((x − x̂)²)), x the layer's float output and x̂ its quantized one.
        """
        return {}

    def reason(self, error: Exception) -> str:
        """Return the part of a framework's error that tells why."""
        return str(error)[:300] or type(error).__name__


def frozen(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return inputs for a target that takes fixed sizes only: a free batch becomes one.

    Raises:
        ConversionError: An input has free sizes beyond the batch.
    """
    narrowed = tuple(
        msgspec.structs.replace(spec, shape=(1, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape)
        for spec in inputs
    )
    for spec in narrowed:
        if -1 in spec.shape:
            raise ConversionError(
                f"the target takes fixed shapes only, and input {spec.name!r} has free sizes beyond the batch",
                got=list(spec.shape),
                hint="Export the model with fixed sizes; of an ONNX file, --input-shape fixes them.",
            )
    return narrowed
