"""What to make for a target: artifacts, recipes and what is skipped, from the profile. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgekit.converters import CONVERTERS, Converter, get_converter
from edgekit.devices import FORMATS, PRECISIONS, DeviceProfile, RuntimePreference
from edgekit.errors import ConversionError, UsageError
from edgekit.manifest import Option, Recipe
from edgekit.routes import Route, find_routes

__all__ = [
    "Wanted",
    "check_formats",
    "check_recipes",
    "onnx_versions",
    "preference_for",
    "read_recipes",
    "recipe_for",
    "want",
    "wanted_artifacts",
]

#: Highest opset and IR version that EdgeKit writes: read by every runtime of the last three years.
_OPSET, _IR = 17, 8

#: Kinds of source of which nothing else can be made, whatever the table of converters says.
_ONLY = {"sklearn": ("onnx-fp32",)}
#: What a user should know where a kind of source has no route to a format.
_WHY_NOT = {
    ("sklearn", ""): ": a scikit-learn model becomes onnx-fp32 only, since its trees, vectors and labels are "
    "operators of ONNX (ai.onnx.ml) that neither TFLite nor OpenVINO has, and its thresholds stand no rounding",
    ("torchscript", "tflite"): ": only programs of torch.export become TFLite",
}


@dataclass(frozen=True)
class Wanted:
    """One artifact to make: its routes, shortest first, or the reason why it is skipped.

    Attributes:
        precision: What the artifact is; of a source that is quantized already, its own.
        as_is: The source is quantized already and goes into the format as it is.
    """

    format: str
    precision: str
    by_name: bool
    routes: Sequence[Route] = ()
    skipped: str = ""
    as_is: bool = False

    @property
    def name(self) -> str:
        """Return `format-precision`."""
        return f"{self.format}-{self.precision}"

    @property
    def made_as(self) -> str:
        """Return the precision that converters are asked for: a quantized source goes through as if it were float."""
        return "fp32" if self.as_is else self.precision


def preference_for(profile: DeviceProfile, format_: str) -> RuntimePreference:
    """Return the profile's first runtime made for `format_`, or that runtime at its defaults."""
    for preference in profile.runtimes:
        if FORMATS[preference.runtime][0] == format_:
            return preference
    fallback = next(name for name, formats in FORMATS.items() if formats[0] == format_)
    return RuntimePreference(runtime=fallback, precisions=("fp32",))


def check_formats(profile: DeviceProfile, formats: Sequence[str]) -> None:
    """Refuse formats none of which a runtime of the target opens: there would be no plan.

    Args:
        profile: The target.
        formats: Asked for; empty for the target's own.

    Raises:
        UsageError: Naming the formats that the target takes.
    """
    opened = [each for preference in profile.runtimes for each in FORMATS[preference.runtime]]
    if formats and not set(formats) & set(opened):
        raise UsageError(
            f"no runtime of {profile.id} opens the formats asked for",
            got=", ".join(formats),
            expected="one of " + ", ".join(dict.fromkeys(opened)),
        )


def read_recipes(path: Path) -> dict[str, Recipe]:
    """Read recipes by artifact name, as a conversion leaves them in `OUT.report/recipes.json`.

    Raises:
        UsageError: The file is not there, or holds something else.
    """
    try:
        recipes = msgspec.json.decode(path.read_bytes(), type=dict[str, Recipe])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read --recipe {path}: {error}", expected="the recipes.json of an earlier conversion"
        ) from error
    if not recipes:
        raise UsageError(f"--recipe {path} holds no recipe")
    return recipes


def check_recipes(
    recipes: Mapping[str, Recipe], wanted: Sequence[Wanted], start: str, profile: DeviceProfile
) -> None:
    """Refuse recipes that would not be followed to the letter: wrong artifact, route, option, target.

    Args:
        recipes: The user's, by artifact name.
        wanted: What is to be made.
        start: What converters call the source.
        profile: The target; it alone decides the options that its kernels need.

    Raises:
        UsageError: Naming the recipe.
    """
    names = {item.name: item for item in wanted if not item.skipped}
    for name, recipe in recipes.items():
        if name not in names:
            raise UsageError(
                f"--recipe has one for {name}, which is not to be made",
                expected="some of " + ", ".join(names),
                hint="Ask for it with --format and --precision.",
            )
        _check_route(name, recipe, names[name], start)
        _check_choices(name, recipe, names[name], profile)


