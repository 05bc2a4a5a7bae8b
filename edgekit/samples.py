"""The inputs on which source and artifacts are compared: for parity, and for the golden set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.golden import GoldenSet, choose_golden
from edgekit.sequences import STEPS
from edgekit.tensors import TensorSpec, sample_shape, sample_specs

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.gate import DataLimits

__all__ = ["Samples", "gather_samples", "synthetic_inputs"]

Arrays = dict[str, np.ndarray]

_GOLDEN_CANDIDATES = 128
#: Bytes of parity inputs, beyond the fewest samples: they are held in memory, here and in the workers.
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Samples:
    """Inputs for parity, and where the golden set comes from.

    Attributes:
        parity: Arrays [N, …] by canonical name; the first `real` of them are the user's data.
        state: Input name to output name; the rows are then steps of whole sequences.
        origin: `real` where any of the user's data is among them, else `synthetic`.
    """

    specs: tuple[TensorSpec, ...]
    parity: Arrays
    real: int
    evaluation: Dataset | None
    seed: int
    state: Mapping[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many parity inputs there are."""
        return len(next(iter(self.parity.values())))

    @property
    def origin(self) -> str:
        """Tell whether the user gave data."""
        return "real" if self.real else "synthetic"

    def choose_golden(
        self,
        wanted: str,
        task: str,
        reference: Mapping[str, np.ndarray],
        evaluated: Mapping[str, np.ndarray] | None,
        run: Callable[[Arrays], Arrays],
    ) -> GoldenSet:
        """Choose the inputs that travel with the bundle, with the source's outputs.

        Args:
            wanted: `real`, or `synthetic` to ship none of the user's data.
            task: The model's task.
            reference: The source's outputs on `parity`.
            evaluated: The source's outputs on the evaluation data, if there is any.
            run: Runs the source.
        """
        if wanted == "synthetic" or not self.real:
            inputs = synthetic_inputs(self.specs, _GOLDEN_CANDIDATES, self.seed)
            return choose_golden(
                inputs,
                run(inputs),
                None,
                task=task,
                origin="synthetic",
                seed=self.seed,
                state=self.state,
            )
        if self.evaluation is not None and evaluated is not None:
            return choose_golden(
                self.evaluation.inputs,
                dict(evaluated),
                self.evaluation.labels,
                task=task,
                origin="real",
                seed=self.seed,
                state=self.state,
            )
        return choose_golden(
            {name: values[: self.real] for name, values in self.parity.items()},
            {name: values[: self.real] for name, values in reference.items()},
            None,
            task=task,
            origin="real",
            seed=self.seed,
            state=self.state,
        )


def gather_samples(
    specs: Sequence[TensorSpec],
    calibration: Dataset | None,
    evaluation: Dataset | None,
    limits: DataLimits,
    seed: int,
    state: Mapping[str, str] | None = None,
) -> Samples:
    """Return the parity inputs: evenly spread evaluation data, else calibration data, else seeded noise.

    Data of fewer than `limits.parity_samples` rows is filled up with seeded noise in its own range. With a
    `state`, `specs` are the inputs that it does not hold, and the rows are the first ones in their order: steps
    of sequences.
    """
    data, specs = evaluation or calibration, sample_specs(specs)
    fed_back = dict(state or {})
    if data is None:
        count = 2 * max(limits.parity_samples, STEPS)
        return Samples(tuple(specs), synthetic_inputs(specs, count, seed), 0, None, seed, fed_back)
    most = min(data.n, _most_rows(specs, limits))
    rows = np.arange(most) if state else np.unique(np.linspace(0, data.n - 1, most).astype(np.int64))
    parity = data.take(rows)
    missing = limits.parity_samples - len(rows)
    if missing > 0:
        noise = synthetic_inputs(specs, missing, seed, like=parity)
        parity = {name: np.concatenate([values, noise[name]]) for name, values in parity.items()}
    return Samples(tuple(specs), parity, len(rows), evaluation, seed, fed_back)


def _most_rows(specs: Sequence[TensorSpec], limits: DataLimits) -> int:
    """Return how many samples may be parity inputs: fewer of large ones, never fewer than parity needs."""
    one = sum(math.prod(sample_shape(spec)) * np.dtype(_numpy_name(spec)).itemsize for spec in specs)
    return min(limits.parity_most, max(limits.parity_samples, _MOST_BYTES // max(1, one)))


def _numpy_name(spec: TensorSpec) -> str:
    return spec.dtype if spec.dtype != "bytes" else "O"


def synthetic_inputs(
    specs: Sequence[TensorSpec], n: int, seed: int, like: Mapping[str, np.ndarray] | None = None
) -> Arrays:
    """Return seeded noise: floats uniform in [0, 1), bytes over their whole range, other integers 0 or 1.

    With `like`, all in its range. A byte is a picture's; a wider integer may be an index into a table whose
    size nobody knows, and 0 or 1 are in it.
    """
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for spec in specs:
        shape = (n, *sample_shape(spec)[1:])
        kind = np.dtype(_numpy_name(spec)).kind
        low, high = _span(spec.dtype) if like is None else _ends(like[spec.name])
        if kind == "f":
            arrays[spec.name] = (low + (high - low) * random.random(shape)).astype(spec.dtype)
        else:
            arrays[spec.name] = random.integers(int(low), int(high) + 1, shape).astype(spec.dtype)
    return arrays


def _span(dtype: str) -> tuple[float, float]:
    return (
        (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if dtype in ("uint8", "int8") else (0.0, 1.0)
    )


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
