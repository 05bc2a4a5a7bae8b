"""What kind of model a PyTorch or scikit-learn file is, told by the names in its archive: nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgekit.errors import InvalidFileError

__all__ = ["ARCHIVES", "identify_archive"]

#: Suffixes that `identify_archive` knows.
ARCHIVES = (".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".skops")

_PICKLED = (".pkl", ".pickle", ".joblib")
_EXPORT = "torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"


def identify_archive(path: Path) -> str:
    """Return `torch-export`, `torchscript` or `sklearn`.

    Raises:
        InvalidFileError: It is none of these; of a file of weights, says what to export.
    """
    names = _members(path)
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("models/") for name in inside) and "archive_format" in inside:
        return "torch-export"
    if "serialized_exported_program.json" in names:
        raise InvalidFileError(
            f"{path.name} was written by torch 2.7 or earlier, in a format that only unrestricted unpickling reads",
            hint="Export the model again: " + _EXPORT + ".",
        )
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "schema.json" in names and path.suffix.lower() == ".skops":
        return "sklearn"
    if "data.pkl" in inside or (path.suffix.lower() in (".pth", ".bin", ".ckpt", ".pt") and not names):
        raise InvalidFileError(
            f"{path.name} holds weights, or a pickled module, without a graph",
            expected="a program of torch.export",
            hint=f"Load it into its model, and export that: {_EXPORT}.",
        )
    if path.suffix.lower() in _PICKLED:
        return "sklearn"
    raise InvalidFileError(f"{path.name} is not what its name says", expected=_expected(path.suffix.lower()))


def _members(path: Path) -> frozenset[str]:
    """Return the names in a zip archive; none of a file that is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return frozenset()


def _expected(suffix: str) -> str:
    if suffix == ".skops":
        return "a zip archive with a schema.json, as skops.io.dump writes it"
    return "a zip archive, as " + _EXPORT + " writes it"
