"""What a worker can be asked, and what it answers: one JSON line each."""

from __future__ import annotations

import msgspec

from edgekit.check.survey import Surveyed
from edgekit.converters.base import Converted
from edgekit.manifest import Option, Recipe
from edgekit.sources.base import SourceOptions
from edgekit.tensors import TensorSpec

__all__ = [
    "Answer",
    "Convert",
    "Describe",
    "Described",
    "FindPeak",
    "MeasureLayers",
    "RunSource",
    "Score",
    "Scored",
    "Survey",
    "Task",
]


class Describe(msgspec.Struct, frozen=True, tag=True):
    """Open a source and tell its inputs and outputs."""

    kind: str
    path: str
    options: SourceOptions = SourceOptions()


class RunSource(msgspec.Struct, frozen=True, tag=True):
    """Run a source in its own framework on `data` (npz by input name); outputs go to `out` (npz).

    With a `state`, the rows are steps of `edgekit.sequences`, and the data has not the state's inputs.
    """

    kind: str
    path: str
    data: str
    out: str
    options: SourceOptions = SourceOptions()
    state: dict[str, str] = {}


class Convert(msgspec.Struct, frozen=True, tag=True):
    """Run one converter (`module:Class`) for several recipes; answers one `Converted` per recipe.

    Attributes:
        calibration: Folder that `edgekit.streams.SampleFolder` reads.
        options: What the user said about the source; for a converter that opens the user's own file.
    """

    converter: str
    kind: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipes: tuple[Recipe, ...]
    calibration: str | None
    out: str
    options: SourceOptions = SourceOptions()


class MeasureLayers(msgspec.Struct, frozen=True, tag=True):
    """Measure how well each quantized layer of an artifact follows the float one, on some samples.

    Attributes:
        converter: The one that made it (`module:Class`).
        path: The float artifact that it was made from, of kind `kind`.
        made: The quantized artifact.
        samples: Folder that `edgekit.streams.SampleFolder` reads.
    """

    converter: str
    kind: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: Recipe
    made: str
    samples: str
    options: SourceOptions = SourceOptions()


class Score(msgspec.Struct, frozen=True, tag=True):
    """Run an artifact one sample at a time, as a device does.

    Attributes:
        data: npz by canonical input name; outputs go to `out` as an npz by output name.
        pairs: Run the first two samples as one batch too, into `pair:<name>`.
        timed_runs: Runs to time on the first sample, after as many to warm up.
        state: As in `RunSource`.
    """

    runtime: str
    artifact: Converted
    threads: int
    extra: dict[str, Option]
    data: str
    out: str
    pairs: bool = False
    timed_runs: int = 0
    state: dict[str, str] = {}


class FindPeak(msgspec.Struct, frozen=True, tag=True):
    """Find the largest absolute float32 value inside a float32 ONNX model, run on `data` one sample at a time."""

    path: str
    data: str


class Scored(msgspec.Struct, frozen=True):
    """What scoring saw: median latency in milliseconds (0 when not timed), runtime, placement."""

    p50_ms: float
    runtime: str
    placement: dict[str, str]
    pairs: bool


class Described(msgspec.Struct, frozen=True):
    """A source's specs, the versions of what reads it, what to know of it, whether it is quantized already, and its files beside the model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()
    quantized: str = ""
    files: tuple[str, ...] = ()


class Survey(msgspec.Struct, frozen=True, tag=True):
    """Read what a source holds, without converting it; `opset` is the newest that the target reads."""

    kind: str
    path: str
    opset: int
    options: SourceOptions = SourceOptions()


Task = Survey | Describe | RunSource | Convert | MeasureLayers | Score | FindPeak


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from a worker: a part of the result, or the end of the task.

    Attributes:
        part: One result; None on the last line.
        error: Set on the last line when the task failed.
        error_code: Exit code of the error's kind.
        peak_mib: The worker's peak resident memory so far.
    """

    part: Converted | None = None
    scored: Scored | None = None
    described: Described | None = None
    surveyed: Surveyed | None = None
    peak: float | None = None
    layers: dict[str, float] | None = None
    done: bool = False
    error: str | None = None
    error_code: int = 0
    peak_mib: float = 0.0
