"""The worker: a child process that imports frameworks, so that the command line never does.

`python -m edgekit.worker FD` reads one task per line from standard input and writes answers to FD. It leaves
the network before anything heavy is imported, and stops when its parent is gone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.arrays import load_own, save_own
from edgekit.converters.base import Converter, SourceModel
from edgekit.errors import ConversionError, EdgeKitError, MachineError, UnavailableError
from edgekit.memory_use import peak_mib
from edgekit.runtimes import ModelFiles, Session, SessionOptions, get_runtime
from edgekit.streams import NO_SAMPLES, SampleFolder
from edgekit.tasks import (
    Answer,
    Convert,
    Describe,
    Described,
    FindPeak,
    MeasureLayers,
    RunSource,
    Score,
    Scored,
    Survey,
    Task,
)
from edgekit.tensors import TensorSpec, check_rows, join_samples, one_sample

if TYPE_CHECKING:
    import numpy as np

__all__ = ["main"]

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_BATCH = 32
_LONGEST = 600
_LONGEST_TIMING_S, _FEWEST_RUNS = 2.0, 3


def leave_network() -> bool:
    """Move this process into a network namespace of its own; tell whether the system let us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        return bool(libc.unshare(_CLONE_NEWNET) == 0)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def _stop_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _describe(task: Describe) -> Iterator[Answer]:
    from edgekit.sources import open_source

    source = open_source(task.kind, Path(task.path), task.options)
    yield Answer(
        described=Described(
            source.inputs, source.outputs, source.tools, source.notes, source.quantized, source.files
        )
    )


def _survey(task: Survey) -> Iterator[Answer]:
    from edgekit.check.surveyors import survey

    yield Answer(surveyed=survey(task.kind, Path(task.path), task.options, task.opset))


def _run_source(task: RunSource) -> Iterator[Answer]:
    import numpy as np

    from edgekit.sequences import run_sequence
    from edgekit.sources import open_source

    source = open_source(task.kind, Path(task.path), task.options)
    data = load_own(task.data)
    if task.state:
        answers = run_sequence(source.run, data, task.state, source.inputs)
        save_own(task.out, answers)
        yield Answer()
        return
    n = len(next(iter(data.values())))
    if all(spec.shape[:1] == (-1,) for spec in source.inputs):
        parts = []
        for i in range(0, n, _BATCH):
            parts.append(source.run({k: v[i : i + _BATCH] for k, v in data.items()}))
            check_rows(parts[-1], min(_BATCH, n - i))
        outputs = {spec.name: np.concatenate([p[spec.name] for p in parts]) for spec in source.outputs}
    else:
        rows = [source.run(one_sample(source.inputs, data, i)) for i in range(n)]
        outputs = join_samples(source.inputs, rows)
    save_own(task.out, outputs)
    yield Answer()


def _convert(task: Convert) -> Iterator[Answer]:
    converter = _converter(task.converter)
    source = SourceModel(task.kind, Path(task.path), task.inputs, task.outputs, task.options)
    calibration = SampleFolder(Path(task.calibration)) if task.calibration else NO_SAMPLES
    for made in converter.convert(source, task.recipes, calibration, Path(task.out)):
        yield Answer(part=made, peak_mib=peak_mib())


def _measure_layers(task: MeasureLayers) -> Iterator[Answer]:
    source = SourceModel(task.kind, Path(task.path), task.inputs, task.outputs, task.options)
    samples = SampleFolder(Path(task.samples))
    yield Answer(
        layers=_converter(task.converter).layers(source, task.recipe, Path(task.made), samples),
        peak_mib=peak_mib(),
    )


def _converter(name: str) -> Converter:
    module, _, attribute = name.partition(":")
    converter: Converter = getattr(import_module(module), attribute)()
    return converter


def _score(task: Score) -> Iterator[Answer]:
    import numpy as np

    from edgekit.sequences import driven_inputs, initial_state, run_sequence

    artifact = task.artifact
    runtime = get_runtime(task.runtime)
    session = runtime.load(
        ModelFiles(
            Path(artifact.path),
            artifact.inputs,
            artifact.outputs,
            artifact.input_names,
            artifact.output_names,
        ),
        SessionOptions(threads=task.threads, extra=task.extra),
    )
    data = load_own(task.data)
    pairs = task.pairs and all(spec.shape[:1] == (-1,) for spec in session.inputs)
    try:
        answers = (
            run_sequence(session.run, data, task.state, session.inputs)
            if task.state
            else _one_by_one(session, data)
        )
        if pairs:
            together = session.run({k: v[:2] for k, v in data.items()})
            answers.update({f"pair:{name}": np.array(value) for name, value in together.items()})
        driven = driven_inputs(session.inputs, task.state)
        first = one_sample(driven, data, 0) | initial_state(session.inputs, task.state)
        p50_ms = _time(session, first, task.timed_runs)
    except MachineError as error:  # the artifact's fault here, not the machine's: it cannot ship
        raise ConversionError(str(error)) from error
    save_own(task.out, answers)
    placement = dict(session.placement)
    session.close()
    yield Answer(scored=Scored(p50_ms, runtime.version(), placement, pairs))