def _check_route(name: str, recipe: Recipe, wanted: Wanted, start: str) -> None:
    chain = [get_converter(step) if step in CONVERTERS else None for step in recipe.route]
    last = chain[-1] if chain else None
    if (
        last is None
        or last.format != wanted.format
        or recipe.precision != wanted.made_as
        or recipe.precision not in last.precisions
    ):
        raise UsageError(f"--recipe: the route for {name} does not lead there", got=" → ".join(recipe.route))
    for before, step in zip([start, *(c.format for c in chain if c)], chain, strict=False):
        if step is None or before not in step.sources:
            raise UsageError(
                f"--recipe: the route for {name} does not hold together", got=" → ".join(recipe.route)
            )


def _check_choices(name: str, recipe: Recipe, wanted: Wanted, profile: DeviceProfile) -> None:
    """Refuse a choice that the converter does not know, and one that another target's kernels made."""
    converter = get_converter(recipe.route[-1])
    plain = recipe_for(profile, recipe.route, wanted.format, recipe.precision, 0)
    methods = {rung.calibration for rung in converter.rungs} if plain.calibration else {""}
    if recipe.calibration not in methods:
        raise UsageError(
            f"--recipe: {name} cannot be calibrated so",
            got=repr(recipe.calibration),
            expected="one of " + ", ".join(sorted(map(repr, methods))),
        )
    if recipe.float_layers and not (plain.calibration and converter.keeps_float):
        raise UsageError(f"--recipe: {recipe.route[-1]} keeps no layers of {name} in float")
    known = {*plain.options, *converter.choices, *(key for rung in converter.rungs for key in rung.options)}
    unknown = sorted(set(recipe.options) - known)
    if unknown:
        raise UsageError(
            f"--recipe: {name} has an unknown option {unknown[0]!r}",
            expected=", ".join(sorted(known)) or "none",
        )
    for key, value in plain.options.items():
        if recipe.options.get(key) != value:
            raise UsageError(
                f"--recipe: {name} was made for another target: option {key!r} does not suit {profile.id}",
                got=recipe.options.get(key),
                expected=value,
                hint="Convert for this target without --recipe, and keep what comes out.",
            )


def wanted_artifacts(
    profile: DeviceProfile,
    kind: str,
    table: Mapping[str, Converter],
    *,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    calibrated: bool,
    quantized: str = "",
    requantize: bool = False,
) -> list[Wanted]:
    """Return what to make for `profile` from a source of `kind`.

    Args:
        profile: The target.
        kind: The source's kind.
        table: Converters by name.
        formats: Asked for; empty for those of the target's runtimes.
        precisions: Asked for; empty for fp32 plus those the profile lists for each runtime.
        calibrated: Whether there is calibration data, without which no static int8 is made.
        quantized: The source's own precision where it is quantized already.
        requantize: Quantize it again all the same.

    Raises:
        UsageError: An unknown format or precision, or `int8` by name without calibration data.
        ConversionError: A precision asked for has no route to any of the formats, or to one asked for too.
    """
    _check_known("format", formats, [formats[0] for name, formats in FORMATS.items() if name != "null"])
    _check_known("precision", precisions, PRECISIONS)
    for precision in ("int8", "int16x8"):
        if precision in precisions and not calibrated:
            raise UsageError(
                f"static {precision} needs calibration data",
                hint="Give --calibration with about 200 typical inputs.",
            )
    if quantized and not requantize:
        return _as_it_is(profile, kind, table, formats, precisions, quantized)
    wanted = []
    for format_ in formats or profile.formats():
        chosen = precisions or profile.precisions(format_)
        wanted += [
            want(table, kind, format_, p, calibrated=calibrated, by_name=bool(precisions)) for p in chosen
        ]
    for precision in precisions:
        asked = [item for item in wanted if item.precision == precision]
        lacking = [item for item in asked if not item.routes]
        if lacking and (formats or lacking == asked):
            raise ConversionError(lacking[0].skipped, hint="`edgekit check` lists what can be made.")
    return wanted


