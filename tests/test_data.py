"""Data readers: what fits is read exactly, what does not is refused with the place that is wrong."""

from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import class_labels, read_data, read_preprocess
from edgekit.errors import UnavailableError, UsageError
from edgekit.fitting import fit_array
from edgekit.preprocess import Preprocessor
from edgekit.tensors import TensorSpec

pytestmark = pytest.mark.device

PICTURE = TensorSpec("image", "float32", (-1, 2, 3, 1), "NHWC")
TABLE = TensorSpec("features", "float32", (-1, 2))
PAIR = (TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int64", (-1, 1)))


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def read_image(path: Path, spec: TensorSpec, steps: Sequence[dict[str, Any]]) -> np.ndarray:
    return Preprocessor(steps, [spec]).image(path, "the picture")[spec.name]


def pictures(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((n, 2, 3, 1)).astype(np.float32)


def refuses(pattern: str, path: Path, inputs: Sequence[TensorSpec], **options: Any) -> None:
    with pytest.raises(UsageError, match=pattern) as caught:
        read_data(path, inputs, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


# Array files


def test_npz_by_name_with_labels(tmp_path: Path) -> None:
    data = read_data(npz(tmp_path, image=pictures(), y=[0, 1, 2, 1]), [PICTURE], need_labels=True)
    assert data.n == 4
    assert np.array_equal(data.inputs["image"], pictures())
    assert data.labels is not None
    assert (data.labels.dtype, data.labels.tolist()) == (np.dtype(np.int64), [0, 1, 2, 1])
    assert data.source == str(tmp_path / "data.npz")


def test_a_single_input_may_be_called_x(tmp_path: Path) -> None:
    assert read_data(npz(tmp_path, x=pictures()), [PICTURE]).inputs["image"].shape == (4, 2, 3, 1)
    refuses(
        r"wrong arrays: got pics, expected image float32.*\(or 'x'\), labels under 'y'",
        npz(tmp_path, pics=pictures()),
        [PICTURE],
    )
    refuses("wrong arrays: got image, x", npz(tmp_path, image=pictures(), x=pictures()), [PICTURE])
    refuses("wrong arrays: got none", npz(tmp_path, y=[1]), [PICTURE])


def test_several_inputs(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"a": np.ones((3, 2)), "b": np.ones((3, 1), np.int32)}
    data = read_data(npz(tmp_path, **arrays), PAIR)
    assert {name: array.dtype.name for name, array in data.inputs.items()} == {"a": "float32", "b": "int64"}
    refuses(
        "different numbers of samples: got {'a': 3, 'b': 2}",
        npz(tmp_path, a=arrays["a"], b=arrays["b"][:2]),
        PAIR,
    )
    refuses("wrong arrays: got a,", npz(tmp_path, a=arrays["a"]), PAIR)
    np.save(tmp_path / "a.npy", arrays["a"])
    refuses("is one array, the model takes 2", tmp_path / "a.npy", PAIR)


def test_an_input_called_y_is_an_input(tmp_path: Path) -> None:
    spec = TensorSpec("y", "float32", (-1, 2))
    assert read_data(npz(tmp_path, y=np.ones((3, 2))), [spec]).labels is None


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pictures())
    assert read_data(tmp_path / "a.npy", [PICTURE]).n == 4
    refuses(r"has no labels\. Save them under 'y'", tmp_path / "a.npy", [PICTURE], need_labels=True)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refuses("cannot be read: .*never pickled objects", tmp_path / "a.npy", [PICTURE])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    refuses("neither a file nor a folder", tmp_path / "pipe.npz", [PICTURE])
    os.mkfifo(tmp_path / "pipe.png")
    steps = [{"kind": "image", "input": PICTURE.name, "color": "grayscale", "scale": 1.0}]
    with pytest.raises(UsageError, match=r"pipe\.png is not a file"):
        read_image(tmp_path / "pipe.png", PICTURE, steps)


def test_damaged_and_unknown_files(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_text("text")
        refuses(f"{name} cannot be read", tmp_path / name, [PICTURE])
    refuses("no evaluation data at .*nowhere.npz", tmp_path / "nowhere.npz", [PICTURE])
    refuses("no calibration data at", tmp_path / "nowhere", [PICTURE], what="calibration data")
    for name, fault in (
        ("a.mat", "no known kind: got .mat"),
        ("a", "no suffix"),
    ):
        (tmp_path / name).write_text("text")
        refuses(fault, tmp_path / name, [PICTURE])


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_place(tmp_path: Path, value: float) -> None:
    array = pictures()
    array[2, 1, 0, 0] = value
    refuses(rf"'image' holds {value} at index \[2, 1, 0, 0\]", npz(tmp_path, image=array), [PICTURE])
    refuses(rf"'y' holds {value} at index \[1\]", npz(tmp_path, image=pictures(2), y=[0.0, value]), [PICTURE])


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (pictures()[..., 0], r"wrong shape: got \[4, 2, 3\], expected \[N, 2, 3, 1\]"),
        (pictures()[0], r"wrong shape: got \[2, 3, 1\]"),
        (pictures()[:, :1], r"wrong shape: got \[4, 1, 3, 1\]"),
        (pictures()[:0], "is empty"),
        (pictures().astype(str), "wrong type"),
        (pictures().astype(complex), "expected numbers or text"),
        (np.full((1, 2, 3, 1), 1e39), r"as float32: 'image' holds inf at index \[0, 0, 0, 0\]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, fault: str) -> None:
    refuses(fault, npz(tmp_path, image=array), [PICTURE])


def test_casts() -> None:
    spec = TensorSpec("a", "int8", (-1,))
    assert fit_array(spec, np.array([-128, 127])).dtype == np.int8
    with pytest.raises(UsageError, match=r"int8 cannot hold: got int64 in \[0, 128\]"):
        fit_array(spec, np.array([0, 128]))
    with pytest.raises(UsageError, match="wrong type: got float64, expected int8"):
        fit_array(spec, np.array([1.0]))
    assert fit_array(TensorSpec("a", "float32", (-1,)), np.array([True, False])).tolist() == [1.0, 0.0]
    assert fit_array(TensorSpec("a", "float32", (-1,)), np.array([255], np.uint8)).dtype == np.float32
    assert fit_array(TensorSpec("a", "uint8", (-1,)), np.array([True])).tolist() == [1]
    text = fit_array(TensorSpec("a", "bytes", (-1,)), np.array(["a"]))
    assert (text.dtype, text.tolist()) == (np.dtype(object), ["a"])
    with pytest.raises(UsageError, match="wants text"):
        fit_array(TensorSpec("a", "bytes", (-1,)), np.array([1]))


def test_free_axes_take_any_size() -> None:
    spec = TensorSpec("a", "float32", (1, -1, 3))
    assert fit_array(spec, np.zeros((7, 5, 3))).shape == (7, 5, 3)
    with pytest.raises(UsageError, match=r"expected \[N, any, 3\]"):
        fit_array(spec, np.zeros((7, 5, 4)))


# Labels


def test_labels_of_another_length(tmp_path: Path) -> None:
    refuses(
        "labels do not fit the inputs: got 3 labels, expected 4",
        npz(tmp_path, image=pictures(), y=[1, 2, 3]),
        [PICTURE],
    )
    refuses("labels are one number", npz(tmp_path, image=pictures(), y=3), [PICTURE])
    refuses(
        "has no labels. Save them under 'y': np.savez",
        npz(tmp_path, image=pictures()),
        [PICTURE],
        need_labels=True,
    )


def test_columns_of_labels_and_targets(tmp_path: Path) -> None:
    labels = read_data(npz(tmp_path, image=pictures(), y=[[0], [1], [2], [1]]), [PICTURE]).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 1]
    targets = read_data(npz(tmp_path, image=pictures(), y=np.ones((4, 2), np.float32)), [PICTURE]).labels
    assert targets is not None
    assert (targets.shape, targets.dtype) == ((4, 2), np.dtype(np.float64))


def test_text_labels_go_by_the_models_names(tmp_path: Path) -> None:
    path = npz(tmp_path, image=pictures(), y=["dog", "cat", "dog", "cat"])
    data = read_data(path, [PICTURE])
    assert data.labels is not None
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1, 0], ("cat", "dog"))
    data = read_data(path, [PICTURE], class_names=["dog", "cow", "cat"])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 2, 0, 2]
    refuses("unknown label 'cat': expected dog, cow", path, [PICTURE], class_names=["dog", "cow"])