def _find_peak(task: FindPeak) -> Iterator[Answer]:
    import numpy as np

    from edgekit.canonical import open_inside

    session = open_inside(Path(task.path))
    data = load_own(task.data)
    peak = 0.0
    inputs = [
        TensorSpec(given.name, "", tuple(n if isinstance(n, int) else -1 for n in given.shape))
        for given in session.get_inputs()
    ]
    for i in range(len(next(iter(data.values())))):
        for value in session.run(None, one_sample(inputs, data, i)):
            if value.dtype == np.float32 and value.size:
                peak = max(peak, float(np.abs(value).max()))
    yield Answer(peak=peak)


def _one_by_one(session: Session, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import numpy as np

    rows = []
    for i in range(len(next(iter(data.values())))):
        answer = session.run(one_sample(session.inputs, data, i))
        rows.append(
            {name: np.array(value) for name, value in answer.items()}
        )  # the next run may overwrite it
    return join_samples(session.inputs, rows)


def _time(session: Session, feed: dict[str, np.ndarray], runs: int) -> float:
    """Return the median of `runs` runs in milliseconds, after as many to warm up; 0 for no runs.

    A slow artifact is run less often: as much as fits into `_LONGEST_TIMING_S` for either, three times at least.
    """
    if not runs:
        return 0.0
    times: list[int] = []
    for _ in ("to warm up", "to count"):
        times = []
        while len(times) < runs and (len(times) < _FEWEST_RUNS or sum(times) < _LONGEST_TIMING_S * 1e9):
            start = time.perf_counter_ns()
            session.run(feed)
            times.append(time.perf_counter_ns() - start)
    return sorted(times)[len(times) // 2] / 1e6


_WORK: dict[type, Callable[..., Iterator[Answer]]] = {
    Describe: _describe,
    Survey: _survey,
    RunSource: _run_source,
    Convert: _convert,
    MeasureLayers: _measure_layers,
    Score: _score,
    FindPeak: _find_peak,
}


def _end(error: BaseException | None) -> Answer:
    if error is None:
        return Answer(done=True, peak_mib=peak_mib())
    if isinstance(error, ModuleNotFoundError):
        error = _missing(error)
    code = error.exit_code if isinstance(error, EdgeKitError) else 3
    text = str(error) if isinstance(error, EdgeKitError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())[:_LONGEST]  # frameworks write pages; the log has them
    if _is_full(error):
        code, where = 1, tempfile.gettempdir()
        text = f"the disk is full where the work is done, {where}. Free some space, or set TMPDIR. ({text[-200:]})"
    return Answer(done=True, error=text, error_code=code, peak_mib=peak_mib())


def _missing(error: ModuleNotFoundError) -> UnavailableError:
    """Say which extra provides a package that is not installed."""
    package = (error.name or str(error)).partition(".")[0]
    extra = "torch" if package in ("torch", "litert_torch") else "convert"
    return UnavailableError(
        f"this model needs the package {package}", hint=f"Run: pip install 'edgekit-deploy[{extra}]'."
    )


def _is_full(error: BaseException) -> bool:
    """Tell a full disk, by its number or, where a framework has swallowed that, by the system's words for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error)


def main() -> None:
    """Work until standard input ends."""
    leave_network()
    _stop_with_parent()
    decoder, encoder = msgspec.json.Decoder(Task), msgspec.json.Encoder()
    with os.fdopen(int(sys.argv[1]), "wb", buffering=0) as answers:
        for line in sys.stdin.buffer:
            task = decoder.decode(line)
            failure: BaseException | None = None
            try:
                for answer in _WORK[type(task)](task):
                    answers.write(encoder.encode(answer) + b"\n")
            except Exception as error:  # noqa: BLE001  # a framework may raise anything; the row says what
                import traceback

                traceback.print_exc()
                failure = error
            answers.write(encoder.encode(_end(failure)) + b"\n")


if __name__ == "__main__":
    main()
