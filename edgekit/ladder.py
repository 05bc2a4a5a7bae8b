"""The ladder to the accuracy budget: which recipe to try next, from cheap to careful. Pure functions.

A converter says which ways to calibrate it offers (`Converter.rungs`), cheapest first; for a precision without
calibration, what else to try (`Converter.careful`). Behind the rungs come the layers that follow the float network
worst, kept in float: one, two, four, … of them. Then the next route. The first attempt inside the budget ends the climb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgekit.bounds import tango_bounds
from edgekit.gate import STRICT
from edgekit.manifest import MetricEvidence, ParityEvidence, Recipe
from edgekit.routes import Route

if TYPE_CHECKING:
    from edgekit.converters import Converter
    from edgekit.gate import Policy

__all__ = ["CALIBRATED", "Attempt", "best", "front", "may_improve", "next_recipe", "rescues"]

#: Precisions that calibration data goes into: those that have rungs.
CALIBRATED = ("int8", "int16x8")
#: Attempts at one artifact, at most: each is a conversion and a run of the gate.
MOST_ATTEMPTS = 12
#: At most this share of the layers is kept in float: beyond it the artifact is hardly quantized.
MOST_FLOAT = 0.5
_RANKS = {"accepted": 0, "unproven": 1, "refused": 2, "failed": 3}
#: What stands in for an integer artifact that no rung could save, nearest first, by format.
_RESCUES = {"tflite": ("int16x8", "fp16"), "onnx": ("fp16",), "openvino": ("fp16",)}


class Attempt(msgspec.Struct, frozen=True):
    """One recipe that was tried for an artifact, and what the gate said.

    Attributes:
        status: `accepted`, `unproven`, `refused` or `failed`.
        bytes: Size of the files; 0 where it failed.
        p50_ms: Median latency on this machine, in milliseconds; 0 where not measured.
    """

    recipe: Recipe
    status: str
    reasons: tuple[str, ...]
    bytes: int = 0
    metric: MetricEvidence | None = None
    parity: ParityEvidence | None = None
    p50_ms: float = 0.0


def may_improve(attempt: Attempt, policy: Policy, fewest: int) -> bool:
    """Tell whether a more careful recipe could do better in the gate.

    It could not where the sample is so small that an artifact without any loss would stay unproven.

    Args:
        attempt: The last one.
        policy: What the user asked of the gate.
        fewest: Samples that a bootstrap bound needs.
    """
    if attempt.status in ("refused", "failed") and attempt.reasons[-1:] != (STRICT,):
        return True
    metric = attempt.metric
    if attempt.status == "accepted" or metric is None or metric.drop_pp <= 0.0:
        return False
    if metric.name in ("top1", "top5"):
        return 100.0 * tango_bounds(0, 0, metric.n)[1] <= policy.max_drop_pp
    return metric.n >= fewest


def best(attempts: Sequence[Attempt]) -> int:
    """Return the index of the attempt to keep: the best verdict, then the smallest loss, then the earliest."""

    def key(index: int) -> tuple[int, float, int]:
        return _RANKS[attempts[index].status], loss(attempts[index]), index

    return min(range(len(attempts)), key=key)


def loss(attempt: Attempt) -> float:
    """Return how much an attempt loses: its drop in percentage points, else the 95th percentile of its error in percent."""
    if attempt.metric is not None:
        return attempt.metric.drop_pp
    return 100.0 * attempt.parity.p95_error if attempt.parity is not None else float("inf")


def next_recipe(
    attempts: Sequence[Attempt],
    layers: Mapping[str, float],
    routes: Sequence[Route],
    table: Mapping[str, Converter],
    first: Mapping[Route, Recipe],
) -> Recipe | None:
    """Return the recipe to try next, or None at the ladder's end.

    Args:
        attempts: So far, in order; empty for the first.
        layers: Layer to its signal-to-quantization-noise ratio in dB, of the best attempt on the last route.
        routes: To the artifact, shortest first.
        table: Converters by name.
        first: Route to the plain recipe of that route.
    """
    if len(attempts) >= MOST_ATTEMPTS:
        return None
    tried = {msgspec.json.encode(attempt.recipe, order="sorted") for attempt in attempts}
    for route in routes:
        here = [attempt for attempt in attempts if attempt.recipe.route == route]
        for recipe in _steps(table[route[-1]], first[route], here, layers):
            if msgspec.json.encode(recipe, order="sorted") not in tried:
                return recipe
    return None


def _steps(
    converter: Converter,
    plain: Recipe,
    here: Sequence[Attempt],
    layers: Mapping[str, float],
) -> Sequence[Recipe]:
    """Return the recipes of one route, in order, as far as they are known."""
    if here and here[0].status == "failed":
        return [plain]  # what fails at the first rung fails for another reason than accuracy
    if plain.precision not in CALIBRATED:
        more = converter.careful.get(plain.precision, ())
        return [plain, *(msgspec.structs.replace(plain, options={**plain.options, **o}) for o in more)]
    rungs = [
        msgspec.structs.replace(plain, calibration=r.calibration, options={**plain.options, **r.options})
        for r in converter.rungs
        if plain.precision in (r.precisions or CALIBRATED)
    ]
    ran = [attempt for attempt in here if attempt.status != "failed"]
    if not converter.keeps_float or not ran or not layers or len(here) < len(rungs):
        return rungs
    base = min((a for a in ran if not a.recipe.float_layers), key=loss, default=None)
    if base is None:
        return rungs
    return [*rungs, *(msgspec.structs.replace(base.recipe, float_layers=some) for some in _worst(layers))]


def _worst(layers: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return the one, two, four, … layers with the lowest ratio, up to `MOST_FLOAT` of them, names sorted."""
    order = sorted(layers, key=lambda name: (layers[name], name))
    most = max(1, int(MOST_FLOAT * len(order)))
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [tuple(sorted(order[:count])) for count in [*counts, most]]


def rescues(format_: str, precision: str, made: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions that may stand in for a lost integer artifact, but those made anyway.

    Args:
        format_: The artifact's.
        precision: The artifact's.
        made: Precisions of this format that are made already.
    """
    if precision != "int8":
        return ()
    return tuple(p for p in _RESCUES[format_] if p not in made)


def front(points: Mapping[str, tuple[int, float, float]]) -> list[str]:
    """Return the names that no other beats in all of size, loss and latency, smallest first.

    Args:
        points: Name to (bytes, loss, milliseconds); smaller is better in each.

    Example:
        >>> front({"a": (100, 0.5, 1.0), "b": (200, 0.0, 1.0), "c": (250, 0.2, 1.1)})
        ['a', 'b']
    """

    def beaten(name: str) -> bool:
        mine = points[name]
        return any(
            all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine
            for key, other in points.items()
            if key != name
        )

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])