def test_labels_that_are_no_classes() -> None:
    assert class_labels(np.array([0.0, 2.0]), 3).dtype == np.int64
    for labels, fault in (
        ([0, 3], "label 1 is no class: got 3, expected a whole number from 0 to 2"),
        ([-1], "got -1"),
        ([0, 0.5], "label 1 is no class: got 0.5"),
        (np.eye(3), "argmax"),
    ):
        with pytest.raises(UsageError, match=fault):
            class_labels(np.asarray(labels), 3)


# Tables


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "t.csv").write_bytes(text.encode(encoding))
    return folder / "t.csv"


def test_csv(tmp_path: Path) -> None:
    data = read_data(
        table(tmp_path, "a, kind,b\r\n1,1,2\r\n\r\n3.5,0,-4e-1\r\n"), [TABLE], label_column="kind"
    )
    assert data.inputs["features"].tolist() == [[1.0, 2.0], [3.5, np.float32(-0.4)]]
    assert data.labels is not None
    assert (data.labels.tolist(), data.labels.dtype) == ([1, 0], np.dtype(np.int64))


def test_csv_labels_of_every_kind(tmp_path: Path) -> None:
    names = read_data(table(tmp_path, "a,b,k\n1,2, x\n3,4,w \n"), [TABLE], label_column="k")
    assert names.labels is not None
    assert (names.labels.tolist(), names.class_names) == ([1, 0], ("w", "x"))
    targets = read_data(table(tmp_path, "a,b,k\n1,2,1\n3,4,2.5\n"), [TABLE], label_column="k").labels
    assert targets is not None
    assert targets.tolist() == [1.0, 2.5]
    assert read_data(table(tmp_path, "\ufeffa,b\n1,2\n"), [TABLE]).labels is None


