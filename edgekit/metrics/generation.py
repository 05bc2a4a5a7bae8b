"""Generation: how near a produced picture or signal is to the wanted one, or to what the source produces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import CEILING_DB, Outputs, Resampler, prepared_metric, scored_output

__all__ = ["METRICS", "signal_to_noise"]

#: Side and standard deviation of SSIM's window, in pixels, and its two constants.
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03

#: Takes output and target, float64 [N, …] of one shape, and the target's range; returns one value a sample.
Each = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _mean_of(each: Each) -> Callable[[Outputs, np.ndarray], Resampler]:
    """Return what prepares the mean over samples: each is measured once. The range is that of all targets."""

    def prepare(outputs: Outputs, target: np.ndarray) -> Resampler:
        got, want = np.asarray(scored_output(outputs), np.float64), np.asarray(target, np.float64)
        if got.size != want.size or len(got) != len(want):
            raise UsageError("targets do not fit the output", got=list(want.shape), expected=list(got.shape))
        values = each(got, want.reshape(got.shape), float(np.ptp(want)) or 1.0)
        return lambda index: float(values[index].mean())

    return prepare


def _decibel(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return 10 log10(signal / noise), at most `CEILING_DB` either way."""
    tiny = 10.0 ** (-CEILING_DB / 10.0)
    ratio = np.maximum(signal, 1e-300) / np.maximum(noise, np.maximum(signal, 1e-300) * tiny)
    level: np.ndarray = np.maximum(10.0 * np.log10(ratio), -CEILING_DB)
    return level


def _power(values: np.ndarray) -> np.ndarray:
    power: np.ndarray = np.square(values.reshape(len(values), -1)).mean(axis=1)
    return power


def _psnr(got: np.ndarray, want: np.ndarray, peak: float) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each sample, 10 log10(range² / mean squared error), in dB."""
    return _decibel(np.full(len(want), peak * peak), _power(got - want))


def signal_to_noise(got: np.ndarray, want: np.ndarray, _peak: float = 1.0) -> np.ndarray:
    """Return the signal-to-noise ratio of each sample, 10 log10(Σ target² / Σ error²), in dB, float64 [N]."""
    return _decibel(_power(want), _power(got - want))


def _ssim(got: np.ndarray, want: np.ndarray, peak: float) -> np.ndarray:
    """Return the mean structural similarity of each picture: an 11 x 11 Gaussian window, where it lies inside.

    Source: Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, Image quality assessment: from error visibility to
    structural similarity, IEEE Transactions on Image Processing 13 (2004), 600-612.
    """
    x, y = _planes(got), _planes(want)
    if min(x.shape[1:3]) < _WINDOW:
        raise UsageError(
            "pictures are too small for SSIM", got=list(got.shape), expected=f"{_WINDOW} pixels or more"
        )
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    both = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    covariance = _blur(x * y) - both
    variances = _blur(x * x + y * y) - squares
    maps = (2.0 * both + c1) * (2.0 * covariance + c2) / ((squares + c1) * (variances + c2))
    similarity: np.ndarray = maps.reshape(len(maps), -1).mean(axis=1)
    return similarity


def _planes(array: np.ndarray) -> np.ndarray:
    """Return pictures as [N, H, W, C]: channels come first only where 1, 3 or 4 stand first and not last."""
    if array.ndim == 3:
        return array[..., None]
    if array.ndim != 4:
        raise UsageError(
            "SSIM compares pictures",
            got=list(array.shape),
            expected="[N, H, W], [N, H, W, C] or [N, C, H, W]",
        )
    first = array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4)
    return np.moveaxis(array, 1, -1) if first else array


def _blur(pictures: np.ndarray) -> np.ndarray:
    """Return pictures [N, H, W, C] under the Gaussian window, where it lies inside: [N, H - 10, W - 10, C]."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2.0 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (1, 2):
        size = pictures.shape[axis] - _WINDOW + 1
        cut = [slice(None)] * 4
        total = np.zeros(1)
        for i, weight in enumerate(weights):
            cut[axis] = slice(i, i + size)
            total = total + weight * pictures[tuple(cut)]
        pictures = total
    return pictures


_TASKS = ("generation",)

METRICS = (
    prepared_metric("psnr", _TASKS, _mean_of(_psnr), unit="decibel", target="either"),
    prepared_metric("ssim", _TASKS, _mean_of(_ssim), target="either"),
    prepared_metric("snr", _TASKS, _mean_of(signal_to_noise), unit="decibel", target="either"),
)
