"""Parity of each task: what shares a range, and what is measured beside the errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gate import Policy, judge, load_limits, measure_parity
from edgekit.manifest import GateResult, ParityEvidence
from edgekit.parity import OutputPart, output_parts

pytestmark = pytest.mark.device

RANDOM = np.random.default_rng(0)
N, A = 32, 50


def verdict(task: str, seen: ParityEvidence, precision: str = "int8") -> GateResult:
    return judge(precision, Policy(), load_limits(), parity=seen, task=task)


def quantized(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return values as an int8 tensor with the range of `like` holds them."""
    scale = float(np.ptp(like)) / 255.0
    return np.rint(values / scale) * scale


def scores_of_a_detector() -> np.ndarray:
    """Return sigmoid scores: nearly all empty, a few objects in each picture."""
    scores = 0.001 * RANDOM.random((N, A, 3))
    for row in scores:
        for _ in range(3):
            row[RANDOM.integers(A), RANDOM.integers(3)] = 0.5 + 0.5 * RANDOM.random()
    return scores


BOXES = RANDOM.random((N, A, 4)) * 640.0
SCORES = scores_of_a_detector()
STEP: dict[str, Any] = {"kind": "boxes", "boxes": "y", "scores": "y", "coding": "xyxy", "size": [640, 640]}


# Errors


def outputs(*rows: list[float]) -> dict[str, np.ndarray]:
    return {"scores": np.array(rows, np.float32)}


SOURCE = outputs([0.0, 1.0], [0.5, 0.5], [2.0, -2.0], [1.0, 0.0])


def test_equal_outputs_have_no_error() -> None:
    assert measure_parity(SOURCE, SOURCE, argmax=True) == ParityEvidence(
        n=4,
        max_error=0.0,
        p95_error=0.0,
        argmax_agreement=1.0,
        batch2_error=None,
        finite=True,
        constant=False,
    )


def test_errors_are_shares_of_the_output_range() -> None:
    got = outputs([0.0, 1.0], [0.5, 0.5], [2.0, -1.0], [1.0, 0.0])
    seen = measure_parity(SOURCE, got, argmax=True)
    assert seen.max_error == 0.25  # 1 of a range of 4
    assert seen.p95_error == pytest.approx(np.quantile([0.25, *[0.0] * 7], 0.95))
    assert seen.argmax_agreement == 1.0


def test_agreement_counts_samples_of_the_same_class() -> None:
    got = outputs([1.0, 0.0], [0.5, 0.5], [2.0, -2.0], [1.0, 0.0])
    assert measure_parity(SOURCE, got, argmax=True).argmax_agreement == 0.75
    assert measure_parity(SOURCE, got, argmax=False).argmax_agreement is None


def test_one_score_for_two_classes_can_disagree() -> None:
    """The argmax over one column would always agree."""
    source = {"score": np.array([[0.9], [0.8], [0.1], [0.4]], np.float32)}
    got = {"score": np.array([[0.9], [0.3], [0.1], [0.6]], np.float32)}
    assert measure_parity(source, got, argmax=True).argmax_agreement == 0.5


def test_the_worst_output_counts_and_the_scored_one_agrees() -> None:
    source = {"a": np.array([[0.0], [4.0]]), "probabilities": np.array([[0.9, 0.1], [0.2, 0.8]])}
    got = {
        "pair:probabilities": np.zeros((2, 2)),
        "probabilities": np.array([[0.9, 0.1], [0.6, 0.4]]),
        "a": np.array([[0.0], [5.0]]),
    }
    seen = measure_parity(source, got, argmax=True)
    assert (seen.n, seen.argmax_agreement) == (2, 0.5)
    assert seen.max_error == pytest.approx(0.5)  # 0.4 of a range of 0.8, against 1 of 4
    assert seen.p95_error == pytest.approx(0.5)
    flipped = measure_parity(
        dict(reversed(list(source.items()))), dict(reversed(list(got.items()))), argmax=False
    )
    assert (flipped.max_error, flipped.p95_error) == (seen.max_error, seen.p95_error)


