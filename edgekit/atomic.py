"""Putting a file or a folder in its place whole or not at all, across failures and power cuts.

What is new is written beside its place under a hidden name, made durable, then renamed. Where something is
replaced, Linux swaps old and new in one step (`renameat2` with `RENAME_EXCHANGE`), so that a reader always
finds one of them. On a file system without it, a folder is moved aside first: for that moment nothing is in
its place, and if the power fails just then the old one is found beside it as `.NAME.*.old`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.errors import MachineError, UsageError
from edgekit.state import fsync_folder, make_folders

__all__ = ["fsync_tree", "place", "remove", "staged"]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
#: What the kernel or the file system answers when it does not know a flag of `renameat2`.
_NO_SUCH_FLAG = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
#: Failures of the machine; anything else in here is a bug and keeps its traceback.
_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
    errno.ENOTDIR,
)  # fmt: skip


@contextmanager
def staged(out: Path, *, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a path to write to; when the body ends well, what is there takes the place of `out`.

    Args:
        out: Where the file or folder shall be; missing parents are made.
        overwrite: Whether something may be replaced there.
        replaceable: Tells whether what is at `out` is of the kind that may be replaced.

    Yields:
        A path beside `out` that does not exist yet; make a file or a folder there.

    Raises:
        UsageError: `out` exists and may not be replaced; nothing has been written.
        MachineError: The disk is full, or writing is not permitted; nothing has been replaced.
    """
    _check_vacant(out, overwrite, replaceable)
    temporary = out.with_name(f".{out.name}.{os.urandom(6).hex()}.tmp")
    try:
        make_folders(out.parent)
        yield temporary
        fsync_tree(temporary)
        aside = place(temporary, out, overwrite=overwrite)
        fsync_folder(out.parent)  # before anything is removed: else a power cut could leave neither
        if aside is not None:
            remove(aside)
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        raise MachineError(
            f"cannot write {out}: {error.strerror} ({error.filename or temporary.name})",
            hint="Nothing was replaced; make room or give another place.",
        ) from error
    finally:
        remove(temporary)


def _check_vacant(out: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    if not out.name or out.name == "..":
        raise UsageError(f"{str(out)!r} cannot be written", expected="a path that ends in a name")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out} exists", hint="Give another path, or --overwrite.")
    if out.is_symlink() or not replaceable(out):
        raise UsageError(
            f"{out} is not something that EdgeKit wrote",
            expected="a bundle to overwrite",
            hint="Give another path, or remove it yourself.",
        )


def place(new: Path, out: Path, *, overwrite: bool) -> Path | None:
    """Rename `new` to `out`. With `overwrite`, what was at `out` is then at `new`, or gone, or at what is returned.

    Raises:
        UsageError: `out` has appeared meanwhile, and `overwrite` is not given.
    """
    if not os.path.lexists(out):
        if not _rename(new, out, _RENAME_NOREPLACE):
            new.rename(out)
    elif not overwrite:
        raise UsageError(f"{out} has appeared meanwhile", hint="Give another path, or --overwrite.")
    elif new.is_file() and out.is_file():
        new.replace(out)
    elif not _rename(new, out, _RENAME_EXCHANGE):
        return _swap_in_two_steps(new, out)
    return None


def _rename(new: Path, out: Path, flag: int) -> bool:
    """Rename with a flag; False where this system knows no such flag."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(out), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_FLAG:
        return False
    if code == errno.EEXIST:
        raise UsageError(f"{out} has appeared meanwhile", hint="Give another path, or --overwrite.")
    raise OSError(code, os.strerror(code), str(out))


def _swap_in_two_steps(new: Path, out: Path) -> Path:
    """Move what is at `out` aside, to the path returned, and `new` into its place."""
    aside = out.with_name(f".{out.name}.{os.urandom(6).hex()}.old")
    out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    return aside


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(NotADirectoryError):  # nothing can be there: its folder is a file
            path.unlink(missing_ok=True)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with all that it holds, durable."""
    if not path.is_dir():
        _fsync_file(path)
        return
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _fsync_file(Path(folder, name))
        fsync_folder(Path(folder))


def _fsync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
