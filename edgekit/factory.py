"""The factory: worker processes, one per environment, and what they are asked to do for one conversion."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.arrays import load_own, save_own
from edgekit.check.survey import Surveyed
from edgekit.converters import CONVERTERS, Converted, get_converter
from edgekit.errors import ConversionError, EdgeKitError, MachineError
from edgekit.manifest import Option, Recipe
from edgekit.process import Interpreter, Worker, WorkerDiedError, WorkerLimits
from edgekit.routes import Route, start_of
from edgekit.sources import SourceOptions, source_class
from edgekit.streams import store_samples
from edgekit.tasks import (
    Answer,
    Convert,
    Describe,
    Described,
    FindPeak,
    MeasureLayers,
    RunSource,
    Score,
    Scored,
    Survey,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

__all__ = ["Factory", "Product"]

#: The environment whose worker runs artifacts.
_SCORE = "score"


@dataclass(frozen=True)
class Product:
    """What a converter made, and the peak memory of its worker in MiB."""

    converted: Converted
    peak_mib: float


@dataclass
class _Step:
    """One converter run on one source: everything of that source it is asked for.

    Attributes:
        parent: Route of the artifact that it starts from; empty for the user's model.
        recipes: By precision.
    """

    converter: str
    parent: Route
    recipes: dict[str, Recipe]


Result = Product | EdgeKitError


class Factory:
    """Runs tasks in workers. A worker that dies is replaced; what it left undone is tried once more alone.

    Args:
        scratch: A folder of its own, removed by the caller.
        limits: Of each task.
        jobs: Workers that may be busy at once.
        options: What the user said about the source.
        prover: What runs the artifacts when they are judged; None for this Python.
    """

    def __init__(
        self,
        scratch: Path,
        limits: WorkerLimits,
        jobs: int,
        options: SourceOptions | None = None,
        prover: Interpreter | None = None,
    ) -> None:
        self._scratch, self._limits, self._jobs = scratch, limits, max(1, jobs)
        self._options = options or SourceOptions()
        self._prover = prover
        self._floats: dict[Route, Result] = {}
        self._numbers = count()
        self._workers: dict[str, Worker] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._float_onnx: str | None = None
        self._stopped = False

    def close(self) -> None:
        """Stop every worker."""
        for worker in self._workers.values():
            worker.close()

    def describe(self, kind: str, model: Path) -> Described:
        """Return the source's specs."""
        answers = self._ask(
            source_class(kind).environment, Describe(kind, str(model.absolute()), self._options)
        )
        described = next((a.described for a in answers if a.described is not None), None)
        assert described is not None
        return described

    def survey(self, kind: str, model: Path, opset: int) -> Surveyed:
        """Return what the source holds; `opset` is the newest that the target reads."""
        task = Survey(kind, str(model.absolute()), opset, self._options)
        answers = self._ask(source_class(kind).environment, task)
        return next(a.surveyed for a in answers if a.surveyed is not None)

    def run_source(
        self,
        kind: str,
        model: Path,
        inputs: Mapping[str, np.ndarray],
        state: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the source's outputs, in its own framework, on arrays [N, …] by canonical name.

        With a `state`, the rows are steps as `edgekit.sequences` has them.
        """
        out = self._path("outputs.npz")
        task = RunSource(
            kind, str(model.absolute()), self._store(inputs), str(out), self._options, dict(state or {})
        )
        self._ask(source_class(kind).environment, task)
        return load_own(out)

    def score(
        self,
        artifact: Converted,
        runtime: str,
        threads: int,
        extra: Mapping[str, Option],
        inputs: Mapping[str, np.ndarray],
        *,
        pairs: bool = False,
        timed_runs: int = 0,
        state: Mapping[str, str] | None = None,
    ) -> tuple[dict[str, np.ndarray], Scored]:
        """Run an artifact one sample at a time; return its outputs [N, …] by canonical name, and the score."""
        out = self._path("scores.npz")
        task = Score(
            runtime,
            artifact,
            threads,
            dict(extra),
            self._store(inputs),
            str(out),
            pairs,
            timed_runs,
            dict(state or {}),
        )
        answers = self._ask(_SCORE, task)
        scored = next(a.scored for a in answers if a.scored is not None)
        return load_own(out), scored

    def float_peak(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        """Return the largest absolute value inside the float32 ONNX that was made; None when none was.

        Args:
            inputs: Arrays [N, …] by canonical name.
        """
        if self._float_onnx is None:
            return None
        answers = self._ask("onnx", FindPeak(self._float_onnx, self._store(inputs)))
        return next(a.peak for a in answers if a.peak is not None)

    def make(
        self,
        kind: str,
        model: Path,
        source: Described,
        recipes: Mapping[str, Recipe],
        float_recipe: Callable[[Route, str], Recipe],
        calibration: Path | None,
        progress: Callable[[str, int, int], None],
    ) -> dict[str, Result]:
        """Make artifacts along their routes; each converter runs once per source it starts from.

        What was made in the middle of a route is kept, and serves the next call too.

        Args:
            kind: The source's kind.
            model: The source.
            source: Its specs.
            recipes: By artifact name; each holds its whole route.
            float_recipe: Gives the recipe of a float32 artifact in the middle of a route.
            calibration: What `store_calibration` returned.
            progress: Told after each converter.

        Returns:
            By artifact name, what was made, or the error that stands in its row.
        """
        steps = _plan_steps(recipes.values(), float_recipe)
        stored = str(calibration) if calibration is not None else None
        done: dict[tuple[Route, str], Future[Result]] = {
            (route, "fp32"): _finished(result) for route, result in self._floats.items()
        }
        user_model = Converted(str(model.absolute()), (str(model.absolute()),), source.inputs, source.outputs)

        def run(step: _Step) -> dict[str, Result]:
            origin = done[step.parent, "fp32"].result() if step.parent else Product(user_model, 0.0)
            if isinstance(origin, EdgeKitError):
                error = ConversionError(f"its source {step.parent[-1]} failed: {origin}")
                return dict.fromkeys(step.recipes, error)
            started_from = "" if step.parent else kind
            return self._run_step(step, origin.converted, started_from, stored)

        with self._pool() as pool:
            for step in steps:
                route = (*step.parent, step.converter)
                if route in self._floats:
                    step.recipes.pop("fp32", None)
                if step.recipes:
                    whole = pool.submit(run, step)
                    for precision in step.recipes:
                        done[route, precision] = _part(whole, precision)
            for i, ((route, precision), future) in enumerate(done.items()):
                progress(f"converting: {route[-1]} {precision}", i, len(done))
                result = future.result()
                _raise_machine_error(result)
                if precision == "fp32":
                    self._floats[route] = result
                if (
                    precision == "fp32"
                    and isinstance(result, Product)
                    and get_converter(route[-1]).format == "onnx"
                ):
                    self._float_onnx = result.converted.path
        return {name: done[recipe.route, recipe.precision].result() for name, recipe in recipes.items()}

    def new_path(self, name: str) -> Path:
        """Return a path in the scratch folder where nothing is yet."""
        return self._path(name)

    def store_calibration(self, arrays: Mapping[str, np.ndarray], *, whole: bool = False) -> Path:
        """Write calibration data, arrays [N, …] by canonical name, for the converters to read by the sample.

        Args:
            arrays: The data.
            whole: A call takes one sample as a whole (`edgekit.tensors.takes_whole`).
        """
        return store_samples(self._path("calibration"), arrays, whole=whole)

    def measure_layers(
        self, kind: str, model: Path, source: Described, recipe: Recipe, made: Converted, samples: Path
    ) -> dict[str, float]:
        """Return how well each quantized layer of an artifact follows the float one, in dB; see `Converter.layers`.

        Args:
            kind: The source's kind.
            model: The source.
            source: Its specs.
            recipe: The artifact's.
            made: The artifact.
            samples: What `store_calibration` returned.
        """
        converter = get_converter(recipe.route[-1])
        origin = self._floats.get(recipe.route[:-1])
        started = isinstance(origin, Product)
        path = origin.converted.path if isinstance(origin, Product) else str(model.absolute())
        task = MeasureLayers(
            converter=CONVERTERS[recipe.route[-1]],
            kind=converter.sources[0] if started else start_of(kind),
            path=path,
            inputs=source.inputs,
            outputs=source.outputs,
            recipe=recipe,
            made=made.path,
            samples=str(samples),
            options=self._options,
        )
        answers = self._ask(converter.environment, task)
        return next(a.layers for a in answers if a.layers is not None)

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """Give a pool; an error or Ctrl-C stops what its threads wait for, so that nothing is waited for."""
        pool = ThreadPoolExecutor(self._jobs)
        try:
            yield pool
        except BaseException:
            with self._guard:
                for worker in self._workers.values():
                    worker.stop()
                self._stopped = True
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_step(self, step: _Step, origin: Converted, kind: str, stored: str | None) -> dict[str, Result]:
        """Run one converter for all its recipes.

        One that fails, or takes longer than the limit, leaves its error and the rest go on; after another death of
        the worker, each unfinished one is tried once more on its own.
        """
        results: dict[str, Result] = {}
        waiting = list(step.recipes)
        alone = False
        while waiting:
            batch = waiting[:1] if alone else waiting
            try:
                self._run_recipes(step, batch, origin, kind, stored, results)
            except EdgeKitError as error:
                died = isinstance(error, WorkerDiedError) and not error.timed_out
                if alone or not died:
                    results[next(p for p in batch if p not in results)] = error
                alone = alone or died
            waiting = [p for p in waiting if p not in results]
        return results

    def _run_recipes(
        self,
        step: _Step,
        precisions: list[str],
        origin: Converted,
        kind: str,
        stored: str | None,
        results: dict[str, Result],
    ) -> None:
        converter = get_converter(step.converter)
        task = Convert(
            converter=CONVERTERS[step.converter],
            kind=start_of(kind) if kind else converter.sources[0],
            path=origin.path,
            inputs=origin.inputs,
            outputs=origin.outputs,
            recipes=tuple(step.recipes[p] for p in precisions),
            calibration=stored,
            out=str(self._path("made")),
            options=self._options,
        )
        Path(task.out).mkdir()
        with self._worker(converter.environment) as worker:
            waiting = iter(precisions)
            for answer in worker.ask(task):
                if answer.part is not None:
                    results[next(waiting)] = Product(answer.part, worker.peak_mib)
        left = next(waiting, None)
        if left is not None:
            raise ConversionError(f"converter {step.converter} made no {converter.format}-{left}")

    def _ask(self, environment: str, task: Task) -> list[Answer]:
        with self._worker(environment) as worker:
            return list(worker.ask(task))

    @contextmanager
    def _worker(self, environment: str) -> Iterator[Worker]:
        with self._guard:
            if self._stopped:
                raise WorkerDiedError("the worker was stopped")
            if environment not in self._workers:
                folder = self._scratch / environment
                folder.mkdir()
                interpreter = self._prover if environment == _SCORE else None
                self._workers[environment] = Worker(folder, self._limits, interpreter)
                self._locks[environment] = threading.Lock()
        with self._locks[environment]:
            yield self._workers[environment]

    def _path(self, name: str) -> Path:
        return self._scratch / f"{next(self._numbers)}-{name}"

    def _store(self, arrays: Mapping[str, np.ndarray]) -> str:
        path = self._path("inputs.npz")
        save_own(path, arrays)
        return str(path)


def _plan_steps(recipes: Iterable[Recipe], float_recipe: Callable[[Route, str], Recipe]) -> list[_Step]:
    """Return the converter runs that make `recipes`, every one behind those it starts from."""
    steps: dict[Route, _Step] = {}
    for recipe in recipes:
        for end in range(1, len(recipe.route) + 1):
            route = recipe.route[:end]
            step = steps.setdefault(route, _Step(route[-1], route[:-1], {}))
            if end == len(recipe.route):
                step.recipes[recipe.precision] = recipe
            else:
                step.recipes.setdefault("fp32", float_recipe(route, get_converter(route[-1]).format))
    # a step that others start from goes first, so that workers of other environments are not kept waiting
    parents = {route[:-1] for route in steps}
    return [steps[route] for route in sorted(steps, key=lambda r: (len(r), r not in parents))]


def _finished(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _part(whole: Future[dict[str, Result]], precision: str) -> Future[Result]:
    """Return a future for one precision of a step."""
    part: Future[Result] = Future()

    def pass_on(finished: Future[dict[str, Result]]) -> None:
        if finished.cancelled():
            part.cancel()
            return
        error = finished.exception()
        if error is not None:
            part.set_exception(error)
        else:
            part.set_result(finished.result()[precision])

    whole.add_done_callback(pass_on)
    return part


def _raise_machine_error(result: Result) -> None:
    """Let a full disk end the command: no other row can be right after it."""
    if isinstance(result, MachineError):
        raise result
