"""What every engine must do alike."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, UnavailableError, UsageError
from edgekit.process import python_command
from edgekit.runtimes import RUNTIMES, ModelFiles, Session, SessionOptions, get_runtime
from edgekit.tensors import TensorSpec
from tests.runtimes.cases import (
    ARTIFACTS,
    ENGINES,
    IMAGE,
    PROBABILITIES,
    golden,
    open_tiny,
    pair,
    runtime_or_skip,
    tiny,
)

pytestmark = pytest.mark.device

ALL = (*ENGINES, "null")
EXACT = {"litert": {}, "onnxruntime": {}, "openvino": {"INFERENCE_PRECISION_HINT": "f32"}, "null": {}}
ANOTHER = {"litert": "tiny.onnx", "onnxruntime": "tiny_fp32.tflite", "openvino": "tiny_fp32.tflite"}


def exact(engine: str) -> Session:
    return open_tiny(engine, SessionOptions(threads=1, extra=EXACT[engine]))


def test_the_cases_cover_the_table() -> None:
    assert set(ALL) == set(RUNTIMES)


def test_an_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(UsageError, match="litert, onnxruntime, openvino, null"):
        get_runtime("tensorflow")


@pytest.mark.parametrize("engine", ALL)
def test_the_version_names_the_library(engine: str) -> None:
    name, _, number = runtime_or_skip(engine).version().partition(" ")
    assert name
    assert number[0].isdigit()


@pytest.mark.parametrize("engine", ALL)
def test_one_sample_gives_what_the_weights_say(engine: str) -> None:
    images, expected = golden()
    session = exact(engine)
    got = [session.run({"image": images[i : i + 1]})["probabilities"].copy() for i in range(len(images))]
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
def test_batches_of_changing_size_give_what_single_samples_give(engine: str) -> None:
    images, expected = golden()
    session = exact(engine)
    for size in (3, 1, 8, 8, 2, 1):
        got = session.run({"image": images[:size]})["probabilities"]
        assert got.shape == (size, 4)
        np.testing.assert_allclose(got, expected[:size], atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("kind", ["read-only", "strided", "fortran", "unaligned"])
def test_any_memory_layout_is_read_rightly(engine: str, kind: str) -> None:
    images, expected = golden()
    if kind == "read-only":
        given = np.frombuffer(images.tobytes(), np.float32).reshape(images.shape)
    elif kind == "strided":
        given = np.repeat(images, 2, axis=2)[:, :, ::2]
    elif kind == "fortran":
        given = np.asfortranarray(images)
    else:
        raw = bytearray(1) + bytearray(images.tobytes())
        given = np.frombuffer(raw, np.float32, offset=1).reshape(images.shape)
    got = exact(engine).run({"image": given})["probabilities"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


BAD_FEEDS = {
    "no input": ({}, "'image' is missing"),
    "another name": ({"picture": np.zeros((1, 8, 8, 1), np.float32)}, "'image' is missing"),
    "one too many": (
        {"image": np.zeros((1, 8, 8, 1), np.float32), "mask": np.zeros(1, np.float32)},
        "unknown input 'mask'",
    ),
    "dtype": ({"image": np.zeros((1, 8, 8, 1), np.float64)}, "wrong dtype: got float64, expected float32"),
    "byte order": ({"image": np.zeros((1, 8, 8, 1), ">f4")}, "other byte order: got >f4, expected float32"),
    "rank": ({"image": np.zeros((8, 8, 1), np.float32)}, "wrong shape"),
    "size": ({"image": np.zeros((1, 8, 9, 1), np.float32)}, r"wrong shape: got \[1, 8, 9, 1\]"),
    "a list": ({"image": [[0.0]]}, "is not an array: got list"),
    "nothing": ({"image": None}, "'image' is missing"),
}


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("case", BAD_FEEDS)
def test_a_bad_feed_is_refused_before_and_after_a_good_one(engine: str, case: str) -> None:
    feed, message = BAD_FEEDS[case]
    images, expected = golden()
    session = exact(engine)
    for _ in range(2):
        with pytest.raises(UsageError, match=message):
            session.run(feed)  # type: ignore[arg-type]
        got = session.run({"image": images[:1]})["probabilities"]
        np.testing.assert_allclose(got, expected[:1], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "renamed",
    [{}, {"a": "left", "b": "right"}, {"sum": "total"}, {"left": "right", "right": "left"}],
    ids=str,
)
def test_canonical_names_reach_the_right_tensors(engine: str, renamed: dict[str, str]) -> None:
    files = pair(engine, renamed)
    session = runtime_or_skip(engine).load(files, SessionOptions(threads=1))
    left, right = (np.array([[1, 2, 3]], np.float32) * factor for factor in (1, 10))
    outputs = session.run({files.inputs[0].name: left, files.inputs[1].name: right})
    assert list(outputs) == [spec.name for spec in files.outputs]
    np.testing.assert_allclose(outputs[files.outputs[0].name], left + right)
    np.testing.assert_allclose(outputs[files.outputs[1].name], 2 * left)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_output_may_be_asked_for(engine: str) -> None:
    files = pair(engine)
    chosen = ModelFiles(files.path, files.inputs, files.outputs[1:])
    session = runtime_or_skip(engine).load(chosen, SessionOptions())
    ones = np.ones((2, 3), np.float32)
    outputs = session.run({"left": ones, "right": ones})
    assert list(outputs) == ["scaled"]
    np.testing.assert_allclose(outputs["scaled"], 2 * ones)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([TensorSpec("photo", "float32", (-1, 8, 8, 1))], [PROBABILITIES], "no tensor 'photo'"),
        ([IMAGE], [TensorSpec("scores", "float32", (-1, 4))], "no tensor 'scores'"),
        ([TensorSpec("image", "uint8", (-1, 8, 8, 1))], [PROBABILITIES], "got float32, expected uint8"),
        ([IMAGE], [TensorSpec("probabilities", "int64", (-1, 4))], "got float32, expected int64"),
    ],
)
def test_a_manifest_that_does_not_fit_the_file_is_found_at_load(
    engine: str, inputs: list[TensorSpec], outputs: list[TensorSpec], message: str
) -> None:
    path = tiny(engine).path
    with pytest.raises(InvalidFileError, match=message) as caught:
        runtime_or_skip(engine).load(ModelFiles(path, tuple(inputs), tuple(outputs)), SessionOptions())
    assert path.name in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_input_that_the_manifest_forgot_is_found_at_load(engine: str) -> None:
    files = pair(engine)
    short = ModelFiles(files.path, files.inputs[:1], files.outputs)
    with pytest.raises(InvalidFileError, match="other inputs"):
        runtime_or_skip(engine).load(short, SessionOptions())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", ["empty", "text", "another format", "missing"])
def test_a_file_that_is_no_model_is_named(engine: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / tiny(engine).path.name
    if content == "another format":
        path.write_bytes((ARTIFACTS / ANOTHER[engine]).read_bytes())
    elif content != "missing":
        path.write_bytes(b"" if content == "empty" else b"this is no model\n" * 50)
    runtime = runtime_or_skip(engine)
    with pytest.raises(InvalidFileError, match=path.name):
        runtime.load(tiny(engine, path=path), SessionOptions())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_cut_file_is_named(engine: str, tmp_path: Path) -> None:
    source = tiny(engine).path
    path = tmp_path / source.name
    runtime = runtime_or_skip(engine)
    for share in (0.2, 0.5, 0.9, 0.99):
        data = source.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InvalidFileError, match=path.name):
            runtime.load(tiny(engine, path=path), SessionOptions())


@pytest.mark.parametrize("engine", ENGINES)
def test_an_option_that_no_one_reads_is_refused(engine: str) -> None:
    with pytest.raises(UsageError, match="has no option 'speed'"):
        runtime_or_skip(engine).load(tiny(engine), SessionOptions(extra={"speed": "high"}))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_absent_provider_is_an_error_and_never_replaced_in_silence(engine: str) -> None:
    runtime = runtime_or_skip(engine)
    absent = SessionOptions(providers=("WarpDrive", runtime.providers()[-1]))
    with pytest.raises(UnavailableError, match=r"WarpDrive is not available.*--allow-fallback"):
        runtime.load(tiny(engine), absent)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fallback_that_is_allowed_is_taken_and_told(engine: str) -> None:
    runtime = runtime_or_skip(engine)
    here = runtime.providers()[-1]
    session = runtime.load(tiny(engine), SessionOptions(providers=("WarpDrive", here), allow_fallback=True))
    images, expected = golden()
    np.testing.assert_allclose(session.run({"image": images})["probabilities"], expected, atol=0.02)
    assert "WarpDrive" not in session.placement
    assert session.placement


@pytest.mark.parametrize("engine", ENGINES)
def test_no_provider_at_all_is_an_error_even_with_fallback(engine: str) -> None:
    with pytest.raises(UnavailableError, match="WarpDrive or Hyper"):
        runtime_or_skip(engine).load(
            tiny(engine), SessionOptions(providers=("WarpDrive", "Hyper"), allow_fallback=True)
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_two_sessions_do_not_disturb_each_other(engine: str) -> None:
    images, expected = golden()
    first, second = exact(engine), exact(engine)
    one = first.run({"image": images[:1]})["probabilities"]
    two = second.run({"image": images[1:3]})["probabilities"]
    np.testing.assert_allclose(one, expected[:1], atol=1e-5)
    np.testing.assert_allclose(two, expected[1:3], atol=1e-5)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime", "null"])
def test_fresh_outputs_survive_the_next_run(engine: str) -> None:
    images, expected = golden()
    session = exact(engine)
    assert session.fresh_outputs
    kept = session.run({"image": images[:1]})["probabilities"]
    session.run({"image": images[1:2]})
    np.testing.assert_allclose(kept, expected[:1], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_that_the_graph_cannot_take_leave_a_working_session(engine: str) -> None:
    images, expected = golden()
    free = TensorSpec("image", "float32", (-1, -1, -1, 1))
    files = ModelFiles(tiny(engine).path, (free,), (PROBABILITIES,))
    session = runtime_or_skip(engine).load(files, SessionOptions(extra=EXACT[engine]))
    for _ in range(2):
        with pytest.raises((UsageError, MachineError)):
            session.run({"image": np.zeros((1, 12, 12, 1), np.float32)})
        got = session.run({"image": images[:2]})["probabilities"]
        np.testing.assert_allclose(got, expected[:2], atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
def test_a_closed_session_answers_no_more(engine: str) -> None:
    images, _ = golden()
    session = exact(engine)
    session.run({"image": images[:1]})
    session.close()
    with pytest.raises(EdgeKitError):
        session.run({"image": images[:1]})


@pytest.mark.parametrize("engine", ENGINES)
def test_flipped_bytes_never_kill_the_process_without_a_name(engine: str, tmp_path: Path) -> None:
    """A damaged file loads, or is refused by name; nothing else may come out of a library that survives it."""
    runtime_or_skip(engine)
    source = tiny(engine).path
    rng = random.Random(11)
    for companion in source.parent.glob("tiny.bin"):
        (tmp_path / companion.name).write_bytes(companion.read_bytes())
    script = (
        "import sys; from pathlib import Path\n"
        "from edgekit.errors import InvalidFileError\n"
        "from edgekit.runtimes import SessionOptions, get_runtime\n"
        "from tests.runtimes.cases import tiny\n"
        "for path in map(Path, sys.argv[2:]):\n"
        "    try: get_runtime(sys.argv[1]).load(tiny(sys.argv[1], path=path), SessionOptions())\n"
        "    except InvalidFileError as error: assert path.name in str(error), error\n"
    )
    paths = []
    for i in range(12):
        data = bytearray(source.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        paths.append(tmp_path / f"tiny{i}{source.suffix}")
        paths[-1].write_bytes(data)
        (tmp_path / f"tiny{i}.bin").write_bytes((ARTIFACTS / "tiny.bin").read_bytes())
    done = subprocess.run(
        python_command("-c", script, engine, *map(str, paths)),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    # negative: the library itself crashed, which no caller can catch; the bundle's hashes stand before it
    assert done.returncode <= 0, done.stderr
