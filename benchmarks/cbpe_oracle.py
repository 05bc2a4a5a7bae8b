"""Hold the accuracy estimate against the truth on three data sets that come with NannyML's wheel.

    python benchmarks/cbpe_oracle.py [--wheel nannyml-0.13.1-py3-none-any.whl] [--chunk 5000]

Without `--wheel` the wheel (23 MB, Apache-2.0) is fetched into EdgeKit's cache by `pip download`; nothing of it is
installed or run. The reference is built on the reference part alone, every chunk of the analysis part is a window.
The prediction is the more probable class, as the monitor takes it, whatever threshold the files' own used.
Errors are percentage points. "naive" says that the accuracy is still the reference's; "sampling" is the error that
the chance of a chunk alone makes unavoidable. "mc" is there to show the limit: much of its loss is of a kind that
confidence cannot see, so the interval must not be expected to cover it.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.monitor.estimate import estimate_accuracy
from edgekit.monitor.reference import Reference, bin_confidences, build_reference, classify
from edgekit.state import cache_folder

WHEEL = "nannyml-0.13.1-py3-none-any.whl"
FOLDER = "nannyml/datasets/data/"


@dataclass(frozen=True)
class DataSet:
    """Where scores and truth of one data set are: a file stem, and the columns."""

    stem: str
    truth: str
    truth_file: str
    scores: tuple[str, ...] = ("y_pred_proba",)
    classes: tuple[str, ...] = ("0", "1")


CARDS = ("prepaid_card", "highstreet_card", "upmarket_card")
DATA_SETS = (
    DataSet("synthetic_car_loan", "repaid", "_analysis_target"),
    DataSet("synthetic_sample", "work_home_actual", "_analysis_gt"),
    DataSet("mc", "y_true", "_analysis_gt", tuple(f"y_pred_proba_{card}" for card in CARDS), CARDS),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Estimated against true accuracy.")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--chunk", type=int, default=5000, help="samples of a window")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {options.chunk} samples a chunk")
    print(
        f"{'data set':<20}{'chunks':>7}{'sampling':>10}{'naive':>8}{'estimate':>10}{'covered':>9}{'valid':>7}"
    )
    with zipfile.ZipFile(options.wheel or fetched()) as wheel:
        for data_set in DATA_SETS:
            show(wheel, data_set, options.chunk)


def fetched() -> Path:
    """Return the wheel in the cache, downloaded where it is not there yet."""
    folder = cache_folder() / "oracles"
    if not (folder / WHEEL).exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "-q",
            "-d",
            str(folder),
            "nannyml==0.13.1",
        ]
        subprocess.run(command, check=True)
    return folder / WHEEL


def show(wheel: zipfile.ZipFile, data_set: DataSet, chunk: int) -> None:
    """Print one row."""
    known = columns(wheel, data_set.stem + "_reference")
    seen = columns(wheel, data_set.stem + "_analysis")
    truth = labels(columns(wheel, data_set.stem + data_set.truth_file)[data_set.truth], data_set)
    reference = build_reference(
        "classification", {"p": scores(known, data_set)}, labels(known[data_set.truth], data_set)
    )
    rows = [window(reference, *part) for part in chunks(scores(seen, data_set), truth, chunk)]
    true, estimated, low, high, valid = (np.array(column) for column in zip(*rows, strict=True))
    assert reference.accuracy is not None
    print(
        f"{data_set.stem:<20}{len(rows):>7}{100 * np.sqrt(2 / np.pi * true * (1 - true) / chunk).mean():>10.2f}"
        f"{100 * abs(true - reference.accuracy).mean():>8.2f}{100 * abs(true - estimated).mean():>10.2f}"
        f"{((low <= true) & (true <= high)).sum():>6}/{len(rows)}{valid.mean():>7.0%}"
    )


def columns(wheel: zipfile.ZipFile, stem: str) -> dict[str, list[str]]:
    """Return a CSV file by column."""
    with wheel.open(f"{FOLDER}{stem}.csv") as raw:
        header, *rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8"))
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def scores(table: dict[str, list[str]], data_set: DataSet) -> np.ndarray:
    """Return the model's probabilities, float64 [n, 1 or classes]."""
    return np.array([table[name] for name in data_set.scores], np.float64).T


def labels(values: list[str], data_set: DataSet) -> np.ndarray:
    """Return class numbers, int64 [n]; some files write them as 1.0."""
    numbers = {name: number for number, name in enumerate(data_set.classes)}
    return np.array([numbers[value.removesuffix(".0")] for value in values])


def chunks(outputs: np.ndarray, truth: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the whole chunks in their order."""
    return [(outputs[i : i + size], truth[i : i + size]) for i in range(0, len(outputs) - size + 1, size)]


def window(
    reference: Reference, outputs: np.ndarray, truth: np.ndarray
) -> tuple[float, float, float, float, bool]:
    """Return one chunk's true accuracy, its estimate, the interval, and whether the estimate is believed."""
    predicted, confidence = classify(outputs, reference.activation)
    counted = np.bincount(
        bin_confidences(np.array(reference.edges), confidence), minlength=reference.bins + 2
    )
    got = estimate_accuracy(reference, counted)
    assert got is not None
    return float((predicted == truth).mean()), got.estimate, got.low, got.high, got.valid


if __name__ == "__main__":
    main()
