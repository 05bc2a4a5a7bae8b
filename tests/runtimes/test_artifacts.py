from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import InvalidFileError
from edgekit.runtimes import SessionOptions
from tests.runtimes.cases import runtime_or_skip, tiny

pytestmark = pytest.mark.convert


def test_an_onnx_file_whose_external_data_is_gone_is_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = runtime_or_skip("onnxruntime")
    model = onnx.load(tiny("onnxruntime").path)
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="split.data", size_threshold=64)
    runtime.load(tiny("onnxruntime", path=path), SessionOptions()).close()
    (tmp_path / "split.data").unlink()
    with pytest.raises(InvalidFileError, match=r"split\.onnx"):
        runtime.load(tiny("onnxruntime", path=path), SessionOptions())


def test_the_committed_artifacts_are_what_the_script_makes(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("openvino")
    from tests.runtimes.make_artifacts import FOLDER, make_all

    make_all(tmp_path)
    names = sorted(path.name for path in FOLDER.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in ("tiny.onnx", "pair.onnx", "tiny.bin", "pair.bin", "golden.npz"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
