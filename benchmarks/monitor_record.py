"""What the monitor costs: on the request path, off it, in memory, and to import.

    python benchmarks/monitor_record.py [--classes 10] [--rounds 30]

Budgets: `record` at most 5 us an inference, an open window at most 8 KiB for 10 classes, the import at most 60 ms
over numpy. Each round records as many calls as the ring holds, then folds them as the recorder's thread would.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

from edgekit.monitor.monitor import ModelMonitor
from edgekit.monitor.reference import build_reference

CALLS = 4096
IMPORTS = {
    "numpy": "import numpy",
    "monitor": "import numpy, edgekit.monitor.monitor, edgekit.monitor.recorder, edgekit.monitor.outbox",
}


def main() -> None:
    """Print medians and spread."""
    parser = argparse.ArgumentParser(description="Time the monitor.")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    outputs = scores(options.classes, CALLS, seed=1)
    monitor = watched(options.classes)
    rows = [{"probabilities": outputs[i : i + 1]} for i in range(CALLS)]
    latencies_s = np.random.default_rng(2).lognormal(np.log(1e-3), 0.5, CALLS).tolist()
    rounds = [one_round(monitor, rows, latencies_s) for _ in range(options.rounds)]
    record_us, fold_us = zip(*rounds, strict=True)
    show(f"record, {options.classes} classes (budget 5)", record_us, "us")
    show("fold, off the request path", fold_us, "us an inference")
    seen = monitor.totals()
    print(
        f"open window {monitor.window_nbytes / 1024:.1f} KiB (budget 8), {seen.n} seen, {seen.unsampled} unsampled"
    )
    times = {name: [import_ms(code) for _ in range(9)] for name, code in IMPORTS.items()}
    added = statistics.median(times["monitor"]) - statistics.median(times["numpy"])
    print(f"import of the monitor over numpy: {added:.0f} ms (budget 60)")


def scores(classes: int, n: int, seed: int) -> np.ndarray:
    """Return a softmax of random logits, float32 [n, classes]."""
    logits = np.random.default_rng(seed).normal(0.0, 3.0, (n, classes))
    wide = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32)


def watched(classes: int) -> ModelMonitor:
    """Return a monitor with a lab reference and a detector, as a served model has."""
    probabilities = scores(classes, 1000, seed=0)
    labels = np.array([np.random.default_rng(i).choice(classes, p=row / row.sum()) for i, row in
                       enumerate(probabilities.astype(np.float64))])  # fmt: skip
    reference = build_reference("classification", {"probabilities": probabilities}, labels)
    return ModelMonitor(
        model="m", version=1, digest="0" * 64, artifact="tflite-fp32", runtime="litert", device="x86-64",
        task="classification", reference=reference, capacity=CALLS,
    )  # fmt: skip


def one_round(
    monitor: ModelMonitor, rows: list[dict[str, np.ndarray]], latencies_s: list[float]
) -> tuple[float, float]:
    """Return microseconds an inference of `record` and of the fold that follows."""
    record = monitor.record
    began = time.perf_counter()
    for row, latency_s in zip(rows, latencies_s, strict=True):
        record(row, latency_s)
    recorded = time.perf_counter()
    monitor.fold()
    folded = time.perf_counter()
    return 1e6 * (recorded - began) / len(rows), 1e6 * (folded - recorded) / len(rows)


def show(what: str, values: tuple[float, ...], unit: str) -> None:
    """Print the median, and the best and worst round."""
    print(f"{what}: median {statistics.median(values):.2f} {unit}, {min(values):.2f} to {max(values):.2f}")


def import_ms(code: str) -> float:
    """Return how long a fresh Python takes for an import, in milliseconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
