"""The report of a conversion: `report.json` for programs, `report.html` for people. Written on refusal too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import __version__
from edgekit.ladder import Attempt, front, loss
from edgekit.page import page
from edgekit.state import write_durably

if TYPE_CHECKING:
    from edgekit.evidence import WorstSample
    from edgekit.manifest import GateResult, Plan, Recipe

__all__ = ["Row", "front_of", "row_as_data", "write_report"]


@dataclass(frozen=True)
class Row:
    """One artifact in the table: what became of it.

    Attributes:
        status: `accepted`, `unproven`, `refused`, `failed` or `skipped`.
        bytes: Size of its files; 0 where there are none.
        p50_ms: Median latency on this machine, in milliseconds; 0 where not measured.
        place: Where that was measured.
        placement: What ran where.
        peak_mib: Peak memory of the worker that made it.
        attempts: Every recipe that was tried for it, in order.
        best: The index of the one that it was made by.
        layers: Quantized layer to its signal-to-quantization-noise ratio in dB, where measured.
        confusion: Of a classification, rows are the source's class, columns the artifact's.
        worst: Samples on which it is furthest from the source, worst first.
    """

    name: str
    status: str
    reasons: tuple[str, ...]
    bytes: int = 0
    gate: GateResult | None = None
    p50_ms: float = 0.0
    place: str = "host"
    placement: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None
    peak_mib: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    best: int = 0
    layers: Mapping[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    worst: tuple[WorstSample, ...] = ()


def front_of(rows: Sequence[Row]) -> list[str]:
    """Return the artifacts that may ship and that no other beats in size, loss and latency together."""
    return front(
        {
            row.name: (row.bytes, loss(row.attempts[row.best]), row.p50_ms)
            for row in rows
            if row.status in ("accepted", "unproven") and row.attempts
        }
    )


def row_as_data(row: Row) -> dict[str, Any]:
    """Return one artifact's row as plain data, with stable keys."""
    gate = msgspec.to_builtins(row.gate) if row.gate is not None else {}
    return {
        "artifact": row.name,
        "status": row.status,
        "reasons": list(row.reasons),
        "bytes": row.bytes,
        "parity": gate.get("parity"),
        "metric": gate.get("metric"),
        "calibration_fit": gate.get("calibration_fit", []),
        "p50_ms": round(row.p50_ms, 4) or None,
        "p50_place": row.place if row.p50_ms else None,
        "placement": dict(row.placement),
        "recipe": msgspec.to_builtins(row.recipe) if row.recipe is not None else None,
        "attempts": [msgspec.to_builtins(attempt) for attempt in row.attempts],
        "layers_sqnr_db": {name: round(value, 2) for name, value in row.layers.items()},
        "confusion": _confusion_data(row.confusion),
        "worst": [_worst_data(sample) for sample in row.worst],
        "worker_peak_mib": round(row.peak_mib, 1) or None,
    }


def _confusion_data(counts: tuple[tuple[int, ...], ...] | None) -> dict[str, Any] | None:
    """Return a square of counts as its side, and [source's class, artifact's class, count] of what is not 0."""
    if counts is None:
        return None
    cells = [[i, j, count] for i, row in enumerate(counts) for j, count in enumerate(row) if count]
    return {"classes": len(counts), "cells": cells}


def _worst_data(sample: WorstSample) -> dict[str, Any]:
    error = sample.error if math.isfinite(sample.error) else None
    return {
        "index": sample.index,
        "error": error,
        "label": sample.label,
        "source": [[name, round(score, 6)] for name, score in sample.source],
        "artifact": [[name, round(score, 6)] for name, score in sample.artifact],
    }


def write_report(
    folder: Path,
    *,
    rows: Sequence[Row],
    plan: Plan | None,
    digest: str | None,
    source: Mapping[str, str],
    target: str,
    task: str,
    notes: Sequence[str],
    seconds: float,
    isa: str,
    labels: Sequence[str] = (),
) -> None:
    """Write `report.json` and `report.html` into `folder`, replacing those of an earlier run.

    Args:
        folder: Made where it does not exist.
        rows: Every artifact.
        plan: The choice; None where no bundle was written.
        digest: The bundle's.
        source: `file`, `sha256`, and the version of every tool that read it.
        target: The device profile's id.
        task: The model's.
        notes: What was not measured, what was inferred.
        seconds: The conversion took.
        isa: Instruction set that the artifacts were judged on.
        labels: Class names, in the model's order.
    """
    folder.mkdir(exist_ok=True)
    data = {
        "schema": 1,
        "edgekit": __version__,
        "target": target,
        "task": task,
        "source": dict(source),
        "judged_on": isa,
        "digest": digest,
        "plan": msgspec.to_builtins(plan) if plan is not None else None,
        "artifacts": [row_as_data(row) for row in rows],
        "front": front_of(rows),
        "labels": list(labels),
        "notes": list(notes),
        "seconds": round(seconds, 2),
    }
    text = msgspec.json.format(msgspec.json.encode(data), indent=2)
    write_durably(folder / "report.json", text + b"\n")
    pictures = {row.name: [sample.picture for sample in row.worst] for row in rows}
    write_durably(folder / "report.html", page(data, pictures).encode())
    recipes = {row.name: row.recipe for row in rows if row.recipe is not None and row.status != "failed"}
    write_durably(
        folder / "recipes.json", msgspec.json.format(msgspec.json.encode(recipes), indent=2) + b"\n"
    )
