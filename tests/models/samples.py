"""Inputs for models that came without data: what they were made for, drawn from a seed or from known files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "faces",
    "file_bytes",
    "files_of_known_type",
    "notes",
    "sleep_features",
    "speech_windows",
    "text_lines",
]

#: What the rendered lines say; letters, digits and signs of several widths.
_LINES = (
    "Invoice 2026-11", "Total: 1,284.50", "Keep refrigerated", "EXIT", "Gate B42", "made in Norway",
    "Serial no. 70031", "do not bend", "12:45 platform 3", "Pull to open", "net wt. 500 g", "Room 117",
)  # fmt: skip


def faces(crops: np.ndarray, size: int) -> np.ndarray:
    """Return face crops as an emotion classifier takes them.

    Args:
        crops: float [N, H, W], in [0, 1].
        size: Height and width to stretch them to, in pixels.

    Returns:
        float32 [N, size, size, 1], in [-1, 1].
    """
    stretched = np.stack([_stretch(crop, size, size) for crop in crops])
    return (stretched * 2 - 1).astype(np.float32)[..., np.newaxis]


def _stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image [H, W] bilinearly, its corners kept in place."""
    rows = np.linspace(0, image.shape[0] - 1, height)
    columns = np.linspace(0, image.shape[1] - 1, width)
    across = np.stack([np.interp(columns, np.arange(image.shape[1]), row) for row in image])
    return np.stack([np.interp(rows, np.arange(image.shape[0]), column) for column in across.T], axis=1)


def notes(n: int, length: int, rate_hz: int, seed: int) -> np.ndarray:
    """Return clips of decaying notes with harmonics over soft noise, float32 [n, length, 1], in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(length) / rate_hz
    clips = np.zeros((n, length))
    for clip in clips:
        for _ in range(rng.integers(2, 7)):
            start_s, pitch_hz = rng.uniform(0, time_s[-1]), 440 * 2 ** (rng.integers(-24, 25) / 12)
            after_s = np.maximum(time_s - start_s, 0)
            loudness = rng.uniform(0.1, 0.4) * np.exp(-3 * after_s) * (time_s >= start_s)
            for harmonic in range(1, 5):
                clip[:] += loudness / harmonic * np.sin(2 * np.pi * pitch_hz * harmonic * after_s)
    clips += rng.normal(0, 1e-3, clips.shape)
    loudest = np.maximum(1, np.abs(clips).max(axis=1, keepdims=True))
    scaled: np.ndarray = (clips / loudest).astype(np.float32)
    return scaled[..., np.newaxis]


def speech_windows(n: int, length: int, rate_hz: int, seed: int) -> np.ndarray:
    """Return consecutive windows of a voice-like signal, half of the time silent, float32 [n, length].

    A pulse train through three resonances, as a vowel has; a voice detector hears speech in it.
    """
    rng = np.random.default_rng(seed)
    time_s = np.arange(n * length) / rate_hz
    pitch_hz = 120 + 20 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    signal = np.zeros(n * length)
    for formant_hz, weight in ((600, 1.0), (1200, 0.5), (2500, 0.25)):
        for harmonic in range(1, 26):
            away = (harmonic * 120 - formant_hz) / 150
            signal += weight / (1 + away**2) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, None) * (np.sin(2 * np.pi * 0.4 * time_s) > 0)
    spoken: np.ndarray = 0.5 * signal / np.abs(signal).max() * syllables + rng.normal(0, 1e-3, len(signal))
    return spoken.reshape(n, length).astype(np.float32)


def file_bytes(content: bytes, begin: int = 1024, end: int = 1024) -> np.ndarray:
    """Return a file's first and last bytes as a file-type classifier takes them, int32 [begin + end].

    White space around the content is left out, 256 fills what is missing.
    """
    head = np.frombuffer(content[:4096].lstrip()[:begin], np.uint8)
    tail = np.frombuffer(content[-4096:].rstrip()[-end:], np.uint8)
    tokens = np.full(begin + end, 256, np.int32)
    tokens[: len(head)] = head
    tokens[len(tokens) - len(tail) :] = tail
    return tokens


def files_of_known_type(most: int) -> list[tuple[Path, str]]:
    """Return files that installed packages ship, each with its type's name, at most `most` of a type."""
    wanted = {".py": "python", ".csv": "csv", ".rst": "rst", ".proto": "proto", ".onnx": "onnx", ".jpg": "jpeg",
              ".gz": "gzip", ".npz": "npz"}  # fmt: skip
    found: dict[str, list[Path]] = {label: [] for label in wanted.values()}
    for name in ("sklearn", "onnx", "numpy", "scipy"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        for path in sorted(Path(spec.origin).parent.rglob("*")):
            label = wanted.get(path.suffix, "")
            if label and len(found[label]) < most and path.stat().st_size >= 1024:
                found[label].append(path)
    return [(path, label) for label, paths in found.items() for path in paths]


def text_lines(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return rendered lines of dark text on a light ground, float32 [n, 3, height, width], in [-1, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(n):
        ground, ink = int(rng.integers(190, 256)), int(rng.integers(0, 70))
        picture = Image.new("RGB", (width, height), (ground, ground, ground))
        font: Any = ImageFont.load_default(size=float(min(height, 48)) * rng.uniform(0.5, 0.75))
        place = (rng.uniform(2, 12), rng.uniform(0, max(1, height - 40)))
        ImageDraw.Draw(picture).text(place, _LINES[index % len(_LINES)], fill=(ink, ink, ink), font=font)
        pictures.append(np.asarray(picture, np.float32).transpose(2, 0, 1))
    noise = rng.normal(0, 4, (n, 3, height, width))
    return (np.clip(np.stack(pictures) + noise, 0, 255) / 127.5 - 1).astype(np.float32)


def sleep_features(n: int, steps: int, features: int, seed: int) -> np.ndarray:
    """Return slowly moving features, padded at the end with the mask value -1, float32 [n, steps, features]."""
    rng = np.random.default_rng(seed)
    moving = np.cumsum(rng.normal(0, 0.3, (n, steps, features)), axis=1)
    for night, kept in zip(moving, rng.integers(steps // 2, steps + 1, n), strict=True):
        night[kept:] = -1
    return moving.astype(np.float32)
