"""Two profiles side by side: ratios of latencies with intervals, and what differs in their conditions.

A ratio of two medians means nothing without its interval. Latencies of neighbouring calls are alike, so whole blocks
of them are drawn, not single calls: the moving block bootstrap (H. R. Künsch, The jackknife and the bootstrap for
general stationary observations, Annals of Statistics 17 (1989), 1217-1241).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import InvalidFileError, UsageError
from edgekit.timing import needed_samples

__all__ = ["Comparison", "Limit", "Pair", "Ratio", "compare_profiles", "parse_limit", "read_profile_file"]

#: Runtime, artifact, threads, batch.
_Key = tuple[str, str, int, int]
_RESAMPLES = 1000
#: Blocks that a row of latencies is cut into at least; below as many calls as blocks there is no interval.
_BLOCKS = 20
#: Percentiles that are compared; the others have too few calls beyond them once calls are thinned.
_COMPARED = (50.0, 90.0, 95.0, 99.0)
#: What of the identity must be equal for a ratio to be the bundle's doing.
_CONDITIONS = ("device", "board", "isa", "cores", "governor", "kernel", "python")
#: The same, of what profiles did not always hold: compared where both have it.
_NEWER_CONDITIONS = ("soc", "power_mode", "system")
#: Metric to its unit where it is not a percentile.
_PLAIN = {"load": "ms", "first": "ms", "peak": "MiB"}
_FIELDS = {"load": "load_ms", "first": "first_ms", "peak": "peak_mib"}


@dataclass(frozen=True)
class Ratio:
    """B over A of one metric.

    Attributes:
        metric: `p50`, `p95`, `load`, `peak`, …
        unit: Of `a` and `b`: `ms` or `MiB`.
        a: In the first profile.
        b: In the second.
        value: b / a.
        low: Lower end of the two-sided 95 % interval of the ratio; None where there is none to give.
        high: Upper end.
    """

    metric: str
    unit: str
    a: float
    b: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Pair:
    """The same candidate in both profiles.

    Attributes:
        runtime: Its name.
        artifact: Its name.
        threads: Intra-op threads.
        batch: Samples in one call.
        ratios: By metric, latencies first.
        unsteady: Which of the two were not taken on a machine at rest: `A`, `B`.
    """

    runtime: str
    artifact: str
    threads: int
    batch: int
    ratios: tuple[Ratio, ...]
    unsteady: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What two profiles say of each other.

    Attributes:
        differences: Conditions that are not the same, in words.
        pairs: Candidates that are in both.
        only: Candidates that are in one, in words.
    """

    differences: tuple[str, ...]
    pairs: tuple[Pair, ...]
    only: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """What may not be exceeded: a metric of B, as a multiple of A's (`x`), in `ms` or in `MiB`."""

    metric: str
    most: float
    unit: str

    def exceeded(self, ratio: Ratio) -> bool | None:
        """Tell whether a ratio is beyond the limit: True or False where that is sure, None where it is not.

        A multiple is sure when the whole interval lies on one side; without an interval the value decides.
        """
        if self.unit != "x":
            return ratio.b > self.most
        if ratio.low is None or ratio.high is None:
            return ratio.value > self.most
        if ratio.low > self.most:
            return True
        return False if ratio.high <= self.most else None


def parse_limit(text: str) -> Limit:
    """Return the limit that `p95 > 1.1x`, `p50 > 5ms` or `peak > 200MiB` is.

    Raises:
        UsageError: It is none of these.
    """
    names = [f"p{each:g}" for each in _COMPARED] + list(_PLAIN)
    found = re.fullmatch(r"\s*(\w+)\s*>\s*([0-9.]+)\s*(x|ms|MiB)\s*", text)
    unit = _PLAIN.get(found[1], "ms") if found else ""
    if found is None or found[1] not in names or found[3] not in ("x", unit) or not _is_number(found[2]):
        raise UsageError(
            "--fail-if is malformed",
            got=repr(text),
            expected=f"METRIC > 1.1x, METRIC > 5ms or peak > 200MiB; METRIC one of {', '.join(names)}",
        )
    return Limit(found[1], float(found[2]), found[3])


def _is_number(text: str) -> bool:
    return text.count(".") <= 1 and text != "."


def read_profile_file(path: Path) -> dict[str, Any]:
    """Return what `edgekit profile --json` printed into a file.

    Raises:
        UsageError: There is no file.
        InvalidFileError: It is not such a file.
    """
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidFileError(f"{path} is not JSON: {error}") from error
    if (
        not isinstance(data, dict)
        or data.get("schema") != 1
        or not {"identity", "measurements"} <= data.keys()
    ):
        raise InvalidFileError(f"{path} is not a profile", expected="what edgekit profile --json prints")
    return data


