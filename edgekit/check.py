"""Check: what `convert` would do with a model and a target, and why; nothing is converted."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgekit.devices import DeviceProfile, load_profile
from edgekit.factory import Factory
from edgekit.process import WorkerLimits
from edgekit.recipes import onnx_versions, preference_for, wanted_artifacts
from edgekit.routes import Route, converters
from edgekit.sources import identify
from edgekit.tasks import Described

__all__ = ["ArtifactOutlook", "Outlook", "check"]


@dataclass(frozen=True)
class ArtifactOutlook:
    """What would become of one artifact.

    Attributes:
        possible: A route exists and everything on it is installed.
        route: The shortest route, empty where there is none.
        runtime: What would run it on the target.
        reasons: Why not, or what is needed.
    """

    name: str
    possible: bool
    route: Route
    runtime: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Outlook:
    """What `convert` would do."""

    kind: str
    target: str
    source: Described
    artifacts: tuple[ArtifactOutlook, ...]
    notes: tuple[str, ...]

    @property
    def possible(self) -> bool:
        """Whether anything can be made."""
        return any(artifact.possible for artifact in self.artifacts)


def check(model: Path, target: str) -> Outlook:
    """Tell what `convert` would make of `model` for `target`.

    Raises:
        UsageError: No such model or target.
        InvalidFileError: The model file is not what its name says.
    """
    profile = load_profile(target)
    kind = identify(model)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        factory = Factory(Path(scratch), WorkerLimits(), jobs=1)
        try:
            source = factory.describe(kind, model)
        finally:
            factory.close()
    table = converters()
    artifacts = []
    for wanted in wanted_artifacts(profile, kind, table, calibrated=True):
        route = wanted.routes[0] if wanted.routes else ()
        missing = sorted({m for step in route for m in table[step].needs if find_spec(m) is None})
        reasons = [wanted.skipped] if wanted.skipped else []
        reasons += [f"needs {m}: pip install 'edgekit-deploy[convert]'" for m in missing]
        reasons += _shape_faults(source, profile)
        possible = not reasons
        if wanted.precision == "int8":
            reasons.append("needs --calibration")
        runtime = preference_for(profile, wanted.format).runtime
        artifacts.append(ArtifactOutlook(wanted.name, possible, route, runtime, tuple(reasons)))
    return Outlook(kind, target, source, tuple(artifacts), _notes(source, profile))


def _shape_faults(source: Described, profile: DeviceProfile) -> list[str]:
    if not profile.static_shapes:
        return []
    return [
        f"{profile.id} takes fixed shapes only, and input {spec.name!r} has free sizes beyond the batch: "
        f"{list(spec.shape)}"
        for spec in source.inputs
        if -1 in spec.shape[1:]
    ]


def _notes(source: Described, profile: DeviceProfile) -> tuple[str, ...]:
    opset, ir = onnx_versions(profile)
    notes = [f"ONNX is written at opset {opset} at most, IR version {ir}: {profile.id} reads them"]
    if profile.static_shapes and any(spec.shape[:1] == (-1,) for spec in source.inputs):
        notes.append(f"the batch would be fixed at 1: {profile.id} takes fixed shapes only")
    if profile.install == "export-only":
        notes.append(f"{profile.id} can only be exported to: EdgeKit itself does not run there")
    return tuple(notes)
