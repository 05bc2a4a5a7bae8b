from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import edgekit
from tests.small_sources import small_source

pytestmark = pytest.mark.convert


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX file with an operator that nobody has."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Thing", ["x"], ["y"], domain="my.own")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    path = tmp_path_factory.mktemp("lonely") / "lonely.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_a_model_that_can_be_converted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = edgekit(capsys, monkeypatch, "check", small_source("onnx"), "--target", "raspberry-pi")
    assert ran.code == 0
    assert "onnxruntime on raspberry-pi" in ran.out
    assert "supported" in ran.out
    assert "next: Run edgekit convert" in ran.out
    assert "\x1b[" not in ran.out  # colours are for terminals


def test_a_model_that_cannot(
    lonely: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = edgekit(capsys, monkeypatch, "check", lonely, "-t", "x86-64")
    assert ran.code == 3
    assert "custom-op: an operator of somebody's own" in ran.out
    assert "next: Export the model without my.own:Thing" in ran.out


def test_json_has_the_documented_keys(
    lonely: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = edgekit(capsys, monkeypatch, "check", lonely, "-t", "x86-64", "--json")
    assert ran.code == 3
    assert list(ran.data) == [
        "kind", "target", "possible", "source", "runtimes", "versions", "memory", "free_sizes", "notes", "next_step",
    ]  # fmt: skip
    first = ran.data["runtimes"][0]
    assert list(first) == ["runtime", "format", "status", "possible", "artifacts", "ops", "layout", "notes"]
    assert first["ops"] == [
        {"op": "my.own:Thing", "count": 1, "status": "unsupported", "reason": "custom-op", "detail": ""}
    ]
    assert list(first["artifacts"][0]) == ["name", "possible", "route", "reasons", "needs", "size_bytes"]
    page = (Path(__file__).parents[2] / "docs/check.md").read_text("utf-8").split("## Keys")[1]
    words = {
        *ran.data,
        *first,
        *first["artifacts"][0],
        *first["ops"][0],
        *first["layout"],
        *ran.data["memory"],
        *ran.data["versions"],
    }
    assert [
        word
        for word in words
        if f"`{word}`" not in page and f".{word}" not in page and f"`{word}[]`" not in page
    ] == []


def test_only_what_is_asked_for_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "check",
        small_source("onnx"),
        "-t",
        "x86-64",
        "--format",
        "onnx",
        "--precision",
        "fp32",
        "--json",
    )
    ran = edgekit(capsys, monkeypatch, *words)
    assert [[a["name"] for a in r["artifacts"]] for r in ran.data["runtimes"]] == [["onnx-fp32"]]


def test_options_of_the_source_are_heeded_or_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = small_source("torchscript")
    bare = edgekit(capsys, monkeypatch, "check", script, "-t", "x86-64")
    assert bare.code == 2
    assert "--input-shape" in bare.err
    assert (
        edgekit(capsys, monkeypatch, "check", script, "-t", "x86-64", "--input-shape", "input_0=-1,8").code
        == 0
    )
    ignored = edgekit(capsys, monkeypatch, "check", small_source("onnx"), "-t", "x86-64", "--signature", "s")
    assert ignored.code == 2
    assert "--signature" in ignored.err


def test_an_unknown_target_and_a_format_it_does_not_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edgekit(capsys, monkeypatch, "check", small_source("onnx"), "-t", "toaster").code == 2
    words = ("check", small_source("onnx"), "-t", "jetson", "--format", "tflite")
    assert edgekit(capsys, monkeypatch, *words).code == 2
