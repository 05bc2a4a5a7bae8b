"""The axes of charts drawn as SVG: linear, or logarithmic for what spans decades."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Scale", "axes"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 340, 64, 44, 18, 24


@dataclass(frozen=True)
class Scale:
    """An axis: values from `low` to `high` on pixels from `start` to `end`.

    Attributes:
        low: At `start`.
        high: At `end`.
        start: Pixel.
        end: Pixel.
        log: Whether it is logarithmic.
        marks: The only values with a tick, where not all numbers mean something; empty for round ones.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    marks: tuple[float, ...] = ()

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False
    ) -> Scale:
        """Return an axis with some room around the values; `log` needs them above 0."""
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.15, high * 1.15, start, end, log=True)
        room = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(0.0 if zero and low >= 0 else low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the values with a tick: `marks`, or round ones, at most about ten."""
        if self.marks:
            return list(self.marks)
        if self.log:
            return self._decades()
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / 3))
        step *= next((m for m in (1, 2, 5, 10) if span / (step * m) <= 5), 10)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]

    def _decades(self) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
        every = [m * 10.0**e for e in exponents for m in factors]
        return [value for value in every if self.low <= value <= self.high]


def axes(xs: Scale, ys: Scale, x_name: str, y_name: str) -> str:
    """Return the grid, the ticks and the names of two axes."""
    base = HEIGHT - BOTTOM
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ys.at(v):.1f}" y2="{ys.at(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{ys.at(v) + 4:.1f}" text-anchor="end">{_tick(v)}</text>'
        for v in ys.ticks()
    ]
    lines += [
        f'<text class="tick" x="{xs.at(v):.1f}" y="{base + 16}" text-anchor="middle">{_tick(v)}</text>'
        for v in xs.ticks()
    ]
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    lines.append(
        f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{html.escape(x_name)}</text>'
        f'<text class="label" x="4" y="12">{html.escape(y_name)}</text>'
    )
    return "".join(lines)


def _tick(value: float) -> str:
    """Return a tick's text.

    >>> _tick(30000.0), _tick(0.05), _tick(1e-7)
    ('30,000', '0.05', '1e-07')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
