"""`/metrics`: the Prometheus text format, written from the monitor's own buckets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from edgekit.daemon.http1 import Reply
from edgekit.monitor.buckets import cumulative

if TYPE_CHECKING:
    from edgekit.daemon.lane import Lane
    from edgekit.monitor.monitor import Totals

__all__ = ["exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HELP = {
    "edgekit_ready": ("gauge", "1 when every model has passed its self-test and no shutdown is under way."),
    "edgekit_http_requests_total": ("counter", "Requests answered, by status; model is empty outside infer."),
    "edgekit_grpc_requests_total": ("counter", "Inference calls answered over gRPC, by status."),
    "edgekit_queue_depth": ("gauge", "Calls that wait for a model or run in its worker."),
    "edgekit_inferences_total": ("counter", "Inferences answered; a batch of k counts as k."),
    "edgekit_inference_errors_total": ("counter", "Inferences that failed in the runtime."),
    "edgekit_inferences_unsampled_total": ("counter", "Inferences whose statistics were not kept."),
    "edgekit_nonfinite_outputs_total": ("counter", "Inferences whose output held NaN or infinity."),
    "edgekit_inference_duration_seconds": ("histogram", "Time in the runtime, by call."),
    "edgekit_predicted_class_total": ("counter", "Inferences by predicted class."),
    "edgekit_estimated_accuracy": ("gauge", "Accuracy estimated without labels, of the last closed window."),
    "edgekit_estimated_accuracy_low": ("gauge", "Lower end of its 95 % interval."),
    "edgekit_estimated_accuracy_high": ("gauge", "Upper end of its 95 % interval."),
    "edgekit_estimated_accuracy_valid": ("gauge", "0 when the estimate must not be believed."),
    "edgekit_detector_log_e": ("gauge", "Natural logarithm of a detector's evidence."),
    "edgekit_detector_log_threshold": ("gauge", "Evidence at which it alarms."),
    "edgekit_detector_alarm": ("gauge", "1 while it alarms."),
}


def exposition(lanes: Iterable[Lane], answered: Mapping[int, int], *, ready: bool) -> Reply:
    """Return the reply to a scrape."""
    families = _Families()
    families.add("edgekit_ready", {}, float(ready))
    for status, count in sorted(answered.items()):
        families.add("edgekit_http_requests_total", {"model": "", "code": str(status)}, count)
    for lane in lanes:
        _add_lane(families, lane)
    return Reply(200, (families.text().encode(),), CONTENT_TYPE)


def _add_lane(families: _Families, lane: Lane) -> None:
    labels = {"model": lane.signature.name, "version": lane.signature.version}
    for status, count in sorted(lane.answered.items(), key=str):
        name = "edgekit_http_requests_total" if isinstance(status, int) else "edgekit_grpc_requests_total"
        families.add(name, {**labels, "code": str(status)}, count)
    families.add("edgekit_queue_depth", labels, lane.waiting)
    if lane.model.monitor is not None:
        _add_totals(families, labels, lane.model.monitor.totals())


def _add_totals(families: _Families, labels: Mapping[str, str], totals: Totals) -> None:
    families.add("edgekit_inferences_total", labels, totals.n)
    families.add("edgekit_inference_errors_total", labels, totals.errors)
    families.add("edgekit_inferences_unsampled_total", labels, totals.unsampled)
    families.add("edgekit_nonfinite_outputs_total", labels, totals.nonfinite)
    for bound, count in cumulative(totals.latency):
        families.add(
            "edgekit_inference_duration_seconds", {**labels, "le": _number(bound)}, count, suffix="_bucket"
        )
    families.add("edgekit_inference_duration_seconds", labels, totals.latency.sum_s, suffix="_sum")
    families.add("edgekit_inference_duration_seconds", labels, totals.calls, suffix="_count")
    for index, count in enumerate(totals.classes):
        families.add("edgekit_predicted_class_total", {**labels, "class": str(index)}, count)
    if totals.accuracy is not None:
        estimate = totals.accuracy
        families.add("edgekit_estimated_accuracy", labels, estimate.estimate)
        families.add("edgekit_estimated_accuracy_low", labels, estimate.low)
        families.add("edgekit_estimated_accuracy_high", labels, estimate.high)
        families.add("edgekit_estimated_accuracy_valid", labels, float(estimate.valid))
    for detector in totals.detectors:
        named = {**labels, "detector": detector.name}
        families.add("edgekit_detector_log_e", named, detector.log_e)
        families.add("edgekit_detector_log_threshold", named, detector.log_threshold)
        families.add("edgekit_detector_alarm", named, float(detector.alarm))


class _Families:
    """Samples by metric: the format wants all of one together."""

    def __init__(self) -> None:
        self._samples: dict[str, list[str]] = {}

    def add(self, name: str, labels: Mapping[str, str], value: float, suffix: str = "") -> None:
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        where = f"{name}{suffix}{{{inner}}}" if inner else f"{name}{suffix}"
        self._samples.setdefault(name, []).append(f"{where} {_number(value)}\n")

    def text(self) -> str:
        parts: list[str] = []
        for name, samples in self._samples.items():
            kind, sentence = _HELP[name]
            parts += [f"# HELP {name} {sentence}\n", f"# TYPE {name} {kind}\n", *samples]
        return "".join(parts)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(float(value)) if value != int(value) else str(int(value))
