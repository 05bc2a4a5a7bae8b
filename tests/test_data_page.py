"""The examples of docs/data.md are run here, and every field of a step is on that page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import read_data
from edgekit.images import ImageStep
from edgekit.preprocess import Preprocessor, read_preprocess
from edgekit.resize import resize
from edgekit.tables import Column, TableStep
from edgekit.tensors import TensorSpec
from edgekit.text import TextStep
from tests.test_preprocess import IDS, VOCABULARY, drawn

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def _examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def _example(folder: Path, kind: str, number: int = 0) -> tuple[dict[str, Any], ...]:
    found = [text for text in _examples("toml") if f'kind = "{kind}"' in text][number]
    (folder / "p.toml").write_text(found, encoding="utf-8")
    return read_preprocess(folder / "p.toml")


def test_every_example_of_the_page_is_run_here() -> None:
    assert (len(_examples("toml")), len(_examples("csv")), len(_examples("python"))) == (4, 1, 1)
    assert len(re.findall("^```", PAGE, re.MULTILINE)) == 2 * 6


def test_the_pages_arrays_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).random((300, 8, 8, 1)).astype(np.float32)
    exec(_examples("python")[0], {"np": np, "x_train": x, "x_test": x, "y_test": np.arange(300) % 10})
    spec = TensorSpec("image", "float32", (-1, 8, 8, 1))
    assert read_data(tmp_path / "calibration.npz", [spec]).n == 200
    assert read_data(tmp_path / "eval.npz", [spec], need_labels=True).n == 300
    (tmp_path / "wine.csv").write_text(_examples("csv")[0])
    wine = read_data(
        tmp_path / "wine.csv",
        [TensorSpec("f", "float32", (-1, 3))],
        label_column="cultivar",
        need_labels=True,
    )
    assert wine.class_names == ("barolo", "grignolino")


def test_the_pages_pictures(tmp_path: Path) -> None:
    gray = TensorSpec("image", "float32", (-1, 8, 8, 1))
    found = Preprocessor(_example(tmp_path, "image"), [gray]).prepare(np.full((8, 8, 3), 255, np.uint8))
    assert found is not None
    assert (found["image"] == 1.0).all()
    spec = TensorSpec("image", "float32", (-1, 3, 224, 224))
    usual = Preprocessor(_example(tmp_path, "image", 1), [spec]).prepare(drawn(300, 400))
    assert usual is not None
    cut = resize(drawn(300, 400), 256, 341)[16:240, 58:282] / 255
    expected = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(usual["image"][0], expected.transpose(2, 0, 1), atol=1e-5)


def test_the_pages_other_steps(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,height,age,fare,port\n1,170,20,7,S\n2,160,40,,C\n")
    spec = TensorSpec("features", "float32", (-1, 6))
    steps = _example(tmp_path, "table")
    rows = read_data(tmp_path / "train.csv", [spec], preprocess=steps).inputs["features"]
    assert np.allclose(rows[1], [160, 1, -32.2 / 49.7, 1, 0, 0], atol=1e-6)
    (tmp_path / "vocab.txt").write_text(VOCABULARY, encoding="utf-8")
    inputs = [TensorSpec(spec.name, "int64", (-1, 64)) for spec in IDS]
    feed = Preprocessor(_example(tmp_path, "text"), inputs).prepare({"review": "The cat"})
    assert feed is not None
    assert feed["input_ids"][0, :5].tolist() == [2, 5, 6, 3, 0]


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Pictures: `kind", ("kind", *ImageStep.__struct_fields__)),
        ("Tables: `kind", (*TableStep.__struct_fields__[1:], *Column.__struct_fields__[1:])),
        ("Texts: `kind", TextStep.__struct_fields__[:-1]),
    ],
)
def test_every_field_is_on_the_page(heading: str, fields: Sequence[str]) -> None:
    section = PAGE.partition(f"### {heading}")[2].partition("\n##")[0]
    assert [name for name in fields if f"`{name}`" not in section] == []
