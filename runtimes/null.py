"""The runtime without an engine: golden outputs for golden inputs, a seeded function of the input otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtimes.base import ModelFiles, Runtime, Session, SessionOptions
from edgekit.tensors import TensorSpec, sample_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Null"]


class Null(Runtime):
    """Answers without running the model, so that everything around a runtime is tried without one.

    It is chosen by name only. Its options: none.
    """

    name = "null"
    formats = ("tflite", "onnx", "openvino")
    extra = ""
    no_op_times = "it runs none"

    def version(self) -> str:  # noqa: D102  the contract is the base class's
        return "null 1"

    def providers(self) -> tuple[str, ...]:  # noqa: D102  the contract is the base class's
        return ("CPU",)

    def load(self, files: ModelFiles, options: SessionOptions) -> Session:  # noqa: D102  the contract is the base class's
        if options.extra:
            raise UsageError(f"null has no option {min(options.extra)!r}")
        golden = _Golden.read(files)
        return NullSession(files, golden)


class _Golden:
    """The golden set by the bytes of its inputs."""

    def __init__(
        self, files: ModelFiles, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        self.outputs = outputs
        n = min((len(array) for array in inputs.values()), default=0)
        # a golden set holds no state: of a sequence, a step is known by what goes in from outside
        self.names = [spec.name for spec in files.inputs if spec.name in inputs or not inputs]
        self.rows = {_key([inputs[name][row : row + 1] for name in self.names]): row for row in range(n)}
        self.probable = {name: _probabilities(array) for name, array in outputs.items()}

    @classmethod
    def read(cls, files: ModelFiles) -> _Golden:
        if files.golden is None:
            return cls(files, {}, {})
        from edgekit.golden import read_golden

        golden = read_golden(files.golden, "real")
        return cls(files, golden.inputs, golden.outputs)


def _key(sample: list[np.ndarray]) -> bytes:
    """Return a digest of one sample's raw bytes, dtypes and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for array in sample:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.kind in "OSU" else array.tobytes())
    return digest.digest()


def _probabilities(array: np.ndarray) -> bool:
    """Tell whether the rows of float [N, …, C] look like probabilities."""
    if array.dtype.kind != "f" or array.ndim < 2 or array.shape[-1] < 2 or not array.size:
        return False
    return bool((array >= 0).all() and np.allclose(array.sum(axis=-1, dtype=np.float64), 1, atol=1e-3))


class NullSession(Session):
    """Answers row by row, so that a batch gives what its rows give alone."""

    fresh_outputs = True

    def __init__(self, files: ModelFiles, golden: _Golden) -> None:
        self.inputs, self.outputs = files.inputs, files.outputs
        self.placement = {"null": "no node is run"}
        self._golden: Any = golden

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [feed[name] for name in self._golden.names]
        sizes = {array.shape[:1] for array in arrays}
        if len(sizes) != 1 or sizes == {()}:  # no batch in common: one sample
            keys = [_key(arrays)]
        else:
            keys = [_key([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
        return {spec.name: self._answer(spec, keys) for spec in self.outputs}

    def _answer(self, spec: TensorSpec, keys: list[bytes]) -> np.ndarray:
        """Return the output `spec` for every sample; a declared batch of another size repeats the first."""
        rows = [self._row(spec, key) for key in keys]
        if not spec.shape:
            return rows[0].reshape(())
        if spec.shape[0] not in (-1, len(rows)):
            rows = [rows[0]] * spec.shape[0]
        shape = (0, *sample_shape(spec)[1:])
        return np.stack(rows) if rows else np.empty(shape, _numpy_dtype(spec))

    def _row(self, spec: TensorSpec, key: bytes) -> np.ndarray:
        known = self._golden.rows.get(key)
        expected = self._golden.outputs.get(spec.name)
        if known is not None and expected is not None:
            row: np.ndarray = expected[known]
            return row
        rng = np.random.default_rng(int.from_bytes(key, "big"))
        shape = expected.shape[1:] if expected is not None else sample_shape(spec)[1:]
        if expected is None or not expected.size:
            return _draw(spec, shape, rng)
        if self._golden.probable[spec.name]:
            odds = np.exp(3 * rng.standard_normal(shape))
            shares: np.ndarray = odds / odds.sum(axis=-1, keepdims=True)
            return shares.astype(expected.dtype)
        # the golden outputs' own values keep dtype, range and meaning
        drawn: np.ndarray = rng.choice(expected.reshape(-1), size=shape)
        return drawn

    def close(self) -> None:
        self._golden = None


def _numpy_dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    return np.dtype(object if spec.dtype == "bytes" else spec.dtype)


def _draw(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.generic]:
    """Return seeded values of the right dtype: nothing is known of the range."""
    if spec.dtype == "bytes":
        return np.full(shape, b"null", object)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
