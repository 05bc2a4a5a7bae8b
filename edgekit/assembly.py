"""Assembly: judged artifacts, golden set and references become a sealed bundle with its plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import __version__
from edgekit.bundle import Bundle, write_bundle
from edgekit.choose import choose
from edgekit.golden import GoldenSet, encode_golden, tolerance_for
from edgekit.manifest import Artifact, Golden, Manifest, Plan, SourceInfo
from edgekit.monitor.reference import build_reference, encode_references

if TYPE_CHECKING:
    import numpy as np

    from edgekit.devices import DeviceProfile
    from edgekit.tensors import TensorSpec

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """Everything that goes into a bundle but the plan, which is chosen here.

    Attributes:
        artifacts: Judged artifacts by name.
        files: Where each file of the artifacts is now, by its path in the bundle.
        answers: Each artifact's outputs on the evaluation inputs with the golden ones behind them.
        labels: Of the evaluation inputs, None without any.
        evaluated: How many evaluation inputs there are.
    """

    name: str
    version: int
    task: str
    source: SourceInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: Mapping[str, Artifact]
    files: Mapping[str, Path]
    golden: GoldenSet
    answers: Mapping[str, Mapping[str, np.ndarray]]
    labels: np.ndarray | None
    evaluated: int
    class_names: tuple[str, ...] = ()
    preprocess: tuple[dict[str, Any], ...] = ()
    postprocess: tuple[dict[str, Any], ...] = ()
    state: Mapping[str, str] = field(default_factory=dict)


def assemble(
    assembly: Assembly, profile: DeviceProfile, out: Path, *, allow_unproven: bool, overwrite: bool
) -> Bundle:
    """Choose the plan for the target and write the bundle.

    Raises:
        RefusedError: No artifact may be chosen for the target.
        UsageError: `out` exists and is not to be overwritten.
    """
    draft = Manifest(
        name=assembly.name,
        version=assembly.version,
        task=assembly.task,  # type: ignore[arg-type]
        source=assembly.source,
        inputs=assembly.inputs,
        outputs=assembly.outputs,
        artifacts=dict(assembly.artifacts),
        plan=Plan(profile.id, "", ""),
        golden=_golden(assembly),
        files={},
        preprocess=assembly.preprocess,
        postprocess=assembly.postprocess,
        state=dict(assembly.state),
        labels=assembly.class_names,
        edgekit=__version__,
    )
    plan = choose(profile, draft, None, allow_unproven=allow_unproven)
    contents: dict[str, Path | bytes] = dict(assembly.files)
    contents["golden.npz"] = encode_golden(assembly.golden)
    contents["reference.json"] = encode_references(_references(assembly, set(assembly.artifacts)))
    return write_bundle(out, msgspec.structs.replace(draft, plan=plan), contents, overwrite=overwrite)


def _golden(assembly: Assembly) -> Golden:
    golden = assembly.golden
    tolerance = {
        name: tolerance_for(
            {k: v[assembly.evaluated :] for k, v in assembly.answers[name].items()},
            golden,
            precision=artifact.precision,
            task=assembly.task,
        )
        for name, artifact in assembly.artifacts.items()
    }
    return Golden(n=golden.n, origin="real" if golden.origin == "real" else "synthetic", tolerance=tolerance)


def _references(assembly: Assembly, names: Collection[str]) -> dict[str, Any]:
    """Return what normal looks like for each artifact: from its own answers, labelled where labels exist."""
    n = assembly.evaluated
    return {
        name: build_reference(
            assembly.task,
            {k: v[:n] if n else v for k, v in assembly.answers[name].items()},
            assembly.labels,
        )
        for name in names
    }
