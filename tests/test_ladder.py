from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.converters import Converter, Rung, SourceModel
from edgekit.gate import STRICT, Policy
from edgekit.ladder import MOST_ATTEMPTS, Attempt, best, front, may_improve, next_recipe, rescues
from edgekit.manifest import MetricEvidence, Option, ParityEvidence, Recipe
from edgekit.routes import Route
from edgekit.streams import Samples


class Quantizer(Converter):
    """Offers two ways to calibrate; never run."""

    sources, format, precisions = ("onnx",), "onnx", ("int8", "fp16")
    environment, needs, tools = "test", (), ("onnx",)
    rungs: ClassVar[tuple[Rung, ...]] = (Rung("minmax"), Rung("mse", {"bias_correction": "full"}))
    keeps_float = True
    careful: ClassVar[dict[str, tuple[dict[str, Option], ...]]] = {"int8-dynamic": ({"weight_only": True},)}

    def make(self, source: SourceModel, recipe: Recipe, calibration: Samples, folder: Path) -> Path:
        raise AssertionError("the ladder decides without converting")


class Plain(Quantizer):
    rungs: ClassVar[tuple[Rung, ...]] = (Rung("minmax"),)
    keeps_float = False
    careful: ClassVar[dict[str, tuple[dict[str, Option], ...]]] = {}


TABLE = {"first": Quantizer(), "second": Plain()}
ROUTES: tuple[Route, ...] = (("first",), ("second",))
PLAIN = {route: Recipe(route, "int8", "minmax", 200, {"per_channel": True}) for route in ROUTES}
LAYERS = {f"n{i}": float(10 + i) for i in range(8)}


def metric(drop: float, n: int = 1000, name: str = "top1", bound: float | None = None) -> MetricEvidence:
    return MetricEvidence(name, n, 0.99, 0.99 - drop / 100, drop, drop - 0.5, bound or drop + 0.5)


def attempt(recipe: Recipe, drop: float, status: str = "refused") -> Attempt:
    return Attempt(recipe, status, ("because",), 100, metric(drop))


def climb(drops: dict[str, float], layers: dict[str, float] | None = None, **options: Any) -> list[Recipe]:
    """Return every recipe of the ladder when nothing is accepted; a recipe loses what its method is given."""
    attempts: list[Attempt] = []
    while True:
        recipe = next_recipe(attempts, LAYERS if layers is None else layers, ROUTES, TABLE, PLAIN)
        if recipe is None:
            return [a.recipe for a in attempts]
        attempts.append(attempt(recipe, drops.get(recipe.calibration, 9.0), **options))


def test_rungs_come_in_order_then_layers_then_the_next_route() -> None:
    recipes = climb({"minmax": 5.0, "mse": 2.0})
    said = [(r.route[0], r.calibration, len(r.float_layers)) for r in recipes]
    assert said == [
        ("first", "minmax", 0),
        ("first", "mse", 0),
        ("first", "mse", 1),
        ("first", "mse", 2),
        ("first", "mse", 4),
        ("second", "minmax", 0),
    ]
    assert recipes[1].options == {"per_channel": True, "bias_correction": "full"}
    assert recipes[3].float_layers == ("n0", "n1")


def test_a_rung_may_be_for_one_precision_only() -> None:
    class Choosy(Plain):
        rungs: ClassVar[tuple[Rung, ...]] = (Rung("minmax"), Rung("mse", precisions=("int8",)))

    for precision, methods in (("int8", ["minmax", "mse"]), ("int16x8", ["minmax"])):
        attempts: list[Attempt] = []
        plain = {ROUTES[0]: Recipe(ROUTES[0], precision, "minmax")}
        while (recipe := next_recipe(attempts, {}, ROUTES[:1], {"first": Choosy()}, plain)) is not None:
            attempts.append(attempt(recipe, 9.0))
        assert [a.recipe.calibration for a in attempts] == methods


def test_layers_are_kept_float_on_top_of_the_way_that_lost_least() -> None:
    recipes = climb({"minmax": 1.5, "mse": 2.0})
    assert {r.calibration for r in recipes if r.float_layers} == {"minmax"}


def test_without_measured_layers_there_are_only_rungs() -> None:
    assert [r.calibration for r in climb({}, layers={})] == ["minmax", "mse", "minmax"]


def test_a_route_whose_first_recipe_fails_is_left() -> None:
    assert [r.route[0] for r in climb({}, status="failed")] == ["first", "second"]


