"""Each mistake of a user, each failing of the machine: one clear line, its exit code, nothing left behind."""

from __future__ import annotations

import os
import resource
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conversions import Said, command, environment, reference_onnx, run_main
from tests.corpus import ReferenceCnn

pytestmark = pytest.mark.convert


@pytest.fixture(name="cnn")
def _cnn(reference_cnn: ReferenceCnn) -> ReferenceCnn:
    return reference_cnn


@pytest.fixture(name="out")
def _out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def says(said: Said, code: int, *words: str, early: bool = True) -> None:
    """Check the one line, its exit code and that nobody sees a traceback."""
    assert said.code == code, said.err
    assert said.line.startswith("edgekit: error: ")
    for word in words:
        assert word in said.line, said.line
    assert "Traceback" not in said.err
    assert not (early and said.out)


def converting(
    capsys: pytest.CaptureFixture[str], model: Path, out: Path, *options: object, target: str = "jetson"
) -> Said:
    """Convert in this process; check that nothing was left where the bundle would have been."""
    before = {path for path in out.parent.iterdir() if path != out}
    existed = out.exists()
    said = run_main(["convert", model, "--target", target, "-o", out, *options], capsys)
    if said.code:
        assert out.exists() == existed
        left = {path for path in out.parent.iterdir() if path != out} - before
        assert not left, left
    return said


# The model


def test_missing_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, out.with_name("none.keras"), out)
    says(said, 2, "no model at ", "none.keras", "expected a .keras, .h5, .onnx, .tflite, .pt2")


