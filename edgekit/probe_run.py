"""The child process of a probe, seen from the parent: asked, and judged."""

from __future__ import annotations

import sys

import msgspec

from edgekit.child import Heard, ask_child
from edgekit.probe import Finding
from edgekit.probe_child import STEPS
from edgekit.process import how_ended

__all__ = ["ask"]


def ask(name: str, timeout_s: float) -> Finding | None:
    """Let a child try the runtime; None where no child can be started."""
    if not sys.executable or getattr(
        sys, "frozen", False
    ):  # that would start this program again, not a Python
        return None
    try:
        heard = ask_child("edgekit.probe_child", name, timeout_s)
    except OSError:
        return None
    return _judge(heard, timeout_s)


class _Message(msgspec.Struct):
    """One line of a child: a step that begins, or the finding."""

    step: str = ""
    finding: Finding | None = None


def _judge(heard: Heard, timeout_s: float) -> Finding:
    """Return the finding in what a child said and how it ended."""
    messages = [_message(line) for line in heard.answer.splitlines()]
    finding = next((each.finding for each in messages if each.finding), None)
    if finding is not None:
        return finding
    step = next((each.step for each in reversed(messages) if each.step), STEPS[0])
    if heard.code is None:
        return Finding(problem=f"it gave no answer within {timeout_s:g} s while {step}")
    said = heard.last_words
    return Finding(problem=f"it {how_ended(heard.code)} while {step}" + (f": {said}" if said else ""))


def _message(line: bytes) -> _Message:
    try:
        return msgspec.json.decode(line, type=_Message)
    except msgspec.DecodeError:  # a library wrote into a descriptor that is not its own, or was cut off
        return _Message()
