"""The plots of a profile as PNG files, by matplotlib: for slides and tickets; the page draws its own."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.profile_curves import cdf, label, over_time, sweep, telling

if TYPE_CHECKING:
    from edgekit.charts import Curve

__all__ = ["PLOTS", "draw"]

#: Every file that `draw` may make.
PLOTS = ("cdf.png", "over-time.png", "ops.png", "sweep.png")

_COLOURS = ("#2257c4", "#b35900", "#0a7d33", "#8a2be2", "#c0152b", "#5c6570")
_MOST_PANELS = 6


def draw(data: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the plots that the profile has data for, by file name.

    Args:
        data: What `profile.json` holds.
    """
    rows = telling(data)
    found = {"cdf.png": _cdf(rows), "over-time.png": _over_time(rows)}
    with_ops = [row for row in rows if row["ops"] and "rows" in row["ops"]]
    if with_ops:
        found["ops.png"] = _ops(with_ops)
    if sweep(rows, "p50"):
        found["sweep.png"] = _sweep(rows)
    return found


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure with panels below each other; no window, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.8 + 3.2 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(panels, squeeze=False)
    return figure, [row[0] for row in grid]


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def _lines(panel: Any, lines: Sequence[Curve], x_name: str, y_name: str) -> None:
    for line in lines:
        panel.plot(
            *zip(*line.points, strict=True),
            label=line.name,
            color=_COLOURS[line.colour % len(_COLOURS)],
            linewidth=0.8 if line.faint else 1.6,
            alpha=0.6 if line.faint else 1.0,
            marker="o" if line.dots or len(line.points) == 1 else None,
            markersize=4,
        )
    panel.set_xlabel(x_name)
    panel.set_ylabel(y_name)
    panel.grid(visible=True, alpha=0.3)
    if len(lines) > 1:
        panel.legend(fontsize=8)


def _plain_ticks(axis: Any) -> None:
    """Write plain numbers at 1, 2 and 5 on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _cdf(rows: Sequence[Mapping[str, Any]]) -> bytes:
    figure, (panel,) = _figure(1)
    _lines(panel, cdf(rows), "latency, ms", "share of calls")
    panel.set_xscale("log")
    _plain_ticks(panel.xaxis)
    return _png(figure)


def _over_time(rows: Sequence[Mapping[str, Any]]) -> bytes:
    shown = rows[:_MOST_PANELS]
    figure, panels = _figure(len(shown))
    for panel, row in zip(panels, shown, strict=True):
        _lines(panel, over_time(row), "time, s", "latency, ms")
        panel.set_yscale("log")
        _plain_ticks(panel.yaxis)
        panel.set_title(label(row), fontsize=9, loc="left")
    return _png(figure)


def _ops(rows: Sequence[Mapping[str, Any]]) -> bytes:
    shown = rows[:_MOST_PANELS]
    figure, panels = _figure(len(shown))
    for panel, row in zip(panels, shown, strict=True):
        ops = row["ops"]["rows"][::-1]
        names = [f"{each['name'][-28:]} ({each['kind']})" for each in ops]
        colours = [_COLOURS[1] if each["fallback"] else _COLOURS[0] for each in ops]
        panel.barh(range(len(ops)), [each["us"] for each in ops], color=colours)
        panel.set_yticks(range(len(ops)), names, fontsize=7)
        panel.set_xlabel("µs of one call")
        panel.set_title(label(row), fontsize=9, loc="left")
    return _png(figure)


def _sweep(rows: Sequence[Mapping[str, Any]]) -> bytes:
    figure, (above, below) = _figure(2)
    _lines(above, sweep(rows, "p50"), "threads", "p50, ms")
    _lines(below, sweep(rows, "throughput_per_s"), "threads", "samples/s")
    for panel in (above, below):
        panel.set_ylim(bottom=0)
        panel.set_xticks(sorted({row["threads"] for row in rows}))
    return _png(figure)
