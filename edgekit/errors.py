"""The one error family: what went wrong, what was got, what was expected, what to do next.

Every error that a user can cause or meet is a leaf of `EdgeKitError`, and each leaf has the exit code
that the command line documents. Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

__all__ = [
    "ConversionError",
    "EdgeKitError",
    "InvalidFileError",
    "MachineError",
    "NetworkError",
    "RefusedError",
    "UnavailableError",
    "UsageError",
]


class EdgeKitError(Exception):
    """Say what happened in one line, and carry the exit code of its kind.

    Args:
        what: What went wrong, naming the file, option or tensor.
        got: What was found.
        expected: What would have been right.
        hint: The next step, as an imperative.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        expected: object | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        super().__init__(what)

    def __str__(self) -> str:
        facts = [
            f"{word} {value}"
            for word, value in (("got", self.got), ("expected", self.expected))
            if value is not None
        ]
        line = self.what + (": " + ", ".join(facts) if facts else "")
        return f"{line}. {self.hint}" if self.hint else line


class MachineError(EdgeKitError):
    """The machine failed us: disk full, permission denied."""

    exit_code = 1


class UsageError(EdgeKitError):
    """The request cannot be meant: unknown target, bad data, an option that does not apply."""

    exit_code = 2


class ConversionError(EdgeKitError):
    """No route to the format, or the converter failed on the way."""

    exit_code = 3


class RefusedError(EdgeKitError):
    """The gate or the golden set said no."""

    exit_code = 4


class UnavailableError(EdgeKitError):
    """A runtime, an extra or a device is not available here."""

    exit_code = 5


class InvalidFileError(EdgeKitError):
    """A bundle or a model file is damaged, or not what it claims to be."""

    exit_code = 6


class NetworkError(EdgeKitError):
    """A server could not be reached, or refused what was sent."""

    exit_code = 7
