"""The report: what stands in report.json, and a page that is whole, self-contained and safe."""

from __future__ import annotations

import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.evidence import MOST_CLASSES, confusion, worst_samples
from edgekit.ladder import Attempt
from edgekit.manifest import GateResult, MetricEvidence, ParityEvidence, Plan, Recipe
from edgekit.pictures import Dot, png, png_uri, scatter, sparkline
from edgekit.report import Row, write_report

HOSTILE = "<script>alert(1)</script>\"'&</svg>"
_VOID = ("meta", "br", "img")


def _metric(artifact: float) -> MetricEvidence:
    return MetricEvidence("top1", 1000, 0.962, artifact, 96.2 - 100 * artifact, -0.1, 0.6)


def _parity(error: float) -> ParityEvidence:
    return ParityEvidence(1000, error, error / 3, 0.998)


def sample_rows() -> list[Row]:
    """Return rows as a conversion leaves them: accepted, refused after a ladder, failed, skipped."""
    random = np.random.default_rng(0)
    names = [HOSTILE, "one", "two"]
    scores = random.dirichlet(np.ones(3) * 0.4, 40).astype(np.float32)
    moved = (scores + random.normal(0, 0.15, scores.shape)).astype(np.float32)
    pictures = random.random((40, 28, 28, 1)).astype(np.float32)
    labels = scores.argmax(axis=1)
    plain = Recipe(("keras-tflite",), "int8", "minmax", 200, {"per_channel": True})
    kept = Recipe(("keras-tflite", "tflite-quant"), "int8", "mse", 200, {}, ("conv_1",))
    tried = (
        Attempt(plain, "refused", ("top1 drops 3.1 pp",), 41_000, _metric(0.931), _parity(0.2), 0.03),
        Attempt(kept, "accepted", ("inside the budget",), 60_000, _metric(0.961), _parity(0.05), 0.04),
    )
    layers = {f"model/conv_{i}": 40.0 - i for i in range(24)} | {"conv_1": 55.0}
    answers = {"reference": {"y": scores}, "answers": {"y": moved}}
    return [
        Row("tflite-fp32", "accepted", ("parity holds",), 400_000,
            GateResult("accepted", ("parity holds",), _parity(1e-6), _metric(0.962)), 0.06,
            recipe=Recipe(("keras-tflite",), "fp32"), attempts=(Attempt(Recipe(("keras-tflite",), "fp32"), "accepted",
            ("parity holds",), 400_000, _metric(0.962), _parity(1e-6), 0.06),), peak_mib=730.0),
        Row("tflite-int8", "accepted", ("inside the budget",), 60_000,
            GateResult("accepted", ("inside the budget",), _parity(0.05), _metric(0.961)), 0.04, recipe=kept,
            attempts=tried, best=1, layers=layers, confusion=confusion({"y": scores}, {"y": moved}),
            worst=worst_samples(answers["reference"], answers["answers"], {"image": pictures}, labels,
                                "classification", names=names)),
        Row("onnx-int8", "refused", (f"top1 drops: {HOSTILE}",), 45_000,
            GateResult("refused", ("no",), _parity(0.4), _metric(0.9)), 0.09, recipe=plain),
        Row("onnx-fp16", "failed", ("the converter died",)),
        Row("openvino-int8", "skipped", ("static int8 needs --calibration",)),
    ]  # fmt: skip


def write_sample(folder: Path, rows: list[Row] | None = None) -> None:
    write_report(
        folder,
        rows=sample_rows() if rows is None else rows,
        plan=Plan("raspberry-pi", "tflite-int8", "litert", reasons=(f"smallest {HOSTILE}",)),
        digest="ab" * 32,
        source={"file": f"digits{HOSTILE}.keras", "sha256": "cd" * 32, "keras": "3.15.1"},
        target="raspberry-pi",
        task="classification",
        notes=[f"classes: {HOSTILE}"],
        seconds=12.0,
        isa="x86-64+avx2",
        labels=[HOSTILE, "one", "two"],
    )


