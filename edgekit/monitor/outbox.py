"""The outbox: closed windows on disk until the server has them. SQLite, WAL, synchronous=FULL.

One process appends, the agent's reads and acknowledges; both may be killed at any instruction. What `append` said
it stored is there after a power cut; what the byte quota, a crash or a damaged file took is counted, and the
count travels in the next report.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from edgekit.monitor.schema import Event, WindowReport

__all__ = ["ROW_OVERHEAD", "Outbox"]

T = TypeVar("T")

#: Bytes that a row takes beside its body (keys, index, SQLite's own), as the quota counts them.
ROW_OVERHEAD = 160
_BUSY_S = 10.0
#: Space taken while there is some, so that acknowledging still works on a full disk: deleting rows writes too.
_RESERVE_BYTES = 512 << 10
#: Rows deleted in one commit when only the reserve is left to write to.
_ROWS_PER_TIGHT_COMMIT = 32
#: The log is copied into the file when it has this many pages: 1 MiB.
_LOG_PAGES = 256
_VERSION = 1
_SIGNS_OF_DAMAGE = ("malformed", "not a database", "no such table", "no such column", "Could not decode")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS windows(
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    body BLOB NOT NULL, crc INTEGER NOT NULL, UNIQUE(boot, seq));
CREATE TABLE IF NOT EXISTS tally(windows INTEGER NOT NULL, bytes INTEGER NOT NULL, lost INTEGER NOT NULL);
INSERT INTO tally SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM tally);
CREATE TABLE IF NOT EXISTS writers(boot TEXT PRIMARY KEY, process TEXT NOT NULL, open INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS stored AFTER INSERT ON windows BEGIN
    UPDATE tally SET windows = windows + 1, bytes = bytes + length(NEW.body) + {ROW_OVERHEAD}; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON windows BEGIN
    UPDATE tally SET windows = windows - 1, bytes = bytes - length(OLD.body) - {ROW_OVERHEAD}; END;
PRAGMA user_version = {_VERSION};
"""  # noqa: S608 - only our own numbers; triggers count, so that a million rows need no counting
_SIGNS_OF_FULL = ("disk is full", "disk I/O error")


