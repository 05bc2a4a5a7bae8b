"""Preprocessing as data: the same bytes on every processor, everything that cannot fit refused before any work."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.data import read_data
from edgekit.errors import UnavailableError, UsageError
from edgekit.images import ImageStep, Picture
from edgekit.preprocess import Preprocessor, read_preprocess
from edgekit.resize import METHODS, place, resize
from edgekit.tables import Rows
from edgekit.tensors import TensorSpec
from edgekit.text import WordPiece, wordpiece_of
from tests import bundle_samples

pytestmark = pytest.mark.device

VECTORS = Path(__file__).parent / "vectors"
RGB = TensorSpec("image", "float32", (-1, 4, 6, 3), "NHWC")
GRAY = TensorSpec("image", "float32", (-1, 4, 6, 1), "NHWC")


def drawn(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return the picture of the golden vectors: (7 y + 13 x + 31 c + x y + (x y c) // 3) mod 256."""
    y, x, c = np.meshgrid(*(np.arange(n) for n in (height, width, channels)), indexing="ij")
    values: np.ndarray = (7 * y + 13 * x + 31 * c + x * y + x * y * c // 3) % 256
    return values.astype(np.uint8)


def image(**step: Any) -> dict[str, Any]:
    return {"kind": "image", "input": "image", "scale": 1.0, **step}


def refuses(pattern: str, steps: Sequence[dict[str, Any]], inputs: Sequence[TensorSpec]) -> None:
    with pytest.raises(UsageError, match=pattern) as caught:
        Preprocessor(steps, inputs)
    assert "\n" not in str(caught.value)


# Resizing


@pytest.mark.parametrize("case", json.loads((VECTORS / "resize.json").read_text()), ids=lambda c: c["name"])
def test_resizing_gives_the_golden_bytes(case: dict[str, Any]) -> None:
    found = resize(
        drawn(*case["from"]), case["to"][0], case["to"][1], case["method"], antialias=case["antialias"]
    )
    assert found.shape == (*case["to"], case["from"][2])
    assert hashlib.sha256(found.tobytes()).hexdigest() == case["sha256"]
    if "bytes" in case:
        assert found.tobytes().hex() == case["bytes"]


def by_definition(row: Sequence[int], wanted: int, method: str, antialias: bool) -> list[int]:
    """Return one row resized as the module's docstring says, in fractions, one sample at a time."""
    n, found = len(row), []
    step = Fraction(n, wanted)
    for o in range(wanted):
        centre = (o + Fraction(1, 2)) * step
        if method == "nearest":
            found.append(row[math.floor(centre)])
            continue
        reach = max(step, Fraction(1)) if antialias else Fraction(1)
        shares = [
            max(Fraction(0), 1 - abs(x + Fraction(1, 2) - centre) / reach)
            if method == "bilinear"
            else max(Fraction(0), min(Fraction(x + 1), (o + 1) * step) - max(Fraction(x), o * step))
            for x in range(n)
        ]
        weights = [math.floor(s / sum(shares) * 2**22 + Fraction(1, 2)) for s in shares]
        found.append(min(255, (sum(w * v for w, v in zip(weights, row, strict=True)) + 2**21) >> 22))
    return found


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from(METHODS),
    st.booleans(),
)
def test_resizing_is_what_its_definition_says(
    row: list[int], wanted: int, method: str, antialias: bool
) -> None:
    pixels = np.array(row, np.uint8)[None, :, None]
    expected = row if wanted == len(row) else by_definition(row, wanted, method, antialias)
    assert resize(pixels, 1, wanted, method, antialias=antialias)[0, :, 0].tolist() == expected
    upright = resize(pixels.swapaxes(0, 1), wanted, 1, method, antialias=antialias)
    assert upright[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("size", [(33, 47), (7, 90), (60, 11), (64, 64)])
def test_bilinear_is_pillows_to_one(size: tuple[int, int]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = drawn(40, 56)
    theirs = pillow.fromarray(pixels).resize(size[::-1], pillow.Resampling.BILINEAR)
    assert np.abs(resize(pixels, *size).astype(int) - np.asarray(theirs)).max() <= 1


def test_a_flat_picture_stays_flat_and_sides_are_bounded() -> None:
    for method in METHODS:
        assert (resize(np.full((37, 23, 3), 255, np.uint8), 11, 50, method) == 255).all()
    with pytest.raises(UsageError, match=r"got 3 x 2 to 0 x 2, expected sides of 1 to 65536"):
        resize(drawn(2, 3), 2, 0)


def test_letterbox_and_center_crop() -> None:
    assert place((3, 6), (4, 6), "letterbox").top == 0  # of an odd rest the smaller part comes first
    letterbox = Picture(RGB, ImageStep("image", resize="nearest", fit="letterbox", fill=9, scale=1.0))
    found = letterbox.fit(drawn(4, 12))
    assert (found[0] == 9).all()
    assert (found[3] == 9).all()
    assert np.array_equal(found[1:3], resize(drawn(4, 12), 2, 6, "nearest"))
    crop = Picture(RGB, ImageStep("image", resize="nearest", fit="center-crop", scale=1.0))
    assert np.array_equal(crop.fit(drawn(8, 20)), resize(drawn(8, 20), 4, 10, "nearest")[:, 2:8])
    first = Picture(
        RGB, ImageStep("image", resize="nearest", fit="center-crop", shorter_side=8, scale=1.0)
    ).fit(drawn(16, 20))
    assert np.array_equal(first, resize(drawn(16, 20), 8, 10, "nearest")[2:6, 2:8])


def test_a_picture_smaller_than_the_crop_of_its_centre_is_enlarged_first() -> None:
    crop = Picture(RGB, ImageStep("image", resize="bilinear", fit="center-crop", scale=1.0))
    assert crop.fit(drawn(2, 2)).shape == (4, 6, 3)
    wide = TensorSpec("image", "uint8", (-1, 2048, 2048, 3))
    with pytest.raises(UsageError, match="too long and thin"):  # it would become 2048 x 65536 before the cut
        Picture(wide, ImageStep("image", resize="bilinear", fit="center-crop")).fit(drawn(1, 32))


# Pictures


def test_a_picture_goes_through_all_its_steps_in_order() -> None:
    step = image(color="bgr", crop=[2, 1, 4, 6], scale=1 / 255, mean=[0.5, 0.25, 0.0], std=[0.5, 1.0, 2.0])
    (picture,) = Preprocessor([step], [TensorSpec("image", "float32", (-1, 3, 4, 6), "NCHW")]).pictures
    raw = drawn(9, 9)
    cut = raw[2:6, 1:7, ::-1].astype(np.float64)
    expected = ((cut / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]).astype(np.float32)
    found = picture.samples(picture.fit(raw)[None])
    assert (found.shape, found.dtype.name) == ((1, 3, 4, 6), "float32")
    assert np.allclose(found[0], expected.transpose(2, 0, 1), atol=1e-7)


def test_a_raw_picture_and_its_file_become_the_same(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    raw = drawn(50, 70)
    pillow.fromarray(raw).save(tmp_path / "a.png")
    for spec in (RGB, GRAY):
        preprocessor = Preprocessor([image(resize="area", fit="letterbox")], [spec])
        from_file = preprocessor.prepare(tmp_path / "a.png")
        from_array = preprocessor.prepare(raw)
        assert from_file is not None
        assert from_array is not None
        assert np.array_equal(from_file["image"], from_array["image"])


def test_gray_and_color_become_each_other() -> None:
    (gray,) = Preprocessor([image()], [GRAY]).pictures
    assert gray.fit(np.full((4, 6, 3), [10, 200, 30], np.uint8))[0, 0, 0] == round(
        0.299 * 10 + 0.587 * 200 + 0.114 * 30
    )
    (color,) = Preprocessor([image()], [RGB]).pictures
    assert (color.fit(drawn(4, 6, 1)[..., 0]) == drawn(4, 6, 1)).all()
    with pytest.raises(UsageError, match=r"got float64\[4, 6, 3\], expected uint8"):
        color.fit(np.zeros((4, 6, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_image_u8_is_the_float_path_for_every_byte(dtype: str) -> None:
    spec = TensorSpec("image", dtype, (-1, 3, 16, 16), "NCHW")
    step = image(scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    preprocessor = Preprocessor([step], [spec])
    binding = preprocessor.image_u8()
    assert binding is not None
    assert binding.spec == TensorSpec("image", "uint8", (-1, 16, 16, 3), "NHWC")
    pixels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, -1)[None]
    by_hand = (pixels.astype(np.float64) * (1 / 255) - step["mean"]) / step["std"]
    assert np.array_equal(binding.feed(pixels)["image"], by_hand.astype(dtype).transpose(0, 3, 1, 2))
    with pytest.raises(UsageError, match=r"as image-u8 takes something else: got float32"):
        binding.feed(pixels.astype(np.float32))
    assert Preprocessor([], [spec]).image_u8() is None


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (image(input="picture"), "input 'picture', which the model does not have: expected image float32"),
        (image(color="grayscale"), "has 3 channels: got color 'grayscale'"),
        (image(layout="NCHW"), "wrong layout: got NCHW, expected NHWC"),
        (image(dtype="uint8"), "wrong dtype: got uint8, expected float32"),
        ({"kind": "image", "input": "image"}, "nothing says how pixels are scaled"),
        (image(fit="letterbox"), "fit means nothing without resize"),
        (image(resize="area", antialias=False), "antialias means nothing"),
        (image(resize="area", fill=3), "fill means nothing without fit"),
        (image(resize="area", shorter_side=9), "shorter_side means nothing"),
        (image(resize="area", fit="center-crop", shorter_side=5), "expected at least 6"),
        (image(crop=[-1, 0, 2, 2]), "crop makes no sense"),
        (image(fill=256, resize="area", fit="letterbox"), "fill is 256"),
        (image(fit="cover", resize="area"), "fit 'cover': expected stretch, letterbox, center-crop"),
        (image(scale=math.nan), "scale is nan"),
        ({"kind": "audio"}, "unknown step: got audio, expected image, table, text"),
        ({"kind": "table", "input": "image", "columns": ["a"]}, "1 features of 1 columns, expected"),
        ({"kind": "text", "tokenizer": "v.txt", "max_length": 8}, "no input 'input_ids'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(step: dict[str, Any], fault: str) -> None:
    refuses(fault, [step], [RGB])


# Tables

FEATURES = TensorSpec("features", "float32", (-1, 5))
TRAIN = "age,fare,class,id\n20,1.5,b,1\n,2.5,a,2\n40,NA,c,3\n20,1.5,b,1\n"


def table(folder: Path, columns: str, rest: str = "") -> tuple[dict[str, Any], ...]:
    (folder / "train.csv").write_text(TRAIN)
    (folder / "t.toml").write_text(
        f'[[preprocess]]\nkind = "table"\ninput = "features"\ndrop = ["id"]\n{rest}\ncolumns = [{columns}]\n'
    )
    return read_preprocess(folder / "t.toml")


AGE = '{ name = "age", impute = "median", standardise = true }'
FARE = '{ name = "fare", impute = "mean" }'
CLASS = '{ name = "class", one_hot = true }'


def test_a_table_is_fitted_on_the_training_table_and_stored(tmp_path: Path) -> None:
    (step,) = table(tmp_path, f"{AGE}, {FARE}, {CLASS}", 'fit = "train.csv"\ndrop_duplicates = true')
    age, fare, kind = step["columns"]
    ages = [20.0, 30.0, 40.0]  # the row that came before is left out, the empty cell filled with the median
    assert (age["value"], age["mean"], age["std"]) == (30.0, 30.0, pytest.approx(np.std(ages)))
    assert (fare["value"], list(kind["categories"])) == (2.0, ["a", "b", "c"])
    assert "fit" not in step or not step["fit"]
    (tmp_path / "new.csv").write_text("class,id,fare,age\nc,9,,40\n")
    found = read_data(tmp_path / "new.csv", [FEATURES], preprocess=[step]).inputs["features"]
    assert found.dtype == np.float32
    assert np.allclose(found, [[10 / np.std(ages), 2.0, 0, 0, 1]])


def test_rows_that_came_before_are_dropped_but_for_predictions(tmp_path: Path) -> None:
    (step,) = table(tmp_path, f"{AGE}, {FARE}, {CLASS}", 'fit = "train.csv"\ndrop_duplicates = true')
    assert read_data(tmp_path / "train.csv", [FEATURES], preprocess=[step]).n == 3
    assert read_data(tmp_path / "train.csv", [FEATURES], preprocess=[step], every_row=True).n == 4


@pytest.mark.parametrize(
    ("columns", "rest", "fault"),
    [
        (f"{AGE}, {FARE}, {CLASS}", "", "'age' lacks value, mean, std. Give what the model was trained with"),
        (f'{AGE}, "wage"', 'fit = "train.csv"', "training table .* has no column 'wage'"),
        (AGE, 'fit = "nowhere.csv"', "no training table at"),
        ('{ name = "age", value = 3 }', "", "has a value and no impute"),
        ('{ name = "age", mean = 3 }', "", "has a mean or a std and no standardise"),
        (
            '{ name = "c", one_hot = true, standardise = true, categories = ["a"] }',
            "",
            "categories: they have no",
        ),
        ('{ name = "c", categories = ["a"] }', "", "is not one_hot"),
        ('{ name = "c", standardise = true, mean = 0, std = 0 }', "", "numbers that make no sense"),
        ('{ name = "c", impute = "constant", value = "x" }', "", "value is text"),
        ('{ name = "c", one_hot = true, categories = ["a", "a"] }', "", "category twice"),
        ('{ name = "c", one_hot = true, categories = ["a"], impute = "constant", value = "b" }', "", "no category"),
        ('"age", "age"', "", "names the column 'age' twice"),
        ('"age", "fare"', "", r"got 2 features of 2 columns, expected \[-1, 5\]"),
    ],
)  # fmt: skip
def test_tables_that_make_no_sense(tmp_path: Path, columns: str, rest: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        Preprocessor(table(tmp_path, columns, rest), [FEATURES])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("age,fare,class\n1,2,d\n", "line 2, column 'class' is no known category: got 'd', expected a, b, c"),
        ("age,fare,class\n1,2,\n", "got ''"),
        ("age,fare,class\nx,2,a\n", "line 2, column 'age' is no number: got 'x'"),
        ("age,fare\n1,2\n", "has no column 'class'"),
        ("age,fare,class,sex\n1,2,a,f\n", "has the column 'sex', and no step takes it.*under drop"),
    ],
)
def test_rows_that_do_not_fit_the_steps(tmp_path: Path, text: str, fault: str) -> None:
    steps = table(tmp_path, f"{AGE}, {FARE}, {CLASS}", 'fit = "train.csv"')
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(UsageError, match=fault):
        read_data(tmp_path / "new.csv", [FEATURES], preprocess=steps)


def test_an_unknown_category_may_count_for_none(tmp_path: Path) -> None:
    kind = '{ name = "class", one_hot = true, unknown = "zeros", categories = ["a", "b"] }'
    steps = table(tmp_path, f'"age", "fare", {kind}')
    preprocessor = Preprocessor(steps, [TensorSpec("features", "float32", (-1, 4))])
    feed = preprocessor.prepare({"age": [1, 2], "fare": [3, 4], "class": ["z", "b"]})
    assert feed is not None
    assert feed["features"].tolist() == [[1, 3, 0, 0], [2, 4, 0, 1]]
    one = preprocessor.prepare({"age": 1, "fare": 3, "class": "a"})
    assert one is not None
    assert one["features"].tolist() == [[1, 3, 1, 0]]
    with pytest.raises(UsageError, match="different numbers of rows"):
        preprocessor.prepare({"age": [1, 2], "fare": [3], "class": ["z"]})


@pytest.mark.convert
def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs edgekit-deploy[convert]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs edgekit-deploy[convert]")
    rows = {"a": [1.0, 2.5, 3.0], "b": [1, 2, 3], "kind": ["x", "w", "x"], "target": [0.5, 1.0, 2.0]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet", row_group_size=2)
    spec = TensorSpec("f", "float32", (-1, 3))
    data = read_data(tmp_path / "t.parquet", [TensorSpec("f", "float32", (-1, 2))], label_column="kind",
                     preprocess=[{"kind": "table", "input": "f", "columns": ["a", "b"], "drop": ["target"]}])  # fmt: skip
    assert data.inputs["f"].tolist() == [[1, 1], [2.5, 2], [3, 3]]
    assert data.labels is not None
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ("w", "x"))
    parquet.write_table(pyarrow.table({**rows, "kind": [1, 0, 1]}), tmp_path / "n.parquet")
    targets = read_data(tmp_path / "n.parquet", [spec], label_column="target", need_labels=True)
    assert targets.labels is not None
    assert targets.labels.tolist() == [0.5, 1.0, 2.0]
    assert targets.inputs["f"].tolist() == [[1, 1, 1], [2.5, 2, 0], [3, 3, 1]]
    parquet.write_table(pyarrow.table({"a": [1.0, None], "k": [1, None]}), tmp_path / "m.parquet")
    one = [TensorSpec("f", "float32", (-1, 1))]
    with pytest.raises(UsageError, match="row 1 has no label in column 'k'"):
        read_data(tmp_path / "m.parquet", one, label_column="k")
    (tmp_path / "bad.parquet").write_bytes(b"text")
    with pytest.raises(UsageError, match=r"bad\.parquet cannot be read"):
        read_data(tmp_path / "bad.parquet", one)


# Texts

VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nsat\n##s\n,\n!\nnaive\nca\n##fe\n漢\n"
IDS = tuple(TensorSpec(name, "int64", (-1, 8)) for name in ("input_ids", "attention_mask", "token_type_ids"))


def text_steps(folder: Path, rest: str = "lowercase = true\n") -> tuple[dict[str, Any], ...]:
    (folder / "vocab.txt").write_text(VOCABULARY, encoding="utf-8")
    (folder / "x.toml").write_text(
        f'[[preprocess]]\nkind = "text"\ntokenizer = "vocab.txt"\nmax_length = 8\n{rest}'
    )
    return read_preprocess(folder / "x.toml")


def test_a_text_becomes_tokens_and_the_vocabulary_a_part_of_the_step(tmp_path: Path) -> None:
    steps = text_steps(tmp_path)
    (tmp_path / "vocab.txt").unlink()  # it is in the step now
    feed = Preprocessor(steps, IDS).prepare("The CATS, naïve café!")
    assert feed is not None
    assert feed["input_ids"].tolist() == [[2, 5, 6, 8, 9, 11, 12, 3]]  # cut to eight
    short = Preprocessor(steps, IDS).prepare(["cat dog", "漢!"])
    assert short is not None
    assert short["input_ids"].tolist() == [[2, 6, 1, 3, 0, 0, 0, 0], [2, 14, 10, 3, 0, 0, 0, 0]]
    assert short["attention_mask"].tolist()[0] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert not short["token_type_ids"].any()
    left = Preprocessor([{**steps[0], "padding": "left"}], IDS).prepare("cat")
    assert left is not None
    assert left["input_ids"].tolist() == [[0, 0, 0, 0, 0, 2, 6, 3]]


def test_texts_of_a_table(tmp_path: Path) -> None:
    steps = text_steps(tmp_path, 'lowercase = true\ncolumn = "review"\n')
    (tmp_path / "r.csv").write_text('review,good\n"the cat, sat",1\n!,0\n')
    data = read_data(tmp_path / "r.csv", IDS, preprocess=steps, label_column="good", need_labels=True)
    assert data.inputs["input_ids"].tolist()[0] == [2, 5, 6, 9, 7, 3, 0, 0]
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]
    with pytest.raises(UsageError, match="column 'review' is no text: got 3"):
        Preprocessor(steps, IDS).rows(Rows({"review": [3]}, [0], "rows"))


@pytest.mark.parametrize(
    ("rest", "inputs", "fault"),
    [
        ("lowercase = true\n", [IDS[1]], "no input 'input_ids' for input_ids"),
        ('lowercase = true\nattention_mask = "mask"\n', IDS, "no input 'mask' for attention_mask"),
        ("lowercase = true\n", [TensorSpec("input_ids", "int64", (-1, 9))], r"max_length 8 in preprocess, expected \[-1, 9\]"),
        ("lowercase = true\n", [TensorSpec("input_ids", "float32", (-1, 8))], "cannot take tokens: got float32"),
        ("", IDS, "does not say whether the model is uncased"),
        ('lowercase = true\ncontent = "x"\n', IDS, "content of a text step is read"),
    ],
)  # fmt: skip
def test_texts_that_do_not_fit_the_model(
    tmp_path: Path, rest: str, inputs: Sequence[TensorSpec], fault: str
) -> None:
    with pytest.raises(UsageError, match=fault):
        Preprocessor(text_steps(tmp_path, rest), inputs)


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no vocabulary of a BERT"):
        wordpiece_of("a\nb\n", "vocab.txt", lowercase=True)
    with pytest.raises(UsageError, match=r"is no tokenizer\.json"):
        wordpiece_of("[]", "tokenizer.json")
    with pytest.raises(UsageError, match="lowercase means nothing"):
        wordpiece_of("{}", "tokenizer.json", lowercase=True)
    (tmp_path / "x.toml").write_text(
        '[[preprocess]]\nkind = "text"\ntokenizer = "gone.txt"\nmax_length = 8\n'
    )
    with pytest.raises(UsageError, match=r"cannot read tokenizer .*gone\.txt"):
        read_preprocess(tmp_path / "x.toml")


def _twin(words: WordPiece, **options: Any) -> Any:
    """Return the same tokenizer in the `tokenizers` package."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    twin = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(words.vocabulary), unk_token="[UNK]"))
    twin.normalizer = tokenizers.normalizers.BertNormalizer(**options)
    twin.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    twin.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    twin.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return twin


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_is_that_of_the_tokenizers_package(lowercase: bool) -> None:
    letters = "\n".join(dict.fromkeys("abcdefgéÉßΣσÀ漢字한ก,.!¿—„_€™" + "abc"))
    content = (
        VOCABULARY + letters.replace(",\n", "").replace("!\n", "").replace("漢\n", "") + "\n##a\n##b\n##e"
    )
    words = wordpiece_of(content, "vocab.txt", lowercase=lowercase)
    assert words is not None
    twin = _twin(words, lowercase=lowercase)
    from_json = wordpiece_of(twin.to_str(), "tokenizer.json")
    assert from_json is not None
    assert from_json.vocabulary == words.vocabulary
    random = np.random.default_rng(0)
    pieces = [
        *content.split("\n"),
        " ",
        "\t",
        "\u00a0",
        "\u200b",
        "\u2028",
        "\0",
        "e\u0301",
        "İ",
        "ﬁ",
        "[sep]",
    ]
    pieces += [chr(code) for code in random.integers(1, 0x3000, 400) if not 0xD800 <= code < 0xE000]
    for _ in range(1500):
        text = "".join(random.choice(pieces, random.integers(0, 12)))
        expected = twin.encode(text).ids
        assert words.encode(text, 1000).ids == expected, ascii(text)
        assert from_json.encode(text, 1000).ids == expected, ascii(text)


def test_every_character_alone_is_split_as_the_package_does() -> None:
    words = wordpiece_of(VOCABULARY + "a\n##b\n", "vocab.txt", lowercase=True)
    assert words is not None
    twin = _twin(words, lowercase=True)
    codes = [*range(0x3200), *range(0xA000, 0xD800, 3), *range(0xE000, 0x20000, 3)]
    wrong = [c for c in codes if words.encode(f"a{chr(c)}b", 99).ids != twin.encode(f"a{chr(c)}b").ids]
    assert wrong == []


def test_other_tokenizers_run_in_the_package_or_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "<pad>": 3}, [("a", "b")]))
    (tmp_path / "tokenizer.json").write_text(bpe.to_str())
    (tmp_path / "x.toml").write_text(
        '[[preprocess]]\nkind = "text"\ntokenizer = "tokenizer.json"\nmax_length = 8\n'
    )
    steps = read_preprocess(tmp_path / "x.toml")
    feed = Preprocessor(steps, IDS).prepare("abab")
    assert feed is not None
    assert feed["input_ids"].tolist() == [[2, 2, 3, 3, 3, 3, 3, 3]]
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UnavailableError, match="needs the package tokenizers"):
        Preprocessor(steps, IDS).prepare("abab")


# The loaded model


def test_a_loaded_model_takes_raw_pictures(tmp_path: Path) -> None:
    steps = (image(scale=1 / 255, resize="bilinear"),)
    bundle = bundle_samples.write(tmp_path / "b", preprocess=steps)
    with edgekit.load(bundle, runtime="null", monitor=False) as model:
        whole = drawn(4, 4, 1)
        as_floats = whole[None].astype(np.float64) * (1 / 255)
        expected = np.asarray(model.predict(as_floats.astype(np.float32)))
        for raw in (whole, whole[..., 0], whole[None]):
            assert np.array_equal(np.asarray(model.predict(raw)), expected)
        pillow = pytest.importorskip("PIL.Image")
        pillow.fromarray(whole[..., 0]).save(tmp_path / "a.png")
        assert np.array_equal(np.asarray(model.predict(tmp_path / "a.png")), expected)
        larger = model.predict(np.repeat(np.repeat(whole, 2, 0), 2, 1))
        assert np.asarray(larger).shape == (1, 3)
        with pytest.raises(UsageError, match=r"as image-u8 takes something else: got uint8\[1, 5, 4, 1\]"):
            model.predict(np.zeros((1, 5, 4, 1), np.uint8))


def test_without_preprocessing_a_loaded_model_takes_arrays_alone(tmp_path: Path) -> None:
    with edgekit.load(bundle_samples.write(tmp_path / "b"), runtime="null", monitor=False) as model:
        with pytest.raises(UsageError, match="wrong dtype: got uint8, expected float32"):
            model.predict(drawn(4, 4, 1)[None])
        with pytest.raises(UsageError, match="cannot take this: got str"):
            model.predict("a.png")


def test_postprocess_tables_may_stand_in_the_same_file(tmp_path: Path) -> None:
    post = '[[postprocess]]\nkind = "softmax"\noutput = "scores"\n'
    (tmp_path / "p.toml").write_text(post + '[[preprocess]]\nkind = "image"\ninput = "image"\nscale = 1.0\n')
    assert [step["kind"] for step in read_preprocess(tmp_path / "p.toml")] == ["image"]
    (tmp_path / "p.toml").write_text(post)
    assert read_preprocess(tmp_path / "p.toml") == ()
