"""The golden set: a few inputs with the source model's outputs, carried in the bundle as its self-test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekit.arrays import ArrayFileError, encode_npz, read_npz, text_as_objects
from edgekit.errors import InvalidFileError, UsageError
from edgekit.manifest import GoldenTolerance
from edgekit.metrics import both_classes, predicted_classes, scored_output
from edgekit.parity import OutputPart, as_numbers, is_text, output_parts
from edgekit.sequences import STEPS, run_sequence
from edgekit.tensors import join_samples, one_sample

if TYPE_CHECKING:
    from edgekit.runtimes.base import Session

__all__ = [
    "CLEAR_MARGIN",
    "FEWEST",
    "GoldenOutcome",
    "GoldenSet",
    "choose_golden",
    "compare_outputs",
    "encode_golden",
    "margins",
    "read_golden",
    "run_golden",
    "run_samples",
    "tolerance_for",
]

#: Fewer samples than this prove too little.
FEWEST = 4
#: A sample whose two best classes are closer than this is avoided: rounding may rightly turn it.
CLEAR_MARGIN = 0.1

#: How far off any device may be, as a fraction of the output's range, even if the artifact was nearer when it
#: was made: other instruction sets and accelerators round, accumulate and saturate differently.
_LEAST_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int16x8": 2e-2, "int8-dynamic": 1e-1, "int8": 1e-1}
#: And how far beyond what was seen when it was made.
_SLACK = 2.0
#: The divisors under which a float input may be stored as bytes.
_SCALES = (255, 1)


class GoldenSet(msgspec.Struct, frozen=True):
    """Inputs and the source model's outputs on them.

    Attributes:
        inputs: Arrays by canonical name, n samples along the first axis.
        outputs: Arrays by canonical name, n samples along the first axis.
        origin: `real` or `synthetic`.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    origin: str

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))

    def take(self, index: np.ndarray | slice) -> GoldenSet:
        """Return the samples at `index`."""
        return GoldenSet(_take(self.inputs, index), _take(self.outputs, index), self.origin)


class GoldenOutcome(msgspec.Struct, frozen=True):
    """What a run of the golden set showed.

    Attributes:
        passed: Whether the tolerance was kept.
        n: Samples run.
        max_error: Largest absolute error as a fraction of the outputs' range; infinite where an output is not
            finite or has the wrong shape.
        agreement: Samples with the source's class; None where the task has no classes.
        reason: One sentence.
    """

    passed: bool
    n: int
    max_error: float
    agreement: int | None
    reason: str


def _take(arrays: Mapping[str, np.ndarray], index: np.ndarray | slice) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array[index]) for name, array in arrays.items()}


# Choosing


