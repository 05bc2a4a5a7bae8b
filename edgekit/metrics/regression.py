"""Regression: errors in the targets' units, and the share of variance explained."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import Metric, Outputs, not_per_sample, scored_output

__all__ = ["METRICS"]


def _residuals(outputs: Outputs, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction minus target, and the targets, both float64 [N, K]."""
    got = np.asarray(scored_output(outputs), np.float64)
    want = np.asarray(labels, np.float64)
    if got.size != want.size or len(got) != len(want):
        raise UsageError("targets do not fit the output", got=list(want.shape), expected=list(got.shape))
    want = want.reshape(len(want), -1)
    return got.reshape(want.shape) - want, want


def _mae(outputs: Outputs, labels: np.ndarray) -> float:
    return float(np.abs(_residuals(outputs, labels)[0]).mean())


def _rmse(outputs: Outputs, labels: np.ndarray) -> float:
    return float(np.sqrt((_residuals(outputs, labels)[0] ** 2).mean()))


def _r2(outputs: Outputs, labels: np.ndarray) -> float:
    """Return the mean R² over the targets; of a constant target, 1 where it is hit exactly, else 0."""
    error, want = _residuals(outputs, labels)
    unexplained = (error**2).sum(axis=0)
    total = ((want - want.mean(axis=0)) ** 2).sum(axis=0)
    constant = total == 0.0
    shares = 1.0 - unexplained / np.where(constant, 1.0, total)
    return float(np.where(constant, (unexplained == 0.0).astype(np.float64), shares).mean())


_TASKS = ("regression",)

METRICS = (
    Metric("mae", False, _TASKS, _mae, not_per_sample, unit="label-range"),
    Metric("rmse", False, _TASKS, _rmse, not_per_sample, unit="label-range"),
    Metric("r2", True, _TASKS, _r2, not_per_sample),
)
