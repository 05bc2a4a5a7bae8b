"""Who used the processor: told from /proc, with real busy processes and with recorded numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.cpu_use import CpuUse, cpu_use, used_between
from edgekit.profiling import profile_bundle
from tests.bundle_samples import write

pytestmark = pytest.mark.device

BUSY = "import os\nopen('/proc/self/comm', 'w').write('burner')\nprint(flush=True)\nwhile True: pass"


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Keep `count` cores busy with processes called `burner`."""
    children = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def test_a_busy_process_is_seen_by_its_name() -> None:
    with burners(1):
        before, start = cpu_use(), time.monotonic()
        time.sleep(0.6)
        used = used_between(before, cpu_use(), time.monotonic() - start, os.cpu_count() or 1)
    assert used.busiest["burner"] > 0.1
    assert used.others_cores > 0.1


def test_a_machine_that_is_busy_on_every_core_is_called_unstable_with_the_cause(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    with burners(os.cpu_count() or 1):
        report = profile_bundle(bundle, runtimes=["null"], threads=[1], seconds=1.0)
    (measurement,) = report.measurements
    assert measurement.sample is not None
    stability = measurement.sample.stability
    assert stability.verdict == "unstable"
    assert "the machine was busy" in stability.reasons
    (cause,) = (reason for reason in stability.reasons if "other processes used" in reason)
    assert "burner" in cause


def test_numbers() -> None:
    before = CpuUse(100.0, 1.0, 10.0, {1: ("init", 5.0), 2: ("daemon", 7.0), 3: ("gone", 1.0)})
    after = CpuUse(108.0, 1.4, 12.0, {1: ("init", 5.0), 2: ("daemon", 9.0), 4: ("new", 2.0)})
    used = used_between(before, after, 4.0, 2)
    assert used.others_cores == pytest.approx(1.5)  # 8 s busy, 2 of them ours, in 4 s
    assert used.stolen == pytest.approx(0.05)
    assert used.busiest == {"daemon": 0.5, "new": 0.5}
    ours = used_between(before, after, 4.0, 2, ours=(2,))
    assert ours.others_cores == pytest.approx(1.0)
    assert ours.busiest == {"new": 0.5}


def test_a_reused_process_id_counts_from_its_start() -> None:
    before = CpuUse(0.0, 0.0, 0.0, {7: ("old", 50.0)})
    after = CpuUse(2.0, 0.0, 0.0, {7: ("young", 2.0)})
    assert used_between(before, after, 2.0, 2).busiest == {"young": 1.0}


def test_names_with_brackets_and_a_missing_proc(tmp_path: Path) -> None:
    folder = tmp_path / "proc" / "12"
    folder.mkdir(parents=True)
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(["S", "1", *["0"] * 9, str(3 * ticks), str(ticks), *["0"] * 5])
    (folder / "stat").write_text(f"12 (a ) (b) {fields}\n")
    (tmp_path / "proc" / "13").mkdir()  # it has ended
    found = cpu_use(str(tmp_path))
    assert found.processes == {12: ("a ) (b", 4.0)}
    assert (found.busy_s, found.stolen_s) == (0.0, 0.0)
    assert cpu_use(str(tmp_path / "none")).processes == {}
