"""Charts of a profile as SVG: curves with a legend, without a library, in the colours of the style sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, axes

__all__ = ["COLOURS", "Curve", "curves"]

#: Colours of the style sheet: `.c0` …
COLOURS = 6


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        name: In the legend; empty for a line that belongs to the one before.
        points: (x, y), in order.
        colour: Of the style sheet, from 0.
        faint: Thin and pale, for what stands behind.
        dots: Whether its points are drawn too.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    faint: bool = False
    dots: bool = False


def curves(
    lines: Sequence[Curve],
    x_name: str,
    y_name: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    top: float | None = None,
    marks: Sequence[float] = (),
) -> str:
    """Return lines on axes in common, with a legend above where there is more than one name.

    Args:
        lines: At least one point in all of them together.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis.
        log_x: Whether that axis is logarithmic; values are then above 0.
        log_y: The same.
        zero: Whether a linear vertical axis begins at 0.
        top: Where the vertical axis ends; None for a little above the highest point.
        marks: The only ticks of the horizontal axis; empty for round numbers.
    """
    points = [point for line in lines for point in line.points]
    xs = Scale.over([x for x, _ in points], LEFT, WIDTH - RIGHT, log=log_x)
    xs = replace(xs, marks=tuple(marks))
    ys = Scale.over([y for _, y in points], HEIGHT - BOTTOM, TOP, zero=zero, log=log_y)
    if top is not None:
        ys = replace(ys, high=top)
    body = "".join(_line(line, xs, ys) for line in sorted(lines, key=lambda line: not line.faint))
    chart = (
        f'<svg class="chart fit" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_name)} over '
        f'{html.escape(x_name)}">{axes(xs, ys, x_name, y_name)}{body}</svg>'
    )
    return f"{_legend(lines)}<div class='scroll'>{chart}</div>"


def _line(line: Curve, xs: Scale, ys: Scale) -> str:
    places = [(xs.at(x), ys.at(y)) for x, y in line.points]
    kind = f"c{line.colour % COLOURS}" + (" faint" if line.faint else "")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = (
        "".join(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places)
        if line.dots or len(places) == 1
        else ""
    )
    return f'<polyline class="curve {kind}" points="{path}"/>{dots}'


def _legend(lines: Sequence[Curve]) -> str:
    named = [line for line in lines if line.name]
    if len(named) < 2:
        return ""
    keys = "".join(
        f"<span><span class='key c{line.colour % COLOURS}{' faint' if line.faint else ''}'></span>"
        f"{html.escape(line.name)}</span> "
        for line in named
    )
    return f"<p class='note legend'>{keys}</p>"
