"""The four models whose artifacts are broken by script, and the workshop that makes, changes and judges artifacts.

A classifier, a detector, a regression of two targets of different scale, and an embedding: all of real digits.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.converters import CONVERTERS, Converted
from edgekit.data import Dataset
from edgekit.devices import load_profile
from edgekit.factory import Factory, Product
from edgekit.gate import Policy, load_limits
from edgekit.judging import Examination
from edgekit.manifest import Recipe
from edgekit.metrics import METRICS
from edgekit.postprocess import read_postprocess
from edgekit.process import Worker, WorkerLimits
from edgekit.recipes import recipe_for
from edgekit.routes import Route
from edgekit.samples import gather_samples
from edgekit.tasks import Convert
from tests.breakages import Change, changed
from tests.corpus import EXAMPLES, ROOT, corpus_folder, made_once, reference_cnn, reference_detector
from tests.graphs import open_graph

__all__ = ["BUDGET_PP", "SUBJECTS", "Subject", "Workshop", "opened_workshop"]

BUDGET_PP = 1.0
#: Canvases that the detector is scored on: each artifact costs two bootstraps of mAP.
_CANVASES = 200
_TRAINING_LIMIT_S = 300
#: From Keras to each artifact.
_ROUTES: Mapping[str, Route] = {
    "onnx-fp32": ("keras-onnx",),
    "onnx-fp16": ("keras-onnx", "onnx-fp16"),
    "onnx-int8": ("keras-onnx", "onnx-int8"),
    "tflite-fp32": ("keras-tflite",),
    "tflite-fp16": ("keras-tflite",),
    "tflite-int8": ("keras-tflite",),
    "tflite-int8-dynamic": ("keras-tflite",),
    "openvino-fp32": ("keras-onnx", "onnx-openvino"),
    "openvino-fp16": ("keras-onnx", "onnx-openvino"),
    "openvino-int8": ("keras-onnx", "onnx-openvino", "openvino-int8"),
}


@dataclass(frozen=True)
class Subject:
    """One model and its data.

    Attributes:
        metric: What the gate scores it by.
        evaluation: With labels.
        steps: Its postprocessing.
    """

    name: str
    task: str
    metric: str
    model: Path
    calibration: Dataset
    evaluation: Dataset
    steps: tuple[dict[str, Any], ...] = ()


def _data(path: Path, rows: int | None = None) -> Dataset:
    with np.load(path) as file:
        labels = file["y"][:rows] if "y" in file else None
        return Dataset({"image": file["image"][:rows]}, labels, (), path.name)


def _cnn() -> Subject:
    files = reference_cnn()
    calibration, evaluation = _data(files.calibration), _data(files.evaluation)
    return Subject("cnn", "classification", "top1", files.model, calibration, evaluation)


def _detector() -> Subject:
    files = reference_detector()
    evaluation = _data(files.evaluation, _CANVASES)
    steps = read_postprocess(files.preprocess)
    return Subject(
        "detector", "detection", "map", files.model, _data(files.calibration), evaluation, tuple(steps)
    )


def _small(name: str, metric: str) -> Subject:
    """Return a network of `tests.broken_nets`; the first call in a checkout trains it."""
    if not EXAMPLES.is_dir():
        pytest.skip("the digits are read by examples/, which is not beside these tests")
    sources = (EXAMPLES / "corpus.py", Path(__file__).with_name("broken_nets.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = corpus_folder() / f"broken-{name}-{digest}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _train(name, unfinished)
    calibration, evaluation = _data(folder / "calibration.npz"), _data(folder / "eval.npz")
    return Subject(name, name, metric, folder / "model.keras", calibration, evaluation)


def _train(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.broken_nets", name, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_TRAINING_LIMIT_S
    )
    if done.returncode:
        pytest.fail(f"training the {name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "cnn": _cnn,
    "detector": _detector,
    "regression": lambda: _small("regression", "mae"),
    "embedding": lambda: _small("embedding", "recall@1"),
}


class Workshop:
    """One subject's answers, and what makes, changes and runs its artifacts.

    Attributes:
        subject: The model.
        examination: What `convert` compares with, the source's answers taken from Keras itself.
    """

    def __init__(self, name: str, scratch: Path) -> None:
        for folder in ("factory", "models", "openvino"):
            (scratch / folder).mkdir(parents=True)
        self.subject = SUBJECTS[name]()
        self.number = list(SUBJECTS).index(name)
        self.models = scratch / "models"
        self.factory = Factory(scratch / "factory", WorkerLimits(), 1)
        self._openvino = Worker(scratch / "openvino", WorkerLimits())
        self._made: dict[tuple[str, str], Converted] = {}

    def close(self) -> None:
        """Stop every worker."""
        self.factory.close()
        self._openvino.close()

    @cached_property
    def source(self) -> Any:
        return self.factory.describe("keras", self.subject.model)

    @cached_property
    def examination(self) -> Examination:
        subject = self.subject
        specs = self.source.inputs
        samples = gather_samples(specs, subject.calibration, subject.evaluation, load_limits().data, 0)

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self.factory.run_source("keras", subject.model, inputs)

        return Examination(
            factory=self.factory,
            profile=load_profile("x86-64"),
            task=subject.task,
            policy=Policy(max_drop_pp=BUDGET_PP),
            parity=samples.parity,
            reference=run(samples.parity),
            golden={name: values[:4] for name, values in subject.evaluation.inputs.items()},
            calibration=subject.calibration,
            evaluation=subject.evaluation,
            evaluated=run(subject.evaluation.inputs),
            metric=METRICS[subject.metric],
            postprocess=subject.steps,
        )

    def calibrated_by(self, calibration: Dataset) -> Examination:
        """Return the examination of an artifact that was calibrated with other data."""
        return replace(self.examination, calibration=calibration)

    def make(self, base: str, target: str, calibration: Dataset) -> Converted:
        """Convert afresh, as `convert` would for a target."""
        form, _, precision = base.partition("-")
        profile = load_profile(target)

        def recipe(along: Route, to: str, of: str) -> Recipe:
            return recipe_for(profile, along, to, of, calibration.n)

        result = self.factory.make(
            "keras",
            self.subject.model,
            self.source,
            {base: recipe(_ROUTES[base], form, precision)},
            lambda along, to: recipe(along, to, "fp32"),
            self.factory.store_calibration(calibration.inputs),
            lambda _what, _done, _all: None,
        )[base]
        assert isinstance(result, Product), result
        return result.converted

    def artifact(self, base: str, target: str) -> Converted:
        """Return the right artifact, made once."""
        if (base, target) not in self._made:
            self._made[base, target] = self.make(base, target, self.subject.calibration)
        return self._made[base, target]

    def change(
        self, number: int, base: str, target: str, changes: tuple[Change, ...]
    ) -> tuple[Converted, str, str]:
        """Return a changed copy of an artifact, and what was done to it.

        Of OpenVINO the float ONNX is changed that it is converted from.
        """
        opened = "onnx-fp32" if base.startswith("openvino") else base
        artifact = self.artifact(opened, target)
        graph = open_graph(Path(artifact.path))
        random = np.random.default_rng([7, self.number, number])
        kind, said = changed(graph, random, changes)
        folder = self.models / f"{number}-{base}"
        folder.mkdir()
        path = folder / f"changed{Path(artifact.path).suffix}"
        graph.save(path)
        artifact = msgspec.structs.replace(artifact, path=str(path), files=(str(path),))
        for converter in _ROUTES[base][1:] if opened != base else ():
            artifact = self._convert_on(artifact, converter, target, base, folder / converter)
        return artifact, kind, said

    def clear(self, number: int, base: str) -> None:
        """Remove a changed copy."""
        shutil.rmtree(self.models / f"{number}-{base}")

    def _convert_on(
        self, artifact: Converted, converter: str, target: str, base: str, out: Path
    ) -> Converted:
        """Convert a changed ONNX to OpenVINO, and that to int8, by EdgeKit's converters in a worker."""
        out.mkdir()
        route = _ROUTES[base][: _ROUTES[base].index(converter) + 1]
        precision = "int8" if converter.endswith("int8") else "fp32"
        samples = self.subject.calibration
        task = Convert(
            converter=CONVERTERS[converter],
            kind="openvino" if precision == "int8" else "onnx",
            path=artifact.path,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            recipes=(recipe_for(load_profile(target), route, "openvino", precision, samples.n),),
            calibration=str(self._stored) if precision == "int8" else None,
            out=str(out),
        )
        (made,) = [answer.part for answer in self._openvino.ask(task) if answer.part is not None]
        return made

    @cached_property
    def _stored(self) -> Path:
        return self.factory.store_calibration(self.subject.calibration.inputs)


@contextmanager
def opened_workshop(name: str, scratch: Path) -> Iterator[Workshop]:
    """Give a subject's workshop; what it made is gone afterwards."""
    workshop = Workshop(name, scratch)
    try:
        yield workshop
    finally:
        workshop.close()
        shutil.rmtree(scratch)
