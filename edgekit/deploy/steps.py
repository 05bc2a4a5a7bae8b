"""A deployment from its first look to its evidence: each step says what it did, and a failed check comes before any of them."""

from __future__ import annotations

import hashlib
import posixpath
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit.attest import Attestation, Evidence, verify_evidence
from edgekit.bundle import Bundle, slice_bundle
from edgekit.daemon.units import start_command
from edgekit.deploy.checks import Check, check_device, check_packages, check_room, room_needed
from edgekit.deploy.copying import Sent, send
from edgekit.deploy.link import Link, Ran, plain
from edgekit.deploy.packages import Packages, device_extras, fetch
from edgekit.deploy.services import enable_service
from edgekit.deploy.survey import Survey, look
from edgekit.deploy.there import Installed, Request
from edgekit.errors import (
    EdgeKitError,
    InvalidFileError,
    MachineError,
    NetworkError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgekit.manifest import Plan
from edgekit.wheels import DeviceSystem

__all__ = ["Deployed", "Wish", "ask_installed", "deploy", "environment_of"]

_T = TypeVar("_T")

_KINDS = {
    1: MachineError,
    2: UsageError,
    4: RefusedError,
    5: UnavailableError,
    6: InvalidFileError,
    7: NetworkError,
}
#: Seconds: to make the environment, to prove a bundle.
_INSTALL_S, _PROVE_S = 1800.0, 1800.0

#: Is told what was checked or done, as it goes.
Tell = Callable[[Check], None]
Progress = Callable[[str, int, int], None]


class Wish(msgspec.Struct, frozen=True):
    """How a bundle is to be deployed.

    Attributes:
        root: EdgeKit's folder on the device; a relative one is in the login's home.
        state: The state folder there, likewise.
        device: A profile to go by in place of the detected one.
        runtime: The only runtime to consider.
        allow_fallback: What really runs there may be less than what was planned.
        service: `auto`, `system`, `user` or `none`.
        dry_run: Check only.
    """

    root: str
    state: str
    device: str | None = None
    runtime: str | None = None
    service: str = "auto"
    allow_fallback: bool = False
    dry_run: bool = False


class Deployed(msgspec.Struct):
    """What a deployment saw and did; filled in as it goes.

    Attributes:
        address: The device's.
        bundle: Name and version.
        digest: The bundle's.
        device: Profile that was detected.
        reasons: Of the detection.
        root: EdgeKit's folder there, absolute.
        state: The state folder there.
        plan: For the device.
        sent: What travelled: `wheels` and `bundle`, as far as they did.
        checks: What was looked at before anything changed.
        steps: What was done.
        start: The command that starts the daemon there.
        device_id: Of its key.
        attestation: What it signed.
    """

    address: str
    bundle: str
    digest: str
    device: str = ""
    reasons: tuple[str, ...] = ()
    root: str = ""
    state: str = ""
    plan: Plan | None = None
    sent: dict[str, Sent] = {}
    checks: list[Check] = []
    steps: list[Check] = []
    start: list[str] = []
    device_id: str = ""
    attestation: Attestation | None = None


def deploy(bundle: Bundle, link: Link, wish: Wish, done: Deployed, tell: Tell, progress: Progress) -> None:
    """Check the device and, unless only that is wished, put the bundle onto it and prove it there.

    Args:
        bundle: What is deployed; of it, the slice of the device's plan.
        link: To the device, open.
        wish: How.
        done: Is filled in as it goes, so that what was seen is there after an error too.
        tell: Is told each check and each step.
        progress: Is told (phrase, done, all).

    Raises:
        RefusedError: The device fails a check (nothing was changed there), or the golden set fails on it.
        NetworkError: The link broke; the same again goes on where it stopped.
        EdgeKitError: What else a step raises.
    """
    survey, plan, packages = _check(bundle, link, wish, done, tell, progress)
    if wish.dry_run:
        return
    link.ask("begin", dict, root=wish.root)

    def step(name: str, said: str, *, passed: bool = True) -> None:
        done.steps.append(Check(name, passed, said))
        tell(done.steps[-1])

    step("environment", _install(link, survey, packages, done, progress))
    python = environment_of(survey.root, packages.key)
    name = f"{bundle.manifest.name}/{bundle.manifest.version}"
    holds = Request("holds", survey.state, name, bundle.digest, plan.artifact)
    place = ask_installed(link, python, holds, Installed, _PROVE_S).path
    if place:
        step("bundle", "installed there already")
        step("self-test", _golden_words(_prove(link, survey, python, place, bundle, wish, done)))
    else:
        folder, done.sent["bundle"] = _send_slice(bundle, plan, link, progress)
        step("bundle", str(done.sent["bundle"]))
        sent_to = posixpath.join(survey.root, folder)
        try:
            step("self-test", _golden_words(_prove(link, survey, python, sent_to, bundle, wish, done)))
        except (RefusedError, UnavailableError):
            link.ask("remove", dict, name=folder)
            raise
        place = sent_to
    install = Request("install", survey.state, place, bundle.digest)  # what is there already is put up again
    place = ask_installed(link, python, install, Installed, _PROVE_S).path
    link.ask("keep", dict, name="incoming", kept=[])
    link.ask("link", dict, name="current", target=f"environments/{packages.key}")
    step("installed", f"version {bundle.manifest.version} of {bundle.manifest.name} in {plain(place)}")
    done.start = start_command(
        posixpath.join(survey.root, "current/bin/python"), survey.state, _serve_words(wish)
    )
    enabled = enable_service(link, survey, wish.service, done.start)
    step("service", enabled.said, passed=enabled.passed)
    link.ask(
        "keep", dict, name="environments", kept=[packages.key, survey.current]
    )  # a daemon may still run from the last
    if not enabled.passed:
        raise MachineError(
            f"everything is installed on {link.address}, but the service does not run: {enabled.said}"
        )


def _send_slice(bundle: Bundle, plan: Plan, link: Link, progress: Progress) -> tuple[str, Sent]:
    """Send what the plan needs of the bundle; return the folder on the device, and what it took."""
    folder = f"incoming/{bundle.digest}-{hashlib.sha256(plan.artifact.encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        part = slice_bundle(bundle, [plan.artifact], Path(scratch) / "slice")
        files = {
            str(path.relative_to(part.root)): path for path in sorted(part.root.rglob("*")) if path.is_file()
        }
        sent = send(link, folder, files, lambda n, total: progress("sending the bundle", n, total))
    return folder, sent


def _serve_words(wish: Wish) -> tuple[str, ...]:
    device = ("--device", wish.device) if wish.device else ()
    return (*device, *(("--runtime", wish.runtime) if wish.runtime else ()))


def _check(
    bundle: Bundle, link: Link, wish: Wish, done: Deployed, tell: Tell, progress: Progress
) -> tuple[Survey, Plan, Packages]:
    def note(check: Check) -> None:
        done.checks.append(check)
        tell(check)

    survey = look(link, wish.root, wish.state, services=wish.service != "none")
    done.device, done.reasons = survey.detection.profile_id, survey.detection.reasons
    done.root, done.state = survey.root, survey.state
    checks, plan = check_device(
        survey, bundle.manifest, bundle.kept, device=wish.device, runtime=wish.runtime
    )
    done.plan = plan
    for check in checks:
        note(check)
    packages: Packages | None = None
    if plan is not None and all(check.passed for check in checks):
        packages, problem = _fetched(survey, plan, bundle, progress)
        note(check_packages(packages, problem, survey))
    if packages is not None and plan is not None:
        note(check_room(survey, room_needed(packages, bundle.manifest, plan, survey)))
    failed = [check for check in done.checks if not check.passed]
    if failed or plan is None or packages is None:
        said = "; ".join(f"{each.name}: {each.said}" for each in failed)
        raise RefusedError(f"{link.address} fails its check, and nothing was changed there: {said}")
    return survey, plan, packages


def _fetched(
    survey: Survey, plan: Plan, bundle: Bundle, progress: Progress
) -> tuple[Packages | None, EdgeKitError | None]:
    """Return the wheels, or why there are none for this device; an index that cannot be reached is no fault of it."""
    python = ".".join(survey.python.split(".")[:2])
    system = DeviceSystem(survey.machine, survey.glibc, python)
    try:
        return fetch(
            system, device_extras(plan.runtime, bundle.manifest), lambda what: progress(what, 0, 0)
        ), None
    except UnavailableError as error:
        return None, error


def environment_of(root: str, key: str) -> str:
    """Return the interpreter of an environment on the device."""
    return posixpath.join(root, "environments", key, "bin", "python")


def _install(link: Link, survey: Survey, packages: Packages, done: Deployed, progress: Progress) -> str:
    """Make the environment, unless it is there whole; return what was done."""
    if packages.key in survey.environments:
        return "installed there already"
    done.sent["wheels"] = send(
        link,
        "incoming/wheels",
        {path.name: path for path in packages.wheels},
        lambda n, total: progress("sending the wheels", n, total),
    )
    progress("making the environment", 0, 0)
    folder = f"environments/{packages.key}"
    link.ask("remove", dict, name=folder)
    wheels = [posixpath.join(survey.root, "incoming/wheels", path.name) for path in packages.wheels]
    pip = next(path for path in wheels if posixpath.basename(path).startswith("pip-")) + "/pip"
    python = environment_of(survey.root, packages.key)
    base = link.ask("interpreter", dict)["path"]
    _must(
        link,
        [base, "-m", "venv", "--without-pip", posixpath.join(survey.root, folder)],
        "making the environment",
    )
    install = [python, pip, "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"]
    chosen = [wheel for wheel in wheels if not posixpath.basename(wheel).startswith("pip-")]
    _must(link, [*install, "--disable-pip-version-check", *chosen], "installing the wheels")
    _must(link, [python, pip, "--disable-pip-version-check", "check"], "checking the environment")
    link.ask(
        "write", dict, name=f"{folder}/complete", text="\n".join(path.name for path in packages.wheels) + "\n"
    )
    link.ask("remove", dict, name="incoming/wheels")
    return f"{len(packages.wheels)} wheels installed ({done.sent['wheels']})"


def _must(link: Link, words: list[str], what: str) -> Ran:
    done = link.run(words, limit_s=_INSTALL_S)
    if done.code == 0 and not done.ending:
        return done
    said = [line for line in (done.err or done.out).splitlines() if line.strip()]
    reason = done.ending or next(
        (line for line in reversed(said) if line.startswith("ERROR")), (said or ["no message"])[-1]
    )
    raise MachineError(
        f"{what} on {link.address} failed: {plain(reason).rstrip('.')}", hint="Run the command again."
    )


def ask_installed(link: Link, python: str, request: Request, kind: type[_T], limit_s: float) -> _T:
    """Ask the EdgeKit that is installed on the device.

    Raises:
        EdgeKitError: It said no, with the kind it gave.
        NetworkError: It said what cannot be read.
    """
    words = [python, "-I", "-m", "edgekit.deploy.there", msgspec.json.encode(request).decode()]
    done = link.run(words, limit_s=limit_s)
    if done.ending:
        raise MachineError(f"EdgeKit on {link.address} was stopped: {plain(done.ending)}")
    if done.code:
        last = plain(
            (done.err.strip().splitlines() or ["no message"])[-1].removeprefix("edgekit: error: "), 600
        )
        raise _KINDS.get(done.code, MachineError)(f"on {link.address}: {last}")
    try:
        return msgspec.json.decode(done.out.strip().rpartition("\n")[2], type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NetworkError(f"EdgeKit on {link.address} said what cannot be read") from error


def _prove(
    link: Link, survey: Survey, python: str, place: str, bundle: Bundle, wish: Wish, done: Deployed
) -> Evidence:
    """Run the golden set on the device and return what it signed."""
    nonce = secrets.token_hex(16)
    device = ("--device", wish.device, "--allow-fallback") if wish.device else ()
    runtime = ("--runtime", wish.runtime) if wish.runtime else ()
    words = (*device, *runtime)
    request = Request("prove", survey.state, place, bundle.digest, nonce=nonce, verify=words)
    attestation = ask_installed(link, python, request, Attestation, _PROVE_S)
    evidence = verify_evidence(attestation, nonce=nonce)
    done.attestation, done.device_id = attestation, evidence.device_id
    if evidence.digest != bundle.digest:
        raise NetworkError(f"{link.address} has proven another bundle", got=evidence.digest[:12])
    if not evidence.golden_passed:
        raise RefusedError(
            f"the golden set fails on {link.address}: {_golden_words(evidence)}",
            hint="What was installed there before still serves. Try another --runtime, or convert again for this device.",
        )
    lost = _stepped_down(done.plan, evidence)
    if lost and not wish.allow_fallback:
        raise UnavailableError(
            f"{link.address} cannot run what was planned for it",
            got=lost,
            expected=_place(done.plan.artifact, done.plan.runtime, done.plan.providers)
            if done.plan
            else None,
            hint="Accept it with --allow-fallback, or see to its drivers: `edgekit doctor` there.",
        )
    return evidence


def _stepped_down(plan: Plan | None, evidence: Evidence) -> str:
    """Return what ran on the device where that is not what was planned for it, in words; else nothing."""
    told = evidence.verify.get("plan")
    told = told if isinstance(told, dict) else {}
    providers = told.get("providers")
    ran = _place(
        str(told.get("artifact")),
        str(told.get("runtime")),
        tuple(map(str, providers)) if isinstance(providers, list) else (),
    )
    planned = _place(plan.artifact, plan.runtime, plan.providers) if plan else ran
    return "" if ran == planned else plain(ran)


def _place(artifact: str, runtime: str, providers: tuple[str, ...]) -> str:
    return f"{artifact} in {runtime}" + (f" on {providers[0]}" if providers else "")


def _golden_words(evidence: Evidence) -> str:
    def of(data: Any, *keys: str) -> Any:
        for key in keys:
            data = data.get(key) if isinstance(data, dict) else None
        return data

    verify = evidence.verify
    placement = of(verify, "placement")
    where = ", ".join(f"{k}: {v}" for k, v in placement.items()) if isinstance(placement, dict) else "?"
    n, reason = of(verify, "golden", "n"), of(verify, "golden", "reason")
    plan = f"{of(verify, 'plan', 'artifact')} in {of(verify, 'plan', 'runtime')} ({where})"
    return plain(f"{n} samples, {reason}; {plan}", 600)
