"""The golden set: chosen over the classes and clear of ties, stored exactly, and able to fail."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.arrays import ArrayFileError, encode_npz, read_npy, read_npz
from edgekit.errors import InvalidFileError, UsageError
from edgekit.golden import (
    CLEAR_MARGIN,
    GoldenSet,
    choose_golden,
    compare_outputs,
    encode_golden,
    margins,
    read_golden,
    run_golden,
    run_samples,
    tolerance_for,
)
from edgekit.manifest import GoldenTolerance
from edgekit.runtimes.base import Session
from edgekit.tensors import TensorSpec
from tests.bundle_samples import INPUT, OUTPUT, golden, samples

pytestmark = pytest.mark.device


class Answering(Session):
    """A session that answers from the golden set, after `change` of the outputs."""

    def __init__(self, chosen: GoldenSet, inputs: tuple[TensorSpec, ...] = (INPUT,), **change: float) -> None:
        self.inputs, self.outputs, self.placement = inputs, (OUTPUT,), {}
        self._known = {
            row.tobytes(): out
            for row, out in zip(chosen.inputs["image"], chosen.outputs["probabilities"], strict=True)
        }
        self._noise, self._wrong, self._shape = (
            change.get("noise", 0.0),
            change.get("wrong", 0),
            change.get("shape", 0),
        )
        self.batches: list[int] = []
        self._buffer = np.zeros((8, 3), np.float32)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feed["image"]))
        for place, row in enumerate(feed["image"]):
            self._buffer[place] = self._known[row.tobytes()] + self._noise
        if len(self.batches) <= self._wrong:
            self._buffer[:] = np.roll(self._buffer, 1, axis=1)
        found = self._buffer[: len(feed["image"])]
        return {"probabilities": found[:, :2] if self._shape else found}  # a view, as native runtimes give

    def close(self) -> None:
        self._known.clear()


# Choosing


def test_classes_take_turns_and_ties_are_avoided() -> None:
    inputs, outputs, labels = samples(400)
    chosen = choose_golden(inputs, outputs, labels, task="classification", origin="real")
    assert chosen.n == 32
    picked = chosen.outputs["probabilities"].argmax(1)
    assert set(picked[:3]) == set(picked[3:6]) == {0, 1, 2}
    assert np.bincount(picked).tolist() in ([11, 11, 10], [11, 10, 11], [10, 11, 11])
    assert margins(chosen.outputs).min() >= CLEAR_MARGIN
    assert margins(outputs).min() < CLEAR_MARGIN


def test_the_choice_depends_on_the_seed_alone() -> None:
    inputs, outputs, labels = samples(400)
    first, again, other = (
        encode_golden(choose_golden(inputs, outputs, labels, task="classification", origin="real", seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_rare_classes_are_in() -> None:
    inputs, outputs, _ = samples(200)
    labels = np.zeros(200, np.int64)
    rare = int(np.argmax(margins(outputs)))
    labels[rare] = 1
    chosen = choose_golden(inputs, outputs, labels, task="classification", origin="real")
    assert any(np.array_equal(row, inputs["image"][rare]) for row in chosen.inputs["image"])


def test_where_nothing_is_clear_the_clearest_are_taken() -> None:
    inputs, _, _ = samples(40)
    lead = np.linspace(0.0, 0.05, 40, dtype=np.float32)
    outputs = {"p": np.stack([0.5 + lead / 2, 0.5 - lead / 2], 1)}
    chosen = choose_golden(inputs, outputs, None, task="classification", origin="real")
    assert chosen.n == 4
    assert margins(chosen.outputs).min() == pytest.approx(lead[-4], abs=1e-6)


def test_regression_covers_the_range() -> None:
    inputs = {"x": np.random.default_rng(0).normal(size=(320, 2)).astype(np.float32)}
    outputs = {"y": inputs["x"][:, :1] * 3}
    chosen = choose_golden(inputs, outputs, None, task="regression", origin="real")
    edges = np.quantile(outputs["y"], np.linspace(0, 1, 33))
    hits = np.histogram(chosen.outputs["y"], edges)[0]
    assert (hits >= 1).sum() >= 31


def test_too_few_and_not_finite() -> None:
    inputs, outputs, labels = samples(6)
    outputs["probabilities"][:3] = np.nan
    with pytest.raises(UsageError, match="too few samples for a golden set: got 3, expected at least 4"):
        choose_golden(inputs, outputs, labels, task="classification", origin="real")
    outputs["probabilities"][1:3] = 0.2
    outputs["probabilities"][2] = [0.9, 0.1, 0.0]
    chosen = choose_golden(inputs, outputs, labels, task="regression", origin="real")
    assert chosen.n == 5
    assert np.isfinite(chosen.outputs["probabilities"]).all()


def test_the_byte_limit_holds_down_to_four() -> None:
    inputs = {"x": np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)}
    outputs = {"y": inputs["x"][:, :1]}
    chosen = choose_golden(inputs, outputs, None, task="regression", origin="real", limit_bytes=50_000)
    assert 8 <= chosen.n <= 12
    assert len(encode_golden(chosen)) <= 50_000
    assert choose_golden(inputs, outputs, None, task="regression", origin="real", limit_bytes=1).n == 4


def test_margins_of_logits_single_scores_and_labels() -> None:
    assert margins({"o": np.log(np.array([[0.7, 0.2, 0.1]]))}).tolist() == pytest.approx([0.5])
    assert margins({"o": np.array([[0.9], [0.45]])}).tolist() == pytest.approx([0.8, 0.1])
    assert margins({"label": np.array([3])}).tolist() == [1.0]


# Storing


def through_file(chosen: GoldenSet, folder: Path) -> GoldenSet:
    (folder / "golden.npz").write_bytes(encode_golden(chosen))
    return read_golden(folder / "golden.npz", chosen.origin)


def same_bits(one: GoldenSet, other: GoldenSet) -> bool:
    pairs = [(one.inputs, other.inputs), (one.outputs, other.outputs)]
    return all(
        set(a) == set(b)
        and all(
            (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes()) for k in a
        )
        for a, b in pairs
    )


@settings(max_examples=100)
@given(data=st.data())
def test_encoding_is_exact(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.float16, np.bool_]))
    shape = (data.draw(st.integers(1, 5)), *data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)))
    array = data.draw(hnp.arrays(dtype, shape))
    chosen = GoldenSet({"a/b:c": array}, {"o": np.zeros((shape[0], 2), np.float32)}, "real")
    assert same_bits(through_file(chosen, tmp_path_factory.mktemp("g")), chosen)


@pytest.mark.parametrize("scale", [255, 1])
def test_byte_pictures_are_stored_as_bytes(scale: int, tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.float32).reshape(4, 8, 8) / np.float32(scale)
    chosen = GoldenSet({"x": pixels}, {"o": np.zeros((4, 1), np.float32)}, "real")
    assert same_bits(through_file(chosen, tmp_path), chosen)
    stored = read_npz(tmp_path / "golden.npz")
    assert (stored["input:x"].dtype.name, int(stored["scale:x"])) == ("uint8", scale)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(-0.0),
        np.nextafter(np.float32(0.2), np.float32(1)),
        np.float32(256),
        np.float32(-1 / 255),
        np.float32(1.3e36),
    ],
)
def test_what_bytes_cannot_say_exactly_stays_float(value: np.float32, tmp_path: Path) -> None:
    pixels = np.full((4, 2), np.float32(51) / np.float32(255))
    pixels[3, 1] = value
    chosen = GoldenSet({"x": pixels}, {"o": np.zeros((4, 1), np.float32)}, "real")
    assert same_bits(through_file(chosen, tmp_path), chosen)
    assert read_npz(tmp_path / "golden.npz")["input:x"].dtype == np.float32


def test_numpy_reads_what_we_write() -> None:
    arrays: dict[str, np.ndarray] = {"a": np.arange(6).reshape(2, 3), "b": np.array([1.5], np.float32)}
    with np.load(io.BytesIO(encode_npz(arrays)), allow_pickle=False) as found:
        assert {name: found[name].tolist() for name in found} == {"a": [[0, 1, 2], [3, 4, 5]], "b": [1.5]}


def test_we_read_what_numpy_writes(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "zero": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 4)),
        "text": np.array(["a", "bc"]),
        "big": np.arange(3, dtype=">i4"),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
    np.save(tmp_path / "a.npy", arrays["fortran"])
    assert np.array_equal(read_npy(tmp_path / "a.npy"), arrays["fortran"])


# Hostile files


def npy(header: str, body: bytes = b"") -> bytes:
    raw = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (npy(HUGE), "claims 4000000000000 bytes, the file holds 0"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(8)), "claims 12 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(16)), "claims 12 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3)}", bytes(12)), "has the shape"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "never pickled objects"),
        (
            npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4)),
            "expected numbers",
        ),
        (npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "expected numbers"),
        (npy("__import__('os').system('false')"), "is not an array"),
        (b"\x93NUMPY\x03\x00", "unknown format"),
        (b"not numpy at all", "is not an array"),
        (b"", "is not an array"),
    ],
)
def test_lying_headers_are_refused_before_anything_is_allocated(
    data: bytes, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ArrayFileError, match=fault):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("input:a.npy", data)
    with pytest.raises(InvalidFileError, match=f"a.npz is not a golden set: .*{fault}"):
        read_golden(tmp_path / "a.npz", "real")


def test_a_directory_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    body = npy(HUGE)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", body)
    data = (tmp_path / "a.npz").read_bytes()
    size = len(body).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data.replace(size, (0xFFFFFFF0).to_bytes(4, "little")))
    with pytest.raises(ArrayFileError, match="claims more bytes than the file can hold"):
        read_npz(tmp_path / "a.npz")


def test_other_files_in_an_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ArrayFileError, match=r"a\.txt is not an array"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(ArrayFileError, match=r"not an \.npz"):
        read_npz(tmp_path / "a.npz")


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_golden_set_never_escapes_as_anything_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(encode_golden(golden()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("g") / "golden.npz"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        assert read_golden(path, "real").n >= 1
    except InvalidFileError as error:
        assert "golden.npz" in str(error)  # noqa: PT017  either way is right, nothing else is


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"input:x": np.zeros((2, 1))}, "no inputs or no outputs"),
        ({"input:x": np.zeros((2, 1)), "output:y": np.zeros((3, 1))}, "different lengths"),
        ({"input:x": np.zeros((0, 1)), "output:y": np.zeros((0, 1))}, "different lengths, or none"),
        ({"input:x": np.zeros(()), "output:y": np.zeros(())}, "no inputs or no outputs"),
        ({"x": np.zeros(2), "output:y": np.zeros(2)}, "unknown array 'x'"),
        ({"input:": np.zeros(2), "output:y": np.zeros(2)}, "unknown array 'input:'"),
        ({"input:x": np.zeros(2), "scale:x": np.uint8(255), "output:y": np.zeros(2)}, "scale of 'x'"),
        ({"input:x": np.zeros(2, np.uint8), "scale:x": np.uint8(0), "output:y": np.zeros(2)}, "scale of 'x'"),
    ],
)
def test_arrays_that_make_no_golden_set(arrays: dict[str, np.ndarray], fault: str, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(
        encode_npz({name: np.asarray(array) for name, array in arrays.items()})
    )
    with pytest.raises(InvalidFileError, match=fault):
        read_golden(tmp_path / "golden.npz", "real")


# Running


def test_a_right_session_passes() -> None:
    chosen = golden()
    session = Answering(chosen)
    outcome = run_golden(session, chosen, GoldenTolerance(1e-3, 32), task="classification")
    assert (outcome.passed, outcome.n, outcome.max_error, outcome.agreement) == (True, 32, 0.0, 32)
    assert session.batches == [1] * 32


def test_only_the_first_few() -> None:
    chosen = golden()
    session = Answering(chosen)
    assert run_golden(session, chosen, GoldenTolerance(1e-3, 32), task="classification", n=8).n == 8
    assert len(session.batches) == 8


def test_too_far_off_fails() -> None:
    chosen = golden()
    outcome = run_golden(
        Answering(chosen, noise=0.1), chosen, GoldenTolerance(0.01, 32), task="classification"
    )
    scale = float(np.ptp(chosen.outputs["probabilities"]))
    assert not outcome.passed
    assert outcome.max_error == pytest.approx(0.1 / scale, rel=1e-4)
    assert "is off by" in outcome.reason
    assert run_golden(
        Answering(chosen, noise=0.1), chosen, GoldenTolerance(outcome.max_error, 32), task="classification"
    ).passed


def test_other_classes_fail_however_wide_the_tolerance() -> None:
    chosen = golden()
    for wrong, passed in ((1, True), (2, False)):
        outcome = run_golden(
            Answering(chosen, wrong=wrong), chosen, GoldenTolerance(2.0, 31), task="classification"
        )
        assert (outcome.passed, outcome.agreement) == (passed, 32 - wrong)
    assert outcome.reason == "30 of 32 samples have the source's class, at least 31 must"


def test_misses_allowed_on_all_are_allowed_on_a_part() -> None:
    chosen = golden()
    for allowed, passed in ((2, True), (1, False)):
        tolerance = GoldenTolerance(2.0, 32 - allowed)
        assert (
            run_golden(Answering(chosen, wrong=2), chosen, tolerance, task="classification", n=8).passed
            is passed
        )


def test_not_finite_or_another_shape_fails() -> None:
    chosen = golden()
    for session in (
        Answering(chosen, noise=np.nan),
        Answering(chosen, noise=np.inf),
        Answering(chosen, shape=1),
    ):
        outcome = run_golden(session, chosen, GoldenTolerance(1e9, 0), task="classification")
        assert (outcome.passed, outcome.max_error, outcome.agreement) == (False, np.inf, 0)
        assert "not finite or has the wrong shape" in outcome.reason


def test_a_fixed_batch_is_a_whole_call() -> None:
    chosen = golden()
    session = Answering(chosen, (TensorSpec("image", "float32", (4, 4, 4, 1)),))
    answers = run_samples(session, {"image": chosen.inputs["image"].reshape(8, 4, 4, 4, 1)})
    assert session.batches == [4] * 8
    np.testing.assert_array_equal(answers["probabilities"].reshape(32, 3), chosen.outputs["probabilities"])


def test_progress_and_missing_inputs() -> None:
    chosen, seen = golden(), []
    run_samples(Answering(chosen), chosen.take(slice(0, 3)).inputs, lambda *step: seen.append(step))
    assert seen == [("running", 1, 3), ("running", 2, 3), ("running", 3, 3)]
    with pytest.raises(UsageError, match="input 'image' is missing"):
        run_samples(Answering(chosen), {"other": chosen.inputs["image"]})


def test_a_part_is_measured_by_the_whole_sets_range() -> None:
    outputs = {"o": np.array([[0.0], [0.1], [10.0], [10.0]])}
    assert compare_outputs({"o": outputs["o"][:2]}, {"o": outputs["o"][:2] + 0.1}, "regression")[
        0
    ] == pytest.approx(1.0)
    error, agreement = compare_outputs(outputs, {"o": outputs["o"] + 0.1}, "regression")
    assert error == pytest.approx(0.01)
    assert agreement is None
    assert compare_outputs(outputs, {}, "regression") == (np.inf, None)


def test_constant_outputs_are_measured_by_their_size() -> None:
    assert compare_outputs({"o": np.full((4, 1), 5.0)}, {"o": np.full((4, 1), 5.5)}, "regression")[
        0
    ] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("precision", "noise", "expected"),
    [("fp32", 0.0, 1e-3), ("fp32", 0.01, 0.02), ("fp16", 0.0, 1e-2), ("int8", 0.0, 0.1), ("int8", 0.2, 0.4)],
)
def test_tolerance_is_twice_what_was_seen_but_not_less_than_hardware_adds(
    precision: str, noise: float, expected: float
) -> None:
    chosen = golden()
    scale = np.float32(np.ptp(chosen.outputs["probabilities"]))
    got = {"probabilities": chosen.outputs["probabilities"] + np.float32(noise) * scale}
    tolerance = tolerance_for(got, chosen, precision=precision, task="classification")
    assert tolerance.max_error == pytest.approx(expected, rel=1e-2)
    assert tolerance.min_agreement == (31 if precision == "int8" else 32)
    assert tolerance_for(got, chosen, precision=precision, task="regression").min_agreement == 0


def test_no_tolerance_for_nan() -> None:
    chosen = golden()
    with pytest.raises(UsageError, match="no tolerance fits"):
        tolerance_for(
            {"probabilities": chosen.outputs["probabilities"] * np.nan},
            chosen,
            precision="fp32",
            task="other",
        )
