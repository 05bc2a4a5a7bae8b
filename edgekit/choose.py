"""The choice for one device: which artifact, in which runtime, on which provider, and why.

`choose` is a pure function of the profile, the manifest and what is installed. It walks down the profile's
preferences, and each step down leaves a reason in the plan; what was asked for by hand is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from edgekit.detect import isa_name
from edgekit.devices import FORMATS, PRECISIONS, DeviceProfile, RuntimePreference
from edgekit.errors import EdgeKitError, RefusedError, UnavailableError, UsageError
from edgekit.manifest import Artifact, Manifest, Plan
from edgekit.probe import Finding

__all__ = ["EXTRAS", "InstalledRuntime", "InstalledRuntimes", "Problem", "choose", "installed_runtimes"]

#: Runtime to the extra that provides it.
EXTRAS = {"litert": "tflite", "onnxruntime": "onnx", "openvino": "openvino"}

#: Providers that compute on the CPU, which takes shapes of any size; "" stands for the runtime's only one.
_CPU_PROVIDERS = ("", "CPU", "CPUExecutionProvider")


class InstalledRuntime(msgspec.Struct, frozen=True):
    """A runtime that can be imported here.

    Attributes:
        version: Such as `ai-edge-litert 2.3.0`.
        providers: Execution providers or devices that it has here.
    """

    version: str
    providers: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True):
    """Why a runtime cannot be used here.

    Attributes:
        why: In the words of what failed.
        missing: It is not installed; else it is, and broken.
    """

    why: str
    missing: bool


class InstalledRuntimes(Mapping[str, InstalledRuntime]):
    """What works here; a runtime is imported when it is first asked for, and not before.

    So a device that runs LiteRT does not pay for ONNX Runtime's memory. Iterating asks for all of them. One that a
    child process could not import and run is not imported here: it would take this process down with it.

    Args:
        names: Runtimes to consider.
        find: Probes one; None for `edgekit.probe.probe`.

    Attributes:
        problems: Runtime to the reason why it cannot be used, of those asked for.
    """

    def __init__(self, names: Collection[str], find: Callable[[str], Finding] | None = None) -> None:
        self._names = tuple(names)
        self._find = find
        self._found: dict[str, InstalledRuntime] = {}
        self.problems: dict[str, Problem] = {}

    def __getitem__(self, name: str) -> InstalledRuntime:
        """Return the runtime `name`; `KeyError` where it is missing or broken."""
        if name not in self._found and name not in self.problems and name in self._names:
            self._probe(name)
        return self._found[name]

    def _probe(self, name: str) -> None:
        from edgekit.probe import probe
        from edgekit.runtimes import get_runtime

        finding = (self._find or probe)(name)
        if finding.problem:
            self.problems[name] = Problem(finding.problem, finding.missing)
            return
        try:
            runtime = get_runtime(name)
            self._found[name] = InstalledRuntime(runtime.version(), tuple(runtime.providers()))
        except (EdgeKitError, ImportError, OSError) as error:
            self.problems[name] = Problem(str(error), missing=False)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of those that work."""
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        """Count those that work."""
        return sum(1 for _ in self)


def installed_runtimes() -> InstalledRuntimes:
    """Return what can be imported here; nothing is raised for what is missing or broken."""
    from edgekit.runtimes import RUNTIMES

    return InstalledRuntimes(tuple(RUNTIMES))


def choose(
    profile: DeviceProfile,
    manifest: Manifest,
    installed: Mapping[str, InstalledRuntime] | None,
    *,
    kept: Collection[str] | None = None,
    runtime: str | None = None,
    forced: bool = False,
    allow_fallback: bool = False,
    allow_unproven: bool = False,
) -> Plan:
    """Choose the artifact, the runtime and the provider for a device.

    Args:
        profile: The device.
        manifest: The bundle's.
        installed: What is installed there; None plans as if everything that the profile lists were.
        kept: Artifacts whose files are present, where not all are.
        runtime: The only runtime to consider.
        forced: The device or the runtime was given by hand: what it wants first must be there.
        allow_fallback: A forced plan may step down after all; the steps are reasons.
        allow_unproven: An unproven artifact counts as much as an accepted one.

    Returns:
        The plan, with the reason for every step.

    Raises:
        UsageError: The runtime is unknown, or no artifact of the bundle fits the device.
        RefusedError: The gate refused every artifact that would fit.
        UnavailableError: A forced plan's runtime or provider is absent, or no fitting runtime is installed.
    """
    artifacts = {name: a for name, a in manifest.artifacts.items() if kept is None or name in kept}
    walk = _Walk(profile, artifacts, installed, strict=forced and not allow_fallback)
    fallback: _Candidate | None = None
    for candidate in walk.candidates(_preferences(profile, runtime)):
        if candidate.verdict == "accepted" or allow_unproven:
            return walk.plan(candidate)
        if fallback is None:
            fallback = candidate
            walk.strict = False
        walk.say(f"{candidate.artifact} is unproven: an accepted artifact goes first")
    if fallback is None:
        raise walk.nothing_fits(runtime)
    walk.say("no accepted artifact can run here, so an unproven one is taken")
    return walk.plan(fallback)


