"""The metrics of each task against numbers worked out by hand, scikit-learn, TensorFlow and pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.metrics import (
    METRICS,
    cosines,
    detected_classes,
    drop_in_points,
    infer_task,
    labels_needed,
    predicted_mask,
    resampler,
    signal_to_noise,
)

pytestmark = pytest.mark.device


def value(name: str, output: Any, labels: Any, key: str = "y") -> float:
    return METRICS[name].value({key: np.asarray(output)}, np.asarray(labels))


def resampled(name: str, output: Any, labels: Any, index: list[int], key: str = "y") -> float:
    return resampler(METRICS[name], {key: np.asarray(output)}, np.asarray(labels))(np.array(index))


# Binary risk


SCORES, TRUTH = [[0.1], [0.4], [0.35], [0.8]], [0, 0, 1, 1]


def test_areas_by_hand() -> None:
    assert value("roc_auc", SCORES, TRUTH) == 0.75  # three of four pairs
    assert value("pr_auc", SCORES, TRUTH) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)
    assert value("roc_auc", [[0.5], [0.5], [0.5]], [0, 1, 1]) == 0.5


def test_recall_at_nine_in_ten() -> None:
    scores = np.linspace(1.0, 0.0, 21)[:, None]
    labels = np.array([1] * 9 + [0] + [1] * 5 + [0] * 6)
    # at rank 10 the precision is 9/10, at rank 15 it is 14/15, at 16 14/16
    assert value("recall_at_precision", scores, labels) == 1.0
    labels[13:15] = 0  # 12 of 13 at rank 13
    assert value("recall_at_precision", scores, labels) == 1.0
    labels[10] = 0  # 9 of 11, 11 of 13: rank 10 is the last
    assert value("recall_at_precision", scores, labels) == pytest.approx(9 / 11)
    assert value("recall_at_precision", -scores, labels) == 0.0


def test_one_class_alone_ranks_nothing() -> None:
    assert resampled("roc_auc", SCORES, TRUTH, [0, 1, 1, 0]) == 0.5
    assert resampled("pr_auc", SCORES, TRUTH, [0, 1, 1, 0]) == 0.0


def test_two_columns_rank_as_their_difference() -> None:
    logits = np.array([[0.0, 1.0], [5.0, 5.5], [9.0, 9.2], [0.0, 3.0]])
    assert value("roc_auc", logits, [1, 0, 0, 1]) == 1.0
    shares = np.hstack([1.0 - np.array(SCORES), SCORES])
    assert value("roc_auc", shares, TRUTH) == 0.75


def test_what_is_not_binary_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a binary score: got 3 classes"):
        value("roc_auc", np.eye(3), [0, 1, 1])
    with pytest.raises(UsageError, match="labels that are 0 or 1"):
        value("pr_auc", SCORES, [0, 1, 2, 1])


def test_calibration_error_by_hand() -> None:
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    # (0.8667, 0.9333]: half right at 0.9; 0.7: right; 0.55: wrong
    assert value("ece", shares, [0, 1, 1, 0]) == pytest.approx((2 * 0.4 + 0.3 + 0.55) / 4)
    assert value("ece", np.log(shares) + 7.0, [0, 1, 1, 0]) == pytest.approx((2 * 0.4 + 0.3 + 0.55) / 4)
    assert value("ece", np.eye(2), [0, 1]) == 0.0


@pytest.mark.convert
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 80), levels=st.sampled_from([3, 1000]))
def test_risk_agrees_with_scikit_learn(seed: int, n: int, levels: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels + 1, n) / levels  # with ties
    labels = random.integers(0, 2, n)
    labels[:2] = 0, 1
    index = np.concatenate([[0, 1], random.integers(0, n, n)])
    for rows in (np.arange(n), index):
        truth, ranks = labels[rows], scores[rows]
        precision, recall, _ = sklearn.precision_recall_curve(truth, ranks)
        expected = {
            "roc_auc": sklearn.roc_auc_score(truth, ranks),
            "pr_auc": sklearn.average_precision_score(truth, ranks),
            "recall_at_precision": max(recall[:-1][precision[:-1] >= 0.9], default=0.0),
        }
        for name, want in expected.items():
            got = resampler(METRICS[name], {"y": scores[:, None]}, labels)(rows)
            assert got == pytest.approx(want), name


# Segmentation


def test_miou_by_hand() -> None:
    answers = np.array([[[0, 0], [1, 1]], [[2, 0], [0, 0]]])
    labels = np.array([[[0, 1], [1, 1]], [[0, 0], [255, -1]]])
    # class 0: 2 of 4 (one answered for 1, one answered 2), class 1: 2 of 3, class 2: 0 of 1
    assert value("miou", answers, labels) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    assert resampled("miou", answers, labels, [0, 0]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert resampled("miou", answers, labels, [1, 0, 1]) == pytest.approx((3 / 6 + 2 / 3 + 0) / 3)
    scores = np.eye(3)[answers]
    assert value("miou", scores, labels) == value("miou", answers, labels)
    assert value("miou", np.moveaxis(scores, -1, 1), labels[..., None]) == value("miou", answers, labels)


def test_one_channel_is_the_positive_class() -> None:
    assert predicted_mask({"y": np.array([[[0.2, 0.7]]])}).tolist() == [[[0, 1]]]
    assert predicted_mask({"y": np.array([[[[-3.0], [0.7]]]])}).tolist() == [[[0, 1]]]
    assert predicted_mask({"y": np.zeros((1, 3, 8, 9))}).shape == (1, 8, 9)
    assert predicted_mask({"y": np.zeros((1, 8, 9, 3))}).shape == (1, 8, 9)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"have not the output's size: got .*resize-mask"):
        value("miou", np.zeros((1, 4, 4, 3)), np.zeros((1, 8, 8)))
    with pytest.raises(UsageError, match="have not the output's size"):
        value("miou", np.zeros((1, 4, 4), np.int64), np.zeros((1, 8, 8)))
    with pytest.raises(UsageError, match="masks are whole numbers"):
        value("miou", np.zeros((1, 4, 4, 3)), np.full((1, 4, 4), 0.5))
    with pytest.raises(UsageError, match="no map of class scores"):
        value("miou", np.zeros((1, 4)), np.zeros((1, 4, 4)))


@pytest.mark.convert
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6))
def test_miou_agrees_with_scikit_learn(seed: int, classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    labels, answers = random.integers(0, classes, (2, 5, 4, 4))
    index = random.integers(0, 5, 5)
    want = sklearn.jaccard_score(labels[index].ravel(), answers[index].ravel(), average="macro")
    assert resampler(METRICS["miou"], {"y": answers}, labels)(index) == pytest.approx(want)


# Embedding


def test_cosines_by_hand() -> None:
    got, want = (
        np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]),
        np.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]]),
    )
    assert cosines(got, want) == pytest.approx([24 / 25, -1.0, 0.0])
    assert value("cosine", got, want) == pytest.approx((24 / 25 - 1.0) / 3)
    assert value("cosine", want, want) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="embeddings differ in size"):
        cosines(got, want[:, :1])


def test_retrieval_by_hand() -> None:
    angles = np.radians([0, 10, 40, 50, 90, 200, 205])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 8)[:, None]
    groups = np.array([0, 1, 0, 1, 9, 2, 2])
    # nearest: 0→1 (no), 1→0 (no), 2→3 (no), 3→2 (no), 5→6 and 6→5 (yes); 9 is alone and no query
    right = METRICS["recall@1"].per_sample({"y": vectors}, groups)
    assert right is not None
    assert right.tolist() == [0, 0, 0, 0, 1, 1]
    assert value("recall@1", vectors, groups) == pytest.approx(2 / 6)
    assert value("recall@5", vectors, groups) == 1.0
    with pytest.raises(UsageError, match="no group has two samples"):
        value("recall@1", vectors, np.arange(7))
    with pytest.raises(UsageError, match="one group for each sample"):
        value("recall@1", vectors, groups[:, None])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(6, 30))
def test_retrieval_as_its_definition_has_it(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    vectors, groups = random.normal(size=(n, 3)), random.integers(0, 3, n)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for k in (1, 5):
        want = []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            if any(groups[j] == groups[i] for j in others):
                near = sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:k]
                want.append(float(any(groups[j] == groups[i] for j in near)))
        got = METRICS[f"recall@{k}"].per_sample({"y": vectors}, groups)
        assert got is not None
        assert got.tolist() == want


# Generation


def test_decibels_by_hand() -> None:
    target = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    got = target + np.array([[0.1] * 4, [0.02] * 4])
    assert value("psnr", got, target) == pytest.approx((20 * np.log10(2 / 0.1) + 40.0) / 2)
    assert signal_to_noise(got, target) == pytest.approx(10 * np.log10([2 / 0.04, 4 / 0.0016]))
    assert value("snr", got, target) == pytest.approx(signal_to_noise(got, target).mean())
    assert resampled("psnr", got, target, [1, 1]) == pytest.approx(40.0)


def test_a_copy_is_at_the_ceiling_and_noise_without_signal_at_the_floor() -> None:
    target = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert value("psnr", target, target) == 100.0
    assert signal_to_noise(target + 1.0, target).tolist() == pytest.approx([10 * np.log10(0.5), -100.0])


def test_targets_of_another_size_are_refused() -> None:
    for name in ("psnr", "ssim", "snr"):
        with pytest.raises(UsageError, match="targets do not fit the output"):
            value(name, np.zeros((2, 16, 16)), np.zeros((2, 8, 8)))
    with pytest.raises(UsageError, match="too small for SSIM"):
        value("ssim", np.zeros((2, 10, 16)), np.zeros((2, 10, 16)))
    with pytest.raises(UsageError, match="SSIM compares pictures"):
        value("ssim", np.zeros((2, 10)), np.zeros((2, 10)))


@pytest.mark.convert
def test_ssim_and_psnr_agree_with_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    random = np.random.default_rng(0)
    want = random.random((3, 20, 17, 3))
    want[0, 0, 0], want[0, 0, 1] = 0.0, 1.0  # a range of exactly 1
    got = np.clip(want + 0.1 * random.normal(size=want.shape), 0.0, 1.0)
    ours = [value(name, got, want) for name in ("ssim", "psnr")]
    theirs = [float(f(got, want, 1.0).numpy().mean()) for f in (tf.image.ssim, tf.image.psnr)]
    assert ours == pytest.approx(theirs, rel=1e-4)
    first, second = (np.moveaxis(a, -1, 1) for a in (got, want))
    assert value("ssim", first, second) == pytest.approx(ours[0])
    assert value("ssim", want, want) == pytest.approx(1.0)


# Detection


def found(*pictures: list[list[float]]) -> np.ndarray:
    array = np.full((len(pictures), 5, 6), -1.0, np.float32)
    for i, rows in enumerate(pictures):
        array[i, : len(rows)] = np.array(rows).reshape(-1, 6)
    return array


LABELS = np.array(
    [[[0, 0, 10, 10, 0], [20, 20, 30, 30, 1]], [[0, 0, 10, 10, 0], [-1, -1, -1, -1, -1]]], float
)


@pytest.mark.convert
def test_map_by_hand() -> None:
    pytest.importorskip("pycocotools")
    every = found([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1]], [[0, 0, 10, 10, 0.7, 0]])
    assert value("map", every, LABELS) == pytest.approx(1.0)
    half = found([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1]], [[50, 50, 60, 60, 0.95, 0]])
    # class 0: a wrong one first, then one of two: precision 1/2 up to a recall of 1/2, that is 51 of 101 points
    assert value("map50", half, LABELS) == pytest.approx((0.5 * 51 / 101 + 1.0) / 2)
    loose = found([[0, 0, 10, 8, 0.9, 0], [20, 20, 30, 30, 0.8, 1]], [[0, 0, 10, 8, 0.9, 0]])
    assert value("map50", loose, LABELS) == pytest.approx(1.0)
    assert value("map", loose, LABELS) == pytest.approx(
        (0.7 + 1.0) / 2
    )  # an overlap of 0.8: 7 thresholds of 10
    assert value("map", found([], []), LABELS) == 0.0
    stranger = found([[0, 0, 10, 10, 0.99, 7]], [])
    assert value("map", stranger, LABELS) == 0.0


@pytest.mark.convert
def test_a_class_without_objects_in_the_resample_does_not_count() -> None:
    pytest.importorskip("pycocotools")
    every = found([[0, 0, 10, 10, 0.9, 0]], [[0, 0, 10, 10, 0.7, 0]])
    assert value("map50", every, LABELS) == pytest.approx(0.5)
    assert resampled("map50", every, LABELS, [1, 1]) == pytest.approx(1.0)


@pytest.mark.convert
def test_what_is_no_detection_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"the outputs hold no detections: got a \[1, 3, 4\], b \[1, 3, 2\].*boxes and nms"
    ):
        METRICS["map"].value({"a": np.zeros((1, 3, 4)), "b": np.zeros((1, 3, 2))}, LABELS)
    with pytest.raises(UsageError, match="the labels are no boxes"):
        value("map", found([], []), LABELS[..., :4])
    for place, wrong in ((2, -5.0), (3, 5.0), (4, 0.5)):
        broken = LABELS.copy()
        broken[0, 1, place] = wrong
        with pytest.raises(UsageError, match="label 1 of sample 0 is no box"):
            value("map", found([], []), broken)
    with pytest.raises(UsageError, match="every class is -1"):
        value("map", found([], []), np.full((2, 1, 5), -1.0))


def test_detected_classes_score_enough() -> None:
    every = found([[0, 0, 10, 10, 0.9, 0], [0, 0, 1, 1, 0.2, 3]], [[0, 0, 10, 10, 0.3, 2]])
    assert detected_classes({"detections": every}, 0.31).tolist() == [0]
    assert detected_classes({"detections": every}, 0.29).tolist() == [0, 2]


def scene(seed: int, pictures: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return detections and labels of pictures with 0 to 4 objects, found more or less well."""
    random = np.random.default_rng(seed)
    labels = np.full((pictures, 4, 5), -1.0)
    detections = np.full((pictures, 12, 6), -1.0, np.float32)
    for i in range(pictures):
        count = random.integers(0, 5)
        corner, side = random.random((count, 2)) * 60, 8 + random.random((count, 2)) * 30
        labels[i, :count] = np.column_stack([corner, corner + side, random.integers(0, classes, count)])
        rows = []
        for box in labels[i, :count]:
            for _ in range(random.integers(0, 3)):
                moved = box[:4] + random.normal(size=4) * 2
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                seen = box[4] if random.random() < 0.8 else random.integers(0, classes)
                rows.append([*moved, random.random(), seen])
        rows += [[0, 0, 9, 9, random.random() * 0.5, random.integers(0, classes)]] * random.integers(0, 2)
        detections[i, : len(rows)] = np.array(rows, np.float32).reshape(-1, 6)
    return detections, labels


