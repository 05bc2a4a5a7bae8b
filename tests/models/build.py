"""What the corpus adds to the fetched models: exported and trained files, and data in the form EdgeKit reads.

Each thing is made once, into a folder of the corpus that is named by what makes it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.corpus import ROOT, corpus_folder, made_once
from tests.models import samples
from tests.models.fetch import fetch

__all__ = [
    "DataFiles",
    "built",
    "digit_data",
    "digit_program",
    "emotion_data",
    "file_type_data",
    "note_data",
    "pipeline_files",
    "save_arrays",
    "sleep_data",
    "sleep_model",
    "speech_data",
    "text_data",
    "voice_script",
]

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DataFiles:
    """Data of a model, each an `.npz` with arrays by input name.

    Attributes:
        calibration: Typical inputs, without labels, batch first; None where the inputs have no common batch axis.
        evaluation: With labels under `y`; None where there are no labels.
        steps: Whole feeds, one along the first axis of each array, for models whose inputs do not batch.
        options: More words for `edgekit convert`.
    """

    calibration: Path | None
    evaluation: Path | None = None
    steps: Path | None = None
    options: tuple[str, ...] = ()


def built(name: str, make: Callable[[Path], None], *modules: str) -> Path:
    """Return a folder that `make` filled, once for what `modules` of this package say now."""
    text = b"".join((HERE / f"{module}.py").read_bytes() for module in modules)
    folder = corpus_folder() / "built" / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            make(unfinished)
    return folder


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz`."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options


# Digits


def digit_program() -> Path:
    """Return D2 as a `torch.export` program; its input is `x`."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.models.export_d2", str(fetch("D2")), str(folder / "d2.pt2")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exporting the digit recogniser failed:\n{done.stderr[-2000:]}")

    return built("d2", make, "export_d2") / "d2.pt2"


def digit_data() -> DataFiles:
    """Return D3 as D2 takes it: 10,000 digits with labels, and 500 of the training digits, 50 of each class."""

    def make(folder: Path) -> None:
        data = fetch("D3") / "package" / "data"
        images, labels = (
            _read_idx(data / "train-images-idx3-ubyte"),
            _read_idx(data / "train-labels-idx1-ubyte"),
        )
        chosen = np.concatenate([np.flatnonzero(labels == digit)[:50] for digit in range(10)])
        np.savez(folder / "calibration.npz", x=_normalised(images[chosen]))
        test = _normalised(_read_idx(data / "t10k-images-idx3-ubyte"))
        np.savez(folder / "eval.npz", x=test, y=_read_idx(data / "t10k-labels-idx1-ubyte").astype(np.int64))

    return _with_labels(built("d3", make, "build"))


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, uint8 of the shape that its header gives."""
    content = path.read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _normalised(images: np.ndarray) -> np.ndarray:
    """Return uint8 [N, 28, 28] as float32 [N, 1, 28, 28], with MNIST's mean and deviation taken out."""
    scaled = (images.astype(np.float64) / 255 - 0.1307) / 0.3081
    return scaled.astype(np.float32)[:, np.newaxis]


# Data for models that came without any


def emotion_data(name: str) -> DataFiles:
    """Return 100 real faces for D4, whose input is called `name`."""

    def make(folder: Path) -> None:
        crops = np.load(fetch("D15") / "skimage" / "data" / "lfw_subset.npy", allow_pickle=False)[:100]
        save_arrays(folder / "calibration.npz", {name: samples.faces(crops, 64)})

    return _unlabelled(built(f"faces-{name}", make, "build", "samples"))


def note_data(name: str) -> DataFiles:
    """Return 40 clips of two seconds for D5, whose input is called `name`."""

    def make(folder: Path) -> None:
        save_arrays(folder / "calibration.npz", {name: samples.notes(40, 43844, 22050, 5)})

    return _unlabelled(
        built(f"notes-{hashlib.sha256(name.encode()).hexdigest()[:6]}", make, "build", "samples")
    )


def file_type_data() -> DataFiles:
    """Return files of eight known types for D7, every other one of them with its label."""

    def make(folder: Path) -> None:
        import json

        config = fetch("D7") / "magika" / "models" / "standard_v3_3" / "config.min.json"
        classes = json.loads(config.read_text(encoding="utf-8"))["target_labels_space"]
        files = samples.files_of_known_type(60)
        tokens = np.stack([samples.file_bytes(path.read_bytes()) for path, _ in files])
        labels = np.array([classes.index(label) for _, label in files], np.int64)
        np.savez(folder / "calibration.npz", bytes=tokens[::2])
        np.savez(folder / "eval.npz", bytes=tokens[1::2], y=labels[1::2])

    return _with_labels(built("file-types", make, "build", "samples"))


