"""What the protocol's statistics extension tells of a model: counts and times since it was loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Statistics"]

#: Batch sizes that are told apart; later ones are counted in the totals alone.
_MOST_SIZES = 64


class _Times:
    """Executions, and the nanoseconds that their three parts took."""

    __slots__ = ("count", "infer_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.count = self.input_ns = self.infer_ns = self.output_ns = 0

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        self.count += 1

    def report(self) -> dict[str, dict[str, int]]:
        # one count for all three: perf_analyzer aborts when they differ
        count = self.count
        return {
            "compute_input": _duration(count, self.input_ns),
            "compute_infer": _duration(count, self.infer_ns),
            "compute_output": _duration(count, self.output_ns),
        }


class Statistics:
    """The counters of one model; written by whoever holds the model's lock, read by anyone.

    Args:
        wall: Unix time in seconds.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._times = _Times()
        self._sizes: dict[int, _Times] = {}
        self._rows = self._queue_ns = self._total_ns = 0
        self._failed = self._failed_ns = 0
        self._last_s = 0.0

    def served(self, rows: int, *, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one execution.

        Args:
            rows: Its batch size.
            queue_ns: From the request's arrival to the model, decoding left out.
            input_ns: To decode the request.
            infer_ns: In the model.
            output_ns: To encode the reply.
        """
        self._last_s = self._wall()
        self._rows += rows
        self._queue_ns += queue_ns
        self._total_ns += queue_ns + input_ns + infer_ns + output_ns
        self._times.add(input_ns, infer_ns, output_ns)
        size = self._sizes.get(rows)
        if size is None:
            if len(self._sizes) >= _MOST_SIZES:
                return
            size = self._sizes[rows] = _Times()
        size.add(input_ns, infer_ns, output_ns)

    def failed(self, ns: int) -> None:
        """Count one request that reached the model and got no answer from it."""
        self._failed += 1
        self._failed_ns += ns

    def report(self) -> dict[str, object]:
        """Return the protocol's `ModelStatistics` but for name and version."""
        times = self._times.report()
        count = times["compute_infer"]["count"]
        nothing = _duration(0, 0)
        return {
            "last_inference": int(self._last_s * 1000),
            "inference_count": self._rows,
            "execution_count": count,
            "inference_stats": {
                "success": _duration(count, self._total_ns),
                "fail": _duration(self._failed, self._failed_ns),
                "queue": _duration(count, self._queue_ns),
                **times,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows, **size.report()} for rows, size in sorted(self._sizes.items())
            ],
            "memory_usage": [],
        }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
