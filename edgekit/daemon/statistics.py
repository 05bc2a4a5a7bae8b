"""What the protocol's statistics extension tells of a model: counts and times since it was loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

__all__ = ["Statistics"]

#: Batch sizes that are told apart; later ones are counted in the totals alone.
_MOST_SIZES = 64


class _Times:
    """Executions, their batch elements, and the nanoseconds that their parts took."""

    __slots__ = ("count", "infer_ns", "input_ns", "output_ns", "queue_ns", "rows")

    def __init__(self) -> None:
        self.count = self.rows = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0

    def computed(self) -> dict[str, dict[str, int]]:
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
        self._sizes: dict[int, _Times] = {}
        self._others = _Times()
        self._failed = self._failed_ns = 0
        self._last_s = 0.0

    def served(self, rows: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one execution.

        Args:
            rows: Its batch size.
            queue_ns: From the request's arrival to the model, decoding left out.
            input_ns: To decode the request.
            infer_ns: In the model.
            output_ns: To encode the reply.
        """
        self._last_s = self._wall()
        times = self._sizes.get(rows)
        if times is None:
            times = self._of_new_size(rows)
        times.rows += rows
        times.queue_ns += queue_ns
        times.input_ns += input_ns
        times.infer_ns += infer_ns
        times.output_ns += output_ns
        times.count += 1

    def failed(self, ns: int) -> None:
        """Count one request that reached the model and got no answer from it."""
        self._failed += 1
        self._failed_ns += ns

    def report(self) -> dict[str, object]:
        """Return the protocol's `ModelStatistics` but for name and version."""
        sizes = sorted(self._sizes.items())
        total = _sum([*(times for _, times in sizes), self._others])
        nothing = _duration(0, 0)
        spent_ns = total.queue_ns + total.input_ns + total.infer_ns + total.output_ns
        return {
            "last_inference": int(self._last_s * 1000),
            "inference_count": total.rows,
            "execution_count": total.count,
            "inference_stats": {
                "success": _duration(total.count, spent_ns),
                "fail": _duration(self._failed, self._failed_ns),
                "queue": _duration(total.count, total.queue_ns),
                **total.computed(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [{"batch_size": rows, **times.computed()} for rows, times in sizes],
            "memory_usage": [],
        }

    def _of_new_size(self, rows: int) -> _Times:
        if len(self._sizes) >= _MOST_SIZES:
            return self._others
        times = self._sizes[rows] = _Times()
        return times


def _sum(parts: Iterable[_Times]) -> _Times:
    total = _Times()
    for part in parts:
        for name in _Times.__slots__:
            setattr(total, name, getattr(total, name) + getattr(part, name))
    return total


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
