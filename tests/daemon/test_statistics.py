from __future__ import annotations

from typing import Any

import pytest

from edgekit.daemon.statistics import Statistics

pytestmark = pytest.mark.device


def test_sums_and_batch_sizes() -> None:
    statistics = Statistics(wall=lambda: 12.3456)
    statistics.served(1, 1, 20, 300, 4000)
    statistics.served(1, 1, 20, 300, 4000)
    statistics.served(4, 5, 60, 700, 8000)
    statistics.failed(9)
    seen: dict[str, Any] = statistics.report()
    assert (seen["last_inference"], seen["inference_count"], seen["execution_count"]) == (12345, 6, 3)
    assert seen["inference_stats"] == {
        "success": {"count": 3, "ns": 2 * 4321 + 8765},
        "fail": {"count": 1, "ns": 9},
        "queue": {"count": 3, "ns": 7},
        "compute_input": {"count": 3, "ns": 100},
        "compute_infer": {"count": 3, "ns": 1300},
        "compute_output": {"count": 3, "ns": 16000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert [(one["batch_size"], one["compute_input"]) for one in seen["batch_stats"]] == [
        (1, {"count": 2, "ns": 40}),
        (4, {"count": 1, "ns": 60}),
    ]


def test_a_client_that_tries_every_batch_size_fills_no_memory() -> None:
    statistics = Statistics()
    for rows in range(1, 1001):
        statistics.served(rows, 1, 1, 1, 1)
    seen: dict[str, Any] = statistics.report()
    assert len(seen["batch_stats"]) == 64
    assert (seen["execution_count"], seen["inference_count"]) == (1000, 500_500)
