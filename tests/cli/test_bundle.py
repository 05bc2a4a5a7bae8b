from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgekit.bundle import Bundle, open_bundle
from tests.bundle_samples import write
from tests.cli.running import Ran, edgekit

pytestmark = pytest.mark.device

Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return partial(edgekit, capsys, monkeypatch, "bundle")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "b")


def test_pack_and_unpack(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    done = run("pack", bundle.root, "-o", tmp_path / "b.edgekit")
    assert (done.code, done.err) == (0, "")
    assert bundle.digest in done.out
    done = run("unpack", tmp_path / "b.edgekit", "-o", tmp_path / "c", "--json")
    assert done.code == 0
    assert done.data == {
        "path": str(tmp_path / "c"),
        "digest": bundle.digest,
        "artifacts": ["onnx-fp16", "tflite-fp32"],
        "bytes": sum(path.stat().st_size for path in bundle.root.rglob("*") if path.is_file()),
    }
    assert open_bundle(tmp_path / "c").digest == bundle.digest


def test_nothing_is_overwritten_unasked(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    run("pack", bundle.root, "-o", tmp_path / "b.edgekit")
    done = run("pack", bundle.root, "-o", tmp_path / "b.edgekit")
    assert done.code == 2
    assert "exists. Give another path, or --overwrite." in done.err
    assert run("pack", bundle.root, "-o", tmp_path / "b.edgekit", "--overwrite").code == 0


def test_slice_for_a_target(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    done = run("slice", bundle.root, "--target", "raspberry-pi-4", "-o", tmp_path / "s")
    assert done.code == 0, done.err
    assert done.out.startswith("sliced to tflite-fp32: ")
    assert open_bundle(tmp_path / "s").kept == {"tflite-fp32"}
    done = run("slice", bundle.root, "--artifact", "onnx-fp16", "-o", tmp_path / "o.edgekit", "--json")
    assert (done.data["artifacts"], done.data["digest"]) == (["onnx-fp16"], bundle.digest)


@pytest.mark.parametrize("options", [(), ("--target", "jetson", "--artifact", "onnx-fp16")])
def test_slice_wants_one_of_target_and_artifact(
    run: Run, bundle: Bundle, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = run("slice", bundle.root, *options, "-o", tmp_path / "s")
    assert done.code == 2
    assert "either --target or --artifact" in done.err
    assert not (tmp_path / "s").exists()


def test_unknown_target_and_artifact(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    done = run("slice", bundle.root, "--target", "toaster", "-o", tmp_path / "s")
    assert done.code == 2
    assert "raspberry-pi-4" in done.err
    done = run("slice", bundle.root, "--artifact", "nope", "-o", tmp_path / "s")
    assert done.code == 2
    assert "some of onnx-fp16, tflite-fp32" in done.err


def test_a_damaged_archive(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    run("pack", bundle.root, "-o", tmp_path / "b.edgekit")
    (tmp_path / "b.edgekit").write_bytes((tmp_path / "b.edgekit").read_bytes()[:-1])
    done = run("unpack", tmp_path / "b.edgekit", "-o", tmp_path / "c")
    assert done.code == 6
    assert "b.edgekit" in done.err
    assert not (tmp_path / "c").exists()
