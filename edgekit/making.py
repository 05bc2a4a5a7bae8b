"""Making: each artifact's recipes are tried, from cheap to careful, until the gate accepts one or the ladder ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgeKitError, MachineError
from edgekit.gate import data_faults, load_limits
from edgekit.ladder import CALIBRATED, Attempt, best, may_improve, next_recipe, rescues
from edgekit.recipes import Wanted, recipe_for, want
from edgekit.report import Row
from edgekit.routes import Route, converters

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters import Converted
    from edgekit.devices import DeviceProfile
    from edgekit.factory import Factory, Result
    from edgekit.judging import Examination
    from edgekit.manifest import GateResult, Recipe
    from edgekit.tasks import Described, Scored

__all__ = ["Bench", "Kept", "Outcome", "describe", "make_all"]


@dataclass(frozen=True)
class Bench:
    """What artifacts are made from and judged by.

    Attributes:
        factory: Runs converters and artifacts in workers.
        examination: Judges.
        profile: The target.
        kind: The source's kind.
        model: The source.
        source: Its specs.
        calibration: What `Factory.store_calibration` returned; None without calibration data.
        calibrated: How many samples it holds.
        few: A few samples, likewise stored, to measure layers on.
        fixed: Recipes that the user gave, by artifact name: tried as they are, and nothing else.
        progress: Told a phrase, steps done, steps in all.
    """

    factory: Factory
    examination: Examination
    profile: DeviceProfile
    kind: str
    model: Path
    source: Described
    calibration: Path | None
    calibrated: int
    few: Path
    fixed: Mapping[str, Recipe]
    progress: Callable[[str, int, int], None]


@dataclass(frozen=True)
class Kept:
    """The artifact that stands under a name: the best of what was tried for it."""

    wanted: Wanted
    recipe: Recipe
    converted: Converted
    gate: GateResult
    scored: Scored
    answers: dict[str, np.ndarray]
    peak_mib: float


@dataclass(frozen=True)
class Outcome:
    """What became of one artifact: its row, and itself unless it could not be made or run."""

    row: Row
    kept: Kept | None


@dataclass
class _Climb:
    """One artifact on its way up the ladder; `best` is the index of the attempt that stands for it."""

    wanted: Wanted
    first: Mapping[Route, Recipe]
    attempts: list[Attempt] = field(default_factory=list)
    best: int = 0
    kept: Kept | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    ended: bool = False


def make_all(bench: Bench, wanted: Sequence[Wanted]) -> dict[str, Outcome]:
    """Make and judge artifacts; where an int8 is lost that nobody asked for by name, what may stand in for it too.

    Args:
        bench: What to work with.
        wanted: What to make; every one has a route or is skipped.

    Raises:
        MachineError: The machine failed.
    """
    climbs = [_start(bench, item) for item in wanted if not item.skipped]
    _climb(bench, climbs)
    extra = [_start(bench, item) for item in _stand_ins(bench, climbs, wanted)]
    _climb(bench, extra)
    done = {climb.wanted.name: _outcome(climb) for climb in [*climbs, *extra]}
    skipped = {w.name: Outcome(Row(w.name, "skipped", (w.skipped,)), None) for w in wanted if w.skipped}
    names = [*(w.name for w in wanted), *(climb.wanted.name for climb in extra)]
    return {name: (done | skipped)[name] for name in names}


def _start(bench: Bench, wanted: Wanted) -> _Climb:
    fixed = bench.fixed.get(wanted.name)
    if fixed is not None:
        return _Climb(wanted, {fixed.route: fixed})
    samples = bench.calibrated
    return _Climb(
        wanted,
        {r: recipe_for(bench.profile, r, wanted.format, wanted.made_as, samples) for r in wanted.routes},
    )


def _climb(bench: Bench, climbs: Sequence[_Climb]) -> None:
    """Try one recipe of every artifact at a time, until each is accepted or at its ladder's end."""
    while recipes := {c.wanted.name: r for c in climbs if (r := _next(bench, c)) is not None}:
        results = _make(bench, recipes)
        turn = [climb for climb in climbs if climb.wanted.name in recipes]
        for done, climb in enumerate(turn):
            name = climb.wanted.name
            bench.progress(f"scoring {name}", done, len(turn))
            _try(bench, climb, recipes[name], results[name])


def _next(bench: Bench, climb: _Climb) -> Recipe | None:
    if climb.ended:
        return None
    fixed = bench.fixed.get(climb.wanted.name)
    if fixed is not None:
        return None if climb.attempts else fixed
    limits = load_limits().data
    if climb.attempts and not may_improve(
        climb.attempts[climb.best], bench.examination.policy, limits.bootstrap_samples
    ):
        return None
    return next_recipe(climb.attempts, climb.layers, climb.wanted.routes, converters(), climb.first)


def _make(bench: Bench, recipes: Mapping[str, Recipe]) -> dict[str, Result]:
    return bench.factory.make(
        bench.kind,
        bench.model,
        bench.source,
        recipes,
        lambda route, form: recipe_for(bench.profile, route, form, "fp32", 0),
        bench.calibration,
        bench.progress,
    )