def _preferences(profile: DeviceProfile, runtime: str | None) -> tuple[RuntimePreference, ...]:
    """Return the profile's preferences, or those for the one runtime asked for."""
    if runtime is None:
        return profile.runtimes
    if runtime not in FORMATS:
        raise UsageError(f"unknown runtime {runtime!r}", expected="one of " + ", ".join(FORMATS))
    listed = tuple(each for each in profile.runtimes if each.runtime == runtime)
    return listed or (RuntimePreference(runtime, PRECISIONS),)


class _Candidate(msgspec.Struct, frozen=True):
    preference: RuntimePreference
    providers: tuple[str, ...]
    artifact: str
    verdict: str

    def is_first_choice(self, precision: str) -> bool:
        """Tell whether this is its preference's first provider and first precision."""
        return (
            self.providers[:1] == self.preference.providers[:1] and precision == self.preference.precisions[0]
        )


class _Walk(msgspec.Struct):
    """One walk down the preferences; `reasons` grows with every step."""

    profile: DeviceProfile
    artifacts: Mapping[str, Artifact]
    installed: Mapping[str, InstalledRuntime] | None
    strict: bool
    reasons: list[str] = []
    absent: list[str] = []
    broken: list[str] = []

    def say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)

    def candidates(self, preferences: tuple[RuntimePreference, ...]) -> Iterator[_Candidate]:
        """Yield what can run here, best first."""
        for preference in preferences:
            if preference not in self.profile.runtimes:
                self.say(f"{preference.runtime} was asked for by hand; {self.profile.id} does not list it")
            names = self._fitting(preference)
            if names and self._is_installed(preference):
                yield from self._placements(preference, names)

    def _fitting(self, preference: RuntimePreference) -> list[str]:
        """Return the artifacts that the runtime opens and that compute rightly here, preferred first."""
        formats = FORMATS[preference.runtime]
        opens = [name for name, artifact in self.artifacts.items() if artifact.format in formats]
        if not opens:
            self.say(f"{preference.runtime}: the bundle has no {' or '.join(formats)} artifact here")
        order = (*preference.precisions, *PRECISIONS)
        opens.sort(key=lambda name: _rank(self.artifacts[name], formats, order))
        return [name for name in opens if self._is_sound(name, preference)]

    def _is_sound(self, name: str, preference: RuntimePreference) -> bool:
        artifact = self.artifacts[name]
        problem = _unsound(artifact, self.profile, preference.runtime)
        if artifact.gate.verdict == "refused":
            problem = "the gate refused it"
        if problem:
            self.say(f"{name}: {problem}")
        return not problem

    def _is_installed(self, preference: RuntimePreference) -> bool:
        if self.installed is None or preference.runtime in self.installed:
            return True
        problem: Problem | None = getattr(self.installed, "problems", {}).get(preference.runtime)
        if problem is None or problem.missing:
            self._step_down(preference, f"{preference.runtime} is not installed")
        else:
            self.broken.append(preference.runtime)
            self._step_down(preference, f"{preference.runtime} is installed but broken ({problem.why})")
        return False

    def _placements(self, preference: RuntimePreference, names: list[str]) -> Iterator[_Candidate]:
        """Yield the artifacts on the first provider, then on the next, as far as they are there."""
        wanted = preference.providers or ("",)
        there = wanted
        if self.installed is not None and preference.providers:
            there = _present(wanted, self.installed[preference.runtime].providers)
        for provider in wanted:
            if provider not in there:
                self._step_down(preference, f"{preference.runtime} has no {provider} here")
                continue
            usable = [name for name in names if self._takes_shapes(name, provider)]
            tail = there[there.index(provider) :] if provider else ()
            for name in usable:
                yield _Candidate(preference, tail, name, self.artifacts[name].gate.verdict)

    def _takes_shapes(self, name: str, provider: str) -> bool:
        artifact = self.artifacts[name]
        free = [spec.name for spec in artifact.inputs if -1 in spec.shape]
        if not (free and self.profile.static_shapes and provider not in _CPU_PROVIDERS):
            return True
        reason = f"{name}: {provider} takes static shapes only, and input {free[0]!r} has a free size"
        if self.strict:
            raise UsageError(
                reason,
                hint=f"Convert again with --target {self.profile.id}, or accept the next with --allow-fallback.",
            )
        self.say(reason)
        return False

    def _step_down(self, preference: RuntimePreference, lack: str) -> None:
        """Record that something is absent; under a forced plan, refuse."""
        if self.strict:
            wanted = preference.runtime + (f" with {preference.providers[0]}" if preference.providers else "")
            raise UnavailableError(
                f"{self.profile.id} cannot be had as asked: {lack}",
                got=self._what_is_there(),
                expected=wanted,
                hint=f"{self._mend()}Accept the next best with --allow-fallback, or leave the choice to EdgeKit.",
            )
        self.absent.append(preference.runtime)
        self.say(f"{lack}: stepping down")

    def _mend(self) -> str:
        """Return the command that looks at what is broken again, where anything is."""
        return "Once it is mended, let `edgekit doctor` try it again. " if self.broken else ""

    def _what_is_there(self) -> str:
        there = [
            f"{each.version} ({', '.join(each.providers)})" if each.providers else each.version
            for name, each in (self.installed or {}).items()
            if name != "null"
        ]
        return "; ".join(there) or "no runtime"

    def plan(self, candidate: _Candidate) -> Plan:
        """Return the plan for `candidate`, with all that was said on the way to it."""
        preference, artifact = candidate.preference, self.artifacts[candidate.artifact]
        here = isa_name(self.profile.arch, self.profile.isa)
        if artifact.isa and artifact.isa != here:
            self.say(
                f"{candidate.artifact} was judged on {artifact.isa}; {self.profile.id} {_differs(artifact.isa, here)}"
            )
        elif artifact.emulator:
            self.say(f"{candidate.artifact} was judged on {artifact.isa}, emulated ({artifact.emulator})")
        where = f" on {candidate.providers[0]}" if candidate.providers else ""
        rank = "the best of what is left"
        if preference == self.profile.runtimes[0] and candidate.is_first_choice(artifact.precision):
            rank = f"what {self.profile.id} prefers"
        self.say(f"{candidate.artifact} ({candidate.verdict}) in {preference.runtime}{where}: {rank}")
        return Plan(
            device=self.profile.id,
            artifact=candidate.artifact,
            runtime=preference.runtime,
            providers=candidate.providers,
            threads=preference.threads,
            options=preference.options_for(artifact.precision),
            reasons=tuple(self.reasons),
        )

    def nothing_fits(self, runtime: str | None) -> EdgeKitError:
        """Return the error for a walk that found nothing: what was missing decides its kind."""
        said = "; ".join(self.reasons)
        if self.absent:
            lacking = (name for name in self.absent if name in EXTRAS and name not in self.broken)
            extras = ",".join(dict.fromkeys(EXTRAS[name] for name in lacking))
            hint = self._mend() + (f"Run: pip install 'edgekit-deploy[{extras}]'." if extras else "")
            return UnavailableError(
                f"no runtime here can run the bundle on {self.profile.id}: {said}", hint=hint.strip() or None
            )
        if self.artifacts and all(each.gate.verdict == "refused" for each in self.artifacts.values()):
            return RefusedError(f"the gate refused every artifact of the bundle: {said}")
        return UsageError(
            f"no artifact of the bundle fits {runtime or self.profile.id}: {said}",
            got=", ".join(self.artifacts) or "no artifact",
            hint=f"Convert again with --target {self.profile.id}.",
        )