def test_half_of_the_layers_at_most() -> None:
    assert max(len(r.float_layers) for r in climb({}, layers={"a": 1.0, "b": 2.0, "c": 3.0})) == 1


def test_a_float_precision_has_one_recipe_for_each_route() -> None:
    plain = {route: Recipe(route, "fp16") for route in ROUTES}
    first = next_recipe([], {}, ROUTES, TABLE, plain)
    assert first == plain[ROUTES[0]]
    then = next_recipe([Attempt(plain[ROUTES[0]], "refused", ())], {}, ROUTES, TABLE, plain)
    assert then == plain[ROUTES[1]]


def test_a_precision_without_calibration_has_its_careful_options_then_the_next_route() -> None:
    plain = {route: Recipe(route, "int8-dynamic", options={"threads": 2}) for route in ROUTES}
    attempts: list[Attempt] = []
    while (recipe := next_recipe(attempts, LAYERS, ROUTES, TABLE, plain)) is not None:
        attempts.append(attempt(recipe, 9.0))
    assert [(a.recipe.route[0], a.recipe.options) for a in attempts] == [
        ("first", {"threads": 2}),
        ("first", {"threads": 2, "weight_only": True}),
        ("second", {"threads": 2}),
    ]


def test_the_ladder_ends() -> None:
    recipes = [Recipe(("first",), "int8", f"way{i}") for i in range(MOST_ATTEMPTS)]
    attempts = [attempt(recipe, 1.0) for recipe in recipes]
    assert next_recipe(attempts, LAYERS, ROUTES, TABLE, PLAIN) is None
    assert next_recipe(attempts[:-1], LAYERS, ROUTES, TABLE, PLAIN) is not None


@pytest.mark.parametrize(
    ("status", "evidence", "may"),
    [
        ("refused", metric(3.0), True),
        ("failed", None, True),
        ("accepted", metric(0.2), False),
        ("unproven", None, False),
        ("unproven", metric(0.8), True),  # 0 of 1,000 would pass
        ("unproven", metric(0.8, n=100), False),  # not even 0 of 100 would
        ("unproven", metric(0.0), False),
        ("unproven", metric(0.8, n=100, name="map"), True),
        ("unproven", metric(0.8, n=99, name="map"), False),
    ],
)
def test_who_climbs_on(status: str, evidence: MetricEvidence | None, may: bool) -> None:
    tried = Attempt(PLAIN[ROUTES[0]], status, (), 100, evidence)
    assert may_improve(tried, Policy(max_drop_pp=1.0), 100) is may


def test_what_only_strict_refused_climbs_like_the_unproven() -> None:
    small = Attempt(PLAIN[ROUTES[0]], "refused", ("too few", STRICT), 100, metric(0.8, n=100))
    assert not may_improve(small, Policy(strict=True), 100)
    assert may_improve(replace(small, metric=metric(0.8)), Policy(strict=True), 100)


def test_what_stands_for_the_artifact() -> None:
    recipe = PLAIN[ROUTES[0]]
    tried = [
        attempt(recipe, 0.0, "failed"),
        attempt(recipe, 3.0, "refused"),
        attempt(recipe, 1.4, "unproven"),
        attempt(recipe, 0.9, "unproven"),
        attempt(recipe, 0.9, "unproven"),
    ]
    assert best(tried) == 3
    assert best([*tried, attempt(recipe, 0.99, "accepted")]) == 5
    worse, better = (
        Attempt(recipe, "refused", (), parity=ParityEvidence(32, 1.0, p95_error=error))
        for error in (0.4, 0.3)
    )
    assert best([worse, better]) == 1


def test_what_may_stand_in() -> None:
    assert rescues("tflite", "int8", ["fp32", "int8"]) == ("int16x8", "fp16")
    assert rescues("onnx", "int8", ["fp32", "int8", "fp16"]) == ()
    assert rescues("tflite", "int16x8", ["fp32"]) == ()


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1),
        st.tuples(st.integers(1, 5), st.floats(0, 3).map(round), st.floats(0, 3).map(round)),
        min_size=1,
    )
)
def test_the_front_is_what_nothing_beats(points: dict[str, tuple[int, float, float]]) -> None:
    names = front(points)
    assert names
    for name, mine in points.items():
        beaten = any(
            all(o <= m for o, m in zip(points[other], mine, strict=True)) and points[other] != mine
            for other in names
        )
        assert beaten is (name not in names)
