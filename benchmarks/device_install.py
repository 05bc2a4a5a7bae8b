"""What a device must fetch and keep: EdgeKit's device extras resolved, fetched and unpacked for aarch64.

    python benchmarks/device_install.py [--glibc 2.36] [--python 3.11]

For each set of extras: the wheels' bytes, and the bytes on disk after unpacking, EdgeKit itself included. Budget with
LiteRT and HTTP: 45 MB to fetch, 140 MB on disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import edgekit  # noqa: E402
from edgekit.wheels import DeviceSystem, download, requirements  # noqa: E402

SETS = (
    ("tflite",),
    ("tflite", "daemon"),
    ("tflite", "daemon", "agent"),
    ("onnx", "daemon", "agent"),
    ("openvino", "daemon", "agent"),
)
BUDGET_MB = {("tflite", "daemon"): (45.0, 140.0)}


def own_bytes() -> int:
    """Return the size of EdgeKit's own files."""
    package = Path(edgekit.__file__).resolve().parent
    return sum(
        path.stat().st_size
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def measure(system: DeviceSystem, extras: tuple[str, ...]) -> tuple[float, float, list[str]]:
    """Return MB to fetch, MB on disk, and the largest wheels."""
    with tempfile.TemporaryDirectory() as scratch:
        wheels = download(system, requirements(extras), Path(scratch))
        fetched = sum(wheel.stat().st_size for wheel in wheels)
        unpacked, sizes = own_bytes(), {}
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                sizes[wheel.name.partition("-")[0]] = sum(info.file_size for info in archive.infolist())
        unpacked += sum(sizes.values())
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return fetched / 1e6, unpacked / 1e6, [f"{name} {sizes[name] / 1e6:.0f}" for name in largest]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--glibc", default="2.36")
    parser.add_argument("--python", default="3.11")
    given = parser.parse_args()
    system = DeviceSystem("aarch64", given.glibc, given.python)
    print(f"{system}\n| extras | MB to fetch | MB on disk | largest (MB) | |\n|---|---:|---:|---|---|")
    for extras in SETS:
        fetched, unpacked, largest = measure(system, extras)
        budget = BUDGET_MB.get(extras)
        note = f"budget {budget[0]:g} and {budget[1]:g}" if budget else ""
        print(
            f"| {', '.join(extras)} | {fetched:.1f} | {unpacked:.1f} | {', '.join(largest)} | {note} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
