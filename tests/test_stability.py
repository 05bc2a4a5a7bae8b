from __future__ import annotations

import numpy as np
import pytest

from edgekit.stability import Conditions, is_settled, judge_stability

pytestmark = pytest.mark.device

CALM = Conditions(settled=True, cores=4, others_cores=0.1)


def steady(n: int = 3000) -> np.ndarray:
    return np.random.default_rng(0).normal(1e6, 2e4, n).astype(np.int64)


@pytest.mark.parametrize(
    ("medians", "settled"),
    [
        ([], False),
        ([1.0] * 4, False),
        ([1.0] * 5, True),
        ([9.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.04], True),
        ([1.0, 1.0, 1.0, 1.0, 1.06], False),
        ([1.06, 1.0, 1.0, 1.0, 1.0], False),
        ([1.06, 1.0, 1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.1, 1.2, 1.3, 1.4], False),
    ],
)
def test_the_warm_up_ends_when_five_blocks_agree(medians: list[float], settled: bool) -> None:
    assert is_settled(medians) is settled


def test_a_calm_run_is_stable() -> None:
    found = judge_stability(steady(), CALM)
    assert (found.verdict, found.reasons) == ("stable", ())
    assert found.spread < 0.02
    assert abs(found.drift) < 0.01
    assert found.slow_share == 0.0


def test_a_drift_is_named_with_its_direction() -> None:
    ramp = np.linspace(1e6, 1.2e6, 3000).astype(np.int64)
    found = judge_stability(ramp, CALM)
    assert found.verdict == "unstable"
    assert "the median drifted by +13% from the first third to the last" in found.reasons
    assert found.reasons[-1] == "no cause was seen"
    assert "-11%" in judge_stability(ramp[::-1], CALM).reasons[1]


def test_a_spread_without_a_drift_is_named() -> None:
    waves = np.where(np.arange(3000) // 300 % 2, 1.2e6, 1.0e6).astype(np.int64)
    assert judge_stability(waves, CALM).reasons[0] == "medians of 10 slices lie 18% apart"


def test_slow_calls_are_named_by_their_share() -> None:
    spiky = steady()
    spiky[::10] *= 3
    found = judge_stability(spiky, CALM)
    assert found.slow_share == pytest.approx(0.1)
    assert "10.0% of the calls took more than twice the median" in found.reasons
    spiky = steady()
    spiky[::100] *= 3
    assert judge_stability(spiky, CALM).verdict == "stable"


def test_a_busy_machine_is_called_so_even_where_the_medians_hold() -> None:
    found = judge_stability(steady(), Conditions(settled=True, cores=2, others_cores=1.3))
    assert found.verdict == "unstable"
    assert found.reasons == ("the machine was busy", "because other processes used 1.3 of 2 cores")


def test_causes_are_named_with_the_symptom() -> None:
    ramp = np.linspace(1e6, 2e6, 3000).astype(np.int64)
    reasons = judge_stability(
        ramp, Conditions(settled=False, cores=4, others_cores=0.0, stolen=0.07, governor="ondemand")
    ).reasons
    assert reasons[0] == "the warm-up did not settle"
    assert reasons[-2:] == (
        "because the hypervisor took 7% of the CPU time",
        "perhaps because the CPU frequency governor is ondemand",
    )
    assert judge_stability(steady(), Conditions(True, 4, 0.0, 0.07, "ondemand")).verdict == "stable"
    assert (
        judge_stability(ramp, Conditions(True, 4, 0.0, 0.0, "performance")).reasons[-1] == "no cause was seen"
    )


def test_too_few_calls_are_not_judged() -> None:
    found = judge_stability(np.ones(49, np.int64), CALM)
    assert found.verdict == "unknown"
    assert "49 calls are too few to tell (needs 50)" in found.reasons[0]
    assert judge_stability(np.ones(50, np.int64), CALM).verdict == "stable"


def test_a_throttled_processor_is_called_so_even_where_the_medians_hold() -> None:
    slowed = Conditions(True, 4, 0.0, throttled=("the firmware reports throttling",))
    found = judge_stability(steady(), slowed)
    assert found.verdict == "unstable"
    assert found.reasons == ("the processor was slowed down", "because the firmware reports throttling")


def test_the_processes_that_took_most_are_named() -> None:
    busy = Conditions(True, 2, 1.6, busiest={"python": 0.9, "chromium": 0.4})
    assert judge_stability(steady(), busy).reasons[-1] == (
        "because other processes used 1.6 of 2 cores (python 0.9, chromium 0.4)"
    )
