"""Decoding and suppression against numbers worked out by hand, and against their definitions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.boxes import Boxes, anchor_boxes
from edgekit.errors import UsageError
from edgekit.postprocess import parse_postprocess, postprocess

pytestmark = pytest.mark.device


def apply(*steps: dict[str, Any], **outputs: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return postprocess(parse_postprocess(steps), arrays)


def boxes(**more: Any) -> dict[str, Any]:
    return {"kind": "boxes", "boxes": "b", "scores": "s", "coding": "xyxy", "size": [100, 50]} | more


# Boxes


def test_corners_become_pixels_and_are_cut_at_the_border() -> None:
    got = apply(boxes(), b=[[[0.1, 0.2, 0.5, 1.2]]], s=[[[0.9]]])
    assert got["boxes"] == pytest.approx(np.array([[[10.0, 10.0, 50.0, 50.0]]]))
    assert set(got) == {"boxes", "scores"}
    whole = apply(boxes(clip=False), b=[[[0.1, 0.2, 0.5, 1.2]]], s=[[[0.9]]])["boxes"]
    assert whole == pytest.approx(np.array([[[10.0, 10.0, 50.0, 60.0]]]))


def test_centre_and_size() -> None:
    got = apply(boxes(coding="cxcywh", units="pixels"), b=[[[30.0, 20.0, 20.0, 10.0]]], s=[[[1.0]]])["boxes"]
    assert got.tolist() == [[[20.0, 15.0, 40.0, 25.0]]]


def test_anchors_by_hand() -> None:
    step = boxes(coding="ssd-anchors", anchors=[[0.5, 0.5, 0.2, 0.4], [0.2, 0.6, 0.1, 0.2]])
    coded = [[[1.0, -0.5, 5.0 * np.log(2.0), 0.0], [0.0, 0.0, 0.0, 5.0 * np.log(0.5)]]]
    got = apply(step, b=coded, s=[[[1.0], [1.0]]])["boxes"]
    # centre 0.5 + 0.1 × 0.2 = 0.52 and 0.5 - 0.05 × 0.4 = 0.48; width 0.2 e^(0.2 × 5 ln 2) = 0.4, height 0.4
    assert got == pytest.approx(np.array([[[32.0, 14.0, 72.0, 34.0], [15.0, 27.5, 25.0, 32.5]]]))


def test_a_box_never_overflows() -> None:
    step = boxes(coding="ssd-anchors", anchors=[[0.5, 0.5, 0.01, 0.01]], clip=False)
    got = apply(step, b=[[[0.0, 0.0, 1e9, 1e9]]], s=[[[1.0]]])["boxes"]
    assert got == pytest.approx(np.array([[[50 - 31.25, 25 - 15.625, 50 + 31.25, 25 + 15.625]]]))


def test_grids_go_row_by_row_and_size_by_size() -> None:
    grid = {"rows": 1, "columns": 2, "sizes": [[0.1, 0.2], [0.3, 0.4]]}
    (step,) = parse_postprocess(
        [boxes(coding="ssd-anchors", grids=[grid, {"rows": 2, "columns": 1, "sizes": [[1.0, 1.0]]}])]
    )
    assert isinstance(step, Boxes)
    assert anchor_boxes(step).tolist() == [
        [0.25, 0.5, 0.1, 0.2],
        [0.25, 0.5, 0.3, 0.4],
        [0.75, 0.5, 0.1, 0.2],
        [0.75, 0.5, 0.3, 0.4],
        [0.5, 0.25, 1.0, 1.0],
        [0.5, 0.75, 1.0, 1.0],
    ]
    assert step.count == 6


def test_grids_in_pixels() -> None:
    grid = {"rows": 1, "columns": 2, "sizes": [[10.0, 20.0]]}
    (step,) = parse_postprocess([boxes(coding="ssd-anchors", units="pixels", grids=[grid])])
    assert isinstance(step, Boxes)
    assert anchor_boxes(step).tolist() == [[25.0, 25.0, 10.0, 20.0], [75.0, 25.0, 10.0, 20.0]]


def test_the_background_goes_and_those_behind_it_move_up() -> None:
    scores = [[[0.0, np.log(2.0), np.log(5.0)]]]
    got = apply(boxes(activation="softmax", background=0), b=np.zeros((1, 1, 4)), s=scores)["scores"]
    assert got == pytest.approx(np.array([[[0.25, 0.625]]]))
    got = apply(boxes(activation="softmax", background=1), b=np.zeros((1, 1, 4)), s=scores)["scores"]
    assert got == pytest.approx(np.array([[[0.125, 0.625]]]))
    with pytest.raises(UsageError, match="the background is no class: got 3, expected below 3"):
        apply(boxes(background=3), b=np.zeros((1, 1, 4)), s=scores)


def test_boxes_and_scores_in_one_output_with_objectness() -> None:
    one = [[[10.0, 10.0, 4.0, 2.0, 0.0, np.log(3.0), 0.0]]]
    step = boxes(
        boxes="y", scores="y", coding="cxcywh", units="pixels", activation="sigmoid", objectness=True
    )
    got = apply(step, y=one)
    assert got["boxes"].tolist() == [[[8.0, 9.0, 12.0, 11.0]]]
    assert got["scores"] == pytest.approx(np.array([[[0.375, 0.25]]]))
    turned = apply(step | {"transposed": True}, y=np.transpose(one, (0, 2, 1)))
    assert all(np.array_equal(turned[name], got[name]) for name in got)


# Suppression


BOXES = [[[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [20, 20, 30, 30], [0, 0, 10, 10]]]
SCORES = [[[0.6, 0.1], [0.9, 0.0], [0.5, 0.2], [0.0, 0.05], [0.1, 0.8]]]


def suppressed(**fields: Any) -> list[list[float]]:
    steps = boxes(units="pixels"), {"kind": "nms"} | fields
    found = apply(*steps, b=BOXES, s=SCORES)
    assert list(found) == ["detections"]
    array = found["detections"]
    assert (array[0, :, 5] >= -1).all()
    return [[round(float(v), 5) for v in row] for row in array[0] if row[5] >= 0]


def test_nms_by_hand() -> None:
    """Overlaps with the best box: 80 of 100, 40 of 80 (exactly one half, which stays), none, 80 of 100."""
    assert suppressed(iou=0.5) == [
        [0, 0, 10, 8, 0.9, 0],
        [0, 0, 10, 10, 0.8, 1],
        [0, 0, 10, 4, 0.5, 0],
    ]
    assert suppressed(iou=0.49) == [[0, 0, 10, 8, 0.9, 0], [0, 0, 10, 10, 0.8, 1]]
    assert suppressed(iou=0.5, class_aware=False) == [[0, 0, 10, 8, 0.9, 0], [0, 0, 10, 4, 0.5, 0]]


def test_the_threshold_is_exclusive_and_the_numbers_bounded() -> None:
    assert suppressed(score_threshold=0.04)[-1] == [20, 20, 30, 30, 0.05, 1]
    assert len(suppressed(max_per_image=1)) == 1
    assert [row[4] for row in suppressed(candidates=2)] == [0.9, 0.8]
    assert suppressed(score_threshold=0.95) == []


def test_a_box_may_stand_for_several_classes() -> None:
    several = suppressed(multi_label=True, iou=1.0, score_threshold=0.15)
    assert [row[4:] for row in several] == [[0.9, 0], [0.8, 1], [0.6, 0], [0.5, 0], [0.2, 1]]


def test_equal_scores_keep_their_order() -> None:
    found = apply(
        boxes(units="pixels"), {"kind": "nms"}, b=[[[0, 0, 1, 1], [5, 5, 6, 6]]], s=[[[0.5], [0.5]]]
    )
    assert found["detections"][0, :2, 0].tolist() == [0.0, 5.0]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 40), iou=st.floats(0.0, 1.0))
def test_nms_as_its_definition_has_it(seed: int, n: int, iou: float) -> None:
    random = np.random.default_rng(seed)
    corner = random.random((n, 2)) * 40
    coded = np.concatenate([corner, corner + random.random((n, 2)) * 30], axis=1)[None].astype(np.float32)
    scores = random.random((1, n, 3)).astype(np.float32)
    steps = boxes(units="pixels", clip=False), {"kind": "nms", "iou": iou, "score_threshold": 0.3}
    got = apply(*steps, b=coded, s=scores)["detections"][0]

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
        shared = float(np.prod(np.maximum(sides, 0.0)))
        return shared / (float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2])) - shared)

    ranked = sorted(range(n), key=lambda i: (-scores[0, i].max(), i))
    kept: list[int] = []
    for i in ranked:
        mine = scores[0, i].argmax()
        rivals = [j for j in kept if scores[0, j].argmax() == mine]
        wide = coded[0].astype(np.float64)
        if scores[0, i].max() > 0.3 and all(overlap(wide[i], wide[j]) <= iou for j in rivals):
            kept.append(i)
    assert got[got[:, 5] >= 0, 4].tolist() == [scores[0, i].max() for i in kept]


# Refusing

ANCHORED = boxes(coding="ssd-anchors", anchors=[[0.5, 0.5, 1.0, 1.0]])


def gridded(**changes: Any) -> dict[str, Any]:
    return boxes(coding="ssd-anchors", grids=[{"rows": 1, "columns": 1, "sizes": [[1.0, 1.0]]} | changes])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"iou": 1.001}, "iou is a share, and so is score_threshold, which is below 1"),
        ({"iou": -0.001}, "iou is a share"),
        ({"score_threshold": 1.0}, "score_threshold, which is below 1"),
        ({"score_threshold": -0.1}, "iou is a share"),
        ({"candidates": 5001}, "): candidates must be from 1 to 5000, is 5001"),
        ({"candidates": 0}, "): candidates must be from 1 to 5000, is 0"),
        ({"max_per_image": 0}, "): max_per_image must be from 1 to 1000, is 0"),
        ({"max_per_image": 1001}, "): max_per_image must be from 1 to 1000, is 1001"),
    ],
)
def test_a_suppression_that_cannot_be_meant_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_postprocess([boxes(), {"kind": "nms"} | fields])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (boxes(size=[0, 5]), "): size must be from 1 to 8192, is 0"),
        (boxes(size=[5, 8193]), "): size must be from 1 to 8192, is 8193"),
        (boxes(size=[5]), "Expected `array` of length 2"),
        (
            boxes(coding="ssd-anchors"),
            "): anchors or grids belong to the coding ssd-anchors, and to no other",
        ),
        (boxes(anchors=[[0.5, 0.5, 1.0, 1.0]]), "): anchors or grids belong to the coding ssd-anchors"),
        (
            ANCHORED | {"grids": [{"rows": 1, "columns": 1, "sizes": [[1, 1]]}]},
            "): anchors come from a list or from grids, not from both",
        ),
        (ANCHORED | {"variances": [0.1, 0.1, 0.0, 0.2]}, "): anchors are finite and variances positive"),
        (ANCHORED | {"variances": [0.1, 0.1, float("inf"), 0.2]}, "): anchors are finite"),
        (ANCHORED | {"anchors": [[0.5, 0.5, 0.0, 1.0]]}, "): anchors have positive sizes"),
        (ANCHORED | {"anchors": [[0.5, 0.5, 1.0, 0.0]]}, "): anchors have positive sizes"),
        (ANCHORED | {"anchors": [[0.5, float("inf"), 1.0, 1.0]]}, "): anchors are finite"),
        (gridded(rows=0), ": rows must be from 1 to 8192, is 0"),
        (gridded(columns=8193), ": columns must be from 1 to 8192, is 8193"),
        (gridded(rows=8000, columns=8000), ": anchors of a grid must be from 1 to 200000, is 64000000"),
        (gridded(sizes=[]), ": anchors of a grid must be from 1 to 200000, is 0"),
        (gridded(sizes=[[1, 0]]), ": sizes are positive"),
        (gridded(sizes=[[float("inf"), 1]]), ": sizes are positive"),
        (
            boxes(coding="ssd-anchors", grids=[{"rows": 400, "columns": 400, "sizes": [[1.0, 1.0]]}] * 2),
            "): anchors must be from 1 to 200000, is 320000",
        ),
        (boxes(background=-1), "): background is a class, 0 or more"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused(step: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_postprocess([step])


def test_the_limits_themselves_are_allowed() -> None:
    assert parse_postprocess([
        boxes(size=[1, 8192], background=0),
        {"kind": "nms", "iou": 1.0, "score_threshold": 0.0, "candidates": 5000, "max_per_image": 1000},
    ])  # fmt: skip
    assert parse_postprocess([boxes(), {"kind": "nms", "iou": 0.0, "candidates": 1, "max_per_image": 1}])
    assert parse_postprocess([gridded(rows=8192, columns=24)])
    assert parse_postprocess([gridded()])


def test_the_defaults_are_those_of_the_documentation() -> None:
    step, nms = parse_postprocess([boxes(), {"kind": "nms"}])
    assert (nms.iou, nms.score_threshold, nms.max_per_image) == (0.5, 0.05, 100)  # type: ignore[union-attr]
    assert (nms.class_aware, nms.multi_label, nms.candidates) == (True, False, 1000)  # type: ignore[union-attr]
    assert isinstance(step, Boxes)
    assert (step.units, step.activation, step.background) == ("normalised", "none", None)
    assert (step.variances, step.transposed, step.clip) == ((0.1, 0.1, 0.2, 0.2), False, True)


@pytest.mark.parametrize(
    ("step", "shapes", "said"),
    [
        (ANCHORED, ((1, 2, 4), (1, 2, 3)), "got boxes [1, 2, 4], scores [1, 2, 3], 1 anchors"),
        (boxes(), ((1, 2, 4), (1, 3, 3)), "boxes, scores and anchors do not fit each other"),
        (boxes(), ((1, 2, 5), (1, 2, 3)), "boxes, scores and anchors do not fit each other"),
        (boxes(), ((2, 2, 4), (1, 2, 3)), "boxes, scores and anchors do not fit each other"),
        (boxes(), ((1, 4), (1, 2, 3)), "boxes and scores have three axes: got [[1, 4], [1, 2, 3]]"),
        (boxes(), ((1, 2, 4), (1, 2)), "boxes and scores have three axes: got [[1, 2, 4], [1, 2]]"),
        (boxes(background=0), ((1, 2, 4), (1, 2, 1)), "no class is left in the scores"),
        (boxes(objectness=True), ((1, 2, 4), (1, 2, 1)), "no class is left in the scores"),
    ],
)
def test_outputs_that_do_not_fit_the_step_are_refused(
    step: dict[str, Any], shapes: tuple[tuple[int, ...], tuple[int, ...]], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        apply(step, b=np.zeros(shapes[0]), s=np.zeros(shapes[1]))


def test_what_comes_out_is_float32() -> None:
    found = apply(boxes(), b=np.zeros((1, 2, 4)), s=np.ones((1, 2, 3)))
    assert {name: array.dtype for name, array in found.items()} == {"boxes": np.float32, "scores": np.float32}
    assert (
        apply(boxes(), {"kind": "nms"}, b=np.zeros((1, 2, 4)), s=np.ones((1, 2, 3)))["detections"].dtype
        == np.float32
    )
