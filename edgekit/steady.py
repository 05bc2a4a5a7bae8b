"""The timed loops of a measurement: warm-up until it settles, then steady, with what else went on meanwhile."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import NamedTuple

import msgspec
import numpy as np

from edgekit.cpu_use import cpu_use, used_between
from edgekit.runtimes import Session
from edgekit.sensors import Heat, Sensors, heat_of, read_sensors, vcgencmd_bits
from edgekit.stability import Conditions, is_settled

__all__ = ["MOST_RUNS", "Steady", "look", "run_steady", "warm_up"]

#: A block of the warm-up lasts at least this long, so that its median means something for quick models.
_BLOCK_NS = 20_000_000
_LEAST_RUNS = 5
#: What is told of the progress, and how often the sensors are looked at: between calls, never while one is timed.
_TICK_NS = 250_000_000
_LOOK_NS = 1_000_000_000
#: A steady phase ends here: two numbers of eight bytes for each call, and no percentile needs more.
MOST_RUNS = 2_000_000

Tell = Callable[[str, float], None]
Feed = Mapping[str, np.ndarray]


class Steady(NamedTuple):
    """A steady phase.

    Attributes:
        durations_ns: int64 [n], one call each, in order.
        starts_ns: int64 [n], when each began, by `perf_counter_ns`.
        wall_s: Its length.
        conditions: What else went on.
        heat: What the sensors said.
    """

    durations_ns: np.ndarray
    starts_ns: np.ndarray
    wall_s: float
    conditions: Conditions
    heat: Heat


def warm_up(session: Session, feed: Feed, limit_s: float, tell: Tell) -> tuple[int, bool]:
    """Run until the medians of blocks stop moving, or the limit; return the calls and whether they did."""
    medians: list[float] = []
    runs, start = 0, perf_counter_ns()
    while not is_settled(medians):
        spent_s = (perf_counter_ns() - start) / 1e9
        if spent_s > limit_s:
            return runs, False
        tell("warm-up", spent_s / limit_s)
        block: list[int] = []
        until = perf_counter_ns() + _BLOCK_NS
        now = perf_counter_ns()
        while now < until:
            session.run(feed)
            then = perf_counter_ns()
            block.append(then - now)
            now = then
        medians.append(float(np.median(block)))
        runs += len(block)
    return runs, True


def look(root: str, *, ask_firmware: bool = False) -> Sensors:
    """Look at the sensors; `ask_firmware` also by a Raspberry Pi's own command, which takes milliseconds."""
    seen = read_sensors(root)
    if ask_firmware and seen.firmware is None and root == "/":
        return msgspec.structs.replace(seen, firmware=vcgencmd_bits())
    return seen


def run_steady(
    session: Session, feed: Feed, seconds: float, tell: Tell, *, governor: str, settled: bool, root: str = "/"
) -> Steady:
    """Run for the time given and time each call.

    Args:
        session: Warm.
        feed: Its inputs.
        seconds: How long; five calls at least, `MOST_RUNS` at most.
        tell: Called with the phase and its share now and then, never while a call is timed.
        governor: CPU frequency governor, for the verdict.
        settled: Whether the warm-up came to rest, for the verdict.
        root: Where the sensors are looked for.
    """
    durations, starts = array("q"), array("q")
    run, clock = session.run, perf_counter_ns
    looks = [look(root, ask_firmware=True)]
    before = cpu_use()
    start = now = tick = looked = clock()
    end = start + int(seconds * 1e9)
    while (now < end or len(durations) < _LEAST_RUNS) and len(durations) < MOST_RUNS:
        begin = clock()
        run(feed)
        now = clock()
        durations.append(now - begin)
        starts.append(begin)
        if now - tick > _TICK_NS:
            tell("measuring", (now - start) / (end - start))
            tick = now
            if now - looked > _LOOK_NS:
                looks.append(look(root))
                looked = now
    wall_s = (now - start) / 1e9
    cores = os.cpu_count() or 1
    used = used_between(before, cpu_use(), wall_s, cores)
    looks.append(look(root, ask_firmware=True))
    heat = heat_of(looks, wall_s)
    conditions = Conditions(
        settled=settled,
        cores=cores,
        others_cores=used.others_cores,
        stolen=used.stolen,
        governor=governor,
        throttled=heat.throttled,
        busiest=used.busiest,
    )
    return Steady(
        np.frombuffer(durations, dtype=np.int64),
        np.frombuffer(starts, dtype=np.int64),
        wall_s,
        conditions,
        heat,
    )
