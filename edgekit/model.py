"""A loaded model in this process: planned for this device, warm, self-tested, watched.

`edgekit.load(bundle)` is all that a camera loop needs; the daemon is built on the same object.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import numpy as np

from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import EdgeKitError, InvalidFileError, RefusedError, UsageError
from edgekit.golden import GoldenOutcome, run_golden, run_samples
from edgekit.local import open_here, open_plan
from edgekit.manifest import Manifest, Plan
from edgekit.monitor.monitor import ModelMonitor
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import Recorder
from edgekit.runtimes import Session
from edgekit.sequences import driven_inputs
from edgekit.state import open_state
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from edgekit.preprocess import Preprocessor

    #: What preprocessing may take: a path, a text or several, a table's columns by name.
    Raw = str | os.PathLike[str] | Sequence[str] | Mapping[str, Any]

__all__ = ["BOOT_SAMPLES", "Model", "load", "monitor_for", "start"]

#: Golden samples that are run before a model answers.
BOOT_SAMPLES = 8
#: More threads than any device has cores.
MOST_THREADS = 256


class Model:
    """A bundle's artifact in its runtime, ready to run.

    Attributes:
        name: The bundle's.
        version: The bundle's.
        digest: The bundle's.
        manifest: Everything the bundle says.
        plan: What was chosen for this device, with the reasons.
        session: The artifact in its runtime.
        lock: Held by whoever runs the session or reads outputs that are still its own.
        monitor: Records every inference; None where nothing watches.
        inputs: What the chosen artifact takes, under canonical names.
        outputs: What it returns, under canonical names.
        labels: The classes' names, of a classification that has them.
    """

    def __init__(self, bundle: Bundle, plan: Plan, session: Session) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.digest = manifest.name, manifest.version, bundle.digest
        self.manifest: Manifest = manifest
        self.plan, self.session = plan, session
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.labels: Sequence[str] = manifest.labels if manifest.task == "classification" else ()
        self.lock = threading.Lock()
        self.monitor: ModelMonitor | None = None
        self._bundle = bundle
        self._run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = session.run
        self._only_input = self.inputs[0].name if len(self.inputs) == 1 else ""
        self._only_output = self.outputs[0].name if len(self.outputs) == 1 else ""
        # pixels are told from what the model takes by their type, and by their axes where that is the same
        pictured = any(step.get("kind") == "image" for step in manifest.preprocess) and self._only_input
        self._raw_axes = _raw_axes(self.inputs[0]) if pictured else ()
        self._let_go = weakref.finalize(self, _let_go, session, None, None)
        _LOADED.add(self)

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once and record it; the caller holds `lock` until it has used the outputs.

        Args:
            feed: Arrays by input name, with the dtype and shape of `inputs`.

        Returns:
            Arrays by output name; they may be the session's own memory, valid until its next run.

        Raises:
            UsageError: The feed does not fit; nothing was run.
            MachineError: The runtime failed; the monitor has counted it.
        """
        monitor = self.monitor
        begin = perf_counter()
        try:
            outputs = self._run(feed)
        except UsageError:
            raise
        except EdgeKitError:
            if monitor is not None:
                monitor.record_error()
            raise
        if monitor is not None:
            monitor.record(outputs, perf_counter() - begin)
        return outputs

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """How raw pictures, tables and texts become what the model takes."""
        from edgekit.preprocess import Preprocessor

        return Preprocessor(self.manifest.preprocess, driven_inputs(self.inputs, self.manifest.state))

    @overload
    def predict(self, x: np.ndarray | Raw) -> np.ndarray | dict[str, np.ndarray]: ...

    @overload
    def predict(self, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def predict(self, x: np.ndarray | Raw | Mapping[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """Run once; may be called from several threads, which then take turns.

        Args:
            x: The array for a model with one input; else arrays by input name. The first axis is the batch.
                Or what the bundle's preprocessing turns into that: a raw picture, uint8 [H, W, 3] in RGB or [H, W];
                pictures of the model's size, uint8 [N, H, W, C]; the path of an image file; a text or a list of
                texts; a table's columns by name.

        Returns:
            What the caller may keep: the array, if something else than arrays by name was given and the model has
            one output; else arrays by output name.

        Raises:
            UsageError: A name, dtype or shape does not fit; the message says which.
            MachineError: The runtime failed.
        """
        feed = {self._only_input: x} if self._is_feed(x) else self._as_feed(x)
        with self.lock:
            outputs = self.infer(feed)
            if not self.session.fresh_outputs:
                outputs = {name: array.copy() for name, array in outputs.items()}
        if feed is not x and self._only_output:
            return outputs[self._only_output]
        return outputs

    def _is_feed(self, x: object) -> TypeGuard[np.ndarray]:
        """Tell the array of a single input from everything else, raw pixels among it."""
        if not isinstance(x, np.ndarray) or not self._only_input:
            return False
        return not (x.ndim in self._raw_axes and x.dtype == np.uint8)

    def _as_feed(self, x: object) -> Mapping[str, np.ndarray]:
        whole = not self.manifest.preprocess or (
            isinstance(x, Mapping) and {s.name for s in self.inputs} <= set(x)
        )
        if isinstance(x, Mapping) and whole:
            return x
        prepared = self.preprocessor.prepare(x) if self.manifest.preprocess else None
        if prepared is not None:
            return prepared
        if isinstance(x, Mapping):
            return x
        names = ", ".join(spec.name for spec in self.inputs)
        expected = f"an array for {names}" if self._only_input else f"arrays by name: {names}"
        raise UsageError(f"{self.name} cannot take this", got=type(x).__name__, expected=expected)

    def warm_up(self, runs: int = 3) -> None:
        """Run the first golden sample a few times, unrecorded: the first runs of most runtimes still prepare."""
        sample = self._bundle.golden().take(slice(0, 1))
        with self.lock:
            for _ in range(runs):
                run_samples(self.session, sample.inputs, state=self.manifest.state)

    def golden_test(self, n: int | None = BOOT_SAMPLES) -> GoldenOutcome:
        """Run the bundle's golden set, unrecorded, and judge it by the tolerance set when it was made.

        Args:
            n: How many samples; None for all.

        Raises:
            InvalidFileError: The bundle holds no tolerance for this artifact.
        """
        tolerance = self.manifest.golden.tolerance.get(self.plan.artifact)
        if tolerance is None:
            raise InvalidFileError(
                f"{self.name}: manifest.json has no golden tolerance of {self.plan.artifact}"
            )
        golden = self._bundle.golden()
        with self.lock:
            return run_golden(
                self.session,
                golden,
                tolerance,
                task=self.manifest.task,
                n=n,
                state=self.manifest.state,
            )

    def watch(self, recorder: Recorder, outbox: Outbox) -> None:
        """Record every inference from now on; the recorder and the outbox end with the model."""
        self._let_go.detach()
        self.monitor = monitor_for(self._bundle, self.plan)
        recorder.watch(self.monitor)
        self._let_go = weakref.finalize(self, _let_go, self.session, recorder, outbox)

    def close(self) -> None:
        """Store the last window and free the native model; a second call does nothing."""
        with self.lock:
            self._run = _closed
            self._let_go()

    def abandon(self) -> None:
        """Give the model up without touching it: it is the parent's, and this process was forked."""
        self._let_go.detach()
        # never freed, not even at exit: native libraries would wait there for threads that were not forked
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.session))
        self._run, self.monitor = _forked, None
        self.lock = threading.Lock()  # the parent's may be held, by a thread that is not here

    def __enter__(self) -> Model:  # noqa: PYI034  typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _raw_axes(spec: TensorSpec) -> tuple[int, ...]:
    """Return how many axes an array of bytes has that is no feed for this input, but pixels."""
    if spec.dtype != "uint8":
        return (2, 3, 4)
    return tuple(axes for axes in (2, 3) if axes != len(spec.shape))


_LOADED: weakref.WeakSet[Model] = weakref.WeakSet()


def _abandon_all() -> None:
    """Give up, in a child that has just been forked, every model that was loaded before the fork."""
    for model in tuple(_LOADED):
        model.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _let_go(session: Session, recorder: Recorder | None, outbox: Outbox | None) -> None:
    """End what a model owns; runs at exit too, for a program that never closes its model."""
    if recorder is not None:
        recorder.stop()
    if outbox is not None:
        outbox.close()
    session.close()


def _forked(_feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise UsageError(
        "the model was loaded before this process was forked, and its threads have stayed behind",
        hint="Load it in the child: edgekit.load after the fork.",
    )


def _closed(_feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise UsageError("the model is closed", hint="Load it again with edgekit.load.")


def load(
    bundle: str | Path | Bundle,
    *,
    device: str | None = None,
    runtime: str | None = None,
    state_dir: str | Path | None = None,
    monitor: bool = True,
    window_s: float = 60.0,
    allow_fallback: bool = False,
    allow_unproven: bool = False,
    threads: int | None = None,
) -> Model:
    """Load a bundle on this device: plan, open, warm up, self-test, watch.

    Args:
        bundle: A bundle's folder or `.edgekit` file, or an opened bundle.
        device: Profile to plan for; None to detect it.
        runtime: The only runtime to use; None for the device's preference.
        state_dir: Where reports wait for the agent; None for the default state folder.
        monitor: Whether to record what the model does, and report it.
        window_s: Length of a report's window.
        allow_fallback: With `device` or `runtime`, whether another provider will do when the first is absent.
        allow_unproven: Whether an artifact whose accuracy is not proven counts as an accepted one.
        threads: Threads of the runtime; None for the profile's number.

    Raises:
        InvalidFileError: A file of the bundle is damaged; the message names it.
        UnavailableError: No runtime for it is installed, or what was asked for by name is absent.
        RefusedError: The golden self-test failed.
        UsageError: Nothing in the bundle fits the device, or an argument makes no sense.

    Example:
        >>> import edgekit
        >>> model = edgekit.load("digits.edgekit")  # doctest: +SKIP
        >>> model.predict(images)  # doctest: +SKIP
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if threads is not None and not 1 <= threads <= MOST_THREADS:  # LiteRT dies of 100,000
        raise UsageError("no such number of threads", got=threads, expected=f"1 to {MOST_THREADS}")
    plan, model = open_here(
        opened,
        start,
        device=device,
        runtime=runtime,
        allow_fallback=allow_fallback,
        allow_unproven=allow_unproven,
        threads=threads,
        state_dir=state_dir,
    )
    model.plan = plan
    if monitor:
        outbox = Outbox(open_state(state_dir).outbox)
        recorder = Recorder(outbox, window_s)
        model.watch(recorder, outbox)
        recorder.start()
    return model


def start(bundle: Bundle, plan: Plan) -> Model:
    """Open the plan's artifact, warm it up and test it on the first golden samples; nothing watches it yet.

    Raises:
        UnavailableError: The plan's runtime or its first provider is not there, or did not start.
        RefusedError: The golden self-test failed.
    """
    model = Model(bundle, plan, open_plan(bundle, plan))
    try:
        model.warm_up()
        _self_test(model)
    except BaseException:
        model.close()
        raise
    return model


def _self_test(model: Model) -> None:
    outcome, plan = model.golden_test(), model.plan
    if not outcome.passed:
        raise RefusedError(
            f"{model.name} {model.version} failed its golden self-test as {plan.artifact} in {plan.runtime}"
            f" on {plan.device}: {outcome.reason}",
            hint="Convert again for this device, or try another artifact with --runtime.",
        )


def monitor_for(bundle: Bundle, plan: Plan) -> ModelMonitor:
    """Return a monitor for the plan's artifact, with the reference that the bundle has for it."""
    manifest = bundle.manifest
    return ModelMonitor(
        model=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        artifact=plan.artifact,
        runtime=plan.runtime,
        device=plan.device,
        task=manifest.task,
        reference=bundle.references().get(plan.artifact),
    )