def test_a_constant_source_is_measured_by_its_size() -> None:
    source, got = {"y": np.full((3, 1), -5.0)}, {"y": np.full((3, 1), -4.0)}
    assert measure_parity(source, got, argmax=False) == ParityEvidence(n=3, max_error=0.2, p95_error=0.2)


def test_a_source_of_zeros_gives_any_error_all_weight() -> None:
    seen = measure_parity({"y": np.zeros((3, 1))}, {"y": np.full((3, 1), 1e-3)}, argmax=False)
    assert seen.max_error == pytest.approx(1e9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_said_and_nothing_else(bad: float) -> None:
    got = outputs([0.0, 1.0], [0.5, 0.5], [2.0, bad], [1.0, 0.0])
    assert measure_parity(SOURCE, got, argmax=True) == ParityEvidence(
        n=4, max_error=1.0, p95_error=1.0, finite=False
    )


def test_another_shape_counts_as_not_finite() -> None:
    got = {"scores": SOURCE["scores"][:, :1]}
    assert measure_parity(SOURCE, got, argmax=False) == ParityEvidence(
        n=4, max_error=1.0, p95_error=1.0, finite=False
    )
    assert not measure_parity(SOURCE, {"scores": SOURCE["scores"][:1]}, argmax=False).finite


def test_constant_means_that_the_source_varies_and_the_artifact_does_not() -> None:
    still = outputs(*[[0.1, 0.9]] * 4)
    assert measure_parity(SOURCE, still, argmax=True).constant
    assert measure_parity(SOURCE, outputs(*[[0.0, 0.0]] * 4), argmax=True).constant
    assert not measure_parity(still, still, argmax=True).constant
    assert not measure_parity(still, SOURCE, argmax=True).constant
    one = outputs([0.0, 1.0])
    assert not measure_parity(one, one, argmax=True).constant


def test_one_constant_output_among_others_is_enough_wherever_it_stands() -> None:
    source = {"a": np.array([[0.0], [1.0]]), "b": np.array([[0.0], [1.0]])}
    for dead in ("a", "b"):
        got = {**source, dead: np.zeros((2, 1))}
        assert measure_parity(source, got, argmax=False).constant


def test_each_target_of_a_regression_is_measured_by_its_own_range() -> None:
    source = {"y": np.array([[0.0, 0.0], [5e5, 0.5], [1e6, 1.0]])}
    lost = {"y": source["y"] * [1.0, 0.0]}  # what an int8 output with one scale for both makes of it
    assert measure_parity(source, lost, argmax=False).max_error < 1e-5
    seen = measure_parity(source, lost, argmax=False, targets=True)
    assert seen.max_error == 1.0
    assert seen.p95_error == pytest.approx(0.95)
    pairs = {"y": np.add(source["y"][:2], [0.0, 0.25])}
    assert measure_parity(source, source, argmax=False, targets=True, pairs=pairs).batch2_error == 0.25


def test_a_target_that_never_varies_goes_by_the_range_of_all() -> None:
    source, got = {"y": np.array([[0.0, 3.0], [10.0, 3.0]])}, {"y": np.array([[0.0, 3.1], [10.0, 3.1]])}
    assert measure_parity(source, got, argmax=False, targets=True).max_error == pytest.approx(0.01)


def test_only_the_output_that_metrics_look_at_holds_targets() -> None:
    wide = np.array([[0.0, 0.0], [1e6, 1.0]])
    source = {"y": np.array([[0.0], [1.0]]), "features": wide}
    got = {**source, "features": wide * [1.0, 0.0]}
    assert measure_parity(source, got, argmax=False, targets=True).max_error == pytest.approx(1e-6)


def test_a_batch_of_two_is_compared_with_the_same_two_alone() -> None:
    together = outputs([0.0, 1.0], [0.5, 0.3])
    seen = measure_parity(SOURCE, SOURCE, argmax=True, pairs=together)
    assert seen.batch2_error == pytest.approx(0.05)
    assert seen.max_error == 0.0
    assert (
        measure_parity(SOURCE, SOURCE, argmax=True, pairs=outputs([0.0, 1.0], [0.5, 0.5])).batch2_error == 0.0
    )


@pytest.mark.parametrize(
    "together",
    [
        np.array([[0.0, 1.0], [np.nan, 0.5]]),
        np.array([[0.0, 1.0], [np.inf, 0.5]]),
        np.array([[0.0, 1.0]]),
        np.zeros((2, 2, 1)),
    ],
)
def test_a_batch_of_two_that_is_broken_counts_in_full(together: np.ndarray) -> None:
    """NaN compares false with every limit, and one row for two would be broadcast."""
    seen = measure_parity(SOURCE, SOURCE, argmax=True, pairs={"scores": together})
    assert (seen.batch2_error, seen.batch2_p95) == (1.0, 1.0)
    assert verdict("", seen, "fp32").verdict == "refused"


def test_one_value_in_twenty_may_be_off_in_a_batch_of_integers() -> None:
    """Dynamic quantization takes its scale from the whole batch: one neighbour moves the values of the other."""
    source = {"y": np.linspace(0.0, 1.0, 160).reshape(4, 40)}
    pairs = {"y": source["y"][:2].copy()}
    pairs["y"][0, :3] += 0.2
    seen = measure_parity(source, source, argmax=False, pairs=pairs)
    assert seen.batch2_error == pytest.approx(0.2)
    assert seen.batch2_p95 == 0.0
    assert verdict("", seen, "fp32").verdict == "refused"
    assert not any("batch" in reason for reason in verdict("", seen, "int8").reasons)
    pairs["y"][1] = source["y"][0]  # the second answered as the first
    other = measure_parity(source, source, argmax=False, pairs=pairs)
    assert other.batch2_p95 == pytest.approx(40 / 159)
    assert any("batch of two" in reason for reason in verdict("", other, "int8").reasons)


def test_the_worst_output_of_the_batch_counts() -> None:
    source = {"a": np.array([[0.0], [1.0]]), "b": np.array([[0.0], [1.0]])}
    pairs = {"a": np.array([[0.0], [0.7]]), "b": np.array([[0.1], [1.0]])}
    assert measure_parity(source, source, argmax=False, pairs=pairs).batch2_error == pytest.approx(0.3)


@given(st.integers(2, 20), st.integers(0, 1000), st.floats(0.0, 0.5))
def test_errors_are_symmetric_and_ordered(n: int, seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    source = random.random((n, 3))
    got = source + noise * random.standard_normal((n, 3))
    seen = measure_parity({"y": source}, {"y": got}, argmax=True)
    mirrored = measure_parity({"y": -source}, {"y": -got}, argmax=False)
    scaled = measure_parity({"y": 7.0 * source + 3.0}, {"y": 7.0 * got + 3.0}, argmax=True)
    assert 0.0 <= seen.p95_error <= seen.max_error
    assert (mirrored.max_error, mirrored.p95_error) == (seen.max_error, seen.p95_error)
    assert scaled.max_error == pytest.approx(seen.max_error, abs=1e-12)
    assert scaled.argmax_agreement == pytest.approx(seen.argmax_agreement)


# What shares a range


def names(outputs: dict[str, np.ndarray], steps: tuple[dict[str, Any], ...] = ()) -> list[tuple[Any, ...]]:
    return [(p.output, p.kind, p.axis, p.first, p.last) for p in output_parts(outputs, "detection", steps)]


def test_only_a_detector_has_parts() -> None:
    assert output_parts({"y": np.zeros((2, 9, 7))}, "classification") == [OutputPart("y")]


def test_boxes_and_scores_by_name_or_by_their_columns() -> None:
    apart = {"b": BOXES, "s": SCORES, "count": np.zeros((N, 1), np.int64)}
    assert names(apart, (STEP | {"boxes": "b", "scores": "s"},)) == [
        ("b", "boxes", -1, 0, None),
        ("s", "scores", -1, 0, None),
        ("count", "", -1, 0, None),
    ]
    assert [kind for _, kind, *_ in names(apart)] == ["boxes", "scores", ""]
    swapped = (STEP | {"boxes": "s", "scores": "b"},)
    assert [kind for _, kind, *_ in names(apart, swapped)] == ["scores", "boxes", ""]


def test_one_output_falls_into_its_columns() -> None:
    parts = [("boxes", 0, 4), ("scores", 4, 5), ("scores", 5, None)]
    last = {"y": np.zeros((2, 50, 9))}
    first = {"y": np.zeros((2, 9, 50))}
    assert names(last) == names(last, (STEP,)) == [("y", kind, 2, a, b) for kind, a, b in parts]
    assert names(first) == [("y", kind, 1, a, b) for kind, a, b in parts]
    assert names(first, (STEP | {"transposed": True},)) == names(first)
    assert names({"y": np.zeros((2, 50, 5))}, (STEP,)) == [("y", "boxes", 2, 0, 4), ("y", "scores", 2, 4, 5)]
    assert names({"y": np.zeros((2, 50, 5))}) == [("y", "scores", -1, 0, None)]


def test_a_part_is_cut_along_its_axis() -> None:
    array = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    assert np.array_equal(OutputPart("y", "boxes", 1, 0, 4).of(array), array[:, :4])
    assert np.array_equal(OutputPart("y", "scores", 1, 4).of(array), array[:, 4:])
    assert np.array_equal(OutputPart("y", "scores", 2, 1, 2).of(array), array[:, :, 1:2])
    assert OutputPart("y").of(array) is array


# Detection


@pytest.mark.parametrize("steps", [(), (STEP,)])
def test_scores_crushed_by_the_scale_of_boxes_are_refused(steps: tuple[dict[str, Any], ...]) -> None:
    """Boxes up to 640 give a step of 2.5: every score becomes 0, and the error is 0.16 % of the output's range."""
    both = np.concatenate([BOXES, SCORES], axis=-1)
    one, crushed = {"y": both}, {"y": quantized(both, both)}
    assert not crushed["y"][..., 4:].any()
    blind = measure_parity(one, crushed, argmax=False)
    assert blind.max_error < 0.005
    assert not blind.constant
    assert verdict("", blind).verdict == "unproven"
    seen = measure_parity(one, crushed, argmax=False, task="detection", steps=steps)
    assert seen.constant
    result = verdict("detection", seen)
    assert result.verdict == "refused"
    assert any("scores that say something" in reason for reason in result.reasons)


def test_scores_that_keep_a_trace_are_refused_too() -> None:
    """Boxes up to 4 wide give a step of 0.4 or so: scores become 0 or 0.4 or 0.8, and most were 0 anyway."""
    boxes = BOXES / 640.0 * 100.0
    both = np.concatenate([boxes, SCORES], axis=-1)
    seen = measure_parity({"y": both}, {"y": quantized(both, both)}, argmax=False, task="detection")
    assert not seen.constant
    assert seen.p95_error < 0.05
    assert seen.active_error is not None
    assert seen.active_error > 0.1
    assert verdict("detection", seen).verdict == "refused"


def test_scores_with_a_scale_of_their_own_hold() -> None:
    reference = {"b": BOXES, "s": SCORES}
    got = {"b": quantized(BOXES, BOXES), "s": quantized(SCORES, SCORES)}
    seen = measure_parity(reference, got, argmax=False, task="detection")
    assert seen.active_error is not None
    assert seen.active_error < 0.002
    assert verdict("detection", seen).verdict == "unproven"  # no metric here, and nothing against it


def test_the_error_of_scores_is_the_median_of_those_that_say_something() -> None:
    scores = np.zeros((4, 10, 1))
    scores[:, 0, 0] = [0.3, 0.8, 0.9, 1.0]  # beyond a quarter of the range
    scores[:, 1, 0] = 0.2  # within it
    got = scores - np.where(scores > 0, np.array([0.3, 0.1, 0.2, 0.4])[:, None, None], 0.0)
    seen = measure_parity({"b": np.zeros((4, 10, 4)), "s": scores}, {"b": np.zeros((4, 10, 4)), "s": got},
                          argmax=False, task="detection")  # fmt: skip
    assert seen.active_error == pytest.approx(0.25)
    silent = measure_parity(
        {"s": np.zeros((4, 10, 3))}, {"s": np.zeros((4, 10, 3))}, argmax=False, task="detection"
    )
    assert silent.active_error == 0.0


def test_a_batch_of_two_is_measured_by_parts() -> None:
    both = np.concatenate([BOXES, SCORES], axis=-1)
    pair = both[:2].copy()
    pair[0, 0, 4] += 0.5
    seen = measure_parity({"y": both}, {"y": both}, argmax=False, task="detection", pairs={"y": pair})
    assert seen.batch2_error is not None
    assert seen.batch2_error > 0.4
    other = measure_parity(
        {"y": both}, {"y": both}, argmax=False, task="detection", pairs={"y": both[:2, :, :4]}
    )
    assert other.batch2_error == 1.0


# Embedding, generation, segmentation


def test_an_embedding_is_judged_by_its_angle() -> None:
    want = RANDOM.normal(size=(40, 64))
    noise = RANDOM.normal(size=(40, 64))
    same = measure_parity({"y": want}, {"y": want}, argmax=False, task="embedding")
    assert same.cosine == pytest.approx(1.0)
    assert verdict("embedding", same).verdict == "unproven"
    bad = measure_parity({"y": want}, {"y": want + 0.5 * noise}, argmax=False, task="embedding")
    assert bad.cosine is not None
    assert 0.8 < bad.cosine < 0.93
    reasons = verdict("embedding", bad).reasons
    assert any(
        "the cosine to the source's embedding is" in reason and "limit 0.97" in reason for reason in reasons
    )


def test_a_signal_is_judged_by_its_noise() -> None:
    want = RANDOM.normal(size=(40, 64))
    noise = RANDOM.normal(size=(40, 64))
    fine = measure_parity({"y": want}, {"y": want + 0.03 * noise}, argmax=False, task="generation")
    assert fine.snr_db is not None
    assert fine.snr_db == pytest.approx(30.0, abs=2.0)
    assert verdict("generation", fine).verdict == "unproven"
    assert verdict("generation", fine, "int16x8").verdict == "refused"
    bad = measure_parity({"y": want}, {"y": want + 0.2 * noise}, argmax=False, task="generation")
    assert any(
        reason.startswith("the signal-to-noise ratio") for reason in verdict("generation", bad).reasons
    )


def test_masks_agree_by_the_pixel() -> None:
    scores = RANDOM.normal(size=(32, 8, 8, 3))
    got = scores.copy()
    got[:16, 0, 0] += [9.0, 0.0, 0.0]
    seen = measure_parity({"y": scores}, {"y": got}, argmax=False, task="segmentation")
    flipped = (scores[:16, 0, 0].argmax(-1) != 0).sum()
    assert seen.argmax_agreement == pytest.approx(1.0 - flipped / scores[..., 0].size)
    steps = ({"kind": "argmax", "output": "y", "axis": -1},)
    assert measure_parity({"y": scores}, {"y": got}, argmax=False, task="segmentation", steps=steps) == seen
    low = verdict("segmentation", ParityEvidence(n=32, max_error=0.0, p95_error=0.0, argmax_agreement=0.9))
    assert low.reasons == ("argmax agrees on 90.0% of pixels, limit 97%",)


def test_nothing_of_another_task_is_measured() -> None:
    seen = measure_parity({"y": np.eye(3)}, {"y": np.eye(3)}, argmax=True)
    assert (seen.active_error, seen.cosine, seen.snr_db) == (None, None, None)
