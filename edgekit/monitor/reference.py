"""The lab reference: what an artifact's outputs looked like on the evaluation data, and how often they were right.

One is made for each artifact, not for each model: an int8 softmax has other confidences than its float source,
and only a few distinct ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import InvalidFileError, UsageError

__all__ = [
    "MAX_BINS",
    "SAMPLES_PER_BIN",
    "SCHEMA",
    "Activation",
    "Reference",
    "bin_confidences",
    "build_reference",
    "classify",
    "confidence_output",
    "decode_references",
    "detect_activation",
    "encode_references",
]

SCHEMA = 1
MAX_BINS = 20
#: A bin's hit rate is worth little when it rests on fewer samples than this.
SAMPLES_PER_BIN = 25
#: How far beyond the reference's own confidences a confidence still counts as supported: rounding, no more.
_EDGE_SLACK = 1e-6
#: An int8 softmax of many classes rounds most of them to zero, so its rows need not sum to one.
_ROW_SUM_TOLERANCE = 0.25
_RANGE_TOLERANCE = 1e-3

Activation = Literal["probabilities", "logits", "none"]


class Reference(msgspec.Struct, frozen=True):
    """What normal looks like for one artifact.

    With B confidence bins there are B + 1 edges; bin b (from 1) holds the confidences in
    (edges[b − 1], edges[b]]. Two more bins, which the reference leaves empty, hold what is below its lowest
    confidence (bin 0) and above its highest (bin B + 1): counts of a window have B + 2 entries.

    Attributes:
        task: The bundle's task.
        n: Reference samples.
        output: The output that carries the confidence; empty where none does.
        activation: What that output is: probabilities, or logits that still need a softmax.
        classes: Number of classes; two where one probability stands for a binary answer.
        edges: Ascending, B + 1 of them; empty without confidences.
        counts: Reference samples in each of the B bins.
        hits: Of those, how many were answered right; empty where there were no labels.
        class_mix: Reference samples by predicted class.
    """

    task: str
    n: int
    output: str = ""
    activation: Activation = "none"
    classes: int = 0
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    hits: tuple[int, ...] = ()
    class_mix: tuple[int, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse what cannot be a reference, on reading too."""
        if len(self.edges) != (len(self.counts) + 1 if self.counts else 0):
            raise ValueError("a reference of B bins has B + 1 edges")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("the edges of a reference ascend")
        if not all(map(math.isfinite, self.edges)) or min(self.counts, default=1) < 1:
            raise ValueError("every bin of a reference has finite edges and a sample")
        if self.hits and (len(self.hits) != len(self.counts) or not self._hits_fit()):
            raise ValueError("the hits of each bin lie between 0 and its count")
        if self.class_mix and len(self.class_mix) != self.classes:
            raise ValueError("the class mix has one entry for each class")

    def _hits_fit(self) -> bool:
        return all(0 <= hit <= count for hit, count in zip(self.hits, self.counts, strict=True))

    @property
    def bins(self) -> int:
        """Effective number of confidence bins, after ties were merged; 0 without confidences."""
        return len(self.counts)

    @property
    def labelled(self) -> bool:
        """Whether it knows how often each bin was right."""
        return bool(self.hits)

    @property
    def accuracy(self) -> float | None:
        """Share of the reference samples that were answered right; None without labels."""
        return sum(self.hits) / sum(self.counts) if self.hits else None

    def rates(self) -> np.ndarray:
        """Return P(correct) by bin, float64 [B + 2]; an unsupported bin takes its neighbour's."""
        inner = np.array(self.hits, np.float64) / np.array(self.counts, np.float64)
        return np.concatenate([inner[:1], inner, inner[-1:]])


def confidence_output(task: str, outputs: Mapping[str, np.ndarray]) -> str:
    """Return the name of the output that holds one score per class, `""` where no output does.

    Args:
        task: Only a classification has one.
        outputs: Arrays by name; float [N, C] is looked for, in the given order.
    """
    if task != "classification":
        return ""
    for name, array in outputs.items():
        if array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] > 0:
            return name
    return ""


def detect_activation(scores: np.ndarray) -> Activation:
    """Tell probabilities from logits.

    Args:
        scores: float [N, C], finite. One column is a binary answer: probability or logit of the second class.

    Returns:
        `probabilities` when all lie in [0, 1] and the rows sum to about one, else `logits`.
    """
    if scores.min() < -_RANGE_TOLERANCE or scores.max() > 1.0 + _RANGE_TOLERANCE:
        return "logits"
    if scores.shape[1] == 1:
        return "probabilities"
    off = abs(float(scores.sum(axis=1, dtype=np.float64).mean()) - 1.0)
    return "probabilities" if off <= _ROW_SUM_TOLERANCE else "logits"