def test_a_table_of_features_alone_may_go_without_the_label_column(tmp_path: Path) -> None:
    path = table(tmp_path, "a,b\n1,2\n")
    assert read_data(path, [TABLE], label_column="k").inputs["features"].tolist() == [[1.0, 2.0]]
    refuses("no column 'k': got a, b", path, [TABLE], label_column="k", need_labels=True)


@pytest.mark.parametrize(
    ("text", "options", "fault"),
    [
        ("a,b,k\n1,2,0\n3,no,1\n", {"label_column": "k"}, "line 3, column 'b' is no number: got 'no'"),
        ("a,b\n1,2_0\n", {}, "line 2, column 'b' is no number: got '2_0'"),
        ("a,b\n1,\n", {}, "line 2, column 'b' is no number: got ''"),
        ("a,b\n1,2\n\n3,nan\n", {}, r"'features' holds nan at index \[1, 1\]"),
        ("a,b,k\n1,2,0\n", {"label_column": "z"}, "no column 'z': got a, b, k"),
        ("a,b,k\n1,2,0\n", {}, r"feature columns: got 3 \(a, b, k\), expected 2 .* --label-column"),
        ("a,k\n1,0\n", {"label_column": "k"}, r"got 1 \(a\), expected 2"),
        ("a,b\n1,2,3\n", {}, "line 2 has the wrong number of cells: got 3, expected 2"),
        ("a,a\n1,2\n", {}, "column 'a' twice"),
        ("", {}, "is empty"),
        ("a,b\n", {}, "is empty"),
        ("a,b\n1,2\n", {"need_labels": True}, "has no labels. Name their column with --label-column"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, options: dict[str, Any], fault: str) -> None:
    refuses(fault, table(tmp_path, text), [TABLE], **options)


def test_tables_for_other_models_and_encodings(tmp_path: Path) -> None:
    refuses("one input of two axes", table(tmp_path, "a,b\n1,2\n"), [PICTURE])
    refuses("not a table in UTF-8", table(tmp_path, "ä,b\n1,2\n", "latin-1"), [TABLE])
    refuses("--label-column is for .csv", npz(tmp_path, x=pictures()), [PICTURE], label_column="k")


# Images

SCALED = ({"kind": "image", "input": "image", "scale": 1 / 255},)


def draw(path: Path, pixels: np.ndarray) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)
    return pixels


def gray(seed: int = 0, height: int = 2, width: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def test_class_folders(tmp_path: Path) -> None:
    drawn = [
        draw(tmp_path / name, gray(seed)) for seed, name in enumerate(["cat/b.png", "cat/c.png", "dog/a.png"])
    ]
    (tmp_path / ".hidden").write_text("")
    data = read_data(tmp_path, [PICTURE], preprocess=SCALED, need_labels=True)
    assert data.labels is not None
    assert (data.labels.tolist(), data.class_names) == ([0, 0, 1], ("cat", "dog"))
    expected = np.stack(drawn)[..., None].astype(np.float32) / np.float32(255)
    assert np.array_equal(data.inputs["image"], expected)
    again = read_data(tmp_path, [PICTURE], preprocess=SCALED, class_names=("dog", "cow", "cat")).labels
    assert again is not None
    assert again.tolist() == [2, 2, 0]
    refuses(
        "class folder 'cat' is no class of the model: expected dog",
        tmp_path,
        [PICTURE],
        preprocess=SCALED,
        class_names=("dog",),
    )


def test_loose_images_have_no_labels(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", gray())
    assert read_data(tmp_path, [PICTURE], preprocess=SCALED).labels is None
    refuses(
        "has no labels. Put the images into one folder",
        tmp_path,
        [PICTURE],
        preprocess=SCALED,
        need_labels=True,
    )
    draw(tmp_path / "cat" / "a.png", gray())
    refuses("files beside its class folders: got a.png", tmp_path, [PICTURE], preprocess=SCALED)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    refuses("is empty", tmp_path, [PICTURE], preprocess=SCALED)
    (tmp_path / "cat").mkdir()
    refuses("class folder cat holds no image", tmp_path, [PICTURE], preprocess=SCALED)
    (tmp_path / "cat" / "notes.txt").write_text("")
    refuses("notes.txt holds no image", tmp_path, [PICTURE], preprocess=SCALED)
    refuses("images are for a model with one input", tmp_path, PAIR)


def test_the_order_of_numbered_classes_is_not_guessed(tmp_path: Path) -> None:
    for name in ("9", "10"):
        draw(tmp_path / name / "a.png", gray())
    refuses("order of the classes 10, 9 is not clear", tmp_path, [PICTURE], preprocess=SCALED)
    data = read_data(tmp_path, [PICTURE], preprocess=SCALED, class_names=("9", "10"))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]


def test_a_scale_is_never_guessed(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", gray())
    refuses("float32 and nothing says how pixels are scaled.*--preprocess", tmp_path, [PICTURE])
    with pytest.raises(UsageError) as error:
        read_data(tmp_path, [PICTURE])
    says = str(error.value)
    example = tmp_path.with_suffix(".toml")
    example.write_text(says[says.index("preprocess = [") : says.index("]") + 1])  # as it says
    assert read_data(tmp_path, [PICTURE], preprocess=read_preprocess(example)).inputs["image"].max() <= 1
    bytes_in = TensorSpec("image", "uint8", (-1, 2, 3, 1))
    assert np.array_equal(read_data(tmp_path, [bytes_in]).inputs["image"][0, :, :, 0], gray())
    refuses("its pixels cannot be scaled", tmp_path, [bytes_in], preprocess=SCALED)


def test_another_size_is_refused_unless_resizing_is_declared(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = draw(tmp_path / "a.png", gray(0, 4, 6))
    refuses(r"a\.png has the wrong size: got 6 x 4, expected 3 x 2", tmp_path, [PICTURE], preprocess=SCALED)
    resized = image.fromarray(pixels).resize((3, 2), image.Resampling.BILINEAR)
    found = read_data(tmp_path, [PICTURE], preprocess=({**SCALED[0], "resize": "bilinear", "scale": 1.0},))
    assert np.array_equal(found.inputs["image"][0, :, :, 0], np.asarray(resized))


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [((-1, 2, 3, 3), "", (0, 1, 2)), ((-1, 3, 2, 4), "", (2, 0, 1)), ((-1, 3, 2, 3), "NCHW", (2, 0, 1))],
)
def test_layouts_mean_and_std(
    tmp_path: Path, shape: tuple[int, ...], layout: str, axes: tuple[int, ...]
) -> None:
    height, width = (shape[2], shape[3]) if axes[0] == 2 else (shape[1], shape[2])
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    draw(tmp_path / "a.png", pixels)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    step = {"kind": "image", "input": "i", "color": "rgb", "scale": 1 / 255, "mean": mean, "std": std}
    found = read_image(tmp_path / "a.png", TensorSpec("i", "float32", shape, layout), (step,))
    expected = ((pixels / 255 - mean) / std).transpose(axes)
    assert found.shape == (1, *expected.shape)
    assert np.allclose(found[0], expected, atol=1e-6)


def test_a_picture_without_channels(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", gray())
    assert np.array_equal(read_image(tmp_path / "a.png", TensorSpec("i", "uint8", (-1, 2, 3)), ())[0], pixels)


def test_colors_are_converted_as_declared(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", np.dstack([gray(), gray(), gray()]))
    assert np.array_equal(
        read_image(tmp_path / "a.png", TensorSpec("i", "uint8", (-1, 2, 3, 1)), ())[0, :, :, 0], gray()
    )
    with pytest.raises(UsageError, match=r"has 1 channels: got color 'rgb'"):
        read_image(
            tmp_path / "a.png",
            TensorSpec("i", "uint8", (-1, 2, 3, 1)),
            ({"kind": "image", "input": "i", "color": "rgb"},),
        )


def test_wide_pixels_and_broken_files_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "wide.png", gray().astype(np.uint16) * 256)
    spec = TensorSpec("i", "uint8", (-1, 2, 3, 1))
    with pytest.raises(UsageError, match=r"pixels of the format I.*expected 8 bits"):
        read_image(tmp_path / "wide.png", spec, ())
    draw(tmp_path / "cut.png", gray())
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("text")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UsageError, match=f"image .*{name} cannot be read"):
            read_image(tmp_path / name, spec, ())
    with pytest.raises(UsageError, match="no image at"):
        read_image(tmp_path / "nowhere.png", spec, ())


def test_a_picture_too_big_to_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    draw(tmp_path / "a.png", gray(0, 20, 30))
    step = {"kind": "image", "input": "i", "resize": "bilinear"}
    for limit in (400, 10):  # a warning above the limit, an error above twice the limit
        monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UsageError, match=r"too big to be meant|cannot be read: .*exceeds limit"):
            read_image(tmp_path / "a.png", TensorSpec("i", "uint8", (-1, 2, 3, 1)), (step,))


@pytest.mark.parametrize("shape", [(-1, 784), (-1, 2, 3, 4), (-1, -1, 3, 1), (-1, 3, 3, 3), (-1,)])
def test_inputs_that_are_no_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    draw(tmp_path / "a.png", gray())
    refuses(r"no picture of a known size: got .* Give an \.npz", tmp_path, [TensorSpec("i", "uint8", shape)])


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ({"color": "bgr"}, "color 'bgr'"),
        ({"resize": "cubic"}, "resize 'cubic'"),
        ({"scal": 1}, "unknown field `scal`"),
        ({"mean": [1, 2]}, "mean and std do not fit"),
        ({"std": [0]}, "mean and std do not fit"),
        ({"scale": "1"}, r"Expected `float \| null`, got `str`"),
    ],
)
def test_preprocessing_that_makes_no_sense(tmp_path: Path, step: dict[str, Any], fault: str) -> None:
    draw(tmp_path / "a.png", gray())
    refuses(fault, tmp_path, [PICTURE], preprocess=({**SCALED[0], **step},))