def choose_golden(
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    *,
    task: str,
    origin: str,
    seed: int = 0,
    count: int = 32,
    limit_bytes: int = 4 << 20,
    state: Mapping[str, str] | None = None,
) -> GoldenSet:
    """Choose the samples that travel with the bundle.

    They are spread over the classes (over the output's range where there are none) and clear of ties where
    the data allows. The first samples cover the most classes, since a boot runs only the first few. Of a model
    with a state they are the first sequence, whole and in its order, since every step rests on those before.

    Args:
        inputs: Arrays by canonical name, [N, …].
        outputs: The source model's outputs on them, float [N, …].
        labels: Classes, int [N]; None to go by the predicted class.
        task: The bundle's task.
        origin: `real` or `synthetic`.
        seed: Of the choice within a class.
        count: The most samples.
        limit_bytes: The most bytes of the encoded set; but four samples are always taken.
        state: Input name to the output that it takes from the step before; None where there is none.

    Raises:
        UsageError: There are fewer than four samples with finite outputs.
    """
    usable = np.flatnonzero(_finite_rows(outputs))
    if len(usable) < FEWEST:
        raise UsageError("too few samples for a golden set", got=len(usable), expected=f"at least {FEWEST}")
    # a sequence ends where an output is not finite: what follows has no state to start from
    order = (
        usable[usable == np.arange(len(usable))][:STEPS]
        if state
        else _spread(outputs, labels, task, count, usable, seed)
    )
    everything = GoldenSet(dict(inputs), dict(outputs), origin)
    size = min(count, len(order))
    while size > FEWEST and len(encode_golden(everything.take(order[:size]))) > limit_bytes:
        size -= max(1, size // 8)
    return everything.take(order[: max(size, FEWEST)])


def _spread(
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    task: str,
    count: int,
    usable: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the usable samples, clear of ties, so that classes take turns."""
    if task == "classification":
        usable = _clear_of_ties(margins(outputs), usable)
    return _round_robin(_strata(outputs, labels, task, count), usable, np.random.default_rng(seed))


def _finite_rows(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Tell which samples have finite outputs, bool [N]."""
    good = [
        np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        for array in outputs.values()
        if array.dtype.kind == "f"
    ]
    size = len(next(iter(outputs.values())))
    finite: np.ndarray = np.logical_and.reduce([np.ones(size, bool), *good])
    return finite


def margins(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return by how much the best class leads, as a difference of probabilities, float64 [N].

    Scores that are no probabilities are taken as logits.
    """
    scores = np.asarray(scored_output(outputs))
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    if scores.dtype.kind in "iub":
        return np.ones(len(flat))
    if flat.shape[1] == 1:
        flat = both_classes(flat)
    if flat.min(initial=0.0) < 0.0 or not np.allclose(flat.sum(axis=1), 1.0, atol=1e-2):
        flat = np.exp(flat - flat.max(axis=1, keepdims=True))
        flat /= flat.sum(axis=1, keepdims=True)
    best = np.partition(flat, -2, axis=1)
    margin: np.ndarray = best[:, -1] - best[:, -2]
    return margin


def _clear_of_ties(margin: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return the samples with a clear winner, or the clearest few where there are hardly any."""
    clear: np.ndarray = usable[margin[usable] >= CLEAR_MARGIN]
    if len(clear) >= FEWEST:
        return clear
    clearest: np.ndarray = usable[np.argsort(-margin[usable], kind="stable")[:FEWEST]]
    return clearest


def _strata(
    outputs: Mapping[str, np.ndarray], labels: np.ndarray | None, task: str, count: int
) -> np.ndarray:
    """Return the group of each sample: its class, or the bin of its mean output, int64 [N]; of text one for all."""
    if task == "classification":
        return predicted_classes(outputs) if labels is None else np.asarray(labels).astype(np.int64)
    array = np.asarray(scored_output(outputs))
    if is_text(array) or not array.size:
        return np.zeros(len(array), np.int64)
    level = array.reshape(len(array), -1).astype(np.float64).mean(axis=1)
    ranks = np.argsort(np.argsort(level, kind="stable"), kind="stable")
    groups: np.ndarray = ranks * min(count, len(ranks)) // len(ranks)
    return groups


def _round_robin(strata: np.ndarray, usable: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return `usable` so that the groups take turns; within a group the order is random."""
    shuffled = random.permutation(usable)
    turn = np.zeros(len(shuffled), np.int64)
    groups = strata[shuffled]
    for group in np.unique(groups):
        mine = groups == group
        turn[mine] = np.arange(mine.sum())
    return shuffled[np.lexsort((groups, turn))]


# Storing


def encode_golden(golden: GoldenSet) -> bytes:
    """Return `golden.npz`: `input:<name>`, `output:<name>`, and `scale:<name>` where bytes stand for floats."""
    arrays: dict[str, np.ndarray] = {}
    for name, array in golden.inputs.items():
        scale = _byte_scale(array)
        if scale:
            arrays[f"scale:{name}"] = np.array(scale, np.uint8)
            array = np.rint(array * np.float32(scale)).astype(np.uint8)  # noqa: PLW2901
        arrays[f"input:{name}"] = array
    return encode_npz(arrays | {f"output:{name}": array for name, array in golden.outputs.items()})


def _byte_scale(array: np.ndarray) -> int:
    """Return the divisor under which bytes give exactly this float32 array, bit by bit; 0 where none does."""
    # the comparison is false for NaN too, and keeps what would overflow out of the product
    if array.dtype != np.float32 or not array.size or not (array.min() >= 0.0 and array.max() <= 255.0):
        return 0
    for scale in _SCALES:
        stored = np.rint(array * np.float32(scale))
        if stored.max() > 255.0:
            continue
        restored = _from_bytes(stored.astype(np.uint8), scale)
        if np.array_equal(restored.view(np.uint32), np.ascontiguousarray(array).view(np.uint32)):
            return scale
    return 0


def _from_bytes(stored: np.ndarray, scale: int) -> np.ndarray:
    restored: np.ndarray = stored.astype(np.float32) / np.float32(scale)
    return restored


def read_golden(path: str | os.PathLike[str], origin: str) -> GoldenSet:
    """Read `golden.npz`.

    Raises:
        InvalidFileError: It is not what `encode_golden` writes.
    """
    where = Path(path).name
    try:
        arrays = {name: text_as_objects(array) for name, array in read_npz(path).items()}
        groups = _group(arrays)
        inputs = {name: _restore(name, array, groups["scale"]) for name, array in groups["input"].items()}
        _check_lengths(inputs, groups["output"])
    except ArrayFileError as error:
        raise InvalidFileError(
            f"{where} is not a golden set: {error}", hint="Fetch the bundle again."
        ) from error
    return GoldenSet(inputs, groups["output"], origin)


def _group(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {"input": {}, "output": {}, "scale": {}}
    for key, array in arrays.items():
        kind, _, name = key.partition(":")
        if kind not in groups or not name:
            raise ArrayFileError(f"unknown array {key!r}")
        groups[kind][name] = array
    return groups


def _restore(name: str, array: np.ndarray, scales: Mapping[str, np.ndarray]) -> np.ndarray:
    scale = scales.get(name)
    if scale is None:
        return array
    if array.dtype != np.uint8 or scale.size != 1 or int(scale) not in _SCALES:
        raise ArrayFileError(f"scale of {name!r} makes no sense")
    return _from_bytes(array, int(scale))


def _check_lengths(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    arrays = [*inputs.values(), *outputs.values()]
    if not inputs or not outputs or any(array.ndim < 1 for array in arrays):
        raise ArrayFileError("it has no inputs or no outputs")
    if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        raise ArrayFileError("its arrays have different lengths, or none")


# Running


def run_golden(
    session: Session,
    golden: GoldenSet,
    tolerance: GoldenTolerance,
    *,
    task: str,
    n: int | None = None,
    state: Mapping[str, str] | None = None,
) -> GoldenOutcome:
    """Run the golden set, one sample at a time, and judge it.

    Args:
        session: The artifact as it will serve.
        golden: The bundle's golden set.
        tolerance: What the artifact must reach on all of it.
        task: The bundle's task.
        n: How many samples to run, the first ones; None for all.
        state: The bundle's: samples are steps of one sequence then.
    """
    part = golden if n is None else golden.take(slice(0, n))
    got = run_samples(session, part.inputs, state=state)
    error, agreement = compare_outputs(part.outputs, got, task, ranges=_ranges(golden.outputs, task))
    # what may disagree on the whole set may do so in any part of it
    least = max(0, part.n - (golden.n - tolerance.min_agreement))
    return _judge(part.n, error, agreement, tolerance.max_error, least)


def run_samples(
    session: Session,
    inputs: Mapping[str, np.ndarray],
    progress: Callable[[str, int, int], None] | None = None,
    state: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Run samples one at a time, as a device mostly does.

    Args:
        session: The artifact.
        inputs: Arrays by canonical name, [N, …]; where its batch is fixed at more than one, [N, batch, …].
        progress: Is told (phrase, samples done, samples in all).
        state: Input name to output name; the samples are then steps, as `edgekit.sequences` has them.

    Returns:
        Arrays by canonical name, [N, …].
    """
    if state:
        return run_sequence(session.run, inputs, state, session.inputs)
    n = len(next(iter(inputs.values())))
    rows = []
    for index in range(n):
        rows.append(_run_one(session, inputs, index))
        if progress:
            progress("running", index + 1, n)
    return join_samples(session.inputs, rows)


def _run_one(session: Session, inputs: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    missing = next((spec.name for spec in session.inputs if spec.name not in inputs), None)
    if missing is not None:
        raise UsageError(f"input {missing!r} is missing", got=sorted(inputs))
    given = {spec.name: inputs[spec.name] for spec in session.inputs}
    feed = {name: np.asarray(a, order="C") for name, a in one_sample(session.inputs, given, index).items()}
    # copied: a session's outputs are valid until its next run only
    return {name: np.array(array) for name, array in session.run(feed).items()}


def _judge(n: int, error: float, agreement: int | None, most: float, least: int) -> GoldenOutcome:
    if not error <= most:
        said = (
            "is not finite or has the wrong shape"
            if error == np.inf
            else f"is off by {error:.3g} of its range"
        )
        return GoldenOutcome(False, n, error, agreement, f"an output {said}, allowed {most:.3g}")
    if agreement is not None and agreement < least:
        return GoldenOutcome(
            False,
            n,
            error,
            agreement,
            f"{agreement} of {n} samples have the source's class, at least {least} must",
        )
    classes = "" if agreement is None else f", {agreement} of {n} have the source's class"
    return GoldenOutcome(
        True, n, error, agreement, f"off by {error:.3g} of the range, allowed {most:.3g}{classes}"
    )


def _ranges(outputs: Mapping[str, np.ndarray], task: str) -> dict[OutputPart, float]:
    """Return the range of each output, or of its parts where those differ in kind; of a constant one, its size."""
    found = {}
    for part in output_parts(outputs, task):
        if is_text(outputs[part.output]) or not outputs[part.output].size:
            found[part] = 1.0
            continue
        values = np.asarray(part.of(outputs[part.output]), np.float64)
        found[part] = float(np.ptp(values)) or max(float(np.abs(values).max()), 1e-12)
    return found


def compare_outputs(
    expected: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    task: str,
    *,
    ranges: Mapping[OutputPart, float] | None = None,
) -> tuple[float, int | None]:
    """Compare outputs with the source's.

    Args:
        expected: The source's outputs, [N, …].
        got: The artifact's outputs, same names and shapes.
        task: The bundle's task.
        ranges: Range of each output or part of one; None to take it from `expected`.

    Returns:
        The largest absolute error as a fraction of the output's range, infinite where an output is missing,
        not finite or of another shape; and the number of samples with the source's class, None where the task
        has no classes.
    """
    scale = ranges or _ranges(expected, task)
    error = max(_errors(expected, got, scale), default=0.0)
    if task != "classification":
        return error, None
    if error == np.inf:
        return error, 0
    shared = {name: got[name] for name in expected}
    return error, int((predicted_classes(expected) == predicted_classes(shared)).sum())


def _errors(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], scale: Mapping[OutputPart, float]
) -> Iterator[float]:
    for part, size in scale.items():
        whole, there = expected[part.output], got.get(part.output)
        if there is None or there.shape != whole.shape:
            yield np.inf
            continue
        want, have = as_numbers(whole, whole), as_numbers(there, whole)
        if not np.isfinite(have).all():
            yield np.inf
        else:
            yield float(np.abs(part.of(have) - part.of(want)).max(initial=0.0)) / size


def tolerance_for(
    outputs_of_artifact: Mapping[str, np.ndarray], golden: GoldenSet, *, precision: str, task: str
) -> GoldenTolerance:
    """Return what the artifact must reach on any device, from what it reached on the golden set when made.

    Twice the error seen, but no less than other hardware may add at this precision; and as many samples of
    the source's class as it had, one fewer for integer arithmetic.

    Raises:
        UsageError: The outputs are not finite or not of the golden set's shapes.
    """
    error, agreement = compare_outputs(golden.outputs, outputs_of_artifact, task)
    if error == np.inf:
        raise UsageError("no tolerance fits outputs that are not finite or of another shape")
    room = 1 if precision.startswith("int") else 0
    return GoldenTolerance(
        max_error=float(f"{max(_SLACK * error, _LEAST_TOLERANCE[precision]):.3g}"),
        min_agreement=0 if agreement is None else max(0, agreement - room),
    )
