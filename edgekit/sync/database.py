"""Opening the database: durable SQLite by default, migrated to this version, one writer at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from edgekit.errors import InvalidFileError, MachineError, UsageError
from edgekit.state import StateFolder
from edgekit.sync.problems import ProblemError

__all__ = ["Database", "default_url", "open_database"]

#: How long a writer waits for another process's transaction, in seconds.
_BUSY_S = 5.0
#: Connections that may read beside the writer.
_READERS = 48


class Database:
    """Connections by purpose: many may read, one writes.

    The one writer is a lock now. Group commit (several reports in one transaction) and row-level locks of
    PostgreSQL have their place in `write`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        assert engine.url.database is not None
        self._path = engine.url.database
        self._file = _file_at(self._path)
        self._writing = engine.execution_options(edgekit_write=True)
        self._writer = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection that sees one consistent state."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction; it is on the disk when the block has ended without an exception.

        Raises:
            ProblemError: `storage`: the file was deleted or replaced. SQLite would go on writing into what nobody
                can open again, and an ack would be a lie.
        """
        with self._writer, self._writing.begin() as connection:
            if _file_at(self._path) != self._file:
                raise ProblemError(
                    "storage",
                    "the database's file was deleted or replaced: restart the server",
                    retry_after_s=60,
                )
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _file_at(path: str) -> tuple[int, int]:
    """Return what tells a file from another of its name: device and inode; zeros where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - with every transaction
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def default_url(state: StateFolder) -> str:
    """Return the URL of the SQLite file in the state folder."""
    return f"sqlite:///{state.root / 'sync.sqlite'}"


def open_database(url: str) -> Database:
    """Open the database, make it if need be, and bring its tables to this version.

    Raises:
        UsageError: The URL is none, or of another kind than SQLite.
        InvalidFileError: A newer EdgeKit has made it, or it is no database.
        MachineError: It cannot be opened.
    """
    database = Database(_engine(url))
    try:
        _migrate(database)
    except SQLAlchemyError as error:
        raise _explain(url, error) from error
    return database


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UsageError(
            f"{url!r} is not a database URL", expected="sqlite:////folder/file.sqlite"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        raise UsageError(
            "only SQLite is supported so far", got=parsed.get_backend_name(), expected="sqlite:///FILE"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError("the server needs a database file", expected="sqlite:///FILE")
    _make_private(Path(parsed.database))
    engine = create_engine(
        parsed,
        pool_size=4,
        max_overflow=_READERS,
        connect_args={"timeout": _BUSY_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(path: Path) -> None:
    """Make the file with mode 0600: it says which devices exist."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise MachineError(
            f"the database {path} cannot be opened", got=error.strerror, hint="Check the folder and --db."
        ) from error


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = (
        None  # transactions begin where `_begin_sqlite` says, not where sqlite3 guesses
    )
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an ack must survive a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-16384")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # a deferred transaction that writes later can fail half-way with "database is locked"
    writes = connection.get_execution_options().get("edgekit_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "edgekit.sync:migrations")
    with database.write() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise InvalidFileError(
                "the database was made by another version of EdgeKit",
                got=str(error),
                hint="Install the newer EdgeKit, or give another --db.",
            ) from error


def _explain(url: str, error: SQLAlchemyError) -> InvalidFileError | MachineError:
    cause = str(getattr(error, "orig", error))
    shown = make_url(url).render_as_string(hide_password=True)
    if "not a database" in cause or "malformed" in cause:
        return InvalidFileError(
            f"{shown} is damaged or no database", got=cause, hint="Restore it, or move it."
        )
    return MachineError(f"{shown} cannot be used", got=cause)
