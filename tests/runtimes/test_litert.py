from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import InvalidFileError, UnavailableError
from edgekit.runtimes import ModelFiles, SessionOptions
from edgekit.runtimes import litert as room
from edgekit.runtimes.litert import LiteRT, delegated
from tests.runtimes.cases import ARTIFACTS, golden, open_tiny, pair, runtime_or_skip, tiny

pytestmark = pytest.mark.device


def test_int8_with_float_io_agrees_with_the_float_weights() -> None:
    images, expected = golden()
    session = runtime_or_skip("litert").load(tiny("litert", precision="int8"), SessionOptions(threads=1))
    for size in (1, 8):
        got = session.run({"image": images[:size]})["probabilities"]
        np.testing.assert_allclose(got, expected[:size], atol=0.02)
        assert set(np.unique(got * 256) % 1) == {0.0}  # 256 levels: the int8 model ran, not the float one


def test_a_tensor_may_be_named_by_its_own_name_instead_of_the_signatures() -> None:
    images, expected = golden()
    own = {"image": "serving_default_image:0", "probabilities": "PartitionedCall:0"}
    files = ModelFiles(tiny("litert").path, tiny("litert").inputs, tiny("litert").outputs, own, own)
    session = runtime_or_skip("litert").load(files, SessionOptions())
    np.testing.assert_allclose(session.run({"image": images})["probabilities"], expected, atol=1e-5)


def test_outputs_of_a_file_without_order_go_by_name_not_by_index() -> None:
    session = runtime_or_skip("litert").load(pair("litert"), SessionOptions())
    left, right = np.full((1, 3), 2, np.float32), np.full((1, 3), 5, np.float32)
    outputs = session.run({"left": left, "right": right})
    assert outputs["total"].tolist() == [[7, 7, 7]]
    assert outputs["scaled"].tolist() == [[4, 4, 4]]


def test_every_output_may_be_kept_while_the_model_runs_on() -> None:
    images, expected = golden()
    session = open_tiny("litert")
    kept = [session.run({"image": images[i : i + 1]}) for i in range(8)]
    got = np.concatenate([outputs["probabilities"] for outputs in kept])
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_tensors_are_resized_once_per_new_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = golden()
    session = open_tiny("litert")
    sizes: list[tuple[int, ...]] = []
    resize = session._resize  # type: ignore[attr-defined]

    def counted(shapes: dict[int, tuple[int, ...]]) -> None:
        sizes.extend(shapes.values())
        resize(shapes)

    monkeypatch.setattr(session, "_resize", counted)
    for size in (1, 1, 4, 4, 4, 2, 2, 4):
        session.run({"image": images[:size]})
    assert [shape[0] for shape in sizes] == [4, 2, 4]


def test_placement_counts_the_nodes_that_xnnpack_took() -> None:
    assert open_tiny("litert").placement == {"XNNPACK": "5 of 5 nodes"}


def test_xnnpack_can_be_left_out() -> None:
    images, expected = golden()
    session = open_tiny("litert", SessionOptions(extra={"xnnpack": False}))
    assert session.placement == {"CPU": "5 of 5 nodes"}
    np.testing.assert_allclose(session.run({"image": images})["probabilities"], expected, atol=1e-5)


def test_a_damaged_file_with_the_right_identifier_is_named(tmp_path: object) -> None:
    runtime = runtime_or_skip("litert")
    from pathlib import Path

    path = Path(str(tmp_path)) / "cut.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(8))
    with pytest.raises(InvalidFileError, match=r"cut\.tflite"):
        runtime.load(tiny("litert", path=path), SessionOptions())


def test_a_file_of_another_format_says_so() -> None:
    runtime = runtime_or_skip("litert")
    with pytest.raises(InvalidFileError, match="is not a TFLite file"):
        runtime.load(tiny("litert", path=ARTIFACTS / "tiny.onnx"), SessionOptions())


def test_no_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LIBRARIES", {"nowhere": "no_such_library.interpreter"})
    with pytest.raises(UnavailableError, match=r"edgekit-deploy\[tflite\]"):
        LiteRT().version()


def test_a_library_that_does_not_import_says_why_and_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "broken_litert.py").write_text("raise ImportError('built for numpy 1')\n")
    (folder / "good_litert.py").write_text("__version__ = '7'\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(room, "LIBRARIES", {"broken": "broken_litert"})
    with pytest.raises(UnavailableError, match="broken: built for numpy 1"):
        LiteRT().version()
    monkeypatch.setattr(room, "LIBRARIES", {"broken": "broken_litert", "good": "good_litert"})
    assert LiteRT().version() == "good 7"


def test_delegated_counts_only_what_lies_between_a_delegates_ends() -> None:
    chain = [("QUANTIZE", [0], [1]), ("CONV", [1, 9], [2]), ("RESHAPE", [2], [3]), ("DENSE", [3, 8], [4])]
    assert delegated(chain) == {"CPU": "4 of 4 nodes"}
    middle = [*chain, ("DELEGATE", [1, 9], [3])]
    assert delegated(middle) == {"XNNPACK": "2 of 4 nodes", "CPU": "2 of 4 nodes"}
    both = [*chain, ("DELEGATE", [0, 9], [2]), ("DELEGATE", [3, 8], [4])]
    assert delegated(both) == {"XNNPACK": "3 of 4 nodes", "CPU": "1 of 4 nodes"}
    assert delegated([*chain, ("DELEGATE", [0, 8, 9], [4])]) == {"XNNPACK": "4 of 4 nodes"}
    assert delegated([]) == {}
