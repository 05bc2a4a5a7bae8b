"""After a pause and after minutes: single calls, first and last stretch, temperature and energy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.endurance import probe_gaps, sustain
from edgekit.tensors import TensorSpec
from tests.daemon.serving import FunctionSession
from tests.test_sensors import tree

pytestmark = pytest.mark.device

FEED = {"x": np.zeros((1, 1), np.float32)}
SPEC = TensorSpec("x", "float32", (-1, 1))


def session(function: object) -> FunctionSession:
    return FunctionSession([SPEC], [SPEC], function)  # type: ignore[arg-type]


def quiet(_phase: str, _share: float) -> None:
    pass


def test_a_call_after_a_pause_is_told_apart() -> None:
    last = [time.monotonic()]

    def cold_after_a_pause(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        now = time.monotonic()
        time.sleep(0.02 if now - last[0] > 0.04 else 0.001)
        last[0] = time.monotonic()
        return dict(feed)

    told: list[float] = []
    hot, cold = probe_gaps(
        session(cold_after_a_pause), FEED, (0.0, 0.05), lambda _phase, share: told.append(share)
    )
    assert (hot.gap_s, hot.n, hot.over_hot) == (0.0, 30, 1.0)
    assert cold.gap_s == 0.05
    assert cold.min_ms >= 20.0
    assert cold.over_hot is not None
    assert cold.over_hot > 2.0
    assert hot.min_ms <= hot.median_ms <= hot.max_ms
    assert told == sorted(told)
    assert all(0 <= share < 1 for share in told)


def test_without_back_to_back_calls_there_is_nothing_to_compare_with() -> None:
    (only,) = probe_gaps(session(dict), FEED, (0.001,), quiet)
    assert only.over_hot is None
    assert probe_gaps(session(dict), FEED, (), quiet) == ()


def test_a_model_that_slows_down_and_heats_up(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    root = tree(tmp_path, {f"{zone}/type": "cpu", f"{zone}/temp": "40000"})
    began = [0.0]

    def tiring(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        began[0] = began[0] or time.monotonic()
        late = time.monotonic() - began[0] > 0.6
        if late:
            (root / zone / "temp").write_text("85000\n")
        time.sleep(0.012 if late else 0.004)
        return dict(feed)

    found = sustain(session(tiring), FEED, 1.2, quiet, root=str(root))
    assert found.seconds >= 1.2
    assert found.edge_s == pytest.approx(0.4)
    assert found.first_p50_ms >= 4.0
    assert found.last_p50_ms >= 12.0
    assert found.change == pytest.approx(found.last_p50_ms / found.first_p50_ms - 1)
    assert sum(each.n for each in found.windows) == found.runs
    assert found.temperatures_c[-1] == 85.0
    assert (found.heat.start_c, found.heat.max_c) == (40.0, 85.0)
    assert found.energy_j is None
    assert found.energy_per_run_mj is None


def test_energy_is_counted_above_what_rest_takes(tmp_path: Path) -> None:
    package = "sys/class/powercap/intel-rapl:0"
    root = tree(tmp_path, {
        f"{package}/name": "package-0",
        f"{package}/energy_uj": "0",
        f"{package}/max_energy_range_uj": "262143328850",
    })  # fmt: skip
    calls = [0]

    def hungry(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls[0] += 1
        (root / package / "energy_uj").write_text(f"{3000 * calls[0]}\n")  # 3 mJ a call
        time.sleep(0.005)
        return dict(feed)

    found = sustain(session(hungry), FEED, 0.5, quiet, root=str(root))
    assert found.energy_of == "RAPL packages"
    assert found.rest_w == 0.0
    assert found.energy_j == pytest.approx(3e-3 * found.runs)
    assert found.energy_per_run_mj == pytest.approx(3.0)


def test_a_rail_tells_the_energy_of_the_whole_module(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0"
    root = tree(tmp_path, {
        f"{chip}/name": "ina3221", f"{chip}/in1_label": "VDD_IN", f"{chip}/in1_input": "5000", f"{chip}/curr1_input": "1000",
    })  # fmt: skip

    def draws_more(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        (root / chip / "curr1_input").write_text("3000\n")
        time.sleep(0.002)
        return dict(feed)

    found = sustain(session(draws_more), FEED, 0.3, quiet, root=str(root))
    assert found.energy_of == "the module's rail"
    assert found.rest_w == pytest.approx(5.0)
    assert found.energy_j is not None
    assert 5.0 * found.seconds < found.energy_j < 15.0 * found.seconds
    assert found.heat.module_mw is not None
    assert 5000 < found.heat.module_mw < 15_000


def test_a_call_that_outlasts_the_end_is_the_last_stretch() -> None:
    """On a machine that stalls no window may begin in the last stretch."""
    calls = iter([0.02, 0.02])

    def stalls(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(next(calls, 0.2))
        return dict(feed)

    found = sustain(session(stalls), FEED, 0.1, quiet)
    assert found.last_p50_ms == found.windows[-1].p50
    assert found.last_p50_ms > 100 > found.first_p50_ms