class Outbox:
    """Reports on their way to the server.

    May be used by several threads and by several processes at once, but each process opens its own: in a child
    that was forked from this one it stores nothing and finds nothing. No method fails for a full disk or a
    damaged file: what cannot be stored is counted as lost.

    Args:
        path: The SQLite file; made if need be.
        quota_bytes: The stored reports take at most this much; beyond it the oldest are dropped, and counted.
        boot: Random id of this process start; made up unless given.
        wall: Unix time in seconds, for the events that it makes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        quota_bytes: int = 64 << 20,
        boot: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.quota_bytes = quota_bytes
        self.boot = boot or os.urandom(16).hex()
        self._wall = wall
        self._sequence = count(1)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._reserve = self.path.with_name(self.path.name + ".reserve")
        self._open_windows = 0
        self._unsaved_lost = 0  # losses that the file could not take yet
        self._events: list[Event] = []
        self.depth()  # makes the file, or learns now that the disk refuses

    # Writing.

    def next_seq(self) -> int:
        """Return the next sequence number of this boot, from 1."""
        return next(self._sequence)

    def append(self, *reports: WindowReport, open_windows: int | None = None) -> bool:
        """Store reports in one durable commit, dropping the oldest stored ones where the quota asks for it.

        Args:
            reports: Closed windows.
            open_windows: How many are being counted from now on, where that changes: in the same commit, so
                that a crash finds no window both stored and open.

        Returns:
            Whether they are on disk. Where they are not they count as lost.
        """
        if open_windows is not None:
            self._open_windows = open_windows
        rows = [(report.boot, report.seq, msgspec.json.encode(report)) for report in reports]
        stored = self._guarded(lambda db: self._store(db, rows), None)
        if stored is None:
            with self._lock:
                self._unsaved_lost += len(rows)
        return stored is not None

    def _store(self, db: sqlite3.Connection, rows: Sequence[tuple[str, int, bytes]]) -> int:
        fitting = [row for row in rows if len(row[2]) + ROW_OVERHEAD <= self.quota_bytes]
        lost = len(rows) - len(fitting) + self._unsaved_lost
        with _transaction(db):
            self._mark(db)
            db.executemany(
                "INSERT INTO windows(boot, seq, body, crc) VALUES (?, ?, ?, ?)",
                [(boot, seq, body, zlib.crc32(body)) for boot, seq, body in fitting],
            )
            _add_lost(db, lost + self._make_room(db))
        self._unsaved_lost = 0
        return len(fitting)

    def _make_room(self, db: sqlite3.Connection) -> int:
        """Drop the oldest rows that are over the quota; return how many."""
        excess = _tally(db)[1] - self.quota_bytes
        dropped = last = 0
        oldest = db.execute("SELECT id, length(body) FROM windows ORDER BY id")
        while excess > 0:
            last, size = oldest.fetchone()
            excess -= size + ROW_OVERHEAD
            dropped += 1
        oldest.close()
        if dropped:
            db.execute("DELETE FROM windows WHERE id <= ?", (last,))
        return dropped

    def set_open_windows(self, windows: int) -> None:
        """Note durably how many windows are being counted: those that a crash from now on would lose."""
        with self._lock:
            if windows == self._open_windows:
                return
            self._open_windows = windows
        self._guarded(self._mark_alone, None)

    def _mark_alone(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            self._mark(db)

    def _mark(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO writers VALUES (?, ?, ?) ON CONFLICT(boot) DO UPDATE SET open = excluded.open",
            (self.boot, _process_identity(os.getpid()), self._open_windows),
        )

    # Reading.

    def read(self, limit_windows: int = 100, limit_bytes: int = 1 << 20) -> list[tuple[str, int, bytes]]:
        """Return the oldest windows, as `(boot, seq, JSON of a WindowReport)`.

        A window that no longer has the checksum it was stored with is dropped, and counted as lost.

        Args:
            limit_windows: At most so many.
            limit_bytes: And no more than this together, but always one.
        """
        return self._guarded(lambda db: self._read(db, limit_windows, limit_bytes), [])

    def _read(self, db: sqlite3.Connection, windows: int, limit: int) -> list[tuple[str, int, bytes]]:
        good: list[tuple[str, int, bytes]] = []
        torn: list[tuple[str, int]] = []
        size = 0
        rows = db.execute("SELECT boot, seq, body, crc FROM windows ORDER BY id LIMIT ?", (windows,))
        for boot, seq, body, crc in rows:
            if zlib.crc32(body) != crc:
                torn.append((boot, seq))
                continue
            size += len(body)
            if good and size > limit:
                break
            good.append((boot, seq, body))
        rows.close()
        if torn:
            self._drop_torn(db, torn)
        return good

    def _drop_torn(self, db: sqlite3.Connection, torn: list[tuple[str, int]]) -> None:
        with _transaction(db):
            _add_lost(db, _delete(db, torn))

    def acknowledge(self, keys: Iterable[tuple[str, int]]) -> int:
        """Forget windows that the server has stored; return how many there were. Unknown keys do no harm."""
        wanted = list(keys)
        return self._guarded(lambda db: self._acknowledge(db, wanted), 0)

    def _acknowledge(self, db: sqlite3.Connection, keys: list[tuple[str, int]]) -> int:
        try:
            with _transaction(db):
                return _delete(db, keys)
        except sqlite3.OperationalError as error:
            if not (_is_full(error) and _give_up_reserve(self._reserve)):
                raise
        return self._acknowledge_tightly(db, keys)

    def _acknowledge_tightly(self, db: sqlite3.Connection, keys: list[tuple[str, int]]) -> int:
        """Delete in small commits, emptying the log between them, in the space that the reserve has freed."""
        gone = 0
        for start in range(0, len(keys), _ROWS_PER_TIGHT_COMMIT):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            with _transaction(db):
                gone += _delete(db, keys[start : start + _ROWS_PER_TIGHT_COMMIT])
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        _take_reserve(self._reserve)
        return gone

    def depth(self) -> tuple[int, int]:
        """Return how many windows wait, and the bytes of the quota that they take."""
        windows, size, _ = self._guarded(_tally, (0, 0, 0))
        return windows, size

    def lost(self) -> int:
        """Return how many windows were lost since the outbox was first made."""
        return self._guarded(_tally, (0, 0, 0))[2] + self._unsaved_lost

    def take_events(self) -> tuple[Event, ...]:
        """Return what happened to the outbox since the last time it was asked; it goes into the next report."""
        with self._lock:
            events, self._events = tuple(self._events), []
        return events

    # The file.

    def close(self) -> None:
        """Close the file. Windows that are still open then were not lost: their owner has given them up."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._db is not None:
                self._guarded(self._sign_off, None)
            self._disconnect()

    def _sign_off(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            db.execute("DELETE FROM writers WHERE boot = ?", (self.boot,))

    def __enter__(self) -> Outbox:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _guarded(self, work: Callable[[sqlite3.Connection], T], otherwise: T, *, again: bool = True) -> T:
        """Do `work` on the file; `otherwise` where the disk does not let us. A damaged file is replaced first."""
        if os.getpid() != self._process:
            return otherwise  # forked: the numbers, the connection and perhaps the lock are the parent's
        with self._lock:
            try:
                return work(self._connected())
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise
            except (sqlite3.DatabaseError, OSError) as error:
                if not (again and _is_damage(error)):
                    self._note_trouble(error)
                    return otherwise
                self._quarantine(error)
            return self._guarded(work, otherwise, again=False)

    def _connected(self) -> sqlite3.Connection:
        """Return the connection, made anew where another process has put another file in the place."""
        if self._db is not None and _inode(self.path) == self._inode:
            return self._db
        self._disconnect()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            self._db = db = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._inode = _inode(self.path)
            try:
                self._prepare(db)
            except BaseException:
                self._disconnect()
                raise
        return db

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from making, or putting aside, the file at the same time."""
        with self.path.with_name(self.path.name + ".lock").open("a", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if db.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}").fetchall()
        _take_reserve(self._reserve)
        self._count_crashes(db)
        if self._unsaved_lost:
            with _transaction(db):
                _add_lost(db, self._unsaved_lost)
            self._unsaved_lost = 0

    def _count_crashes(self, db: sqlite3.Connection) -> None:
        """Count the open windows of writers that are gone without having signed off."""
        gone = [
            (boot, open_windows)
            for boot, process, open_windows in db.execute("SELECT boot, process, open FROM writers")
            if boot != self.boot and not _is_alive(process)
        ]
        if not gone:
            return
        lost = 0
        with _transaction(db):
            for boot, open_windows in gone:
                lost += open_windows * db.execute("DELETE FROM writers WHERE boot = ?", (boot,)).rowcount
            _add_lost(db, lost)
        if lost:
            self._note_loss(f"{lost} open window(s) were lost when the process stopped without closing them")

    def _quarantine(self, error: Exception) -> None:
        """Put a damaged file aside, replacing the one put aside before, and begin a new one."""
        self._disconnect()
        aside = self.path.with_name(self.path.name + ".damaged")
        with self._alone():
            if _inode(self.path) != self._inode:
                return  # another process was quicker
            for suffix in ("-shm", "-wal", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
        waiting, lost_before = _salvaged(aside)
        self._unsaved_lost += max(1, waiting) + lost_before
        self._note_loss(
            f"the outbox was damaged ({error}); at least {max(1, waiting)} window(s) are lost, "
            f"the file was put aside as {aside.name}"
        )

    def _note_loss(self, text: str) -> None:
        self._events.append(Event(self._wall(), "lost", text, "warning"))

    def _note_trouble(self, error: Exception) -> None:
        """Say once that the disk refuses, however often it does until the event is taken."""
        text = f"the outbox cannot be written: {error}"
        if all(event.text != text for event in self._events):
            self._note_loss(text)

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None


def _tally(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return the windows that wait, their bytes, and the windows lost."""
    row: tuple[int, int, int] = db.execute("SELECT windows, bytes, lost FROM tally").fetchone()
    return row


def _add_lost(db: sqlite3.Connection, lost: int) -> None:
    db.execute("UPDATE tally SET lost = lost + ?", (lost,))


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run one write transaction; IMMEDIATE, since a read that turns into a write cannot wait its turn."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite rolls back on its own for some errors
            db.execute("ROLLBACK")
        raise


def _delete(db: sqlite3.Connection, keys: Iterable[tuple[str, int]]) -> int:
    return db.executemany("DELETE FROM windows WHERE boot = ? AND seq = ?", keys).rowcount


def _is_full(error: Exception) -> bool:
    """Tell a disk without space; some file systems notice when the log grows, and SQLite has no word for it."""
    return isinstance(error, sqlite3.OperationalError) and any(sign in str(error) for sign in _SIGNS_OF_FULL)


def _take_reserve(path: Path) -> None:
    """Take the reserved space where there is at least twice as much; else another time."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        if path.exists() or disk.f_bavail * disk.f_frsize < 2 * _RESERVE_BYTES:
            return
        with path.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, _RESERVE_BYTES)


def _give_up_reserve(path: Path) -> bool:
    """Free the reserved space; return whether there was any."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _is_damage(error: Exception) -> bool:
    """Tell a damaged file from a disk that is full, read-only or busy. Python 3.10 has only the words."""
    words = str(error)
    return isinstance(error, sqlite3.Error) and any(sign in words for sign in _SIGNS_OF_DAMAGE)


def _salvaged(path: Path) -> tuple[int, int]:
    """Return the windows and the losses that a damaged file had counted, as far as it can still tell."""
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(path, timeout=0.0)
        try:
            waiting, lost = db.execute("SELECT windows, lost FROM tally").fetchone()
            return int(waiting), int(lost)
        finally:
            db.close()
    return 0, 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _process_identity(pid: int) -> str:
    """Return what tells this process from a later one with the same number; empty where it does not run."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{pid} {started} {kernel}"


def _is_alive(process: str) -> bool:
    pid = process.partition(" ")[0]
    return pid.isdigit() and _process_identity(int(pid)) == process