class _Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    write_sample(tmp_path / "r")
    return tmp_path / "r"


def _read(folder: Path) -> tuple[str, _Page]:
    text = (folder / "report.html").read_text("utf-8")
    page = _Page()
    page.feed(text)
    page.close()
    return text, page


def test_the_page_is_well_formed_and_fetches_nothing(report: Path) -> None:
    text, page = _read(report)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.seen}
    assert not any(key.startswith("on") for _, attributes in page.seen for key in attributes)
    for _, attributes in page.seen:
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


def test_hostile_names_are_text_everywhere(report: Path) -> None:
    text, page = _read(report)
    assert "<script" not in text
    said = "".join(page.text)
    assert said.count("alert(1)") >= 6  # title, heading, plan, why, notes, worst samples
    # every place of the name is the whole name, as text
    assert said.count(HOSTILE) >= 6


def test_the_page_shows_what_was_found(report: Path) -> None:
    text, page = _read(report)
    said = "".join(page.text)
    assert "tflite-int8 (chosen)" in said
    assert "front" in [attributes.get("class") for tag, attributes in page.seen if tag == "polyline"]
    assert 'class="dot refused"' in text
    rects = [attributes.get("class") for tag, attributes in page.seen if tag == "rect"]
    assert rects.count("bar quantized") == 20  # the worst 20 of 25; the one in float is the best
    assert rects.count("agree") == 3
    assert rects.count("differ") == 6
    assert sum(tag == "figure" for tag, _ in page.seen) == 8
    assert "refused" in said.split("What was tried")[1]
    assert "0.0" not in [
        cell for cell in page.text if cell.strip() == "0.0"
    ]  # what was not measured is left empty


def test_every_number_of_the_page_is_in_the_json(report: Path) -> None:
    data = msgspec.json.decode((report / "report.json").read_bytes())
    row = next(row for row in data["artifacts"] if row["artifact"] == "tflite-int8")
    assert data["front"] == ["tflite-int8", "tflite-fp32"]
    assert row["confusion"]["classes"] == 3
    assert sum(n for _, _, n in row["confusion"]["cells"]) == 40
    assert [len(sample["source"]) for sample in row["worst"]] == [3] * 8
    assert row["layers_sqnr_db"]["conv_1"] == 55.0
    assert [attempt["status"] for attempt in row["attempts"]] == ["refused", "accepted"]


def test_a_report_without_anything_made_is_a_page_too(tmp_path: Path) -> None:
    write_report(
        tmp_path / "r", rows=[Row("onnx-fp32", "failed", ("no",))], plan=None, digest=None, source={"file": "m"},
        target="jetson", task="other", notes=[], seconds=1.0, isa="x86-64",
    )  # fmt: skip
    _, page = _read(tmp_path / "r")
    assert page.open == []
    assert "No bundle was written." in page.text


def test_many_classes_are_told_by_their_confusions(tmp_path: Path) -> None:
    before = {"y": np.eye(30, dtype=np.float32)}
    after = {"y": np.eye(30, dtype=np.float32)}
    after["y"][4] = np.eye(30, dtype=np.float32)[7]
    write_sample(tmp_path / "r", [Row("onnx-int8", "accepted", (), confusion=confusion(before, after))])
    said = "".join(_read(tmp_path / "r")[1].text)
    assert "29 of 30 samples agree" in said
    assert "class 4class 71" in said


def _decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a PNG of 8 bits without interlacing or filters, as its specification has it."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, parts = 8, {}
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        parts[kind] = body
        at += 12 + length
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert depth == 8
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_picture(channels: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 7, channels), np.uint8)
    assert np.array_equal(_decode(png(picture)), picture)
    assert png_uri(picture).startswith("data:image/png;base64,iVBOR")


def test_png_is_read_by_another_reader() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the [image] extra")
    import io

    picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(image.open(io.BytesIO(png(picture)))), picture)


