"""What the plots of a profile show, as points: the same for the page and for the PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.charts import Curve

__all__ = ["cdf", "label", "over_time", "sustained", "sweep", "telling"]

Row = Mapping[str, Any]
_CDF_POINTS = 300


def telling(data: Mapping[str, Any]) -> list[Row]:
    """Return the measurements that have numbers."""
    return [row for row in data["measurements"] if not row["error"]]


def label(row: Row) -> str:
    """Return what was measured, in short."""
    batch = f", batch {row['batch']}" if row["batch"] != 1 else ""
    count = row["threads"]
    threads = f"{count} thread{'s' if count != 1 else ''}" if count else "its own threads"
    return f"{row['artifact']} in {row['runtime']}, {threads}{batch}"


def cdf(rows: Sequence[Row]) -> list[Curve]:
    """Return the share of calls that took at most so many milliseconds, for each measurement."""
    found = []
    for rank, row in enumerate(rows):
        times = sorted(row["times_us"])
        step = max(1, len(times) // _CDF_POINTS)
        # the slowest calls one by one: they are what one looks for
        ranks = sorted({*range(0, len(times), step), *range(max(0, len(times) - 50), len(times))})
        found.append(
            Curve(label(row), [(max(times[i], 1e-3) / 1e3, (i + 1) / len(times)) for i in ranks], rank)
        )
    return found


def over_time(row: Row) -> list[Curve]:
    """Return the median and the slowest call of each stretch of the steady phase, ms over s."""
    stretches = row["over_time"]
    return [
        Curve("median", [(each["at_s"], each["p50"]) for each in stretches]),
        Curve("slowest", [(each["at_s"], each["max"]) for each in stretches], 1, faint=True),
    ]


def sustained(row: Row) -> list[Curve]:
    """Return the median of each window of the sustained run, ms over minutes; empty where there was none."""
    found = row["sustained"]
    if not found:
        return []
    return [Curve("median", [(each["at_s"] / 60, each["p50"]) for each in found["windows"]])]


def sweep(rows: Sequence[Row], number: str) -> list[Curve]:
    """Return a number over threads, a line for each runtime, artifact and batch; empty without two thread counts.

    Args:
        rows: The measurements.
        number: `p50`, in milliseconds, or `throughput_per_s`.
    """
    if len({row["threads"] for row in rows}) < 2:
        return []
    batches = len({row["batch"] for row in rows}) > 1
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = row["latency_ms"]["percentiles"].get("p50") if number == "p50" else row[number]
        if value is not None:
            name = f"{row['artifact']} in {row['runtime']}" + (f", batch {row['batch']}" if batches else "")
            groups.setdefault(name, []).append((row["threads"], value))
    return [
        Curve(name, sorted(points), rank, dots=True) for rank, (name, points) in enumerate(groups.items())
    ]
