"""Versions of one model, good and bad, for a real ONNX Runtime; and a place in front of it where some of them crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import ARTIFACTS, golden
from tests.runtimes.make_artifacts import Weights

__all__ = ["BAD", "NAME", "good", "put_in_front", "trigger"]

NAME = "tiny"

#: Is found as `onnxruntime` and is the real one, but for what models with a telling end do when they are opened.
_IN_FRONT = """
import ctypes, importlib, os, sys, time
from pathlib import Path

here = str(Path(__file__).parent.parent)
place = sys.path.index(here)
sys.path.remove(here)
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")
sys.path.insert(place, here)
in_trial = "trial_child" in " ".join(sys.orig_argv)


class InferenceSession(real.InferenceSession):
    def __init__(self, path, *arguments, **words):
        end = Path(path).read_bytes()[-16:]
        if b"segfault" in end or (b"later" in end and not in_trial):
            ctypes.string_at(0)
        if b"abort" in end:
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()
        if b"exit" in end:
            os._exit(0)
        if b"hang" in end:
            time.sleep(600)
        if b"grow" in end:
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)) * 4)
                time.sleep(0.005)
        super().__init__(path, *arguments, **words)


real.InferenceSession = InferenceSession
"""


def put_in_front(folder: Path) -> Path:
    """Write the package; return the folder for PYTHONPATH."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text(_IN_FRONT, encoding="utf-8")
    return folder


def _model() -> bytes:
    return (ARTIFACTS / "tiny.onnx").read_bytes()


def good(out: Path, version: int) -> None:
    """Write a version that works."""
    write_tiny(out, ("onnx-fp32",), version=version)


def trigger(end: str) -> Callable[[Path, int], None]:
    """Return what writes a version that does something when it is opened; the model itself is right."""

    def write(out: Path, version: int) -> None:
        said = end.encode()
        note = bytes([0x32, len(said)]) + said  # ModelProto.doc_string, once more
        write_tiny(out, ("onnx-fp32",), content={"tiny.onnx": _model() + note}, version=version)

    return write


def _not_a_number(out: Path, version: int) -> None:
    bias = Weights().dense_bias
    data = _model()
    assert data.count(bias.tobytes()) == 1
    content = {"tiny.onnx": data.replace(bias.tobytes(), np.full_like(bias, np.nan).tobytes())}
    write_tiny(out, ("onnx-fp32",), content=content, version=version)


def _wrong(out: Path, version: int) -> None:
    _, right = golden()
    write_tiny(out, ("onnx-fp32",), outputs=np.roll(right, 1, axis=1), version=version)


def _wrong_late(out: Path, version: int) -> None:
    """Right on the first samples, which are all that a start looks at were there more than eight."""
    _, right = golden()
    wrong = right.copy()
    wrong[-2:] = np.roll(right[-2:], 1, axis=1)
    write_tiny(out, ("onnx-fp32",), outputs=wrong, version=version)


def _no_model(out: Path, version: int) -> None:
    write_tiny(out, ("onnx-fp32",), content={"tiny.onnx": b"\0not a model"}, version=version)


#: Kind of a bad version to (how to write it, what is said of it).
BAD: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "not a number": (_not_a_number, "failed its golden self-test as onnx-fp32 in onnxruntime on x86-64: an output is not finite"),
    "wrong": (_wrong, "failed its golden self-test as onnx-fp32 in onnxruntime on x86-64: an output is off by"),
    "wrong late": (_wrong_late, "failed its golden self-test as onnx-fp32 in onnxruntime on x86-64: an output is off by"),
    "no model": (_no_model, "is not a model that ONNX Runtime can run"),
    "segmentation fault": (trigger("segfault"), "tiny 2 was tried was killed by SIGSEGV while it was loaded"),
    "abort": (trigger("abort"), "killed by SIGABRT while it was loaded: terminate called after throwing an instance of 'std::bad_alloc'"),
    "exit": (trigger("exit"), "tiny 2 was tried ended with exit code 0 while it was loaded"),
}  # fmt: skip