def compare_profiles(a: Mapping[str, Any], b: Mapping[str, Any], *, seed: int = 0) -> Comparison:
    """Compare two profiles, candidate by candidate.

    Args:
        a: The first, as `read_profile_file` returns it.
        b: The second.
        seed: Of the bootstrap.

    Raises:
        UsageError: They have no candidate in common.
        InvalidFileError: A measurement lacks what a profile has.
    """
    try:
        rows: list[dict[_Key, Mapping[str, Any]]]
        rows = [{_key(row): row for row in each["measurements"] if not row["error"]} for each in (a, b)]
        both = [key for key in rows[0] if key in rows[1]]
        pairs = tuple(_pair(key, rows[0][key], rows[1][key], seed) for key in both)
        differences = _differences(
            a["identity"], b["identity"], [(rows[0][key], rows[1][key]) for key in both]
        )
    except (KeyError, TypeError) as error:
        raise InvalidFileError(f"a profile is incomplete: {error}") from error
    if not both:
        raise UsageError(
            "the profiles have no measurement in common",
            got="; ".join(_words(key) for each in rows for key in each) or "none",
            hint="Measure the same --runtime, --artifact, --threads and --batch.",
        )
    only = tuple(
        f"{name}: {_words(key)}"
        for name, mine, other in (("A", rows[0], rows[1]), ("B", rows[1], rows[0]))
        for key in mine
        if key not in other
    )
    return Comparison(differences, pairs, only)


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> tuple[str, ...]:
    """Return the conditions that are not the same, in words: of the machines, then of the runtimes."""
    names = (*_CONDITIONS, "digest", *(each for each in _NEWER_CONDITIONS if each in a and each in b))
    found = [f"{name}: {_said(a[name])} and {_said(b[name])}" for name in names if a[name] != b[name]]
    versions = [(mine["runtime"], mine.get("version"), other.get("version")) for mine, other in pairs]
    found += [f"{name}: {one} and {two}" for name, one, two in versions if one and two and one != two]
    return tuple(dict.fromkeys(found))


def _said(value: object) -> object:
    """Return a condition as it is printed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return value if value != "" else "none"


def _key(row: Mapping[str, Any]) -> _Key:
    return row["runtime"], row["artifact"], row["threads"], row["batch"]


def _words(key: _Key) -> str:
    runtime, artifact, threads, batch = key
    return f"{artifact} in {runtime}, {threads} threads, batch {batch}"


def _pair(key: _Key, a: Mapping[str, Any], b: Mapping[str, Any], seed: int) -> Pair:
    percentiles = [
        each
        for each in _COMPARED
        if all(f"p{each:g}" in row["latency_ms"]["percentiles"] for row in (a, b))
        and all(len(row["times_us"]) >= needed_samples(each) for row in (a, b))
    ]
    ends = _intervals(a["times_us"], b["times_us"], percentiles, seed)
    ratios = []
    for each in percentiles:
        mine, theirs = (row["latency_ms"]["percentiles"][f"p{each:g}"] for row in (a, b))
        ratios.append(_ratio(f"p{each:g}", "ms", mine, theirs, ends.get(each)))
    ratios += [_ratio(name, unit, a[_FIELDS[name]], b[_FIELDS[name]], None) for name, unit in _PLAIN.items()]
    unsteady = tuple(name for name, row in (("A", a), ("B", b)) if row["stability"]["verdict"] != "stable")
    return Pair(*key, tuple(ratios), unsteady)


def _ratio(metric: str, unit: str, a: float, b: float, ends: tuple[float, float] | None) -> Ratio:
    low, high = ends or (None, None)
    return Ratio(metric, unit, a, b, b / a if a else float("inf"), low, high)


def _intervals(
    a: Sequence[float], b: Sequence[float], percentiles: Sequence[float], seed: int
) -> dict[float, tuple[float, float]]:
    """Return the 95 % interval of each percentile's ratio, by drawing blocks of consecutive calls from both."""
    if min(len(a), len(b)) < _BLOCKS or not percentiles:
        return {}
    random = np.random.default_rng(seed)
    drawn = [_drawn(np.asarray(times), percentiles, random) for times in (a, b)]
    low, high = np.quantile(drawn[1] / drawn[0], [0.025, 0.975], axis=0)
    return {each: (float(low[i]), float(high[i])) for i, each in enumerate(percentiles)}


def _drawn(times: np.ndarray, percentiles: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Return the percentiles of resamples, float64 [resamples, percentiles]."""
    length = max(1, len(times) // _BLOCKS)
    starts = random.integers(0, len(times) - length + 1, (_RESAMPLES, -(-len(times) // length)))
    found = np.empty((_RESAMPLES, len(percentiles)))
    for index, row in enumerate(starts):
        sample = times[(row[:, None] + np.arange(length)).ravel()[: len(times)]]
        found[index] = np.percentile(sample, percentiles, method="inverted_cdf")
    return found
