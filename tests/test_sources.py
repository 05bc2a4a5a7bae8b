from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ConversionError, EdgeKitError, InvalidFileError, UsageError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerLimits
from edgekit.sources import SOURCES, hash_source, identify
from edgekit.tasks import Convert, Describe, Described, RunSource
from tests.conversions import environment

pytestmark = pytest.mark.convert


# What a file is, without any framework


def keras_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path


def test_kinds_are_told_by_content(tmp_path: Path) -> None:
    whole = keras_zip(tmp_path / "a.keras", "config.json", "model.weights.h5", "metadata.json", "assets/x")
    assert identify(whole) == "keras"
    (tmp_path / "a.ONNX").write_bytes(b"")
    assert identify(tmp_path / "a.ONNX") == "onnx"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert identify(tmp_path / "saved") == "savedmodel"


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5", "metadata.json"])
def test_a_keras_file_lacks_a_part(tmp_path: Path, missing: str) -> None:
    names = {"config.json", "model.weights.h5", "metadata.json"} - {missing}
    with pytest.raises(InvalidFileError, match=f"is not a Keras 3 file: {missing} is missing in it"):
        identify(keras_zip(tmp_path / "a.keras", *names))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model at .*none\.onnx"):
        identify(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".pb", "frozen graphs are not supported yet"),
        (".txt", "is of no known kind"),
    ],
)
def test_what_is_not_supported_says_so(tmp_path: Path, suffix: str, words: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(InvalidFileError, match=words) as error:
        identify(path)
    assert error.value.exit_code == 6


def test_a_folder_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidFileError, match=r"is not a SavedModel: expected a saved_model\.pb in the folder"
    ):
        identify(tmp_path)


def test_a_files_hash_is_its_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "m").write_bytes(data)
    assert hash_source(tmp_path / "m") == hashlib.sha256(data).hexdigest()


def test_a_folders_hash_covers_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        root = tmp_path / name
        for file, text in files.items():
            path = root / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    first = hash_source(folder("a", saved="x", variables__data="y"))
    assert hash_source(folder("b", variables__data="y", saved="x")) == first
    assert hash_source(folder("c", saved="y", variables__data="x")) != first
    assert hash_source(folder("d", saved="x", variables__other="y")) != first
    assert hash_source(folder("e", saved="x")) != first
    (tmp_path / "b" / "empty").mkdir()
    assert hash_source(tmp_path / "b") == first


def test_every_kind_has_its_class() -> None:
    assert {"keras", "keras2", "savedmodel", "onnx", "tflite"} <= set(SOURCES)


# What Keras models are, in a worker


MODELS = """
import sys, keras, numpy as np
keras.utils.set_random_seed(0)
from keras import layers, Input, Model, Sequential
folder = sys.argv[1]

def save(name, model):
    model.save(f"{folder}/{name}.keras")

b, a = Input((3,), name="b"), Input((2,), name="a")
both = layers.Subtract(name="sub")([layers.Dense(2, name="d")(b), a])
save("many", Model([b, a], [both, *[layers.Dense(1, name=f"o{i}")(both) for i in range(10)]]))
x = Input((4,), name="x")
h = layers.Dense(3)(x)
save("dict_outputs", Model(x, {"zeta": layers.Dense(2)(h), "alpha": layers.Dense(1)(h)}))
left, right = Input((4,), name="left"), Input((4,), name="right")
scaled = layers.Normalization(mean=[1, 2, 3, 4], variance=[1, 4, 9, 16])(left)
save("dict_inputs", Model({"zeta": left, "alpha": right}, layers.Dense(2)(layers.Subtract()([scaled, right]))))
alone = Input((4,), name="alone")
save("one_in_a_dict", Model({"key": alone}, layers.Dense(2)(alone)))
save("batch_norm", Sequential([Input((6, 6, 2), name="im"), layers.Conv2D(3, 3), layers.BatchNormalization(),
                               layers.Dropout(0.5), layers.Flatten(), layers.Dense(2, "softmax")]))
save("unbuilt", Sequential([layers.Dense(2)]))
"""


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras-models")
    subprocess.run(
        [sys.executable, "-c", MODELS, str(folder)], check=True, capture_output=True, env=environment()
    )
    return folder


@pytest.fixture(scope="module", name="worker")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits())
    yield worker
    worker.close()


def describe(worker: Worker, path: Path) -> Described:
    found = next(a.described for a in worker.ask(Describe("keras", str(path))) if a.described is not None)
    assert found is not None
    return found