def test_png_refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no picture"):
        png(np.zeros((4, 4, 2), np.uint8))


def test_worst_samples_are_the_changed_ones_then_the_furthest() -> None:
    before = {"y": np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)}
    after = {"y": np.array([[0.5, 0.45], [0.45, 0.55], [0.2, 0.8], [0.7, 0.3]], np.float32)}
    found = worst_samples(
        before, after, {"x": np.zeros((4, 3), np.float32)}, np.array([0, 0, 1, 0]), "classification"
    )
    assert [sample.index for sample in found] == [
        1,
        0,
    ]  # the class changed; then the error; equal ones are left out
    assert found[0].source[0][0] == "class 0"
    assert found[0].artifact[0][0] == "class 1"
    assert found[0].label == "class 0"
    assert found[1].error == pytest.approx(0.4 / 0.8)


def test_worst_samples_of_a_regression_show_the_row() -> None:
    before, after = {"y": np.arange(4.0)[:, None]}, {"y": np.arange(4.0)[:, None] + [[0], [1], [0], [np.nan]]}
    inputs = {"x": np.arange(12, dtype=np.float64).reshape(4, 3)}
    found = worst_samples(before, after, inputs, np.array([0.5, 1, 2, 3]), "regression")
    assert [(s.index, s.source, s.label) for s in found] == [(3, (), None), (1, (), None)]
    assert found[0].error == float("inf")
    assert found[1].picture.tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((2, 28, 28, 1), (28, 28, 1)), ((2, 3, 32, 24), (32, 24, 3)), ((2, 25, 25), (25, 25, 1)),
     ((2, 640, 640, 3), (92, 92, 3)), ((2, 100), (100,))],
)  # fmt: skip
def test_inputs_become_pictures_or_rows(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    outputs = {"y": np.array([[0.0], [1.0]])}
    moved = {"y": np.array([[0.5], [1.0]])}
    (sample,) = worst_samples(outputs, moved, {"x": values}, None, "other")
    assert sample.picture.shape == wanted
    if len(wanted) == 3:
        assert (sample.picture.min(), sample.picture.max()) == (0, 255)  # stretched: it was not in [0, 1]


def test_bytes_stay_as_they_are() -> None:
    values = np.full((1, 8, 8, 3), 100, np.uint8)
    (sample,) = worst_samples(
        {"y": np.array([[0.0]])}, {"y": np.array([[1.0]])}, {"x": values}, None, "other"
    )
    assert (sample.picture == 100).all()


def test_confusion_counts_pairs() -> None:
    before = {"y": np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]}
    after = {"y": np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]}
    assert confusion(before, after) == ((1, 0, 0), (0, 1, 0), (0, 1, 1))


def test_confusion_of_one_score_and_of_whole_numbers() -> None:
    assert confusion({"p": np.array([[0.2], [0.9]])}, {"p": np.array([[0.6], [0.9]])}) == ((0, 1), (0, 1))
    assert confusion({"label": np.array([0, 2])}, {"label": np.array([0, 1])}) == (
        (1, 0, 0),
        (0, 0, 0),
        (0, 1, 0),
    )


def test_confusion_is_not_kept_where_it_says_nothing() -> None:
    wide = {"y": np.zeros((2, MOST_CLASSES + 1), np.float32)}
    assert confusion(wide, wide) is None
    picture = {"y": np.zeros((2, 8, 8, 3), np.float32)}
    assert confusion(picture, picture) is None
    minus = {"y": np.array([-1, 1])}
    assert confusion(minus, minus) is None


def test_charts_stand_equal_and_odd_values() -> None:
    same = scatter([Dot("a", 5.0, 0.9), Dot("b", 5.0, 0.9)], "x", "y")
    assert same.count("<circle") == 2
    assert "nan" not in same
    assert "no finite value" in sparkline(np.array([np.nan]))
