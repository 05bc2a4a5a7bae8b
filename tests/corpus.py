"""What tests learn from and convert: made once per checkout, kept in its cache, shared by parallel runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class ReferenceCnn:
    """The reference CNN of the examples, trained on real digits, and the data that came with it.

    Attributes:
        model: `digits.keras`; input `image` float32 [N, 28, 28, 1] in [0, 1], output `output_0` [N, 10].
        calibration: 200 training digits.
        evaluation: The 1,000 held out, with labels under `y`.
        noisy: The same under sensor noise.
        labels: One class name a line.
    """

    model: Path
    calibration: Path
    evaluation: Path
    noisy: Path
    labels: Path


def corpus_folder() -> Path:
    """Return where downloaded and trained things are kept, as `examples/corpus.py` says."""
    given = os.environ.get("EDGEKIT_CORPUS")
    return Path(given) if given else ROOT / ".cache" / "corpus"


@cache
def reference_cnn() -> ReferenceCnn:
    """Return the reference CNN; the first call in a checkout trains it, the others wait for that."""
    if not EXAMPLES.is_dir():
        pytest.skip("the reference CNN is trained by examples/, which is not beside these tests")
    folder = corpus_folder() / f"cnn-{_digest('corpus.py', 'train_cnn.py')}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _train("train_cnn.py", unfinished)
    return ReferenceCnn(
        model=folder / "digits.keras",
        calibration=folder / "calibration.npz",
        evaluation=folder / "eval.npz",
        noisy=folder / "noisy.npz",
        labels=folder / "labels.txt",
    )


@dataclass(frozen=True)
class ReferenceDetector:
    """The detector of the examples, trained on digits placed on canvases, and the data that came with it.

    Attributes:
        model: `detector.keras`; input `image` float32 [N, 96, 96, 1] in [0, 1], outputs `boxes` [N, 432, 4] and
            `scores` [N, 432, 10].
        calibration: 200 canvases of training digits.
        evaluation: 500 canvases of digits held out; labels under `y`, float32 [500, 4, 5].
        preprocess: How pictures go in and boxes come out: `[[preprocess]]` and `[[postprocess]]`.
        labels: One class name a line.
    """

    model: Path
    calibration: Path
    evaluation: Path
    preprocess: Path
    labels: Path


@cache
def reference_detector() -> ReferenceDetector:
    """Return the detector; the first call in a checkout trains it, the others wait for that."""
    if not EXAMPLES.is_dir():
        pytest.skip("the detector is trained by examples/, which is not beside these tests")
    folder = corpus_folder() / f"detector-{_digest('corpus.py', 'train_detector.py')}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _train("train_detector.py", unfinished)
    return ReferenceDetector(
        model=folder / "detector.keras",
        calibration=folder / "calibration.npz",
        evaluation=folder / "eval.npz",
        preprocess=folder / "preprocess.toml",
        labels=folder / "labels.txt",
    )


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Give a folder to fill that becomes `folder` when the block ends well, or None where it is made.

    One process makes it; the others wait on a lock beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(folder)


def _digest(*scripts: str) -> str:
    """Name a result by what makes it, so that another script never meets an old model."""
    return hashlib.sha256(b"".join((EXAMPLES / name).read_bytes() for name in scripts)).hexdigest()[:12]


def _train(script: str, folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
