"""Embedding: nearness to the source's own embedding, and retrieval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import Metric, Outputs, Resampler, prepared_metric, scored_output

__all__ = ["METRICS", "cosines"]

#: Queries that are compared with the whole gallery at once: bounds the memory.
_BLOCK = 1024


def _rows(array: np.ndarray) -> np.ndarray:
    """Return one vector a sample, float64 [N, D], of length one; a vector of zeros stays zero."""
    flat = np.asarray(array, np.float64).reshape(len(array), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: np.ndarray = flat / np.where(length > 0.0, length, 1.0)
    return unit


def cosines(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the cosine between each pair of embeddings, float64 [N]; 0 beside a vector of zeros.

    Args:
        got: float [N, …].
        want: float [N, …], as many values for each sample.
    """
    ours, theirs = _rows(got), _rows(want)
    if ours.shape != theirs.shape:
        raise UsageError("embeddings differ in size", got=list(ours.shape), expected=list(theirs.shape))
    cosine: np.ndarray = np.clip((ours * theirs).sum(axis=1), -1.0, 1.0)
    return cosine


def _prepare_cosine(outputs: Outputs, target: np.ndarray) -> Resampler:
    each = cosines(scored_output(outputs), target)
    return lambda index: float(each[index].mean())


def _retrieved(k: int) -> Callable[[Outputs, np.ndarray], np.ndarray]:
    """Return what tells which queries find their like among the `k` nearest others, by cosine.

    Every sample is a query and all others are the gallery. A sample that is the only one of its group cannot be
    found by anybody and is no query. Equal cosines count in the order of the samples.

    Source: H. Oh Song et al., Deep metric learning via lifted structured feature embedding, CVPR 2016 (Recall@K).
    """

    def found(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        vectors, groups = _rows(scored_output(outputs)), np.asarray(labels)
        if groups.shape != (len(vectors),):
            raise UsageError("retrieval needs one group for each sample", got=list(groups.shape))
        _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
        queries = np.flatnonzero(size[group] > 1)
        if not len(queries):
            raise UsageError("no group has two samples: nothing can be found")
        parts = [_hits(vectors, groups, queries[i : i + _BLOCK], k) for i in range(0, len(queries), _BLOCK)]
        return np.concatenate(parts)

    return found


def _hits(vectors: np.ndarray, groups: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    near = vectors[queries] @ vectors.T
    near[np.arange(len(queries)), queries] = -np.inf
    best = np.argsort(-near, axis=1, kind="stable")[:, :k]
    right: np.ndarray = (groups[best] == groups[queries][:, None]).any(axis=1)
    return right.astype(np.float64)


def _recall(k: int) -> Metric:
    found = _retrieved(k)

    def value(outputs: Outputs, labels: np.ndarray) -> float:
        return float(found(outputs, labels).mean())

    return Metric(f"recall@{k}", True, ("embedding",), value, found)


METRICS = (
    prepared_metric("cosine", ("embedding",), _prepare_cosine, target="source"),
    _recall(1),
    _recall(5),
)
