"""perf_analyzer 2.51, Triton's own load generator, against the daemon: it checks configuration and statistics too."""

from __future__ import annotations

import csv
import platform
import subprocess
from pathlib import Path

import pytest

from tests.clients.test_triton import CLIENTS_PYTHON, needs_clients
from tests.daemon.serving import PLAIN, Running, affine, echo

PROGRAM = Path(CLIENTS_PYTHON or "absent").with_name("perf_analyzer")
pytestmark = [  # in one lane: it is slow, and tritonclient has seen the others
    needs_clients,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="perf_analyzer is built for x86-64 alone"),
    pytest.mark.skipif(
        bool(CLIENTS_PYTHON) and not PROGRAM.exists(),
        reason="perf_analyzer is not in the environment [clients]",
    ),
]
REQUESTS = "40"
SHARED = ("--shared-memory", "system", "--output-shared-memory-size", "1024")
JSON = ("--input-tensor-format", "json", "--output-tensor-format", "json")
POISSON = (
    "--request-rate-range", "200", "--request-distribution", "poisson", "--measurement-interval", "300",
    "--stability-percentage", "900", "--max-trials", "3",
)  # fmt: skip
COUNTED = ("--request-count", REQUESTS)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("http", COUNTED),
        ("http", (*COUNTED, *JSON)),
        ("http", (*COUNTED, *SHARED)),
        ("http", (*COUNTED, "-b", "4", "--concurrency-range", "4")),
        ("http", (*COUNTED, "-m", "strings", "--string-length", "9")),
        ("http", POISSON),
        ("grpc", COUNTED),
        ("grpc", (*COUNTED, *SHARED)),
        ("grpc", (*COUNTED, "--streaming")),
        ("grpc", (*COUNTED, "-b", "4", "--concurrency-range", "4")),
        ("grpc", POISSON),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(one.strip("-") for one in value[-2:]),
)
def test_perf_analyzer(protocol: str, options: tuple[str, ...], tmp_path: Path) -> None:
    if protocol == "grpc":
        pytest.importorskip("grpc")
    models = [affine("wide"), echo("bytes", (-1, 1), name="strings")]
    settings = {
        "grpc": ("127.0.0.1", 0) if protocol == "grpc" else None,
        "shared_memory": True,
        "linger_s": 0.0,
    }
    with Running(models, PLAIN, tmp_path, **settings) as running:
        where = running.address if protocol == "http" else running.listening.grpc
        assert where is not None
        table = tmp_path / "out.csv"
        command = [
            str(PROGRAM), "-m", "wide", "-i", protocol, "-u", "{}:{}".format(*where), "-f", str(table), *options
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stdout.lower(), done.stdout
        lanes = running.daemon.catalog.every_lane()
    with table.open(encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    assert float(row["Inferences/Second"]) > 0
    # what it reads from the statistics, before and after
    assert float(row["Server Compute Infer"]) >= 0
    done_here = sum(lane.statistics.report()["execution_count"] for lane in lanes)  # type: ignore[misc]
    assert done_here >= int(REQUESTS)
