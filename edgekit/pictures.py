"""Pictures in a report, without a library: small PNG files, charts as SVG, everything inline."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, axes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Dot", "bars", "confusion_cells", "png_uri", "scatter", "sparkline"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(picture: np.ndarray) -> bytes:
    """Return a picture as a PNG file.

    Args:
        picture: uint8 [height, width, 1 or 3], gray or RGB.
    """
    height, width, channels = picture.shape
    if picture.dtype.name != "uint8" or channels not in (1, 3) or not height or not width:
        raise ValueError(f"no picture: {picture.dtype} {picture.shape}")
    rows = b"".join(b"\0" + picture[y].tobytes() for y in range(height))  # filter 0: bytes as they are
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_uri(picture: np.ndarray) -> str:
    """Return a `data:` URI of a picture, uint8 [height, width, 1 or 3]."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


@dataclass(frozen=True)
class Dot:
    """A point of a chart.

    Attributes:
        name: What stands beside it.
        x: Where, in the axis' unit.
        y: Where, in the axis' unit.
        size: Its area grows with it; 0 where unknown.
        kind: A class of the style sheet: `accepted`, `unproven`, `refused`.
        marked: It is the chosen one.
        front: It lies on the front.
    """

    name: str
    x: float
    y: float
    size: float = 0.0
    kind: str = "accepted"
    marked: bool = False
    front: bool = False


def scatter(dots: Sequence[Dot], x_name: str, y_name: str) -> str:
    """Return a chart of points as SVG: refused ones hollow, the chosen one ringed, names beside them.

    Args:
        dots: At least one.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis.
    """
    xs, ys = (
        Scale.over([d.x for d in dots], LEFT, WIDTH - RIGHT, zero=True),
        Scale.over([d.y for d in dots], HEIGHT - BOTTOM, TOP),
    )
    largest = max((d.size for d in dots), default=0.0)
    parts = [axes(xs, ys, x_name, y_name)]
    front = sorted((d for d in dots if d.front), key=lambda d: d.x)
    if len(front) > 1:
        points = " ".join(f"{xs.at(d.x):.1f},{ys.at(d.y):.1f}" for d in front)
        parts.append(f'<polyline class="front" points="{points}"/>')
    taken: list[tuple[float, float]] = []
    order = sorted(dots, key=lambda d: (not d.marked, d.name))
    parts += [_dot(dot, xs.at(dot.x), ys.at(dot.y), largest, taken) for dot in order]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_name)} over '
        f'{html.escape(x_name)}">{"".join(parts)}</svg>'
    )


def _dot(dot: Dot, x: float, y: float, largest: float, taken: list[tuple[float, float]]) -> str:
    radius = 5.0 + 7.0 * math.sqrt(dot.size / largest) if largest and dot.size else 5.0
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4:.1f}"/>' if dot.marked else ""
    right = x < WIDTH * 0.7
    text_x, text_y = x + (radius + 7) * (1 if right else -1), y + 4
    while any(abs(text_y - b) < 14 and abs(text_x - a) < 150 for a, b in taken) and text_y > TOP:
        text_y -= 14
    taken.append((text_x, text_y))
    name = html.escape(dot.name) + (" (chosen)" if dot.marked else "")
    return (
        f'{ring}<circle class="dot {html.escape(dot.kind)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{name}: '
        f'{dot.x:.4g}, {dot.y:.4g}</title></circle><text class="name" x="{text_x:.1f}" y="{text_y:.1f}" '
        f'text-anchor="{"start" if right else "end"}">{name}</text>'
    )


#: Letters of a name beside a bar, at most.
_SHOWN = 26


def bars(values: Mapping[str, float], kinds: Mapping[str, str], unit: str, form: str = ".1f") -> str:
    """Return horizontal bars as SVG, in the order given.

    Args:
        values: Name to value; below zero drawn as nothing.
        kinds: Name to a class of the style sheet.
        unit: Behind each value.
        form: How a value is written.
    """
    row, top = 22, max([*values.values(), 1e-9])
    lines = []
    for i, (name, value) in enumerate(values.items()):
        y, width = i * row, max(0.0, value) / top * 300
        shown = html.escape(name if len(name) <= _SHOWN else "…" + name[1 - _SHOWN :])
        lines.append(
            f'<text class="name" x="186" y="{y + 15}" text-anchor="end">{shown}<title>{html.escape(name)}</title></text>'
            f'<rect class="bar {html.escape(kinds.get(name, ""))}" x="194" y="{y + 4}" width="{width:.1f}" height="14" rx="2"/>'
            f'<text class="tick" x="{200 + width:.1f}" y="{y + 15}">{value:{form}} {html.escape(unit)}</text>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 560 {max(1, len(values)) * row}" role="img">{"".join(lines)}</svg>'
    )


def confusion_cells(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return a square of cells as SVG, darker where a row's share is larger; the diagonal is agreement.

    Args:
        counts: Rows are the source's classes, columns the artifact's.
        names: Of the classes, in order.
    """
    n, cell, left = len(counts), 26, 92
    parts = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        label = html.escape(names[i][:13])
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{left + i * cell + 17}" text-anchor="end">{label}</text>'
        )
        parts.append(
            f'<text class="tick" transform="translate({left + i * cell + 17},{left - 6}) rotate(-90)">{label}</text>'
        )
        for j, count in enumerate(row):
            x, y = left + j * cell, left + i * cell
            kind = "agree" if i == j else "differ"
            share = math.sqrt(count / total)
            title = f"{html.escape(names[i])} → {html.escape(names[j])}: {count}"
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}"/>'
                f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{share:.3f}"><title>{title}</title></rect>'
            )
            if count and i != j:
                parts.append(
                    f'<text class="count" x="{x + 12}" y="{y + 17}" text-anchor="middle">{count}</text>'
                )
    side = left + n * cell
    return f'<svg class="square" viewBox="0 0 {side} {side}" style="max-width:{side}px" role="img">{"".join(parts)}</svg>'


def sparkline(values: np.ndarray) -> str:
    """Return a row of numbers as a small line, SVG; float [n], at least one finite."""
    import numpy as np

    row = np.asarray(values, np.float64).ravel()
    row = row[np.isfinite(row)][:512]
    if not row.size:
        return "<span class='note'>no finite value</span>"
    low, high = float(row.min()), float(row.max())
    span = (high - low) or 1.0
    step = 160.0 / max(1, row.size - 1)
    points = " ".join(f"{i * step:.1f},{44 - (float(v) - low) / span * 40:.1f}" for i, v in enumerate(row))
    title = f"{row.size} values from {low:.4g} to {high:.4g}"
    return f'<svg class="spark" viewBox="-2 0 164 48" role="img"><title>{title}</title><polyline points="{points}"/></svg>'
