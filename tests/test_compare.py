"""Two profiles side by side: what is surely slower, what is not decided, and what may not be compared."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.compare import Limit, Ratio, compare_profiles, parse_limit, read_profile_file
from edgekit.errors import InvalidFileError, UsageError
from edgekit.timing import summarise
from tests.conversions import run_main

pytestmark = pytest.mark.device

IDENTITY = {
    "device": "x86-64", "board": "b", "isa": "x86-64+avx2", "cores": 2, "governor": "", "kernel": "Linux 6",
    "python": "3.11", "digest": "d",
}  # fmt: skip


def profile(seed: int = 0, scale: float = 1.0, n: int = 2000, **changed: Any) -> dict[str, Any]:
    """Return a profile whose latencies wander, as real ones do, around `scale` milliseconds."""
    random = np.random.default_rng(seed)
    slow = np.repeat(random.normal(0.0, 0.01, n // 50 + 1), 50)[:n]
    times_ns = (1e6 * scale * (1.0 + slow + np.abs(random.normal(0.0, 0.02, n)))).astype(np.int64)
    latency = summarise(times_ns)
    row = {
        "runtime": "litert", "artifact": "tflite-int8", "threads": 1, "batch": 1, "error": None,
        "latency_ms": {"percentiles": latency.percentiles}, "times_us": (times_ns / 1e3).tolist(),
        "load_ms": 2.0, "first_ms": 3.0, "peak_mib": 50.0, "stability": {"verdict": "stable"},
    }  # fmt: skip
    return {"schema": 1, "identity": {**IDENTITY}, "measurements": [{**row, **changed}]}


def ratios(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Ratio]:
    (pair,) = compare_profiles(a, b).pairs
    return {ratio.metric: ratio for ratio in pair.ratios}


def test_a_slower_bundle_is_surely_slower() -> None:
    found = ratios(profile(1), profile(2, 1.2))
    for metric in ("p50", "p90", "p95"):
        low, high = found[metric].low, found[metric].high
        assert low is not None
        assert high is not None
        assert 1.15 < low < 1.2 < high < 1.25
        assert low <= found[metric].value <= high
    assert parse_limit("p50 > 1.1x").exceeded(found["p50"]) is True
    assert parse_limit("p50 > 1.3x").exceeded(found["p50"]) is False


def test_of_equal_bundles_the_interval_holds_one_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        ratio = ratios(profile(2 * seed), profile(2 * seed + 1))["p50"]
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.0 <= ratio.high
    assert held >= 51  # 95 % of 60 is 57; fewer than 51 has a chance below 1 %


def test_what_the_calls_do_not_decide_is_not_decided() -> None:
    ratio = Ratio("p50", "ms", 1.0, 1.1, 1.1, 1.05, 1.15)
    assert Limit("p50", 1.1, "x").exceeded(ratio) is None
    assert Limit("p50", 1.2, "ms").exceeded(ratio) is False
    assert Limit("p50", 1.05, "ms").exceeded(ratio) is True
    assert Limit("peak", 1.5, "x").exceeded(Ratio("peak", "MiB", 10.0, 20.0, 2.0)) is True


def test_percentiles_without_enough_calls_are_left_out() -> None:
    found = ratios(profile(1, n=150), profile(2, n=2000))
    assert "p90" in found
    assert "p99" not in found
    few = ratios(profile(1, n=10), profile(2, n=10))
    assert not {"p50", "p90"} & set(few)
    assert {"load", "first", "peak"} <= set(few)


def test_conditions_that_differ_and_lonely_candidates_are_said() -> None:
    b = profile(2, threads=4)
    b["measurements"].append(profile(3)["measurements"][0])
    b["identity"]["kernel"] = "Linux 7"
    found = compare_profiles(profile(1), b)
    assert found.differences == ("kernel: Linux 6 and Linux 7",)
    assert found.only == ("B: tflite-int8 in litert, 4 threads, batch 1",)
    assert len(found.pairs) == 1


def test_what_only_newer_profiles_hold_is_compared_where_both_do() -> None:
    old, new, newer = profile(1), profile(2, version="litert 2.3"), profile(3, version="litert 2.4")
    new["identity"] |= {"soc": "bcm2711", "power_mode": "", "system": {"l4t": "36.4"}}
    newer["identity"] |= {"soc": "bcm2711", "power_mode": "nvpmodel 1", "system": {}}
    assert compare_profiles(old, new).differences == ()
    assert compare_profiles(new, newer).differences == (
        "power_mode: none and nvpmodel 1",
        "system: l4t 36.4 and none",
        "litert: litert 2.3 and litert 2.4",
    )


def test_without_anything_in_common_there_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match=r"no measurement in common.*batch 1.*batch 8.*Measure the same"):
        compare_profiles(profile(1), profile(2, batch=8))
    with pytest.raises(UsageError, match="no measurement in common"):
        compare_profiles(profile(1), profile(2, error="it died"))


@pytest.mark.parametrize(
    "text",
    [
        "p95",
        "p95 > x",
        "p42 > 1.1x",
        "p95 < 1.1x",
        "peak > 5ms",
        "load > 5MiB",
        "p95 > 1.1.1x",
        "p95 > .x",
        "",
    ],
)
def test_a_limit_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-if is malformed"):
        parse_limit(text)


@given(st.text())
def test_any_text_is_a_limit_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_limit(text)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "identity": {}}'])
def test_a_file_that_is_no_profile(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidFileError, match="is not"):
        read_profile_file(tmp_path / "a.json")


@pytest.mark.parametrize("broken", [{"times_us": None}, {"latency_ms": {}}, {"stability": {}}])
def test_a_profile_that_lacks_something(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidFileError, match="a profile is incomplete"):
        compare_profiles(profile(1), profile(2, **broken))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, made in (("a", profile(1)), ("b", profile(2, 1.2, stability={"verdict": "unstable"}))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    words = ["compare", tmp_path / "a.json", tmp_path / "b.json"]
    said = run_main([*words, "--fail-if", "p50 > 1.5x"], capsys)
    assert said.code == 0, said.err
    assert "p50 > 1.5x (tflite-int8 in litert, 1 threads, batch 1): kept" in said.out
    assert "not taken at rest: B" in said.out
    failed = run_main([*words, "--fail-if", "p95 > 1.1x", "--json"], capsys)
    assert failed.code == 4
    assert "a limit is exceeded: p95 > 1.1x" in failed.line
    assert json.loads(failed.out)["limits"][0]["exceeded"] is True
    assert run_main([*words, "--fail-if", "p99.9 > 2x"], capsys).code == 2
    missing = run_main(["compare", tmp_path / "a.json", tmp_path / "none.json"], capsys)
    assert (missing.code, "cannot read" in missing.line) == (2, True)
