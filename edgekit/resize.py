"""Resizing pictures: one definition in whole numbers, so that every processor gives the same bytes.

Pixel centres lie at half-pixels: sample `o` of `out` looks at `(o + 1/2) · in / out`, in the source's own pixels.

- `nearest`: the pixel that holds this point, `floor((2 o + 1) · in / (2 out))`.
- `bilinear`: a triangle around this point, one pixel wide on each side; when the picture shrinks and `antialias`
  holds, as wide as the step from sample to sample, so that every source pixel counts (as Pillow does).
- `area`: the mean over what the sample covers, `o · in / out` to `(o + 1) · in / out`.

Weights are fractions of whole numbers, rounded half up to 22 bits. The picture is resized along its height first where
that shrinks it more than along its width, else along its width first; each time a sample is the weighted sum,
rounded half up to a byte. Pixels beyond an edge do not exist: the weights of those that do add up to one. What
Pillow's own resampling gives differs by one at most. On a device: numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from edgekit.errors import UsageError

__all__ = ["FITS", "METHODS", "Fit", "Method", "Placement", "place", "resize"]

Method = Literal["bilinear", "nearest", "area"]
Fit = Literal["stretch", "letterbox", "center-crop"]
METHODS: tuple[str, ...] = get_args(Method)
FITS: tuple[str, ...] = get_args(Fit)

_BITS = 22
#: Longest side in pixels: the arithmetic is exact up to here, and the work bounded.
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: it is resized to `height` × `width`, and that is cut or padded to the frame.

    Attributes:
        height: Of the resized picture, in pixels.
        width: Of the resized picture, in pixels.
        top: Row of the frame where the resized picture begins; negative where rows are cut.
        left: Column of the frame where it begins; negative where columns are cut.
    """

    height: int
    width: int
    top: int
    left: int


