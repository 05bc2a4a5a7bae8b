"""Postprocessing against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.postprocess import (
    Boxes,
    Detection,
    anchor_boxes,
    box_columns,
    check_postprocess,
    detections,
    finish,
    parse_postprocess,
    postprocess,
    read_postprocess,
)
from edgekit.tensors import TensorSpec

pytestmark = pytest.mark.device


def apply(*steps: dict[str, Any], **outputs: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return postprocess(parse_postprocess(steps), arrays)


def boxes(**more: Any) -> dict[str, Any]:
    return {"kind": "boxes", "boxes": "b", "scores": "s", "coding": "xyxy", "size": [100, 50]} | more


# Classes


def test_softmax_by_hand_and_without_overflow() -> None:
    got = apply({"kind": "softmax", "output": "y"}, y=[[0.0, np.log(3.0)], [1000.0, 1000.0]])["y"]
    assert got == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))


def test_softmax_along_another_axis() -> None:
    got = apply({"kind": "softmax", "output": "y", "axis": 1}, y=[[[0.0], [np.log(3.0)]]])["y"]
    assert got == pytest.approx(np.array([[[0.25], [0.75]]]))


def test_sigmoid_by_hand_and_without_overflow() -> None:
    got = apply({"kind": "sigmoid", "output": "y"}, y=[[0.0, np.log(3.0), -np.log(3.0), 500.0, -500.0]])["y"]
    assert got == pytest.approx(np.array([[0.5, 0.75, 0.25, 1.0, 0.0]]))
    assert got.dtype == np.float32


def test_the_best_classes_come_first_and_equal_ones_in_their_order() -> None:
    got = apply({"kind": "top-k", "output": "y", "k": 3}, y=[[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.2, 0.0]])
    assert got["classes"].tolist() == [[1, 2, 0], [0, 2, 1]]
    assert got["scores"] == pytest.approx(np.array([[0.4, 0.4, 0.1], [0.7, 0.2, 0.1]]))
    assert got["y"].shape == (2, 4)
    assert apply({"kind": "top-k", "output": "y", "k": 9}, y=[[1.0, 2.0]])["classes"].tolist() == [[1, 0]]


def test_metrics_never_see_what_only_presents() -> None:
    steps: list[dict[str, Any]] = [
        {"kind": "softmax", "output": "y"},
        {"kind": "top-k", "output": "y", "k": 1},
    ]
    assert list(finish(steps, {"y": np.zeros((1, 2))})) == ["y"]


# Masks


def test_the_best_class_of_each_pixel() -> None:
    maps = np.zeros((1, 2, 2, 3))
    maps[0, 0, 1, 2] = maps[0, 1, 0, 1] = 1.0
    assert apply({"kind": "argmax", "output": "y"}, y=maps)["y"].tolist() == [[[0, 2], [1, 0]]]
    first = np.moveaxis(maps, -1, 1)
    assert apply({"kind": "argmax", "output": "y", "axis": 1}, y=first)["y"].tolist() == [[[0, 2], [1, 0]]]


def test_a_mask_is_resized_by_the_nearest_centre() -> None:
    step = {"kind": "resize-mask", "output": "y", "size": [6, 2]}
    got = apply(step, y=[[[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]])["y"]
    assert got.tolist() == [[[4, 4, 5, 5, 6, 6], [10, 10, 11, 11, 12, 12]]]
    back = apply({"kind": "resize-mask", "output": "y", "size": [3, 1]}, y=[[[1, 2, 3, 4, 5, 6, 7]]])["y"]
    assert back.tolist() == [[[2, 4, 6]]]  # centres at 7/6, 21/6 and 35/6
    assert apply({"kind": "resize-mask", "output": "y", "size": [2, 2]}, y=np.ones((1, 1, 1, 4)))[
        "y"
    ].shape == (
        1,
        2,
        2,
        4,
    )


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
    assert box_columns(parse_postprocess([step])) == {"y": (4, 5)}
    assert box_columns(parse_postprocess([step | {"objectness": False}])) == {"y": (4,)}
    assert box_columns(parse_postprocess([boxes()])) == {}


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


def test_detections_of_each_sample() -> None:
    array = np.full((2, 2, 6), -1.0, np.float32)
    array[1, 0] = [1, 2, 3, 4, 0.5, 7]
    assert detections(array) == [(), (Detection((1.0, 2.0, 3.0, 4.0), 0.5, 7),)]


# Reading and refusing


def test_reading_beside_preprocess(tmp_path: Path) -> None:
    file = tmp_path / "steps.toml"
    file.write_text('[[preprocess]]\nkind = "image"\n[[postprocess]]\nkind = "softmax"\noutput = "y"\n')
    assert read_postprocess(file) == ({"kind": "softmax", "output": "y"},)
    file.write_text('[[preprocess]]\nkind = "image"\n')
    assert read_postprocess(file) == ()
    for broken in ("postprocess = 3", "postprocess = [3]", "= 1"):
        file.write_text(broken)
        with pytest.raises(UsageError, match=r"postprocess is no list of tables|cannot read"):
            read_postprocess(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_postprocess(tmp_path / "absent.toml")


ANCHORED = boxes(coding="ssd-anchors", anchors=[[0.5, 0.5, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"kind": "warp"}], "step 1 is of no known kind: got 'warp', expected softmax"),
        ([{}], "step 1 is of no known kind: got None"),
        ([{"kind": ["boxes"]}], "no known kind"),
        ([{"kind": "softmax"}], "missing required field `output`"),
        ([{"kind": "softmax", "output": "y", "axes": 1}], "unknown field `axes`"),
        ([{"kind": "top-k", "output": "y", "k": 0}], "k must be from 1 to 1000, is 0"),
        ([{"kind": "nms"}], r"step 1 \(nms\) has no boxes"),
        ([boxes(), boxes()], "step 2 decodes boxes a second time"),
        ([boxes(), {"kind": "nms", "iou": 1.5}], "iou is a share"),
        ([boxes(), {"kind": "nms", "score_threshold": 1.0}], "score_threshold, which is below 1"),
        ([boxes(), {"kind": "nms", "candidates": 5001}], "candidates must be from 1 to 5000"),
        ([boxes(), {"kind": "nms", "max_per_image": 0}], "max_per_image must be from 1 to 1000"),
        ([boxes(coding="yxyx")], "Invalid enum value 'yxyx'"),
        ([boxes(size=[0, 5])], "size must be from 1 to 8192"),
        ([boxes(size=[5])], "Expected `array` of length 2"),
        ([boxes(coding="ssd-anchors")], "anchors or grids belong to the coding ssd-anchors"),
        ([boxes(anchors=[[0.5, 0.5, 1.0, 1.0]])], "anchors or grids belong to the coding ssd-anchors"),
        ([ANCHORED | {"grids": [{"rows": 1, "columns": 1, "sizes": [[1, 1]]}]}], "not from both"),
        ([ANCHORED | {"variances": [0.1, 0.1, 0.0, 0.2]}], "variances positive"),
        ([ANCHORED | {"anchors": [[0.5, 0.5, 0.0, 1.0]]}], "anchors have positive sizes"),
        ([ANCHORED | {"anchors": [[0.5, float("inf"), 1.0, 1.0]]}], "anchors are finite"),
        (
            [boxes(coding="ssd-anchors", grids=[{"rows": 8000, "columns": 8000, "sizes": [[1.0, 1.0]]}])],
            "anchors of a grid must be from 1 to 200000",
        ),
        (
            [boxes(coding="ssd-anchors", grids=[{"rows": 400, "columns": 400, "sizes": [[1.0, 1.0]]}] * 2)],
            "anchors must be from 1 to 200000",
        ),
        ([boxes(coding="ssd-anchors", grids=[{"rows": 1, "columns": 1, "sizes": []}])], "from 1 to 200000, is 0"),
        ([boxes(coding="ssd-anchors", grids=[{"rows": 1, "columns": 1, "sizes": [[1, -1]]}])], "sizes are positive"),
        ([boxes(background=-1)], "background is a class, 0 or more"),
        ([{"kind": "resize-mask", "output": "y", "size": [9000, 1]}], "size must be from 1 to 8192"),
        ([{"kind": "softmax", "output": "y"}] * 17, "too many postprocess steps"),
    ],
)  # fmt: skip
def test_malformed_steps_are_refused(steps: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_postprocess(steps)


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def test_steps_are_checked_against_the_model() -> None:
    fits = [spec("b", -1, 1, 4), spec("s", -1, 1, 11)]
    assert len(check_postprocess([ANCHORED, {"kind": "nms"}], fits)) == 2
    assert check_postprocess([boxes()], [spec("b", -1, -1, -1), spec("s", -1, -1, 3)])
    for step, outputs, said in (
        ({"kind": "softmax", "output": "z"}, fits, "takes 'z', which is no output: expected b, s"),
        (boxes(), [spec("b", -1, 5, 4)], "takes 's', which is no output"),
        (boxes(), [spec("b", -1, 5, 3), spec("s", -1, 5, 2)], "'b' holds no boxes"),
        (boxes(), [spec("b", -1, 5), spec("s", -1, 5, 2)], "have three axes"),
        (boxes(), [spec("b", -1, 5, 4), spec("s", -1, 6, 2)], "differ in number: got 5 boxes, 6 scores"),
        (ANCHORED, [spec("b", -1, 2, 4), spec("s", -1, 2, 2)], "2 boxes, 2 scores, 1 anchors"),
        (boxes(boxes="y", scores="y"), [spec("y", -1, 9, 4)], "4 numbers a box, then its scores"),
    ):
        with pytest.raises(UsageError, match=said):
            check_postprocess([step], outputs)
    one = boxes(boxes="y", scores="y", transposed=True)
    assert check_postprocess([one], [spec("y", -1, 14, 8400)])


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="postprocess takes 'y': got z"):
        apply({"kind": "sigmoid", "output": "y"}, z=[[1.0]])
    with pytest.raises(UsageError, match="do not fit each other"):
        apply(ANCHORED, b=np.zeros((1, 2, 4)), s=np.zeros((1, 2, 3)))
    with pytest.raises(UsageError, match="do not fit each other"):
        apply(boxes(), b=np.zeros((1, 2, 4)), s=np.zeros((1, 3, 3)))
    with pytest.raises(UsageError, match="have three axes"):
        apply(boxes(), b=np.zeros((1, 4)), s=np.zeros((1, 2, 3)))
    with pytest.raises(UsageError, match="no class is left"):
        apply(boxes(background=0), b=np.zeros((1, 2, 4)), s=np.zeros((1, 2, 1)))
    with pytest.raises(UsageError, match="top-k takes class scores"):
        apply({"kind": "top-k", "output": "y", "k": 1}, y=np.zeros((1, 2, 2)))
    with pytest.raises(UsageError, match="resize-mask takes a map"):
        apply({"kind": "resize-mask", "output": "y", "size": [1, 1]}, y=np.zeros((1, 2)))
