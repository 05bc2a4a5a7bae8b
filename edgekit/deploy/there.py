"""What the installed EdgeKit does on the device for a deployment: `python -m edgekit.deploy.there REQUEST`.

REQUEST is one JSON object; one JSON object is printed. Errors end it as they end the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.attest import Attestation, Evidence, sign_evidence
from edgekit.errors import EdgeKitError, UsageError
from edgekit.process import python_command

__all__ = ["Installed", "Request", "main"]


class Request(msgspec.Struct, frozen=True):
    """What is asked.

    Attributes:
        do: `prove` a bundle, `install` it into the repository, tell whether that `holds` it, or `profile` it there.
        state: The state folder.
        bundle: The bundle's folder, absolute, or of an installed one `NAME/VERSION`.
        digest: That the bundle must have.
        artifact: That must be kept there; empty for any.
        nonce: Of the evidence.
        verify: Further words for `edgekit verify`.
        profile: Further words for `edgekit profile`.
    """

    do: str
    state: str
    bundle: str
    digest: str
    artifact: str = ""
    nonce: str = ""
    verify: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()


class Installed(msgspec.Struct, frozen=True):
    """Where the bundle is now; empty where it is not."""

    path: str


def main() -> int:
    """Do what the first argument asks; return the exit code."""
    try:
        request = msgspec.json.decode(sys.argv[1], type=Request)
        answer = {"install": _install, "holds": _holds}.get(request.do, _attest)(request)
    except EdgeKitError as error:
        print(f"edgekit: error: {error}", file=sys.stderr)
        return error.exit_code
    print(msgspec.json.encode(answer).decode())
    return 0


def _install(request: Request) -> Installed:
    from edgekit.daemon.repository import install
    from edgekit.state import open_state

    return Installed(str(install(request.bundle, open_state(request.state)).path))


def _holds(request: Request) -> Installed:
    from edgekit.bundle import open_bundle
    from edgekit.errors import InvalidFileError

    path = Path(request.state) / "repository" / request.bundle
    if not path.is_dir():
        return Installed("")
    try:
        bundle = open_bundle(path)
    except InvalidFileError:
        return Installed("")  # damaged: it is sent again, and replaced
    if bundle.digest != request.digest:
        version = bundle.manifest.version
        raise UsageError(
            f"version {version} of {bundle.manifest.name} is installed with another content",
            got=request.digest[:12],
            expected=bundle.digest[:12],
            hint=f"Give the new bundle another version: edgekit convert … --version {version + 1}.",
        )
    return Installed(str(path) if not request.artifact or request.artifact in bundle.kept else "")


def _attest(request: Request) -> Attestation:
    from edgekit.bundle import open_bundle
    from edgekit.detect import detect, isa_name
    from edgekit.identity import open_identity
    from edgekit.state import open_state

    state = open_state(request.state)
    path = state.repository / request.bundle  # an absolute one stands for itself
    bundle = open_bundle(path)
    if bundle.digest != request.digest:
        raise UsageError(f"{path} is another bundle", got=bundle.digest[:12], expected=request.digest[:12])
    here = detect()
    proven = _edgekit("verify", str(path), *request.verify)
    passed = isinstance(proven["golden"], dict) and proven["golden"]["passed"]
    measured = None
    if request.do == "profile" and passed:
        pinned_in = ("--state-dir", request.state) if "--pick" in request.profile else ()
        measured = _edgekit("profile", str(path), *request.profile, *pinned_in)
    identity = open_identity(state)
    evidence = Evidence(
        nonce=request.nonce,
        device_id=identity.device_id,
        device=here.profile_id,
        board=here.signals.get("model") or here.signals.get("cpu_name", ""),
        isa=isa_name(here.arch, here.isa),
        digest=bundle.digest,
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        edgekit=__version__,
        verify=proven,
        profile=measured,
        emulated=bool(os.environ.get("EDGEKIT_LAUNCHER")),
    )
    return sign_evidence(identity, evidence)


class _EdgeKitSaidError(EdgeKitError):
    """A command ended with an error: its line, and its exit code."""


def _edgekit(*words: str) -> dict[str, Any]:
    """Return what a command prints as JSON; a refusal with its evidence is an answer too."""
    done = subprocess.run(
        python_command("-m", "edgekit", *words, "--json"), capture_output=True, text=True, check=False
    )
    if done.returncode in (0, 4) and done.stdout.strip():
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("edgekit: error: ")
    error = _EdgeKitSaidError(last)
    error.exit_code = done.returncode if done.returncode > 0 else 1
    raise error


if __name__ == "__main__":
    sys.exit(main())