def place(
    size: tuple[int, int], frame: tuple[int, int], fit: str = "stretch", shorter_side: int | None = None
) -> Placement:
    """Return where a picture goes.

    `stretch` fills the frame, whatever that does to the proportions. `letterbox` shows the whole picture, with bars
    beside it; the other side is rounded half up, and of an odd rest the smaller part comes first. `center-crop`
    covers the frame and cuts what is over: the side that does not decide is rounded down, and half of an odd rest is
    rounded to an even number, as torchvision does. With `shorter_side`, the picture's shorter side becomes that long
    first (torchvision's `Resize(256)` and `CenterCrop(224)`).

    Args:
        size: Height and width of the picture in pixels.
        frame: Height and width that are wanted, in pixels.
        fit: One of `FITS`.
        shorter_side: In pixels; for `center-crop` only.

    Example:
        >>> place((480, 640), (224, 224), "center-crop", 256)
        Placement(height=256, width=341, top=-16, left=-58)
        >>> place((480, 640), (640, 640), "letterbox")
        Placement(height=480, width=640, top=80, left=0)
    """
    (height, width), (rows, columns) = size, frame
    if fit == "stretch":
        return Placement(rows, columns, 0, 0)
    wide = width * rows >= height * columns  # wider than the frame, in proportion
    if fit == "letterbox":
        tall, broad = _scaled(height, columns, width), _scaled(width, rows, height)
        tall, broad = (tall, columns) if wide else (rows, broad)
        return Placement(tall, broad, (rows - tall) // 2, (columns - broad) // 2)
    if shorter_side is not None:
        rows = columns = shorter_side
        wide = width >= height
    tall, broad = (rows, width * rows // height) if wide else (height * columns // width, columns)
    return Placement(tall, broad, -_half(tall - frame[0]), -_half(broad - frame[1]))


def _scaled(length: int, numerator: int, denominator: int) -> int:
    """Return `length · numerator / denominator`, rounded half up, at least one pixel."""
    return max(1, (2 * length * numerator + denominator) // (2 * denominator))


def _half(rest: int) -> int:
    half = rest // 2
    return half + (half & 1) if rest % 2 else half


def resize(
    pixels: np.ndarray, height: int, width: int, method: str = "bilinear", *, antialias: bool = True
) -> np.ndarray:
    """Return the picture at another size.

    Args:
        pixels: uint8 [H, W, C], any channels, 0-255.
        height: Wanted, in pixels.
        width: Wanted, in pixels.
        method: One of `METHODS`.
        antialias: For `bilinear`: whether a shrinking picture is averaged.

    Returns:
        uint8 [height, width, C].

    Raises:
        UsageError: A side is not 1 to 65536 pixels long.
    """
    longest, shortest = max(*pixels.shape[:2], height, width), min(*pixels.shape[:2], height, width)
    if not (shortest >= 1 and longest <= _LONGEST):
        raise UsageError(
            "a picture cannot be resized",
            got=f"{pixels.shape[1]} x {pixels.shape[0]} to {width} x {height}",
            expected=f"sides of 1 to {_LONGEST} pixels",
        )
    found = pixels
    for axis in (0, 1) if height * pixels.shape[1] < width * len(pixels) else (1, 0):
        turned = found.swapaxes(0, axis)
        found = _along_rows(turned, (height, width)[axis], method, antialias).swapaxes(0, axis)
    return np.ascontiguousarray(found)


def _along_rows(pixels: np.ndarray, wanted: int, method: str, antialias: bool) -> np.ndarray:
    """Return uint8 [wanted, …] for uint8 [n, …]."""
    n = len(pixels)
    if n == wanted:
        return pixels
    first, weights = _taps(n, wanted, method, antialias)
    if method == "nearest":
        picked: np.ndarray = pixels[first]
        return picked
    total = np.full((wanted, *pixels.shape[1:]), 1 << (_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        part = pixels[np.minimum(first + tap, n - 1)].astype(np.int32)
        part *= weights[:, tap].reshape(-1, *[1] * (pixels.ndim - 1))
        total += part
    total >>= _BITS
    found: np.ndarray = np.clip(total, 0, 255, out=total).astype(np.uint8)
    return found


@lru_cache(maxsize=64)
def _taps(n: int, wanted: int, method: str, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source pixel of each sample, int64 [wanted], and the weights from there on, int32 [wanted, K]."""
    samples = np.arange(wanted, dtype=np.int64)
    if method == "nearest":
        return (2 * samples + 1) * n // (2 * wanted), np.ones((wanted, 1), np.int32)
    if method == "area":
        first = samples * n // wanted
        count = -(-n // wanted) + 1
        source = first[:, None] + np.arange(count)
        # how far pixel x covers the sample, in parts of 1/wanted of a pixel
        end = np.minimum((source + 1) * wanted, ((samples + 1) * n)[:, None])
        cover = np.maximum(end - np.maximum(source * wanted, (samples * n)[:, None]), 0)
        return first, _in_bits(np.where(source < n, cover, 0))
    reach = max(n, wanted) if antialias else wanted  # of the triangle, in parts of 1/wanted of a pixel
    centre = (2 * samples + 1) * n  # in parts of 1/(2 wanted)
    first = np.maximum((centre - 2 * reach) // (2 * wanted), 0)
    count = 2 * reach // wanted + 2
    source = first[:, None] + np.arange(count)
    distance = np.abs((2 * source + 1) * wanted - centre[:, None])
    height = np.maximum(2 * reach - distance, 0)
    return first, _in_bits(np.where(source < n, height, 0))


def _in_bits(shares: np.ndarray) -> np.ndarray:
    """Return whole shares as fractions of their sum in `_BITS` bits, rounded half up, without columns of zeros."""
    total = shares.sum(axis=1, keepdims=True)
    weights = ((shares << (_BITS + 1)) + total) // (2 * total)
    used = np.flatnonzero(weights.any(axis=0))
    kept: np.ndarray = weights[:, : used[-1] + 1].astype(np.int32)
    return kept
