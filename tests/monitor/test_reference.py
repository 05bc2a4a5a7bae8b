from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InvalidFileError, UsageError
from edgekit.monitor.reference import (
    MAX_BINS,
    SAMPLES_PER_BIN,
    Reference,
    bin_confidences,
    build_reference,
    classify,
    confidence_output,
    decode_references,
    detect_activation,
    encode_references,
)

pytestmark = pytest.mark.device


def two_classes(confidence: np.ndarray) -> np.ndarray:
    """Rows whose first class has the given confidence, above a half."""
    return np.stack([confidence, 1.0 - confidence], axis=1).astype(np.float64)


def spread(n: int) -> np.ndarray:
    return two_classes(np.linspace(0.6, 0.99, n))


def test_bins_hold_equal_shares_of_the_reference() -> None:
    reference = build_reference("classification", {"p": spread(1000)}, np.zeros(1000, np.int64))
    assert reference.bins == MAX_BINS == 20
    assert reference.counts == (50,) * 20
    assert reference.hits == (50,) * 20
    assert reference.class_mix == (1000, 0)
    assert (reference.task, reference.n, reference.output) == ("classification", 1000, "p")
    assert (reference.activation, reference.classes) == ("probabilities", 2)
    assert len(reference.edges) == 21
    assert reference.edges[0] == pytest.approx(0.6 - 1e-6, abs=1e-12)
    assert reference.edges[-1] == pytest.approx(0.99 + 1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "bins"), [(1, 1), (24, 1), (49, 1), (50, 2), (499, 19), (500, 20), (1013, 20), (2000, 20)]
)
def test_a_bin_is_not_made_of_too_few_samples(n: int, bins: int) -> None:
    reference = build_reference("classification", {"p": spread(n)})
    assert reference.bins == bins
    assert sum(reference.counts) == n
    assert min(reference.counts) >= min(SAMPLES_PER_BIN, n)


def test_hits_are_counted_where_they_fall() -> None:
    labels = np.zeros(100, np.int64)
    labels[:10] = 1  # the ten least confident are wrong
    reference = build_reference("classification", {"p": spread(100)}, labels)
    assert reference.counts == (25, 25, 25, 25)
    assert reference.hits == (15, 25, 25, 25)
    assert reference.accuracy == 0.9
    assert reference.rates().tolist() == [0.6, 0.6, 1.0, 1.0, 1.0, 1.0]
    assert reference.labelled


def test_without_labels_there_are_bins_but_no_rates() -> None:
    reference = build_reference("classification", {"p": spread(100)})
    assert reference.bins == 4
    assert reference.hits == ()
    assert reference.accuracy is None
    assert not reference.labelled


def test_equal_confidences_are_never_parted() -> None:
    few = np.repeat([0.996, 0.7, 0.8], [900, 60, 40])  # as an int8 softmax answers
    reference = build_reference("classification", {"p": two_classes(few)})
    assert reference.counts == (60, 940)
    assert reference.edges[1] == pytest.approx(0.75)
    assert build_reference("classification", {"p": two_classes(np.full(500, 0.9))}).counts == (500,)


@given(st.lists(st.integers(128, 255), min_size=1, max_size=400))
def test_every_reference_sample_is_inside_the_edges_and_no_bin_is_thin(levels: list[int]) -> None:
    confidence = np.array(levels) / 256.0
    reference = build_reference("classification", {"p": two_classes(confidence)})
    bins = bin_confidences(np.array(reference.edges), confidence)
    assert bins.min() >= 1
    assert bins.max() <= reference.bins
    assert np.bincount(bins, minlength=reference.bins + 2)[1:-1].tolist() == list(reference.counts)
    assert min(reference.counts) >= min(len(levels), max(SAMPLES_PER_BIN, len(levels) // 20))


def test_neighbouring_floats_can_be_parted() -> None:
    lower = 0.7
    upper = math.nextafter(lower, 1.0)
    top = math.nextafter(upper, 1.0)
    confidence = np.repeat([lower, upper, top], 25)
    assert build_reference("classification", {"p": two_classes(confidence)}).counts == (25, 25, 25)


def test_what_lies_outside_has_bins_of_its_own() -> None:
    edges = np.array([0.5, 0.75, 0.9])
    got = bin_confidences(edges, np.array([0.4, 0.5, 0.500001, 0.75, 0.76, 0.9, 0.91]))
    assert got.tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_logits_are_told_from_probabilities() -> None:
    assert detect_activation(np.array([[0.2, 0.8], [0.5, 0.5]])) == "probabilities"
    assert detect_activation(np.array([[0.2, 0.8], [-0.002, 1.0]])) == "logits"
    assert detect_activation(np.array([[0.2, 0.8], [0.0, 1.002]])) == "logits"
    assert detect_activation(np.array([[0.2, 0.8], [-0.0005, 1.0005]])) == "probabilities"
    assert detect_activation(np.array([[0.9, 0.9], [0.9, 0.9]])) == "logits"
    assert detect_activation(np.array([[0.625, 0.625]])) == "probabilities"
    assert detect_activation(np.array([[0.375, 0.375]])) == "probabilities"
    assert detect_activation(np.array([[0.37, 0.37]])) == "logits"
    assert detect_activation(np.array([[0.9], [0.1]])) == "probabilities"
    assert detect_activation(np.array([[3.0], [0.1]])) == "logits"


def test_probabilities_classify_themselves() -> None:
    classes, confidence = classify(np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]], np.float32), "probabilities")
    assert classes.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.7, 0.6])


