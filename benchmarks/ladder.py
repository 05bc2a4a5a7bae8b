"""EdgeKit's ladder beside NNCF's own accuracy control, on ten networks that int8 finds hard.

    python benchmarks/ladder.py [--only NET]… [--repeats N]

Four sides in turns, each a cold process from the same ONNX file, 200 calibration samples and 1,000 labelled samples to
OpenVINO int8 files:

- `edgekit convert` for x86-64 with its gate and a budget of 1 percentage point;
- `nncf.quantize_with_accuracy_control`, `max_drop=0.01`, absolute, twice: ranking by whether each answer is right, and
  ranking by the outputs;
- `nncf.quantize` as it comes.

NNCF validates through OpenVINO at the CPU's default precision, one sample at a time, as EdgeKit's gate takes the metric.
Sizes are xml + bin. A drop is that of the share of right answers, from the ONNX file in ONNX Runtime to the int8 files
in OpenVINO at the CPU's default precision. One side dominates another where it is no larger, loses no more, and is
better in one of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.process import python_command
from tests.ladder_nets import NETS, LadderNet, ladder_net

BUDGET_PP = 1.0
LEAST_GOOD, TIME_FACTOR = 8, 2.0
TIME_LIMIT_S = 900
#: NNCF's accuracy control, by what it ranks layers with; and NNCF without it.
CONTROLS = ("nncf, right", "nncf, outputs")
NAIVE = "nncf, plain"
SIDES = ("edgekit", *CONTROLS, NAIVE)


@dataclass(frozen=True)
class Point:
    """What one side made of one network.

    Attributes:
        bytes: Of the int8 files.
        weights: Of the `.bin` among them; 0 where a refusal left none.
        drop_pp: In percentage points.
        seconds: From the start of the process to its end.
        attempts: Models that were validated on all samples.
        note: What the gate said.
    """

    bytes: int
    weights: int
    drop_pp: float
    seconds: float
    attempts: int
    note: str = ""

    def dominates(self, other: Point, *, by: str = "bytes") -> bool:
        """Tell whether this one is no worse in size, as `bytes` or `weights`, and drop, and better in one."""
        mine, theirs = ((getattr(p, by), p.drop_pp) for p in (self, other))
        return all(m <= t for m, t in zip(mine, theirs, strict=True)) and mine != theirs


# EdgeKit's side


def run_edgekit(net: LadderNet, folder: Path) -> Point:
    """Run the command; where it refuses, the point is that of the attempt that it would have kept."""
    command = python_command(
        "-m", "edgekit", "convert", str(net.model), "--target", "x86-64", "--format", "openvino", "--precision", "int8",
        "--task", "classification", "--calibration", str(net.calibration), "--eval", str(net.evaluation),
        "--max-drop", str(BUDGET_PP), "--allow-unproven", "--out", str(folder / "bundle"),
    )  # fmt: skip
    done, seconds = run_timed(command)
    report = folder / "bundle.report" / "report.json"
    row = json.loads(report.read_bytes())["artifacts"][0] if report.is_file() else {}
    if not row.get("metric"):
        sys.exit(f"edgekit convert made nothing of {net.name}: {done.stderr[-1000:]}")
    kept = len(row["recipe"].get("float_layers", ()))
    note = row["status"] + (f", {kept} in float" if kept else "")
    weights = sum(path.stat().st_size for path in (folder / "bundle").rglob("*.bin"))
    return Point(row["bytes"], weights, row["metric"]["drop_pp"], seconds, len(row["attempts"]), note)


def run_timed(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command; return how it ended and how many seconds it took."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S)
    return done, time.perf_counter() - began


# NNCF's sides


def run_nncf(side: str, net: LadderNet, folder: Path) -> Point:
    """Run NNCF alone in a child, and measure what it made in another, which is not timed."""
    here = str(Path(__file__).resolve())
    done, seconds = run_timed(python_command(here, "--child", side, net.name, str(folder)))
    if done.returncode:
        sys.exit(f"{side} failed on {net.name}: {done.stderr[-1000:]}")
    measured, _ = run_timed(python_command(here, "--child", "measure", net.name, str(folder)))
    told = json.loads(done.stdout.splitlines()[-1]) | json.loads(measured.stdout.splitlines()[-1])
    return Point(seconds=seconds, **told)


def quantize(side: str, net: LadderNet, folder: Path) -> dict[str, Any]:
    """Write NNCF's int8 files; return how many models it validated in full, without the float one."""
    import nncf
    import openvino as ov

    calibration = load(net.calibration)["x"]
    samples = nncf.Dataset([{"x": sample[None]} for sample in calibration])
    model = ov.convert_model(str(net.model))
    whole = 0
    if side == NAIVE:
        quantized = nncf.quantize(model, samples, subset_size=len(calibration))
    else:
        evaluation = load(net.evaluation)
        pairs = [(x[None], y) for x, y in zip(evaluation["x"], evaluation["y"], strict=True)]

        def validate(compiled: Any, chosen: Any) -> tuple[float, list[Any]]:
            nonlocal whole
            answers = [(np.array(compiled(x)[0]), y) for x, y in chosen]
            whole += len(answers) == len(pairs)
            right = [float(scores.argmax() == y) for scores, y in answers]
            by_sample = right if side == CONTROLS[0] else [[scores] for scores, _ in answers]
            return float(np.mean(right)), by_sample

        quantized = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=samples,
            validation_dataset=nncf.Dataset(pairs, lambda pair: pair[0]),
            validation_fn=validate,
            max_drop=BUDGET_PP / 100.0,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
        )
    ov.save_model(quantized, str(folder / "model.xml"), compress_to_fp16=False)
    return {"attempts": max(1, whole - 1)}