def _differs(judged: str, here: str) -> str:
    """Return what sets a device's instruction set apart; one of no known features may still have them."""
    more = judged.removeprefix(f"{here}+")
    return f"is {here}" if more == judged else f"is {here}, perhaps without {more}"


def _present(wanted: tuple[str, ...], available: Collection[str]) -> tuple[str, ...]:
    """Return the providers wanted that are there; OpenVINO calls the first of several NPUs `NPU.0`."""
    return tuple(
        name for name in wanted if any(each == name or each.startswith(f"{name}.") for each in available)
    )


def _rank(artifact: Artifact, formats: tuple[str, ...], order: tuple[str, ...]) -> tuple[int, int]:
    precision = order.index(artifact.precision) if artifact.precision in order else len(order)
    return precision, formats.index(artifact.format)


def _unsound(artifact: Artifact, profile: DeviceProfile, runtime: str) -> str:
    """Return why the device would compute a quantized artifact wrongly or not at all, or nothing.

    Only ONNX Runtime takes the integer types from the file; LiteRT's are fixed by its format and OpenVINO's
    kernels guard themselves.
    """
    if runtime != "onnxruntime" or artifact.precision != "int8":
        return ""
    made, need = artifact.recipe.options, profile.int8
    if need.reduce_range and not made.get("reduce_range"):
        return "8-bit weights may saturate on this CPU (no VNNI known, and made without reduce_range)"
    if need.symmetric_activations and not made.get("symmetric_activations"):
        return f"made with zero points other than 0, which the compiler of {profile.id} does not take"
    return ""
