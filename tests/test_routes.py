from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.converters import CONVERTERS, Converter, SourceModel, get_converter
from edgekit.devices import FORMATS, PRECISIONS
from edgekit.errors import UsageError
from edgekit.manifest import Recipe
from edgekit.routes import converters, find_routes, start_of
from edgekit.streams import Samples

TABLE = converters()


class Hop(Converter):
    """A step of a made-up table; never run."""

    environment = "test"
    needs = ()

    def __init__(self, source: str, format_: str, *precisions: str) -> None:
        self.sources, self.format, self.precisions = (source,), format_, precisions  # type: ignore[misc]

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        raise AssertionError("routes are found without converting")


@pytest.mark.parametrize(
    ("kind", "format_", "precision", "route"),
    [
        ("keras", "tflite", "fp32", ("keras-tflite",)),
        ("savedmodel", "tflite", "int8", ("keras-tflite",)),
        ("keras", "tflite", "int8-dynamic", ("keras-tflite",)),
        ("keras", "onnx", "fp32", ("keras-onnx",)),
        ("savedmodel", "onnx", "fp16", ("keras-onnx", "onnx-fp16")),
        ("keras", "onnx", "int8", ("keras-onnx", "onnx-int8")),
        ("keras", "openvino", "fp32", ("keras-onnx", "onnx-openvino")),
        ("keras", "openvino", "fp16", ("keras-onnx", "onnx-openvino")),
        ("keras", "openvino", "int8", ("keras-onnx", "onnx-openvino", "openvino-int8")),
        ("onnx", "onnx", "fp32", ("onnx-fp32",)),
        ("onnx", "onnx", "int8", ("onnx-fp32", "onnx-int8")),
        ("onnx", "openvino", "int8", ("onnx-fp32", "onnx-openvino", "openvino-int8")),
    ],
)
def test_the_shortest_route_comes_first(
    kind: str, format_: str, precision: str, route: tuple[str, ...]
) -> None:
    assert find_routes(TABLE, kind, format_, precision)[0] == route


@pytest.mark.parametrize(
    ("kind", "format_", "precision"),
    [
        ("onnx", "tflite", "fp32"),
        ("keras", "onnx", "int16x8"),
        ("keras", "openvino", "int16x8"),
        ("nothing", "onnx", "fp32"),
    ],
)
def test_no_route_is_no_route(kind: str, format_: str, precision: str) -> None:
    assert list(find_routes(TABLE, kind, format_, precision)) == []


def test_only_float32_is_converted_further() -> None:
    table = {"a": Hop("keras", "onnx", "int8"), "b": Hop("onnx", "tflite", "int8")}
    assert list(find_routes(table, "keras", "tflite", "int8")) == []
    table["a"] = Hop("keras", "onnx", "fp32", "int8")
    assert list(find_routes(table, "keras", "tflite", "int8")) == [("a", "b")]


def test_every_route_is_found_shortest_first_without_circles() -> None:
    table = {
        "there": Hop("onnx", "tflite", "fp32"),
        "back": Hop("tflite", "onnx", "fp32"),
        "long": Hop("keras", "onnx", "fp32"),
        "short": Hop("keras", "tflite", "fp32"),
    }
    assert list(find_routes(table, "keras", "tflite", "fp32")) == [
        ("short",),
        ("long", "there"),
        ("short", "back", "there"),
    ]


def test_a_route_has_at_most_four_steps() -> None:
    chain = {f"step{i}": Hop(f"f{i}", f"f{i + 1}", "fp32") for i in range(5)}
    assert list(find_routes(chain, "f0", "f4", "fp32")) == [("step0", "step1", "step2", "step3")]
    assert list(find_routes(chain, "f0", "f5", "fp32")) == []


def test_the_users_onnx_is_not_yet_canonical() -> None:
    assert start_of("onnx") == "onnx-source"
    assert start_of("keras") == "keras"
    assert start_of("savedmodel") == "savedmodel"


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_declares_known_things(name: str) -> None:
    converter = get_converter(name)
    assert type(converter) is type(TABLE[name])
    assert converter.format in {formats[0] for formats in FORMATS.values()}
    assert set(converter.precisions) <= set(PRECISIONS)
    assert converter.precisions
    assert converter.sources
    assert converter.needs
    assert converter.environment in ("tensorflow", "onnx", "litert", "torch", "sklearn")
    assert converter.extra in ("convert", "torch")


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(CONVERTERS)


def test_an_unknown_converter_lists_the_known() -> None:
    with pytest.raises(UsageError, match="unknown converter 'onnx2tf': expected one of keras-onnx, "):
        get_converter("onnx2tf")
