"""Routes: which converters, in which order, lead from a source to an artifact. Pure functions over a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.converters import CONVERTERS, Converter, get_converter

__all__ = ["Route", "converters", "find_routes", "start_of"]

#: Converter names in the order they run.
Route = tuple[str, ...]

_LONGEST = 4


def converters() -> dict[str, Converter]:
    """Return every converter of the table; this imports no framework."""
    return {name: get_converter(name) for name in CONVERTERS}


def start_of(kind: str) -> str:
    """Return what converters call a source of this kind: the user's ONNX or TFLite is not yet EdgeKit's."""
    return f"{kind}-source" if kind in ("onnx", "tflite") else kind


def find_routes(table: Mapping[str, Converter], kind: str, format_: str, precision: str) -> Sequence[Route]:
    """Return every route from a source to an artifact, shortest first.

    A step in the middle makes float32; only the last makes the precision asked for.

    Args:
        table: Converters by name.
        kind: The source's kind.
        format_: The artifact's format.
        precision: The artifact's precision.
    """
    found: list[Route] = []
    frontier: list[tuple[str, Route]] = [(start_of(kind), ())]
    while frontier:
        at, route = frontier.pop(0)
        for name, converter in table.items():
            if at not in converter.sources or name in route:
                continue
            if converter.format == format_ and precision in converter.precisions:
                found.append((*route, name))
            if "fp32" in converter.precisions and len(route) + 1 < _LONGEST:
                frontier.append((converter.format, (*route, name)))
    return found
