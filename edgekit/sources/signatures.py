"""Which signature of a file with several is the model. A pure decision, for SavedModel and TFLite."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import ConversionError, UsageError

__all__ = ["DEFAULT_SIGNATURE", "choose_signature"]

DEFAULT_SIGNATURE = "serving_default"


def choose_signature(names: Sequence[str], wanted: str, what: str) -> str:
    """Return the signature asked for, else `serving_default`, else the only one.

    Args:
        names: Signatures of the file.
        wanted: What the user asked for; empty for no wish.
        what: The file, for an error.

    Raises:
        UsageError: There is none of the name asked for, or several and no way to choose.
        ConversionError: There is none at all.
    """
    listed = ", ".join(sorted(names))
    if wanted:
        if wanted not in names:
            raise UsageError(
                f"{what} has no signature {wanted!r}",
                expected=f"one of {listed}" if listed else "no --signature",
            )
        return wanted
    if DEFAULT_SIGNATURE in names:
        return DEFAULT_SIGNATURE
    if not names:
        raise ConversionError(
            f"{what} has no signature", hint="Save it with tf.saved_model.save(model, folder, signatures=…)."
        )
    if len(names) > 1:
        raise UsageError(
            f"{what} has several signatures and none is {DEFAULT_SIGNATURE!r}",
            got=listed,
            hint="Choose one with --signature.",
        )
    return names[0]
