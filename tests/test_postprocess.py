"""Postprocessing against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.postprocess import (
    Detection,
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


def test_detections_of_each_sample() -> None:
    array = np.full((2, 2, 6), -1.0, np.float32)
    array[1, 0] = [1, 2, 3, 4, 0.5, 7]
    assert detections(array) == [(), (Detection((1.0, 2.0, 3.0, 4.0), 0.5, 7),)]


# Whole chains


def test_steps_run_in_order_and_leave_the_rest() -> None:
    got = apply(
        boxes(units="pixels"), {"kind": "nms", "max_per_image": 2}, {"kind": "sigmoid", "output": "other"},
        b=[[[0, 0, 10, 10], [0, 0, 10, 9]]], s=[[[0.9, 0.1], [0.8, 0.2]]], other=[[0.0]],
    )  # fmt: skip
    assert set(got) == {"detections", "other"}
    assert got["detections"] == pytest.approx(np.array([[[0, 0, 10, 10, 0.9, 0], [0, 0, 0, 0, 0, -1]]]))
    assert got["other"].tolist() == [[0.5]]
    kept = apply(boxes(units="pixels"), b=[[[0, 0, 10, 10]]], s=[[[0.9]]], other=[[7.0]])
    assert set(kept) == {"boxes", "scores", "other"}
    score = float(np.float32(0.9))
    assert detections(got["detections"]) == [(Detection((0.0, 0.0, 10.0, 10.0), score, 0),)]


def test_types_of_what_comes_out() -> None:
    classes = apply({"kind": "top-k", "output": "y", "k": 2}, y=[[1, 3, 2], [9, 8, 7], [0, 0, 1]])["classes"]
    assert classes.tolist() == [[1, 2], [0, 1], [2, 0]]
    assert classes.dtype == np.int64
    assert apply({"kind": "argmax", "output": "y"}, y=np.zeros((1, 2, 2, 3)))["y"].dtype == np.int32


def test_of_many_equal_scores_the_first_are_the_best() -> None:
    """A sort that is not stable keeps the order of a few by luck, of many it does not."""
    scores = np.tile([0.0, 1.0], 50)
    assert apply({"kind": "top-k", "output": "y", "k": 50}, y=[scores])["classes"].tolist() == [
        [*range(1, 100, 2)]
    ]


# Reading and refusing


def test_reading_beside_preprocess(tmp_path: Path) -> None:
    file = tmp_path / "steps.toml"
    file.write_text('[[preprocess]]\nkind = "image"\n[[postprocess]]\nkind = "softmax"\noutput = "y"\n')
    assert read_postprocess(file) == ({"kind": "softmax", "output": "y"},)
    file.write_text('[[preprocess]]\nkind = "image"\n')
    assert read_postprocess(file) == ()
    for broken in ("postprocess = 3", "postprocess = [3]", "= 1"):
        file.write_text(broken)
        with pytest.raises(
            UsageError,
            match=r"postprocess is no list of tables: expected \[\[postprocess\]\] for each step|cannot read",
        ):
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
        ([boxes(coding="yxyx")], "Invalid enum value 'yxyx'"),
        ([boxes(), {"kind": "nms", "iou": 1.5}], r"step 2 \(nms\): iou is a share"),
        ([{"kind": "resize-mask", "output": "y", "size": [9000, 1]}], "size must be from 1 to 8192"),
        ([{"kind": "softmax", "output": "y"}] * 17, "^too many postprocess steps: got 17, expected at most 16$"),
        ([boxes(), {"kind": "nms"}, {"kind": "nms"}], r"step 3 \(nms\) has no boxes. Put a step boxes before it."),
        ([{"kind": "sigmoid", "output": "y"}, {"kind": "nms"}], r"step 2 \(nms\) has no boxes"),
        ([{"kind": "softmax", "output": 3}], "expected the fields output, axis$"),
        ([{"kind": "warp"}], "expected softmax, sigmoid, top-k, boxes, nms, argmax, resize-mask$"),
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
        (
            boxes(boxes="y", scores="y"),
            [spec("y", -1, 9, 4)],
            "got .-1, 9, 4., expected 4 numbers a box, then its scores",
        ),
        (
            boxes(),
            [spec("b", -1, 5, 5), spec("s", -1, 5, 2)],
            "step 1: output 'b' holds no boxes.* 4 numbers a box$",
        ),
        (boxes(), [spec("b", -1, 5), spec("s", -1, 5, 2)], r"step 1: .*got \[\(-1, 5\), \(-1, 5, 2\)\]"),
        (
            boxes(transposed=True),
            [spec("b", -1, 4, 5), spec("s", -1, 2, 6)],
            "got 5 boxes, 6 scores, 0 anchors",
        ),
        (boxes(transposed=True), [spec("b", -1, 5, 4), spec("s", -1, 2, 4)], "'b' holds no boxes"),
    ):
        with pytest.raises(UsageError, match=said):
            check_postprocess([step], outputs)
    assert check_postprocess([boxes(boxes="y", scores="y")], [spec("y", -1, 9, 5)])
    assert check_postprocess([{"kind": "sigmoid", "output": "b"}] * 16, fits)
    one = boxes(boxes="y", scores="y", transposed=True)
    assert check_postprocess([one], [spec("y", -1, 14, 8400)])


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="postprocess takes 'y': got z"):
        apply({"kind": "sigmoid", "output": "y"}, z=[[1.0]])
    with pytest.raises(UsageError, match="postprocess takes 'y': got z, x"):
        apply({"kind": "sigmoid", "output": "y"}, z=[[1.0]], x=[[1.0]])
    with pytest.raises(
        UsageError, match=r"^top-k takes class scores: got \[1, 2, 2\], expected \[N, classes\]$"
    ):
        apply({"kind": "top-k", "output": "y", "k": 1}, y=np.zeros((1, 2, 2)))
    said = r"^resize-mask takes a map: got \[1, 2\], expected \[N, H, W\] or \[N, H, W, C\]$"
    with pytest.raises(UsageError, match=said):
        apply({"kind": "resize-mask", "output": "y", "size": [1, 1]}, y=np.zeros((1, 2)))
