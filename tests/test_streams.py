"""Samples by the stream: read as they were written, whatever form they have on disk; memory that does not grow."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.data import Dataset, read_data
from edgekit.errors import MachineError, UsageError
from edgekit.gate import compare_ranges, load_limits
from edgekit.predict import predict_file
from edgekit.process import python_command
from edgekit.samples import gather_samples
from edgekit.sketch import ValueSketch
from edgekit.streams import SampleFolder, store_samples
from edgekit.tensors import TensorSpec
from tests.streaming import STEPS, specs

SPEC = TensorSpec("image", "float32", (-1, 4, 5, 3), "NHWC")
PAIR = (SPEC, TensorSpec("ids", "int64", (-1, 2)))


def images(n: int = 30, **shape: Any) -> np.ndarray:
    return np.random.default_rng(1).random((n, *SPEC.shape[1:])).astype(np.float32)


def streamed(path: Path, scratch: Path, *inputs: TensorSpec, **options: Any) -> Dataset:
    return read_data(path, inputs or [SPEC], scratch=scratch, **options)


def same(dataset: Dataset, path: Path, *inputs: TensorSpec, **options: Any) -> None:
    """Check a streamed data set, sample by sample, against the same read into memory."""
    whole = read_data(path, inputs or [SPEC], **options)
    assert dataset.stream is not None
    assert (len(dataset.stream), dataset.n) == (whole.n, whole.n)
    for index, sample in enumerate(dataset.stream):
        for name, array in whole.inputs.items():
            assert sample[name].dtype == array.dtype
            assert np.array_equal(sample[name], array[index : index + 1])
    for name, array in whole.inputs.items():
        assert np.array_equal(dataset.inputs[name], array)
        rows = [0, whole.n - 1]
        assert np.array_equal(dataset.take(rows)[name], array[rows])
    with pytest.raises(IndexError):
        dataset.stream[whole.n]


@pytest.mark.device
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", ">f4", "float16"])
def test_npz_stored_and_compressed(tmp_path: Path, save: Any, dtype: str) -> None:
    values = (images() * 200).astype(dtype)
    save(tmp_path / "d.npz", image=values, ids=np.arange(60, dtype=np.int32).reshape(30, 2), y=np.arange(30))
    data = streamed(tmp_path / "d.npz", tmp_path / "s", *PAIR)
    same(data, tmp_path / "d.npz", *PAIR)
    assert data.labels is None  # nobody needs them


@pytest.mark.device
def test_stored_arrays_stay_where_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=images(200))
    streamed(tmp_path / "d.npz", tmp_path / "s")
    assert sum(file.stat().st_size for file in (tmp_path / "s").iterdir()) < 1000
    np.save(tmp_path / "d.npy", images(200))
    same(streamed(tmp_path / "d.npy", tmp_path / "t"), tmp_path / "d.npy")
    with (tmp_path / "d.npy").open("r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(MachineError, match=r"d\.npy has been cut short"):
        SampleFolder(tmp_path / "t")[150]


@pytest.mark.device
def test_arrays_by_columns_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.asfortranarray(images()))
    same(streamed(tmp_path / "d.npz", tmp_path / "s"), tmp_path / "d.npz")


@pytest.mark.device
def test_what_is_wrong_far_down_is_found_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.data._BLOCK", 1000)  # four samples in a block
    values = images()
    values[22, 1, 2, 0] = np.nan
    np.savez(tmp_path / "d.npz", image=values)
    for scratch in (None, tmp_path / "s"):
        with pytest.raises(UsageError, match=r"'image' holds nan at index \[22, 1, 2, 0\]"):
            read_data(tmp_path / "d.npz", [SPEC], scratch=scratch)
    np.savez(tmp_path / "e.npz", image=images())
    same(streamed(tmp_path / "e.npz", tmp_path / "t"), tmp_path / "e.npz")
    broken = bytearray((tmp_path / "e.npz").read_bytes())
    broken[3000] ^= 1
    (tmp_path / "e.npz").write_bytes(broken)
    with pytest.raises(UsageError, match="cannot be read: it is damaged"):
        streamed(tmp_path / "e.npz", tmp_path / "u")


@pytest.mark.device
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pictures_are_kept_as_bytes(tmp_path: Path, layout: str) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for index, array in enumerate((images(6) * 255).astype(np.uint8)):
        folder = tmp_path / "d" / ("ab"[index % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(array).save(folder / f"{index}.png")
    spec = SPEC if layout == "NHWC" else TensorSpec("image", "float32", (-1, 3, 4, 5), "NCHW")
    data = streamed(tmp_path / "d", tmp_path / "s", spec, preprocess=STEPS)
    same(data, tmp_path / "d", spec, preprocess=STEPS)
    assert (tmp_path / "s" / "0.raw").stat().st_size == 6 * 4 * 5 * 3
    assert data.class_names == ("a", "b")


@pytest.mark.device
def test_tables_and_texts(tmp_path: Path) -> None:
    table = TensorSpec("f", "float32", (-1, 2))
    lines = "\n".join(f"{i},{i / 7},{i % 3}" for i in range(3000))
    (tmp_path / "t.csv").write_text(f"a,b,k\n{lines}\n")
    same(streamed(tmp_path / "t.csv", tmp_path / "s", table, label_column="k"), tmp_path / "t.csv", table, label_column="k")  # fmt: skip
    strings = TensorSpec("f", "bytes", (-1,))
    np.savez(tmp_path / "d.npz", f=["one", "two", "ä"])
    same(streamed(tmp_path / "d.npz", tmp_path / "t", strings), tmp_path / "d.npz", strings)


@pytest.mark.device
def test_the_digest_is_of_the_data_and_of_how_it_is_read(tmp_path: Path) -> None:
    values = images()
    np.savez(tmp_path / "a.npz", image=values)
    np.savez(tmp_path / "b.npz", image=values)
    found = [streamed(tmp_path / f"{name}.npz", tmp_path / name).stream for name in "ab"]
    values[3, 0, 0, 0] += 1
    np.savez(tmp_path / "c.npz", image=values)
    found.append(streamed(tmp_path / "c.npz", tmp_path / "c").stream)
    one, twin, other = (stream.digest for stream in found if stream is not None)
    assert one == twin != other
    assert (
        SampleFolder(store_samples(tmp_path / "d", {"image": values})).digest != other
    )  # not cast on reading


@pytest.mark.device
def test_ranges_come_from_the_stream(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=images(100))
    data = streamed(tmp_path / "d.npz", tmp_path / "s")
    whole = read_data(tmp_path / "d.npz", [SPEC])
    assert compare_ranges(data.values, whole.values) == compare_ranges(whole.inputs, whole.inputs)
    ids = TensorSpec("ids", "int64", (-1, 2))
    np.savez(tmp_path / "i.npz", ids=np.ones((5, 2), np.int64))
    assert streamed(tmp_path / "i.npz", tmp_path / "t", ids).values == {}


@pytest.mark.device
def test_a_sketch_is_of_the_values_not_of_the_blocks() -> None:
    values = np.random.default_rng(2).normal(size=(400, 5000)).astype(np.float32)
    found = []
    for step in (400, 7):
        sketch = ValueSketch(3, most=20_000)
        for first in range(0, 400, step):
            sketch.add({"x": values[first : first + step], "ids": np.ones((1, 2), np.int64)})
        assert list(sketch.values()) == ["x"]
        found.append(np.sort(sketch.values()["x"]))
    assert len(found[0]) == 20_000
    assert np.array_equal(found[0], found[1])
    assert np.quantile(found[0], [0.01, 0.99]) == pytest.approx(np.quantile(values, [0.01, 0.99]), abs=0.1)


@pytest.mark.device
def test_parity_takes_fewer_of_large_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.samples._MOST_BYTES", 240 * 40)
    np.savez(tmp_path / "d.npz", image=images(300))
    data = streamed(tmp_path / "d.npz", tmp_path / "s")
    samples = gather_samples([SPEC], data, None, load_limits().data, 0)
    assert samples.n == 40
    assert np.array_equal(samples.parity["image"][-1], data.inputs["image"][299])
    monkeypatch.setattr("edgekit.samples._MOST_BYTES", 0)
    assert gather_samples([SPEC], data, None, load_limits().data, 0).n == load_limits().data.parity_samples


# Memory


def _model(folder: Path, name: str, size: int) -> Path:
    """Return a small network over large pictures, as the converter starts from it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "w1": random.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "w2": random.normal(0, 0.2, (8, 4)).astype(np.float32),
    }
    if name == "keras-tflite":
        return _keras_model(folder, weights, size)
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w1"], ["c"], strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", size, size, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    if name == "openvino-int8":
        import openvino as ov

        ov.save_model(ov.convert_model(str(path)), str(folder / "m.xml"))
        return folder / "m.xml"
    return path


