"""The corpus and its expected results: complete, well formed, verified, and as good as its makers say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomllib

from tests.models import model, models
from tests.models.nodes import node_cases

pytestmark = pytest.mark.convert

EXPECTED = Path(__file__).with_name("corpus_expected.toml")
FORMATS = {
    "tflite": ["fp32", "fp16", "int8-dynamic", "int8", "int16x8"],
    "onnx": ["fp32", "fp16", "int8-dynamic", "int8"],
    "openvino": ["fp32", "fp16", "int8"],
}


def expected() -> dict[str, Any]:
    return tomllib.loads(EXPECTED.read_text(encoding="utf-8"))


def test_every_model_has_every_format_and_precision_once() -> None:
    found = Counter((e["model"], e["format"], e["precision"]) for e in expected()["entries"])
    wanted = Counter(
        (entry.id, format_, precision)
        for entry in models()
        for format_, precisions in FORMATS.items()
        for precision in precisions
        if (entry.kind != "sklearn" or precision == "fp32")
        and (not entry.id.startswith("light-") or (precision == "fp32" and format_ != "tflite"))
    )
    assert found == wanted


def test_what_is_not_right_has_a_cause_and_what_is_right_has_none() -> None:
    for entry in expected()["entries"]:
        assert entry["expected"] in {"right", "refused", "no-route"}
        assert bool(entry["cause"]) == (entry["expected"] != "right"), entry
        assert entry["kind"] == model(entry["model"]).kind


def test_the_node_tests_are_all_there() -> None:
    group = expected()["node-tests"]
    names = {case.name for case in node_cases()}
    assert group["tests"] == len(names)
    for format_ in ("onnx", "openvino"):
        assert set(group[format_]["refused"]) <= names
        assert all(group[format_]["refused"].values())