def test_text_file_named_keras(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.keras").write_text("dear diary, today I trained")
    said = converting(capsys, tmp_path / "model.keras", out)
    says(said, 6, "model.keras is not a Keras 3 file", "b'dear diary, toda'", "expected a zip archive")


def test_a_zip_that_is_no_keras_file(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    said = converting(capsys, tmp_path / "model.keras", out)
    says(said, 6, "model.keras is not a Keras 3 file: metadata.json is missing in it")


def test_a_keras_file_with_a_broken_inside(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "model.keras"
    with zipfile.ZipFile(cnn.model) as source, zipfile.ZipFile(broken, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name)[:50] if name.endswith(".h5") else source.read(name))
    says(converting(capsys, broken, out), 6, "Keras cannot read model.keras: ")


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5", "MODEL.H5"])
def test_any_h5(out: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    said = converting(capsys, tmp_path / name, out)
    says(said, 6, name)
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.txt", "model", "model.weights"])
def test_other_kinds(out: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"x")
    said = converting(capsys, tmp_path / name, out)
    says(said, 6, name, "expected a .keras, .h5, .onnx, .tflite, .pt2")


@pytest.mark.parametrize("name", ["model.tflite", "model.pt", "model.pt2", "model.skops", "model.pkl"])
def test_names_that_promise_what_the_file_is_not(
    out: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"x")
    says(converting(capsys, tmp_path / name, out), 6, name)
    assert not out.exists()


def test_corrupt_onnx(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"this is no protobuf at all" * 9)
    says(converting(capsys, tmp_path / "model.onnx", out), 6, "model.onnx is not an ONNX file: ")


def test_half_an_onnx(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = reference_onnx().read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    says(converting(capsys, tmp_path / "model.onnx", out), 6, "model.onnx is not an ONNX file: ")


def test_empty_onnx(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    says(converting(capsys, tmp_path / "model.onnx", out), 6, "model.onnx is not an ONNX file: ")


def test_folder_without_saved_model(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    said = converting(capsys, tmp_path / "model", out)
    says(said, 6, "is not a SavedModel", "expected a saved_model.pb in the folder")


def test_corrupt_saved_model(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"\xff\x00 not a graph")
    says(converting(capsys, tmp_path / "model", out), 6, "model is not a readable SavedModel: ")


# The data


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    return path


IMAGES = np.zeros((50, 28, 28, 1), np.float32)


def test_wrong_calibration_shape(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "c.npz", image=np.zeros((50, 32, 32, 3), np.float32))
    said = converting(capsys, reference_onnx(), out, "--calibration", data)
    says(
        said,
        2,
        "calibration data: input 'image' has the wrong shape",
        "got [50, 32, 32, 3]",
        "[N, 28, 28, 1]",
    )


def test_wrong_calibration_name(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "c.npz", picture=IMAGES)
    said = converting(capsys, reference_onnx(), out, "--calibration", data)
    says(
        said,
        2,
        "calibration data",
        "has the wrong arrays: got picture, expected image float32[-1, 28, 28, 1]",
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_calibration(
    out: Path, tmp_path: Path, bad: float, capsys: pytest.CaptureFixture[str]
) -> None:
    images = IMAGES.copy()
    images[7, 3, 4, 0] = bad
    said = converting(capsys, reference_onnx(), out, "--calibration", save(tmp_path / "c.npz", image=images))
    says(said, 2, f"calibration data: 'image' holds {bad} at index [7, 3, 4, 0]", "expected finite numbers")


def test_missing_calibration(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--calibration", out.with_name("none.npz"))
    says(said, 2, "no calibration data at ", "Check the path.")


def test_calibration_that_is_no_npz(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.npz").write_text("no zip")
    said = converting(capsys, reference_onnx(), out, "--calibration", tmp_path / "c.npz")
    says(said, 2, "calibration data ", "cannot be read: ")


def test_evaluation_without_labels(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--eval", save(tmp_path / "e.npz", image=IMAGES))
    says(said, 2, "evaluation data", "has no labels", "under 'y'")


def test_too_few_labels(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "e.npz", image=IMAGES, y=np.zeros(49, np.int64))
    said = converting(capsys, reference_onnx(), out, "--eval", data)
    says(said, 2, "labels do not fit the inputs: got 49 labels, expected 50")


# The words


def test_unknown_target(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, target="jetsno")
    says(said, 2, "unknown device 'jetsno'", "generic-aarch64, intel-core-ultra, ", "Did you mean 'jetson'?")


def test_unknown_precision(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--precision", "int4")
    says(said, 2, "unknown precision 'int4': expected one of fp32, ", "int8")


def test_unknown_format(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--format", "coreml")
    says(said, 2, "unknown format 'coreml': expected one of tflite, onnx, openvino")


def test_unknown_metric(cnn: ReferenceCnn, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--eval", cnn.evaluation, "--metric", "auc")
    says(said, 2, "metric 'auc'", "expected one of top1, top5")


def test_int8_without_calibration(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--precision", "int8")
    says(said, 2, "static int8 needs calibration data", "Give --calibration")


def test_no_route(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converting(capsys, reference_onnx(), out, "--format", "tflite", "--precision", "fp32")
    says(said, 3, "no route from onnx to tflite-fp32")


@pytest.mark.parametrize(
    "option",
    [
        ("--max-drop", "-1"),
        ("--max-drop", "lots"),
        ("--version", "0"),
        ("--jobs", "0"),
        ("--time-limit", "0"),
        ("--task", "guessing"),
    ],
)
def test_values_that_cannot_be_meant(
    out: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = converting(capsys, reference_onnx(), out, *option)
    assert said.code == 2
    assert option[0] in said.err


def test_labels_file_with_a_name_twice(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\ncat\n")
    said = converting(capsys, reference_onnx(), out, "--labels", tmp_path / "labels.txt")
    says(said, 2, "has no names, or one twice")


# Where it goes


def test_existing_output(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    said = converting(capsys, reference_onnx(), out)
    says(said, 2, f"{out} exists", "Give another name, or --overwrite.")
    assert (out / "mine.txt").read_text() == "keep me"


def test_overwrite_does_not_replace_what_is_no_bundle(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    said = run_main(["convert", reference_onnx(), "-t", "jetson", "-o", out, "--overwrite"], capsys)
    assert said.code == 2, said.err
    assert "Traceback" not in said.err
    assert (out / "mine.txt").read_text() == "keep me"


def test_overwrite_replaces_a_bundle(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", reference_onnx(), "-t", "jetson", "-o", out, "--precision", "fp32", "--json"]
    first = run_main(words, capsys)
    assert first.code == 0, first.err
    assert run_main(words, capsys).code == 2
    again = run_main([*words, "--overwrite"], capsys)
    assert again.code == 0, again.err


def test_no_folder_to_write_into(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run_main(["convert", reference_onnx(), "-t", "jetson", "-o", out / "deep" / "er"], capsys)
    says(said, 2, "the folder ", "deep does not exist", "Make it first.")


# The machine


BLOCKER = """
import importlib.machinery
_find = importlib.machinery.PathFinder.find_spec.__func__
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {blocked!r} else _find(cls, name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def without(folder: Path, *packages: str) -> dict[str, str]:
    """Return an environment whose Pythons do not find some packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=packages))
    kept = environment()
    kept["PYTHONPATH"] = os.pathsep.join([str(folder), kept["PYTHONPATH"]])
    return kept


def in_process_of_its_own(words: list[str], env: dict[str, str]) -> Said:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("target", "packages", "words"),
    [
        ("raspberry-pi-4", ("tensorflow", "keras"), "converter keras-tflite needs tensorflow, keras"),
        ("jetson", ("tf2onnx",), "converter keras-onnx needs tf2onnx"),
        ("intel-npu", ("openvino",), "converter onnx-openvino needs openvino"),
    ],
)
def test_missing_extra_names_the_command(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, target: str, packages: tuple[str, ...], words: str
) -> None:
    said = in_process_of_its_own(
        command("convert", cnn.model, "--target", target, "-o", out), without(tmp_path / "site", *packages)
    )
    says(said, 5, words, "pip install 'edgekit-deploy[convert]'")
    assert not out.exists()


def test_a_missing_tool_for_what_is_skipped_anyway_is_no_matter(out: Path, tmp_path: Path) -> None:
    """Without calibration data no int8 is made: its quantizer need not be there."""
    said = in_process_of_its_own(
        command("convert", reference_onnx(), "--target", "jetson", "-o", out),
        without(tmp_path / "site", "sympy"),
    )
    assert said.code == 0, said.err
    assert "onnx-int8: static int8 needs --calibration" in said.out


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 600 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    words = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let root mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["out", "out.edgekit"])
def test_full_disk_where_the_bundle_goes(
    small_disk: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_main(["convert", reference_onnx(), "-t", "jetson", "-o", small_disk / name], capsys)
    says(said, 1, "No space left on device", "Nothing was replaced", early=False)
    assert [path.name for path in small_disk.iterdir() if not path.name.endswith(".report")] == []


def test_full_disk_leaves_the_bundle_that_was_there(
    small_disk: Path, cnn: ReferenceCnn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = tmp_path / "tiny.onnx"
    _identity(tiny)
    out = small_disk / "out"
    assert run_main(["convert", tiny, "-t", "jetson", "-o", out], capsys).code == 0
    before = (out / "manifest.sha256").read_text()
    said = run_main(["convert", reference_onnx(), "-t", "jetson", "-o", out, "--overwrite"], capsys)
    says(said, 1, "No space left on device", "Nothing was replaced", early=False)
    assert (out / "manifest.sha256").read_text() == before
    assert run_main(["verify", out], capsys).code == 0


def _identity(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    takes, gives = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [takes], [gives])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.mark.parametrize("kind", ["onnx", "keras"])
def test_full_disk_where_the_work_is_done(small_disk: Path, cnn: ReferenceCnn, out: Path, kind: str) -> None:
    model = reference_onnx() if kind == "onnx" else cnn.model
    said = in_process_of_its_own(
        command("convert", model, "--target", "jetson", "-o", out),
        {**environment(), "TMPDIR": str(small_disk)},
    )
    says(said, 1, "disk is full")
    assert not out.exists()
    assert list(small_disk.iterdir()) == []


def test_a_file_size_limit_is_told_as_the_system_tells_it(cnn: ReferenceCnn, out: Path) -> None:
    """Needs no root: no file may grow beyond 300 KB."""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        command("convert", reference_onnx(), "--target", "jetson", "-o", out),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        preexec_fn=limit,
    )
    said = Said(done.returncode, done.stdout, done.stderr)
    says(said, 1, "File too large")
    assert not out.exists()


@pytest.fixture(name="read_only")
def _read_only(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that nobody may write into, root neither."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder
        return
    words = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let root mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_may_not_be_written(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run_main(["convert", reference_onnx(), "-t", "jetson", "-o", read_only / "out"], capsys)
    assert said.code == 1
    assert "Read-only file system" in said.line or "Permission denied" in said.line
    assert list(read_only.iterdir()) == []
