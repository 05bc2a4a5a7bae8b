"""Stateful models: what a step gives back is fed into the next one. On a device: numpy only.

A bundle's `state` maps the name of an input to the name of the output that it takes from the step before. The
rows of the data are consecutive steps; each `STEPS` of them are one sequence, which starts from zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.errors import UsageError
from edgekit.tensors import TensorSpec, sample_shape

__all__ = ["STEPS", "check_state", "driven_inputs", "initial_state", "run_sequence", "with_states"]

#: Steps of a sequence: an error that grows has that long to show.
STEPS = 20

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


def check_state(
    state: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Refuse a state that the model does not have.

    Args:
        state: Input name to output name.
        inputs: The model's.
        outputs: The model's.

    Raises:
        UsageError: A name is unknown, the two differ in shape or type, a size is not known, or nothing but state
            goes in.
    """
    takes, gives = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    for name, origin in state.items():
        if name not in takes or origin not in gives:
            raise UsageError(
                f"state {name}={origin} names what the model does not have",
                expected=f"an input of {', '.join(takes)} and an output of {', '.join(gives)}",
            )
        want, got = takes[name], gives[origin]
        if want.dtype != got.dtype or want.shape[1:] != got.shape[1:]:
            raise UsageError(
                f"state {name}={origin} does not fit",
                got=f"{got.dtype}{list(got.shape)}",
                expected=f"{want.dtype}{list(want.shape)}",
            )
        if -1 in want.shape[1:] or want.shape[:1] not in ((1,), (-1,)):
            raise UsageError(
                f"state {name!r} has no shape of one sample",
                got=list(want.shape),
                expected="[1 or any, sizes …]",
            )
    if state and not driven_inputs(inputs, state):
        raise UsageError("every input is state: nothing goes in from outside", got=", ".join(state))


def driven_inputs(inputs: Sequence[TensorSpec], state: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Return the inputs that data is for: all but the state."""
    return tuple(spec for spec in inputs if spec.name not in state)


def initial_state(inputs: Sequence[TensorSpec], state: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return zeros for every input that is state, by name, [1, …]."""
    return {spec.name: np.zeros(sample_shape(spec), spec.dtype) for spec in inputs if spec.name in state}


def with_states(
    inputs: Arrays, outputs: Arrays, state: Mapping[str, str], steps: int = STEPS
) -> dict[str, np.ndarray]:
    """Return the inputs with the state that each step started from: for whatever runs single steps.

    Args:
        inputs: The data, [N, …] by name, without the state.
        outputs: What `run_sequence` gave for it.
        state: Input name to output name.
        steps: Rows of a sequence.
    """
    whole = dict(inputs)
    for name, origin in state.items():
        given = np.roll(outputs[origin], 1, axis=0)
        given[::steps] = 0
        whole[name] = given
    return whole


def run_sequence(
    run: Run, inputs: Arrays, state: Mapping[str, str], specs: Sequence[TensorSpec], steps: int = STEPS
) -> dict[str, np.ndarray]:
    """Run consecutive steps, feeding the state back.

    Args:
        run: Takes arrays [1, …] by input name, returns arrays [1, …] by output name.
        inputs: The data, [N, …] by name, without the state.
        state: Input name to output name.
        specs: The model's inputs.
        steps: Rows of a sequence; each starts from zeros.

    Returns:
        Every output of every step, the state's too, [N, …] by name.
    """
    n = len(next(iter(inputs.values())))
    zeros = initial_state(specs, state)
    carried, rows = dict(zeros), []
    for i in range(n):
        if i % steps == 0:
            carried = dict(zeros)
        given = {name: np.ascontiguousarray(array[i : i + 1]) for name, array in inputs.items()}
        # copied: a session's outputs are valid until its next run only
        answer = {name: np.array(array) for name, array in run({**given, **carried}).items()}
        carried = {name: answer[origin] for name, origin in state.items()}
        rows.append(answer)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