def _as_it_is(
    profile: DeviceProfile,
    kind: str,
    table: Mapping[str, Converter],
    formats: Sequence[str],
    precisions: Sequence[str],
    quantized: str,
) -> list[Wanted]:
    """Return the artifacts of a source that is quantized already: one for each format, at its own precision."""
    wanted = []
    for format_ in formats or profile.formats():
        plain = want(table, kind, format_, "fp32", calibrated=False, by_name=quantized in precisions)
        wanted.append(replace(plain, precision=quantized, as_is=True))
        wanted += [
            Wanted(
                format_,
                precision,
                by_name=precision in precisions,
                skipped=f"the source is {quantized} already; --requantize makes {precision} of it",
            )
            for precision in precisions or profile.precisions(format_)
            if precision != quantized
        ]
    asked = next((w for w in wanted if w.skipped and w.by_name), None)
    if asked is not None:
        raise ConversionError(f"{asked.name}: {asked.skipped}")
    return wanted


def _check_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for value in asked:
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}", expected="one of " + ", ".join(known))


def want(
    table: Mapping[str, Converter],
    kind: str,
    format_: str,
    precision: str,
    *,
    calibrated: bool,
    by_name: bool,
) -> Wanted:
    """Return one artifact to make, or why it is skipped; the arguments are those of `wanted_artifacts`."""
    name = f"{format_}-{precision}"
    routes = [] if name not in _ONLY.get(kind, (name,)) else find_routes(table, kind, format_, precision)
    skipped = ""
    if not routes:
        why = _WHY_NOT.get((kind, format_)) or _WHY_NOT.get((kind, ""), "")
        skipped = f"no route from {kind} to {name}{why}"
    elif precision in ("int8", "int16x8") and not calibrated:
        skipped = f"static {precision} needs --calibration"
    return Wanted(format_, precision, by_name, routes, skipped)


def recipe_for(profile: DeviceProfile, route: Route, format_: str, precision: str, samples: int) -> Recipe:
    """Return the recipe of one step's artifact, with the options that the target's kernels need."""
    calibrated = precision in ("int8", "int16x8")
    options = _options(profile, format_, precision)
    if route == ("onnx-fp32",):  # the user's own ONNX is lowered only as far as the target needs it
        options |= {"opset": profile.max_opset, "ir": profile.max_ir}
    return Recipe(
        route=route,
        precision=precision,
        calibration="minmax" if calibrated else "",
        calibration_samples=samples if calibrated else 0,
        options=options,
    )


def onnx_versions(profile: DeviceProfile) -> tuple[int, int]:
    """Return the ONNX opset and IR version to write, as the target's oldest supported runtime reads them."""
    return min(_OPSET, profile.max_opset), min(_IR, profile.max_ir)


def _compiles_onnx(profile: DeviceProfile) -> bool:
    """Tell whether ONNX goes to a compiler that takes fixed shapes only; a CPU beside it takes them too."""
    listed = (each.providers for each in profile.runtimes if "onnx" in FORMATS[each.runtime])
    return profile.static_shapes and any(set(providers) - {"CPUExecutionProvider"} for providers in listed)


def _options(profile: DeviceProfile, format_: str, precision: str) -> dict[str, Option]:
    if format_ == "onnx" and precision == "fp32":
        opset, ir = onnx_versions(profile)
        versions: dict[str, Option] = {"opset": opset, "ir": ir}
        return versions | ({"static": True} if _compiles_onnx(profile) else {})
    if format_ == "onnx" and precision == "int8":
        policy = profile.int8
        return {
            "activation": policy.activation,
            "symmetric_activations": policy.symmetric_activations,
            "reduce_range": policy.reduce_range,
            "per_channel": True,
        }
    if format_ == "onnx" and precision == "int8-dynamic":
        return {"reduce_range": profile.int8.reduce_range}
    if format_ == "openvino":
        options: dict[str, Option] = {"static": profile.static_shapes}
        if precision == "int8":
            providers = preference_for(profile, "openvino").providers
            options |= {
                "device": "NPU" if "NPU" in providers else "CPU",
                "reduce_range": profile.int8.reduce_range,
            }
        return options
    return {}