def _try(bench: Bench, climb: _Climb, recipe: Recipe, result: Result) -> None:
    """Judge what was made by one recipe; it stands for the artifact if it is the best so far."""
    kept = None
    if isinstance(result, EdgeKitError):
        attempt = Attempt(recipe, "failed", (str(result),))
    else:
        try:
            kept = _judge(bench, climb.wanted, recipe, result.converted, result.peak_mib)
        except MachineError:
            raise
        except EdgeKitError as error:
            size = _size(result.converted)
            attempt = Attempt(recipe, "failed", (f"it does not run: {error}",), size)
        else:
            attempt = _attempt(kept)
    climb.attempts.append(attempt)
    climb.best = best(climb.attempts)
    if kept is None:
        return
    limits = load_limits()
    faults = data_faults(kept.gate.calibration_fit, kept.gate.metric, bench.examination.policy, limits)
    climb.ended = bool(faults)
    if climb.attempts[climb.best] is attempt:
        climb.kept = kept
        climb.layers = _layers(bench, kept)


def _judge(bench: Bench, wanted: Wanted, recipe: Recipe, made: Converted, peak_mib: float) -> Kept:
    judged = bench.examination.judge(
        made, wanted.format, wanted.precision, calibrated=bool(recipe.calibration)
    )
    return Kept(wanted, recipe, made, judged.gate, judged.scored, judged.answers, peak_mib)


def _attempt(kept: Kept) -> Attempt:
    gate = kept.gate
    return Attempt(
        recipe=kept.recipe,
        status=gate.verdict,
        reasons=gate.reasons,
        bytes=_size(kept.converted),
        metric=gate.metric,
        parity=gate.parity,
        p50_ms=kept.scored.p50_ms,
    )


def _layers(bench: Bench, kept: Kept) -> Mapping[str, float]:
    """Return each layer's ratio in dB; empty where the converter cannot tell or the measurement fails."""
    converter = converters()[kept.recipe.route[-1]]
    if kept.recipe.precision not in CALIBRATED or not converter.keeps_float:
        return {}
    bench.progress(f"measuring the layers of {kept.wanted.name}", 0, 1)
    try:
        return bench.factory.measure_layers(
            bench.kind, bench.model, bench.source, kept.recipe, kept.converted, bench.few
        )
    except MachineError:
        raise
    except EdgeKitError:  # the artifact was judged without it; the ladder goes on without float layers
        return {}


def _stand_ins(bench: Bench, climbs: Iterable[_Climb], wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return what to make instead of integer artifacts that no rung saved and nobody asked for by name."""
    found = []
    table = converters()
    for climb in climbs:
        item = climb.wanted
        if (
            climb.ended
            or item.by_name
            or item.as_is
            or climb.attempts[climb.best].status not in ("refused", "failed")
        ):
            continue
        made = [w.precision for w in wanted if w.format == item.format]
        for precision in rescues(item.format, item.precision, made):
            extra = want(table, bench.kind, item.format, precision, calibrated=True, by_name=False)
            if not extra.skipped:
                found.append(extra)
    return found


def _outcome(climb: _Climb) -> Outcome:
    name, attempt = climb.wanted.name, climb.attempts[climb.best]
    others = tuple(
        f"{a.status} by {describe(a.recipe)}: {'; '.join(a.reasons)}"
        for i, a in enumerate(climb.attempts)
        if i != climb.best
    )
    kept = climb.kept
    row = Row(
        name=name,
        status=attempt.status,
        reasons=(*attempt.reasons, *others),
        bytes=attempt.bytes,
        gate=kept.gate if kept is not None else None,
        p50_ms=attempt.p50_ms,
        placement=kept.scored.placement if kept is not None else {},
        recipe=attempt.recipe,
        peak_mib=kept.peak_mib if kept is not None else 0.0,
        attempts=tuple(climb.attempts),
        best=climb.best,
        layers=climb.layers,
    )
    return Outcome(row, kept)


def describe(recipe: Recipe) -> str:
    """Return a recipe in a few words: its route, how ranges were taken, what was corrected, what stays float."""
    words = [" → ".join(recipe.route)]
    words += [recipe.calibration] if recipe.calibration else []
    words += [
        key.replace("_", " ") + ("" if value is True else f" {value}") for key, value in _telling(recipe)
    ]
    if recipe.float_layers:
        count = len(recipe.float_layers)
        words.append(f"{count} layer{'s' if count > 1 else ''} in float")
    return ", ".join(words)


def _telling(recipe: Recipe) -> list[tuple[str, object]]:
    """Return the options that the ladder varies, as far as they are set."""
    converter = converters()[recipe.route[-1]]
    ways = (*(rung.options for rung in converter.rungs), *converter.careful.get(recipe.precision, ()))
    varied = dict.fromkeys(key for options in ways for key in options)
    return [(key, recipe.options[key]) for key in varied if recipe.options.get(key)]


def _size(converted: Converted) -> int:
    return sum(Path(file).stat().st_size for file in converted.files)