def measure(net: LadderNet, folder: Path) -> dict[str, Any]:
    """Return size and drop of the int8 files in a folder."""
    import onnxruntime
    import openvino as ov

    evaluation = load(net.evaluation)
    x, y = evaluation["x"], evaluation["y"]
    session = onnxruntime.InferenceSession(str(net.model), providers=["CPUExecutionProvider"])
    source = int((session.run(None, {"x": x})[0].argmax(1) == y).sum())
    path = folder / "model.xml"
    compiled = ov.Core().compile_model(str(path), "CPU")
    artifact = sum(
        int(compiled(sample[None])[0].argmax() == label) for sample, label in zip(x, y, strict=True)
    )
    weights = path.with_suffix(".bin").stat().st_size
    return {
        "bytes": path.stat().st_size + weights,
        "weights": weights,
        "drop_pp": 100.0 * (source - artifact) / len(y),
    }


def load(path: Path) -> dict[str, np.ndarray]:
    """Return a file's arrays."""
    with np.load(path) as arrays:
        return dict(arrays)


# Both, in turns


def compare(net: LadderNet, repeats: int) -> dict[str, Point]:
    """Return each side's point; its time is the median of the repeats, whose order turns round."""
    seen: dict[str, list[Point]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                run = run_edgekit if side == "edgekit" else lambda n, f, s=side: run_nncf(s, n, f)
                seen[side].append(run(net, Path(folder)))
    return {
        side: replace(points[0], seconds=statistics.median(point.seconds for point in points))
        for side, points in seen.items()
    }


def describe(name: str, points: dict[str, Point]) -> list[str]:
    """Return one network's rows of the table."""
    rows = []
    for side, point in points.items():
        beaten_by = [other for other, theirs in points.items() if other != side and theirs.dominates(point)]
        notes = [*([point.note] if point.note else []), *(f"dominated by {other}" for other in beaten_by)]
        rows.append(
            f"| {name if side == 'edgekit' else ''} | {side} | {point.bytes:,} | {point.weights:,} | {point.drop_pp:+.1f} "
            f"| {point.seconds:.1f} | {point.attempts} | {'; '.join(notes)} |"
        )
    return rows


def conclude(found: dict[str, dict[str, Point]]) -> list[str]:
    """Return the counts."""
    free, light = (
        [n for n, p in found.items() if not any(p[c].dominates(p["edgekit"], by=by) for c in CONTROLS)]
        for by in ("bytes", "weights")
    )
    better = [n for n, p in found.items() if all(p["edgekit"].dominates(p[control]) for control in CONTROLS)]
    broken = [n for n, p in found.items() if p[NAIVE].drop_pp > BUDGET_PP]
    lines = [
        (
            f"not dominated by NNCF's accuracy control: {len(free)} of {len(found)} (wanted {LEAST_GOOD} of 10), "
            f"by the weights alone {len(light)}; dominating it: {len(better)}; plain NNCF loses more than {BUDGET_PP:g} pp on {len(broken)}"
        )
    ]
    for control in CONTROLS:
        ratios = {name: p["edgekit"].seconds / p[control].seconds for name, p in found.items()}
        worst = max(ratios, key=lambda name: ratios[name])
        within = sum(ratio <= TIME_FACTOR for ratio in ratios.values())
        lines.append(
            f"time over {control}: median {statistics.median(ratios.values()):.2f} ×, largest {ratios[worst]:.2f} × "
            f"({worst}), within {TIME_FACTOR:g} × on {within} of {len(ratios)}"
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=NETS, metavar="NET")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        side, name, folder = given.child
        net = ladder_net(name)
        told = measure(net, Path(folder)) if side == "measure" else quantize(side, net, Path(folder))
        print(json.dumps(told))
        return
    nets = [ladder_net(name) for name in given.only or NETS]  # trained before anything is timed
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    print(
        f"{cpu.partition(': ')[2] or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"Python {platform.python_version()}, openvino {version('openvino')}, nncf {version('nncf')}")
    print(
        "| network | side | bytes | of them weights | drop, pp | s | attempts | |\n|---|---|---:|---:|---:|---:|---:|---|"
    )
    found = {}
    for net in nets:
        found[net.name] = compare(net, given.repeats)
        print("\n".join(describe(net.name, found[net.name])), flush=True)
    print("\n".join(conclude(found)))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
