"""What a user asks of a conversion, and what is refused from the asking alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.gate import Policy
from edgekit.manifest import Recipe
from edgekit.process import WorkerLimits
from edgekit.sources import SourceOptions

__all__ = ["ConvertRequest", "bundle_name", "check_request", "report_path"]

#: What a report may hold as the name of its model.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert, for what, and how strictly. Paths are the user's; see `edgekit convert --help`."""

    model: Path
    target: str
    out: Path
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    task: str | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    label_column: str | None = None
    metric: str | None = None
    policy: Policy = field(default_factory=Policy)
    allow_unproven: bool = False
    preprocess: tuple[dict[str, Any], ...] = ()
    postprocess: tuple[dict[str, Any], ...] = ()
    state: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    golden: str = "real"
    prove: str = "host"
    name: str | None = None
    version: int = 1
    jobs: int = 2
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    seed: int = 0
    overwrite: bool = False
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    source_options: SourceOptions = field(default_factory=SourceOptions)


def check_request(request: ConvertRequest) -> None:
    """Refuse what cannot be done whatever the model is.

    Raises:
        UsageError: The output or its report is in the way, or has no folder; the name is none; a column of no data.
    """
    _check_out(request)
    bundle_name(request)
    if request.label_column is not None and request.evaluation is None and request.calibration is None:
        raise UsageError("--label-column names a column of no data", hint="Give --eval with a .csv file.")


def _check_out(request: ConvertRequest) -> None:
    if request.out.exists() and not request.overwrite:
        raise UsageError(f"{request.out} exists", hint="Give another name, or --overwrite.")
    report = report_path(request.out)
    if report.exists() and not report.is_dir():
        raise UsageError(
            f"{report} is in the way: the report's folder goes there", hint="Move it, or give another OUT."
        )
    if not request.out.absolute().parent.is_dir():
        raise UsageError(f"the folder {request.out.absolute().parent} does not exist", hint="Make it first.")


def bundle_name(request: ConvertRequest) -> str:
    """Return the bundle's name: the one asked for, else the model file's up to its first dot.

    It is a part of the daemon's addresses and stands in every report: one line, no slash.
    """
    name = request.name if request.name is not None else request.model.name.split(".")[0]
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable() or "/" in name or name in (".", ".."):
        raise UsageError(
            "the bundle's name cannot be used",
            got=repr(name[:80]),
            expected=f"1 to {_LONGEST_NAME} characters on one line, no slash",
            hint="Give another with --name.",
        )
    return name


def report_path(out: Path) -> Path:
    """Return the report's folder: `OUT.report` beside the bundle."""
    return out.with_name(out.name.removesuffix(".edgekit") + ".report")
