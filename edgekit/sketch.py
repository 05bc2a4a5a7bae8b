"""A seeded sample of values that pass by once: percentiles of any amount of data in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["ValueSketch"]

#: Values kept of each input: the 1st percentile of a million values is sure to a hundredth of a percentile.
_MOST = 1 << 20
#: Values looked at in each sample, at random places where it has more.
_OF_SAMPLE = 4096


class ValueSketch:
    """Keeps all values of float inputs while they are few, then as many by lot; the same for the same seed.

    What is kept does not depend on how the data is parted into blocks.

    Args:
        seed: Of the lots.
        most: Values kept of each input.
    """

    def __init__(self, seed: int = 0, most: int = _MOST) -> None:
        self._seed, self._most = seed, most
        self._inputs: dict[str, _Lots] = {}

    def add(self, block: Mapping[str, np.ndarray]) -> None:
        """Look at the next samples, arrays [k, …] by input name."""
        for name, array in block.items():
            if array.dtype.kind == "f":
                self._inputs.setdefault(name, _Lots(self._seed, self._most)).add(array)

    def values(self) -> dict[str, np.ndarray]:
        """Return the kept values by input name, [at most `most`], in any order."""
        return {name: lots.values() for name, lots in self._inputs.items()}


class _Lots:
    """The values of one input that have drawn the smallest lots."""

    def __init__(self, seed: int, most: int) -> None:
        self._places, self._lots = (np.random.default_rng([seed, stream]) for stream in (0, 1))
        self._most = most
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._n = 0

    def add(self, array: np.ndarray) -> None:
        rows = array.reshape(len(array), -1)
        size = rows.shape[1]
        if size > _OF_SAMPLE:
            places = self._places.integers(0, size, (len(rows), _OF_SAMPLE))
            rows = np.take_along_axis(rows, places, axis=1)
        chosen = rows.reshape(-1)
        self._kept.append((self._lots.random(len(chosen)), chosen.copy()))
        self._n += len(chosen)
        if self._n > 2 * self._most:
            self._draw()

    def _draw(self) -> None:
        lots, values = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        if len(lots) > self._most:
            best = np.argpartition(lots, self._most)[: self._most]
            lots, values = lots[best], values[best]
        self._kept, self._n = [(lots, values)], len(lots)

    def values(self) -> np.ndarray:
        self._draw()
        return self._kept[0][1]
