"""How a version comes to be served: tried in a child, counted on disk, loaded, and only then switched to.

A version that fails at any of these steps is kept as a refused candidate with the reason, and what was active stays.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable

import msgspec

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.daemon import memory
from edgekit.daemon.repository import prune, reopen, shelved
from edgekit.daemon.slots import Slots, Version, change, filled, refused, returned, switched
from edgekit.daemon.starts import MOST_STARTS, WITHIN_S, Starts
from edgekit.daemon.trial import TIME_LIMIT_S, try_bundle
from edgekit.daemon.trial_child import LoadOptions
from edgekit.errors import EdgeKitError, InvalidFileError, MachineError, RefusedError, UsageError
from edgekit.model import Model, load, monitor_for
from edgekit.monitor.recorder import Recorder
from edgekit.probe import runtime_key
from edgekit.state import StateFolder

__all__ = ["Attempt", "Lifecycle", "attempts"]

_log = logging.getLogger("edgekit.daemon")

#: What makes the daemon go back to the version before: the version's own fault, or its files'. An option that does not
#: fit, or a runtime that is not installed, is the operator's to mend.
_ITS_FAULT = (InvalidFileError, RefusedError, MachineError)


class Attempt(msgspec.Struct, frozen=True):
    """One version to load for a name.

    Attributes:
        slot: Where it is: `candidate`, `active` or `previous`.
        version: The version.
        trial: Whether it has to prove itself in a child first.
    """

    slot: str
    version: Version
    trial: bool


def attempts(slots: Slots, served: int | None, is_proven: Callable[[Version], bool]) -> list[Attempt]:
    """Decide what to load for a name, and what instead if that fails.

    Args:
        slots: Its slots.
        served: The version that is served already; None for none.
        is_proven: Tells whether a version that was active before may be loaded without another trial.
    """
    active, previous, candidate = slots.active, slots.previous, slots.candidate
    found: list[Attempt] = []
    if candidate is not None and not candidate.reason:
        found.append(Attempt("candidate", candidate, trial=True))
    if active is not None and served is None:
        found.append(Attempt("active", active, trial=not is_proven(active)))
        if previous is not None:
            found.append(Attempt("previous", previous, trial=not is_proven(previous)))
    if not found and candidate is not None:  # asked for again: its reason may have gone
        found.append(Attempt("candidate", candidate, trial=True))
    if not found and active is not None:
        found.append(Attempt("active", active, trial=not is_proven(active)))
    return found


class Lifecycle:
    """Loads versions of installed bundles and keeps their slots; loads one thing at a time.

    Args:
        state: The state folder, whose daemon's lock is held.
        options: How every model is loaded.
        recorder: Watches every model.
        allowed_mib: What all models together may take, in MiB; None for what the machine has.
        trial_s: Longest trial, in seconds.
        starts: The loads that ended the daemon; None for those in the state folder.
    """

    def __init__(
        self,
        state: StateFolder,
        options: LoadOptions,
        recorder: Recorder,
        *,
        allowed_mib: float | None = None,
        trial_s: float = TIME_LIMIT_S,
        starts: Starts | None = None,
    ) -> None:
        self._state, self._options, self._recorder = state, options, recorder
        self._allowed_mib, self._trial_s = allowed_mib, trial_s
        self.starts = starts or Starts(state)
        self._gate = threading.Lock()
        self._served: dict[Model, float] = {}  # and the memory that each takes, in MiB
        self._reasons: dict[tuple[str, int], str] = {}  # of what failed and is in its slot all the same

    def served(self, name: str) -> int | None:
        """Return the version of a name that was loaded last and is still served."""
        with self._gate:
            return next((model.version for model in reversed(self._served) if model.name == name), None)

    def shelf(self) -> list[tuple[str, int, str]]:
        """Return (name, version, why it is not served) of every slot; of each name first the one to load next."""
        found: list[tuple[str, int, str]] = []
        for name, slots, _ in shelved(self._state):
            following = [attempt.version for attempt in attempts(slots, self.served(name), self._is_proven)]
            ordered = dict.fromkeys(version.version for version in [*following, *filled(slots)])
            reasons = {version.version: self._reason(name, slots, version) for version in filled(slots)}
            found += [(name, number, reasons[number]) for number in ordered]
        return found

    def _reason(self, name: str, slots: Slots, version: Version) -> str:
        kept = "kept to go back to" if version.is_same(slots.previous) else ""
        return version.reason or self._reasons.get((name, version.version), "") or kept

    def load(self, name: str, opened: Bundle | None = None) -> Model:
        """Load what the slots of a name say, or what they fall back to, while what is served goes on.

        Args:
            name: The model.
            opened: The candidate, where it has just been checked.

        Raises:
            EdgeKitError: None could be loaded; the reason of the first one.
        """
        served = self.served(name)
        todo = attempts(self._slots(name), served, self._is_proven)
        first: EdgeKitError | None = None
        for attempt, after in zip(todo, [*todo[1:], None], strict=True):
            same = opened is not None and opened.digest == attempt.version.digest
            try:
                return self._bring(
                    name, attempt, opened if same else None, alone=after is None and served is None
                )
            except EdgeKitError as error:
                first = first or error
                self._failed(name, attempt, error)
                if after is not None:
                    _log.error("model %s: %s", name, error)
                if after is None or (attempt.slot == "active" and not isinstance(error, _ITS_FAULT)):
                    break
        assert first is not None
        raise first

    def unload(self, model: Model) -> None:
        """Take note that a model is served no longer; called before it is closed."""
        if model.monitor is not None:
            self._recorder.unwatch(model.monitor)
        with self._gate:
            self._served.pop(model, None)
            again = any((m.name, m.version) == (model.name, model.version) for m in self._served)
        if not again:
            self.starts.ended(model.name, model.version)

    def _proof(self, runtime: str) -> str:
        """Return a digest of what a trial in a runtime proves something for: this EdgeKit, its options, the runtime."""
        key = msgspec.json.encode([__version__, self._options, runtime, runtime_key(runtime)])
        return hashlib.sha256(key).hexdigest()[:16]

    def _is_proven(self, version: Version) -> bool:
        try:
            return version.proven == self._proof(version.runtime)
        except UsageError:  # a runtime that there is no more
            return False

    def _slots(self, name: str) -> Slots:
        found = next((each.slots for each in shelved(self._state) if each.name == name), None)
        if found is None:
            raise UsageError(f"no bundle of the name {name!r} is installed")
        return found

    def _bring(self, name: str, attempt: Attempt, opened: Bundle | None, *, alone: bool) -> Model:
        """Check a version's files, try it if it has to prove itself, load it, and switch to it.

        Args:
            name: The model.
            attempt: The version.
            opened: The same, where it has just been checked.
            alone: Whether nothing is there to fall back to: then it is loaded even in a crash loop.
        """
        bundle = opened or self._opened(name, attempt.version)
        version = msgspec.structs.replace(attempt.version, digest=bundle.digest, reason="")
        if attempt.trial:
            version = self._tried(bundle, version)
        starts = self.starts.begin(name, version.version)
        try:
            if starts >= MOST_STARTS:
                _check_crash_loop(name, version.version, starts, alone=alone)
            model = self._load(bundle)
        except BaseException:
            self.starts.ended(name, version.version)
            raise
        self.starts.loaded(name, version.version)
        with self._gate:
            self._served[model] = version.memory_mib
        try:
            self._switch(name, attempt, version)
        except BaseException:
            self.unload(model)
            model.close()
            raise
        return model

    def _opened(self, name: str, version: Version) -> Bundle:
        try:
            return reopen(self._state, name, version)
        except OSError as error:  # a card that cannot be read any more: another version may be
            raise MachineError(
                f"version {version.version} of {name} cannot be read: {error.strerror} ({error.filename})"
            ) from error

    def _tried(self, bundle: Bundle, version: Version) -> Version:
        with self._gate:
            held_mib = sum(self._served.values())
        what = f"{bundle.manifest.name} {bundle.manifest.version}"
        trial = try_bundle(
            bundle.root,
            self._state.root,
            self._options,
            what=what,
            room_mib=memory.room_mib(memory.available_mib(), self._allowed_mib, held_mib),
            time_limit_s=self._trial_s,
        )
        return msgspec.structs.replace(
            version,
            memory_mib=round(trial.memory_mib, 1),
            runtime=trial.runtime,
            proven=self._proof(trial.runtime),
        )

    def _load(self, bundle: Bundle) -> Model:
        options = self._options
        model = load(
            bundle,
            device=options.device,
            runtime=options.runtime,
            state_dir=self._state.root,
            monitor=False,
            allow_fallback=options.allow_fallback,
            allow_unproven=options.allow_unproven,
            threads=options.threads,
        )
        model.monitor = monitor_for(bundle, model.plan)
        self._recorder.watch(model.monitor)
        return model

    def _switch(self, name: str, attempt: Attempt, version: Version) -> None:
        """Store that a version is served: durably for a new one; for one that was active before, as well as may be."""
        if attempt.slot == "candidate":
            change(self._state, name, lambda slots: switched(slots, version))
            try:
                prune(self._state, name)
            except (OSError, MachineError) as error:  # the next switch tries again
                _log.warning("old versions of %s stay on disk: %s", name, error)
        elif attempt.slot == "active":
            self._note(name, lambda slots: switched(slots, version))
        else:
            self._note(name, self._going_back(name))
        self._reasons.pop((name, version.version), None)

    def _going_back(self, name: str) -> Callable[[Slots], Slots]:
        def step(slots: Slots) -> Slots:
            active = slots.active
            if active is None or not self._is_proven(active):
                return slots  # it may be the options, or a new EdgeKit: with the next start it is tried again
            return returned(slots, self._reasons.get((name, active.version), "it did not load"))

        return step

    def _failed(self, name: str, attempt: Attempt, error: EdgeKitError) -> None:
        self._reasons[name, attempt.version.version] = str(error)
        if attempt.slot == "candidate":
            self._note(name, lambda slots: _with_reason(slots, attempt.version, str(error)))

    def _note(self, name: str, step: Callable[[Slots], Slots]) -> None:
        """Change slots where a disk that is full must not keep a good version from being served."""
        try:
            change(self._state, name, step)
        except MachineError as error:
            _log.error("%s", error)


def _with_reason(slots: Slots, version: Version, reason: str) -> Slots:
    """Refuse a candidate, unless another has taken its place while it was tried."""
    waiting = slots.candidate
    return slots if waiting and waiting.version != version.version else refused(slots, version, reason)


def _check_crash_loop(name: str, version: int, starts: int, *, alone: bool) -> None:
    said = f"{name} {version} ended the daemon: {starts} starts within {WITHIN_S / 60:g} minutes"
    if not alone:
        raise RefusedError(said, hint="Install another version.")
    _log.error("%s, and there is no other version", said)