def _keras_model(folder: Path, weights: dict[str, np.ndarray], size: int) -> Path:
    """Save the same network, trained by nobody, in a process of its own: TensorFlow stays out of this one."""
    np.savez(folder / "w.npz", w1=weights["w1"].transpose(2, 3, 1, 0), w2=weights["w2"])
    script = f"""
import keras, numpy as np
w = np.load({str(folder / "w.npz")!r})
x = keras.Input(({size}, {size}, 3), name="image")
h = keras.layers.Conv2D(8, 3, strides=4, use_bias=False, activation="relu")(x)
h = keras.layers.GlobalAveragePooling2D()(h)
model = keras.Model(x, keras.layers.Dense(4, use_bias=False, name="scores")(h))
model.set_weights([w["w1"], w["w2"]])
model.save({str(folder / "m.keras")!r})
"""
    subprocess.run([*python_command(), "-c", script], check=True, capture_output=True)
    return folder / "m.keras"


def _data(folder: Path, kind: str, n: int, size: int) -> Path:
    """Write n samples, one at a time: an `.npz` of floats, or a folder of pictures."""
    random = np.random.default_rng(n)
    if kind == "npz":
        path = folder / f"{n}.npz"
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, size, size, 3)}
        with (
            zipfile.ZipFile(path, "w") as archive,
            archive.open("image.npy", "w", force_zip64=True) as stream,
        ):
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(n):
                stream.write(random.random((size, size, 3), dtype=np.float32).tobytes())
        return path
    pillow = pytest.importorskip("PIL.Image")
    (folder / f"{n}").mkdir()
    for index in range(n):
        small = random.integers(0, 256, (size // 8, size // 8, 3)).astype(np.uint8)
        pixels = np.repeat(np.repeat(small, 8, 0), 8, 1)
        pillow.fromarray(pixels).save(folder / f"{n}" / f"{index:05}.bmp")
    return folder / f"{n}"


def _grown_mib(folder: Path, name: str, kind: str, n: int, size: int) -> tuple[float, float]:
    """Return what reading, and then converting too, needs beyond the same with three samples, in MiB."""
    model = _model(folder, name, size)
    few, all_ = _data(folder, kind, 3, size), _data(folder, kind, n, size)
    (folder / "scratch").mkdir()
    words = [name, str(model), str(all_), str(size), str(few), str(folder / "scratch")]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*python_command(), "-m", "tests.streaming", *words], cwd=root, capture_output=True, text=True, check=False
    )  # fmt: skip
    shutil.rmtree(folder)  # gigabytes, which pytest would keep
    assert done.returncode == 0, done.stderr[-2000:]
    before, read, peak = map(float, done.stdout.split()[-3:])
    return read - before, peak - before