def text_data(height: int, width: int) -> DataFiles:
    """Return 48 rendered lines for a model of D11."""

    def make(folder: Path) -> None:
        np.savez(folder / "calibration.npz", x=samples.text_lines(48, height, width, 11))

    return _unlabelled(built(f"text-{height}x{width}", make, "build", "samples"))


def light_net_data(name: str) -> DataFiles:
    """Return 32 noise pictures for one of D14's light nets, whose input is called `name`."""

    def make(folder: Path) -> None:
        noise = np.random.default_rng(14).normal(0, 1, (32, 3, 224, 224)).astype(np.float32)
        save_arrays(folder / "calibration.npz", {name: noise})

    return _unlabelled(built(f"noise-{name.replace('/', '-')}", make, "build"))


def sleep_data() -> DataFiles:
    """Return 64 nights of features for D12, some of them masked at the end."""

    def make(folder: Path) -> None:
        np.savez(folder / "calibration.npz", input_layer=samples.sleep_features(64, 48, 36, 12))

    return _unlabelled(built("sleep", make, "build", "samples"))


def sleep_model() -> Path:
    """Return D12's Keras 3 file, out of its own archive."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(fetch("D12") / "sleepecg" / "classifiers" / "ws-gru-mesa.zip") as archive:
            archive.extract("classifier.keras", folder)

    return built("d12", make, "build") / "classifier.keras"


# Voice, whose state is fed back


def speech_data(model: Path, rate_hz: int = 16000) -> DataFiles:
    """Return 40 feeds for one of D6's ONNX files, each with the state that the step before left."""

    def make(folder: Path) -> None:
        save_arrays(folder / "steps.npz", _steps(model, rate_hz))

    return DataFiles(None, None, built(f"speech-{model.stem}", make, "build", "samples") / "steps.npz")


def _steps(model: Path, rate_hz: int) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    windows = samples.speech_windows(40, 576, rate_hz, 6)[:, np.newaxis]
    if "h" in names:  # takes a sequence of windows at once
        windows = samples.speech_windows(40 * 10, 576, rate_hz, 6).reshape(40, 10, 576)
    states = [name for name in names if name not in ("input", "sr")]
    feed = {name: np.zeros((1, 1, 128) if name in "hc" else (2, 1, 128), np.float32) for name in states}
    if "sr" in names:
        feed["sr"] = np.array(rate_hz, np.int64)
    kept: list[dict[str, np.ndarray]] = []
    for window in windows:
        feed = {**feed, "input": window}
        kept.append(feed)
        feed = {**feed, **dict(zip(states, session.run(None, feed)[1:], strict=True))}
    return {name: np.stack([entry[name] for entry in kept]) for name in names}


def voice_script() -> Path:
    """Return D6's TorchScript file under the name that such files have, `.pt`."""

    def make(folder: Path) -> None:
        shutil.copy(fetch("D6") / "silero_vad" / "data" / "silero_vad.jit", folder / "silero_vad.pt")

    return built("d6-jit", make) / "silero_vad.pt"


def pulse_data() -> DataFiles:
    """Return 40 feeds for D6's TorchScript file, which keeps its state inside."""

    def make(folder: Path) -> None:
        windows = samples.speech_windows(40, 512, 16000, 6)[:, np.newaxis]
        np.savez(folder / "steps.npz", input_0=windows, input_1=np.full(40, 16000, np.int64))

    steps = built("speech-jit", make, "build", "samples") / "steps.npz"
    return DataFiles(None, None, steps, ("--input-shape", "input_0=1,512"))


# Pipelines


def pipeline_files(name: str) -> tuple[Path, DataFiles]:
    """Return a fitted pipeline as `.skops`, and its data; the input is `input`."""

    def make(folder: Path) -> None:
        import skops.io

        from tests.models.pipelines import train

        trained = train(name)
        skops.io.dump(trained.estimator, folder / f"{name}.skops")
        np.savez(folder / "calibration.npz", input=trained.train_x)
        np.savez(folder / "eval.npz", input=trained.test_x, y=trained.test_y)

    folder = built(name, make, "build", "pipelines")
    return folder / f"{name}.skops", _with_labels(folder)


def _with_labels(folder: Path) -> DataFiles:
    return DataFiles(folder / "calibration.npz", folder / "eval.npz")


def _unlabelled(folder: Path) -> DataFiles:
    return DataFiles(folder / "calibration.npz")