def test_logits_go_through_a_softmax_that_does_not_overflow() -> None:
    logits = np.array([[math.log(1.0), math.log(3.0)], [10_000.0, 0.0]])
    classes, confidence = classify(logits, "logits")
    assert classes.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.75, 1.0])


def test_one_column_is_a_binary_answer() -> None:
    classes, confidence = classify(np.array([[0.9], [0.2]]), "probabilities")
    assert classes.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.9, 0.8])
    classes, confidence = classify(np.array([[math.log(4.0)], [-math.log(4.0)]]), "logits")
    assert classes.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.8, 0.8])


def test_a_binary_reference_has_two_classes() -> None:
    scores = np.linspace(0.01, 0.99, 100)[:, None]
    reference = build_reference("classification", {"p": scores}, (scores[:, 0] > 0.5).astype(np.int64))
    assert reference.classes == 2
    assert reference.class_mix == (50, 50)
    assert reference.accuracy == 1.0


def test_logits_make_a_reference_of_their_softmax() -> None:
    logits = np.stack([np.linspace(1.0, 5.0, 100), np.zeros(100)], axis=1).astype(np.float32)
    reference = build_reference("classification", {"z": logits})
    assert reference.activation == "logits"
    assert reference.edges[0] == pytest.approx(1.0 / (1.0 + math.exp(-1.0)) - 1e-6, abs=1e-9)


def test_the_first_output_with_one_score_for_each_class_is_taken() -> None:
    scores = np.zeros((4, 3), np.float32)
    outputs: dict[str, np.ndarray] = {
        "label": np.zeros(4, np.int64),
        "ids": np.zeros((4, 3), np.int64),
        "empty": np.zeros((4, 0), np.float32),
        "map": np.zeros((4, 2, 2), np.float32),
        "scores": scores,
        "more": scores,
    }
    assert confidence_output("classification", outputs) == "scores"
    assert confidence_output("regression", outputs) == ""
    assert confidence_output("classification", {"label": np.zeros(4)}) == ""


def test_outputs_without_confidence_make_a_reference_without_bins() -> None:
    assert build_reference("regression", {"y": np.zeros((7, 1))}) == Reference("regression", 7)
    assert build_reference("other", {}) == Reference("other", 0)
    nothing_finite = np.full((5, 2), np.nan)
    assert build_reference("classification", {"p": nothing_finite}) == Reference("classification", 5)


def test_rows_that_are_not_finite_are_left_out_with_their_labels() -> None:
    scores = spread(100)
    labels = np.ones(100, np.int64)
    labels[3] = 0
    scores[3] = np.inf
    scores[50, 1] = np.nan
    reference = build_reference("classification", {"p": scores}, labels)
    assert reference.n == 100
    assert sum(reference.counts) == 98
    assert sum(reference.hits) == 0


def test_labels_must_fit() -> None:
    with pytest.raises(UsageError, match=r"labels do not fit the outputs: got \[9\], expected \[10\]"):
        build_reference("classification", {"p": spread(10)}, np.zeros(9, np.int64))
    column = build_reference("classification", {"p": spread(10)}, np.zeros((10, 1), np.int64))
    assert column.hits == (10,)


def test_references_survive_their_file() -> None:
    references = {
        "tflite-int8": build_reference("classification", {"p": spread(300)}, np.zeros(300, np.int64)),
        "onnx-fp32": Reference("regression", 3),
    }
    data = encode_references(references)
    assert decode_references(data) == references
    assert data == encode_references(dict(reversed(references.items())))
    assert data.startswith(b'{"onnx-fp32":{"activation":"none","class_mix":[],')
    assert data.endswith(b"}\n")


def test_a_newer_schema_is_refused_by_name() -> None:
    data = b'{"a":{"task":"other","n":1,"schema":2}}'
    with pytest.raises(
        InvalidFileError, match=r"lab\.json has a newer schema for a: got 2, expected at most 1"
    ):
        decode_references(data, "lab.json")


GOOD = {
    "task": "classification",
    "n": 4,
    "edges": (0.1, 0.5, 0.9),
    "counts": (2, 2),
    "hits": (0, 2),
    "classes": 2,
    "class_mix": (1, 3),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": (0.1, 0.9)}, "B . 1 edges"),
        ({"edges": (), "hits": ()}, "B . 1 edges"),
        ({"edges": (0.1, 0.1, 0.9)}, "ascend"),
        ({"edges": (0.1, 0.5, 0.4)}, "ascend"),
        ({"edges": (0.1, 0.5, math.inf)}, "finite"),
        ({"counts": (0, 4)}, "a sample"),
        ({"hits": (2,)}, "hits"),
        ({"hits": (3, 0)}, "hits"),
        ({"hits": (-1, 0)}, "hits"),
        ({"class_mix": (4,)}, "class mix"),
    ],
)
def test_a_reference_that_contradicts_itself_is_refused(change: dict[str, object], words: str) -> None:
    Reference(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        Reference(**{**GOOD, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff", b'{"\xff":{}}', b'{"a":{}}', b'{"a":{"task":"x","n":1,"edges":[0.1]}}', b'{"a":1}'],
)
def test_a_damaged_file_is_named(data: bytes) -> None:
    with pytest.raises(InvalidFileError, match=r"lab\.json is not a reference"):
        decode_references(data, "lab.json")
