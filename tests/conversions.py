"""Conversions that several tests look at: made once per test run."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from edgekit.bundle import Bundle, open_bundle
from edgekit.cli import main
from edgekit.verify import converted_from
from tests.corpus import ROOT, reference_cnn

#: Read before any test moves it elsewhere.
_TEMPORARY = tempfile.gettempdir()


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def data_options(*, calibration: Path | None = None, evaluation: Path | None = None) -> list[str]:
    """Return the options that give the reference CNN's data, or other data."""
    cnn = reference_cnn()
    return [
        "--calibration",
        str(calibration or cnn.calibration),
        "--eval",
        str(evaluation or cnn.evaluation),
    ]


def command(*words: object) -> list[str]:
    """Return the `edgekit` command of this interpreter."""
    return [sys.executable, "-m", "edgekit", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which children, workers too, import this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run_main(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> Said:
    """Run `edgekit` in this process, its error handling included."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgekit", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
    said = capsys.readouterr()
    return Said(stop.value.code if isinstance(stop.value.code, int) else 1, said.out, said.err)


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgekit-tests-", dir=_TEMPORARY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def converted_twice(target: str) -> tuple[Bundle, Bundle]:
    """Return the reference CNN converted for `target` by two processes at once."""
    outs = [_scratch() / f"{target}-{i}" for i in (1, 2)]
    options = ["--target", target, *data_options(), "--labels", reference_cnn().labels]
    running = [
        subprocess.Popen(
            command("convert", reference_cnn().model, "-o", out, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        for out in outs
    ]
    for child in running:
        said, _ = child.communicate()
        assert child.returncode == 0, said
    first, second = (open_bundle(out) for out in outs)
    return first, second


@cache
def reference_onnx() -> Path:
    """Return the reference CNN as ONNX, for tests that need no TensorFlow."""
    path = _scratch() / "digits.onnx"
    shutil.copy(converted_from(converted_twice("jetson")[0], "onnx-fp32").path, path)
    return path