def run(worker: Worker, path: Path, **feed: np.ndarray) -> dict[str, np.ndarray]:
    given, out = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **feed)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    list(worker.ask(RunSource("keras", str(path), str(given), str(out))))
    with np.load(out) as answers:
        return dict(answers)


def artifacts(worker: Worker, path: Path, out: Path) -> dict[str, Path]:
    """Return the model as TFLite and as ONNX, both float32."""
    made = {}
    source = describe(worker, path)
    for name, converter in (
        ("tflite", "edgekit.converters.keras_tflite:KerasToTflite"),
        ("onnx", "edgekit.converters.keras_onnx:KerasToOnnx"),
    ):
        (out / name).mkdir(parents=True)
        recipe = Recipe(route=(name,), precision="fp32", options={"opset": 17, "ir": 8})
        task = Convert(
            converter, "keras", str(path), source.inputs, source.outputs, (recipe,), None, str(out / name)
        )
        (part,) = [answer.part for answer in worker.ask(task) if answer.part is not None]
        made[name] = Path(part.path)
    return made


def answers_of(
    name: str, path: Path, source: Described, feed: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime

    runtime = get_runtime({"tflite": "litert", "onnx": "onnxruntime"}[name])
    session = runtime.load(ModelFiles(path, source.inputs, source.outputs), SessionOptions())
    answers = {key: np.array(value) for key, value in session.run(feed).items()}
    session.close()
    return answers


FEEDS: dict[str, dict[str, tuple[int, ...]]] = {
    "many": {"b": (3,), "a": (2,)},  # two inputs not in the alphabet's order, output_10 beside output_2
    "dict_outputs": {"x": (4,)},
    "dict_inputs": {"left": (4,), "right": (4,)},  # and constants that a layer captured
    "one_in_a_dict": {"alone": (4,)},
}


@pytest.mark.parametrize("name", FEEDS)
def test_keras_and_both_its_artifacts_agree_name_by_name(
    worker: Worker, models: Path, tmp_path: Path, name: str
) -> None:
    """Inputs and outputs keep their own names: a mix-up of two would pass any check of shapes."""
    path = models / f"{name}.keras"
    source = describe(worker, path)
    assert {spec.name for spec in source.inputs} == set(FEEDS[name])
    random = np.random.default_rng(1)
    feed = {n: random.standard_normal((1, *shape)).astype(np.float32) for n, shape in FEEDS[name].items()}
    want = run(worker, path, **feed)
    assert set(want) == {spec.name for spec in source.outputs}
    for form, file in artifacts(worker, path, tmp_path).items():
        got = answers_of(form, file, source, feed)
        assert set(got) == set(want)
        for key, value in want.items():
            assert got[key] == pytest.approx(value, abs=1e-5), (form, key)


def test_inference_mode_is_what_keras_answers_in(worker: Worker, models: Path) -> None:
    """Dropout at work would answer differently each time."""
    x = np.ones((4, 6, 6, 2), np.float32)
    first, second = (run(worker, models / "batch_norm.keras", im=x) for _ in range(2))
    (name,) = first
    assert np.array_equal(first[name], second[name])


def test_a_model_without_a_shape_says_what_to_do(worker: Worker, models: Path) -> None:
    with pytest.raises(ConversionError, match="no input shape"):
        describe(worker, models / "unbuilt.keras")


def test_a_broken_file_is_invalid_whatever_is_wrong_in_it(
    worker: Worker, models: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(models / "many.keras") as source:
        parts = {name: source.read(name) for name in source.namelist()}
    for name, data in (("config.json", b"{"), ("config.json", b"{}"), ("model.weights.h5", b"")):
        path = tmp_path / f"{name}-{len(data)}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in {**parts, name: data}.items():
                archive.writestr(part, content)
        with pytest.raises(EdgeKitError) as error:
            describe(worker, path)
        assert isinstance(error.value, InvalidFileError), (name, data, error.value)
        assert str(error.value).startswith(f"Keras cannot read {path.name}: ")


def test_weights_beside_the_model_count_in_its_hash(tmp_path: Path) -> None:
    model, weights = tmp_path / "m.onnx", tmp_path / "w.data"
    model.write_bytes(b"graph")
    weights.write_bytes(b"one")
    before = hash_source(model, [str(weights)])
    assert before != hash_source(model)
    weights.write_bytes(b"two")
    assert hash_source(model, [str(weights)]) != before