def coco_average(detections: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mAP and mAP50 as pycocotools alone computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def side(boxes: np.ndarray, last: int) -> Any:
        rows = [
            {"id": n, "image_id": i, "category_id": int(box[last]), "iscrowd": 0, "score": float(box[4]),
             "bbox": [*map(float, box[:2]), *(float(v) for v in box[2:4] - box[:2])], "area": 1.0}
            for n, (i, box) in enumerate(((i, b) for i, p in enumerate(boxes) for b in p if b[last] >= 0), 1)
        ]  # fmt: skip
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(boxes))],
            "categories": [{"id": c} for c in range(20)],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(side(labels, 4), side(detections, 5), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), float(run.stats[1])


@pytest.mark.convert
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_map_agrees_with_pycocotools_on_resamples_too(seed: int) -> None:
    pytest.importorskip("pycocotools")
    detections, labels = scene(seed, 25, 4)
    labels[0, 0] = [0, 0, 10, 10, 0]
    index = np.random.default_rng(seed).integers(0, 25, 25)
    index[0] = 0
    for rows in (np.arange(25), np.sort(index)):
        want = coco_average(detections[rows], labels[rows])
        got = [
            resampler(METRICS[name], {"detections": detections}, labels)(rows) for name in ("map", "map50")
        ]
        assert got == pytest.approx(want, abs=1e-9)


