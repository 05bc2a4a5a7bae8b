from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.golden import GoldenSet, encode_golden
from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime
from edgekit.tensors import TensorSpec
from tests.runtimes.cases import golden, open_tiny, tiny

pytestmark = pytest.mark.device

NOWHERE = Path("no-such-file")


def test_golden_inputs_give_golden_outputs_bit_by_bit_in_any_order() -> None:
    images, expected = golden()
    order = [3, 0, 7, 3]
    got = open_tiny("null").run({"image": images[order]})["probabilities"]
    assert got.tobytes() == expected[order].tobytes()


def test_one_changed_bit_makes_another_answer() -> None:
    images, expected = golden()
    changed = images[:1].copy()
    changed.view(np.uint32)[0, 4, 4, 0] ^= 1
    got = open_tiny("null").run({"image": changed})["probabilities"]
    assert not np.allclose(got, expected[:1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_other_inputs_give_a_seeded_function_of_each_row(seed: int, n: int) -> None:
    images = np.random.default_rng(seed).random((n, 8, 8, 1), dtype=np.float32)
    first, second = open_tiny("null"), open_tiny("null")
    together = first.run({"image": images})["probabilities"]
    alone = np.concatenate([second.run({"image": images[i : i + 1]})["probabilities"] for i in range(n)])
    assert together.tobytes() == alone.tobytes()
    assert together.dtype == np.float32
    assert together.shape == (n, 4)
    assert (together >= 0).all()
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


def test_different_inputs_give_different_answers() -> None:
    images = np.random.default_rng(3).random((50, 8, 8, 1), dtype=np.float32)
    got = open_tiny("null").run({"image": images})["probabilities"]
    assert len(np.unique(got, axis=0)) == 50
    assert set(got.argmax(axis=1)) == {0, 1, 2, 3}


def test_outputs_that_are_no_probabilities_keep_the_golden_values(tmp_path: Path) -> None:
    inputs = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    outputs = {"label": np.array([5, 7, 5, 9]), "box": np.full((4, 2, 2), 0.25, np.float32)}
    path = tmp_path / "golden.npz"
    path.write_bytes(encode_golden(GoldenSet(inputs, outputs, "real")))
    specs = (TensorSpec("label", "int64", (-1,)), TensorSpec("box", "float32", (-1, 2, 2)))
    files = ModelFiles(NOWHERE, (TensorSpec("x", "float32", (-1, 3)),), specs, golden=path)
    session = get_runtime("null").load(files, SessionOptions())
    got = session.run({"x": np.full((40, 3), 0.5, np.float32) + np.arange(40, dtype=np.float32)[:, None]})
    assert set(got["label"].tolist()) == {5, 7, 9}
    assert got["label"].dtype == np.int64
    assert got["box"].shape == (40, 2, 2)
    known = session.run({"x": inputs["x"][3:]})
    assert known["label"].tolist() == [9]


def test_without_a_golden_set_shapes_and_dtypes_are_right() -> None:
    inputs = (TensorSpec("a", "uint8", (-1, 4)), TensorSpec("b", "bytes", (-1,)))
    outputs = (
        TensorSpec("mask", "bool", (-1, 2)),
        TensorSpec("count", "int32", (-1,)),
        TensorSpec("half", "float16", (-1, -1, 3)),
        TensorSpec("text", "bytes", (-1, 1)),
        TensorSpec("loss", "float32", ()),
        TensorSpec("fixed", "float64", (5, 2)),
    )
    session = get_runtime("null").load(ModelFiles(NOWHERE, inputs, outputs), SessionOptions())
    got = session.run({"a": np.zeros((3, 4), np.uint8), "b": np.array([b"x", b"y", b"z"], object)})
    assert {name: array.shape for name, array in got.items()} == {
        "mask": (3, 2), "count": (3,), "half": (3, 1, 3), "text": (3, 1), "loss": (), "fixed": (5, 2),
    }  # fmt: skip
    names = {"text": "object"}
    assert {n: a.dtype.name for n, a in got.items()} == {s.name: names.get(s.name, s.dtype) for s in outputs}


def test_inputs_without_a_common_batch_are_one_sample() -> None:
    inputs = (TensorSpec("tokens", "int64", (-1, 6)), TensorSpec("state", "float32", (2, 3)))
    files = ModelFiles(NOWHERE, inputs, (TensorSpec("next", "float32", (-1, 4)),))
    session = get_runtime("null").load(files, SessionOptions())
    feed: dict[str, np.ndarray] = {
        "tokens": np.zeros((1, 6), np.int64),
        "state": np.zeros((2, 3), np.float32),
    }
    assert session.run(feed)["next"].shape == (1, 4)
    other = session.run({**feed, "state": np.ones((2, 3), np.float32)})["next"]
    assert not np.allclose(other, session.run(feed)["next"])


def test_an_empty_batch_gives_an_empty_answer() -> None:
    got = open_tiny("null").run({"image": np.zeros((0, 8, 8, 1), np.float32)})["probabilities"]
    assert got.shape == (0, 4)
    assert got.dtype == np.float32


def test_it_opens_no_model_and_takes_no_option() -> None:
    assert open_tiny("null").placement == {"null": "no node is run"}
    with pytest.raises(UsageError, match="null has no option 'speed'"):
        get_runtime("null").load(tiny("null"), SessionOptions(extra={"speed": 1}))