def classify(scores: np.ndarray, activation: Activation) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted classes and the confidence in them.

    Args:
        scores: float [N, C], finite.
        activation: What the scores are.

    Returns:
        Classes, int64 [N], and confidences, float64 [N] in [0, 1]: the largest probability.
    """
    wide = scores.astype(np.float64)
    if wide.shape[1] == 1:
        rest = 1.0 - wide if activation == "probabilities" else np.zeros_like(wide)
        wide = np.concatenate([rest, wide], axis=1)
    classes = wide.argmax(axis=1)
    top = wide.max(axis=1)
    if activation == "logits":
        return classes, 1.0 / np.exp(wide - top[:, None]).sum(axis=1)
    return classes, top


def bin_confidences(edges: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence.

    Args:
        edges: float64 [B + 1], ascending.
        confidences: float64 [N].

    Returns:
        int64 [N] in 0 … B + 1, where the first and last mean outside the reference.
    """
    return np.searchsorted(edges, confidences, side="left")


def build_reference(
    task: str, outputs: Mapping[str, np.ndarray], labels: np.ndarray | None = None
) -> Reference:
    """Make the reference of one artifact from its outputs on the evaluation data.

    Args:
        task: The bundle's task.
        outputs: The artifact's outputs by name, samples along the first axis.
        labels: int [N], the right classes; None where there are none.

    Returns:
        A reference without bins where the outputs carry no confidence.

    Raises:
        UsageError: There are not as many labels as samples.
    """
    n = len(next(iter(outputs.values()))) if outputs else 0
    name = confidence_output(task, outputs)
    if not name:
        return Reference(task, n)
    scores = outputs[name]
    truth = None if labels is None else _class_labels(labels, len(scores))
    finite = np.isfinite(scores).all(axis=1)
    scores, truth = scores[finite], truth if truth is None else truth[finite]
    if not len(scores):
        return Reference(task, n)
    activation = detect_activation(scores)
    classes = max(2, scores.shape[1])
    predicted, confidence = classify(scores, activation)
    edges = _quantile_edges(confidence)
    where = bin_confidences(edges, confidence) - 1
    bins = len(edges) - 1
    hits = () if truth is None else np.bincount(where[predicted == truth], minlength=bins).tolist()
    return Reference(
        task=task,
        n=n,
        output=name,
        activation=activation,
        classes=classes,
        edges=tuple(edges.tolist()),
        counts=tuple(np.bincount(where, minlength=bins).tolist()),
        hits=tuple(hits),
        class_mix=tuple(np.bincount(predicted, minlength=classes).tolist()),
    )


def _class_labels(labels: np.ndarray, n: int) -> np.ndarray:
    flat = labels.reshape(-1)
    if len(flat) != n:
        raise UsageError("labels do not fit the outputs", got=list(labels.shape), expected=[n])
    return flat


def _quantile_edges(confidence: np.ndarray) -> np.ndarray:
    """Return B + 1 edges with at least n // MAX_BINS (and `SAMPLES_PER_BIN`) samples between neighbours.

    Equal confidences are never parted; an inner edge lies midway between two confidences that were seen, so
    that rounding on the device moves no sample to another bin.
    """
    values, counts = np.unique(confidence, return_counts=True)
    n = confidence.size
    least = max(n // MAX_BINS, min(SAMPLES_PER_BIN, n))
    inner: list[float] = []
    start = 0
    for after, reached in enumerate(np.cumsum(counts)[:-1].tolist(), 1):
        if reached - start >= least and n - reached >= least:
            inner.append(_between(float(values[after - 1]), float(values[after])))
            start = reached
    return np.array([values[0] - _EDGE_SLACK, *inner, values[-1] + _EDGE_SLACK])


def _between(lower: float, upper: float) -> float:
    """Return an edge with `lower` at or below it and `upper` above it, neighbouring floats included."""
    middle = (lower + upper) / 2.0
    return middle if middle < upper else lower


class _SchemaProbe(msgspec.Struct):
    schema: int = 0


def encode_references(references: Mapping[str, Reference]) -> bytes:
    """Return `{artifact: Reference}` as canonical JSON: keys sorted, no white space, one newline."""
    return msgspec.json.encode(msgspec.to_builtins(dict(references)), order="sorted") + b"\n"


def decode_references(data: bytes, where: str = "reference.json") -> dict[str, Reference]:
    """Read what `encode_references` wrote.

    Raises:
        InvalidFileError: It is not JSON, contradicts itself, or its schema is newer than this EdgeKit's.
    """
    try:
        for artifact, probe in msgspec.json.decode(data, type=dict[str, _SchemaProbe]).items():
            if probe.schema > SCHEMA:
                raise InvalidFileError(
                    f"{where} has a newer schema for {artifact}",
                    got=probe.schema,
                    expected=f"at most {SCHEMA}",
                    hint="Install a newer EdgeKit.",
                )
        return msgspec.json.decode(data, type=dict[str, Reference])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for broken UTF-8
        raise InvalidFileError(f"{where} is not a reference: {error}") from error