CONVERTERS = ["onnx-int8", "openvino-int8", "keras-tflite"]


@pytest.mark.convert
@pytest.mark.parametrize(
    ("name", "kind"), [("onnx-int8", "npz"), ("openvino-int8", "folder"), ("keras-tflite", "folder")]
)
def test_memory_stays_bounded(tmp_path: Path, name: str, kind: str) -> None:
    n, size = 200, 320
    whole_mib = n * size * size * 3 * 4 / 2**20
    read, converted = _grown_mib(tmp_path, name, kind, n, size)
    assert read < 0.3 * whole_mib
    assert converted < 0.3 * whole_mib


@pytest.mark.convert
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("name", CONVERTERS)
def test_two_thousand_large_samples_need_less_than_a_gibibyte(tmp_path: Path, name: str, kind: str) -> None:
    assert specs(640)[0].shape == (-1, 640, 640, 3)
    read, converted = _grown_mib(tmp_path, name, kind, 2000, 640)
    print(f"{name}, {kind}: reading {read:.0f} MiB, converting {converted:.0f} MiB above the model")
    assert max(read, converted) < 1024


# The whole way


@pytest.mark.convert
def test_convert_streams_a_folder_of_pictures_and_every_command_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.convert import ConvertRequest, convert
    from edgekit.factory import Factory

    pillow = pytest.importorskip("PIL.Image")
    model = _model(tmp_path, "onnx-int8", 32)
    random = np.random.default_rng(0)
    for index in range(60):
        pixels = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        (tmp_path / "d").mkdir(exist_ok=True)
        pillow.fromarray(pixels).save(tmp_path / "d" / f"{index:02}.png")
    steps = ({**STEPS[0], "resize": "area", "fit": "letterbox"},)
    request = ConvertRequest(
        model,
        "x86-64",
        tmp_path / "b",
        formats=("onnx",),
        precisions=("fp32", "int8"),
        task="other",
        calibration=tmp_path / "d",
        preprocess=steps,
        allow_unproven=True,
    )
    outcome = convert(request)
    assert {row.name: row.status for row in outcome.rows} == {
        "onnx-fp32": "accepted",
        "onnx-int8": "unproven",
    }
    with edgekit.load(outcome.bundle, monitor=False) as loaded:
        by_file = predict_file(loaded, tmp_path / "d")["scores"]
        first = pillow.open(tmp_path / "d" / "00.png")
        assert np.allclose(np.asarray(loaded.predict(np.asarray(first))), by_file[:1], atol=1e-6)
        assert np.allclose(np.asarray(loaded.predict(tmp_path / "d" / "00.png")), by_file[:1], atol=1e-6)

    def never(*_: object) -> None:
        raise AssertionError("the source was run")

    monkeypatch.setattr(Factory, "run_source", never)
    monkeypatch.setattr("edgekit.convert.read_data", never)
    wrong = replace(request, out=tmp_path / "c", preprocess=({**steps[0], "color": "grayscale"},))
    with pytest.raises(UsageError, match="has 3 channels: got color 'grayscale'"):
        convert(wrong)