def test_two_steps_for_one_input(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", gray())
    refuses("preprocess has 2 steps for input .image.", tmp_path, [PICTURE], preprocess=SCALED * 2)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    real = builtins.__import__

    def no_pillow(name: str, *rest: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_pillow)
    with pytest.raises(UnavailableError, match=re.escape("pip install 'edgekit-deploy[image]'")) as caught:
        read_data(tmp_path, [PICTURE], preprocess=SCALED)
    assert caught.value.exit_code == 5


# The file of the preprocessing


def test_preprocess_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[preprocess]]\nkind = "image"\ninput = "image"\nscale = 0.5\nmean = [1, 2.5, 3]\n')
    assert read_preprocess(path) == ({"kind": "image", "input": "image", "scale": 0.5, "mean": [1, 2.5, 3]},)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nonsense", "cannot read --preprocess"),
        ("", "holds no steps: got nothing"),
        ("[[steps]]\na = 1", "holds no steps: got steps"),
        ("preprocess = 3", "holds no steps"),
        ('[[preprocess]]\nkind = "audio"\ninput = "a"', "unknown step"),
        ('[[preprocess]]\nkind = "image"', "missing required field `input`"),
        (
            '[[preprocess]]\nkind = "image"\ninput = "a"\nsize = 3',
            "unknown field `size`.*expected kind = .image., input, color, crop, resize",
        ),
    ],
)
def test_preprocess_files_that_say_something_else(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError, match=fault):
        read_preprocess(tmp_path / "p.toml")


def test_no_preprocess_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read --preprocess .*nowhere"):
        read_preprocess(tmp_path / "nowhere.toml")
