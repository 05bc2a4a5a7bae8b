"""Keras 2 files: read by what wrote them, refused by name where they cannot be read safely."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerLimits
from edgekit.sources import SourceOptions, check_options, identify
from edgekit.sources.keras2 import readers
from edgekit.sources.keras_config import code_in, custom_in, layers_in
from edgekit.tasks import Convert, Describe, Described, RunSource
from tests.conversions import environment
from tests.corpus import ROOT
from tests.models.fetch import fetch

pytestmark = pytest.mark.convert


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras2-models")
    script = ROOT / "tests" / "keras2_models.py"
    subprocess.run(
        [sys.executable, str(script), str(folder)], check=True, capture_output=True, env=environment()
    )
    (folder / "own.pid").unlink()
    return folder


@pytest.fixture(scope="module", name="worker")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits())
    yield worker
    worker.close()


def describe(worker: Worker, path: Path, options: SourceOptions | None = None) -> Described:
    task = Describe(identify(path), str(path), options or SourceOptions())
    (found,) = [answer.described for answer in worker.ask(task) if answer.described is not None]
    return found


def run(
    worker: Worker, path: Path, feed: dict[str, np.ndarray], options: SourceOptions | None = None
) -> dict[str, np.ndarray]:
    given, out = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **feed)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    list(worker.ask(RunSource(identify(path), str(path), str(given), str(out), options or SourceOptions())))
    with np.load(out) as answers:
        return dict(answers)


def artifact(worker: Worker, path: Path, form: str, out: Path) -> Path:
    """Return a float32 artifact of a Keras 2 file."""
    converter = {"tflite": "keras_tflite:KerasToTflite", "onnx": "keras_onnx:KerasToOnnx"}[form]
    source = describe(worker, path)
    recipe = Recipe(route=(form,), precision="fp32", options={"opset": 17, "ir": 8})
    task = Convert(
        f"edgekit.converters.{converter}", "keras2", str(path), source.inputs, source.outputs, (recipe,), None, str(out)
    )  # fmt: skip
    (part,) = [answer.part for answer in worker.ask(task) if answer.part is not None]
    return Path(part.path)


# What a file is


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".H5"])
def test_an_hdf5_file_is_told_by_its_first_bytes(tmp_path: Path, suffix: str) -> None:
    good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    good.write_bytes(b"\x89HDF\r\n\x1a\nrest")
    bad.write_bytes(b"PK\x03\x04 and more")
    assert identify(good) == "keras2"
    with pytest.raises(InvalidFileError, match="is not an HDF5 file: got a file that starts with b'PK"):
        identify(bad)


def test_a_file_is_read_by_what_wrote_it() -> None:
    assert readers("2.0.5") == ("tf_keras", "keras")
    assert readers("") == ("tf_keras", "keras")
    assert readers("3.3.0")[0] == "keras"
    assert readers("10.0")[0] == "keras"


# Names and numbers


def test_names_are_those_of_a_keras_3_export(worker: Worker, models: Path, tmp_path: Path) -> None:
    path = models / "many.h5"
    source = describe(worker, path)
    assert [spec.name for spec in source.inputs] == ["a", "b"]
    assert [spec.name for spec in source.outputs] == [f"output_{i}" for i in range(11)]
    assert source.notes == ("read by tf_keras",)
    random = np.random.default_rng(0)
    feed = {n: random.standard_normal((1, size)).astype(np.float32) for n, size in (("a", 2), ("b", 3))}
    want = run(worker, path, feed)
    assert want["output_0"].shape == (1, 2)
    for form in ("tflite", "onnx"):
        (tmp_path / form).mkdir()
        made = artifact(worker, path, form, tmp_path / form)
        got = _answers(form, made, source, feed)
        for name, value in want.items():
            assert got[name] == pytest.approx(value, abs=1e-5), (form, name)


def _answers(form: str, path: Path, source: Described, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime

    runtime = get_runtime({"tflite": "litert", "onnx": "onnxruntime"}[form])
    session = runtime.load(ModelFiles(path, source.inputs, source.outputs), SessionOptions())
    answers = {key: np.array(value) for key, value in session.run(feed).items()}
    session.close()
    return answers


def test_hard_sigmoid_means_what_it_meant_to_the_library_that_wrote_the_file(
    worker: Worker, models: Path
) -> None:
    """Keras 3 loads the Keras 2 file without a word, and its gates are up to 0.07 off."""
    x = np.array([[-2.0, 0.5, 1.5, 0.0]], np.float32)
    answer = run(worker, models / "hard_sigmoid.hdf5", {"x": x})["output_0"]
    assert answer == pytest.approx(np.clip(0.2 * x[:, :3] + 0.5, 0, 1), abs=1e-6)
    assert describe(worker, models / "three.h5").notes == ("read by keras",)


def test_a_vendors_file_of_2017_converts(worker: Worker, tmp_path: Path) -> None:
    path = fetch("D4") / "fer" / "data" / "emotion_model.hdf5"
    source = describe(worker, path)
    assert [(spec.name, spec.shape) for spec in source.inputs] == [("input_1", (-1, 64, 64, 1))]
    x = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 1)).astype(np.float32)
    local = tmp_path / "model.hdf5"
    local.write_bytes(path.read_bytes())
    want = run(worker, local, {"input_1": x})["output_0"]
    for form in ("tflite", "onnx"):
        (tmp_path / form).mkdir()
        got = _answers(form, artifact(worker, local, form, tmp_path / form), source, {"input_1": x})
        assert got["output_0"] == pytest.approx(want, abs=1e-5)


# What is refused, and by what name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights.h5", "weights.h5 holds weights only, no model.*Build the model in Keras"),
        ("three.weights.h5", "holds weights only, no model"),
        ("nothing.h5", "nothing.h5 holds no Keras model"),
        ("not_json.h5", "the model's configuration in not_json.h5 is not JSON"),
        (
            "lambda.h5",
            "lambda.h5 holds Python code that would run on loading: got in plus_one.*--trust-pickle",
        ),
        ("lambda.keras", "lambda.keras holds Python code that would run on loading: got in plus_one"),
        ("custom.h5", "classes or functions of your own: Twice. Give the module .* with --custom-objects"),
        (
            "custom.keras",
            "classes or functions of your own: Thrice. Give the module .* with --custom-objects",
        ),
        ("unknown.h5", "classes or functions of your own: Mystery"),
    ],
)
def test_what_cannot_be_read_safely_is_refused_by_name(
    worker: Worker, models: Path, name: str, words: str
) -> None:
    with pytest.raises(InvalidFileError, match=words):
        describe(worker, models / name)


@pytest.mark.parametrize("name", ["lambda.h5", "lambda.keras"])
def test_code_in_a_file_runs_when_the_user_trusts_it(worker: Worker, models: Path, name: str) -> None:
    x = np.ones((2, 4), np.float32)
    answer = run(worker, models / name, {"x": x}, SourceOptions(trust_pickle=True))
    assert answer["output_0"] == pytest.approx(x + 1.0)


@pytest.mark.parametrize(("name", "factor"), [("custom.h5", 2.0), ("custom.keras", 3.0)])
def test_the_users_own_layers_come_from_the_users_module_in_the_worker(
    worker: Worker, models: Path, name: str, factor: float
) -> None:
    x = np.ones((1, 4), np.float32)
    options = SourceOptions(custom_objects=str(models / "own.py"))
    answer = run(worker, models / name, {"x": x}, options)["output_0"]
    assert answer == pytest.approx(factor * x)
    assert int((models / "own.pid").read_text()) != os.getpid()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, UsageError, "is not a Python file"),
        (
            "import keras\nfrom keras.layers import Dense\n",
            UsageError,
            "defines neither classes nor functions",
        ),
        (
            "raise RuntimeError('my own fault')",
            ConversionError,
            "does not import: RuntimeError: my own fault",
        ),
    ],
)
def test_a_module_that_gives_nothing_says_so(
    worker: Worker, models: Path, tmp_path: Path, text: str | None, error: type[Exception], words: str
) -> None:
    module = tmp_path / "own.py"
    if text is not None:
        module.write_text(text)
    with pytest.raises(error, match=words):
        describe(worker, models / "custom.h5", SourceOptions(custom_objects=str(module)))


def test_options_of_other_kinds_are_refused() -> None:
    check_options("keras2", SourceOptions(custom_objects="own.py", trust_pickle=True))
    with pytest.raises(UsageError, match="--signature means nothing to a source of the kind keras2"):
        check_options("keras2", SourceOptions(signature="serve"))


def test_a_cut_file_is_invalid(worker: Worker, models: Path, tmp_path: Path) -> None:
    whole = (models / "many.h5").read_bytes()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / f"cut-{share}.h5"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InvalidFileError, match=f"{path.name}"):
            describe(worker, path)


# The configuration as data


def test_code_is_found_wherever_it_lies() -> None:
    deep = {"class_name": "Lambda", "config": {"name": "deep", "function": ["…"], "function_type": "lambda"}}
    shape = {"class_name": "Lambda", "config": {"name": "shape", "function_type": "function", "output_shape_type": "lambda"}}  # fmt: skip
    named = {
        "class_name": "Lambda",
        "config": {"name": "named", "function_type": "function", "function": "f"},
    }
    three = {"class_name": "Lambda", "config": {"name": "three", "function": {"class_name": "__lambda__", "config": {"code": "…"}}}}  # fmt: skip
    wrapper = {"class_name": "TimeDistributed", "config": {"name": "each", "layer": deep}}
    nested = {"class_name": "Sequential", "config": {"name": "inner", "layers": [wrapper, shape]}}
    config = {"class_name": "Model", "config": {"name": "outer", "layers": [nested, named, three]}}
    assert code_in(config) == ["deep", "shape", "three"]
    assert code_in({"class_name": "Model", "config": {"name": "outer", "layers": [named]}}) == []


def test_custom_classes_of_keras_3_are_those_without_a_module_of_its_own() -> None:
    def layer(name: str, module: str | None) -> dict[str, object]:
        return {
            "module": module,
            "class_name": name,
            "config": {"name": name},
            "registered_name": f"pkg>{name}",
        }

    config = {
        "config": {"layers": [layer("Dense", "keras.layers"), layer("Mine", None), layer("Yours", "os")]}
    }
    assert custom_in(config, []) == ["Mine", "Yours"]
    assert custom_in(config, ["Mine"]) == ["Yours"]


def test_unknown_layers_are_told_from_initializers() -> None:
    kernel = {"class_name": "MyInitializer", "config": {"scale": 1.0}}
    layers = [{"class_name": "Odd", "config": {"name": "odd", "kernel": kernel}}, {"class_name": "Dense", "config": {"name": "d"}}]  # fmt: skip
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    assert layers_in(config, lambda kind: kind in ("Dense", "Sequential")) == ["Odd"]
