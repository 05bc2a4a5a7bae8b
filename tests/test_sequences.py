"""Stateful models: the state is fed back, each sequence starts from zeros."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.sequences import (
    STEPS,
    check_state,
    driven_inputs,
    initial_state,
    run_sequence,
    with_states,
)
from edgekit.tensors import TensorSpec

pytestmark = pytest.mark.device

X, H = TensorSpec("x", "float32", (-1, 1)), TensorSpec("h", "float32", (-1, 1))
Y, NEXT = TensorSpec("y", "float32", (-1, 1)), TensorSpec("next", "float32", (-1, 1))
STATE = {"h": "next"}


class Summing:
    """Adds up what goes in, in buffers that it uses again, as a runtime does."""

    def __init__(self) -> None:
        self.buffer = np.zeros((1, 1), np.float32)
        self.seen: list[float] = []

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(float(feed["h"][0, 0]))
        self.buffer[:] = feed["x"] + feed["h"]
        return {"y": 2.0 * self.buffer, "next": self.buffer}


def test_the_state_is_fed_back_and_starts_anew_with_each_sequence() -> None:
    model, x = Summing(), np.arange(1.0, 6.0, dtype=np.float32)[:, None]
    got = run_sequence(model, {"x": x}, STATE, (X, H), steps=3)
    assert got["next"].ravel().tolist() == [1.0, 3.0, 6.0, 4.0, 9.0]
    assert got["y"].ravel().tolist() == [2.0, 6.0, 12.0, 8.0, 18.0]
    assert model.seen == [0.0, 1.0, 3.0, 0.0, 4.0]


def test_a_sequence_is_twenty_steps() -> None:
    model = Summing()
    run_sequence(model, {"x": np.ones((41, 1), np.float32)}, STATE, (X, H))
    assert [i for i, h in enumerate(model.seen) if h == 0.0] == [0, 20, 40]
    assert STEPS == 20


def test_single_steps_start_from_the_state_of_the_step_before() -> None:
    x = np.arange(1.0, 6.0, dtype=np.float32)[:, None]
    outputs = run_sequence(Summing(), {"x": x}, STATE, (X, H), steps=3)
    whole = with_states({"x": x}, outputs, STATE, steps=3)
    assert whole["h"].ravel().tolist() == [0.0, 1.0, 3.0, 0.0, 4.0]
    assert whole["x"] is x
    assert outputs["next"].ravel().tolist() == [1.0, 3.0, 6.0, 4.0, 9.0]
    assert with_states({"x": x}, outputs, {}) == {"x": x}


def test_zeros_at_the_start_and_what_is_left_for_data() -> None:
    assert [spec.name for spec in driven_inputs((X, H), STATE)] == ["x"]
    start = initial_state((X, H), STATE)
    assert list(start) == ["h"]
    assert start["h"].shape == (1, 1)
    assert start["h"].dtype == np.float32


def test_a_state_that_the_model_has_not_is_refused() -> None:
    check_state(STATE, (X, H), (Y, NEXT))
    check_state({}, (X, H), (Y, NEXT))
    wide, whole = TensorSpec("next", "float32", (-1, 2)), TensorSpec("next", "int32", (-1, 1))
    free, two = TensorSpec("h", "float32", (-1, -1)), TensorSpec("h", "float32", (2, 1))
    for state, inputs, outputs, said in (
        ({"g": "next"}, (X, H), (Y, NEXT), "state g=next names what the model does not have"),
        ({"h": "last"}, (X, H), (Y, NEXT), "state h=last names what the model does not have"),
        (STATE, (X, H), (Y, wide), "state h=next does not fit"),
        (STATE, (X, H), (Y, whole), "state h=next does not fit"),
        (STATE, (X, free), (Y, TensorSpec("next", "float32", (-1, -1))), "no shape of one sample"),
        (STATE, (X, two), (Y, NEXT), "no shape of one sample"),
        (STATE, (H,), (NEXT,), "every input is state"),
    ):
        with pytest.raises(UsageError, match=said):
            check_state(state, inputs, outputs)