@pytest.mark.convert
def test_two_hundred_resamples_of_five_hundred_pictures() -> None:
    pytest.importorskip("pycocotools")
    detections, labels = scene(3, 500, 10)
    evaluate = resampler(METRICS["map"], {"detections": detections}, labels)
    random = np.random.default_rng(0)
    values = [evaluate(random.integers(0, 500, 500)) for _ in range(200)]
    assert 0.0 < np.std(values) < 0.05


# Units


@pytest.mark.parametrize(
    ("name", "source", "artifact", "against", "points"),
    [
        ("map", 0.9, 0.88, False, 2.0),
        ("ece", 0.01, 0.03, False, 2.0),
        ("mae", 1.0, 2.0, False, 10.0),  # of a range of 10
        ("psnr", 30.0, 29.5, False, 1.0),
        ("psnr", 100.0, 40.0, True, 1.0),
        ("snr", 100.0, 20.0, True, 10.0),
        ("ssim", 1.0, 0.99, True, 1.0),
        ("cosine", 1.0, 0.995, True, 0.5),
    ],
)
def test_a_drop_is_in_stated_points(
    name: str, source: float, artifact: float, against: bool, points: float
) -> None:
    labels = np.array([0.0, 10.0])
    got = drop_in_points(METRICS[name], source, artifact, labels, against_source=against)
    assert got == pytest.approx(points, abs=2e-3)
    back = drop_in_points(METRICS[name], artifact, source, labels, against_source=against)
    assert back == pytest.approx(-points, abs=2e-3)


def test_labels_are_needed_but_where_the_source_will_do() -> None:
    assert labels_needed(None, None)
    assert labels_needed(None, "detection")
    assert labels_needed("recall@1", "embedding")
    assert not labels_needed(None, "embedding")
    assert not labels_needed(None, "generation")
    assert not labels_needed("ssim", "generation")
    assert labels_needed("nonsense", "generation")


def test_steps_say_the_task() -> None:
    outputs = {"y": np.eye(3)}
    assert infer_task(outputs, None, [{"kind": "boxes"}, {"kind": "nms"}]) == "detection"
    assert infer_task(outputs, None, [{"kind": "argmax"}]) == "segmentation"
    assert infer_task(outputs, None, [{"kind": "softmax"}]) == "classification"
