"""What calibration measured is found again in memory and on disk, and never read from a damaged file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.calibration import METHODS, Histogram, Range, choose_range
from edgekit.calibration_cache import CalibrationCache


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgekit" / "calibration"


class Counting:
    """Makes ranges whose upper end tells how often it was asked."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Range]:
        self.made += 1
        return {"x": (0.0, float(self.made))}


def ranges(cache: CalibrationCache, key: str | None, make: Counting) -> dict[str, Range]:
    return cache.get(None if key is None else [key], dict[str, Range], make)


def test_each_is_made_once_and_memory_forgets_the_oldest(cache_home: Path) -> None:
    make, cache = Counting(), CalibrationCache(most=2)
    for key in ("a", "a", "b", "a", "c", "a"):
        ranges(cache, key, make)
    assert make.made == 3
    for file in cache_home.iterdir():
        file.unlink()
    ranges(cache, "a", make)
    assert make.made == 3, "the newest are still in memory"
    ranges(cache, "b", make)
    assert make.made == 4


def test_another_process_finds_it_on_disk_bit_for_bit() -> None:
    counted = Histogram()
    counted.add(np.random.default_rng(3).standard_normal(5000).astype(np.float32))
    first = CalibrationCache().get(["k"], dict[str, Histogram], lambda: {"t": counted, "empty": Histogram()})
    again = CalibrationCache().get(["k"], dict[str, Histogram], lambda: pytest.fail("made twice"))
    assert again.keys() == first.keys()
    assert again["t"].state() == counted.state()
    assert again["empty"].state() == Histogram().state()
    for method in METHODS:
        assert choose_range(again["t"], method) == choose_range(counted, method)
    again["t"].add(np.array([40.0], np.float32))
    assert again["t"].n == 5001, "what was read can count on"


def test_key_and_kind_part_what_is_kept() -> None:
    make, cache = Counting(), CalibrationCache()
    assert ranges(cache, "model, data 1", make) != ranges(cache, "model, data 2", make)
    assert cache.get(["model, data 1"], dict[str, Histogram], dict) == {}


def test_of_data_without_a_name_nothing_is_kept(cache_home: Path) -> None:
    make, cache = Counting(), CalibrationCache()
    ranges(cache, None, make)
    ranges(cache, None, make)
    assert make.made == 2
    assert not cache_home.exists()


@pytest.mark.parametrize("at", [0, 33, -1])
def test_a_damaged_file_is_measured_anew(cache_home: Path, at: int) -> None:
    make = Counting()
    ranges(CalibrationCache(), "k", make)
    (file,) = cache_home.iterdir()
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    assert ranges(CalibrationCache(), "k", make) == {"x": (0.0, 2.0)}
    assert ranges(CalibrationCache(), "k", make) == {"x": (0.0, 2.0)}, "and mended"


def test_a_cut_file_is_measured_anew(cache_home: Path) -> None:
    make = Counting()
    ranges(CalibrationCache(), "k", make)
    (file,) = cache_home.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert ranges(CalibrationCache(), "k", make) == {"x": (0.0, 2.0)}


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make = Counting()
    for _ in range(2):
        ranges(CalibrationCache(), "k", make)
    assert make.made == 2


def test_the_disk_keeps_what_was_used_last(cache_home: Path) -> None:
    make, cache = Counting(), CalibrationCache(most_bytes=3 * 64)
    for key in "abcd":
        ranges(cache, key, make)
        for file in cache_home.iterdir():
            stat = file.stat()
            os.utime(file, (stat.st_atime - 60, stat.st_mtime - 60))
    assert sum(file.stat().st_size for file in cache_home.iterdir()) <= 3 * 64
    ranges(CalibrationCache(), "d", make)
    assert make.made == 4
    ranges(CalibrationCache(), "a", make)
    assert make.made == 5
